"""The schedule model: counts in the emulator, B200 predictions, and the test of its rules on an H200.

    python -m perf.schedule_model             print everything
    python -m perf.schedule_model --validate  only the comparison with measurements

1. Counts. The kernel runs in the emulator (one and two tiles); bytes by TMA, products, and instructions per column of
   the epilogue warps are compared with what the model assumes.
2. PREDICTIONS, with the configuration that `cutefp4.heuristics.sm100` chooses, what each resource alone would take, the
   limiter, and published figures where there are some (published, not by us).
3. Validation: `cutefp4.schedule_model` with what `schedule_model_sm90` says the Hopper kernels need, against every
   measured time in perf/results whose configuration it models. Constants of the Hopper kernels are fitted, those of the
   B200 are not: expect more error there.

2 and 3 are perf/SCHEDULE_MODEL.md, which `cutefp4 bench report` writes.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections import Counter
from pathlib import Path

import torch

from cutefp4 import emulator
from cutefp4.cli.bench import schedule_document
from cutefp4.config_sm100 import Sm100Config, budget_table, stage_bytes
from cutefp4.epilogue import default_epilogue
from cutefp4.format import gemm_constant
from cutefp4.gemm_plan_sm100 import Sm100GemmPlan
from cutefp4.heuristics import sm100
from cutefp4.schedule_model_sm100 import B200, EPILOGUE_SLOTS, GemmShape

EPILOGUE_FILES = ("epilogue.py", "epilogue_load.py", "store.py", "packed.py", "math.py", "staged_store.py", "sinks.py")
RESULTS = Path(__file__).parent / "results"


def run_tiles(plan: Sm100GemmPlan, tiles: int, k: int):
    """The report of `tiles` tiles of one CTA."""
    compiled = importlib.import_module("cutefp4.compile")
    m, n = 128, plan.config.tile_n * tiles
    codes = [torch.zeros(1, rows, k // 2, dtype=torch.uint8) for rows in (m, n)]
    scales = [torch.zeros(-(-rows // 128) * 128 * k // 16, dtype=torch.uint8) for rows in (m, n)]
    tensors = torch.empty(1, m, n, dtype=torch.bfloat16), torch.ones(1, m), torch.ones(1, n)
    with emulator.device(plan.arch, sms=1) as device:
        compiled.get(plan)(codes[0], scales[0], codes[1], scales[1], tensors, 1)
        return device.report().reports[0], compiled.artifacts(plan).ptx


def instructions_by_file(report, ptx: str) -> Counter:
    """Warp instructions executed, by the source file that they come from."""
    names, place, count = {}, "", Counter()
    lines = ptx.split("\n")
    for line in lines:
        if found := re.match(r'\s*\.file\s+(\d+)\s+"(.*?)"', line):
            names[found[1]] = found[2].rsplit("/", 1)[-1]
    for number, line in enumerate(lines, 1):
        if found := re.match(r"\s*\.loc\s+(\d+)\s", line):
            place = names[found[1]]
        executed = report.lines.get(number, 0)
        if "f32x2" in line:
            # In one line, without a source line, with the moves that pair its registers; ptxas needs none of these.
            count["packed.py"] += executed // (line.count(";") - 1)
        else:
            count[place] += executed
    return count


def count() -> None:
    """Part 1."""
    config = sm100.with_most_stages(Sm100Config(tile_n=256))
    plan = Sm100GemmPlan("sm_100a", config, default_epilogue(gemm_constant(448, 448)))
    k = 1024
    (one, ptx), (two, _) = run_tiles(plan, 1, k), run_tiles(plan, 2, k)
    print("1. Counts of one more tile of 128 x 256 x 1024 in the emulator, and what the model assumes")
    rows = [
        ("bytes by TMA loads", "async_load_bytes", stage_bytes(config).total * k // 256),
        ("bytes by TMA stores", "async_store_bytes", 128 * 256 * 2),
        ("products", "mma_macs", 128 * 256 * k),
    ]
    for name, counter, expected in rows:
        found = two.counters[counter] - one.counters[counter]
        print(f"   {name:<34} {found:>10} {expected:>10}")
    more = instructions_by_file(two, ptx) - instructions_by_file(one, ptx)
    slots = sum(more[name] for name in EPILOGUE_FILES) / (4 * 256)
    print(f"   {'epilogue instructions per column':<34} {slots:>10.2f} {EPILOGUE_SLOTS + 0.5:>10.2f}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validate", action="store_true", help="only the comparison with measurements")
    if parser.parse_args().validate:
        rows, others = schedule_document.validations(RESULTS)
        for row in rows:
            print(f"{row['case']:<34} {row['modelled_us']:>8.1f} {row['measured_us']:>8.1f} {row['error']:>+7.1%}")
        for name, number, middle, most in schedule_document.errors_by_class(rows):
            print(f"{name:<24} {number:>3}  median {middle:.1%}, largest {most:.1%}")
        print(f"{others} measured products ran on a kernel that is not modelled")
        return
    count()
    print(schedule_document.document(RESULTS))
    best = sm100.choose(GemmShape(8192, 8192, 8192), B200.sms)
    print("Budgets of the configuration for large products\n" + budget_table(best))


if __name__ == "__main__":
    main()
