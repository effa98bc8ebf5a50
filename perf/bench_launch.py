"""What a launch and a compile cost: python -m perf.bench_launch [--out perf/results/launch]

The cases are those of `cutefp4 bench launch` and `cutefp4 bench compile`, which describe them
(cutefp4/cli/bench/launch.py, compile.py). Without a GPU the rows that need one are left out, and the program says so.
"""

from __future__ import annotations

import argparse

import torch

from cutefp4.cli.bench.compile import ARCHS, cache_rows
from cutefp4.cli.bench.launch import call_rows, capture_rows
from cutefp4.timing import Table


def main() -> None:
    """Run what this machine can run, print a table, write JSON and CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="perf/results/launch")
    arguments = parser.parse_args()
    table = Table()
    for arch in ARCHS:
        cache_rows(table, arch)
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        call_rows(table, device)
        capture_rows(table, device)
    else:
        print("no CUDA device: launches and captures are not measured")
    for row in table.rows:
        print(
            f"{row['case']:24} {row.get('arch', ''):8} {row['median_us']:12.2f} us   target {row.get('target_us', '')}"
        )
    print(*table.write(arguments.out))


if __name__ == "__main__":
    main()
