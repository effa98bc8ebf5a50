"""The casts as operators: rows of 1x16 blocks in one read, and tiles for everything else."""

from __future__ import annotations

from dataclasses import replace

import torch

from cutefp4 import compile as kernel_cache
from cutefp4.format import BLOCK
from cutefp4.launch import Operator, arch_of, sm_count
from cutefp4.ops_quantize.amax import are_partial
from cutefp4.ops_quantize.launches import DTYPES, gated_width, no_map, no_random, recipe_of, remembered, unused, width
from cutefp4.quant_plan import BYTES, COPY_BYTES, BlockMath, CastRowsPlan, CastTilesPlan, row_shape
from cutefp4.recipe import QuantRecipe

_MOST_AHEAD = 40 << 10
"""Bytes of shared memory for what a CTA copies ahead; two of them fit an SM with room for others' input in L1."""


def _most_blocks(recipe: QuantRecipe, swiglu: str) -> int | None:
    """Blocks a thread, None for as many as there may be."""
    if recipe.four_over_six != "none" and swiglu == "none":
        # (16384, 6144): 2, 3 and 4 blocks take 110, 104 and 127 us (fast), 113, 112 and 108 (strict) with the tensor's
        # amax; 2 and 3 take 120 and 108 us (fast), 125 and 114 (strict) where the row's amax is found. Copied ahead
        # (kernels/quantize/rows_ahead.py), 3 take 99 and 104 us with the tensor's.
        return 3
    if recipe.four_over_six != "none":
        return 2 if recipe.scaling == "token" else 3 if recipe.four_over_six_error == "fast" else None
    # (16384, 2 * 6144): 3 against 4 blocks take 1.055 against 1.084 times a copy for 8 and 16 columns a chunk, 1.113
    # against 1.104 for 32, 1.132 against 1.079 for halves.
    return 3 if swiglu in ("8", "16") else None


def _copies_ahead(plan: CastRowsPlan) -> bool:
    """Whether the next row is copied to shared memory ahead, which the casts gain from that need many registers or read
    in pieces. (Plain ones on (16384, 6144): 73.2 us with it and without.)"""
    serves = plan.vector_bytes == COPY_BYTES and not plan.looped and plan.swiglu == "none" and not plan.partials
    gains = plan.math.four_over_six != "none" or plan.deinterleave != "none"
    return plan.arch == "sm_90a" and serves and gains and plan.ahead_bytes <= _MOST_AHEAD


def _rows_plan(text: str, dtype, n: int, vector: int, amax_given: bool, sources: tuple, partials: bool, device):
    recipe, name = recipe_of(text), DTYPES[dtype]
    plan = CastRowsPlan(
        arch_of(device),
        name,
        BlockMath.of(recipe),
        recipe.scaling,
        amax_given,
        recipe.scale_layout,
        vector_bytes=vector,
        swiglu=sources[0],
        deinterleave=sources[1],
        partials=partials,
        **row_shape(n, BYTES[name], 3 if sources[1] != "none" else _most_blocks(recipe, sources[0])),
    )
    return replace(plan, ahead=_copies_ahead(plan)), sm_count(device) * (2048 // plan.threads)


def _cast_rows(
    x, text: str, codes, scales, amax, random, amax_given: bool, swiglu: str = "none", deinterleave: str = "none"
) -> None:
    vector, gate_up = width(x), deinterleave if swiglu == "none" else swiglu
    if gate_up != "none":
        vector = min(vector, gated_width(x, gate_up))
    partials = amax_given and are_partial(amax, recipe_of(text))
    key = (text, x.dtype, codes.shape[1] * 2, vector, amax_given, (swiglu, deinterleave), partials, x.device)
    plan, ctas = remembered(_rows_plan, *key)
    if random is None:
        random = no_random(x.device)
    kernel_cache.get(plan)(x, codes, scales, amax, random, ctas)


cast_rows = Operator(
    "cast_rows(Tensor x, str recipe, Tensor(a!) codes, Tensor(b!) scales, Tensor(c!) amax, Tensor? random, "
    "bool amax_given, str swiglu='none', str deinterleave='none') -> ()",
    _cast_rows,
)


def _tiles_plan(text: str, dtype, copies: tuple, vector: int, partial: bool, grouped: bool, device):
    recipe = recipe_of(text)
    fours = recipe.four_over_six_columnwise if recipe.four_over_six != "none" and recipe.block == "2d" else "shared"
    plan = CastTilesPlan(
        arch_of(device),
        DTYPES[dtype],
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


def _cast_tiles(x, text: str, row, column, row_scales, column_scales, row_amax, column_amax, random, places) -> None:
    device = x.device
    copies = (row is not None, column is not None)
    partial = bool(x.shape[1] % BLOCK)
    key = (text, x.dtype, copies, width(x, partial), partial, places is not None, device)
    plan, mask = remembered(_tiles_plan, *key)
    empty = unused(device, torch.uint8)
    outputs = [empty if t is None else t.view(-1) for t in (row, row_scales, column, column_scales)]
    stride = column.shape[1] if copies[1] else 0
    random = no_random(device) if random is None else random
    places = no_map(device) if places is None else places
    kernel_cache.get(plan)(x, *outputs, row_amax.view(-1), column_amax.view(-1), random, places, mask, stride)


cast_tiles = Operator(
    "cast_tiles(Tensor x, str recipe, Tensor(a!)? row_codes, Tensor(b!)? column_codes, Tensor(c!)? row_scales, "
    "Tensor(d!)? column_scales, Tensor row_amax, Tensor column_amax, Tensor? random, Tensor? places) -> ()",
    _cast_tiles,
)
