"""Elementwise functions of the epilogue on fp32 device values, one fp32 operation per node.

The compiler must not contract fl(a * b) + c into an fma, so products and sums are the rounding-explicit PTX forms.
"""

import math

import cutlass.cute as cute
from cutlass import Float32, Int32
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)


def _ptx(operation: str, *operands: Float32, loc=None, ip=None) -> Float32:
    arguments = [Float32(x).ir_value(loc=loc, ip=ip) for x in operands]
    slots = ", ".join(f"${i}" for i in range(len(arguments) + 1))
    constraints = ",".join(["=f"] + ["f"] * len(arguments))
    return Float32(
        llvm.inline_asm(
            T.f32(), arguments, f"{operation} {slots};", constraints, has_side_effects=False, loc=loc, ip=ip
        )
    )


@dsl_user_op
def mul(a: Float32, b: Float32, *, loc=None, ip=None) -> Float32:
    return _ptx("mul.rn.f32", a, b, loc=loc, ip=ip)


@dsl_user_op
def add(a: Float32, b: Float32, *, loc=None, ip=None) -> Float32:
    return _ptx("add.rn.f32", a, b, loc=loc, ip=ip)


@dsl_user_op
def sub(a: Float32, b: Float32, *, loc=None, ip=None) -> Float32:
    return _ptx("sub.rn.f32", a, b, loc=loc, ip=ip)


@dsl_user_op
def div(a: Float32, b: Float32, *, loc=None, ip=None) -> Float32:
    return _ptx("div.rn.f32", a, b, loc=loc, ip=ip)


@dsl_user_op
def fma(a: Float32, b: Float32, c: Float32, *, loc=None, ip=None) -> Float32:
    return _ptx("fma.rn.f32", a, b, c, loc=loc, ip=ip)


@dsl_user_op
def maximum(a: Float32, b: Float32, *, loc=None, ip=None) -> Float32:
    """max that keeps NaN, as torch.maximum."""
    return _ptx("max.NaN.f32", a, b, loc=loc, ip=ip)


@dsl_user_op
def minimum(a: Float32, b: Float32, *, loc=None, ip=None) -> Float32:
    return _ptx("min.NaN.f32", a, b, loc=loc, ip=ip)


@dsl_user_op
def smaller(a: Float32, b: Float32, *, loc=None, ip=None) -> Float32:
    """min that drops NaN."""
    return _ptx("min.f32", a, b, loc=loc, ip=ip)


@dsl_user_op
def larger(a: Float32, b: Float32, *, loc=None, ip=None) -> Float32:
    """max that drops NaN: what an amax wants."""
    return _ptx("max.f32", a, b, loc=loc, ip=ip)


@dsl_user_op
def absolute(a: Float32, *, loc=None, ip=None) -> Float32:
    return _ptx("abs.f32", a, loc=loc, ip=ip)


@dsl_user_op
def bits(a: Float32, *, loc=None, ip=None) -> Int32:
    """The bit pattern of an fp32 value."""
    return Int32(llvm.bitcast(T.i32(), Float32(a).ir_value(loc=loc, ip=ip), loc=loc, ip=ip))


def sigmoid(x: Float32) -> Float32:
    return div(Float32(1.0), add(Float32(1.0), cute.math.exp(-x)))


@dsl_user_op
def exp2_approx(a: Float32, *, loc=None, ip=None) -> Float32:
    """2^a within 2^-22 of it, for -126 <= a: one MUFU."""
    return _ptx("ex2.approx.ftz.f32", a, loc=loc, ip=ip)


@dsl_user_op
def reciprocal_approx(a: Float32, *, loc=None, ip=None) -> Float32:
    """1 / a within one unit in the last place, for normal numbers: one MUFU."""
    return _ptx("rcp.approx.ftz.f32", a, loc=loc, ip=ip)


@dsl_user_op
def _upper_tail(x: Float32, tail: Float32, *, loc=None, ip=None) -> Float32:
    """1 - tail where x > 0, else tail."""
    code = "{ .reg .pred p; setp.gt.f32 p, $1, 0f00000000; mov.f32 $0, $2; @p sub.rn.f32 $0, 0f3F800000, $2; }"
    arguments = [Float32(value).ir_value(loc=loc, ip=ip) for value in (x, tail)]
    return Float32(llvm.inline_asm(T.f32(), arguments, code, "=&f,f,f", has_side_effects=False, loc=loc, ip=ip))


# Phi(-t) = 2^(_HALF_LOG2_E * t^2) * numerator(t) / denominator(t) on 0 <= t <= _CDF_END within 8.1e-9, a minimax fit of
# positive coefficients (nothing cancels), rising powers. It takes in what _HALF_LOG2_E lacks in fp32.
_CDF_NUMERATOR = (0.5, 0.4463438391685486, 0.18905086815357208, 0.04256033897399902, 0.004394823219627142)
_CDF_DENOMINATOR = (
    1.0, 1.6905728578567505, 1.2269773483276367, 0.484809935092926, 0.1066848635673523, 0.011016231961548328
)  # fmt: skip
_HALF_LOG2_E = -0.7213475108146667
_CDF_END = 14.6
"""Phi(-14.6) is less than half the smallest subnormal number."""
_CDF_SHIFT = 32
"""The power of two is computed 2^32 times too large and the numerator as much too small: no subnormals but the last
product."""
_TO_1024THS = 12288.0
"""fp32 numbers next to this one are multiples of 2^-10."""


def _polynomial(x: Float32, coefficients: tuple, factor: float = 1.0) -> Float32:
    value = Float32(coefficients[-1] * factor)
    for coefficient in reversed(coefficients[:-1]):
        value = fma(value, x, Float32(coefficient * factor))
    return value


def normal_cdf(x: Float32) -> Float32:
    """Phi(x) within 8 units in the last place (1 on average), in the negative tail too.

    26 instructions; erfc of CUDA's library took 50 with its argument, and is as exact.
    """
    t = smaller(absolute(x), Float32(_CDF_END))
    ratio = mul(
        _polynomial(t, _CDF_NUMERATOR, math.log(2.0) * 2.0**-_CDF_SHIFT),
        reciprocal_approx(_polynomial(t, _CDF_DENOMINATOR)),
    )
    # exponent = c * t^2 in 1024ths, exactly; 1 / ln 2 + the rest of c * t^2 makes up for the rest, to first order.
    c = Float32(_HALF_LOG2_E)
    square = mul(t, t)
    square_rest = fma(t, t, -square)
    negative = sub(Float32(_TO_1024THS), fma(square, c, Float32(_TO_1024THS)))
    power = exp2_approx(sub(Float32(float(_CDF_SHIFT)), negative))
    rest = add(fma(square_rest, c, Float32(1.0 / math.log(2.0))), fma(square, c, negative))
    return _upper_tail(x, mul(ratio, mul(power, rest)))


def relu(x: Float32) -> Float32:
    return maximum(x, Float32(0.0))


def relu2(x: Float32) -> Float32:
    return mul(relu(x), relu(x))


def gelu(x: Float32) -> Float32:
    return mul(x, normal_cdf(x))


def silu(x: Float32) -> Float32:
    """x / (1 + exp(-x)); exp(-x) = Inf gives -0, the limit."""
    return div(x, add(Float32(1.0), cute.math.exp(-x)))


@dsl_user_op
def relu_grad(x: Float32, *, loc=None, ip=None) -> Float32:
    """1 where x > 0, else 0."""
    return _ptx("set.gt.f32.f32", x, Float32(0.0), loc=loc, ip=ip)


def relu2_grad(x: Float32) -> Float32:
    return mul(Float32(2.0), relu(x))


def gelu_grad(x: Float32) -> Float32:
    """Phi(x) + x * phi(x)."""
    density = mul(Float32(_INV_SQRT_2PI), cute.math.exp(mul(Float32(-0.5), mul(x, x))))
    return fma(x, density, normal_cdf(x))


def silu_grad(x: Float32) -> Float32:
    """s + x * s * (1 - s), s = sigmoid(x)."""
    s = sigmoid(x)
    return fma(mul(x, s), sub(Float32(1.0), s), s)


UNARY = {
    "relu": relu,
    "relu2": relu2,
    "gelu": gelu,
    "silu": silu,
    "relu_grad": relu_grad,
    "relu2_grad": relu2_grad,
    "gelu_grad": gelu_grad,
    "silu_grad": silu_grad,
    "abs": absolute,
}
BINARY = {"add": add, "sub": sub, "mul": mul, "div": div, "max": maximum, "min": minimum}
