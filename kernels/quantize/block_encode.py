"""Encode one block of 16 values: scale byte and two words of codes, under any recipe.

`BlockMath` is the part of a plan that decides the bytes of a block; it is the same for every kernel that quantises.
"""

from dataclasses import dataclass

from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.e2m1_encode import encode_nearest, with_signs
from cutefp4.kernels.common.e2m1_grid import LARGEST_PRODUCT
from cutefp4.kernels.common.e2m1_stochastic import Dither, encode_stochastic
from cutefp4.kernels.quantize.block_scale import Outer, block_scale, outer_of
from cutefp4.kernels.quantize.four_over_six import Candidate, candidates, line_error, usual_amaxes
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


def both_errors(x: list[Float32], outer: Outer, pair, math: BlockMath, arch: str, short: bool, usual=False):
    """`line_error` of the map-to-6 and the map-to-4 candidate. `short`: the elements have at most 11 bits."""
    strict = math.four_over_six_error == "strict"
    form = (math.four_over_six, strict, math.e4m3_max, arch, short, usual)
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

    It does not if a product is too large to go without a clamp, if there is a NaN, or if amaxes are so small or large
    that divisions by constants need care. Clamps are 2 of 24 instructions an element, and on the slower pipe.
    """
    pair = candidates(bamax, outer, usual=True)
    (error6, *codes6), (error4, *codes4) = both_errors(v.x, outer, pair, math, "sm_90a", True, usual=True)
    four = error4 < error6
    byte, _ = _choose(four, *pair)
    codes = [ptx.select(four, a, b) for a, b in zip(codes4, codes6, strict=True)]
    codes = [with_signs(c, signs) for c, signs in zip(codes, v.signs, strict=True)]
    # The multiplier of map-to-4 is never the larger one.
    small = ptx.mul(bamax, pair[0].multiplier) <= Float32(LARGEST_PRODUCT)
    usual = usual_amaxes(bamax, outer, math.four_over_six_error == "strict")
    return Encoded(byte, *codes), small & (error6 == error6) & usual


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
