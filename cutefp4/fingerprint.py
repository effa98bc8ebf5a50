"""What else decides generated code, besides the plan: our sources, the DSL, the host. One directory of the cache each.

A fingerprint covers the text of every module under `cutefp4.kernels` and of what they import from cutefp4 (for a
builder of another package: of what its module imports from there and from cutefp4), the installed DSL wheels and the
library of theirs that is loaded, the Python ABI, and the CPU's features (the launch code is compiled for the host).
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from functools import cache
from pathlib import Path

from cutefp4 import dsl
from cutefp4.errors import CompileError
from cutefp4.plan import IMPORTED_AT, Plan

_KERNELS = "cutefp4.kernels"
_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)|import[ \t]+([\w.]+))", re.M)


def _source_of(module: str) -> Path | None:
    """The source file of a module, None if it has none or does not exist. Imports nothing, not even parent packages."""
    parts, search = module.split("."), None
    spec = None
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        specs = (finder.find_spec(name, search) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next((found for found in specs if found is not None), None)
        if spec is None:
            return None
        # A package that was imported may have extended its path.
        search = getattr(sys.modules.get(name), "__path__", spec.submodule_search_locations)
        if search is None and depth < len(parts):
            return None
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def _imports_of(path: Path, module: str) -> set[str]:
    """Modules of cutefp4 and of the module's own package that a file imports; names may be modules or attributes."""
    packages = {"cutefp4", module.split(".")[0]}
    here = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for origin, names, plain in _IMPORT.findall(path.read_text()):
        base = plain or origin
        if base.startswith("."):
            levels = len(base) - len(base.lstrip("."))
            parent = here[: len(here) - (levels - 1)]
            base = ".".join([*parent, base.lstrip(".")]).rstrip(".")
        if base.split(".")[0] not in packages:
            continue
        if base not in packages:
            found.add(base)
        found.update(f"{base}.{name}" for name in re.findall(r"\w+", names))
    return found


def reachable_sources(*modules: str) -> dict[str, Path]:
    """Every source file of cutefp4 and of their own packages that `modules` reach by imports, by module name.

    The packages on the way to a module count as reached, except the top-level one: its `__init__` collects public names
    and imports everything.
    """
    pending, found = set(modules), {}
    seen = {"cutefp4", *(module.split(".")[0] for module in modules)} - pending
    while pending:
        name = pending.pop()
        seen.add(name)
        path = _source_of(name)
        if path is None:
            continue
        found[name] = path
        pending |= {*_imports_of(path, name), name.rpartition(".")[0]} - seen - {""}
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
    ours = _kernel_modules() if builder_module.startswith(f"{_KERNELS}.") else ()
    return reachable_sources("cutefp4.dsl", *ours, builder_module)


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
    """A source file that was written after this process began to import plans and builders, or None.

    The modules in memory may then be older than the text that the fingerprint covers, and a kernel built from them must
    neither be stored under it nor mixed with one that is.
    """
    for path in _sources(plan.builder.partition(":")[0]).values():
        if not path.exists() or path.stat().st_mtime > IMPORTED_AT:
            return path
    return None
