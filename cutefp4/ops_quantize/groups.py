"""quantize_grouped: row groups at device-resident offsets."""

from __future__ import annotations

import torch

from cutefp4.format import BLOCK
from cutefp4.operand import Nvfp4GroupedOperand
from cutefp4.ops_quantize.amax import RowGroups, outer_amaxes
from cutefp4.ops_quantize.cast import cast_tiles
from cutefp4.ops_quantize.launches import check_rows, recipe_text
from cutefp4.ops_quantize.outputs import random_state
from cutefp4.recipe import QuantRecipe
from cutefp4.scale_layout import grouped_k_bound, grouped_rows_bound, round_up


def _without_empty(amax: torch.Tensor, offs: torch.Tensor, recipe: QuantRecipe, total: int) -> torch.Tensor:
    """A caller's amaxes with zeros for empty groups, or for rows behind the last group."""
    if recipe.scaling == "tensor":
        inside = torch.diff(offs, prepend=offs.new_zeros(1)) > 0
    else:
        inside = torch.arange(total, device=offs.device) < offs[-1]
    return torch.where(inside, amax, torch.zeros_like(amax))


def _groups_of_rows(offs: torch.Tensor, total: int) -> torch.Tensor:
    """(total,): the group of every row, E behind the last group."""
    return torch.searchsorted(offs, torch.arange(total, dtype=offs.dtype, device=offs.device), right=True)


def _largest(amax: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """(E,): the largest of a caller's row amaxes in each group, 0 of empty groups."""
    found = amax.new_zeros(offs.numel() + 1)
    return found.scatter_reduce_(0, _groups_of_rows(offs, amax.numel()), amax, "amax")[:-1]


def _spread(row: torch.Tensor | None, column: torch.Tensor | None, offs: torch.Tensor, total: int, columns: int):
    """Amaxes (E,) of groups, of either copy, as operands with token scaling store them: (total,) and (E, columns)."""
    if row is not None:
        row = torch.cat([row, row.new_zeros(1)])[_groups_of_rows(offs, total)]
    if column is not None:
        column = column[:, None].expand(-1, columns).contiguous()
    return row, column


def quantize_grouped(
    x: torch.Tensor,
    offs: torch.Tensor,
    recipe: QuantRecipe,
    *,
    rowwise: bool = True,
    columnwise: bool = False,
    amax: torch.Tensor | None = None,
    seed: int | torch.Tensor = 0,
    offset: int | torch.Tensor = 0,
) -> tuple[Nvfp4GroupedOperand | None, Nvfp4GroupedOperand | None]:
    """Quantise row groups at device-resident offsets, without a host sync: one launch maps the tiles of all groups, one
    measures, one casts.

    Arguments and results are those of `cutefp4.reference.grouped.quantize_grouped`.
    """
    if x.stride(1) != 1:
        x = x.contiguous()
    (total, n), groups, device = x.shape, offs.numel(), x.device
    check_rows(total + 128 * groups)
    offs = offs.contiguous()
    tiled = recipe.scale_layout == "tiled"
    # 16x16 blocks have one amax per group, whatever the scaling; token scaling stores it for every row and column.
    spread = recipe.scaling == "token" and recipe.block == "2d"
    if amax is not None:
        amax = _largest(amax, offs) if spread else _without_empty(amax, offs, recipe, total)
    random = random_state(x, recipe, seed, offset)
    row_groups = RowGroups.of(offs, total)
    amaxes = outer_amaxes(x, recipe, (rowwise, columnwise), (amax, None), row_groups)
    kernel = [amaxes[0] if amaxes[0] is not None else amaxes[1], amaxes[1] if amaxes[1] is not None else amaxes[0]]

    def empty(*shape):
        return torch.empty(shape, dtype=torch.uint8, device=device)

    padded_k, padded_n = grouped_k_bound(total, groups), round_up(n, 128)
    row_codes = row_scales = column_codes = column_scales = None
    if rowwise:
        row_codes = empty(total, n // 2)
        tiles = (grouped_rows_bound(total, groups), round_up(n // BLOCK, 4))
        row_scales = empty(*tiles) if tiled else empty(total, n // BLOCK)
    if columnwise:
        column_codes = empty(n, padded_k // 2)
        column_scales = empty(padded_n * padded_k // BLOCK) if tiled else empty(n, padded_k // BLOCK)
    text = recipe_text(recipe)
    cast_tiles(x, text, row_codes, column_codes, row_scales, column_scales, *kernel, random, row_groups.places)
    if spread:
        amaxes = _spread(*amaxes, offs, total, n)
    fields = {"scaling": recipe.scaling, "e4m3_max": recipe.e4m3_max, "scale_layout": recipe.scale_layout}
    rht = None if recipe.rht == "none" else recipe.rht_sign_mask
    e4m3 = torch.float8_e4m3fn
    return (
        Nvfp4GroupedOperand(row_codes, row_scales.view(e4m3), amaxes[0], offs, "rows", total, n, **fields)
        if rowwise
        else None,
        Nvfp4GroupedOperand(column_codes, column_scales.view(e4m3), amaxes[1], offs, "k", n, total, rht=rht, **fields)
        if columnwise
        else None,
    )
