"""4over6 on the device: encode a block under two scales, keep the one with the smaller error.

    base = fl(fl(bamax / 6) * S_enc);   s6 = e4m3(min(base, 448));   s4 = e4m3(min(fl(base * 1.5), 448))
    m_c  = min(fl(1 / fl(s_c * S_dec)), FLT_MAX);   q_c = e2m1(fl(x * m_c));   4 is chosen iff err_4 < err_6

    strict: d = fl(fl(fl(fl(q * s) * A) / NUM) - x)        fast: d = fl(fl(q * s) - fl(x * S_enc))
    err: |d| ("mae") or fl(d * d) ("mse"), added to 0 in ascending order, one rounding per addition

All differences are taken between magnitudes, which changes no bit of |d|. q * s is exact, so its power-of-two factor
may differ: fp32 holds q * 2^-126 and s * 2^119, or q * 2^-6 and s / 2 (see e2m1_encode), whose product is q * s * 2^-7;
the fast path compares it with x * (S_enc * 2^-7), and scales both errors alike. Being exact, the product needs no
instruction there: one FMA rounds as the subtraction does.

The strict division by the constant NUM is one multiplication and two FMAs (Markstein: q0 = fl(a * r), q0 + (a - q0 *
NUM) * r with r = fl(1 / NUM) is the correctly rounded quotient while nothing over- or underflows). Outer amaxes
outside 2^-100 .. 2^110 do the same in double, whose quotient is never close enough to a tie of fp32 to be rounded
twice. (div.rn there made the kernel five times as long.)

Most blocks need no exact error sums, strict or fast: `near_error` evaluates

    d' = fl(q * p - |x|),   p = fl(s * S_dec)     (mse: the square enters the sum by an FMA)

for both, one instruction a difference. In units of 2^-24, p is 3 off s * A / NUM (2 off s / S_enc), the contract's
value of q * s 2 more (its x * S_enc 1), d' and d 1 each, and both sums 15 of themselves. As q * p <= |x| + |d| and
|x| <= bamax, sums under mae are at most 37 err + 80 bamax apart, under mse, where |d| <= p, 45 err + 160 bamax p;
`decides` doubles that for the two candidates, and more than half again. Decisions that are closer (1 block in 10^4 of
normal data) are left to the exact sums.
"""

import struct
from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.e2m1_encode import encode_and_decode, raw_value
from cutefp4.kernels.common.e2m1_grid import GRID_SCALE, join_rounded, product_factor, round_over_product
from cutefp4.kernels.common.e4m3_encode import encode_scale, scale_value
from cutefp4.kernels.quantize.block_scale import Outer, multiplier_of, reciprocal_or_large
from cutlass import Boolean, Float32, Uint32

from cutefp4.format import E2M1_MAX, E4M3_MAX, numerator

_FAST_FACTOR = 2.0**-7
_SAFE_AMAX = (2.0**-100, 2.0**110)
_SQUARABLE = (2.0**-50, 2.0**60)
_LEAST_USUAL_OUTER = 2.0**-48


@dataclass(frozen=True)
class Candidate:
    """One of the two scales of a block: E4M3 byte, its value, the multiplier of the elements."""

    byte: Uint32
    scale: Float32
    multiplier: Float32


def _scale_bytes(sixth: Float32, outer: Outer) -> list[Uint32]:
    """Of map-to-6 and map-to-4; `sixth`: fl(bamax / 6)."""
    base = ptx.mul(sixth, outer.s_enc)
    return [encode_scale(ptx.fmin(v, Float32(E4M3_MAX))) for v in (base, ptx.mul(base, Float32(1.5)))]


def candidates(bamax: Float32, outer: Outer) -> tuple[Candidate, Candidate]:
    """(map-to-6, map-to-4)."""
    pair = []
    for byte in _scale_bytes(ptx.div(bamax, Float32(E2M1_MAX)), outer):
        scale = scale_value(byte)
        pair.append(Candidate(byte, scale, multiplier_of(scale, outer)))
    return pair[0], pair[1]


@dataclass(frozen=True)
class UsualCandidate:
    """`Candidate` of a usual block: E4M3 byte, multiplier * 2^-6, and 2^6 / multiplier but for roundings."""

    byte: Uint32
    multiplier: Float32
    step: Float32


def usual_candidates(bamax: Float32, outer: Outer) -> tuple[UsualCandidate, UsualCandidate]:
    """`candidates` if `usual_amaxes`."""
    lifted, pair = ptx.mul(outer.s_dec, Float32(1 / GRID_SCALE)), []
    for byte in _scale_bytes(_divide_by(bamax, E2M1_MAX), outer):
        step = ptx.mul(scale_value(byte), lifted)
        pair.append(UsualCandidate(byte, reciprocal_or_large(step), step))
    return pair[0], pair[1]


def _divide_by(a: Float32, constant: float) -> Float32:
    """fl(a / constant), unless something under- or overflows on the way."""
    n, r = Float32(constant), Float32(1.0 / constant)
    q = ptx.mul(a, r)
    return ptx.fma(ptx.fma(-q, n, a), r, q)


def _divide_by_numerator(a: Float32, e4m3_max: int, in_double: bool) -> Float32:
    """fl(a / NUM)."""
    if in_double:
        n, r = (struct.pack(">d", v).hex() for v in (numerator(e4m3_max), 1 / numerator(e4m3_max)))
        text = (
            "{ .reg .f64 a, q, m, e; .reg .pred p; cvt.f64.f32 a, $1; "
            f"mul.rn.f64 q, a, 0d{r}; neg.f64 m, q; fma.rn.f64 e, m, 0d{n}, a; fma.rn.f64 q, e, 0d{r}, q; "
            "cvt.rn.f32.f64 $0, q; setp.eq.f32 p, $1, 0f7F800000; @p mov.f32 $0, $1; }"
        )
        return ptx.asm(text, Float32, a)
    return _divide_by(a, numerator(e4m3_max))


def _sum(differences: list[Float32], metric: str) -> Float32:
    """|d| or d * d, added in ascending order."""
    terms = [ptx.fabs(d) if metric == "mae" else ptx.mul(d, d) for d in differences]
    error = terms[0]
    for term in terms[1:]:
        error = ptx.add(error, term)
    return error


def _strict_sum(x, products, amax: Float32, metric: str, e4m3_max: int, in_double: bool) -> Float32:
    """Error sum in input units; `products` are |q * s|."""
    differences = []
    for value, product in zip(x, products, strict=True):
        v = _divide_by_numerator(ptx.mul(product, amax), e4m3_max, in_double)
        differences.append(ptx.sub(v, ptx.fabs(value)))
    return _sum(differences, metric)


@cute.jit
def _strict_error(
    x: cutlass.Constexpr,
    products: cutlass.Constexpr,
    amax: Float32,
    metric: cutlass.Constexpr,
    e4m3_max: cutlass.Constexpr,
):
    """`_strict_sum` with the cheap division where it is exact."""
    error = Float32(0.0)
    if (amax >= Float32(_SAFE_AMAX[0])) & (amax <= Float32(_SAFE_AMAX[1])):
        error = _strict_sum(x, products, amax, metric, e4m3_max, False)
    else:
        error = _strict_sum(x, products, amax, metric, e4m3_max, True)
    return error


def usual_amaxes(bamax: Float32, outer: Outer, metric: str) -> Boolean:
    """Whether nothing under- or overflows in `usual_candidates` and `near_error`, and map-to-4 takes at most 1.75 times
    the scale of map-to-6 (twice, if that is one or two of E4M3's subnormal steps)."""
    least, most = _SQUARABLE if metric == "mse" else _SAFE_AMAX
    third_step = ptx.fmax(ptx.mul(outer.s_dec, Float32(E2M1_MAX * 2.6 * 2.0**-9)), Float32(least))
    good = (bamax >= third_step) | (bamax == Float32(0.0))
    return good & (outer.amax >= Float32(_LEAST_USUAL_OUTER)) & (outer.amax <= Float32(most))


def near_error(x: list[Float32], raised: list[Float32], candidate: Candidate, metric: str):
    """(error sum in input units, nearly; low word, high word of codes without signs) of 16 magnitudes of a usual block
    of short elements on sm_90a; `raised`: e2m1_grid.round_over_product."""
    multiplier, error, rounded = candidate.multiplier, None, []
    factor = product_factor(multiplier)
    for value, high in zip(x, raised, strict=True):
        q = round_over_product(value, high, multiplier, factor)
        d = ptx.fma(q, candidate.step, -value)
        if error is None:
            error = ptx.fabs(d) if metric == "mae" else ptx.mul(d, d)
        else:
            error = ptx.add(error, ptx.fabs(d)) if metric == "mae" else ptx.fma(d, d, error)
        rounded.append(q)
    return error, join_rounded(rounded[:8]), join_rounded(rounded[8:])


def decides(error6: Float32, error4: Float32, pair, bamax: Float32, metric: str) -> Boolean:
    """Whether sums of `near_error` are so far apart that the exact ones compare alike; not if one is NaN."""
    apart = ptx.sub(error4, error6)
    product = bamax if metric == "mae" else ptx.mul(bamax, pair[1].step)
    weight = 2.0**-16 if metric == "mae" else 2.0**-15 * GRID_SCALE
    bound = ptx.fma(product, Float32(weight), ptx.mul(ptx.add(error4, error6), Float32(2.0**-18)))
    # Equal scales (of zeros, or both saturated) have equal errors.
    same = (pair[0].byte == pair[1].byte) & (apart == Float32(0.0))
    return (ptx.fabs(apart) > bound) | same


def line_error(
    x: list[Float32],
    outer: Outer,
    candidate: Candidate,
    metric: str,
    strict: bool,
    e4m3_max: int,
    arch: str,
    short: bool,
) -> tuple[Float32, Uint32, Uint32]:
    """(error sum, low word, high word of codes) of 16 elements under one candidate; codes as `encode_and_decode`'s."""
    raw = raw_value(arch, short)
    # q may carry 2^-126 on sm_90a; s * 2^126 would overflow, so the product keeps 2^-7.
    factor = 1.0 if strict and raw > 2.0**-100 else _FAST_FACTOR
    scale = ptx.mul(candidate.scale, Float32(factor / raw))
    low, magnitudes = encode_and_decode(x[:8], candidate.multiplier, arch, short)
    high, more = encode_and_decode(x[8:], candidate.multiplier, arch, short)
    magnitudes += more
    if strict:
        products = [ptx.mul(q, scale) for q in magnitudes]
        if factor != 1.0:
            products = [ptx.mul(p, Float32(1 / factor)) for p in products]
        return _strict_error(x, products, outer.amax, metric, e4m3_max), low, high
    domain = ptx.mul(outer.s_enc, Float32(_FAST_FACTOR))
    differences = [ptx.fma(q, scale, -ptx.mul(ptx.fabs(v), domain)) for q, v in zip(magnitudes, x, strict=True)]
    return _sum(differences, metric), low, high
