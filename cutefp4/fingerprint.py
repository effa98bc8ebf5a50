"""What else decides generated code, besides the plan: our sources, the DSL, the host. One directory of the cache each.

A fingerprint covers the text of every module that a builder can reach inside its package (found by following imports
from `cutefp4.kernels` and, for a builder of another package, from its module), the installed DSL wheels and the
library of theirs that is loaded, the Python ABI, and the CPU's features (the launch code is compiled for the host).
"""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import re
import sys
from functools import cache
from pathlib import Path

import psutil

from cutefp4 import dsl
from cutefp4.errors import CompileError
from cutefp4.plan import Plan

_KERNELS = "cutefp4.kernels"
_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)|import[ \t]+([\w.]+))", re.M)


def _source_of(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _imports_of(text: str, module: str, package: str) -> set[str]:
    """Modules of `package` (or `package.attribute`, which may be a module) that the text imports."""
    found = set()
    for origin, names, plain in _IMPORT.findall(text):
        base = plain or origin
        if base.startswith("."):
            levels = len(base) - len(base.lstrip("."))
            parent = module.split(".")[: -levels or None]
            base = ".".join([*parent, base.lstrip(".")]).rstrip(".")
        if base.split(".")[0] != package:
            continue
        found.add(base)
        found.update(f"{base}.{name}" for name in re.findall(r"\w+", names))
    return found


def reachable_sources(module: str) -> dict[str, Path]:
    """Every source file of the module's top-level package that can be reached from it by imports, by module name."""
    package = module.split(".")[0]
    pending, found = {module}, {}
    while pending:
        name = pending.pop()
        path = _source_of(name)
        if name in found or path is None:
            continue
        found[name] = path
        pending |= _imports_of(path.read_text(), name, package) - found.keys()
    return found


def _kernel_modules() -> list[str]:
    root = Path(_source_of(_KERNELS)).parent
    relative = (path.relative_to(root).with_suffix("") for path in root.rglob("*.py"))
    return sorted(".".join((_KERNELS, *p.parts)).removesuffix(".__init__") for p in relative)


def _cpu_features() -> str:
    """The instruction sets of this CPU; code for one host may not run on another that shares its home directory."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.M)
    return " ".join(sorted(flags.group(1).split())) if flags else platform.processor()


@cache
def _sources(builder_module: str) -> dict[str, Path]:
    """All modules that decide what a builder makes, by name."""
    if _source_of(builder_module) is None:
        raise CompileError(
            f"builder module {builder_module!r}",
            "a module with a source file on sys.path",
            "the compile cache fingerprints the builder's source; save it to a file",
        )
    sources: dict[str, Path] = {}
    for module in ("cutefp4.dsl", *_kernel_modules(), builder_module):
        if module not in sources:
            sources.update(reachable_sources(module))
    return sources


@cache
def _fingerprint(builder_module: str) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(_sources(builder_module).items()):
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    host = (sys.implementation.cache_tag, platform.machine(), _cpu_features())
    digest.update("\n".join((*dsl.versions(), *host)).encode())
    return digest.hexdigest()[:16]


def of(plan: Plan) -> str:
    """Name of the directory that holds a plan's kernel, "sm_90a-0123456789abcdef"; hashed once per builder module.

    Raises:
        CompileError: the builder's module has no source file.
    """
    return f"{plan.arch}-{_fingerprint(plan.builder.partition(':')[0])}"


def changed_source(plan: Plan) -> Path | None:
    """A source file that was written after this process started, or None.

    The modules in memory may then be older than the text that the fingerprint covers, and a kernel built from them must
    neither be stored under it nor mixed with one that is.
    """
    start = psutil.Process().create_time()
    for path in _sources(plan.builder.partition(":")[0]).values():
        if not path.exists() or path.stat().st_mtime > start:
            return path
    return None
