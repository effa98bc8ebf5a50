"""swiglu_quantize: the activation in front of the quantiser, fused where one read suffices."""

from __future__ import annotations

import torch

from cutefp4 import compile as kernel_cache
from cutefp4.launch import Operator, arch_of
from cutefp4.operand import Nvfp4Operand
from cutefp4.ops_quantize.cast import cast_rows
from cutefp4.ops_quantize.launches import DTYPES, gated_width, recipe_text, remembered
from cutefp4.ops_quantize.matrix import quantize
from cutefp4.ops_quantize.outputs import allocate, make_operand, random_state
from cutefp4.quant_plan import SwigluPlan
from cutefp4.recipe import QuantRecipe


def _swiglu_plan(dtype, layout: str, vector: int, device):
    return (SwigluPlan(arch_of(device), DTYPES[dtype], layout, vector),)


def _swiglu(x, h, layout: str) -> None:
    (plan,) = remembered(_swiglu_plan, x.dtype, layout, gated_width(x, layout), x.device)
    kernel_cache.get(plan)(x, h)


swiglu = Operator("swiglu(Tensor x, Tensor(a!) h, str layout) -> ()", _swiglu)


def swiglu_quantize(
    x: torch.Tensor,
    recipe: QuantRecipe,
    interleave: int | None = None,
    *,
    rowwise: bool = True,
    columnwise: bool = False,
    seed: int | torch.Tensor = 0,
    offset: int | torch.Tensor = 0,
) -> tuple[Nvfp4Operand | None, Nvfp4Operand | None]:
    """quantize(silu(gate) * up); arguments and results are those of `cutefp4.reference.swiglu.swiglu_quantize`.

    The rowwise copy of 1x16 blocks with token scaling is one kernel that never writes the product; otherwise the
    product is written once and quantised.
    """
    if x.stride(1) != 1:
        x = x.contiguous()
    m, width = x.shape[0], x.shape[1] // 2
    layout = "halves" if interleave is None else str(interleave)
    if not columnwise and recipe.block == "1d" and recipe.scaling == "token":
        row = allocate(x, (), m, width, recipe.scale_layout)
        amax = torch.empty(m, dtype=torch.float32, device=x.device)
        random = random_state(x, recipe, seed, offset)
        cast_rows(x, recipe_text(recipe), row.codes, row.scales.view(-1), amax, random, False, layout)
        return make_operand(recipe, row, amax), None
    h = torch.empty(m, width, dtype=x.dtype, device=x.device)
    swiglu(x, h, layout)
    return quantize(h, recipe, rowwise=rowwise, columnwise=columnwise, seed=seed, offset=offset)
