"""Speed of what stands in front of a quantiser, in one kernel with it, beside a copy of its bytes and its two steps.

`unfused` cases run PyTorch's operation and then our cast; `ratio` is the time in copies of the bytes that the fused
kernel must move, which is what the unfused one is compared with, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import rms_norm

from cutefp4 import ops_quantize
from cutefp4.cli.bench import kernel_columns
from cutefp4.recipe import QuantRecipe
from cutefp4.timing import GraphClock, Table, Variant, fill, measure

TE = QuantRecipe()
TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")
RATIO = 1.15
"""Largest wanted time in copies of the bytes."""
SMALL = ((1, 7168), (64, 7168))
_CODES = 0.5625


@dataclass(frozen=True)
class Inputs:
    """x and residual (M, N), gate and up columns (M, 2N), weight (N,), all bf16."""

    x: torch.Tensor
    residual: torch.Tensor
    pair: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of(cls, m: int, n: int) -> Inputs:
        x, residual = (fill((m, n), "normal", dtype=torch.bfloat16, device="cuda", seed=seed) for seed in (1, 2))
        weight = fill((n,), "normal", dtype=torch.bfloat16, device="cuda", seed=3)
        return cls(x, residual, torch.cat((x, residual), 1), weight)

    @classmethod
    def empty(cls, m: int, n: int) -> Inputs:
        """Without values, for compiling what the cases launch."""
        x = torch.zeros(m, n, dtype=torch.bfloat16, device="cuda")
        return cls(x, x, torch.zeros(m, 2 * n, dtype=torch.bfloat16, device="cuda"), x[0])


def _unfused(i: Inputs, residual: bool):
    h = i.x + i.residual if residual else i.x
    return ops_quantize.quantize(rms_norm(h, i.weight.shape, i.weight, 1e-6), TOKEN)


def _rmsnorm(i: Inputs, recipe: QuantRecipe = TOKEN, residual: bool = False):
    return ops_quantize.rmsnorm_quantize(i.x, i.weight, recipe, residual=i.residual if residual else None)


CASES: dict[str, tuple[float, Callable[[Inputs], object]]] = {
    "swiglu halves": (4 + _CODES, lambda i: ops_quantize.swiglu_quantize(i.pair, TOKEN)),
    "swiglu interleaved 8": (4 + _CODES, lambda i: ops_quantize.swiglu_quantize(i.pair, TOKEN, 8)),
    "swiglu interleaved 16": (4 + _CODES, lambda i: ops_quantize.swiglu_quantize(i.pair, TOKEN, 16)),
    "swiglu interleaved 32": (4 + _CODES, lambda i: ops_quantize.swiglu_quantize(i.pair, TOKEN, 32)),
    "deinterleave 8": (4 + 2 * _CODES, lambda i: ops_quantize.deinterleave_quantize(i.pair, TOKEN, 8)),
    "deinterleave 32": (4 + 2 * _CODES, lambda i: ops_quantize.deinterleave_quantize(i.pair, TOKEN, 32)),
    "rmsnorm": (2 + _CODES, _rmsnorm),
    "rmsnorm unfused": (2 + _CODES, lambda i: _unfused(i, False)),
    "rmsnorm, amax of the tensor measured": (4 + _CODES, lambda i: _rmsnorm(i, TE)),
    "rmsnorm + residual": (6 + _CODES, lambda i: _rmsnorm(i, residual=True)),
    "rmsnorm + residual unfused": (6 + _CODES, lambda i: _unfused(i, True)),
}
"""Bytes per element of x (M, N), read and written once, and what runs."""


def bench_producers(table: Table, m: int, n: int) -> None:
    """All cases on one shape; small inputs stay in the cache."""
    inputs = Inputs.of(m, n)
    variants = [Variant(name, lambda _, run=run: run(inputs)) for name, (_, run) in CASES.items()]
    sizes = sorted({size for size, _ in CASES.values()})
    for size in sizes:
        half = int(m * n * size / 2)
        source, target = (torch.zeros(half, dtype=torch.uint8, device="cuda") for _ in range(2))
        variants.append(Variant(f"copy of {size} B", lambda _, s=source, t=target: t.copy_(s)))
    timings = measure(variants, rounds=9, clock=GraphClock(calls=8))
    made = {}
    if (m, n) not in SMALL:
        own = {name: lambda run=run: run(inputs) for name, (_, run) in CASES.items() if "unfused" not in name}
        made = kernel_columns.of_calls(own)
    for name, (size, _) in CASES.items():
        t, copy = timings[name], timings[f"copy of {size} B"]
        speed = {"gb_per_s": round(t.bandwidth(int(m * n * size)))}
        speed["percent_of_copy"] = round(100 * copy.median / t.median, 1)
        if "unfused" not in name and (m, n) not in SMALL:
            speed["ratio"], speed["ratio_target"] = round(t.median / copy.median, 3), RATIO
        table.add({"shape": f"{m}x{n}"}, t, **speed, **made.get(name, {}))
    for size in sizes:
        t = timings[f"copy of {size} B"]
        table.add({"shape": f"{m}x{n}"}, t, gb_per_s=round(t.bandwidth(int(m * n * size))))


def launch_all(m: int, n: int) -> None:
    """Every case once, on inputs without values."""
    inputs = Inputs.empty(m, n)
    for name, (_, run) in CASES.items():
        if "unfused" not in name:
            run(inputs)
