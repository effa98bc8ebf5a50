"""Encode one block of 16 values: scale byte and two words of codes, under any recipe.

`BlockMath` is the part of a plan that decides the bytes of a block; it is the same for every kernel that quantises.
"""

from dataclasses import dataclass

from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.e2m1_encode import encode_nearest, with_signs
from cutefp4.kernels.common.e2m1_grid import GRID_SCALE, LARGEST_PRODUCT, least_on_grid
from cutefp4.kernels.common.e2m1_stochastic import Dither, encode_stochastic
from cutefp4.kernels.quantize.block_scale import Outer, block_scale, outer_of
from cutefp4.kernels.quantize.four_over_six import (
    Candidate,
    candidates,
    decides,
    line_error,
    near_error,
    usual_amaxes,
    usual_candidates,
)
from cutefp4.kernels.quantize.input_block import Values
from cutlass import Boolean, Float32, Uint32

from cutefp4.quant_plan import BlockMath


@dataclass(frozen=True)
class Encoded:
    """Scale byte and codes of a block; `low` holds elements 0..7, the first one in the lowest nibble."""

    scale: Uint32
    low: Uint32
    high: Uint32


def make_outer(amax: Float32, math: BlockMath) -> Outer:
    """4over6 takes the raw amax with TransformerEngine's arithmetic, whatever the recipe's arithmetic is."""
    return outer_of(amax, "te" if math.four_over_six != "none" else math.arithmetic, math.e4m3_max)


def encode_values(
    v: Values, multiplier: Float32, math: BlockMath, arch: str, random: Dither | None
) -> tuple[Uint32, Uint32]:
    """The two words of codes; `random` if the recipe rounds stochastically."""
    halves = (v.x[:8], v.x[8:])
    if math.rounding == "stochastic":
        words = (random.words[:2], random.words[2:])
        return tuple(encode_stochastic(x, multiplier, w, random.folded) for x, w in zip(halves, words, strict=True))
    return tuple(encode_nearest(x, multiplier, signs, arch) for x, signs in zip(halves, v.signs, strict=True))


def both_errors(x: list[Float32], outer: Outer, pair, math: BlockMath, arch: str, short: bool):
    """`line_error` of the map-to-6 and the map-to-4 candidate. `short`: the elements have at most 11 bits."""
    strict = math.four_over_six_error == "strict"
    form = (math.four_over_six, strict, math.e4m3_max, arch, short)
    return [line_error(x, outer, c, *form) for c in pair]


def _choose(four: Boolean, six: Candidate, other: Candidate) -> tuple[Uint32, Float32]:
    return ptx.select(four, other.byte, six.byte), ptx.select(four, other.multiplier, six.multiplier)


def encode_block(
    v: Values, bamax: Float32, outer: Outer, math: BlockMath, arch: str, random: Dither | None = None
) -> Encoded:
    """A 1x16 block by itself."""
    if math.four_over_six == "none":
        byte, multiplier = block_scale(bamax, outer, math.arithmetic)
        return Encoded(byte, *encode_values(v, multiplier, math, arch, random))
    pair = candidates(bamax, outer)
    (error6, *codes6), (error4, *codes4) = both_errors(v.x, outer, pair, math, arch, v.short)
    four = error4 < error6
    byte, multiplier = _choose(four, *pair)
    if math.rounding == "stochastic":
        return Encoded(byte, *encode_values(v, multiplier, math, arch, random))
    codes = [ptx.select(four, a, b) for a, b in zip(codes4, codes6, strict=True)]
    if arch == "sm_90a":
        codes = [with_signs(c, signs) for c, signs in zip(codes, v.signs, strict=True)]
    return Encoded(byte, *codes)


def encode_usual_block(v: Values, bamax: Float32, outer: Outer, math: BlockMath) -> tuple[Encoded, Boolean]:
    """A 1x16 block of short elements under 4over6, to nearest, on sm_90a; and whether `encode_block` gives the same.

    It does not if a product is too large to go without a clamp, if there is a NaN, if amaxes are very small or large,
    or if both errors are so close that their exact sums must be compared. This takes 20 instructions an element; exact
    sums took 1 (fast) or 10 (strict) more, and rounding by `round_on_grid` 3.

    Rejected: codes packed as fp16, which takes half of E4M3's time, and elements unpacked on the FMA pipe, to relieve
    the ALU: 100.1 us instead of 98.7 (fast), 103.7 instead of 103.0 (strict).
    """
    pair = usual_candidates(bamax, outer)
    magnitudes = [ptx.fabs(value) for value in v.x]
    # Above 1 / multiplier of map-to-4, and so, as its scale is at most 1.75 times the other one, below 2 of map-to-6.
    least = least_on_grid(ptx.mul(pair[1].step, Float32(GRID_SCALE)))
    raised = [ptx.fmax(value, least) for value in magnitudes]
    (error6, *codes6), (error4, *codes4) = (near_error(magnitudes, raised, c, math.four_over_six) for c in pair)
    four = error4 < error6
    byte = ptx.select(four, pair[1].byte, pair[0].byte)
    codes = [ptx.select(four, a, b) for a, b in zip(codes4, codes6, strict=True)]
    codes = [with_signs(c, signs) for c, signs in zip(codes, v.signs, strict=True)]
    # The multiplier of map-to-4 is never the larger one.
    small = ptx.mul(bamax, pair[0].multiplier) <= Float32(LARGEST_PRODUCT * GRID_SCALE)
    clear = decides(error6, error4, pair, bamax, math.four_over_six)
    return Encoded(byte, *codes), small & clear & usual_amaxes(bamax, outer, math.four_over_six)


def line_scale(tile_amax: Float32, four: Boolean | None, outer: Outer, math: BlockMath) -> tuple[Uint32, Float32]:
    """(E4M3 byte, multiplier) of the lines of a 16x16 block, whose amax and 4over6 choice the tile has made."""
    if math.four_over_six == "none":
        return block_scale(tile_amax, outer, math.arithmetic)
    return _choose(four, *candidates(tile_amax, outer))


def encode_line(
    v: Values,
    tile_amax: Float32,
    four: Boolean | None,
    outer: Outer,
    math: BlockMath,
    arch: str,
    random: Dither | None = None,
) -> Encoded:
    """One line of a 16x16 block."""
    byte, multiplier = line_scale(tile_amax, four, outer, math)
    return Encoded(byte, *encode_values(v, multiplier, math, arch, random))
