"""Launches of the quantisation kernels: allocate outputs, choose plans, run.

    rowwise 1x16 copy, token scaling    cast_rows: the amaxes are found in the read that casts
    rowwise 1x16 copy, fast 4over6      cast_rows: 119 us against 132 at (16384, 6144); strict is faster in tiles, 160
                                        against 216
    everything else                     amaxes that are not given, in one read; then cast_tiles

Outputs are allocated here, so that torch.compile sees them; what depends on the values of shapes and pointers is inside
the operators, which write into tensors that exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from cutefp4 import compile as kernel_cache
from cutefp4.errors import OperandError
from cutefp4.format import BLOCK
from cutefp4.launch import Operator, arch_of, sm_count, target
from cutefp4.operand import Nvfp4GroupedOperand, Nvfp4Operand
from cutefp4.quant_plan import (
    BYTES,
    AmaxPlan,
    BlockMath,
    CastRowsPlan,
    CastTilesPlan,
    DequantizePlan,
    HadamardAmaxPlan,
    SwigluPlan,
    row_shape,
    vector_bytes,
)
from cutefp4.recipe import QuantRecipe
from cutefp4.scale_layout import grouped_k_bound, grouped_rows_bound, round_up, scale_shape

_FIELDS = tuple(QuantRecipe.__dataclass_fields__)
_DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
_INT64 = 1 << 64
MAX_ROWS = 65535 * 128
"""Rows of a matrix: the second dimension of a launch counts tiles of 128 rows."""


def recipe_text(recipe: QuantRecipe) -> str:
    """A recipe as an operator's argument; `recipe_of` reads it."""
    return ";".join([str(getattr(recipe, name)) for name in _FIELDS])


@cache
def recipe_of(text: str) -> QuantRecipe:
    """The recipe that `recipe_text` wrote."""
    values = zip(_FIELDS, text.split(";"), strict=True)
    return QuantRecipe(**{name: int(value) if value.isdecimal() else value for name, value in values})


@cache
def _unused(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Stands in for a tensor that a kernel does not touch."""
    return torch.zeros(16, dtype=dtype, device=device)


@cache
def _no_random(device: torch.device) -> torch.Tensor:
    """Stands in for seeds and offsets where rounding is nearest."""
    return torch.zeros(4, dtype=torch.int64, device=device)


def _width(x: torch.Tensor, columns_count: bool = False) -> int:
    """Bytes per load; `columns_count`: the number of columns must be a multiple too."""
    size = x.element_size()
    rows = x.stride(0) * size | (x.shape[1] * size if columns_count else 0)
    return 16 if not (x.data_ptr() | rows) & 15 else vector_bytes(x.data_ptr(), rows, size)


_plans: dict[tuple, tuple] = {}
"""(plan, launch constants) by everything they depend on. Making a plan costs 20 us, finding it here 0.3 us."""


def _launch(make, *key):
    """`make(*key)`, remembered; the last element of `key` is the device."""
    full = (make, *key, target(key[-1]))
    found = _plans.get(full)
    if found is None:
        found = _plans[full] = make(*key)
    return found


# ---------------------------------------------------------------- operators


def _rows_plan(text: str, dtype, n: int, vector: int, amax_given: bool, swiglu: str, device):
    recipe, name = recipe_of(text), _DTYPES[dtype]
    plan = CastRowsPlan(
        arch_of(device),
        name,
        BlockMath.of(recipe),
        recipe.scaling,
        amax_given,
        recipe.scale_layout,
        vector_bytes=vector,
        swiglu=swiglu,
        # With more blocks a thread fast 4over6 spills.
        **row_shape(n, BYTES[name], 2 if recipe.four_over_six_error == "fast" else None),
    )
    return plan, sm_count(device) * (2048 // plan.threads)


def _cast_rows(x, text: str, codes, scales, amax, random, amax_given: bool, swiglu: str) -> None:
    vector = _width(x)
    if swiglu != "none":
        vector = min(vector, _gated_width(x, swiglu))
    plan, ctas = _launch(_rows_plan, text, x.dtype, codes.shape[1] * 2, vector, amax_given, swiglu, x.device)
    if random is None:
        random = _no_random(x.device)
    kernel_cache.get(plan)(x, codes, scales, amax, random, ctas)


cast_rows = Operator(
    "cast_rows(Tensor x, str recipe, Tensor(a!) codes, Tensor(b!) scales, Tensor(c!) amax, Tensor? random, "
    "bool amax_given, str swiglu) -> ()",
    _cast_rows,
)


def _tiles_plan(text: str, dtype, copies: tuple, vector: int, partial: bool, grouped: bool, device):
    recipe = recipe_of(text)
    fours = recipe.four_over_six_columnwise if recipe.four_over_six != "none" and recipe.block == "2d" else "shared"
    plan = CastTilesPlan(
        arch_of(device),
        _DTYPES[dtype],
        BlockMath.of(recipe),
        # 16x16 blocks take one outer amax whatever the scaling is.
        recipe.scaling if recipe.block == "1d" else "tensor",
        recipe.scale_layout,
        *copies,
        block=recipe.block,
        rht=recipe.rht if copies[1] else "none",
        columnwise_fours=fours,
        vector_bytes=vector,
        partial_columns=partial,
        grouped=grouped,
    )
    return plan, recipe.rht_sign_mask


def _cast_tiles(x, text: str, row, column, row_scales, column_scales, row_amax, column_amax, random, offs) -> None:
    device = x.device
    copies = (row is not None, column is not None)
    partial = bool(x.shape[1] % BLOCK)
    key = (text, x.dtype, copies, _width(x, partial), partial, offs is not None, device)
    plan, mask = _launch(_tiles_plan, *key)
    empty = _unused(device, torch.uint8)
    outputs = [empty if t is None else t.view(-1) for t in (row, row_scales, column, column_scales)]
    stride = column.shape[1] if copies[1] else 0
    random = _no_random(device) if random is None else random
    offs = _unused(device, torch.int32) if offs is None else offs
    kernel_cache.get(plan)(x, *outputs, row_amax.view(-1), column_amax.view(-1), random, offs, mask, stride)


cast_tiles = Operator(
    "cast_tiles(Tensor x, str recipe, Tensor(a!)? row_codes, Tensor(b!)? column_codes, Tensor(c!)? row_scales, "
    "Tensor(d!)? column_scales, Tensor row_amax, Tensor column_amax, Tensor? random, Tensor? offs) -> ()",
    _cast_tiles,
)


def _amax_plan(dtype, wanted: tuple, vector: int, partial: bool, grouped: bool, device):
    return AmaxPlan(arch_of(device), _DTYPES[dtype], *wanted, vector, partial, grouped), 4 * sm_count(device)


def _hadamard_plan(dtype, rht: str, transformed: str, raw: str, paired: bool, grouped: bool, device):
    plan = HadamardAmaxPlan(arch_of(device), _DTYPES[dtype], rht, transformed, raw, paired, grouped)
    return plan, 8 * sm_count(device)


def _rows_per_cta(rows: int, strips: int, ctas: int, multiple: int) -> int:
    """Rows of a strip's share, so that about `ctas` CTAs run."""
    parts = max(1, ctas // strips)
    return max(multiple, round_up(-(-rows // parts), multiple))


def _measure(x, tensor, rows, columns, offs) -> None:
    partial = bool(x.shape[1] % BLOCK)
    wanted = tuple(t is not None for t in (tensor, rows, columns))
    plan, ctas = _launch(_amax_plan, x.dtype, wanted, _width(x, partial), partial, offs is not None, x.device)
    share = _rows_per_cta(x.shape[0], -(-x.shape[1] // 512), ctas, 32)
    empty = _unused(x.device, torch.float32)
    outputs = [empty if t is None else t.view(-1) for t in (tensor, rows, columns)]
    kernel_cache.get(plan)(x, *outputs, _unused(x.device, torch.int32) if offs is None else offs, share)


measure = Operator(
    "measure(Tensor x, Tensor(a!)? tensor, Tensor(b!)? rows, Tensor(c!)? columns, Tensor? offs) -> ()", _measure
)


def _measure_hadamard(x, rht: str, mask: int, transformed, per_column: bool, raw, per_row: bool, offs) -> None:
    size = x.element_size()
    paired = size == 4 or not (x.data_ptr() | x.stride(0) * size | x.shape[1] * size) & 3
    scope = "none" if raw is None else "rows" if per_row else "tensor"
    key = (x.dtype, rht, "columns" if per_column else "tensor", scope, paired, offs is not None, x.device)
    plan, ctas = _launch(_hadamard_plan, *key)
    share = _rows_per_cta(x.shape[0], -(-x.shape[1] // 512), ctas, 16)
    raw = _unused(x.device, torch.float32) if raw is None else raw.view(-1)
    offs = _unused(x.device, torch.int32) if offs is None else offs
    kernel_cache.get(plan)(x, transformed.view(-1), raw, offs, mask, share)


measure_hadamard = Operator(
    "measure_hadamard(Tensor x, str rht, int mask, Tensor(a!) transformed, bool per_column, Tensor(b!)? raw, "
    "bool per_row, Tensor? offs) -> ()",
    _measure_hadamard,
)


def _gated_width(x: torch.Tensor, layout: str) -> int:
    """Bytes per load of gate and up: chunks of 8 elements that begin at multiples of 8 elements or at half a row."""
    size = x.element_size()
    start = x.shape[1] // 2 * size if layout == "halves" else 0
    return min(vector_bytes(x.data_ptr() | start, x.stride(0) * size, size), 8 * size)


def _swiglu_plan(dtype, layout: str, vector: int, device):
    return (SwigluPlan(arch_of(device), _DTYPES[dtype], layout, vector),)


def _swiglu(x, h, layout: str) -> None:
    (plan,) = _launch(_swiglu_plan, x.dtype, layout, _gated_width(x, layout), x.device)
    kernel_cache.get(plan)(x, h)


swiglu = Operator("swiglu(Tensor x, Tensor(a!) h, str layout) -> ()", _swiglu)


def _dequantize_plan(dtype, scaling: str, layout: str, e4m3_max: int, device):
    return (DequantizePlan(arch_of(device), _DTYPES[dtype], scaling, layout, e4m3_max),)


def _decode(codes, scales, amax, out, scaling: str, layout: str, e4m3_max: int) -> None:
    (plan,) = _launch(_dequantize_plan, out.dtype, scaling, layout, e4m3_max, codes.device)
    rows, k = out.shape
    kernel_cache.get(plan)(codes.view(-1), scales.view(-1), amax.view(-1), out.view(-1), rows, k)


decode = Operator(
    "decode(Tensor codes, Tensor scales, Tensor amax, Tensor(a!) out, str scaling, str layout, int e4m3_max) -> ()",
    _decode,
)


# ---------------------------------------------------------------- outputs


@dataclass
class _Copy:
    """Memory of one copy, for one matrix or a batch: codes (..., rows, k/2), scales as bytes, amax."""

    codes: torch.Tensor
    scales: torch.Tensor
    rows: int
    k: int


def _allocate(x: torch.Tensor, batch: tuple, rows: int, k: int, layout: str) -> _Copy:
    codes = torch.empty((*batch, rows, k // 2), dtype=torch.uint8, device=x.device)
    scales = torch.empty((*batch, *scale_shape(rows, k, layout)), dtype=torch.uint8, device=x.device)
    return _Copy(codes, scales, rows, k)


def make_operand(recipe: QuantRecipe, copy: _Copy, amax: torch.Tensor, rht: int | None = None) -> Nvfp4Operand:
    """An operand of tensors that were just allocated to fit: without the checks, which cost 16 us, three launches."""
    values = {
        "codes": copy.codes,
        "block_scales": copy.scales.view(torch.float8_e4m3fn),
        "amax": amax,
        "scaling": recipe.scaling,
        "e4m3_max": recipe.e4m3_max,
        "scale_layout": recipe.scale_layout,
        "rows": copy.rows,
        "k": copy.k,
        "rht": rht,
    }
    if torch.compiler.is_compiling():
        return Nvfp4Operand(**values)
    operand = object.__new__(Nvfp4Operand)
    operand.__dict__.update(values)
    return operand


def _random_state(x: torch.Tensor, recipe: QuantRecipe, seed, offset) -> torch.Tensor | None:
    """(seed, offset, seed, offset + 1) on the device: the states of the rowwise and the columnwise copy.

    Tensors are combined on the device, so that a CUDA graph can advance them; integers become fills, not copies.
    """
    if recipe.rounding != "stochastic":
        return None
    if isinstance(seed, torch.Tensor) or isinstance(offset, torch.Tensor):
        seed, offset = (_scalar(v, x.device) for v in (seed, offset))
        return torch.stack((seed, offset, seed, offset + 1))
    state = torch.full((4,), _signed(seed), dtype=torch.int64, device=x.device)
    state[1].fill_(_signed(offset))
    state[3].fill_(_signed(offset + 1))
    return state


def _scalar(value, device: torch.device) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.reshape(()).to(device)
    return torch.full((), _signed(value), dtype=torch.int64, device=device)


def _signed(value: int) -> int:
    return (value + _INT64 // 2) % _INT64 - _INT64 // 2


# ---------------------------------------------------------------- quantize


def _measured(x: torch.Tensor, recipe: QuantRecipe, row: bool, column: bool, groups: int, offs):
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


def _outer_amaxes(x, recipe: QuantRecipe, copies: tuple[bool, bool], given: tuple, groups: int = 0, offs=None):
    """Outer amaxes of both copies: the given ones, else measured. The row amax also serves 4over6's shared choice."""
    rowwise, columnwise = copies
    row, column = given
    scalar = recipe.scaling == "tensor" or recipe.block == "2d"
    shares = columnwise and column is None and scalar and recipe.rht == "none"
    choice = recipe.block == "2d" and recipe.four_over_six != "none" and recipe.four_over_six_columnwise == "shared"
    measure_row = row is None and (rowwise or shares or choice)
    measure_column = columnwise and column is None and not shares
    found_row, found_column = _measured(x, recipe, measure_row, measure_column, groups, offs)
    row = found_row if row is None else row
    column = found_column if column is None else column
    if shares:
        column = row
    return row, column


def _scalar_amax(amax: torch.Tensor | None, recipe: QuantRecipe) -> torch.Tensor | None:
    """16x16 blocks under token scaling reduce a given vector to its maximum."""
    return amax.amax() if amax is not None and recipe.block == "2d" and amax.dim() else amax


def _stored_amax(amax: torch.Tensor, recipe: QuantRecipe, rows: int) -> torch.Tensor:
    """The amax as the operand stores it: a vector under token scaling."""
    return amax.expand(rows).contiguous() if recipe.scaling == "token" and not amax.dim() else amax


def _quantize_matrix(x, recipe: QuantRecipe, given: tuple, random, row: _Copy | None, column: _Copy | None):
    """Cast one matrix into allocated copies; returns their outer amaxes as operands store them."""
    text = recipe_text(recipe)
    if x.stride(1) != 1:
        x = x.contiguous()
    fast_fours = recipe.four_over_six != "none" and recipe.four_over_six_error == "fast"
    if column is None and recipe.block == "1d" and (recipe.scaling == "token" or fast_fours):
        amax, found = given[0], given[0] is None and recipe.scaling == "token"
        if found:
            amax = torch.empty(row.rows, dtype=torch.float32, device=x.device)
        elif amax is None:
            amax = _measured(x, recipe, True, False, 0, None)[0]
        cast_rows(x, text, row.codes, row.scales.view(-1), amax.view(-1), random, not found, "none")
        return amax, None
    given = tuple(_scalar_amax(a, recipe) for a in given)
    amaxes = _outer_amaxes(x, recipe, (row is not None, column is not None), given)
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
    stored = [_stored_amax(a, recipe, c.rows) if c else None for a, c in zip(amaxes, (row, column), strict=True)]
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
    _check_rows(m)
    random = _random_state(x, recipe, seed, offset)
    row = _allocate(x, batch, m, n, layout) if rowwise else None
    column = _allocate(x, batch, n, m, layout) if columnwise else None
    if not batch:
        amaxes = _quantize_matrix(x, recipe, (amax, columnwise_amax), random, row, column)
    else:
        amaxes = _quantize_batch(x, recipe, (amax, columnwise_amax), random, row, column)
    rht = None if recipe.rht == "none" else recipe.rht_sign_mask
    return (
        make_operand(recipe, row, amaxes[0]) if rowwise else None,
        make_operand(recipe, column, amaxes[1], rht) if columnwise else None,
    )


def _check_rows(rows: int) -> None:
    if rows > MAX_ROWS:
        raise OperandError(f"x with {rows} rows", f"at most {MAX_ROWS}", "quantise it in parts")


def _quantize_batch(x, recipe: QuantRecipe, given: tuple, random, row: _Copy | None, column: _Copy | None):
    """One launch per matrix, written in place; the amaxes are gathered."""
    found = []
    for i in range(x.shape[0]):
        copies = [c and _Copy(c.codes[i], c.scales[i], c.rows, c.k) for c in (row, column)]
        found.append(_quantize_matrix(x[i], recipe, tuple(a if a is None else a[i] for a in given), random, *copies))
    return tuple(torch.stack(a) if a[0] is not None else None for a in zip(*found, strict=True))


# ---------------------------------------------------------------- groups


def _without_empty(amax: torch.Tensor, offs: torch.Tensor, recipe: QuantRecipe, total: int) -> torch.Tensor:
    """A caller's amaxes with zeros for empty groups, or for rows behind the last group."""
    if recipe.scaling == "tensor":
        inside = torch.diff(offs, prepend=offs.new_zeros(1)) > 0
    else:
        inside = torch.arange(total, device=offs.device) < offs[-1]
    return torch.where(inside, amax, torch.zeros_like(amax))


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
    """Quantise row groups at device-resident offsets, without a host sync: one launch measures, one casts.

    Arguments and results are those of `cutefp4.reference.grouped.quantize_grouped`.
    """
    if x.stride(1) != 1:
        x = x.contiguous()
    (total, n), groups, device = x.shape, offs.numel(), x.device
    _check_rows(total + 128 * groups)
    offs = offs.contiguous()
    tiled = recipe.scale_layout == "tiled"
    if amax is not None:
        amax = _without_empty(amax, offs, recipe, total)
    random = _random_state(x, recipe, seed, offset)
    given = (amax, None)
    amaxes = _outer_amaxes(x, recipe, (rowwise, columnwise), given, groups, offs)
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
    cast_tiles(x, text, row_codes, column_codes, row_scales, column_scales, *kernel, random, offs)
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


# ---------------------------------------------------------------- fused producer, inverse


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
        row = _allocate(x, (), m, width, recipe.scale_layout)
        amax = torch.empty(m, dtype=torch.float32, device=x.device)
        random = _random_state(x, recipe, seed, offset)
        cast_rows(x, recipe_text(recipe), row.codes, row.scales.view(-1), amax, random, False, layout)
        return make_operand(recipe, row, amax), None
    h = torch.empty(m, width, dtype=x.dtype, device=x.device)
    swiglu(x, h, layout)
    return quantize(h, recipe, rowwise=rowwise, columnwise=columnwise, seed=seed, offset=offset)


def dequantize(operand: Nvfp4Operand, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The values of an operand; arguments and results are those of `cutefp4.reference.dequantize.dequantize`."""
    out = torch.empty((*operand.batch_shape, operand.rows, operand.k), dtype=dtype, device=operand.device)
    fields = (operand.scaling, operand.scale_layout, operand.e4m3_max)
    scales = operand.block_scales.view(torch.uint8)
    if not operand.batch_shape:
        decode(operand.codes, scales, operand.amax, out, *fields)
        return out
    for i in range(out.shape[0]):
        decode(operand.codes[i], scales[i], operand.amax[i], out[i], *fields)
    return out


OPERATIONS = {
    "quantize": quantize,
    "quantize_grouped": quantize_grouped,
    "swiglu_quantize": swiglu_quantize,
    "dequantize": dequantize,
}
