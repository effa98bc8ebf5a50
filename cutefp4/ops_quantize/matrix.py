"""quantize: one matrix or a batch."""

from __future__ import annotations

import torch

from cutefp4.operand import Nvfp4Operand
from cutefp4.ops_quantize.amax import is_small, measured, outer_amaxes, partial_amaxes, scalar_amax, stored_amax
from cutefp4.ops_quantize.cast import cast_rows, cast_tiles
from cutefp4.ops_quantize.launches import check_rows, recipe_text
from cutefp4.ops_quantize.outputs import Copy, allocate, make_operand, random_state
from cutefp4.recipe import QuantRecipe


def _quantize_matrix(x, recipe: QuantRecipe, given: tuple, random, row: Copy | None, column: Copy | None):
    """Cast one matrix into allocated copies; returns their outer amaxes as operands store them."""
    text = recipe_text(recipe)
    if x.stride(1) != 1:
        x = x.contiguous()
    rowwise_blocks = column is None and recipe.block == "1d"
    if rowwise_blocks and given[0] is None and recipe.scaling == "tensor" and is_small(x):
        amax = partial_amaxes(x)
        cast_rows(x, text, row.codes, row.scales.view(-1), amax, random, True, "none")
        return amax[0], None
    # On (16384, 6144) with tensor scaling, by rows and by tiles: strict 4over6 103 and 145 us, stochastic rounding 75
    # and 79 (in tiles it keeps 83 registers, for two CTAs an SM, or spills).
    if rowwise_blocks and (
        recipe.scaling == "token" or recipe.four_over_six != "none" or recipe.rounding == "stochastic"
    ):
        amax, found = given[0], given[0] is None and recipe.scaling == "token"
        if found:
            amax = torch.empty(row.rows, dtype=torch.float32, device=x.device)
        elif amax is None:
            amax = measured(x, recipe, True, False)[0]
        cast_rows(x, text, row.codes, row.scales.view(-1), amax.view(-1), random, not found, "none")
        return amax, None
    given = tuple(scalar_amax(a, recipe) for a in given)
    amaxes = outer_amaxes(x, recipe, (row is not None, column is not None), given)
    kernel = [amaxes[0] if amaxes[0] is not None else amaxes[1], amaxes[1] if amaxes[1] is not None else amaxes[0]]
    cast_tiles(
        x,
        text,
        row.codes if row else None,
        column.codes if column else None,
        row.scales if row else None,
        column.scales if column else None,
        *kernel,
        random,
        None,
    )
    stored = [stored_amax(a, recipe, c.rows) if c else None for a, c in zip(amaxes, (row, column), strict=True)]
    return stored[0], stored[1]


def quantize(
    x: torch.Tensor,
    recipe: QuantRecipe,
    *,
    rowwise: bool = True,
    columnwise: bool = False,
    amax: torch.Tensor | None = None,
    columnwise_amax: torch.Tensor | None = None,
    seed: int | torch.Tensor = 0,
    offset: int | torch.Tensor = 0,
) -> tuple[Nvfp4Operand | None, Nvfp4Operand | None]:
    """Quantise on the device that holds x; arguments and results are those of `cutefp4.reference.quantize`."""
    batch, (m, n), layout = tuple(x.shape[:-2]), x.shape[-2:], recipe.scale_layout
    check_rows(m)
    random = random_state(x, recipe, seed, offset)
    row = allocate(x, batch, m, n, layout) if rowwise else None
    column = allocate(x, batch, n, m, layout) if columnwise else None
    if not batch:
        amaxes = _quantize_matrix(x, recipe, (amax, columnwise_amax), random, row, column)
    else:
        amaxes = _quantize_batch(x, recipe, (amax, columnwise_amax), random, row, column)
    rht = None if recipe.rht == "none" else recipe.rht_sign_mask
    return (
        make_operand(recipe, row, amaxes[0]) if rowwise else None,
        make_operand(recipe, column, amaxes[1], rht) if columnwise else None,
    )


def _quantize_batch(x, recipe: QuantRecipe, given: tuple, random, row: Copy | None, column: Copy | None):
    """One launch per matrix, written in place; the amaxes are gathered."""
    found = []
    for i in range(x.shape[0]):
        copies = [c and Copy(c.codes[i], c.scales[i], c.rows, c.k) for c in (row, column)]
        found.append(_quantize_matrix(x[i], recipe, tuple(a if a is None else a[i] for a in given), random, *copies))
    return tuple(torch.stack(a) if a[0] is not None else None for a in zip(*found, strict=True))
