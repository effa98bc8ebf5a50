"""The public operation of a case: what it would launch, and how to make it launch a given configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import launch, tuned
from cutefp4.cli.sweep.case import EPILOGUES, Case, Operands
from cutefp4.cli.sweep.target import Target
from cutefp4.operand import Nvfp4Operand
from cutefp4.plan import Plan
from cutefp4.recipe import QuantRecipe
from cutefp4.scale_layout import scale_shape
from cutefp4.tuned import TunedEntry


def entry_of(
    target: Target, case: Case, config: Any, sms: int | None = None, measured: dict | None = None
) -> TunedEntry:
    """The line of a tuned table that makes the operation use a configuration for a case."""
    problem = target.request(case).problem(target.sms if sms is None else sms)
    return TunedEntry("gemm", target.arch, problem, config, measured or {})


def launcher(entry: TunedEntry, operands: Operands, d: torch.Tensor) -> Callable[[int], object]:
    """The kernels that the operation launches with a configuration, without the operation around them."""
    with tuned.use([entry]), kernel_cache.trace() as launches:
        operands.run(d)
    if entry.config not in [getattr(plan, "config", None) for plan, _, _ in launches]:
        raise RuntimeError(f"{operands.case.name}: the operation did not use {entry.config}")

    def run(_: int) -> None:
        for _, kernel, arguments in launches:
            kernel(*arguments)

    return run


def operation_plans(case: Case, target: Target) -> list[Plan]:
    """The plans that the public operation uses for a case, with the tuned tables that are loaded. Launches nothing."""
    recipe_a, recipe_b = case.recipes()
    b = _empty_operand(case.n, case.k, recipe_b)
    a = _empty_operand(case.m, case.k, recipe_a)
    if case.kind == "w4a16":
        a = torch.empty(case.m, case.k, dtype=torch.bfloat16)
    options = EPILOGUES[case.epilogue]
    bias = torch.empty(case.n, dtype=torch.bfloat16) if "bias" in options else None
    d = torch.empty(case.m, case.n, dtype=case.out_dtype)
    c = torch.empty(case.m, case.n, dtype=getattr(torch, options["c"])) if "c" in options else None
    with launch.cpu_target(target.arch, target.sms), kernel_cache.record() as plans:
        Operands(case, a, b, bias, c).run(d)
    return list(plans)


def _empty_operand(rows: int, k: int, recipe: QuantRecipe) -> Nvfp4Operand:
    amax = torch.ones(rows) if recipe.scaling == "token" else torch.ones(())
    scales = torch.empty(scale_shape(rows, k, "tiled"), dtype=torch.float8_e4m3fn)
    codes = torch.empty(rows, k // 2, dtype=torch.uint8)
    return Nvfp4Operand(codes, scales, amax, recipe.scaling, recipe.e4m3_max, "tiled")
