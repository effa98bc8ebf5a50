"""Speed of the quantisation kernels: python -m perf.bench_quantize [--only PART] [--small] [--baseline | --static]
[--out STEM]

The cases are those of `cutefp4 bench quantize` (cutefp4/cli/bench/quantize.py); this program runs parts of them.
`--baseline` adds torch.compile of the oracle; `--static` writes registers, spills and SASS instructions per element
instead, and needs no GPU.
"""

from __future__ import annotations

import argparse

from cutefp4.cli.bench import producers, quantize
from cutefp4.compile_report import compile_report
from cutefp4.quant_plan import AmaxPlan, BlockMath, CastRowsPlan, CastTilesPlan, HadamardAmaxPlan
from cutefp4.timing import Table

COLUMNS = (
    "gb_per_s",
    "percent_of_copy",
    "ratio",
    "ratio_target",
    "target_us",
    "times_faster",
    "same_bytes",
    "registers",
    "spills",
    "sass_per_element",
)


def report_kernels(table: Table) -> None:
    """Registers, spills and SASS instructions of the kernels behind the cases; needs no GPU."""
    te, token = BlockMath(), BlockMath("per_token")
    fours = BlockMath("te", 256, "nearest", "mae", "fast")
    plans = {
        "rowwise token": CastRowsPlan("sm_90a", "bfloat16", token, "token", False, "tiled"),
        "rowwise tensor": CastTilesPlan("sm_90a", "bfloat16", te, "tensor", "tiled", columnwise=False),
        "both tensor": CastTilesPlan("sm_90a", "bfloat16", te, "tensor", "tiled"),
        "both token": CastTilesPlan("sm_90a", "bfloat16", token, "token", "tiled"),
        "both 2d": CastTilesPlan("sm_90a", "bfloat16", te, "tensor", "tiled", block="2d"),
        "both RHT + SR": CastTilesPlan(
            "sm_90a", "bfloat16", BlockMath(rounding="stochastic"), "tensor", "tiled", rht="bf16"
        ),
        "4over6 fast rowwise": CastTilesPlan("sm_90a", "bfloat16", fours, "tensor", "tiled", columnwise=False),
        "amax rows + columns": AmaxPlan("sm_90a", "bfloat16", rows=True, columns=True),
        "amax Hadamard": HadamardAmaxPlan("sm_90a", "bfloat16", "bf16", "tensor", "tensor"),
    }
    for name, plan in plans.items():
        report = compile_report(plan)
        # Elements that a thread encodes in one pass over the code: 16 a block, both directions counted as one element.
        elements = 16 * plan.blocks_per_thread if isinstance(plan, CastRowsPlan) else 64
        instructions = sum(report.kernels[0].instructions.values())
        table.add(
            {"shape": "static", "variant": name},
            registers=report.kernels[0].registers,
            spills=report.spills,
            sass_instructions=instructions,
            sass_per_element=round(instructions / elements, 1),
        )


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--baseline", action="store_true")
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--out", default="perf/results/quantize")
    arguments = parser.parse_args()
    table = Table()
    if arguments.static:
        report_kernels(table)
    else:
        measure_all(table, arguments)
    for row in table.rows:
        extra = [f"{name} {row[name]}" for name in COLUMNS if row.get(name) is not None]
        print(f"{row['shape']:12} {row['variant']:36} {row.get('median_us', 0):9.2f} us   {', '.join(extra)}")
    print(*table.write(arguments.out))


def measure_all(table: Table, arguments: argparse.Namespace) -> None:
    """Everything that needs the GPU."""
    quantize.bench_shape(table, 16384, 6144, arguments.only)
    if not arguments.only:
        producers.bench_producers(table, 16384, 6144)
        quantize.bench_dequantize(table, 16384, 6144)
    if arguments.small:
        for m, n in quantize.SMALL:
            quantize.bench_shape(table, m, n, "rowwise")
    if arguments.baseline:
        quantize.bench_baseline(table, 16384, 6144)


if __name__ == "__main__":
    main()
