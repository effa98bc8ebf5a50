"""Outer amaxes that a call does not bring: measured in one read, for either copy, before the cast."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cutefp4 import compile as kernel_cache
from cutefp4.format import BLOCK
from cutefp4.launch import Operator, arch_of, sm_count
from cutefp4.ops_quantize.launches import DTYPES, no_map, remembered, rows_per_cta, unused, width
from cutefp4.quant_plan import MAP_WORDS, PARTIALS, AmaxPartialsPlan, AmaxPlan, GroupMapPlan, HadamardAmaxPlan
from cutefp4.recipe import QuantRecipe
from cutefp4.scale_layout import TILE_ROWS


def _amax_plan(dtype, wanted: tuple, vector: int, partial: bool, grouped: bool, device):
    return AmaxPlan(arch_of(device), DTYPES[dtype], *wanted, vector, partial, grouped), 4 * sm_count(device)


def _hadamard_plan(dtype, rht: str, transformed: str, raw: str, paired: bool, grouped: bool, device):
    plan = HadamardAmaxPlan(arch_of(device), DTYPES[dtype], rht, transformed, raw, paired, grouped)
    return plan, 8 * sm_count(device)


def _measure(x, tensor, rows, columns, offs) -> None:
    partial = bool(x.shape[1] % BLOCK)
    wanted = tuple(t is not None for t in (tensor, rows, columns))
    plan, ctas = remembered(_amax_plan, x.dtype, wanted, width(x, partial), partial, offs is not None, x.device)
    share = rows_per_cta(x.shape[0], -(-x.shape[1] // 512), ctas, 32)
    empty = unused(x.device, torch.float32)
    outputs = [empty if t is None else t.view(-1) for t in (tensor, rows, columns)]
    kernel_cache.get(plan)(x, *outputs, unused(x.device, torch.int32) if offs is None else offs, share)


measure = Operator(
    "measure(Tensor x, Tensor(a!)? tensor, Tensor(b!)? rows, Tensor(c!)? columns, Tensor? offs) -> ()", _measure
)


def _measure_hadamard(x, rht: str, mask: int, transformed, per_column: bool, raw, per_row: bool, places) -> None:
    size = x.element_size()
    paired = size == 4 or not (x.data_ptr() | x.stride(0) * size | x.shape[1] * size) & 3
    scope = "none" if raw is None else "rows" if per_row else "tensor"
    key = (x.dtype, rht, "columns" if per_column else "tensor", scope, paired, places is not None, x.device)
    plan, ctas = remembered(_hadamard_plan, *key)
    share = rows_per_cta(x.shape[0], -(-x.shape[1] // 512), ctas, 16)
    raw = unused(x.device, torch.float32) if raw is None else raw.view(-1)
    places = no_map(x.device) if places is None else places
    kernel_cache.get(plan)(x, transformed.view(-1), raw, places, mask, share)


measure_hadamard = Operator(
    "measure_hadamard(Tensor x, str rht, int mask, Tensor(a!) transformed, bool per_column, Tensor(b!)? raw, "
    "bool per_row, Tensor? places) -> ()",
    _measure_hadamard,
)


def _partials_plan(dtype, vector: int, device):
    return (AmaxPartialsPlan(arch_of(device), DTYPES[dtype], vector),)


def _measure_partials(x, amax) -> None:
    (plan,) = remembered(_partials_plan, x.dtype, width(x), x.device)
    kernel_cache.get(plan)(x, amax)


measure_partials = Operator("measure_partials(Tensor x, Tensor(a!) amax) -> ()", _measure_partials)

SMALL_ELEMENTS = 1 << 22
"""Up to so many elements, partial amaxes and a cast that combines them take less time than a cleared amax."""


def is_small(x: torch.Tensor) -> bool:
    """Whether the amax of the tensor comes in parts."""
    return x.numel() <= SMALL_ELEMENTS


def are_partial(amax: torch.Tensor | None, recipe: QuantRecipe) -> bool:
    """Whether these are `partial_amaxes`: under tensor scaling nothing else has a dimension."""
    return amax is not None and recipe.scaling == "tensor" and tuple(amax.shape) == (1 + PARTIALS,)


def combined(amax: torch.Tensor, recipe: QuantRecipe) -> torch.Tensor:
    """The amax as the operand stores it, after the cast that combines partial ones."""
    return amax[0] if are_partial(amax, recipe) else amax


def partial_amaxes(x: torch.Tensor) -> torch.Tensor:
    """(1 + PARTIALS,): a place for the amax of the matrix, which its cast by rows writes, and the partial ones."""
    amax = torch.empty(1 + PARTIALS, dtype=torch.float32, device=x.device)
    measure_partials(x, amax)
    return amax


@dataclass(frozen=True)
class RowGroups:
    """Row groups of a matrix.

    Attributes:
        offs: int32 (E,), end offsets.
        places: int32 (tiles, MAP_WORDS), which `map_groups` fills.
    """

    offs: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of(cls, offs: torch.Tensor, rows: int) -> RowGroups:
        # One tile more than the groups can need, to clear what is behind them.
        tiles = rows // TILE_ROWS + offs.numel() + 1
        return cls(offs, torch.empty(tiles, MAP_WORDS, dtype=torch.int32, device=offs.device))


def _group_map_plan(clears: bool, device):
    return (GroupMapPlan(arch_of(device), clears),)


def _map_groups(offs, places, amaxes) -> None:
    (plan,) = remembered(_group_map_plan, amaxes is not None, offs.device)
    kernel_cache.get(plan)(offs, places, unused(offs.device, torch.float32) if amaxes is None else amaxes)


map_groups = Operator("map_groups(Tensor offs, Tensor(a!) places, Tensor(b!)? amaxes) -> ()", _map_groups)


def measured(x: torch.Tensor, recipe: QuantRecipe, row: bool, column: bool, groups: RowGroups | None = None):
    """(row amax, column amax) of those wanted, from one read; one buffer, zeroed once. Fills the map of groups.

    Scalar amaxes have shape () or (E,), vectors (R,) and (C,) or (E, C).
    """
    offs, places = (None, None) if groups is None else (groups.offs, groups.places)
    if not (row or column):
        if groups is not None:
            map_groups(offs, places, None)
        return None, None
    token = recipe.scaling == "token" and recipe.block == "1d"
    (m, n), lead = x.shape, 1 if groups is None else offs.numel()
    sizes = (m if token else lead) * row, (lead * n if token else lead) * column
    if groups is None:
        amaxes = torch.zeros(sum(sizes), dtype=torch.float32, device=x.device)
    else:
        amaxes = torch.empty(sum(sizes), dtype=torch.float32, device=x.device)
        map_groups(offs, places, amaxes)
    row_out, column_out = amaxes.split(sizes)
    row_out, column_out = (row_out if row else None), (column_out if column else None)
    if column and recipe.rht != "none":
        measure_hadamard(x, recipe.rht, recipe.rht_sign_mask, column_out, token, row_out, token, places)
    elif token:
        measure(x, None, row_out, column_out, offs)
    else:
        measure(x, row_out if row else column_out, None, None, offs)
    if groups is None:
        row_out, column_out = (t.view(()) if t is not None and not token else t for t in (row_out, column_out))
    elif column and token:
        column_out = column_out.view(lead, n)
    return row_out, column_out


def outer_amaxes(x, recipe: QuantRecipe, copies: tuple[bool, bool], given: tuple, groups: RowGroups | None = None):
    """Outer amaxes of both copies: the given ones, else measured. The row amax also serves 4over6's shared choice.

    Fills the map of groups.
    """
    rowwise, columnwise = copies
    row, column = given
    scalar = recipe.scaling == "tensor" or recipe.block == "2d"
    shares = columnwise and column is None and scalar and recipe.rht == "none"
    choice = recipe.block == "2d" and recipe.four_over_six != "none" and recipe.four_over_six_columnwise == "shared"
    measure_row = row is None and (rowwise or shares or choice)
    measure_column = columnwise and column is None and not shares
    found_row, found_column = measured(x, recipe, measure_row, measure_column, groups)
    row = found_row if row is None else row
    column = found_column if column is None else column
    if shares:
        column = row
    return row, column


def scalar_amax(amax: torch.Tensor | None, recipe: QuantRecipe) -> torch.Tensor | None:
    """16x16 blocks under token scaling reduce a given vector to its maximum."""
    return amax.amax() if amax is not None and recipe.block == "2d" and amax.dim() else amax


def stored_amax(amax: torch.Tensor, recipe: QuantRecipe, rows: int) -> torch.Tensor:
    """The amax as the operand stores it: a vector under token scaling."""
    return amax.expand(rows).contiguous() if recipe.scaling == "token" and not amax.dim() else amax
