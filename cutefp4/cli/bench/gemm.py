"""GEMM against cuBLAS on the same decoded values, dequantise + cuBLAS, and quack's W4A16 where it is installed.

Every variant of a case runs in one process, interleaved, the L2 cache overwritten before each call. A product is
compared with the oracle before it is timed (see `cutefp4.cli.sweep.check`). Operands are quantised normal data.

    cutefp4    the public operation with the heuristic's configuration, or that of a tuned table
    cublas     torch.matmul of the decoded operands in bf16; with a fused addend addmm, into fp32 a product and an add_
    two-step   both packed operands decoded by cutefp4's kernel, then cuBLAS: what a library without such a GEMM does
    quack      quack.gemm_w4 (W4A16), its weight packed beforehand
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from cutefp4 import launch, ops_quantize
from cutefp4.cli.bench import kernel_columns
from cutefp4.cli.bench.session import Session, replay
from cutefp4.cli.roofline import ROOFS
from cutefp4.cli.sweep.case import Case, Operands
from cutefp4.cli.sweep.check import Checker
from cutefp4.cli.sweep.operations import operation_plans
from cutefp4.cli.sweep.run import cublas, figures
from cutefp4.cli.sweep.target import describe, target_for
from cutefp4.operand import Nvfp4Operand
from cutefp4.plan import Plan
from cutefp4.timing import EventClock, Variant, measure

EPILOGUES = {
    "plain": ("te", "none"),
    "alpha": ("per_token", "none"),
    "bias": ("per_token", "bias"),
    "gelu": ("per_token", "bias_gelu"),
    "full": ("per_token", "bias_add"),
    "wgrad": ("per_token", "accumulate"),
}
"""Name in the tables: training recipe, epilogue. plain: one outer scale a tensor; alpha: one a row and column; full:
also bias and + C; wgrad: added to a gradient in fp32."""


def case(kind: str, m: int, n: int, k: int, epilogue: str = "alpha") -> tuple[str, Case]:
    """A product by its GEMM sizes, with its name in the tables."""
    recipe, name = EPILOGUES[epilogue]
    return f"{kind} {m}x{n}x{k} {epilogue}", Case("TN", m, n, k, kind, recipe, name)


CASES = dict(
    [case("w4a4", *s) for s in ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 7168, 2048), (128, 4096, 4096))]
    + [case("w4a4", m, n, k) for m in (1, 16, 64, 128, 256) for n, k in ((7168, 16384), (8192, 8192))]
    + [case("w4a16", m, 8192, 8192) for m in (1, 16, 64, 256, 1024, 4096, 8192)]
    + [case("w4a16", m, 7168, 16384) for m in (1, 16, 64, 1024)]
    + [case("w4a16", 4096, 4096, 4096)]
    + [case("w4a4", 4096, 4096, 4096, e) for e in ("plain", "bias", "gelu", "full")]
    + [case("w4a4", 16384, 7168, 2048, e) for e in ("plain", "full")]
    + [case("w4a4", 7168, 2048, tokens, "wgrad") for tokens in (512, 2048)]
)
README = (
    "w4a4 1x7168x16384 alpha", "w4a4 16x7168x16384 alpha", "w4a4 64x7168x16384 alpha", "w4a4 128x4096x4096 alpha",
    "w4a4 4096x4096x4096 alpha", "w4a4 8192x8192x8192 alpha", "w4a4 16384x7168x2048 alpha",
    "w4a4 7168x2048x512 wgrad", "w4a16 1x8192x8192 alpha", "w4a16 16x8192x8192 alpha", "w4a16 64x8192x8192 alpha",
    "w4a16 1024x8192x8192 alpha", "w4a16 8192x8192x8192 alpha",
)  # fmt: skip
"""Products that README shows; measured first."""
QUICK = ("w4a4 1x7168x16384 alpha", "w4a4 4096x4096x4096 alpha", "w4a16 16x8192x8192 alpha",
         "w4a4 7168x2048x512 wgrad")  # fmt: skip


def _two_step(operands: Operands) -> Callable[[], object]:
    """Decode what is packed, then multiply in bf16."""
    packed = [x for x in (operands.a, operands.b) if isinstance(x, Nvfp4Operand)]
    decoded: list[torch.Tensor] = []
    decode = replay(lambda: decoded.extend(ops_quantize.dequantize(x, torch.bfloat16) for x in packed))
    a, b = decoded if len(decoded) == 2 else (operands.a, *decoded)
    d = torch.empty(operands.case.m, operands.case.n, dtype=torch.bfloat16, device=b.device)

    def run() -> torch.Tensor:
        decode()
        return torch.matmul(a, b.T, out=d)

    return run


def quack(operands: Operands) -> tuple[Callable[[], object] | None, str]:
    """quack's W4A16, or why there is none."""
    if operands.case.kind != "w4a16":
        return None, "W4A16 only"
    try:
        from quack.gemm_w4 import gemm_w4a16, prepare_w4_weight

        blob, scales = prepare_w4_weight(operands.b.codes, operands.b.compact_scales(), "nvfp4")
        d = torch.empty(operands.case.m, operands.case.n, dtype=torch.bfloat16, device=operands.a.device)
        gemm_w4a16(operands.a, blob, scales, out=d, wformat="nvfp4")
    except Exception as error:  # a peer that does not run is reported and left out
        return None, f"{type(error).__name__}: {str(error)[:160]}"
    return lambda: gemm_w4a16(operands.a, blob, scales, out=d, wformat="nvfp4"), ""


def run_case(session: Session, name: str, product: Case, arch: str) -> None:
    """Check, time, add the rows."""
    checker = Checker(product, "cuda")
    verdict = checker.verdict(lambda operands, d: operands.run(d))
    operands = checker.normal
    if "WRONG" in verdict:
        session.say(f"{name}: {verdict}")
        session.table.add({"case": name, "variant": "cutefp4", "check": verdict})
        return
    d = torch.zeros_like(operands.fresh_d())
    baseline = cublas(operands)
    runs = {"cutefp4": replay(lambda: operands.run(d)), "cublas": lambda: baseline(0)}
    if product.epilogue in ("none", "bias") and product.m >= 64:
        runs["two-step"] = _two_step(operands)
    peer, reason = quack(operands)
    if peer is not None:
        runs["quack"] = peer
    elif reason != "W4A16 only":
        session.say(f"{name}: quack does not run: {reason}")
    variants = [Variant(variant, lambda _, run=run: run()) for variant, run in runs.items()]
    timings = measure(variants, rounds=session.rounds(10), clock=EventClock())
    plans = operation_plans(product, target_for(arch, product, launch.sm_count(operands.b.device)))
    made = {"config": "; ".join(describe(plan.config) for plan in plans if hasattr(plan, "config"))}
    made |= {"check": verdict, **kernel_columns.columns(plans)}
    for variant, timing in timings.items():
        speeds = figures(product, arch, timing.us)
        del speeds["us"]
        session.table.add(
            {"case": name, "kind": product.kind, "m": product.m, "n": product.n, "k": product.k},
            timing,
            **speeds,
            over_cublas=round(timings["cublas"].median / timing.median, 4),
            percent_of_wgmma=round(100 * timing.tflops(product.flop) * 1e12 / ROOFS[arch].flops, 1),
            **(made if variant == "cutefp4" else {}),
        )
    ours, theirs = timings["cutefp4"], timings["cublas"]
    session.say(f"{name}: {ours.us:.1f} us, cuBLAS {theirs.us:.1f} us, {theirs.us / ours.us:.2f}x; {verdict}")


def _cases(quick: bool, arch: str) -> dict[str, Case]:
    """The most important first."""
    names = QUICK if quick else dict.fromkeys((*README, *CASES))
    return {name: CASES[name] for name in names if arch == "sm_90a" or CASES[name].kind == "w4a4"}


def plans(quick: bool) -> list[Plan]:
    """What `bench` launches, to be compiled ahead."""
    device = torch.device("cuda", torch.cuda.current_device())
    arch, sms = launch.arch_of(device), launch.sm_count(device)
    targets = ((product, target_for(arch, product, sms)) for product in _cases(quick, arch).values())
    return [plan for product, target in targets for plan in operation_plans(product, target)]


def bench(session: Session) -> None:
    """All cases."""
    arch = launch.arch_of(torch.device("cuda", torch.cuda.current_device()))
    session.table.environment["roof"] = ROOFS[arch].name
    kernel_columns.of_plans(plans(session.quick))  # disassembled in parallel, before the GPU has to wait for it
    for name, product in _cases(session.quick, arch).items():
        if session.may_start(name):
            run_case(session, name, product, arch)
