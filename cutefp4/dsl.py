"""The one file that knows how the CUTLASS Python DSL is driven: compile a plan to an object, load an object.

Facts that it relies on (DSL 4.8), each with a test:

* `--gpu-arch` decides both code generation and what kernels see at trace time, so that one process compiles for
  several architectures, with no GPU and no CUTE_DSL_ARCH.
* The DSL declares which of its CUTE_DSL_* settings change code. All of them are held at their defaults during a
  compile, so that an environment variable cannot put a different kernel under the same key.
* An exported object holds the kernels as a fat binary, and the host code that launches them under TVM-FFI: it checks
  the arguments, loads the binary on first use on each device, and launches on the caller's current stream.
* Tracing is not thread-safe; one lock serialises it.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cutefp4.errors import CompileError
from cutefp4.plan import Plan

_trace_lock = threading.RLock()
_compiling_plan = False

# Line information changes no instruction (the SASS is identical with and without it), and lets profilers and the
# emulator name Python lines.
_DEFAULT_OPTIONS = ("--opt-level 3", "--enable-tvm-ffi", "--generate-line-info", "--keep-ptx", "--keep-cubin")


@dataclass(frozen=True)
class CompiledObject:
    """What one compile makes.

    Attributes:
        object: ELF relocatable: host code and fat binary, exporting `Plan.symbol`.
        ptx: text of the module's PTX.
        cubin: the ELF image that the fat binary in `object` contains.
        kernels: names of the kernels in it.
        dynamic_shared_bytes: per launch in the host code, in order; None where it is computed at run time.
    """

    object: bytes
    ptx: str
    cubin: bytes
    kernels: tuple[str, ...]
    dynamic_shared_bytes: tuple[int | None, ...] = ()


def versions() -> tuple[str, ...]:
    """What generates code: every installed nvidia-cutlass-dsl* wheel, apache-tvm-ffi, and the library that was loaded.

    The library's file name tells the CUDA major version (the DSL picks one by the driver if several are installed), the
    Python ABI and the platform: "_cutlass_ir.cu13.cpython-311-x86_64-linux-gnu.so".
    """
    import cutlass
    from cutlass._mlir._mlir_libs import _cutlass_ir

    # Names of the directories, not importlib.metadata: reading every installed wheel's metadata costs 0.1-0.5 s.
    wheels = {
        wheel.name.removesuffix(".dist-info")
        for directory in map(Path, sys.path)
        for pattern in ("nvidia_cutlass_dsl*.dist-info", "apache_tvm_ffi*.dist-info")
        for wheel in directory.glob(pattern)
    }
    return (f"cutlass {cutlass.__version__}", Path(_cutlass_ir.__file__).name, *sorted(wheels))


@contextmanager
def _default_settings(arch: str) -> Iterator[None]:
    """Hold every DSL setting that changes code at its declared default, and the architecture at `arch`."""
    from cutlass.cutlass_dsl import CuTeDSL

    settings = CuTeDSL._get_dsl().envar
    if not hasattr(settings, "_ENV_VAR_SPEC"):
        raise CompileError(
            "a CUTLASS Python DSL that does not declare its settings",
            "nvidia-cutlass-dsl >= 4.8, < 5",
            "pip install -U 'nvidia-cutlass-dsl>=4.8,<5'; otherwise the environment could change code behind the cache",
        )
    pinned = {
        entry.attribute: entry.default(settings) if callable(entry.default) else entry.default
        for entry in settings._ENV_VAR_SPEC
        if entry.affects_compile and isinstance(entry.source, str)
    }
    pinned["_arch"] = arch
    before = {name: getattr(settings, name) for name in pinned}
    try:
        # In declaration order: the default of `lineinfo` is computed from `debug`, which is pinned before it.
        for name, value in pinned.items():
            setattr(settings, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


def compiling_plan() -> bool:
    """Whether `compile_plan` is at work: what it makes is stored, so nothing may change the DSL's output meanwhile.

    For code that substitutes parts of the DSL (the emulator does, for functions that are compiled inside it).
    """
    return _compiling_plan


@contextmanager
def _marked_as_compiling() -> Iterator[None]:
    global _compiling_plan
    before, _compiling_plan = _compiling_plan, True
    try:
        yield
    finally:
        _compiling_plan = before


def _plain(text: str) -> str:
    """Without the escape sequences that colour the DSL's diagnostics."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


# cudaLaunchConfig_t as the host code builds it: grid, block, dynamic shared memory, stream, attributes, their number.
_LAUNCH_CONFIG = r"!llvm\.struct<\(array<3 x i32>, array<3 x i32>, i64, ptr, ptr, i32\)>"
_SHARED_STORE = re.compile(
    rf"(%\w+) = llvm\.getelementptr %\w+\[0, 2\] : \(!llvm\.ptr\) -> !llvm\.ptr, {_LAUNCH_CONFIG}\s+"
    r"llvm\.store (%\w+), \1 : i64"
)


def _dynamic_shared_bytes(host_code: str) -> tuple[int | None, ...]:
    """What each launch stores into its configuration. SSA names are per function; the launches are in one function."""
    found = []
    for function in re.split(r"^  llvm\.func ", host_code, flags=re.M):
        for store in _SHARED_STORE.finditer(function):
            constant = re.search(rf"{store.group(2)} = llvm\.mlir\.constant\((\d+) : i64\)", function)
            found.append(int(constant.group(1)) if constant else None)
    return tuple(found)


def compile_plan(plan: Plan) -> CompiledObject:
    """Trace and compile a plan for `plan.arch`; needs no GPU, touches none.

    Raises:
        CompileError: the builder or the compiler failed; the cause is chained.
    """
    import cutlass.cute as cute

    scratch_directory = tempfile.TemporaryDirectory(prefix="cutefp4-")
    with _trace_lock, scratch_directory as scratch, _default_settings(plan.arch), _marked_as_compiling():
        options = (*_DEFAULT_OPTIONS, f"--gpu-arch {plan.arch}", f"--dump-dir {scratch}", *plan.compile_options())
        try:
            function, arguments = plan.load_builder()(plan)
            compiled = cute.compile(function, *arguments, options=" ".join(options), no_jit_engine=True, no_cache=True)
            path = Path(scratch) / "kernel.o"
            compiled.export_to_c(object_file_path=str(path), function_name=plan.symbol)
            return CompiledObject(
                path.read_bytes(),
                compiled.artifacts.PTX,
                compiled.artifacts.CUBIN,
                tuple(compiled.kernel_info),
                _dynamic_shared_bytes(str(compiled.ir_module)),
            )
        except CompileError:
            raise
        except Exception as error:
            raise CompileError(
                f"{plan.describe()} for {plan.arch} did not compile: {type(error).__name__}: {_plain(str(error))}",
                fix="see the chained exception",
            ) from error


def load_object(data: bytes, symbol: str) -> Callable:
    """The function `symbol` of an object file's bytes, as a TVM-FFI function: positional arguments, no keywords.

    The bytes are handed over through an anonymous file, so that what was checked is what is loaded.

    Raises:
        CompileError: the bytes are no such object.
    """
    import cutlass.cute as cute

    try:
        with _anonymous_file(data) as path:
            return getattr(cute.runtime.load_module(path, enable_tvm_ffi=True), symbol)
    except Exception as error:
        raise CompileError(
            f"a compiled kernel ({len(data)} bytes, symbol {symbol}) did not load: {error}",
            "an object of this DSL version and this CPU architecture",
            "run `cutefp4 cache clear`",
        ) from error


@contextmanager
def _anonymous_file(data: bytes) -> Iterator[str]:
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        fd = os.memfd_create("cutefp4-kernel")
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
    else:
        with tempfile.TemporaryDirectory(prefix="cutefp4-") as scratch:
            path = Path(scratch) / "kernel.o"
            path.write_bytes(data)
            yield str(path)
