"""From a block's amax to its E4M3 scale and to the multiplier of its elements, in three arithmetics.

All operations are single IEEE fp32 operations in the order written; NUM = 6 * e4m3_max, c6 = fl(1/6), S_enc as in
`cutefp4.format.encode_scale`. The three differ by single ulps and in blocks that underflow; they are never mixed.

te          s = e4m3(min(fl(bamax * fl(S_enc * c6)), FLT_MAX));      S_dec = fl(1 / S_enc)
            m = min(fl(1 / fl(s * S_dec)), FLT_MAX)                  an underflown block (s = 0) has m = FLT_MAX: its
                                                                     nonzero elements get the codes of +-6
per_token   as te with S_enc of max(A, 1e-12) (the stored amax stays raw);   m = 0 if s == 0, else fl(S_enc / s)
torchao     p = fl(A / NUM), but 1 where A or the quotient is 0 or A is Inf
            s = e4m3(clamp(fl(fl(bamax / 6) / p), 2**-6, 448));      m = fl(min(fl(1 / p), FLT_MAX) / s)

The guards of torchao's p and of its reciprocal are this package's: the source divides zero by zero for an all-zero
tensor, and by an overflown reciprocal below A = 8e-36, where zeros would become 6.
"""

from __future__ import annotations

import torch

from cutefp4.format import (
    BLOCK,
    E2M1_MAX,
    E4M3_MAX,
    FLT_MAX,
    amax,
    decode_e4m3,
    decode_scale,
    divide,
    encode_e4m3,
    encode_scale,
    numerator,
)
from cutefp4.scale_layout import round_up

PER_TOKEN_FLOOR = 1e-12
TORCHAO_SCALE_FLOOR = 2.0**-6


def block_amax(values: torch.Tensor, block: str) -> torch.Tensor:
    """amax of every block, NaN ignored.

    Args:
        values: fp32 (rows, k), k a multiple of 16.
        block: "1d" for 1x16 blocks; "2d" for 16x16 tiles (a last tile of fewer rows is one of its own).

    Returns:
        fp32 (rows, k/16); for "2d" each tile's amax stands in all of its rows.
    """
    rows, k = values.shape
    lines = amax(values.view(rows, k // BLOCK, BLOCK), dim=-1)
    if block == "1d":
        return lines
    return spread_tiles(tile_lines(lines).amax(dim=1), rows)


def tile_lines(lines: torch.Tensor) -> torch.Tensor:
    """(rows, blocks) values of 1x16 lines to (tiles, 16, blocks), the last tile padded with zeros."""
    rows, blocks = lines.shape
    padded = lines.new_zeros(round_up(rows, BLOCK), blocks)
    padded[:rows] = lines
    return padded.view(-1, BLOCK, blocks)


def spread_tiles(tiles: torch.Tensor, rows: int) -> torch.Tensor:
    """(tiles, blocks) to (rows, blocks): every tile's value in each of its up to 16 rows."""
    return tiles.repeat_interleave(BLOCK, dim=0)[:rows]


def _reciprocal_of_six(like: torch.Tensor) -> torch.Tensor:
    return divide(torch.ones((), dtype=torch.float32, device=like.device), E2M1_MAX)


def _te(bamax: torch.Tensor, outer: torch.Tensor, e4m3_max: int) -> tuple[torch.Tensor, torch.Tensor]:
    s_enc = encode_scale(outer, e4m3_max)
    scale = encode_e4m3((bamax * (s_enc * _reciprocal_of_six(bamax))).clamp(max=FLT_MAX))
    product = decode_e4m3(scale) * decode_scale(s_enc)
    return scale, torch.div(torch.ones_like(product), product).clamp(max=FLT_MAX)


def _per_token(bamax: torch.Tensor, outer: torch.Tensor, e4m3_max: int) -> tuple[torch.Tensor, torch.Tensor]:
    s_enc = encode_scale(outer.clamp(min=PER_TOKEN_FLOOR), e4m3_max)
    scale = encode_e4m3(bamax * (s_enc * _reciprocal_of_six(bamax)))
    s = decode_e4m3(scale)
    return scale, torch.where(s == 0, torch.zeros_like(s), torch.div(s_enc.expand_as(s), s))


def _torchao(bamax: torch.Tensor, outer: torch.Tensor, e4m3_max: int) -> tuple[torch.Tensor, torch.Tensor]:
    p = divide(outer, numerator(e4m3_max))
    p = torch.where((p == 0) | torch.isinf(outer), torch.ones_like(p), p)
    scale = encode_e4m3(torch.div(divide(bamax, E2M1_MAX), p).clamp(TORCHAO_SCALE_FLOOR, E4M3_MAX))
    reciprocal = torch.div(torch.ones_like(p), p).clamp(max=FLT_MAX)
    s = decode_e4m3(scale)
    return scale, torch.div(reciprocal.expand_as(s), s)


_ARITHMETIC = {"te": _te, "per_token": _per_token, "torchao": _torchao}


def block_scales(
    bamax: torch.Tensor, outer: torch.Tensor, arithmetic: str, e4m3_max: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and element multiplier of every block.

    Args:
        bamax: fp32 (rows, blocks), amax of each block.
        outer: fp32, the outer amax A: () or (rows, 1).
        arithmetic: "te", "per_token" or "torchao".
        e4m3_max: 448 or 256.

    Returns:
        (float8_e4m3fn scales, fp32 multipliers), both (rows, blocks); codes are e2m1(fl(x * multiplier)).
    """
    return _ARITHMETIC[arithmetic](bamax, outer, e4m3_max)
