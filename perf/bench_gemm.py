"""Hopper GEMM against cuBLAS on the same decoded values, and against quack's W4A16 where it is installed.

    python perf/bench_gemm.py large small a16 epilogue wgrad       # suites; results in
    perf/results/gemm_sm90.{json,csv}
    python perf/bench_gemm.py --sweep large small                  # the configurations that the heuristic chooses from

Every variant of a case runs in one process, interleaved, the L2 cache overwritten before each call. A product is
checked before it is timed: bit for bit against the fp64 product of the decoded operands where sums are exact in fp32,
else within 2^-20 of the sum of magnitudes (rows are sampled). Operands are quantised normal data.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from cutefp4 import gemm_choice_sm90 as choice
from cutefp4 import ops_gemm_sm90 as ops
from cutefp4 import ops_gemm_small_m, reference
from cutefp4.budget_sm90 import with_most_stages
from cutefp4.compile import get
from cutefp4.config_small_m import SmallMConfig
from cutefp4.epilogue import default_epilogue
from cutefp4.format import gemm_constant, weight_constant
from cutefp4.heuristics import sm90, small_m
from cutefp4.operand import Nvfp4Operand
from cutefp4.recipe import QuantRecipe
from cutefp4.warmup import warmup
from perf.timing import EventClock, Table, Variant, fill, measure

PEAK_FLOP_PER_CLOCK = 4096 * 132
RECIPE = QuantRecipe(scaling="token")


@dataclass(frozen=True)
class Case:
    """One product. kind: "w4a4" or "w4a16". epilogue: "plain", "alpha", "full" (alphas, bias, beta * C) or "wgrad"."""

    kind: str
    m: int
    n: int
    k: int
    epilogue: str = "alpha"

    @property
    def name(self) -> str:
        return f"{self.kind} {self.m}x{self.n}x{self.k} {self.epilogue}"

    @property
    def flop(self) -> int:
        return 2 * self.m * self.n * self.k

    @property
    def nbytes(self) -> int:
        """Least traffic: operands once, D once."""
        a = self.m * self.k * (2 if self.kind == "w4a16" else 0.5625)
        return int(a + self.n * self.k * 0.5625 + self.m * self.n * 2)


SUITES = {
    "large": [Case("w4a4", 4096, 4096, 4096), Case("w4a4", 8192, 8192, 8192), Case("w4a4", 16384, 7168, 2048)],
    "small": [Case("w4a4", m, n, k) for m in (1, 16, 64, 128, 256, 512) for n, k in ((7168, 16384), (8192, 8192))],
    "a16": [Case("w4a16", m, 8192, 8192) for m in (1, 16, 64, 128, 256, 1024, 4096, 8192)]
    + [Case("w4a16", m, 7168, 16384) for m in (1, 16, 64, 128, 256, 1024)],
    "epilogue": [Case("w4a4", 4096, 4096, 4096, e) for e in ("plain", "alpha", "full")]
    + [Case("w4a4", 16384, 7168, 2048, e) for e in ("plain", "alpha", "full")],
    "wgrad": [Case("w4a4", 7168, 2048, tokens, "wgrad") for tokens in (512, 2048)],
}


def quantised(rows: int, k: int, seed: int) -> Nvfp4Operand:
    """A normal matrix, quantised per token by the oracle."""
    x = fill((rows, k), "normal", dtype=torch.bfloat16, device="cuda", seed=seed)
    return reference.quantize(x, RECIPE, rowwise=True, columnwise=False)[0]


def decoded(operand: Nvfp4Operand) -> torch.Tensor:
    """e2m1 * e4m3 in bf16, exact; the outer amax is left out."""
    unit = replace(operand, amax=torch.full_like(operand.amax, 6.0 * operand.e4m3_max))
    return reference.dequantize(unit, torch.float32).to(torch.bfloat16)


def request_of(case: Case) -> choice.GemmRequest:
    """The case as the operation sees it, with a value of amax per row and column and nothing else in the epilogue."""
    a16 = case.kind == "w4a16"
    constant = weight_constant(448) if a16 else gemm_constant(448, 448)
    tree = default_epilogue(constant, "none" if a16 else "row", "column")
    out = "float32" if case.epilogue == "wgrad" else "bfloat16"
    activations = "bfloat16" if a16 else "nvfp4"
    return choice.GemmRequest(case.m, case.n, case.k, 1, out, activations, "tiled", "tiled", tree)


def plan_of(case: Case, config: choice.AnyConfig) -> choice.AnyPlan | None:
    """The plan of one configuration; None if it is not legal."""
    request = request_of(case)
    return None if choice.config_problems(config, request) else choice.plan_with(config, request, "sm_90a")


class Problem:
    """Operands of a case, what cuBLAS computes from the same values, and D."""

    def __init__(self, case: Case):
        self.case = case
        self.b = quantised(case.n, case.k, 2)
        self.b16 = decoded(self.b)
        if case.kind == "w4a4":
            self.a = quantised(case.m, case.k, 1)
            self.a16 = decoded(self.a)
        else:
            self.a = self.a16 = fill((case.m, case.k), "normal", dtype=torch.bfloat16, device="cuda", seed=1)
        out = torch.float32 if case.epilogue == "wgrad" else torch.bfloat16
        # wgrad adds to what D holds; everything else must overwrite the NaN.
        self.d = torch.full((case.m, case.n), 0.0 if case.epilogue == "wgrad" else torch.nan, dtype=out, device="cuda")
        self.d16 = torch.empty(case.m, case.n, dtype=torch.bfloat16, device="cuda")
        self.bias = fill((case.n,), "normal", dtype=torch.bfloat16, device="cuda", seed=3)
        self.c = fill((case.m, case.n), "normal", dtype=out, device="cuda", seed=4)

    def operands(self) -> tuple:
        """A and B as the case's epilogue wants them: a plain one has no amax per row."""
        if self.case.epilogue == "plain":
            return tuple(replace(x, amax=x.amax.amax(), scaling="tensor") for x in (self.a, self.b))
        return self.a, self.b

    def ours(self) -> Callable[[], torch.Tensor]:
        """The public operation with a preallocated D."""
        if self.case.kind == "w4a16":
            return lambda: ops.gemm_a16(self.a, self.b, out=self.d)
        a, b = self.operands()
        keywords = {"full": {"bias": self.bias, "c": self.c}, "wgrad": {"c": self.d}}.get(self.case.epilogue, {})
        return lambda: ops.gemm(a, b, out_dtype=self.d.dtype, out=self.d, beta=1.0, **keywords)

    def cublas(self) -> Callable[[], torch.Tensor]:
        if self.case.epilogue == "wgrad":

            def separate():
                # What a trainer without a fused epilogue does: a product in fp32, then a pass over the gradient.
                self.d.add_(torch.mm(self.a16, self.b16.T, out_dtype=torch.float32))

            return separate
        return lambda: torch.matmul(self.a16, self.b16.T, out=self.d16)

    def with_config(self, config: choice.AnyConfig) -> Callable[[], None] | None:
        """The kernel of one configuration, without the operation around it; None if it is not legal."""
        request, plan = request_of(self.case), plan_of(self.case, config)
        if plan is None:
            return None
        leaves = [self.b.amax[None]] if self.case.kind == "w4a16" else [self.a.amax[None], self.b.amax[None]]
        arguments = [self.d[None], *leaves]
        if not isinstance(config, SmallMConfig):
            arguments += ops.buffers(plan, request, 132, self.d.device)
        a, a_scales = (
            (self.a, self.b.block_scales) if self.case.kind == "w4a16" else (self.a.codes, self.a.block_scales)
        )
        flat = [t.view(torch.uint8).reshape(-1) for t in (a_scales, self.b.block_scales)]
        tensors = [a[None], flat[0], self.b.codes[None], flat[1]]
        if isinstance(config, SmallMConfig):
            return lambda: ops_gemm_small_m.run(plan, tensors, arguments, request, 132)
        kernel = get(plan)
        return lambda: kernel(*tensors, tuple(arguments), 132)


def check(problem: Problem, run: Callable[[], object], rows: int = 64) -> str:
    """Compare sampled rows of D with the fp64 product; "exact", or the largest error over its bound (must be <= 1)."""
    case = problem.case
    pick = torch.randperm(case.m, device="cuda")[:rows]
    before = problem.d[pick].double() if case.epilogue == "wgrad" else 0
    run()
    a, b = problem.a16[pick].double(), problem.b16.double()
    acc, magnitude = a @ b.T, a.abs() @ b.abs().T
    scale = problem.b.amax.double() / (6 * problem.b.e4m3_max)
    if case.kind == "w4a4":
        x, y = problem.operands()
        scale = (x.row_amax()[pick, None].double() * y.row_amax().double()) / (36 * x.e4m3_max * y.e4m3_max)
    expected = acc * scale + before
    if case.epilogue == "full":
        expected = expected + problem.bias.double() + problem.c[pick].double()
    eps = 2.0**-23 if problem.d.dtype == torch.float32 else 2.0**-8
    bound = magnitude * scale.abs() * 2.0**-20 + expected.abs() * eps + 1e-30
    worst = ((problem.d[pick].double() - expected).abs() / bound).max().item()
    if not worst <= 1:
        raise SystemExit(f"{case.name}: D is wrong, {worst:.3g} times the bound")
    return f"{worst:.2f}"


def quack(problem: Problem) -> Callable[[], object] | None:
    """quack's W4A16, the weight packed by itself beforehand, if it is installed and takes the shape."""
    if problem.case.kind != "w4a16":
        return None
    try:
        from quack.gemm_w4 import gemm_w4a16, prepare_w4_weight

        blob, scales = prepare_w4_weight(problem.b.codes, problem.b.compact_scales(), "nvfp4")
        gemm_w4a16(problem.a, blob, scales, out=problem.d16, wformat="nvfp4")
    except Exception as error:  # a peer that does not run is reported and left out
        print(f"quack does not run {problem.case.name}: {type(error).__name__}: {str(error)[:200]}")
        return None
    return lambda: gemm_w4a16(problem.a, blob, scales, out=problem.d16, wformat="nvfp4")


TUNING = {
    "w4a4": (
        *(replace(pair, staged=True, swap_ab=swap) for pair in sm90.PAIRS for swap in (False, True)),
        replace(sm90.WIDE, staged=True, raster_group=32),
        replace(sm90.WIDE, staged=True, steps_per_group=1),
        replace(sm90.WIDE, staged=True, tile_m=256, tile_n=128, fragment_registers=32),
        sm90.DECODED,
    ),
    "w4a16": tuple(
        replace(pair, swap_ab=True, decode_to="bfloat16", **change)
        for pair in sm90.PAIRS
        for change in ({}, {"store_passes": 4}, {"steps_per_group": 1}, {"raster_group": 32})
    ),
}
"""Configurations beside the heuristic's candidates that a sweep of large products times."""

TUNING_SMALL = tuple(
    replace(sm90.SMALL[0], stream_k=True, **change)
    for change in (
        {"consumer_groups": 4},
        {"consumer_groups": 4, "steps_per_group": 2},
        {"tile_m": 128, "consumer_groups": 1},
        {"tile_m": 512, "consumer_groups": 4, "k_blocks": 2},
        {"k_blocks": 2},
        {"steps_per_group": 2},
    )
)
"""The same for up to 16 rows: more or fewer warps that decode, shorter or longer pieces of a row."""


def sweep_configs(case: Case) -> dict[str, choice.AnyConfig]:
    """The heuristic's candidates for a case, by a short name."""
    base = sm90.GemmShape(case.m, case.n, case.k, activations="nvfp4" if case.kind == "w4a4" else "bfloat16")
    configs = sm90.candidates(base)
    if case.m >= 1024:
        configs = [config for config in configs if config.tile_n >= 128] + list(TUNING[case.kind])
    elif case.m > 64:
        configs = [config for config in configs if config.tile_n >= 64]
    if case.m <= 16:
        configs += [replace(config, decode_to=configs[0].decode_to) for config in TUNING_SMALL]
    fitted = [with_most_stages(config, *base.operands(config), base.staged_store) for config in configs]
    few = small_m.candidates(case.m, case.n, case.k, 1, base.activations, 132) if case.m <= 64 else []
    return {describe(config): config for config in (*fitted, *few)}


def describe(c: choice.AnyConfig) -> str:
    if isinstance(c, SmallMConfig):
        warps = f"{c.row_warps}x{c.k_warps}"
        return f"few {c.row_tiles * 16}x{c.n_tiles * 8} cluster {c.cluster} warps {warps} depth {c.depth} {c.decode_to}"
    share = "stream" if c.stream_k else f"s{c.splits}"
    side = "ba" if c.swap_ab else "ab"
    stages = (
        f"l{c.load_stages}m{c.mma_stages}p{c.store_passes}g{c.steps_per_group}f{c.fragment_registers}r{c.raster_group}"
        f"c{c.consumer_groups}"
    )
    way = "staged" if c.staged else f"d{c.decode_groups}"
    return f"{side} {c.tile_m}x{c.tile_n}x{c.tile_k} {share} {way} cl{c.cluster} {stages} {c.decode_to}"


def run_case(case: Case, table: Table, sweep: bool, rounds: int) -> None:
    problem = Problem(case)
    runs: dict[str, Callable] = {"cublas": problem.cublas()}
    if sweep:
        for name, config in sweep_configs(case).items():
            run = problem.with_config(config)
            if run is not None:
                runs[name] = run
    else:
        runs["cutefp4"] = problem.ours()
        if (peer := quack(problem)) is not None:
            runs["quack"] = peer
    errors = {name: check(problem, run) for name, run in runs.items() if name not in ("cublas", "quack")}
    variants = [Variant(name, lambda _, run=run: run()) for name, run in runs.items()]
    timings = measure(variants, rounds=rounds, clock=EventClock())
    baseline = timings["cublas"].median
    chosen = describe(choice.choose(request_of(case), 132))
    for name, timing in timings.items():
        row = table.add(
            {"case": case.name, "m": case.m, "n": case.n, "k": case.k},
            timing,
            tflops=round(timing.tflops(case.flop), 1),
            gb_per_s=round(timing.bandwidth(case.nbytes), 1),
            over_cublas=round(baseline / timing.median, 4),
            error_over_bound=errors.get(name, ""),
            config=chosen if name == "cutefp4" else name,
        )
        print(
            f"{case.name:32s} {name:60s} {timing.us:9.1f} us {row['tflops']:7.1f} TF/s {row['gb_per_s']:7.0f} GB/s "
            f"{row['over_cublas']:.3f}x {chosen if name == 'cutefp4' else ''}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", default=list(SUITES), choices=[*SUITES, []])
    parser.add_argument("--sweep", action="store_true", help="time the heuristic's candidates")
    parser.add_argument("--only", default="", help="regular expression that a case's name must contain")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default="perf/results/gemm_sm90")
    arguments = parser.parse_args()
    table = Table()
    cases = [case for suite in arguments.suites for case in SUITES[suite] if re.search(arguments.only, case.name)]
    if arguments.sweep:
        plans = [plan_of(case, config) for case in cases for config in sweep_configs(case).values()]
        warmup([plan for plan in plans if plan is not None])
    for case in cases:
        run_case(case, table, arguments.sweep, arguments.rounds)
        table.write(arguments.out + ("_sweep" if arguments.sweep else ""))


if __name__ == "__main__":
    main()
