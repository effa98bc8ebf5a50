"""4over6: per block, the better of two scales: the one that maps the block's amax to 6, or the one that maps it to 4.

Map-to-4 (scale times 1.5) spends no codes on 6 and thereby halves the grid's widest gap. All fp32, one rounding per
operation, no FMA; it replaces the scale and multiplier order of every arithmetic, and takes the raw amax A:

    base = fl(fl(bamax / 6) * S_enc);   s6 = e4m3(min(base, 448));   s4 = e4m3(min(fl(base * 1.5), 448))
    m_c  = min(fl(1 / fl(s_c * S_dec)), FLT_MAX);   q_c = e2m1(fl(x * m_c));   c in {4, 6}
    4 is chosen iff err_4 < err_6 (a tie or NaN chooses 6)

Error of an element, |d| ("mae") or fl(d * d) ("mse"), with
    strict: d = fl(fl(fl(fl(q * s) * A) / NUM) - x)           in input units, a true division
    fast:   d = fl(fl(q * s) - fl(x * S_enc))                 in scaled units (q * s is exact)

Error of a 1x16 line: the 16 errors added to 0 in ascending order. Error of a 16x16 tile: the sums of its 16 lines (rows
of the copy whose pass decides; missing rows count 0) combined by a tree: v[i] += v[i+8], then v[i+4], v[i+2], v[i+1].

Choices that no source settles:
* with stochastic rounding, candidates and errors use nearest codes; the chosen scale then encodes stochastically, so
  scales equal those of the nearest-rounding run;
* with the Hadamard transform, everything here sees the transformed values;
* with token scaling A is the amax of the row (or column) of the copy, with 16x16 tiles the tensor's.
"""

from __future__ import annotations

import torch

from cutefp4.format import (
    BLOCK,
    E2M1_MAX,
    E4M3_MAX,
    FLT_MAX,
    decode_e2m1,
    decode_e4m3,
    decode_scale,
    divide,
    encode_e2m1,
    encode_e4m3,
    encode_scale,
    numerator,
)
from cutefp4.recipe import QuantRecipe
from cutefp4.reference.block_scale import spread_tiles, tile_lines


def candidates(bamax: torch.Tensor, outer: torch.Tensor, e4m3_max: int) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """The two (scale, multiplier) pairs of every block, by what they map the amax to.

    Args:
        bamax: fp32 (rows, blocks).
        outer: fp32 () or (rows, 1), the raw outer amax.
        e4m3_max: 448 or 256; both candidates are capped at 448.

    Returns:
        {6: (e4m3, fp32), 4: (e4m3, fp32)}, each (rows, blocks).
    """
    s_enc = encode_scale(outer, e4m3_max)
    s_dec = decode_scale(s_enc)
    base = divide(bamax, E2M1_MAX) * s_enc
    pairs = {}
    for target, wanted in ((6, base), (4, base * 1.5)):
        scale = encode_e4m3(wanted.clamp(max=E4M3_MAX))
        product = decode_e4m3(scale) * s_dec
        pairs[target] = scale, torch.div(torch.ones_like(product), product).clamp(max=FLT_MAX)
    return pairs


def line_errors(
    values: torch.Tensor, scale: torch.Tensor, multiplier: torch.Tensor, outer: torch.Tensor, recipe: QuantRecipe
) -> torch.Tensor:
    """Error sum of every 1x16 line under one candidate.

    Args:
        values: fp32 (rows, blocks, 16).
        scale, multiplier: of the candidate, (rows, blocks).
        outer: fp32 () or (rows, 1).
        recipe: gives the metric, strict or fast, and e4m3_max.

    Returns:
        fp32 (rows, blocks).
    """
    q = decode_e2m1(encode_e2m1(values * multiplier.unsqueeze(-1)))
    product = q.mul_(decode_e4m3(scale).unsqueeze(-1))
    if recipe.four_over_six_error == "strict":
        product = divide(product.mul_(outer.unsqueeze(-1)), numerator(recipe.e4m3_max))
        difference = product.sub_(values)
    else:
        difference = product.sub_(values * encode_scale(outer, recipe.e4m3_max).unsqueeze(-1))
    error = difference.abs_() if recipe.four_over_six == "mae" else difference.mul_(difference)
    total = error[..., 0].clone()
    for i in range(1, BLOCK):
        total += error[..., i]
    return total


def tile_errors(lines: torch.Tensor) -> torch.Tensor:
    """(rows, blocks) line errors to (tiles, blocks) tile errors, by the fixed tree."""
    v = tile_lines(lines)
    for half in (8, 4, 2, 1):
        v = v[:, :half] + v[:, half : 2 * half]
    return v[:, 0]


def choose_four(
    values: torch.Tensor,
    pairs: dict[int, tuple[torch.Tensor, torch.Tensor]],
    outer: torch.Tensor,
    recipe: QuantRecipe,
) -> torch.Tensor:
    """Where map-to-4 wins.

    Args:
        values: fp32 (rows, blocks, 16), row 0 the first of a tile.
        pairs: `candidates` of the same blocks.
        outer: fp32 () or (rows, 1).
        recipe: with four_over_six "mae" or "mse".

    Returns:
        bool (rows, blocks); equal within the rows of a 16x16 tile if recipe.block is "2d".
    """
    err4 = line_errors(values, *pairs[4], outer, recipe)
    err6 = line_errors(values, *pairs[6], outer, recipe)
    if recipe.block == "1d":
        return err4 < err6
    return spread_tiles(tile_errors(err4) < tile_errors(err6), values.shape[0])
