"""Speed of the quantisation kernels beside a device copy of the same bytes; and against torch.compile of the oracle.

Every case runs interleaved with a device copy of the same number of bytes (half read, half written), in CUDA graphs,
on input sets that together exceed the L2 cache. Columns: time, GB/s of the case's own bytes (input read once, codes
and scales written once; an amax pass counts as a second read), percentage of the copy's speed, and the ratio to the
plain case of its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cutefp4 import ops_quantize
from cutefp4.cli.bench import kernel_columns, producers
from cutefp4.cli.bench.session import Session, plans_of
from cutefp4.format import BLOCK, encode_e2m1, pack_codes
from cutefp4.plan import Plan
from cutefp4.recipe import QuantRecipe
from cutefp4.reference.block_scale import block_amax, block_scales
from cutefp4.reference.quantize import outer_amax
from cutefp4.scale_layout import to_tiled
from cutefp4.timing import GraphClock, Table, Variant, fill, measure, rotation_sets

TE = QuantRecipe()
TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")
FOUR = TE.replace(four_over_six="mae", e4m3_max=256)
ROWWISE, BOTH = 2.5625, 3.125
"""Bytes an element of bf16 input: one read, and the codes and scales of one or both copies."""


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: what is measured.
        run: quantises x (M, N).
        bytes: per element of x.
        target: microseconds at (16384, 6144), None if there is none.
        ratio: name of the case that this one is compared with, and the largest ratio wanted.
    """

    name: str
    run: Callable[[torch.Tensor], object]
    bytes: float
    target: float | None = None
    ratio: tuple[str, float] | None = None


def _quantize(recipe: QuantRecipe, **options) -> Callable:
    return lambda x: ops_quantize.quantize(x, recipe, seed=_seed(x), offset=_seed(x), **options)


def _seed(x: torch.Tensor) -> torch.Tensor:
    return ops_quantize.no_random(x.device)[0]


def cases(amax: torch.Tensor, column_amax: torch.Tensor, row_amax: torch.Tensor, m: int) -> list[Case]:
    """All cases; the amaxes are given to those that assume them known."""
    both = {"columnwise": True}
    known = {"amax": amax, "columnwise_amax": amax}
    fast = FOUR.replace(four_over_six_error="fast")
    sizes = torch.full((8,), m // 8, dtype=torch.int64)
    generator = torch.Generator().manual_seed(1)
    cuts = torch.sort(torch.randint(0, m, (63,), generator=generator)).values
    equal = sizes.cumsum(0).int().cuda()
    ragged = torch.cat((cuts, torch.tensor([m]))).int().cuda()
    return [
        Case("rowwise tensor, amax known", _quantize(TE, amax=amax), ROWWISE, 75),
        Case("rowwise token, one read", _quantize(TOKEN), ROWWISE, 75),
        Case("rowwise tensor with amax", _quantize(TE), ROWWISE + 2),
        Case("both tensor, amax known", _quantize(TE, **both, **known), BOTH, 100),
        Case("both token, amax known", _quantize(TOKEN, **both, amax=row_amax, columnwise_amax=column_amax), BOTH, 100),
        Case("both token with amaxes", _quantize(TOKEN, **both), BOTH + 2, 165),
        Case("both 2d, amax known", _quantize(TE.replace(block="2d"), **both, **known), BOTH, 100),
        Case(
            "both RHT + SR, amax known",
            _quantize(TE.replace(rht="bf16", rounding="stochastic"), **both, **known),
            BOTH,
            None,
            ("both tensor, amax known", 1.35),
        ),
        Case(
            "both RHT, amax known",
            _quantize(TE.replace(rht="bf16"), **both, **known),
            BOTH,
            None,
            ("both tensor, amax known", 1.35),
        ),
        Case("both RHT with amaxes", _quantize(TE.replace(rht="bf16"), **both), BOTH + 2),
        Case("4over6 fast rowwise", _quantize(fast, amax=amax), ROWWISE, None, ("rowwise tensor, amax known", 1.6)),
        Case("4over6 strict rowwise", _quantize(FOUR, amax=amax), ROWWISE, None, ("rowwise tensor, amax known", 3.0)),
        Case("grouped 8 equal", _grouped(equal), BOTH + 2, None, ("both token with amaxes", 1.05)),
        Case("grouped 64 random", _grouped(ragged), BOTH + 2, None, ("both token with amaxes", 1.05)),
    ]


def _grouped(offs: torch.Tensor) -> Callable:
    return lambda x: ops_quantize.quantize_grouped(x, offs, TOKEN, columnwise=True)


def compiled_oracle(recipe: QuantRecipe, amax: torch.Tensor | None) -> Callable:
    """torch.compile of the oracle's arithmetic for the rowwise copy, over the whole matrix at once."""

    @torch.compile
    def quantize(x):
        values = x.float()
        outer = outer_amax(values, recipe).unsqueeze(-1) if amax is None else amax
        scale, multiplier = block_scales(block_amax(values, "1d"), outer, recipe.arithmetic, recipe.e4m3_max)
        y = values.unflatten(-1, (-1, BLOCK)) * multiplier.unsqueeze(-1)
        return pack_codes(encode_e2m1(y).flatten(-2)), to_tiled(scale.view(torch.uint8))

    return quantize


def bench_baseline(table: Table, m: int, n: int) -> None:
    """torch.compile of the oracle beside the kernels."""
    x = fill((m, n), "normal", dtype=torch.bfloat16, device="cuda")
    amax = x.float().abs().amax()
    for name, recipe, given in (("tensor", TE, amax), ("token", TOKEN, None)):
        compiled, kernel = compiled_oracle(recipe, given), _quantize(recipe, amax=given)
        codes, scales = compiled(x)
        ours = kernel(x)[0]
        same = torch.equal(codes, ours.codes) and torch.equal(scales, ours.block_scales.view(torch.uint8))
        variants = [
            Variant(f"torch.compile of the oracle, {name}", lambda i, run=compiled: run(x)),
            Variant(f"kernel, {name}", lambda i, run=kernel: run(x)),
        ]
        timings = measure(variants, rounds=5, clock=GraphClock(calls=3))
        slow, fast = (timings[v.name] for v in variants)
        table.add({"shape": f"{m}x{n}"}, slow, same_bytes=same)
        table.add({"shape": f"{m}x{n}"}, fast, times_faster=round(slow.median / fast.median, 2), faster_target=4)


def bench_shape(table: Table, m: int, n: int, only: str) -> None:
    """All cases on one shape."""
    x0 = fill((m, n), "normal", dtype=torch.bfloat16, device="cuda")
    amax, rows, columns = x0.float().abs().amax(), x0.float().abs().amax(1), x0.float().abs().amax(0)
    wanted = [c for c in cases(amax, columns, rows, m) if only in c.name]
    sets = rotation_sets(2 * m * n)
    inputs = [x0] + [x0.roll(i + 1, 0) for i in range(sets - 1)]
    variants = [Variant(c.name, lambda i, c=c: c.run(inputs[i])) for c in wanted]
    copies = {}
    for size in sorted({c.bytes for c in wanted}):
        half = int(m * n * size / 2)
        source, target = (torch.zeros(half, dtype=torch.uint8, device="cuda") for _ in range(2))
        source.copy_(torch.randint(0, 255, (half,), dtype=torch.uint8, device="cuda"))
        copies[size] = f"copy of {size} B"
        variants.append(Variant(copies[size], lambda i, s=source, t=target: t.copy_(s)))
    timings = measure(variants, sets=sets, rounds=9, clock=GraphClock(calls=8))
    made = kernel_columns.of_calls({c.name: lambda c=c: c.run(x0) for c in wanted}) if (m, n) == SHAPE else {}
    for case in wanted:
        t = timings[case.name]
        total = int(m * n * case.bytes)
        row = {
            "gb_per_s": round(t.bandwidth(total)),
            "percent_of_copy": round(100 * timings[copies[case.bytes]].median / t.median, 1),
            "target_us": case.target if (m, n) == (16384, 6144) else None,
        }
        if case.ratio and case.ratio[0] in timings:
            row["ratio"] = round(t.median / timings[case.ratio[0]].median, 3)
            row["ratio_target"] = case.ratio[1]
        table.add({"shape": f"{m}x{n}"}, t, **row, **made.get(case.name, {}))
    for size, name in copies.items():
        table.add({"shape": f"{m}x{n}"}, timings[name], gb_per_s=round(timings[name].bandwidth(int(m * n * size))))


def bench_dequantize(table: Table, m: int, n: int) -> None:
    """Codes back to bf16."""
    x = fill((m, n), "normal", dtype=torch.bfloat16, device="cuda")
    operand = ops_quantize.quantize(x, TOKEN)[0]
    timings = measure(
        [Variant("dequantise", lambda i: ops_quantize.dequantize(operand, torch.bfloat16))],
        rounds=9,
        clock=GraphClock(calls=8),
    )
    t = timings["dequantise"]
    made = kernel_columns.columns(plans_of(lambda: ops_quantize.dequantize(operand, torch.bfloat16)))
    table.add({"shape": f"{m}x{n}"}, t, gb_per_s=round(t.bandwidth(int(m * n * ROWWISE))), **made)


SHAPE = (16384, 6144)
COMPILED_SECONDS = 40.0
"""What torch.compile of the oracle takes, about."""
SMALL = ((1, 7168), (16, 7168), (64, 7168), (304, 2112), (8192, 4096))


def plans(quick: bool) -> list[Plan]:
    """What `bench` launches, to be compiled ahead."""

    def call() -> None:
        for m, n in (SHAPE, *SMALL[: 1 if quick else None]):
            x = torch.zeros(m, n, dtype=torch.bfloat16, device="cuda")
            rows, columns = (torch.ones(size, device="cuda") for size in (m, n))
            for case in cases(rows[0], columns, rows, m):
                if (m, n) == SHAPE or "rowwise" in case.name:
                    case.run(x)
        for m, n in (SHAPE, *producers.SMALL[: 0 if quick else None]):
            producers.launch_all(m, n)
        x = torch.zeros(SHAPE, dtype=torch.bfloat16, device="cuda")
        ops_quantize.dequantize(ops_quantize.quantize(x, TOKEN)[0], torch.bfloat16)

    return plans_of(call)


def bench(session: Session) -> None:
    """All cases that the time budget allows."""
    m, n = SHAPE
    steps = {
        "16384x6144": lambda: bench_shape(session.table, m, n, ""),
        "producers": lambda: producers.bench_producers(session.table, m, n),
        "dequantise": lambda: bench_dequantize(session.table, m, n),
    }
    for rows, columns in SMALL[: 1 if session.quick else None]:
        steps[f"{rows}x{columns}"] = lambda r=rows, c=columns: bench_shape(session.table, r, c, "rowwise")
    for rows, columns in producers.SMALL[: 0 if session.quick else None]:
        steps[f"producers {rows}x{columns}"] = lambda r=rows, c=columns: producers.bench_producers(session.table, r, c)
    for name, step in steps.items():
        if not session.may_start(name):
            continue
        before = len(session.table.rows)
        step()
        for row in session.table.rows[before:]:
            share = f", {row['percent_of_copy']} % of a copy" if "percent_of_copy" in row else ""
            session.say(f"quantize {row['shape']} {row['variant']}: {row['median_us']:.1f} us{share}")


def bench_compiled(session: Session) -> None:
    """The oracle under torch.compile beside the kernels."""
    if session.may_start("torch.compile of the oracle", COMPILED_SECONDS):
        bench_baseline(session.table, *SHAPE)
        for row in session.table.rows:
            session.say(f"torch-compile {row['variant']}: {row['median_us']:.1f} us")
