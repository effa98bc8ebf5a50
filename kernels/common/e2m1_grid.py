"""fp32 to E2M1 codes on sm_90a with few instructions of the ALU: round on a grid that follows the magnitude.

    q(y) = RN(B + y) - B,    y = fl(x * m)

rounds y to a multiple of the ulp of B, ties to even, if B is an even multiple of it. With

    B = 2^22 * clamp(Y, 1, 5),    Y = x * (m cut to 8 bits), a little below y

the ulp is 1/2, 1 or 2 as Y is below 2, below 4 or above, which is E2M1's step. Between 2 and 2 * (1 + 2^-7), and
likewise above 4, the finer step is used where the coarser one would do; both round these y to 2 (4). B is even, because
x has at most 11 significant bits and the cut m has 8: their product, hence B, is a multiple of many ulps.

B is made by one FFMA.SAT and one FFMA, so that nothing but the clamp of y to 6 needs the ALU, which issues half as many
instructions as the FMA pipe and limits the casts. All is scaled by 2^-6: then the byte that F2FP makes of q, an E4M3
number, is 4 * code, 1/2 being subnormal, and one instruction packs two elements.

Per element 5 FMUL, FFMA, FADD, 1/2 F2FP and 1/4 for joining; by pieces (e2m1_encode) it is 7 (one on the ALU) and 7/8.
Rejected:
    multiplying and rounding in one FFMA, where no product of a multiplier with 8 bits rounds to a tie, as a table of
    all 126 scales of an outer amax can tell: 15 % fewer instructions, but with the table, its barrier and 3 CTAs an
    SM, both copies of (16384, 6144) took 104 us instead of 101;
    counting seven packed comparisons of x with thresholds, made exactly for each block scale: HSET2 is an ALU
    instruction on sm_90 (measured: HSET2 and LOP3 together 2 a clock and SM, FFMA alone 4), so two thirds would be.
"""

from cutefp4.kernels.common import ptx
from cutlass import Float32, Uint32

GRID_SCALE = 2.0**-6
LARGEST_PRODUCT = 6.5
"""Up to here `round_on_grid` needs no clamp."""


def grid_factor(multiplier: Float32) -> Float32:
    """The factor that finds Y / 4: the multiplier cut to 8 bits, times 1/4."""
    return ptx.mul(ptx.from_bits(ptx.bits(multiplier) & Uint32(0xFFFF0000)), Float32(0.25))


def round_on_grid(magnitude: Float32, y: Float32, factor: Float32) -> Float32:
    """E2M1 magnitude next to y times 2^-6, for y = fl(magnitude * multiplier) <= 6.5."""
    above_one = ptx.fma_sat(magnitude, factor, Float32(-0.25))
    base = ptx.fma(above_one, Float32(2.0**24 * GRID_SCALE), Float32(2.0**22 * GRID_SCALE))
    return ptx.sub(ptx.fma(y, Float32(GRID_SCALE), base), base)


def least_on_grid(inverse: Float32) -> Float32:
    """Lower bound of magnitudes for `round_over_product`: 8 bits, a little above `inverse`, which is 1 / multiplier."""
    return ptx.from_bits(ptx.bits(ptx.mul(inverse, Float32(1.04))) & Uint32(0xFFFF0000))


def product_factor(multiplier: Float32) -> Float32:
    """The factor of `round_over_product`: the multiplier cut to 8 bits, times 2^22."""
    return ptx.mul(ptx.from_bits(ptx.bits(multiplier) & Uint32(0xFFFF0000)), Float32(2.0**22))


def round_over_product(magnitude: Float32, raised: Float32, multiplier: Float32, factor: Float32) -> Float32:
    """E2M1 magnitude next to y, times 2^-6, for y * 2^-6 = fl(magnitude * multiplier), y <= 6.5.

    Here B = raised * factor, `raised` = max(magnitude, a bound of 8 bits whose product lies in 1 .. 2). It is exact, so
    one FFMA adds it and another takes it away: 3 instructions, and a maximum that multipliers between which the bound
    serves can share (4over6), instead of 5. Multipliers must be normal after they have been multiplied by 2^-6.
    """
    y = ptx.mul(magnitude, multiplier)
    return ptx.fma(-raised, factor, ptx.fma(raised, factor, y))


def _four_bytes(values: list[Float32]) -> Uint32:
    """E4M3 bytes of four values."""
    text = (
        "{ .reg .b16 lo, hi; cvt.rn.satfinite.e4m3x2.f32 lo, $2, $1; cvt.rn.satfinite.e4m3x2.f32 hi, $4, $3; "
        "mov.b32 $0, {lo, hi}; }"
    )
    return ptx.asm(text, Uint32, *values)


def join_rounded(values: list[Float32]) -> Uint32:
    """The codes of eight values of `round_on_grid` as nibbles of one word, without signs."""
    even, odd = _four_bytes(values[::2]), _four_bytes(values[1::2])
    return ptx.mad(odd, Uint32(4), even >> Uint32(2))


def encode_magnitudes(magnitudes: list[Float32], multiplier: Float32, factor: Float32) -> Uint32:
    """Codes of eight magnitudes, without signs; no product may be above 6.5."""
    return join_rounded([round_on_grid(x, ptx.mul(x, multiplier), factor) for x in magnitudes])
