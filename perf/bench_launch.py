"""What a launch costs: python -m perf.bench_launch [--out perf/results/launch]

    call        Python call to launched kernel, steady state: get(plan) and the TVM-FFI call; target 6 us, stretch 3.5
    into        the same through `ops_quantize.cast_rows`, outputs given
    quantize    `ops_quantize.quantize`: allocations and the operand included
    torch_mul   torch.mul(out=): what PyTorch itself needs for a launch here
    memory hit  compile.get(plan) alone, ns
    disk hit    an entry read, checked, loaded; target 30 ms (the first one also loads the DSL's libraries)
    cold        the compiler, per kernel, for sm_90a and sm_100a; target 5 s
    capture     100 calls into a CUDA graph; wall time of the capture, and a check of the replayed result

Without a GPU the rows that need one are left out, and the program says so.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from unittest import mock

import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import launch, ops_quantize
from cutefp4.quant_plan import BlockMath, CastRowsPlan, row_shape
from cutefp4.recipe import QuantRecipe
from perf.timing import HostClock, Table, Timing, Variant, measure

TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")
SIZES = (512, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Row lengths whose kernels are compiled."""

TARGETS = {"call": 6.0, "disk hit": 30e3, "cold": 5e6}
"""Microseconds."""


def rows_plan(arch: str, n: int = 6144) -> CastRowsPlan:
    """Per-token rowwise cast of bf16 rows."""
    return CastRowsPlan(arch, "bfloat16", BlockMath.of(TOKEN), "token", False, "tiled", **row_shape(n, 2))


def seconds_of(work) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def once(name: str, samples: list[float]) -> Timing:
    """A Timing of single events."""
    ordered = sorted(samples)
    return Timing(name, ordered[len(ordered) // 2], ordered[0], ordered[-1], len(ordered), 1)


def cache_rows(table: Table, arch: str) -> None:
    """Cold compiles, disk hits and memory hits, in a cache directory of their own."""
    plans = list(dict.fromkeys(rows_plan(arch, n) for n in SIZES))
    with tempfile.TemporaryDirectory() as scratch, mock.patch.dict(os.environ, {"CUTEFP4_CACHE_DIR": scratch}):
        kernel_cache.reset()
        first = seconds_of(lambda: kernel_cache.artifacts(plans[0]))
        table.add({"case": "cold, first", "arch": arch}, once("cold", [first]), target_us=TARGETS["cold"])
        samples = [seconds_of(lambda plan=plan: kernel_cache.artifacts(plan)) for plan in plans[1:]]
        table.add({"case": "cold", "arch": arch}, once("cold", samples), target_us=TARGETS["cold"])
        first = seconds_of(lambda: kernel_cache.get(plans[0]))
        table.add({"case": "disk hit, first", "arch": arch}, once("disk hit", [first]), target_us=TARGETS["disk hit"])
        samples = [seconds_of(lambda plan=plan: kernel_cache.get(plan)) for plan in plans[1:]]
        table.add({"case": "disk hit", "arch": arch}, once("disk hit", samples), target_us=TARGETS["disk hit"])
        plan, get = plans[0], kernel_cache.get
        timing = measure([Variant("memory hit", lambda i: get(plan))], clock=HostClock(calls=10_000, synchronize=False))
        table.add({"case": "memory hit", "arch": arch}, timing["memory hit"])
        stats = kernel_cache.stats()
        if (stats.compiles, stats.disk_hits) != (len(plans), len(plans)):
            raise RuntimeError(f"the cache did not do what is being measured: {stats}")
    kernel_cache.reset()


def call_rows(table: Table, device: torch.device) -> None:
    """Host cost of launches in steady state, interleaved with PyTorch's own."""
    x = torch.randn(128, 6144, device=device).bfloat16()
    operand = ops_quantize.quantize(x, TOKEN)[0]
    codes, amax = operand.codes, operand.amax
    scales = operand.block_scales.view(torch.uint8).view(-1)
    text, none = ops_quantize.recipe_text(TOKEN), ops_quantize.no_random(device)
    plan, get = rows_plan(launch.arch_of(device)), kernel_cache.get
    ctas = launch.sm_count(device) * 16
    y = torch.empty_like(x)
    variants = [
        Variant("call", lambda i: get(plan)(x, codes, scales, amax, none, ctas)),
        Variant("into", lambda i: ops_quantize.cast_rows(x, text, codes, scales, amax, None, False, "none")),
        Variant("quantize", lambda i: ops_quantize.quantize(x, TOKEN)),
        Variant("torch_mul", lambda i: torch.mul(x, 2.0, out=y)),
    ]
    for name, timing in measure(variants, rounds=50, clock=HostClock()).items():
        table.add({"case": name, "shape": "128x6144"}, timing, target_us=TARGETS.get(name, ""))


def capture_rows(table: Table, device: torch.device, calls: int = 100) -> None:
    """A graph of many calls: captured without a synchronisation, replayed, compared."""
    x = torch.randn(128, 6144, device=device).bfloat16()
    expected = ops_quantize.quantize(x, TOKEN)[0].codes.clone()
    torch.cuda.synchronize()
    graph, results = torch.cuda.CUDAGraph(), []

    def capture() -> None:
        with torch.cuda.graph(graph):
            results.extend(ops_quantize.quantize(x, TOKEN)[0] for _ in range(calls))

    seconds = seconds_of(capture)
    graph.replay()
    torch.cuda.synchronize()
    right = all(torch.equal(result.codes, expected) for result in results)
    table.add({"case": f"capture of {calls} calls", "right": right}, once("capture", [seconds]))
    if not right:
        raise RuntimeError("the replayed graph gave other codes than the eager call")


def main() -> None:
    """Run what this machine can run, print a table, write JSON and CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="perf/results/launch")
    arguments = parser.parse_args()
    table = Table()
    for arch in ("sm_90a", "sm_100a"):
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
