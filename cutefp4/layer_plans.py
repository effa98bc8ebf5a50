"""Which kernels a linear layer needs: the operations are called on empty tensors, and the plans they ask for are noted.

So nothing here knows how plans are chosen, and nothing can disagree with it. No GPU, no compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import launch, ops
from cutefp4.errors import UnsupportedError
from cutefp4.operand import Nvfp4Operand
from cutefp4.plan import Plan
from cutefp4.recipe import QuantRecipe, TrainingRecipe
from cutefp4.scale_layout import scale_shape

SMS = {"sm_90a": 132, "sm_100a": 148, "sm_103a": 148}
"""Multiprocessors of H100/H200, B200 and B300: what plans are chosen for if the GPU is not here."""


@dataclass
class LayerPlans:
    """Plans of the kernels that a layer launches, and what has no kernel.

    Attributes:
        plans: distinct, in the order of the calls.
        missing: "what: why" of each call that the kernels do not serve.
    """

    plans: list[Plan] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def linear_layer(recipe: TrainingRecipe, m: int, n: int, k: int, dtype: torch.dtype, arch: str, sms: int = 0):
    """Plans of Y = X W^T, X (m, k), W (n, k), forward and backward: x, w, dy in either copy or both, three products.

    Args:
        recipe: of x, w and dy.
        dtype: of x, w, dy and the results.
        arch: compiled for; any of `plan.ARCHS`.
        sms: multiprocessors; 0: `SMS[arch]`.
    """
    found = LayerPlans()
    with launch.cpu_target(arch, sms or SMS[arch]), kernel_cache.record() as plans:
        for name, rows, columns in (("x", m, k), ("w", n, k), ("dy", m, n)):
            _quantize(found, name, torch.empty(rows, columns, dtype=dtype), getattr(recipe, name))
        operands = {
            "TN": ((m, k, recipe.x), (n, k, recipe.w)),
            "NN": ((m, n, recipe.dy), (k, n, recipe.w)),
            "NT": ((n, m, recipe.dy), (k, m, recipe.x)),
        }
        for layout, (a, b) in operands.items():
            _gemm(found, layout, _operand(*a), _operand(*b), dtype)
    found.plans = list(plans)
    return found


def _attempt(found: LayerPlans, what: str, call: Callable[[], object]) -> None:
    try:
        call()
    except UnsupportedError as error:
        found.missing.append(f"{what}: {error.given}")


def _quantize(found: LayerPlans, name: str, x: torch.Tensor, recipe: QuantRecipe) -> None:
    quantize = ops.OPERATIONS["quantize"]
    for rowwise, columnwise in ((True, True), (True, False), (False, True)):
        copies = " and ".join(["rowwise"] * rowwise + ["columnwise"] * columnwise)
        _attempt(
            found,
            f"quantize {name} {copies}",
            lambda r=rowwise, c=columnwise: quantize(x, recipe, rowwise=r, columnwise=c),
        )


def _operand(rows: int, k: int, recipe: QuantRecipe) -> Nvfp4Operand:
    amax = torch.ones(rows) if recipe.scaling == "token" else torch.ones(())
    scales = torch.empty(scale_shape(rows, k, recipe.scale_layout), dtype=torch.float8_e4m3fn)
    codes = torch.empty(rows, k // 2, dtype=torch.uint8)
    return Nvfp4Operand(codes, scales, amax, recipe.scaling, recipe.e4m3_max, recipe.scale_layout)


def _gemm(found: LayerPlans, layout: str, a: Nvfp4Operand, b: Nvfp4Operand, dtype: torch.dtype) -> None:
    if "gemm" not in ops.OPERATIONS:
        found.missing.append(f"gemm {layout}: no kernel in this release")
        return
    gemm = ops.OPERATIONS["gemm"]
    _attempt(found, f"gemm {layout}", lambda: gemm(a, b, out_dtype=dtype))
