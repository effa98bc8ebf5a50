"""swiglu_quantize, deinterleave_quantize: gate and up projections in front of the quantiser.

    rowwise copy of 1x16 blocks, token scaling or amax given    one kernel that never writes silu(gate) * up
    everything else                                             the product is written (with its amax, where a scalar is
                                                                wanted) and quantised

De-interleaving is a matter of addresses in the rowwise cast; for other copies x is rearranged once.
"""

from __future__ import annotations

import torch

from cutefp4 import compile as kernel_cache
from cutefp4.launch import Operator, arch_of, sm_count
from cutefp4.operand import Nvfp4Operand
from cutefp4.ops_quantize.amax import combined, is_small, measured, partial_amaxes
from cutefp4.ops_quantize.cast import cast_rows
from cutefp4.ops_quantize.launches import DTYPES, check_rows, gated_width, recipe_text, remembered, unused
from cutefp4.ops_quantize.matrix import quantize
from cutefp4.ops_quantize.outputs import allocate, make_operand, random_state
from cutefp4.quant_plan import SwigluPlan
from cutefp4.recipe import QuantRecipe

Operands = tuple[Nvfp4Operand | None, Nvfp4Operand | None]


def _swiglu_plan(dtype, layout: str, vector: int, measure: bool, device):
    plan = SwigluPlan(arch_of(device), DTYPES[dtype], layout, vector, measure)
    # A thread that measures walks over rows, so that few atomics remain.
    return plan, 8 * sm_count(device) if measure else 65535


def _swiglu(x, h, layout: str, amax=None) -> None:
    plan, rows = remembered(_swiglu_plan, x.dtype, layout, gated_width(x, layout), amax is not None, x.device)
    kernel_cache.get(plan)(x, h, unused(x.device, torch.float32) if amax is None else amax.view(-1), rows)


swiglu = Operator("swiglu(Tensor x, Tensor(a!) h, str layout, Tensor(b!)? amax=None) -> ()", _swiglu)


def _readable(x: torch.Tensor, interleave: int | None) -> tuple[torch.Tensor, str]:
    """x with rows of adjacent elements, and its layout; chunks that are no multiple of 8 columns become halves."""
    if interleave is not None and interleave % 8:
        return deinterleaved(x, interleave), "halves"
    return x if x.stride(1) == 1 else x.contiguous(), "halves" if interleave is None else str(interleave)


def deinterleaved(x: torch.Tensor, interleave: int) -> torch.Tensor:
    """x (M, 2I) with its gate columns before its up columns, in new memory."""
    return x.unflatten(1, (-1, 2, interleave)).transpose(1, 2).reshape(x.shape)


def _is_rowwise(recipe: QuantRecipe, rowwise: bool, columnwise: bool) -> bool:
    return rowwise and not columnwise and recipe.block == "1d"


def _cast_rowwise(x, columns: int, recipe: QuantRecipe, amax, state: dict, **source) -> Operands:
    """The rowwise copy by `cast_rows`, which finds the amax of each row if it is not given."""
    row = allocate(x, (), x.shape[0], columns, recipe.scale_layout)
    random, given = random_state(x, recipe, **state), amax is not None
    if amax is None:
        amax = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    scales = row.scales.view(-1)
    cast_rows(x, recipe_text(recipe), row.codes, scales, amax.view(-1), random, given, *source.values())
    return make_operand(recipe, row, combined(amax, recipe)), None


def swiglu_quantize(
    x: torch.Tensor,
    recipe: QuantRecipe,
    interleave: int | None = None,
    *,
    rowwise: bool = True,
    columnwise: bool = False,
    amax: torch.Tensor | None = None,
    columnwise_amax: torch.Tensor | None = None,
    seed: int | torch.Tensor = 0,
    offset: int | torch.Tensor = 0,
) -> Operands:
    """quantize(silu(gate) * up); arguments and results are those of `cutefp4.reference.swiglu.swiglu_quantize`."""
    (m, width), state = x.shape, {"seed": seed, "offset": offset}
    check_rows(m)
    x, layout = _readable(x, interleave)
    if _is_rowwise(recipe, rowwise, columnwise) and (recipe.scaling == "token" or amax is not None):
        return _cast_rowwise(x, width // 2, recipe, amax, state, swiglu=layout)
    h = torch.empty(m, width // 2, dtype=x.dtype, device=x.device)
    scalar = recipe.scaling == "tensor" or recipe.block == "2d"
    if scalar and amax is None and (rowwise or (recipe.rht == "none" and columnwise_amax is None)):
        amax = torch.zeros((), dtype=torch.float32, device=x.device)
        swiglu(x, h, layout, amax)
    else:
        swiglu(x, h, layout, None)
    given = {"amax": amax, "columnwise_amax": columnwise_amax}
    return quantize(h, recipe, rowwise=rowwise, columnwise=columnwise, **given, **state)


def deinterleave_quantize(
    x: torch.Tensor,
    recipe: QuantRecipe,
    interleave: int | None = None,
    *,
    rowwise: bool = True,
    columnwise: bool = False,
    amax: torch.Tensor | None = None,
    columnwise_amax: torch.Tensor | None = None,
    seed: int | torch.Tensor = 0,
    offset: int | torch.Tensor = 0,
) -> Operands:
    """quantize([gate | up]); arguments and results are those of `cutefp4.reference.swiglu.deinterleave_quantize`."""
    state = {"seed": seed, "offset": offset}
    check_rows(x.shape[0])
    if interleave is not None and _is_rowwise(recipe, rowwise, columnwise) and interleave % 8 == 0:
        x, layout = _readable(x, interleave)
        if amax is None and recipe.scaling == "tensor":
            amax = partial_amaxes(x) if is_small(x) else measured(x, recipe, True, False)[0]
        return _cast_rowwise(x, x.shape[1], recipe, amax, state, swiglu="none", deinterleave=layout)
    h = x if interleave is None else deinterleaved(x, interleave)
    given = {"amax": amax, "columnwise_amax": columnwise_amax}
    return quantize(h, recipe, rowwise=rowwise, columnwise=columnwise, **given, **state)
