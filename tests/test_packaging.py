"""The wheel holds what it should, and facts of the tree that no single module can check."""

import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

from cutefp4.format import E4M3_MAX, numerator

ROOT = Path(__file__).parent.parent
SKIPPED = shutil.ignore_patterns("__pycache__", "*.so", "*.o")


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory) -> set[str]:
    """Names in a wheel built from a copy of the sources, where no build directory can interfere."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("cutefp4", "kernels", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=SKIPPED)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(source / "out"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = (source / "out").glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def sources(folder: str) -> set[str]:
    files = (p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {str(p.relative_to(ROOT)) for p in files if p.suffix not in (".so", ".o")}


def test_wheel_holds_every_file_of_the_package(wheel_names):
    missing = sources("cutefp4") - wheel_names
    assert not missing, f"not in the wheel, see tool.setuptools.package-data: {sorted(missing)}"


def test_wheel_installs_kernels_below_the_package(wheel_names):
    device_code = {name for name in sources("kernels") if name.endswith(".py")}
    assert device_code and {f"cutefp4/{name}" for name in device_code} <= wheel_names
    top = {name.split("/")[0] for name in wheel_names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"cutefp4"}


def test_wheel_has_the_script_and_the_licence(wheel_names):
    (entry_points,) = (name for name in wheel_names if name.endswith("entry_points.txt"))
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)
    assert entry_points


@cache
def texts() -> dict[str, str]:
    """Text of every file of the project, by path."""
    found = {name for folder in ("cutefp4", "kernels", "tests", "perf", ".ci") for name in sources(folder)}
    # A linked worktree has a file where a checkout has the directory .git.
    found |= {path.name for path in ROOT.iterdir() if path.is_file() and path.name != ".git"}
    read = {}
    for name in sorted(found):
        try:
            read[name] = (ROOT / name).read_text()
        except UnicodeDecodeError:
            continue
    return read


def test_the_product_of_six_and_the_largest_scale_is_derived():
    """6 * 448 is written out nowhere: the constant follows from each operand's own e4m3_max.

    Results are measured numbers: one of them was as many microseconds.
    """
    literal = re.compile(rf"(?<![0-9a-fA-FxX.]){numerator(E4M3_MAX):.0f}(?![0-9a-fA-F])")
    holders = [name for name, text in texts().items() if literal.search(text)]
    assert not [name for name in holders if not name.startswith("perf/results/")]


def test_no_machine_paths():
    """Nothing in the tree points into one person's machine."""
    paths = re.compile(r"(?<![\w.])/(work|root|home)/\w")
    assert not [name for name, text in texts().items() if paths.search(text)]


def test_nothing_is_left_unfinished():
    # Spelled in pieces, so that these lines are not what they look for.
    unfinished = "|".join(
        first + second for first, second in (("TO", "DO"), ("FIX", "ME"), ("raise NotImpl", "ementedError"))
    )
    skipped = "|".join(first + second for first, second in (("skip", ""), ("x", "fail"), ("mark.", "skip")))
    words = re.compile(rf"\b({unfinished})\b|pytest\.({skipped})")
    assert not [name for name, text in texts().items() if words.search(text)]
