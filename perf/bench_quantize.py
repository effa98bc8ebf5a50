"""Speed of the quantisation kernels: parts of `cutefp4 bench quantize`, with every column.

python -m perf.bench_quantize                     (16384, 6144): all modes, producers, dequantise
python -m perf.bench_quantize --only 4over6       modes whose name contains the text
python -m perf.bench_quantize --small             further shapes
python -m perf.bench_quantize --baseline          also torch.compile of the oracle
python -m perf.bench_quantize --static            no GPU: registers, spills and SASS instructions per element
"""

from __future__ import annotations

import argparse

import torch

from cutefp4 import emulator, ops_quantize
from cutefp4.cli.bench import kernel_columns, producers, quantize
from cutefp4.cli.bench.session import plans_of
from cutefp4.layer_plans import SMS
from cutefp4.timing import Table
from perf.cuda_on_cpu import cuda_on_cpu

ARCH = "sm_90a"
COLUMNS = (
    "gb_per_s", "percent_of_copy", "ratio", "ratio_target", "target_us", "times_faster", "same_bytes",
    "registers", "spills", "sass_instructions", "sass_per_element",
)  # fmt: skip


def static(table: Table, only: str) -> None:
    """The kernels behind the modes, as they would be launched on an H200; nothing runs."""
    m, n = quantize.SHAPE
    with emulator.device(ARCH, sms=SMS[ARCH]), cuda_on_cpu(ARCH, SMS[ARCH]):
        x = torch.zeros(m, n, dtype=torch.bfloat16)
        rows, columns, inputs = torch.ones(m), torch.ones(n), producers.Inputs.empty(m, n)
        calls = {c.name: lambda c=c: c.run(x) for c in quantize.cases(rows[0], columns, rows, m)}
        own = {name: run for name, (_, run) in producers.CASES.items() if "unfused" not in name}
        calls |= {name: lambda run=run: run(inputs) for name, run in own.items()}
        operands: list = []
        plans_of(lambda: operands.append(ops_quantize.quantize(x, quantize.TOKEN)[0]))
        calls["dequantise"] = lambda: ops_quantize.dequantize(operands[0], x.dtype)
        made = kernel_columns.of_calls({name: call for name, call in calls.items() if only in name})
    for name, row in made.items():
        table.add({"shape": f"{m}x{n}", "variant": name}, **row)


def timed(table: Table, arguments: argparse.Namespace) -> None:
    """Everything that needs the GPU."""
    quantize.bench_shape(table, *quantize.SHAPE, arguments.only)
    if not arguments.only:
        producers.bench_producers(table, *quantize.SHAPE)
        quantize.bench_dequantize(table, *quantize.SHAPE)
    if arguments.small:
        for m, n in quantize.SMALL:
            quantize.bench_shape(table, m, n, "rowwise")
    if arguments.baseline:
        quantize.bench_baseline(table, *quantize.SHAPE)


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
    static(table, arguments.only) if arguments.static else timed(table, arguments)
    for row in table.rows:
        extra = [f"{name} {row[name]}" for name in COLUMNS if row.get(name) is not None]
        time = f"{row['median_us']:9.2f} us   " if "median_us" in row else ""
        print(f"{row['shape']:12} {row['variant']:36} {time}{', '.join(extra)}")
    print(*table.write(arguments.out))


if __name__ == "__main__":
    main()
