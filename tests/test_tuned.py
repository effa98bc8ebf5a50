"""Tuned configurations: exact matches, explicit loading, files that survive."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import emulator, launch, ops, ops_gemm_sm90, ops_gemm_sm100, reference, tuned
from cutefp4.config import Sm90Config
from cutefp4.config_sm100 import Sm100Config
from cutefp4.errors import CompileError
from cutefp4.recipe import QuantRecipe
from cutefp4.tuned import TunedEntry
from tests.cases import matrix

PROBLEM = {"out_dtype": "bfloat16", "m": 8192, "n": 4096, "k": 4096}
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


GEMM = ops.OPERATIONS["gemm"]
TUNED = {"sm_90a": Sm90Config(tile_m=128, tile_n=64, load_stages=3), "sm_100a": Sm100Config(tile_n=192, stages=3)}


def operands(m: int, n: int, k: int):
    recipe = QuantRecipe(scaling="token")
    return [reference.quantize(matrix(rows, k), recipe, rowwise=True, columnwise=False)[0] for rows in (m, n)]


def problem_of(arch: str, a, b, sms: int) -> dict:
    """What a GEMM of these operands asks the tuned table for."""
    asked = []
    original = tuned.lookup
    with pytest.MonkeyPatch.context() as patch, launch.cpu_target(arch, sms), kernel_cache.record():
        patch.setattr(tuned, "lookup", lambda *key: asked.append(key) or original(*key))
        tuned.clear()  # a plan that was chosen before is not asked for again
        GEMM(a, b)
    ((operation, found_arch, problem),) = asked
    assert (operation, found_arch) == ("gemm", arch)
    return problem


@pytest.mark.parametrize("arch", TUNED)
def test_plans_use_the_table_while_it_is_there(arch):
    a, b = operands(128, 256, 128)
    problem = problem_of(arch, a, b, 4)
    assert (problem["m"], problem["sms"]) == (128, 4)
    entry = TunedEntry("gemm", arch, problem, TUNED[arch])

    def config(sms=4):
        with launch.cpu_target(arch, sms), kernel_cache.record() as plans:
            GEMM(a, b)
        return next(iter(plans)).config

    chosen = config()
    assert chosen != TUNED[arch]
    with tuned.use([entry]):
        assert config() == TUNED[arch] and config(sms=5) == chosen, "the match is exact"
    assert config() == chosen


def test_the_environment_names_a_table(tmp_path, monkeypatch):
    path = tuned.save(tmp_path / "tuned.json", [ENTRY])
    monkeypatch.setenv("CUTEFP4_TUNED", str(path))
    assert tuned.lookup("gemm", "sm_90a", PROBLEM) == ENTRY.config
    monkeypatch.setenv("CUTEFP4_TUNED", str(tmp_path / "gone.json"))
    with pytest.raises(CompileError, match=r"gone\.json"):
        tuned.lookup("gemm", "sm_90a", PROBLEM)
    monkeypatch.delenv("CUTEFP4_TUNED")
    tuned.lookup("gemm", "sm_90a", PROBLEM)


@pytest.mark.parametrize(
    "ops_module, arch, config",
    [
        (ops_gemm_sm90, "sm_90a", Sm90Config(load_stages=12)),
        (ops_gemm_sm100, "sm_100a", Sm100Config(tile_n=256, stages=12)),
    ],
)
def test_a_configuration_that_cannot_run_is_refused(ops_module, arch, config):
    a, b = operands(128, 256, 128)
    entry = TunedEntry("gemm", arch, problem_of(arch, a, b, 4), config)
    with tuned.use([entry]), launch.cpu_target(arch, 4), kernel_cache.record(), pytest.raises(CompileError, match="12"):
        ops_module.gemm(a, b)


def test_traced_launches_repeat_the_call():
    a, b = operands(64, 128, 128)
    out = torch.full((64, 128), torch.nan, dtype=torch.bfloat16)
    with emulator.device("sm_90a", sms=2):
        with kernel_cache.trace() as launches:
            GEMM(a, b, out=out)
        first = out.clone()
        out.fill_(torch.nan)
        for _, kernel, arguments in launches:
            kernel(*arguments)
    assert len(launches) >= 1 and torch.equal(out, first) and first.isfinite().all()
