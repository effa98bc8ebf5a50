"""fp32 to E2M1 codes, rounded stochastically: away from zero iff floor(256 * position between the neighbours) + r8 >=
256, for 8 random bits r8 an element (R-SR).

Two elements at a time as fp16. E2M1 has two exponent bits, and fp16 its smallest normal number at 2^-14: of y * 2^-14,
y <= 6, truncated to fp16, bits 11..9 are the code of the neighbour below y (subnormals included) and bits 8..0 are
floor(512 * position). Adding 2 * r8 to such a lane, as an integer, carries into the code iff the rule says away:
floor(512 p) = 2 * floor(256 p) + 0 or 1. Bit 15 keeps the sign. y above 6, Inf and NaN become 6 by a minimum of
magnitudes that keeps the sign, and 6 has position 0.

Truncation must be the only rounding after y = fl(x * m). 2^-14 is exact on y, unless y is so small that its code and
position are 0 in any case; or it is exact on the multiplier ("folded"), unless that is below 2^-112.

Elements are paired 0 with 2 and 1 with 3, so that one PRMT spreads the random bytes of a pair to its lanes. Per element
FMUL, 1/2 F2FP, 1/2 HMNMX2, 1/2 PRMT, 1/2 IMAD or LEA, and 1 for joining with signs; one FMUL more if not folded. In
fp32 it was 2 FMUL, FMNMX, PRMT, IMAD, and 1 for joining, without the signs.
"""

from dataclasses import dataclass

from cutefp4.kernels.common import ptx
from cutlass import Float32, Uint32

LEAST_FOLDED = 2.0**-112
"""Multipliers from here on can be folded."""

TO_FP16 = 2.0**-14
_SIX = 0x0E000E00  # 6 * 2^-14 in both lanes
_HALVES = 0x0F0F0F0F


@dataclass(frozen=True)
class Dither:
    """Random bits of a block: byte j of word w belongs to element 4 * w + j.

    Attributes:
        words: four of them.
        folded: the block's multiplier is 0 or at least LEAST_FOLDED.
    """

    words: tuple[Uint32, Uint32, Uint32, Uint32]
    folded: bool = False


def _lanes(low: Float32, high: Float32) -> Uint32:
    """Two products as truncated fp16, their magnitudes at most 6 * 2^-14."""
    text = "{ .reg .b32 t; cvt.rz.f16x2.f32 t, $2, $1; min.xorsign.abs.f16x2 $0, t, $3; }"
    return ptx.asm(text, Uint32, low, high, Uint32(_SIX))


def _rounded_quad(y: list[Float32], random: Uint32) -> tuple[Uint32, Uint32]:
    """Lanes of elements 0, 2 and of elements 1, 3: sign in bit 15, code in bits 11..9."""
    even = ptx.mad(ptx.prmt(random, Uint32(0), 0x4240), Uint32(2), _lanes(y[0], y[2]))
    odd = ptx.mad(ptx.prmt(random, Uint32(0), 0x4341), Uint32(2), _lanes(y[1], y[3]))
    return even, odd


def _join(quads: list[tuple[Uint32, Uint32]]) -> Uint32:
    """Eight codes with signs as nibbles of one word."""
    (even0, odd0), (even1, odd1) = quads
    # Bytes s000cccj of elements 0, 2, 4, 6 and 1, 3, 5, 7; j is a bit of the position.
    even, odd = ptx.prmt(even0, even1, 0x7531), ptx.prmt(odd0, odd1, 0x7531)
    low = ptx.lop3(even >> Uint32(1), even >> Uint32(4), Uint32(_HALVES), 0xA8)
    high = ptx.lop3(odd, odd << Uint32(3), Uint32(_HALVES), 0x54)
    return low | high


def encode_stochastic(x: list[Float32], multiplier: Float32, random: tuple[Uint32, Uint32], folded: bool) -> Uint32:
    """Codes of eight elements, with their own signs; that of NaN counts, too, unless the product clears it."""
    if folded:
        factor = ptx.mul(multiplier, Float32(TO_FP16))
        y = [ptx.mul(v, factor) for v in x]
    else:
        y = [ptx.mul(ptx.mul(v, multiplier), Float32(TO_FP16)) for v in x]
    return _join([_rounded_quad(y[4 * w : 4 * w + 4], random[w]) for w in (0, 1)])
