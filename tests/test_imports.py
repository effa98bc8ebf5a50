"""Imports go one way, and `import cutefp4` is light."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

CONTRACTS = ("errors", "format", "scale_layout", "env", "operand", "recipe", "epilogue")
"""The bottom of the tree, each may import those before it."""

PUBLIC = (
    "tensor", "backend", "quantize_checks", "quantize", "producers", "gemm_arguments", "gemm", "checkpoint", "nn",
    "interop", "acceptance", "cli", "",
)  # fmt: skip
"""What users call ("" is the package itself), bottom first; nothing else may import any of it."""


def _modules() -> dict[str, Path]:
    """Every module of the package by its name below `cutefp4`: "gemm", "reference.gemm", "kernels.sm90.mma"."""
    found = {}
    for base, prefix in ((ROOT / "cutefp4", ()), (ROOT / "kernels", ("kernels",))):
        for path in base.rglob("*.py"):
            parts = (*prefix, *path.relative_to(base).with_suffix("").parts)
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


MODULES = _modules()


def _targets(node: ast.AST, module: str) -> set[str]:
    """Modules of the package that an import statement names."""
    if isinstance(node, ast.Import):
        names = [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom):
        source = node.module
        if node.level:
            package = ["cutefp4", *module.split(".")]
            package = package if MODULES[module].name == "__init__.py" else package[:-1]
            source = ".".join(filter(None, (*package[: len(package) - node.level + 1], node.module)))
        names = [f"{source}.{a.name}" for a in node.names]
    else:
        return set()
    targets = set()
    for name in names:
        if name == "cutefp4" or name.startswith("cutefp4."):
            inner = name.removeprefix("cutefp4").removeprefix(".")
            # `from cutefp4.gemm import gemm` names the module, `from cutefp4 import env` a submodule.
            targets.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return targets


def _imports(path: Path, module: str) -> tuple[set[str], set[str]]:
    """(all, those inside functions) modules of the package that a file imports."""
    tree = ast.parse(path.read_text())
    everywhere = set().union(*(_targets(node, module) for node in ast.walk(tree)), set())
    functions = (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))
    inside = set().union(*(_targets(node, module) for f in functions for node in ast.walk(f)), set())
    return everywhere, inside


IMPORTS = {module: _imports(path, module) for module, path in MODULES.items()}


def test_the_graph_was_read():
    assert len(MODULES) > 30
    assert {"cutefp4.format"} <= {f"cutefp4.{m}" for m in IMPORTS["operand"][0]}
    assert "" in IMPORTS["cli.measure"][0] and "reference" in IMPORTS["backend"][0]


def test_no_cycles():
    tuple(TopologicalSorter({m: everywhere - {m} for m, (everywhere, _) in IMPORTS.items()}).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_no_import_inside_a_function(module):
    assert not IMPORTS[module][1], f"cutefp4.{module} imports {IMPORTS[module][1]} inside a function"


@pytest.mark.parametrize("module", MODULES)
def test_layers(module):
    top = module.split(".")[0]
    for target in IMPORTS[module][0]:
        below = target.split(".")[0]
        if top in CONTRACTS:
            assert below == top or below in CONTRACTS[: CONTRACTS.index(top)], f"{module} imports {target}"
        elif top == "reference":
            assert below in (*CONTRACTS, "reference"), f"{module} imports {target}"
        elif top in PUBLIC:
            assert below not in PUBLIC or below == top or allowed(top, below), f"{module} imports {target}"
        else:
            assert below not in PUBLIC, f"{module} imports {target}, which is for users"
        if top == "kernels":
            assert below not in ("reference", "compile", "ops", "emulator"), f"{module} imports {target}"


def allowed(top: str, below: str) -> bool:
    """Lower in PUBLIC; commands, layers and importers may use the package as a user does."""
    return PUBLIC.index(below) < PUBLIC.index(top) or (top in ("acceptance", "cli", "nn", "interop") and below == "")


def test_import_is_light():
    """The CuTe DSL and torch's compiler take seconds to import, matplotlib and rich a good part of one; none comes with
    the package."""
    heavy = ("cutlass", "cuda", "tvm_ffi", "torch._dynamo", "sympy", "matplotlib", "rich", "typer")
    heavy += ("sentence_transformers", "hypothesis")
    script = "import sys, torch; before = set(sys.modules); import cutefp4; "
    script += f"print(sorted(set({heavy!r}) & (set(sys.modules) - before)))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names_exist_and_are_documented():
    import cutefp4

    assert sorted(cutefp4.__all__) == list(cutefp4.__all__)
    for name in cutefp4.__all__:
        assert getattr(cutefp4, name).__doc__, name
