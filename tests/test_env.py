"""Environment variables: one table, read in one place, checked values."""

import re
from pathlib import Path

import pytest

from cutefp4 import env
from cutefp4.errors import OperandError

ROOT = Path(__file__).parent.parent
SOURCES = [p for d in ("cutefp4", "kernels", "perf") for p in (ROOT / d).rglob("*.py")]
NAME = re.compile(r"CUTEFP4_[A-Z0-9_]+")


def test_every_variable_in_the_sources_is_in_the_table():
    used = {name for path in SOURCES for name in NAME.findall(path.read_text())}
    assert used == set(env.VARIABLES)


def test_variables_are_read_in_one_place():
    # `del environ[...]` and `environ[...] = ...` are no reads.
    reads = re.compile(r"(?<!del )os\.(environ\.get\(|getenv\(|environ\[)\s*[\"']CUTEFP4_\w+[\"'](?!\] = )")
    offenders = [p for p in SOURCES if p.name != "env.py" and reads.search(p.read_text())]
    assert not offenders


def test_readme_table_is_the_table():
    rows = [
        [cell.strip().replace("`", "") for cell in line.strip("|\n").split("|")]
        for line in (ROOT / "README.md").read_text().splitlines()
        if line.startswith("| `CUTEFP4_")
    ]
    assert rows == [[v.name, v.default, ", ".join(v.choices), v.meaning] for v in env.VARIABLES.values()]


def test_defaults_and_checks(monkeypatch, tmp_path):
    for name in env.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert env.read("CUTEFP4_BACKEND") == "auto" and env.read_int("CUTEFP4_COMPILE_WORKERS") == 0
    assert env.cache_dir().name == "cutefp4"
    monkeypatch.setenv("CUTEFP4_CACHE_DIR", str(tmp_path))
    assert env.cache_dir() == tmp_path
    monkeypatch.setenv("CUTEFP4_JIT", "")  # empty is unset
    assert env.read("CUTEFP4_JIT") == "allow"
    monkeypatch.setenv("CUTEFP4_JIT", "never")
    with pytest.raises(OperandError, match="CUTEFP4_JIT='never'.*allow, warn, error.*unset"):
        env.read("CUTEFP4_JIT")
    monkeypatch.setenv("CUTEFP4_COMPILE_WORKERS", "-1")
    with pytest.raises(OperandError, match="-1.*integer >= 0"):
        env.read_int("CUTEFP4_COMPILE_WORKERS")
