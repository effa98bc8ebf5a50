"""E4M3 block scales as bf16x2 multipliers, exactly.

An E4M3 byte `0 eeee mmm`, shifted left by 4, is a bf16 whose exponent field is eeee: it reads as scale * 2^(7 - 127), and the
subnormals of E4M3 are subnormals of bf16 with the same factor. Two multiplications by powers of two bring it to scale * 2^119 (the
largest, 448 * 2^119, is finite), which takes all but 2^-7 of the factor 2^-126 that a decoded E2M1 pair carries:

    (e2m1 * 2^-126) * (scale * 2^119) = e2m1 * scale * 2^-7      at most 6 significant bits, so the bf16 product is exact

The accumulator of two decoded operands is therefore the true sum times 2^-14 (ACC_EXPONENT of the GEMM), and exactly so.

Accepts bytes 0x00..0x7E. The NaN byte 0x7F decodes as 480, and bit 7 must be clear: block scales are neither negative nor NaN.
"""

from cutlass import Uint32
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

PRODUCT_EXPONENT = -7
"""A decoded element is e2m1 * e4m3 * 2^PRODUCT_EXPONENT."""

_POW2_120 = 0x7B807B80  # bf16x2 of 2^120
_POW2_119 = 0x7B007B00  # bf16x2 of 2^119


@dsl_user_op
def mul_bf16x2(a: Uint32, b: Uint32, *, loc=None, ip=None) -> Uint32:
    """Packed bf16 product, round to nearest, subnormals kept."""
    return Uint32(
        llvm.inline_asm(
            T.i32(),
            [a.ir_value(loc=loc, ip=ip), b.ir_value(loc=loc, ip=ip)],
            "mul.rn.bf16x2 $0, $1, $2;",
            "=r,r,r",
            has_side_effects=False,
            loc=loc,
            ip=ip,
        )
    )


@dsl_user_op
def decode_scale(byte: Uint32, *, loc=None, ip=None) -> Uint32:
    """One scale byte (zero-extended) as bf16x2 with scale * 2^119 in both halves."""
    raw = byte * Uint32(0x00100010)
    return mul_bf16x2(mul_bf16x2(raw, Uint32(_POW2_120)), Uint32(_POW2_119))
