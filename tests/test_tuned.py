"""Tuned configurations: exact matches, explicit loading, files that survive."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cutefp4 import tuned
from cutefp4.config import Sm90Config
from cutefp4.errors import CompileError
from cutefp4.tuned import TunedEntry

PROBLEM = {"layout": "TN", "m": 8192, "n": 4096, "k": 4096}
ENTRY = TunedEntry("gemm", "sm_90a", PROBLEM, Sm90Config(tile_n=64), {"median_us": 612.4})


@pytest.fixture(autouse=True)
def empty_table():
    tuned.clear()
    yield
    tuned.clear()


def test_round_trip_and_exact_match(tmp_path):
    path = tuned.save(tmp_path / "deep" / "tuned.json", [ENTRY])
    assert tuned.read(path) == [ENTRY]
    assert tuned.lookup("gemm", "sm_90a", PROBLEM) is None, "reading applies nothing"
    assert tuned.load(path) == 1
    assert tuned.lookup("gemm", "sm_90a", dict(reversed(PROBLEM.items()))) == ENTRY.config
    others = [
        ("grouped_gemm", "sm_90a", PROBLEM),
        ("gemm", "sm_100a", PROBLEM),
        ("gemm", "sm_90a", PROBLEM | {"m": 8191}),
        ("gemm", "sm_90a", PROBLEM | {"m": 8192.0}),
        ("gemm", "sm_90a", PROBLEM | {"bias": True}),
        ("gemm", "sm_90a", {"m": 8192}),
    ]
    for other in others:
        assert tuned.lookup(*other) is None, other


def test_later_tables_win_and_blocks_end(tmp_path):
    first = tuned.save(tmp_path / "first.json", [ENTRY])
    second = tuned.save(tmp_path / "second.json", [replace(ENTRY, config=Sm90Config(tile_n=256))])
    tuned.load(first)
    before = tuned.generation()
    with tuned.use(second) as count:
        assert count == 1 and tuned.generation() != before
        assert tuned.lookup("gemm", "sm_90a", PROBLEM).tile_n == 256
    assert tuned.lookup("gemm", "sm_90a", PROBLEM).tile_n == 64
    assert tuned.generation() > before + 1
    tuned.clear()
    assert tuned.lookup("gemm", "sm_90a", PROBLEM) is None


def test_the_file_does_not_depend_on_the_order(tmp_path):
    entries = [replace(ENTRY, problem=PROBLEM | {"m": m}) for m in (16, 512, 64, 8192)]
    a = tuned.save(tmp_path / "a.json", entries)
    b = tuned.save(tmp_path / "b.json", [*reversed(entries), entries[2]])
    assert a.read_bytes() == b.read_bytes() and len(tuned.read(a)) == 4
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(format="cutefp4-tuned-0"), "no tuned table"),
        (lambda d: d["entries"][0].pop("arch"), "entry 0.*KeyError"),
        (lambda d: d["entries"][0].update(arch="sm_80"), "entry 0.*sm_80"),
        (lambda d: d["entries"][0]["config"].update(colour=1), "entry 0.*colour"),
        (lambda d: d["entries"][0]["config"].update({"class": "cutefp4.config:Gone"}), "entry 0.*Gone"),
        (lambda d: d["entries"][0].update(problem={"m": [1]}), "entry 0.*numbers and strings"),
        (lambda d: d["entries"].append(3), "entry 1"),
    ],
)
def test_files_of_something_else(tmp_path, change, message):
    path = tuned.save(tmp_path / "tuned.json", [ENTRY])
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    before = tuned.generation()
    with pytest.raises(CompileError, match=message):
        tuned.load(path)
    assert tuned.generation() == before and tuned.lookup("gemm", "sm_90a", PROBLEM) is None


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_files_that_are_no_tables(tmp_path, text):
    (tmp_path / "tuned.json").write_text(text)
    with pytest.raises(CompileError, match="cutefp4 sweep --save"):
        tuned.read(tmp_path / "tuned.json")
