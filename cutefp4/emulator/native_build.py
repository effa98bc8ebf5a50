"""Builds the C interpreter once per machine and loads it.

The shared library lies in the cutefp4 cache directory under the hash of its sources, flags and compiler; a lock and an
atomic rename make concurrent first uses safe. Compilers tried: $CC, cc, gcc, clang, then the `ziglang` wheel.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from cutefp4 import env

from .errors import EmulatorError

SOURCES = Path(__file__).parent / "native"
FLAGS = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-sanitize=undefined",  # which zig switches on by itself
    "-w",
)

# A handler is `int op_NAME(` or a macro at the start of a line: OP_xxx(NAME, ...). OP_HALF makes one per half format.
_HANDLER = re.compile(r"^(?:int op_(\w+)\(|(?:OP_(\w+))\((\w+))", re.M)
_HALF_FORMATS = ("F16", "BF16", "F16X2", "BF16X2")


@lru_cache(maxsize=1)
def operations() -> tuple[str, ...]:
    """The names of all instruction handlers; an instruction's opcode is its position."""
    names = set()
    for source in sorted(SOURCES.glob("*.c")):
        for function, macro, name in _HANDLER.findall(source.read_text()):
            if macro == "HALF":
                names.update(f"{name}_{suffix}" for suffix in _HALF_FORMATS)
            else:
                names.add(function or name)
    return tuple(sorted(names))


def _compiler() -> list[str]:
    for candidate in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if candidate and shutil.which(candidate):
            return [candidate]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise EmulatorError(
        "the emulator's C interpreter has to be compiled and no C compiler was found",
        "cc, gcc or clang on PATH, $CC, or the ziglang package",
        "pip install 'cutefp4[emulator]'",
    )


def _machine_flags() -> tuple[str, ...]:
    """Vector extensions of this machine, where the compiler's baseline leaves them out."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ()
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    wanted = ("avx2", "bmi1", "bmi2", "fma", "f16c", "movbe", "popcnt")
    present = all(f" {flag} " in flags for flag in wanted)
    # One by one: zig spells -march=x86-64-v3 differently.
    return tuple(f"-m{flag.replace('bmi1', 'bmi')}" for flag in wanted) if present else ()


def _key(flags: tuple[str, ...], compiler: list[str]) -> str:
    digest = hashlib.sha256(repr((flags, compiler, platform.machine(), platform.system())).encode())
    for source in sorted(SOURCES.glob("*.[ch]")) + sorted(SOURCES.glob("*.def")):
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


def _run(commands: list[list[str]], compiler: list[str]) -> None:
    """Runs compiler commands, as many at a time as there are processors."""
    running: list[subprocess.Popen] = []
    errors = []

    def finish(process: subprocess.Popen) -> None:
        _, error = process.communicate()
        if process.returncode:
            errors.append(error)

    for command in commands:
        if len(running) >= (os.cpu_count() or 1):
            finish(running.pop(0))
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    for process in running:
        finish(process)
    if errors:
        raise EmulatorError(
            f"the emulator's C interpreter does not compile with {' '.join(compiler)}:\n{errors[0][-4000:]}",
            "a C11 compiler with the GNU extensions",
            "set $CC to another compiler or pip install 'cutefp4[emulator]'",
        )


def _compile(compiler: list[str], flags: tuple[str, ...], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        table = "".join(f"OP({name})\n" for name in operations())
        declarations = "".join(f"int op_{n}(Machine *m, Warp *w, const Instr *ins, u32 mask);\n" for n in operations())
        (Path(scratch) / "ops_table.inc").write_text(table)
        (Path(scratch) / "ops_declared.h").write_text(declarations)
        # The largest first, so that the last compile is a short one.
        sources = sorted(SOURCES.glob("*.c"), key=lambda p: -p.stat().st_size)
        objects = [str(Path(scratch) / f"{p.stem}.o") for p in sources]
        base = [*compiler, *flags, f"-I{scratch}", f"-I{SOURCES}", "-c"]
        _run([[*base, str(p), "-o", o] for p, o in zip(sources, objects, strict=True)], compiler)
        output = str(Path(scratch) / "emulator.so")
        _run([[*compiler, "-shared", *objects, "-o", output, "-lm", "-ldl"]], compiler)
        os.replace(output, target)


@lru_cache(maxsize=1)
def library_path() -> Path:
    """Path of the compiled interpreter, building it if it is not there."""
    compiler, flags = _compiler(), FLAGS + _machine_flags()
    directory = env.cache_dir() / "emulator"
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{_key(flags, compiler)}.so"
    if not target.exists():
        with FileLock(str(target) + ".lock"):
            if not target.exists():
                _compile(compiler, flags, target)
    return target


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(library_path()))
