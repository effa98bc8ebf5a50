"""E4M3 block scales as packed 16-bit multipliers, exactly; two scales at a time.

fp16: the hardware converts two bytes at once, and (e2m1 * 2^-6) * scale is exact in fp16: at most 6 significant bits,
units of 2^-16.

bf16: a byte `0 eeee mmm` shifted left by 4 is a bf16 whose exponent field is eeee: it reads as scale * 2^-120, and
subnormals of E4M3 are subnormals of bf16 with the same factor. Two multiplications by powers of two make it scale *
2^119 (the largest, 448 * 2^119, is finite), and (e2m1 * 2^-126) * (scale * 2^119) = e2m1 * scale * 2^-7 is exact.

So a decoded element is e2m1 * scale * 2^PRODUCT_EXPONENT, with the exponent of its format. Accepts bytes 0x00..0x7E;
bit 7 must be clear. The NaN byte 0x7F stays NaN in fp16 and decodes as 480 in bf16; quantisers never write it.
"""

from cutlass import Uint32
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

from .e2m1 import e4m3x2_to_f16x2

BF16_PRODUCT_EXPONENT = -7
FP16_PRODUCT_EXPONENT = -6

_POW2_120 = 0x7B807B80  # bf16x2 of 2^120
_POW2_119 = 0x7B007B00  # bf16x2 of 2^119


@dsl_user_op
def mul_x2(kind: str, a: Uint32, b: Uint32, *, loc=None, ip=None) -> Uint32:
    """Packed product of kind "bf16" or "f16", round to nearest, subnormals kept."""
    arguments = [a.ir_value(loc=loc, ip=ip), b.ir_value(loc=loc, ip=ip)]
    code = f"mul.rn.{kind}x2 $0, $1, $2;"
    return Uint32(llvm.inline_asm(T.i32(), arguments, code, "=r,r,r", has_side_effects=False, loc=loc, ip=ip))


@dsl_user_op
def mul_x2_by_half(kind: str, a: Uint32, b: Uint32, half: int, *, loc=None, ip=None) -> Uint32:
    """`mul_x2` of a and one half of b, which the instruction selects by itself."""
    arguments = [a.ir_value(loc=loc, ip=ip), b.ir_value(loc=loc, ip=ip)]
    one = ("lo", "hi")[half]
    code = (
        f"{{ .reg .b16 lo, hi; .reg .b32 both; mov.b32 {{lo, hi}}, $2; mov.b32 both, {{{one}, {one}}}; "
        f"mul.rn.{kind}x2 $0, $1, both; }}"
    )
    return Uint32(llvm.inline_asm(T.i32(), arguments, code, "=r,r,r", has_side_effects=False, loc=loc, ip=ip))


@dsl_user_op
def permute(low: Uint32, high: Uint32, selector: int, *, loc=None, ip=None) -> Uint32:
    """Bytes of two words by PRMT: selector nibbles 0..3 name bytes of `low`, 4..7 of `high`."""
    arguments = [low.ir_value(loc=loc, ip=ip), high.ir_value(loc=loc, ip=ip)]
    code = f"prmt.b32 $0, $1, $2, {selector:#06x};"
    return Uint32(llvm.inline_asm(T.i32(), arguments, code, "=r,r,r", has_side_effects=False, loc=loc, ip=ip))


@dsl_user_op
def permute_by(low: Uint32, high: Uint32, selector: Uint32, *, loc=None, ip=None) -> Uint32:
    """`permute` with a selector that is known at run time."""
    arguments = [value.ir_value(loc=loc, ip=ip) for value in (low, high, selector)]
    code = "prmt.b32 $0, $1, $2, $3;"
    return Uint32(llvm.inline_asm(T.i32(), arguments, code, "=r,r,r,r", has_side_effects=False, loc=loc, ip=ip))


def _broadcast(both: Uint32) -> tuple[Uint32, Uint32]:
    return permute(both, both, 0x1010), permute(both, both, 0x3232)


def scale_pair_bf16(bytes_: Uint32, half: int) -> Uint32:
    """Two scales, the bytes of one half of a word, as the halves of a bf16x2 word: scale * 2^119."""
    raw = permute(bytes_, Uint32(0), 0x4342 if half else 0x4140) << Uint32(4)
    return mul_x2("bf16", mul_x2("bf16", raw, Uint32(_POW2_120)), Uint32(_POW2_119))


def multipliers_fp16(bytes_: Uint32) -> tuple[Uint32, Uint32]:
    """Two scales, at bytes 0 and 1, as two f16x2 multipliers (each scale in both halves)."""
    return _broadcast(e4m3x2_to_f16x2(bytes_, 0))


def multipliers_bf16(bytes_: Uint32) -> tuple[Uint32, Uint32]:
    """Two scales, at bytes 0 and 1, as two bf16x2 multipliers of scale * 2^119."""
    return _broadcast(scale_pair_bf16(bytes_, 0))
