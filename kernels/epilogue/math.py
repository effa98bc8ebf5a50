"""Elementwise functions of the epilogue on fp32 device values, one fp32 operation per node.

The compiler must not contract fl(a * b) + c into an fma, so products and sums are the rounding-explicit PTX forms.
"""

import math

import cutlass.cute as cute
from cutlass import Float32, Int32
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

_SQRT_HALF = math.sqrt(0.5)
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


def normal_cdf(x: Float32) -> Float32:
    """Phi(x) = erfc(-x / sqrt(2)) / 2: no cancellation for negative x."""
    return mul(Float32(0.5), cute.math.erfc(mul(x, Float32(-_SQRT_HALF))))


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
