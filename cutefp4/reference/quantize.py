"""The quantiser: a high-precision matrix to one or two NVFP4 copies, bit for bit as every kernel must do it.

A copy is a matrix with the contraction axis last: x itself for "rowwise", its transpose (after the Hadamard transform,
if the recipe has one) for "columnwise". For each copy:

    A       the outer amax: given, or max |value| over the tensor or over each row of the copy (NaN ignored)
    bamax   max |value| over 1x16 or 16x16 blocks
    scale, multiplier      from A and bamax (`block_scale`, or the chosen candidate of `four_over_six`)
    code    e2m1(fl(value * multiplier)), to nearest or stochastically (`rounding`)

The amax that is stored is A as it is, before any floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cutefp4 import format as nvfp4
from cutefp4.errors import OperandError
from cutefp4.format import BLOCK, pack_codes
from cutefp4.operand import Nvfp4Operand
from cutefp4.recipe import QuantRecipe
from cutefp4.reference.block_scale import block_amax, block_scales, spread_tiles
from cutefp4.reference.four_over_six import candidates, choose_four
from cutefp4.reference.hadamard import transform
from cutefp4.reference.rounding import RandomState, encode_blocks
from cutefp4.scale_layout import round_up, to_tiled

RSR_OFFSETS_PER_CALL = 2
"""Offsets that one call of a quantiser consumes: `offset` for the rowwise copy, `offset + 1` for the columnwise one."""

INPUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Elements per step: small enough that the intermediates of a step stay in cache.
_STEP = 1 << 19


@dataclass(frozen=True)
class Copy:
    """One copy before it is encoded: `values` fp32 (rows, k), its outer `amax` () or (rows,), and where 4 wins if that
    was decided elsewhere (bool (rows, k/16)); `rht`: sign mask of the transform that made the values."""

    values: torch.Tensor
    amax: torch.Tensor
    fours: torch.Tensor | None = None
    rht: int | None = None

    def steps(self):
        """Row ranges of about `_STEP` elements that split no 16x16 tile."""
        rows, k = self.values.shape
        step = max(BLOCK, _STEP // k // BLOCK * BLOCK)
        return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))

    def outer(self, rows: slice) -> torch.Tensor:
        """The outer amax of some rows, ready to broadcast over blocks: () or (rows, 1)."""
        return self.amax if self.amax.dim() == 0 else self.amax[rows].unsqueeze(-1)

    def blocks(self, rows: slice) -> torch.Tensor:
        """Some rows as (rows, k/16, 16)."""
        return self.values[rows].unflatten(-1, (-1, BLOCK))


def four_wins(copy: Copy, recipe: QuantRecipe) -> torch.Tensor:
    """4over6 decisions of a whole copy: bool (rows, k/16)."""
    rows, k = copy.values.shape
    fours = torch.empty(rows, k // BLOCK, dtype=torch.bool, device=copy.values.device)
    for step in copy.steps():
        outer = copy.outer(step)
        pairs = candidates(block_amax(copy.values[step], recipe.block), outer, recipe.e4m3_max)
        fours[step] = choose_four(copy.blocks(step), pairs, outer, recipe)
    return fours


def _scales_of_step(copy: Copy, rows: slice, recipe: QuantRecipe) -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, multiplier) of the blocks of some rows, both (rows, k/16)."""
    bamax, outer = block_amax(copy.values[rows], recipe.block), copy.outer(rows)
    if recipe.four_over_six == "none":
        return block_scales(bamax, outer, recipe.arithmetic, recipe.e4m3_max)
    pairs = candidates(bamax, outer, recipe.e4m3_max)
    if copy.fours is None:
        four = choose_four(copy.blocks(rows), pairs, outer, recipe)
    else:
        four = copy.fours[rows]
    scale = torch.where(four, pairs[4][0].view(torch.uint8), pairs[6][0].view(torch.uint8))
    return scale.view(torch.float8_e4m3fn), torch.where(four, pairs[4][1], pairs[6][1])


def encode_copy(copy: Copy, recipe: QuantRecipe, state: RandomState) -> Nvfp4Operand:
    """Encode one copy.

    Args:
        copy: values (rows, k) with k a multiple of 16, and their outer amax.
        recipe: how; its scaling says whether the amax is stored per tensor or per row.
        state: seed and offset of this copy, used only if the recipe rounds stochastically.
    """
    rows, k = copy.values.shape
    device = copy.values.device
    codes = torch.empty(rows, k // 2, dtype=torch.uint8, device=device)
    scales = torch.empty(rows, k // BLOCK, dtype=torch.float8_e4m3fn, device=device)
    dither = state if recipe.rounding == "stochastic" else None
    for step in copy.steps():
        scales[step], multiplier = _scales_of_step(copy, step, recipe)
        encoded = encode_blocks(copy.blocks(step) * multiplier.unsqueeze(-1), dither, step.start)
        codes[step] = pack_codes(encoded.flatten(-2))
    tiled = recipe.scale_layout == "tiled"
    return Nvfp4Operand(
        codes,
        to_tiled(scales) if tiled else scales,
        copy.amax.expand(rows).contiguous() if recipe.scaling == "token" else copy.amax,
        scaling=recipe.scaling,
        e4m3_max=recipe.e4m3_max,
        scale_layout=recipe.scale_layout,
        rows=rows,
        k=k,
        rht=copy.rht,
    )


def outer_amax(values: torch.Tensor, recipe: QuantRecipe) -> torch.Tensor:
    """The outer amax of a copy: (rows,) for token scaling of 1x16 blocks, else ()."""
    return nvfp4.amax(values, dim=1) if recipe.scaling == "token" and recipe.block == "1d" else nvfp4.amax(values)


def _given_amax(name: str, given: torch.Tensor, rows: int, recipe: QuantRecipe, device: torch.device) -> torch.Tensor:
    """A caller's amax, checked; 16x16 blocks under token scaling reduce a vector to its maximum."""
    accepted = [(), (rows,)] if recipe.scaling == "token" and recipe.block == "2d" else [()]
    if recipe.scaling == "token" and recipe.block == "1d":
        accepted = [(rows,)]
    if not isinstance(given, torch.Tensor) or given.dtype != torch.float32 or tuple(given.shape) not in accepted:
        what = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, torch.Tensor) else type(given).__name__
        shapes = " or ".join(map(str, accepted))
        raise OperandError(
            f"{name} = {what} with scaling={recipe.scaling!r}, block={recipe.block!r}",
            f"a float32 tensor of shape {shapes}",
            f"pass the raw maximum magnitude in this shape, or leave {name} out to have it computed",
        )
    if given.device != device:
        raise OperandError(f"{name} on {given.device}", f"{device}, where x is", f"move {name} there")
    return given.amax() if recipe.block == "2d" and given.dim() else given


def check_input(x: torch.Tensor, rowwise: bool, columnwise: bool, dims: tuple[int, ...] = (2,), ragged=False) -> None:
    """Raise `OperandError` unless `x` can be quantised into the wanted copies (`ragged`: with rows of any number)."""
    if not isinstance(x, torch.Tensor) or x.dtype not in INPUT_DTYPES or x.dim() not in dims:
        what = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        wanted = " or ".join(f"{d}-D" for d in dims)
        raise OperandError(
            f"x = {what}", f"a {wanted} tensor of bfloat16, float16 or float32", "convert or reshape the matrix"
        )
    if not (rowwise or columnwise):
        raise OperandError("rowwise=False, columnwise=False", "at least one copy", "set one of them to True")
    for wanted, copy, axis in ((rowwise, "rowwise", -1), (columnwise, "columnwise", -2)):
        k = x.shape[axis]
        if wanted and (k == 0 or k % BLOCK) and not (ragged and axis == -2):
            raise OperandError(
                f"x of shape {tuple(x.shape)} for a {copy} copy, contraction axis {k}",
                f"a positive multiple of {BLOCK}",
                f"pad that axis with zeros to {round_up(max(k, 1), BLOCK)}",
            )


def as_int(value: int | torch.Tensor) -> int:
    """A seed or offset that is an integer or a 0-d tensor, as an integer."""
    return int(value.item()) if isinstance(value, torch.Tensor) else int(value)


def _columnwise_copy(x: torch.Tensor, recipe: QuantRecipe, outer: torch.Tensor | None, tiles) -> Copy:
    """The transpose of x as a copy; `outer` None: its own amax, after the transform. `tiles` as in `_tile_fours`."""
    values = transform(x.t().contiguous(), recipe.rht, recipe.rht_sign_mask)
    fours = None if tiles is None else spread_tiles(tiles.t(), values.shape[0])
    rht = None if recipe.rht == "none" else recipe.rht_sign_mask
    return Copy(values, outer_amax(values, recipe) if outer is None else outer, fours, rht)


def _tile_fours(values: torch.Tensor, outer: torch.Tensor, recipe: QuantRecipe) -> torch.Tensor:
    """4over6 decisions of the rowwise pass, one per 16x16 tile of x: bool (ceil(R/16), ceil(C/16))."""
    padding = -values.shape[1] % BLOCK
    return four_wins(Copy(torch.nn.functional.pad(values, (0, padding)), outer), recipe)[::BLOCK]


def _quantize_matrix(
    x: torch.Tensor,
    recipe: QuantRecipe,
    copies: tuple[bool, bool],
    given: tuple[torch.Tensor | None, torch.Tensor | None],
    state: RandomState,
) -> tuple[Nvfp4Operand | None, Nvfp4Operand | None]:
    """`quantize` of one checked (R, C) matrix; `copies` and `given` amaxes in the order rowwise, columnwise."""
    rowwise, columnwise = copies
    row_amax, column_amax = given
    if row_amax is not None:
        row_amax = _given_amax("amax", row_amax, x.shape[0], recipe, x.device)
    if column_amax is not None:
        column_amax = _given_amax("columnwise_amax", column_amax, x.shape[1], recipe, x.device)
    values, tiles, by_row, by_column = x.float(), None, None, None
    if row_amax is None:
        row_amax = outer_amax(values, recipe)
    if columnwise and column_amax is None and recipe.rht == "none" and row_amax.dim() == 0:
        column_amax = row_amax
    if recipe.four_over_six != "none" and recipe.block == "2d" and recipe.four_over_six_columnwise == "shared":
        tiles = _tile_fours(values, row_amax, recipe)
    if rowwise:
        fours = None if tiles is None else spread_tiles(tiles, x.shape[0])
        by_row = encode_copy(Copy(values, row_amax, fours), recipe, state)
    if columnwise:
        by_column = encode_copy(_columnwise_copy(x, recipe, column_amax, tiles), recipe, state.advanced(1))
    return by_row, by_column


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
    """Quantise a matrix, or a batch of them.

    Args:
        x: (R, C) or (L, R, C), bfloat16, float16 or float32, any strides. The rowwise copy needs C, the columnwise copy
            R to be a positive multiple of 16. A batch equals a loop over its matrices with the same seed and offset.
        recipe: how to quantise.
        rowwise, columnwise: which copies to make; the columnwise one is the (quantised) (C, R) transpose.
        amax: fp32 outer amax of the rowwise copy, () for tensor scaling, (R,) for token scaling (with 16x16 blocks ()
            too; a vector is reduced to its maximum), with L in front for a batch. None: computed.
        columnwise_amax: the same for the columnwise copy, () or (C,). None: the rowwise one if it is a scalar and there
            is no Hadamard transform, else computed from the (transformed) transpose.
        seed, offset: of the stochastic rounding, integers or 0-d int64 tensors. The rowwise copy uses `offset`, the
            columnwise copy `offset + 1`; a call consumes `RSR_OFFSETS_PER_CALL` = 2 whether it makes one copy or both.

    Returns:
        (rowwise, columnwise) operands, None where not wanted.

    Raises:
        OperandError: a wrong dtype, shape or device.
    """
    check_input(x, rowwise, columnwise, dims=(2, 3))
    state, copies = RandomState(as_int(seed), as_int(offset)), (rowwise, columnwise)
    if x.dim() == 2:
        return _quantize_matrix(x, recipe, copies, (amax, columnwise_amax), state)
    pairs = []
    for i in range(x.shape[0]):
        given = tuple(None if a is None else a[i] for a in (amax, columnwise_amax))
        pairs.append(_quantize_matrix(x[i], recipe, copies, given, state))
    return tuple(
        stack(column) if wanted else None for column, wanted in zip(zip(*pairs, strict=True), copies, strict=True)
    )


def stack(operands: tuple[Nvfp4Operand, ...] | list[Nvfp4Operand]) -> Nvfp4Operand:
    """Operands of equal shape and metadata as one batch (L, rows, k).

    Raises:
        OperandError: none given, or their metadata differ.
    """
    kinds = {tuple(o.metadata().items()) for o in operands}
    if len(kinds) != 1:
        raise OperandError(
            f"{len(operands)} operands of {len(kinds)} kinds",
            "one or more operands of equal shape and metadata",
            "quantise all matrices of the batch with the same recipe",
        )
    tensors = [torch.stack([getattr(o, name) for o in operands]) for name in ("codes", "block_scales", "amax")]
    return Nvfp4Operand(*tensors, **operands[0].metadata())


def quantize_weight_dim0(weight: torch.Tensor, recipe: QuantRecipe, **options) -> Nvfp4Operand:
    """Quantise a weight that is stored (K, N) along its first axis: the columnwise copy, an operand (N, K).

    `options` are those of `quantize`; the transposition is part of the quantisation, no transposed weight is needed.
    """
    return quantize(weight, recipe, rowwise=False, columnwise=True, **options)[1]
