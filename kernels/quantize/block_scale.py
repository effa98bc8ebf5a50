"""From amaxes to the E4M3 scale of a block and the multiplier of its elements, in the three arithmetics.

Single IEEE fp32 operations in this order; NUM = 6 * e4m3_max, c6 = fl(1/6):

    S_enc       min(fl(NUM / A), FLT_MAX), but 1 where A = 0 or the quotient is 0 (A = Inf)
    te          s = e4m3(min(fl(bamax * fl(S_enc * c6)), FLT_MAX));    m = min(fl(1 / fl(s * fl(1 / S_enc))), FLT_MAX)
    per_token   S_enc of max(A, 1e-12);  s = e4m3(fl(bamax * fl(S_enc * c6)));    m = 0 if s = 0, else fl(S_enc / s)
    torchao     p = fl(A / NUM), but 1 where A or p is 0 or A is Inf
                s = e4m3(clamp(fl(fl(bamax / 6) / p), 2^-6, 448));    m = fl(min(fl(1 / p), FLT_MAX) / s)

What depends on A alone (`Outer`) is computed once per row or tensor, the rest once per block.

The divisions per block have no branches, so that the blocks of a thread overlap:

    1 / p       MUFU.RCP and one Newton step, as the compiler's own division does for arguments in range; p is brought
                into range by a power of two that depends on A
    S_enc / s   s has 126 nonzero values, for which the same step gives fl(1/s) from any start within 2 ulps (checked);
                then q = S_enc * fl(1/s) and one residual step round correctly (Markstein). S_enc is scaled by 2^64,
                so that no residual underflows.
"""

from dataclasses import dataclass

from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.e4m3_encode import encode_scale, scale_value
from cutlass import Float32, Uint32

from cutefp4.format import E2M1_MAX, E4M3_MAX, FLT_MAX, numerator

PER_TOKEN_FLOOR = 1e-12
TORCHAO_SCALE_FLOOR = 2.0**-6
_SIXTH = 0x3E2AAAAB  # fl(1/6)
_BYTE_256 = 0x78
_NAN = 0x7FFFFFFF


@dataclass(frozen=True)
class Outer:
    """What a block needs to know of its outer amax.

    Attributes:
        amax: A.
        s_enc: the encode scale; torchao: p.
        block_factor: fl(S_enc * c6).
        s_dec: fl(1 / S_enc); torchao: min(fl(1 / p), FLT_MAX).
        rescale: 2^64 if s_dec is so small that scale * s_dec may be subnormal, else 1; per_token: S_enc * 2^64.
        usual: s_dec (per_token: rescale), but NaN unless s_dec is between 2^-60 and 2^60; None for torchao.
    """

    amax: Float32
    s_enc: Float32
    block_factor: Float32
    s_dec: Float32
    rescale: Float32
    usual: Float32 | None = None


def encode_scale_of(amax: Float32, e4m3_max: int) -> Float32:
    """S_enc."""
    s = ptx.fmin(ptx.div(Float32(numerator(e4m3_max)), amax), Float32(FLT_MAX))
    return ptx.select((amax == Float32(0.0)) | (s == Float32(0.0)), Float32(1.0), s)


def outer_of(amax: Float32, arithmetic: str, e4m3_max: int) -> Outer:
    """Everything that depends on the outer amax alone."""
    if arithmetic == "torchao":
        p = ptx.div(amax, Float32(numerator(e4m3_max)))
        p = ptx.select((p == Float32(0.0)) | (amax > Float32(FLT_MAX)), Float32(1.0), p)
        return Outer(amax, p, p, ptx.fmin(ptx.reciprocal(p), Float32(FLT_MAX)), Float32(1.0))
    floored = ptx.fmax(amax, Float32(PER_TOKEN_FLOOR)) if arithmetic == "per_token" else amax
    s_enc = encode_scale_of(floored, e4m3_max)
    s_dec = ptx.reciprocal(s_enc)
    if arithmetic == "per_token":
        rescale = ptx.mul(s_enc, Float32(2.0**64))
    else:
        rescale = ptx.select(s_dec < Float32(2.0**-60), Float32(2.0**64), Float32(1.0))
    usual = (s_dec >= Float32(2.0**-60)) & (s_dec <= Float32(2.0**60))
    usual = ptx.select(usual, rescale if arithmetic == "per_token" else s_dec, ptx.from_bits(Uint32(_NAN)))
    return Outer(amax, s_enc, ptx.mul(s_enc, ptx.from_bits(Uint32(_SIXTH))), s_dec, rescale, usual)


def _newton_reciprocal(p: Float32) -> Float32:
    """fl(1 / p) for p in 2^-124 .. 2^126 (448 * S_dec stays below); Inf or NaN for 0."""
    text = (
        "{ .reg .f32 r, e; rcp.approx.ftz.f32 r, $1; neg.f32 e, $1; "
        "fma.rn.f32 e, e, r, 0f3F800000; fma.rn.f32 $0, r, e, r; }"
    )
    return ptx.asm(text, Float32, p)


def multiplier_of(scale: Float32, outer: Outer) -> Float32:
    """min(fl(1 / fl(scale * S_dec)), FLT_MAX); FLT_MAX for a scale of 0."""
    p = ptx.mul(ptx.mul(scale, outer.s_dec), outer.rescale)
    return ptx.fmin(ptx.mul(_newton_reciprocal(p), outer.rescale), Float32(FLT_MAX))


def _divide_by_scale(lifted: Float32, scale: Float32, power: float = 1.0) -> Float32:
    """fl(S_enc / scale) * power for lifted = S_enc * 2^64, S_enc <= 2^60 and an E4M3 scale; NaN for a scale of 0."""
    r = _newton_reciprocal(scale)
    q = ptx.mul(lifted, r)
    return ptx.mul(ptx.fma(ptx.fma(-q, scale, lifted), r, q), Float32(2.0**-64 * power))


def scale_byte(bamax: Float32, block_factor: Float32) -> Uint32:
    """E4M3 byte of a block's scale; not for "torchao"."""
    return encode_scale(ptx.mul(bamax, block_factor))


def block_scale(bamax: Float32, outer: Outer, arithmetic: str) -> tuple[Uint32, Float32]:
    """(E4M3 byte, multiplier) of a block."""
    if arithmetic == "torchao":
        wanted = ptx.div(ptx.div(bamax, Float32(E2M1_MAX)), outer.s_enc)
        byte = encode_scale(ptx.fmin(ptx.fmax(wanted, Float32(TORCHAO_SCALE_FLOOR)), Float32(E4M3_MAX)))
        return byte, ptx.div(outer.s_dec, scale_value(byte))
    byte = scale_byte(bamax, outer.block_factor)
    scale = scale_value(byte)
    if arithmetic == "te":
        return byte, multiplier_of(scale, outer)
    return byte, ptx.select(scale == Float32(0.0), Float32(0.0), _divide_by_scale(outer.rescale, scale))


def multiplier_and_inverse(byte: Uint32, outer: Outer, arithmetic: str) -> tuple[Float32, Float32]:
    """The multiplier of a block's elements, never 0, and an estimate of 1 / multiplier, to a few units of fp32.

    Not for "torchao". "per_token" multiplies by 0 where the scale is 0; S_enc / 256 leads to the same codes, as the
    block's amax is below 2^-7 / S_enc, and has an inverse.
    """
    if arithmetic == "te":
        scale = scale_value(byte)
        return multiplier_of(scale, outer), ptx.fmax(ptx.mul(scale, outer.s_dec), Float32(1 / FLT_MAX))
    scale = scale_value(ptx.select(byte == Uint32(0), Uint32(_BYTE_256), byte))
    return _divide_by_scale(outer.rescale, scale), ptx.mul(scale, outer.s_dec)


def usual_multiplier(byte: Uint32, top: Float32, outer: Outer, arithmetic: str, power: float):
    """(multiplier * power, whether it is that and the product of `top` is below 7), for an outer amax that is usual.

    Not for "torchao". "per_token": see `multiplier_and_inverse`.
    """
    if arithmetic == "te":
        p = ptx.mul(scale_value(byte), outer.usual)
        factor = ptx.fmin(ptx.mul(_newton_reciprocal(p), Float32(power)), Float32(FLT_MAX * power))
        return factor, top <= ptx.mul(p, Float32(6.9))
    scale = scale_value(ptx.select(byte == Uint32(0), Uint32(_BYTE_256), byte))
    factor = _divide_by_scale(outer.usual, scale, power)
    return factor, ptx.mul(top, factor) < Float32(7 * power)


def least_multiplier(outer: Outer, arithmetic: str) -> Float32:
    """A lower bound of the multipliers of all blocks, but those of 0."""
    return ptx.mul(outer.s_dec if arithmetic == "torchao" else outer.s_enc, Float32(2.0**-9))


def reciprocal_or_large(p: Float32) -> Float32:
    """fl(1 / p) for p in 2^-100 .. 2^126, 2^100 for 0."""
    return ptx.fmin(_newton_reciprocal(p), Float32(2.0**100))
