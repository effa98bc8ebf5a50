"""What a launch costs the caller.

call        Python call to launched kernel, steady state: get(plan) and the TVM-FFI call; target 6 us, stretch 3.5
into        the same through `ops_quantize.cast_rows`, outputs given
quantize    `ops_quantize.quantize`: allocations and the operand included
torch_mul   torch.mul(out=): what PyTorch itself needs for a launch here
capture     100 calls into a CUDA graph; wall time of the capture, and a check of the replayed result
"""

from __future__ import annotations

import time

import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import launch, ops_quantize
from cutefp4.cli.bench.session import Session
from cutefp4.quant_plan import BlockMath, CastRowsPlan, row_shape
from cutefp4.recipe import QuantRecipe
from cutefp4.timing import HostClock, Table, Timing, Variant, measure

TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")
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


def bench(session: Session) -> None:
    """Calls and captures."""
    device = torch.device("cuda", torch.cuda.current_device())
    call_rows(session.table, device)
    capture_rows(session.table, device)
    for row in session.table.rows:
        session.say(f"launch {row['case']}: {row['median_us']:.2f} us")
