"""`cutefp4 bench`: sessions, tables from results, committed documents equal to the generator's, what a CPU can run.

Timings themselves need a GPU.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cutefp4 import cli, emulator, ops_quantize
from cutefp4.cli import bench
from cutefp4.cli.bench import gemm, kernel_columns, linear_step, predict, quantize, report, tables
from cutefp4.cli.bench.session import PREDICTED, Session, newest
from cutefp4.cli.sweep.case import Case, make_operands
from cutefp4.errors import CuteFP4Error, UnsupportedError
from cutefp4.recipe import named_recipe
from cutefp4.timing import Timing, slug
from perf.cuda_on_cpu import cuda_on_cpu
from tests.cases import matrix

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "perf" / "results"


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["bench", *arguments], catch_exceptions=True)


def us(variant: str, median: float) -> Timing:
    return Timing(variant, median * 1e-6, median * 1e-6, median * 1e-6, 3, 1)


def gemm_session(out: Path) -> Session:
    session = Session("gemm", say=lambda _: None, out=out)
    for name, times in {
        "w4a4 4096x4096x4096 alpha": {"cutefp4": 200.0, "cublas": 180.0, "two-step": 230.0},
        "w4a16 1x8192x8192 alpha": {"cutefp4": 20.0, "cublas": 44.0, "quack": 25.0},
    }.items():
        case = gemm.CASES[name]
        for variant, median in times.items():
            session.table.add(
                {"case": name, "kind": case.kind, "m": case.m, "n": case.n, "k": case.k},
                us(variant, median),
                tflops=case.flop / median / 1e6, gb_per_s=100.0, percent_of_roofline=50.0,
                over_cublas=times["cublas"] / median,
            )  # fmt: skip
    return session


# ---------------------------------------------------------------- what is committed


def test_perf_readme_is_what_the_generator_gives():
    assert (ROOT / "perf" / "README.md").read_text() == report.perf_readme(newest(RESULTS)), (
        "run `cutefp4 bench report`"
    )


def test_readme_block_is_what_the_generator_gives():
    text = (ROOT / "README.md").read_text()
    assert text == report.with_block(text, report.readme_block(newest(RESULTS))), "run `cutefp4 bench report`"


def test_predictions_are_those_of_the_model():
    """And say that they are predictions, wherever they are shown."""
    committed = newest(RESULTS)[PREDICTED]["predictions"]
    assert committed == json.loads(json.dumps(predict.document())), "run `cutefp4 bench predict`"
    for text in (ROOT / "README.md", ROOT / "perf" / "README.md"):
        section = text.read_text().split("B200: predictions")[1].split("\n\n|")[0]
        assert "No Blackwell GPU was at hand" in section
        assert "| M, N, K | predicted us | predicted PFLOP/s |" in text.read_text()
    assert all("median_us" not in row for row in committed["rows"])


def test_plots_are_small_and_there():
    plots = list(RESULTS.glob("*/*.png"))
    assert plots and all(path.stat().st_size < 100_000 for path in plots)
    assert "nvidia-h200/roofline.png" in (ROOT / "README.md").read_text()


# ---------------------------------------------------------------- tables from results


def test_tables_from_a_fixture(tmp_path):
    out = tmp_path / "perf" / "results"
    gemm_session(out).save()
    (tmp_path / "README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for path in report.write(out, tmp_path):
        assert path.exists()
    results = newest(out)
    (device,) = results
    text = (tmp_path / "perf" / "README.md").read_text()
    assert "| 4096, 4096, 4096 | alpha | 200 | 687 | 100 | 50 % | 180 | 0.90x | - | 230 |" in text
    assert "| 1, 8192, 8192 | alpha | 20.0 | 7 | 100 | 50 % | 44.0 | 2.20x | 25.0 | - |" in text
    assert (out / device / report.PLOT).read_bytes()[:4] == b"\x89PNG"
    block = report.readme_block(results, device)
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n") and readme.endswith("after\n") and "old" not in readme
    assert "2.20x" in block and report.with_block(f"{report.BEGIN}{report.END}", block) == block
    with pytest.raises(UnsupportedError, match="markers"):
        report.with_block("no markers", block)


def test_the_newest_day_counts(tmp_path):
    session = gemm_session(tmp_path)
    path = session.save()
    assert path.parent.name == slug(session.table.environment["device"])
    for day, us_ in (("2001-01-01", 1.0), ("2999-01-01", 3.0)):
        data = json.loads(path.read_text())
        data["rows"][0]["median_us"] = us_
        path.with_name(f"{day}-gemm.json").write_text(json.dumps(data))
    (found,) = newest(tmp_path).values()
    assert found["gemm"]["rows"][0]["median_us"] == 3.0


def test_sweep_table():
    row = {"m": 8, "n": 16, "k": 32, "kind": "w4a4", "layout": "TN", "recipe": "te", "epilogue": "none"}
    row |= {"percent_of_cublas": 95.2, "percent_of_roofline": 70.0, "registers": 168}
    rows = [row | {"name": "fast", "us": 9.0, "heuristic": False}, row | {"name": "own", "us": 10.0, "heuristic": True}]
    rows.append(row | {"name": "wrong", "us": None, "heuristic": False})
    text = tables.sweep_table({"cases": [{"winner": "fast", "rows": rows}, {"winner": None, "rows": []}]})
    assert "| 8, 16, 32 | w4a4 TN te none | 3 | 9.00 | 10.0 | 11.1 % | 95 % | 70 % | 168 | fast | own |" in text


def test_sweep_plot_and_section(tmp_path):
    """From the committed sweep of five shapes: its table, its plot, and all five products."""
    committed = newest(RESULTS)["nvidia-h200"]["sweep"]
    five = {"1x7168x16384", "128x4096x4096", "4096x4096x4096", "8192x8192x8192", "16384x7168x2048"}
    assert {case["case"].split()[2] for case in committed["cases"]} == five
    for case in committed["cases"]:
        assert all("WRONG" not in row["check"] for row in case["rows"])
        shown = [row for row in case["rows"] if row["heuristic"] or row["name"] == case["winner"]]
        assert shown and all("bit-equal" in row["check"] and row["spills"] == 0 for row in shown)
    points = report.sweep_points(committed)
    assert {p.series for p in points} >= {"cutefp4, best", "cuBLAS bf16"} and len(points) >= 10
    text = (ROOT / "perf" / "README.md").read_text()
    assert "### Sweep of configurations" in text and f"results/nvidia-h200/{report.SWEEP_PLOT}" in text
    (tmp_path / "nvidia-h200").mkdir()
    written = report.write_plots(tmp_path, {"nvidia-h200": {"sweep": committed}})
    assert [path.name for path in written] == [report.SWEEP_PLOT] and written[0].stat().st_size < 100_000


def test_other_tables():
    session = Session("linear-step", say=lambda _: None)
    for variant, median in {"bf16": 300.0, "te": 200.0, "te, quantise only": 50.0}.items():
        extra = {"over_bf16": 300 / median, "error_y": 0.13} if variant == "te" else {}
        session.table.add({"case": "8x16x32", "m": 8, "n": 16, "k": 32}, us(variant, median), **extra)
    text = tables.linear_step_table({"rows": session.table.rows})
    assert "| 8, 16, 32 | te | 200 | 300 | 1.50x | 25 % | 13.0 % |" in text
    session = Session("quantize", say=lambda _: None)
    session.table.add({"shape": "16384x6144"}, us("rowwise", 65.0), gb_per_s=4000, percent_of_copy=95.4)
    session.table.add({"shape": "16384x6144"}, us("copy of 2 B", 60.0))
    assert "| 16384x6144 | rowwise | 65.0 | 4000 | 95 % | - | - |" in tables.quantize_table(
        {"rows": session.table.rows}
    )
    assert "copy of 2" not in tables.quantize_table({"rows": session.table.rows})
    rows = [{"arch": "sm_90a", "case": case, "median_us": time} for case, time in (("cold", 5e5), ("disk hit", 2e3))]
    said = report._costs({"rows": [{"case": "call", "median_us": 3.84}]}, {"rows": rows})
    assert "3.8 us" in said and "2.0 ms" in said and "0.5 s" in said


# ---------------------------------------------------------------- the command


def fake(session: Session) -> None:
    for name in ("first", "second"):
        if session.may_start(name):
            session.table.add({"case": name, "arch": "sm_90a"}, us(name, 5.0))
            session.deadline = 0.0


def test_command_writes_results_and_tables(tmp_path, monkeypatch):
    monkeypatch.setitem(bench.BENCHES, "compile", fake)
    out = tmp_path / "perf" / "results"
    result = invoke("compile", "--out", str(out), "--budget", "100", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert [row["case"] for row in data["rows"]] == ["first"] and data["skipped"] == ["second"]
    (path,) = out.glob("*/*-compile.json")
    assert json.loads(path.read_text()) == data and str(tmp_path) not in path.read_text()
    text = (tmp_path / "perf" / "README.md").read_text()
    assert "### Compiling" in text and "Left out for lack of time: second" in text


def test_interrupt_keeps_the_rows(tmp_path, monkeypatch):
    def interrupted(session):
        session.table.add({"case": "first", "arch": "sm_90a"}, us("first", 5.0))
        raise KeyboardInterrupt

    monkeypatch.setitem(bench.BENCHES, "compile", interrupted)
    result = invoke("compile", "--out", str(tmp_path / "perf" / "results"))
    assert result.exit_code == 130 and "kept" in result.output
    assert len(list(tmp_path.glob("perf/results/*/*-compile.json"))) == 1


def test_a_wrong_product_fails(tmp_path, monkeypatch):
    def wrong(session):
        session.table.add({"case": "x", "arch": "sm_90a", "check": "WRONG: 1 of 2"}, us("x", 5.0))

    monkeypatch.setitem(bench.BENCHES, "compile", wrong)
    assert invoke("compile", "--out", str(tmp_path / "perf" / "results")).exit_code == 1


def test_a_benchmark_that_breaks_does_not_cost_the_others(tmp_path, monkeypatch):
    def broken(session):
        session.table.add({"case": "x", "arch": "sm_90a"}, us("x", 5.0))
        raise RuntimeError("no such kernel")

    for name in bench.BENCHES:
        monkeypatch.setitem(bench.BENCHES, name, broken if name == "gemm" else fake)
    monkeypatch.setattr(bench, "NEEDS_NO_GPU", tuple(bench.BENCHES))
    monkeypatch.setattr(bench, "PLANS", {})
    out = tmp_path / "perf" / "results"
    result = invoke("all", "--out", str(out), "--no-tables")
    assert result.exit_code == 1 and "no such kernel" in result.output
    found = {path.stem[11:] for path in out.glob("*/20*.json")}
    assert found == set(bench.BENCHES)


def test_mistakes_are_explained(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, word in (
        (("gems",), "linear-step"),
        (("gemm",), "cutefp4 sweep --arch"),
        (("all",), "GPU"),
        (("report", "--out", "nowhere"), "without results"),
    ):
        result = invoke(*arguments)
        assert isinstance(result.exception, CuteFP4Error) and word in str(result.exception)


# ---------------------------------------------------------------- parts that need no clock


def test_cases_are_products_that_exist():
    assert len(gemm.CASES) > 25 and set(gemm.QUICK) <= set(gemm.CASES) and set(gemm.README) <= set(gemm.CASES)
    assert {case.kind for case in gemm.CASES.values()} == {"w4a4", "w4a16"}


def test_two_step_computes_the_product():
    operands = make_operands(Case("TN", 64, 128, 128), "exact", "cpu")
    with emulator.device("sm_90a", sms=2):
        d = gemm._two_step(operands)()
    a, b = (t.float() for t in operands.decoded())
    outer = operands.a.row_amax()[:, None] * operands.b.row_amax() / (6 * 448) ** 2
    assert torch.allclose(d.float(), a @ b.T * outer, rtol=0.05, atol=float(outer.max()))


def test_gemm_benchmark_runs_on_an_emulated_device(monkeypatch, tmp_path):
    """Checks, peers, rows and the file; the times mean nothing."""
    name = "w4a16 1x8192x8192 alpha"
    monkeypatch.setattr(gemm, "CASES", {name: Case("TN", 64, 128, 128, "w4a16")})
    monkeypatch.setattr(gemm, "README", ())
    monkeypatch.setattr(torch, "Generator", lambda device=None, make=torch.Generator: make())
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: None, raising=False)
    session = Session("gemm", quick=False, say=lambda _: None, out=tmp_path)
    monkeypatch.setattr(gemm, "measure", lambda variants, rounds, clock: {
        v.name: (v.run(0), us(v.name, 5.0 + i))[1] for i, v in enumerate(variants)
    })  # fmt: skip
    with emulator.device("sm_90a", sms=2), cuda_on_cpu("sm_90a", 2):
        assert len(gemm.plans(False)) == 1
        gemm.bench(session)
    rows = {row["variant"]: row for row in session.table.rows}
    assert {"cutefp4", "cublas", "two-step"} <= set(rows) and "bit-equal" in rows["cutefp4"]["check"]
    assert rows["cutefp4"]["over_cublas"] == 1.2 and rows["cutefp4"]["config"]
    assert json.loads(session.save().read_text())["rows"]


def test_the_whole_command_on_an_emulated_gpu(monkeypatch, tmp_path):
    """Processes start, kernels compile ahead, the product is checked, and the document is printed and kept."""
    name = "w4a4 64x128x128 alpha"
    monkeypatch.setattr(gemm, "CASES", {name: Case("TN", 64, 128, 128)})
    monkeypatch.setattr(gemm, "QUICK", (name,))
    monkeypatch.setattr(torch, "Generator", lambda device=None, make=torch.Generator: make())
    monkeypatch.setattr(gemm, "measure", lambda variants, rounds, clock: {
        v.name: (v.run(0), us(v.name, 5.0))[1] for v in variants
    })  # fmt: skip
    with emulator.device("sm_90a", sms=2), cuda_on_cpu("sm_90a", 2):
        result = invoke("gemm", "--quick", "--json", "--no-tables", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    (kept,) = tmp_path.glob("*/*-gemm.json")
    assert json.loads(kept.read_text()) == data and data["skipped"] == []
    ours = next(row for row in data["rows"] if row["variant"] == "cutefp4")
    assert ours["spills"] == 0 and ours["registers"] > 32 and ours["sass_instructions"] > 100
    assert ours["percent_of_wgmma"] >= 0 and ours["config"] and "bit-equal" in ours["check"]


def test_the_kernels_behind_a_row():
    """Registers, spills, and SASS instructions per element: of every plan that the benchmarks of quantising launch."""
    with emulator.device("sm_90a", sms=2):
        x = matrix(64, 256)
        calls = {
            "token": lambda: ops_quantize.quantize(x, quantize.TOKEN),
            "with amax": lambda: ops_quantize.quantize(x, quantize.TE, columnwise=True),
        }
        found = kernel_columns.of_calls(calls)
    for row in found.values():
        assert row["spills"] == 0 and 16 <= row["registers"] <= 255
        assert 2 < row["sass_per_element"] <= row["sass_instructions"] / 16
    assert found["with amax"]["sass_instructions"] > found["token"]["sass_instructions"]


def test_a_kernel_that_cannot_be_read_costs_no_times(monkeypatch, capsys):
    def unreadable(plan):
        raise KeyError("no such section")

    monkeypatch.setattr(kernel_columns, "resources", unreadable)
    monkeypatch.setattr(kernel_columns, "_known", {})
    with emulator.device("sm_90a", sms=2):
        x = matrix(64, 256)
        row = kernel_columns.of_calls({"token": lambda: ops_quantize.quantize(x, quantize.TOKEN)})["token"]
    assert row == {"registers": None, "spills": None, "sass_instructions": None}
    assert "no such section" in capsys.readouterr().err


def test_every_quantising_plan_says_how_many_elements_a_thread_handles():
    with emulator.device("sm_90a", sms=2), cuda_on_cpu("sm_90a", 2):
        found = quantize.plans(quick=True)
    assert len(found) > 20 and all(kernel_columns.elements_per_pass(plan) for plan in found)


def test_linear_step_gives_the_three_products():
    x, w, dy = (matrix(rows, columns) for rows, columns in ((64, 128), (96, 128), (64, 96)))
    with emulator.device("sm_90a", sms=4):
        found = linear_step.errors(linear_step.Step(x, w, dy), named_recipe("te"))
    assert set(found) == {"error_y", "error_dx", "error_dw"} and all(0.02 < e < 0.25 for e in found.values())
