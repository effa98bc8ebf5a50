"""What the Blackwell GEMM should take on a B200: a model, inputs counted in the emulator. All times are PREDICTIONS.

    python -m perf.schedule_model              all parts
    python -m perf.schedule_model --validate   only: the same method against measurements on an H200

1. Counts. The kernel runs in the emulator (one and two tiles); bytes by TMA, products, and instructions per column of
   the epilogue warps are compared with what the model assumes.
2. Predictions for the shapes below, with the configuration that `cutefp4.heuristics.sm100` chooses, the limiter, and
   published figures where there are some: best public NVFP4 GEMM 6.1 of 9 PFLOP/s at 8192^3 (published, not by us).
3. Validation of the method. Clocks per stage = the slowest resource, times stages, times waves, plus a fixed time: the
   same form predicts the Hopper kernels (`heuristics.sm90.estimate`), which have been measured; the error is printed.
   Its constants are fitted to such measurements, those of the B200 are not: expect more error there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import statistics
from collections import Counter
from pathlib import Path

import torch

from cutefp4 import emulator
from cutefp4.config_sm100 import Sm100Config, budget_table, stage_bytes
from cutefp4.epilogue import default_epilogue
from cutefp4.format import gemm_constant
from cutefp4.gemm_plan_sm100 import Sm100GemmPlan
from cutefp4.heuristics import sm90, sm100
from cutefp4.schedule_model_sm100 import B200, EPILOGUE_SLOTS, GemmShape, estimate

SHAPES = (
    (1, 7168, 16384), (16, 7168, 16384), (1, 8192, 8192), (128, 4096, 4096), (512, 7168, 2048),
    (4096, 4096, 4096), (8192, 8192, 8192), (16384, 7168, 2048),
)  # fmt: skip
PUBLISHED = {(8192, 8192, 8192): "6.1 PFLOP/s, best public"}
EPILOGUE_FILES = ("epilogue.py", "epilogue_load.py", "store.py", "packed.py", "math.py", "staged_store.py", "sinks.py")
H200_CLOCK = 1.75
"""GHz under load."""
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


def predict() -> None:
    """Part 2."""
    print("2. PREDICTED times on a B200 (148 SMs); launch included; peak 9.0 PFLOP/s, HBM taken as 6900 GB/s")
    print(
        f"   {'M, N, K':<20} {'us':>7} {'PFLOP/s':>8} {'of peak':>8} {'of HBM':>7} {'limiter':>9} {'waves':>6} "
        f"{'epilogue/MMA':>13}  configuration"
    )
    for m, n, k in SHAPES:
        shape = GemmShape(m, n, k)
        c = sm100.choose(shape, B200.sms)
        e = estimate(c, shape)
        stages = -(-k // (256 * c.splits))
        text = f"{c.tile_m}x{c.tile_n} cluster {c.cluster_m}x{c.cluster_n} stages {c.stages}"
        text += (" swapped" if c.swap_ab else "") + (f" splits {c.splits}" if c.splits > 1 else "")
        print(
            f"   {f'{m}, {n}, {k}':<20} {e.us:>7.1f} {2e-9 * m * n * k / e.us:>8.3f} {e.mma_share:>8.1%} "
            f"{e.hbm_share:>7.1%} {e.limiter:>9} {e.waves:>6} {e.epilogue / (stages * e.stage['mma']):>13.2f}  {text}  "
            f"{PUBLISHED.get((m, n, k), '')}"
        )
    best = sm100.choose(GemmShape(8192, 8192, 8192), B200.sms)
    print("\n   Budgets of the configuration for large products")
    print("   " + budget_table(best).replace("\n", "\n   ") + "\n")


def validate() -> None:
    """Part 3."""
    print("3. The same method on the H200: predicted against measured times of the Hopper kernels")
    errors = []
    for path in sorted(RESULTS.glob("*h200*/*gemm*.json")):
        for row in json.loads(path.read_text())["rows"]:
            if row.get("variant") != "cutefp4":
                continue
            a16 = "a16" in row["case"].lower()
            shape = sm90.GemmShape(row["m"], row["n"], row["k"], activations="bfloat16" if a16 else "nvfp4")
            us = sm90.estimate(sm90.choose(shape), shape) / (H200_CLOCK * 1e3) + B200.launch
            errors.append(us / row["median_us"] - 1)
            measured = f"measured {row['median_us']:>8.1f} us, {errors[-1]:>+7.1%}"
            print(f"   {row['case']:<34} predicted {us:>8.1f} us, {measured}")
    if errors:
        sizes = [abs(e) for e in errors]
        print(f"   error: median {statistics.median(sizes):.1%}, largest {max(sizes):.1%} of {len(sizes)} cases")
    else:
        print(f"   no measurements under {RESULTS.name}/*h200*/*gemm*.json: not validated")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validate", action="store_true", help="only the comparison with measurements")
    if not parser.parse_args().validate:
        count()
        predict()
    validate()


if __name__ == "__main__":
    main()
