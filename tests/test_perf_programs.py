"""The programs of perf: parts of the benchmarks, and what they record about the kernels without a GPU."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from cutefp4 import emulator
from cutefp4.cli.bench import gemm
from cutefp4.cli.sweep.case import Case
from cutefp4.timing import Timing
from perf import bench_gemm, bench_quantize
from perf.cuda_on_cpu import cuda_on_cpu


def rows_of(program, monkeypatch, tmp_path, *arguments: str) -> list[dict]:
    monkeypatch.setattr(sys, "argv", ["program", *arguments, "--static", "--out", str(tmp_path / "table")])
    program.main()
    return json.loads((tmp_path / "table.json").read_text())["rows"]


def test_every_case_is_in_one_suite():
    found = [name for suite in bench_gemm.SUITES for name in bench_gemm.chosen([suite], "")]
    assert sorted(found) == sorted(gemm.CASES) and all(bench_gemm.chosen([suite], "") for suite in bench_gemm.SUITES)
    assert set(bench_gemm.chosen(["large"], "8192x8192x8192")) == {"w4a4 8192x8192x8192 alpha"}


def test_a_gemm_is_described_without_a_gpu(monkeypatch, tmp_path, capsys):
    (row,) = rows_of(bench_gemm, monkeypatch, tmp_path, "large", "--only", "4096x4096x4096")
    assert row["spills"] == 0 and 100 < row["registers"] <= 255 and row["sass_instructions"] > 500
    assert "tile_" in row["config"] and f"{row['registers']} registers" in capsys.readouterr().out


def test_a_gemm_is_checked_and_timed(monkeypatch, tmp_path, capsys):
    """On an emulated GPU, with times that mean nothing."""
    monkeypatch.setattr(gemm, "CASES", {"w4a4 64x128x128 alpha": Case("TN", 64, 128, 128)})
    monkeypatch.setattr(torch, "Generator", lambda device=None, make=torch.Generator: make())
    times = {"cutefp4": 4e-6, "cublas": 5e-6, "two-step": 8e-6}
    monkeypatch.setattr(gemm, "measure", lambda variants, rounds, clock: {
        v.name: (v.run(0), Timing(v.name, *(3 * [times[v.name]]), 3, 1))[1] for v in variants
    })  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["program", "small", "--out", str(tmp_path / "table")])
    with emulator.device("sm_90a", sms=2), cuda_on_cpu("sm_90a", 2):
        bench_gemm.main()
    rows = {row["variant"]: row for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    assert set(rows) == set(times) and "bit-equal" in rows["cutefp4"]["check"]
    assert {"percent_of_wgmma", "registers", "spills", "config"} <= set(rows["cutefp4"])
    assert "1.250x cuBLAS" in capsys.readouterr().out


@pytest.mark.parametrize("only", ["rowwise token", "dequantise", "rmsnorm + residual"])
def test_a_quantiser_is_described_without_a_gpu(monkeypatch, tmp_path, only):
    (row,) = rows_of(bench_quantize, monkeypatch, tmp_path, "--only", only)
    assert row["variant"].startswith(only) and row["spills"] == 0 and "median_us" not in row
    assert 5 < row["sass_per_element"] < 60
