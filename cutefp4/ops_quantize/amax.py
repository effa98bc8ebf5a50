"""Outer amaxes that a call does not bring: measured in one read, for either copy, before the cast."""

from __future__ import annotations

import torch

from cutefp4 import compile as kernel_cache
from cutefp4.format import BLOCK
from cutefp4.launch import Operator, arch_of, sm_count
from cutefp4.ops_quantize.launches import DTYPES, remembered, rows_per_cta, unused, width
from cutefp4.quant_plan import PARTIALS, AmaxPartialsPlan, AmaxPlan, HadamardAmaxPlan
from cutefp4.recipe import QuantRecipe


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


def _measure_hadamard(x, rht: str, mask: int, transformed, per_column: bool, raw, per_row: bool, offs) -> None:
    size = x.element_size()
    paired = size == 4 or not (x.data_ptr() | x.stride(0) * size | x.shape[1] * size) & 3
    scope = "none" if raw is None else "rows" if per_row else "tensor"
    key = (x.dtype, rht, "columns" if per_column else "tensor", scope, paired, offs is not None, x.device)
    plan, ctas = remembered(_hadamard_plan, *key)
    share = rows_per_cta(x.shape[0], -(-x.shape[1] // 512), ctas, 16)
    raw = unused(x.device, torch.float32) if raw is None else raw.view(-1)
    offs = unused(x.device, torch.int32) if offs is None else offs
    kernel_cache.get(plan)(x, transformed.view(-1), raw, offs, mask, share)


measure_hadamard = Operator(
    "measure_hadamard(Tensor x, str rht, int mask, Tensor(a!) transformed, bool per_column, Tensor(b!)? raw, "
    "bool per_row, Tensor? offs) -> ()",
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


def measured(x: torch.Tensor, recipe: QuantRecipe, row: bool, column: bool, groups: int, offs):
    """(row amax, column amax) of those wanted, from one read; one buffer, zeroed once.

    groups: 0 for a single matrix. Scalar amaxes have shape () or (E,), vectors (R,) and (C,) or (E, C).
    """
    if not (row or column):
        return None, None
    token = recipe.scaling == "token" and recipe.block == "1d"
    (m, n), lead = x.shape, max(groups, 1)
    sizes = (m if token else lead) * row, (lead * n if token else lead) * column
    row_out, column_out = torch.zeros(sum(sizes), dtype=torch.float32, device=x.device).split(sizes)
    row_out, column_out = (row_out if row else None), (column_out if column else None)
    if column and recipe.rht != "none":
        measure_hadamard(x, recipe.rht, recipe.rht_sign_mask, column_out, token, row_out, token, offs)
    elif token:
        measure(x, None, row_out, column_out, offs)
    else:
        measure(x, row_out if row else column_out, None, None, offs)
    if row and not (token or groups):
        row_out = row_out.view(())
    if column and not (token and not groups):
        column_out = column_out.view((groups, n) if token else (groups,) if groups else ())
    return row_out, column_out


def outer_amaxes(x, recipe: QuantRecipe, copies: tuple[bool, bool], given: tuple, groups: int = 0, offs=None):
    """Outer amaxes of both copies: the given ones, else measured. The row amax also serves 4over6's shared choice."""
    rowwise, columnwise = copies
    row, column = given
    scalar = recipe.scaling == "tensor" or recipe.block == "2d"
    shares = columnwise and column is None and scalar and recipe.rht == "none"
    choice = recipe.block == "2d" and recipe.four_over_six != "none" and recipe.four_over_six_columnwise == "shared"
    measure_row = row is None and (rowwise or shares or choice)
    measure_column = columnwise and column is None and not shares
    found_row, found_column = measured(x, recipe, measure_row, measure_column, groups, offs)
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
