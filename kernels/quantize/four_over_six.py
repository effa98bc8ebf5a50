"""4over6 on the device: encode a block under two scales, keep the one with the smaller error.

    base = fl(fl(bamax / 6) * S_enc);   s6 = e4m3(min(base, 448));   s4 = e4m3(min(fl(base * 1.5), 448))
    m_c  = min(fl(1 / fl(s_c * S_dec)), FLT_MAX);   q_c = e2m1(fl(x * m_c));   4 is chosen iff err_4 < err_6

    strict: d = fl(fl(fl(fl(q * s) * A) / NUM) - x)        fast: d = fl(fl(q * s) - fl(x * S_enc))
    err: |d| ("mae") or fl(d * d) ("mse"), added to 0 in ascending order, one rounding per addition

All differences are taken between magnitudes, which changes no bit of |d|. q * s is exact, so its power-of-two factor may
differ: fp32 holds q * 2^-126 and s * 2^119 (see e2m1_encode), whose product is q * s * 2^-7 in one multiplication; the
fast path compares it with x * (S_enc * 2^-7), and scales both errors alike.

The strict division by the constant NUM is one multiplication and two FMAs (Markstein: q0 = fl(a * r), q0 + (a - q0 * NUM)
* r with r = fl(1 / NUM) is the correctly rounded quotient while nothing over- or underflows); outer amaxes outside
2^-100 .. 2^110 take the IEEE division instruction.
"""

from dataclasses import dataclass

from cutlass import Boolean, Float32, Uint32

from cutefp4.format import E2M1_MAX, E4M3_MAX, FLT_MAX, numerator
from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.e2m1_encode import encode_and_decode, raw_value
from cutefp4.kernels.common.e4m3_encode import encode_scale, scale_value
from cutefp4.kernels.quantize.block_scale import Outer

_FAST_FACTOR = 2.0**-7
_SAFE_AMAX = (2.0**-100, 2.0**110)


@dataclass(frozen=True)
class Candidate:
    """One of the two scales of a block: E4M3 byte, its value, the multiplier of the elements."""

    byte: Uint32
    scale: Float32
    multiplier: Float32


def candidates(bamax: Float32, outer: Outer) -> tuple[Candidate, Candidate]:
    """(map-to-6, map-to-4)."""
    base = ptx.mul(ptx.div(bamax, Float32(E2M1_MAX)), outer.s_enc)
    pair = []
    for wanted in (base, ptx.mul(base, Float32(1.5))):
        byte = encode_scale(ptx.fmin(wanted, Float32(E4M3_MAX)))
        scale = scale_value(byte)
        multiplier = ptx.fmin(ptx.reciprocal(ptx.mul(scale, outer.s_dec)), Float32(FLT_MAX))
        pair.append(Candidate(byte, scale, multiplier))
    return pair[0], pair[1]


def _divide_by_numerator(a: Float32, e4m3_max: int, safe: Boolean) -> Float32:
    """fl(a / NUM)."""
    n = Float32(numerator(e4m3_max))
    r = Float32(1.0 / numerator(e4m3_max))
    text = (
        "{ .reg .pred p; .reg .f32 q, e, d; setp.ne.u32 p, $4, 0; "
        "@p mul.rn.f32 q, $1, $3; @p neg.f32 d, q; @p fma.rn.f32 e, d, $2, $1; @p fma.rn.f32 $0, e, $3, q; "
        "@!p div.rn.f32 $0, $1, $2; }"
    )
    return ptx.asm(text, Float32, a, n, r, safe)


def line_error(
    x: list[Float32], outer: Outer, candidate: Candidate, metric: str, strict: bool, e4m3_max: int, arch: str
) -> tuple[Float32, Uint32, Uint32]:
    """(error sum, low word, high word of codes) of 16 elements under one candidate."""
    factor = 1.0 if strict else _FAST_FACTOR
    raw = raw_value(arch)
    # s * 2^126 would overflow, so the strict path multiplies the missing powers in two steps.
    first = Float32(_FAST_FACTOR / raw) if raw < 1 else Float32(_FAST_FACTOR)
    scale = ptx.mul(candidate.scale, first)
    domain = ptx.mul(outer.s_enc, Float32(_FAST_FACTOR))
    safe = (outer.amax >= Float32(_SAFE_AMAX[0])) & (outer.amax <= Float32(_SAFE_AMAX[1]))
    error, words = Float32(0.0), []
    for half in (x[:8], x[8:]):
        word, magnitudes = encode_and_decode(half, candidate.multiplier, arch)
        words.append(word)
        for value, q in zip(half, magnitudes, strict=True):
            product = ptx.mul(q, scale)
            if strict:
                product = ptx.mul(ptx.mul(product, Float32(factor / _FAST_FACTOR)), outer.amax)
                d = ptx.sub(_divide_by_numerator(product, e4m3_max, safe), ptx.fabs(value))
            else:
                d = ptx.sub(product, ptx.mul(ptx.fabs(value), domain))
            error = ptx.add(error, ptx.fabs(d) if metric == "mae" else ptx.mul(d, d))
    return error, words[0], words[1]
