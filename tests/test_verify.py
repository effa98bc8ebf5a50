"""`cutefp4 verify`: what it runs, what it reports, and that it fails when a kernel or the oracle is wrong."""

from __future__ import annotations

import json
import os
import pickle
import time
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from cutefp4 import cli, reference
from cutefp4.acceptance import matrix
from cutefp4.acceptance.case import Case
from cutefp4.acceptance.compare import Difference
from cutefp4.acceptance.configurations import pairwise
from cutefp4.acceptance.gemm import GemmCase
from cutefp4.acceptance.machine import ARCHS, Machine
from cutefp4.acceptance.run import Result, run
from cutefp4.cli import verify
from cutefp4.errors import OperandError

SM90 = Machine("sm_90a")
GEMM = "gemm/NN-7x63x16-bfloat16"
TINY = (GEMM, "dequantise/defaults-130x80-bfloat16")


def invoke(*arguments: str):
    """The command in this process, so that tests can break things under it."""
    return CliRunner().invoke(cli.app, ["verify", *arguments], catch_exceptions=False)


def tiny(*more: str):
    return invoke("--arch", "sm_90a", "--jobs", "0", *(word for case in TINY for word in ("--case", case)), *more)


# ---------------------------------------------------------------- the matrix


@pytest.mark.parametrize("arch", ARCHS)
def test_cases_have_unique_names_and_travel_between_processes(arch):
    cases = matrix.cases_of(arch)
    ids = [case.id for case in cases]
    assert len(set(ids)) == len(ids) and not any(" " in one for one in ids)
    assert pickle.loads(pickle.dumps(cases)) == cases
    quick = [case for case in cases if case.quick]
    assert {case.area for case in quick} == {case.area for case in cases}
    assert 100 < len(quick) < 300 < len(cases)


def test_the_matrix_of_the_gemm_is_complete():
    cases = [case for case in matrix.cases_of("sm_90a") if isinstance(case, GemmCase)]
    sizes = {(case.m, case.n, case.k) for case in cases}
    assert sizes >= {(m, n, k) for m in matrix.SIZES for n in matrix.SIZES for k in matrix.DEPTHS}
    assert {case.layout for case in cases} == {"TN", "NN", "NT"}
    assert {case.out for case in cases} == set(matrix.DTYPES)
    assert {case.activation for case in cases} == {None, "relu", "relu2", "gelu", "silu"}
    assert any(case.accumulate and case.bias and case.activation for case in cases)
    quick = {(case.m, case.n) for case in cases if case.quick}
    assert quick >= {(m, n) for m in matrix.SIZES for n in matrix.SIZES}


def test_every_recipe_is_in_the_full_matrix():
    recipes = matrix.every_recipe()
    assert len(recipes) > 400
    for field in ("scaling", "block", "arithmetic", "rht", "rounding", "four_over_six", "e4m3_max", "scale_layout"):
        assert {getattr(r, field) for r in matrix.RECIPES} == {getattr(r, field) for r in recipes}, field


def test_pairwise_covers_every_pair():
    items = [(a, b, c) for a in range(3) for b in range(4) for c in range(2) if a != b]
    few = list(pairwise(items, lambda item: item))
    assert len(few) < len(items)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert {(x[i], x[j]) for x in few} == {(x[i], x[j]) for x in items}


# ---------------------------------------------------------------- the command


def test_passes_and_counts():
    result = tiny("--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (report["planned"], report["passed"], report["failed"]) == (2, 2, 0)
    assert {row["area"] for row in report["areas"]} == {"gemm", "dequantise"}


def test_a_wrong_result_is_reported(monkeypatch):
    """The oracle is made wrong at one place: exit 1, the place, and a command that runs the case alone."""
    right = reference.gemm

    def wrong(*arguments, **keywords):
        d = right(*arguments, **keywords)
        d[3, 5] = 12345.0
        return d

    monkeypatch.setattr(reference, "gemm", wrong)
    result = tiny()
    assert result.exit_code == 1
    text = " ".join(result.stdout.split())
    assert "first difference at (3, 5)" in text and "1 of 441 differ" in text
    assert f"cutefp4 verify --arch sm_90a --jobs 0 --case '{GEMM}'" in text
    assert "1 passed, 1 failed" in text
    report = json.loads(tiny("--json").stdout)
    assert [failure["case"] for failure in report["failures"]] == [GEMM]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "sm_80"], "sm_90a, sm_100a"),
        (["--area", "gem"], "quantise"),
        (["--case", "gemm/none"], "--list"),
        (["--quick", "--full"], "one of them"),
    ],
)
def test_mistakes_name_what_is_accepted(arguments, words):
    with pytest.raises(OperandError, match=words):
        invoke(*arguments)


def test_interrupt_prints_what_passed(monkeypatch):
    def interrupted(work, jobs):
        yield Result(work[0][0], work[0][1], None, 1.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "run", interrupted)
    result = tiny()
    assert result.exit_code == 130
    assert "1 passed, 0 failed" in result.stdout and "1 of 2 did not run" in result.stdout


def test_list_prints_ids_alone():
    result = invoke("--arch", "sm_100a", "--area", "configurations", "--list")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and len(lines) > 10
    assert all(line.startswith("sm_100a configurations/") for line in lines)


# ---------------------------------------------------------------- processes


@dataclass(frozen=True)
class Behaviour(Case):
    """A case that does something to its process."""

    what: str = "pass"

    area = "behaviour"

    def name(self) -> str:
        return self.what

    def check(self, machine: Machine) -> None:
        if self.what == "die":
            os._exit(3)
        if self.what == "hang":
            time.sleep(60)
        if self.what == "differ":
            raise Difference("different")
        if self.what == "raise":
            raise ValueError("broken")


def test_a_process_that_dies_or_hangs_costs_its_case_alone():
    work = [(Behaviour(what=what), SM90) for what in ("die", "pass", "hang", "differ", "raise")]
    found = {result.case.what: result.failure for result in run(work, jobs=2, limit=2.0)}
    assert found["pass"] is None
    assert "exit code 3" in found["die"] and "after 2 s" in found["hang"]
    assert found["differ"] == "different" and found["raise"] == "ValueError: broken"
