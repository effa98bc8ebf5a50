"""`cutefp4 sweep`: shapes, spaces, predictions without a GPU, and the measuring loop on an emulated one."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import fields, replace

import psutil
import pytest
import torch
from typer.testing import CliRunner

from cutefp4 import cli, emulator, gemm_choice_sm90, gemm_choice_sm100, tuned
from cutefp4.cli.sweep import operations, report, run, shapes
from cutefp4.cli.sweep.axes import AXES, FULL_AXES, MOST, axes_of
from cutefp4.cli.sweep.case import EPILOGUES, Case, make_operands
from cutefp4.cli.sweep.check import Checker
from cutefp4.cli.sweep.space import NEVER_ILLEGAL, enumerate_space, family
from cutefp4.cli.sweep.store import Store
from cutefp4.cli.sweep.target import Target, target_for
from cutefp4.config import Sm90Config
from cutefp4.errors import CuteFP4Error, OperandError
from cutefp4.layer_plans import SMS
from perf.cuda_on_cpu import cuda_on_cpu

SMALL = Case("TN", 64, 128, 256)
TWO = {"tile_m": ["128"], "tile_n": ["16"], "k_blocks": ["4"], "consumer_groups": ["1", "2"], "mma_stages": ["2"],
       "swap_ab": ["true"], "stream_k": ["false"], "store_passes": ["1"], "steps_per_group": ["4"], "staged": ["false"],
       "decode_groups": ["1"], "cluster": ["1"], "fragment_registers": ["32"]}  # fmt: skip
SET = [text for name, values in TWO.items() for text in ("--set", f"{name}={','.join(values)}")]


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["sweep", *arguments], catch_exceptions=True)


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tuned.clear()
    yield
    tuned.clear()


class FakeClock:
    """Seconds by the order of the variants: cuBLAS 10 us, the first configuration 8 us, the next 7 us, ..."""

    calls = 1

    def __init__(self, interrupt_after: int = 10**9) -> None:
        self.left = interrupt_after

    def prepare(self, variants, sets):
        for variant in variants:
            variant.run(0)

    def round(self, variant):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return 10e-6 if variant.name == "cublas" else (8 - int(variant.name)) * 1e-6


# ---------------------------------------------------------------- shapes and cases


@pytest.mark.parametrize(
    "texts, found",
    [
        (["8x16x32"], [(8, 16, 32)]),
        (["1,4x16x32"], [(1, 16, 32), (4, 16, 32)]),
        (["128:512x64x64"], [(128, 64, 64), (256, 64, 64), (512, 64, 64)]),
        (["1:5:2x64x64", "3x64x64"], [(1, 64, 64), (3, 64, 64), (5, 64, 64)]),
        (["deepseek-v3/o"], [(2, 7168, 16384)]),
    ],
)
def test_shapes(texts, found):
    assert shapes.parse(texts, "2") == found


def test_models_are_multiplied_by_every_token_count():
    assert len(shapes.parse(["llama-3-8b"], "1,16")) == 2 * 4
    for layers in shapes.MODELS.values():
        assert all(n % 16 == 0 and k % 64 == 0 for n, k in layers.values())


@pytest.mark.parametrize("text", ["", "8x16", "0x16x16", "axbxc", "llama-3-8b/nope", "8:x16x16", "8x16x32x64"])
def test_wrong_shapes_are_explained(text):
    with pytest.raises(OperandError):
        shapes.parse([text])


def test_layouts_permute_the_layer():
    assert [Case(name, 16, 32, 48).sizes for name in ("TN", "NN", "NT")] == [(16, 32, 48), (16, 48, 32), (32, 48, 16)]


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("recipe", ["te", "per_token_4over6"])
def test_the_operation_asks_for_what_the_sweep_says_it_asks_for(arch, epilogue, recipe):
    """A tuned table made from a case's request reaches the public operation."""
    cases = [Case("NT", 64, 256, 128, "w4a4", recipe, epilogue)]
    if arch == "sm_90a" and "c" not in EPILOGUES[epilogue]:
        cases.append(Case("TN", 64, 256, 128, "w4a16", recipe, epilogue))
    for case in cases:
        target = target_for(arch, case, 6)
        choice = target.choice(case)
        other = replace(choice, raster_group=choice.raster_group + 1)
        assert target.problems(other, case) == []
        with tuned.use([operations.entry_of(target, case, other)]):
            assert [plan.config for plan in operations.operation_plans(case, target)] == [other]
        assert [plan.config for plan in operations.operation_plans(case, target)] == [choice]


# ---------------------------------------------------------------- spaces


def test_every_axis_is_a_field_and_new_fields_appear():
    kinds = [kind for arch in ("sm_90a", "sm_100a") for kind in Target(arch, 8).kinds(SMALL)]
    assert set(kinds) == set(AXES) == set(FULL_AXES)
    for kind in kinds:
        names = {f.name for f in fields(kind)}
        assert set(AXES[kind]) | set(FULL_AXES[kind]) <= names
        assert set(axes_of(kind, {}, True, kind())) == names


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_the_predicate_decides_what_is_legal(arch):
    target = target_for(arch, SMALL)
    space = enumerate_space(target, SMALL, {"tile_m": ["128"], "tile_n": ["64", "100"]}, False)
    assert space.legal and space.refused and len(space.legal) < space.tried
    assert all(target.problems(config, SMALL) == [] for config in space.legal)
    assert any("100" in reason for _, reason in space.examples.values())
    ranked = space.ranked(4)
    assert ranked[0] == space.choice and len(set(ranked)) == 4
    assert len(space.ranked(0)) == len({space.choice, *space.legal})


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_the_sweeps_predicate_is_the_operations(arch):
    """`Target.judge` derives the shape once; what it says is what the operation says."""
    target = target_for(arch, SMALL)
    ops = gemm_choice_sm90 if arch == "sm_90a" else gemm_choice_sm100
    for kind in target.kinds(SMALL):
        axes = axes_of(kind, {"swap_ab": ["true"]} if kind is Sm90Config else {}, False, target.base(kind, SMALL))
        judge = target.judge(kind, SMALL)
        sample = itertools.islice(itertools.product(*axes.values()), 0, None, 97)
        for values in sample:
            named = {k: 3 if v == MOST else v for k, v in zip(axes, values, strict=True)}
            config = kind(**named)
            assert judge(config) == ops.config_problems(config, target.request(SMALL))


def test_fields_that_are_never_illegal():
    """Cases share what was judged with other values of these."""
    for arch in ("sm_90a", "sm_100a"):
        target = target_for(arch, SMALL)
        for kind in target.kinds(SMALL):
            for name in set(NEVER_ILLEGAL) & {f.name for f in fields(kind)}:
                space = enumerate_space(target, SMALL, {"tile_m": ["128"], name: ["1", "5", "64"]}, False)
                verdicts = Counter(replace(config, **{name: 1}) for config in space.legal)
                assert verdicts and set(verdicts.values()) == {3}


def test_a_short_list_has_several_families():
    """Eight variants of one tile shape would say little."""
    case = Case("TN", 128, 4096, 4096)
    ranked = enumerate_space(target_for("sm_90a", case), case, {"k_blocks": ["2"]}, False).ranked(8)
    assert len({family(config) for config in ranked}) >= 5 and len(set(ranked)) == 8


def test_what_the_heuristic_chooses_from_is_in_the_space():
    """Also where a field is no axis; but not beside values that were asked for."""
    case = Case("TN", 256, 8192, 8192)
    target = target_for("sm_90a", case)
    candidates = {config for config in target.candidates(case) if not target.problems(config, case)}
    wide = enumerate_space(target, case, {"k_blocks": ["2"]}, False)
    assert {config for config in candidates if config.k_blocks == 2} <= set(wide.legal)
    assert any(config.splits > 1 for config in wide.legal) and all(config.k_blocks == 2 for config in wide.legal)
    assert len(set(wide.legal)) == len(wide.legal)


def test_explain_as_text_and_json():
    arguments = ("--arch", "sm_90a", "--shape", "64x128x256", *SET[2:], "--explain")
    text = invoke(*arguments)
    assert text.exit_code == 0 and "Why others are not legal" in text.stdout and "tile_m=64" in text.stdout
    (data,) = json.loads(invoke(*arguments, "--json").stdout)
    assert data["combinations"] >= data["legal"] > 0
    assert {"count", "reason", "example"} == set(data["refused"][0])


def test_lists_of_layouts_recipes_and_epilogues():
    arguments = ("--shape", "64x128x256", "--layout", "TN,NT", "--recipe", "te,per_token", "--epilogue", "none,bias")
    data = json.loads(invoke("--arch", "sm_100a", *arguments, "--explain", "--json").stdout)
    assert len({case["case"] for case in data}) == len(data) == 8


# ---------------------------------------------------------------- predictions


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_without_a_gpu_everything_is_a_prediction(arch, tmp_path):
    outputs = [tmp_path / name for name in ("t.csv", "t.png", "t.html")]
    files = [text for path in outputs for text in (f"--{path.suffix[1:].replace('png', 'plot')}", str(path))]
    result = invoke("--arch", arch, "--shape", "64x128x256", "--limit", "2", "--json", *files)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["format"] == report.FORMAT and not data["interrupted"] and "device" in data["environment"]
    (case,) = data["cases"]
    assert case["winner"] is None and case["sms"] == SMS[arch] and len(case["rows"]) == 2
    for row in case["rows"]:
        assert row["source"] == "prediction" and row["us"] > 0 and row["spills"] == 0
        assert 0 < row["registers"] <= 255 and row["smem_bytes"] > 1000
        assert row["instructions"] > row["mma_instructions"] > 0
        assert (row["tmem_columns"] is not None) == (arch == "sm_100a")
    rows = list(csv.DictReader(outputs[0].open()))
    assert len(rows) == 2 and rows[0]["config.tile_m"] and rows[0]["source"] == "prediction"
    assert outputs[1].read_bytes()[:4] == b"\x89PNG" and outputs[1].stat().st_size < 100_000
    page = outputs[2].read_text()
    assert "data:image/png;base64," in page and "prediction" in page
    assert "PREDICTION" in invoke("--arch", arch, "--shape", "64x128x256", "--limit", "2").stdout


def test_the_emulator_checks_predictions(monkeypatch):
    arguments = ("--arch", "sm_90a", "--shape", "64x128x256", *SET, "--limit", "0", "--check", "emulator", "--json")
    rows = json.loads(invoke(*arguments).stdout)["cases"][0]["rows"]
    assert len(rows) == 2 and all(row["check"].startswith("bit-equal") for row in rows)
    monkeypatch.setattr(Checker, "verdict", lambda *_: "WRONG: 3 of 4 elements differ from the oracle")
    result = invoke(*arguments)
    assert result.exit_code == 1 and "WRONG" in result.output


@pytest.mark.parametrize(
    "arguments, word",
    [
        (("--arch", "sm_80"), "sm_90a"),
        (("--arch", "sm_90a", "--shape", "8x8"), "MxNxK"),
        (("--arch", "sm_90a", "--shape", "8x16x17"), "multiple of 16"),
        (("--arch", "sm_90a", "--layout", "TT"), "TN, NN, NT"),
        (("--arch", "sm_90a", "--set", "colour=1"), "tile_m"),
        (("--arch", "sm_90a", "--set", "tile_m"), "FIELD=VALUE"),
        (("--arch", "sm_90a", "--set", "tile_m=big"), "a value like"),
        (("--arch", "sm_100a", "--kind", "w4a16"), "sm_90a"),
        (("--arch", "sm_100a", "--save", "t.json"), "only what was measured"),
        (("--arch", "sm_100a", "--apply"), "--save"),
        (("--arch", "sm_100a", "--check", "emulator"), "products"),
        (("--arch", "sm_90a", "--kind", "w4a16", "--epilogue", "accumulate"), "without add or accumulate"),
        (("--arch", "sm_90a", "--recipe", "none"), "per_token"),
        (("--arch", "sm_90a", "--check", "twice"), "emulator"),
        (("--arch", "sm_90a", "--csv", "/proc/nothing/t.csv"), "a file that can be written"),
        (("--arch", "sm_90a", "--out", "/proc/nothing"), "a file that can be written"),
        (("--arch", "sm_90a", "--plot", "t.xyz"), "choose .png"),
    ],
)
def test_mistakes_are_explained(arguments, word):
    result = invoke(*arguments)
    assert isinstance(result.exception, CuteFP4Error) and word in str(result.exception)


# ---------------------------------------------------------------- the measuring loop, on an emulated Hopper


def sweep_emulated(store: Store, clock=FakeClock, limit: int = 0) -> run.Result:
    target = target_for("sm_90a", SMALL, 2)
    space = enumerate_space(target, SMALL, TWO, False)
    sweeper = run.CaseSweep(space, store, rounds=2, clock=clock, device="cpu")
    with emulator.device("sm_90a", sms=2):
        return sweeper.run(space.ranked(limit))


def test_measure_save_apply(tmp_path):
    store = Store(tmp_path / "rows.jsonl", resume=False)
    result = sweep_emulated(store)
    assert len(result.rows) >= 2 and result.rows[0] is result.winner and not result.interrupted
    assert result.winner["us"] < 8 and not result.winner["heuristic"] and result.winner["phase"] == "final"
    assert result.winner["percent_of_cublas"] > 125 and all("bit-equal" in row["check"] for row in result.rows)
    wanted = {"us", "tflops", "gb_per_s", "percent_of_roofline", "percent_of_cublas", "registers", "config", "case"}
    assert wanted <= set(result.winner)
    path = tuned.save(tmp_path / "tuned.json", run.winners_table([result], {"device": "emulated"}))
    (entry,) = tuned.read(path)
    assert entry.config == result.config and entry.measured["median_us"] == result.winner["us"]
    assert run.not_applied([result]), "nothing is loaded yet"
    tuned.load(path)
    assert run.not_applied([result]) == []
    assert "winner" in report.as_csv([result]) and len(report.points([result])) == 3


def test_resume_measures_nothing_twice(tmp_path):
    path = tmp_path / "rows.jsonl"
    first = sweep_emulated(Store(path, resume=False))
    path.write_text(path.read_text() + '{"key": "cut off')

    def no_clock():
        raise AssertionError("measured again")

    again = sweep_emulated(Store(path, resume=True), clock=no_clock)
    assert again.rows == first.rows and again.config == first.config
    with pytest.raises(OperandError, match="--resume without"):
        Store(tmp_path / "nothing.jsonl", resume=True)


def test_interrupt_keeps_what_was_measured(tmp_path):
    path = tmp_path / "rows.jsonl"
    # 2 rounds of cuBLAS and each configuration; the final is cut off.
    clocks = [FakeClock(), FakeClock(3)]
    result = sweep_emulated(Store(path, resume=False), clock=lambda: clocks.pop(0))
    assert result.interrupted and result.winner is not None
    assert {row["phase"] for row in result.rows} == {"first"} and len(path.read_text().splitlines()) == len(result.rows)
    resumed = sweep_emulated(Store(path, resume=True))
    assert {row["phase"] for row in resumed.rows} >= {"final"} and not resumed.interrupted


@pytest.fixture
def emulated_gpu(monkeypatch):
    """The command believes in a Hopper GPU; its times are those of FakeClock."""
    monkeypatch.setattr(torch, "Generator", lambda device=None, make=torch.Generator: make())
    monkeypatch.setattr(run, "EventClock", FakeClock)
    with emulator.device("sm_90a", sms=2), cuda_on_cpu("sm_90a", 2):
        yield


WHOLE = ("--shape", "64x128x256", "--shape", "32x128x256", *SET, "--limit", "2", "--rounds", "1", "--out", "results")
FILES = ("--results", "rows.jsonl", "--save", "tuned.json", "--apply", "--csv", "t.csv", "--plot", "t.png")


def test_the_whole_command_on_an_emulated_gpu(emulated_gpu, tmp_path):
    """Two cases: compile, check, time, keep, apply, and resume without measuring anything again."""
    first = invoke(*WHOLE, *FILES, "--budget", "600", "--json")
    assert first.exit_code == 0, first.output
    data = json.loads(first.stdout)
    assert len(data["cases"]) == 2 and all(case["left_out"] == 0 for case in data["cases"])
    rows = [row for case in data["cases"] for row in case["rows"]]
    assert len(rows) == 4 and all(row["us"] > 0 and "bit-equal" in row["check"] and row["spills"] == 0 for row in rows)
    assert [entry.config for entry in tuned.read("tuned.json")]
    (kept,) = tmp_path.glob("results/*/*-sweep.json")
    assert json.loads(kept.read_text())["cases"] == data["cases"]
    assert len(kept.with_suffix(".csv").read_text().splitlines()) == 5
    again = invoke(*WHOLE, *FILES, "--resume", "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["cases"] == data["cases"]
    assert "configurations, " not in again.stderr


def test_a_spent_budget_starts_nothing_and_says_so(emulated_gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("CUTEFP4_CACHE_DIR", str(tmp_path / "cache"))
    data = json.loads(invoke(*WHOLE, "--budget", "0.001", "--json").stdout)
    assert [(case["left_out"], case["rows"]) for case in data["cases"]] == [(2, [])] * 2


def test_killed_after_the_first_case_its_results_are_there(emulated_gpu, monkeypatch, tmp_path):
    sweep_case, ran = run.CaseSweep.run, []

    def killed(self, *arguments):
        if ran:
            raise SystemExit(137)
        ran.append(sweep_case(self, *arguments))
        return ran[0]

    monkeypatch.setattr(run.CaseSweep, "run", killed)
    invoke(*WHOLE)
    (kept,) = tmp_path.glob("results/*/*-sweep.json")
    assert len(json.loads(kept.read_text())["cases"]) == 1


def test_ctrl_c_while_compiling_ends_the_program_and_its_processes(tmp_path):
    arguments = ("sweep", "--arch", "sm_90a", "--shape", "64x128x256", "--limit", "2", "--workers", "2")
    environment = {**os.environ, "CUTEFP4_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", "from cutefp4.cli import main; main()", *arguments]
    program = subprocess.Popen(
        command,
        env=environment,
        stdout=-1,
        stderr=-1,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    begin = time.monotonic()
    while len(workers := psutil.Process(program.pid).children()) < 2 and time.monotonic() - begin < 120:
        time.sleep(0.1)
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does
    said, errors = program.communicate(timeout=60)
    assert len(workers) == 2 and program.returncode == 130, errors
    assert "interrupted" in errors and "Traceback" not in errors and said == ""
    assert not psutil.wait_procs(workers, timeout=20)[1]


def test_a_wrong_configuration_cannot_win(monkeypatch, tmp_path):
    verdict = Checker.verdict
    calls = []

    def second_is_wrong(self, launch):
        calls.append(verdict(self, launch))
        return "WRONG: 1 of 2 elements differ from the oracle" if len(calls) == 2 else calls[-1]

    monkeypatch.setattr(Checker, "verdict", second_is_wrong)
    result = sweep_emulated(Store(None, resume=False))
    wrong = [row for row in result.rows if row["us"] is None]
    assert len(wrong) == 1 and "WRONG" in wrong[0]["check"] and result.winner is not wrong[0]


@pytest.mark.parametrize("epilogue", ["none", "bias_gelu", "add", "accumulate"])
def test_the_checker_sees_one_wrong_element(epilogue):
    """The oracle itself passes; one element off by 3 %, one unwritten element or a lost C does not."""
    case = Case("TN", 32, 48, 64, "w4a4", "te", epilogue)
    checker = Checker(case, "cpu")

    def right(operands, d):
        d.copy_(checker.expected_bits if operands is checker.exact else checker.expected_and_bound[0])

    assert "WRONG" not in checker.verdict(right)

    def unwritten(operands, d):
        right(operands, d)
        d[3, 5] = torch.nan

    assert "WRONG" in checker.verdict(unwritten)

    def flipped(operands, d):
        right(operands, d)
        d.view(-1)[d.abs().argmax()] *= 1 + 2.0**-5

    assert "WRONG" in checker.verdict(flipped)


def test_operands_repeat_and_are_exact():
    one, two = (make_operands(SMALL, "exact", "cpu") for _ in range(2))
    assert torch.equal(one.a.codes, two.a.codes) and torch.equal(one.b.amax, two.b.amax)
    a, b = one.decoded()
    assert torch.equal(a.float() @ b.float().T, (a.double() @ b.double().T).float())
