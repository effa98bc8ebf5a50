"""Quantising E matrices that lie one behind the other along the rows, split at device-resident offsets.

The result is that of a loop of single calls with the same seed and offset: every group has its own outer amax, and the
coordinates of the stochastic rounding are counted within the group. For the columnwise copy each group is first padded
with zero rows to a multiple of 64. Rows behind offs[-1] belong to no group: codes, scales and amax are zero there.
"""

from __future__ import annotations

import torch

from cutefp4 import format as nvfp4
from cutefp4.errors import OperandError
from cutefp4.format import BLOCK
from cutefp4.operand import Nvfp4GroupedOperand, Nvfp4Operand
from cutefp4.recipe import QuantRecipe
from cutefp4.reference.quantize import as_int, check_input, quantize
from cutefp4.scale_layout import (
    TILE_K,
    TILE_ROWS,
    grouped_k_bound,
    grouped_rows_bound,
    padded_starts,
    round_up,
)


def group_ranges(offs: torch.Tensor, total: int, device: torch.device) -> list[tuple[int, int]]:
    """(begin, end) of every group, checked. Reads `offs` on the host.

    Raises:
        OperandError: offs is not a 1-D int32 tensor on `device` of non-decreasing end offsets in [0, total].
    """
    if not isinstance(offs, torch.Tensor) or offs.dtype != torch.int32 or offs.dim() != 1 or offs.numel() == 0:
        what = f"{offs.dtype} {tuple(offs.shape)}" if isinstance(offs, torch.Tensor) else type(offs).__name__
        raise OperandError(f"offs = {what}", "an int32 tensor (E,) of end offsets", "pass torch.cumsum(sizes) as int32")
    if offs.device != device:
        raise OperandError(f"offs on {offs.device}", f"{device}, where the matrix is", "move offs there")
    ends = offs.tolist()
    starts = [0, *ends[:-1]]
    if any(begin > end for begin, end in zip(starts, ends, strict=True)) or ends[-1] > total:
        raise OperandError(
            f"offs = {ends} over {total} elements",
            "non-decreasing end offsets, none below 0, the last at most the total",
            "offs[g] is where group g ends: cumulative sizes, not the sizes themselves",
        )
    return list(zip(starts, ends, strict=True))


def _given_amax(amax: torch.Tensor, recipe: QuantRecipe, groups: int, total: int, device) -> torch.Tensor:
    shape = (groups,) if recipe.scaling == "tensor" else (total,)
    if not isinstance(amax, torch.Tensor) or amax.dtype != torch.float32 or tuple(amax.shape) != shape:
        what = f"{amax.dtype} {tuple(amax.shape)}" if isinstance(amax, torch.Tensor) else type(amax).__name__
        raise OperandError(
            f"amax = {what} with scaling={recipe.scaling!r}", f"float32 {shape}", "one amax per group or per row"
        )
    if amax.device != device:
        raise OperandError(f"amax on {amax.device}", f"{device}, where x is", "move amax there")
    return amax


def _rows_operand(
    x: torch.Tensor, offs: torch.Tensor, recipe: QuantRecipe, parts: list[Nvfp4Operand | None]
) -> Nvfp4GroupedOperand:
    """Row-ragged operand out of the operands of its groups (None: empty)."""
    (total, k), tiled, groups = x.shape, recipe.scale_layout == "tiled", len(parts)
    shape = (grouped_rows_bound(total, groups), round_up(k // BLOCK, 4)) if tiled else (total, k // BLOCK)
    codes = torch.zeros(total, k // 2, dtype=torch.uint8, device=x.device)
    scales = torch.zeros(shape, dtype=torch.float8_e4m3fn, device=x.device)
    amax = torch.zeros(groups if recipe.scaling == "tensor" else total, dtype=torch.float32, device=x.device)
    starts = [0, *offs.tolist()]
    scale_starts = padded_starts(offs, TILE_ROWS).tolist() if tiled else starts
    for g, part in enumerate(parts):
        if part is None:
            continue
        rows = slice(starts[g], starts[g] + part.rows)
        codes[rows] = part.codes
        scales[scale_starts[g] : scale_starts[g] + part.block_scales.shape[0]] = part.block_scales
        amax[g if recipe.scaling == "tensor" else rows] = part.amax
    return Nvfp4GroupedOperand(
        codes, scales, amax, offs, "rows", total, k, recipe.scaling, recipe.e4m3_max, recipe.scale_layout
    )


def _k_operand(
    x: torch.Tensor, offs: torch.Tensor, recipe: QuantRecipe, parts: list[Nvfp4Operand | None]
) -> Nvfp4GroupedOperand:
    """K-ragged operand (the transposes) out of the operands of its groups (None: empty)."""
    (total, rows), tiled, groups = x.shape, recipe.scale_layout == "tiled", len(parts)
    padded_k, padded_rows = grouped_k_bound(total, groups), round_up(rows, TILE_ROWS)
    shape = (padded_rows * padded_k // BLOCK,) if tiled else (rows, padded_k // BLOCK)
    codes = torch.zeros(rows, padded_k // 2, dtype=torch.uint8, device=x.device)
    scales = torch.zeros(shape, dtype=torch.float8_e4m3fn, device=x.device)
    amax = torch.zeros((groups,) if recipe.scaling == "tensor" else (groups, rows), device=x.device)
    starts = padded_starts(offs, TILE_K).tolist()
    for g, part in enumerate(parts):
        if part is None:
            continue
        begin, end = starts[g], starts[g] + part.k
        codes[:, begin // 2 : end // 2] = part.codes
        if tiled:
            scales[padded_rows * begin // BLOCK : padded_rows * end // BLOCK] = part.block_scales.flatten()
        else:
            scales[:, begin // BLOCK : end // BLOCK] = part.block_scales
        amax[g] = part.amax
    rht = None if recipe.rht == "none" else recipe.rht_sign_mask
    return Nvfp4GroupedOperand(
        codes, scales, amax, offs, "k", rows, total, recipe.scaling, recipe.e4m3_max, recipe.scale_layout, rht
    )


def _group_amax(
    amax: torch.Tensor | None, g: int, rows: slice, recipe: QuantRecipe, columnwise: bool
) -> torch.Tensor | None:
    """The part of a given amax that concerns one copy of one group, in the form that `quantize` takes."""
    if amax is None or rows.start == rows.stop:
        return None
    if recipe.scaling == "tensor":
        return amax[g]
    if recipe.block == "2d":
        return nvfp4.amax(amax[rows])
    return None if columnwise else amax[rows]


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
    """Quantise the groups of a matrix.

    Args:
        x: (total, C), bfloat16, float16 or float32; the rowwise copy needs C to be a multiple of 16.
        offs: int32 (E,), end offsets of the groups along the rows, non-decreasing; empty groups are fine anywhere.
        recipe: how to quantise each group.
        rowwise, columnwise: which copies to make.
        amax: fp32 outer amax of the rowwise copy, (E,) for tensor scaling, (total,) for token scaling. A scalar per
            group also serves the columnwise copy if there is no Hadamard transform. None: computed.
        seed, offset: as in `quantize`; all groups use the same, with coordinates counted within the group.

    Returns:
        (operand with ragged rows (total, C), operand with ragged K (C, total)), None where not wanted. An empty group's
        amax is 0.

    Raises:
        OperandError: a wrong dtype, shape, device or offset.
    """
    check_input(x, rowwise, columnwise, ragged=True)
    ranges = group_ranges(offs, x.shape[0], x.device)
    if amax is not None:
        amax = _given_amax(amax, recipe, len(ranges), x.shape[0], x.device)
    state = {"seed": as_int(seed), "offset": as_int(offset)}
    by_row: list[Nvfp4Operand | None] = []
    by_column: list[Nvfp4Operand | None] = []
    for g, (begin, end) in enumerate(ranges):
        rows = slice(begin, end)
        group = x[rows]
        if rowwise:
            given = _group_amax(amax, g, rows, recipe, columnwise=False)
            by_row.append(quantize(group, recipe, amax=given, **state)[0] if begin < end else None)
        if columnwise:
            given = _group_amax(amax, g, rows, recipe, columnwise=True)
            padded = torch.nn.functional.pad(group, (0, 0, 0, -(end - begin) % TILE_K))
            only = {"rowwise": False, "columnwise": True, "amax": given, **state}
            by_column.append(quantize(padded, recipe, **only)[1] if begin < end else None)
    return (
        _rows_operand(x, offs, recipe, by_row) if rowwise else None,
        _k_operand(x, offs, recipe, by_column) if columnwise else None,
    )
