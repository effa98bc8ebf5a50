"""Hopper GEMM beside cuBLAS, decode + cuBLAS and quack's W4A16: parts of `cutefp4 bench gemm`, with every column.

    python -m perf.bench_gemm                         all cases
    python -m perf.bench_gemm small a16               suites: large, small, a16, epilogue, wgrad
    python -m perf.bench_gemm --only 8192x8192x8192   cases whose name contains the text
    python -m perf.bench_gemm --static                no GPU: chosen configuration, registers, spills, SASS instructions

Columns: microseconds, TFLOP/s, share of the wgmma peak, speed in cuBLAS's, GB/s, registers, spills, configuration.
`cutefp4 sweep` times other configurations than the heuristic's.
"""

from __future__ import annotations

import argparse

import torch

from cutefp4 import launch
from cutefp4.cli.bench import gemm, kernel_columns
from cutefp4.cli.bench.session import Session
from cutefp4.cli.sweep.case import Case
from cutefp4.cli.sweep.operations import operation_plans
from cutefp4.cli.sweep.target import describe, target_for
from cutefp4.warmup import warmup

ARCH = "sm_90a"
SUITES = ("large", "small", "a16", "epilogue", "wgrad")
FORMATS = {
    "median_us": "{:9.1f} us", "tflops": "{:6.1f} TF/s", "percent_of_wgmma": "{:5.1f} % of wgmma",
    "over_cublas": "{:6.3f}x cuBLAS", "gb_per_s": "{:6.0f} GB/s", "registers": "{:3d} registers",
    "spills": "{} spills", "sass_instructions": "{} SASS", "check": "{}", "config": "{}",
}  # fmt: skip


def suite(name: str, case: Case) -> str:
    """Which suite a case of `cutefp4 bench gemm` belongs to."""
    epilogue = name.split()[-1]
    if epilogue != "alpha":
        return "wgrad" if epilogue == "wgrad" else "epilogue"
    return "a16" if case.kind == "w4a16" else "large" if case.m >= 1024 else "small"


def chosen(suites: list[str], only: str) -> dict[str, Case]:
    """The cases of some suites (none: of all)."""
    return {n: c for n, c in gemm.CASES.items() if only in n and (not suites or suite(n, c) in suites)}


def line(row: dict) -> str:
    """A row of the table as text."""
    cells = [form.format(row[name]) for name, form in FORMATS.items() if row.get(name) not in (None, "")]
    return f"{row['case']:32} {row['variant']:9} {'  '.join(cells)}"


def static(session: Session, cases: dict[str, Case]) -> None:
    """What the compiler made of the configurations that the heuristic chooses for an H200."""
    for name, case in cases.items():
        found = operation_plans(case, target_for(ARCH, case))
        config = "; ".join(describe(plan.config) for plan in found if hasattr(plan, "config"))
        columns = kernel_columns.columns(found)
        session.say(line(session.table.add({"case": name, "variant": "static"}, **columns, config=config)))


def timed(session: Session, cases: dict[str, Case]) -> None:
    """Check and time, as `cutefp4 bench gemm` does."""
    device = torch.device("cuda", torch.cuda.current_device())
    sms = launch.sm_count(device)
    warmup([plan for case in cases.values() for plan in operation_plans(case, target_for(ARCH, case, sms))])
    for name, case in cases.items():
        before = len(session.table.rows)
        gemm.run_case(session, name, case, launch.arch_of(device))
        for row in session.table.rows[before:]:
            print(line(row), flush=True)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", choices=[*SUITES, []])
    parser.add_argument("--only", default="")
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--out", default="perf/results/gemm")
    arguments = parser.parse_args()
    session, cases = Session("gemm", say=lambda text: print(text, flush=True)), chosen(arguments.suites, arguments.only)
    (static if arguments.static else timed)(session, cases)
    print(*session.table.write(arguments.out))


if __name__ == "__main__":
    main()
