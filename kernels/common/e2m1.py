"""E2M1 codes to pairs of 16-bit floats, eight codes per 32-bit word, exactly and without a table.

A code is `s e e m`. Put `e e` in the lowest exponent bits and `m` in the top mantissa bit of a wider float, `s` in its
sign bit, zeros elsewhere: the hardware then reads e2m1 times a power of two, and code 1 (0.5) is a subnormal. Decoding
is bit movement, and the missing power of two is put right with the scale or in the epilogue.

    bf16   nibble at bits 3..0 of a 16-bit half:  n * (2^12 + 2^6), masked
           nibble at bits 7..4:                   n * (2^8  + 2^2), masked
           s lands on bit 15, e e m on bits 8..6: e2m1 * 2^-126; pairs (j, j + 4)
           8 LOP3 + 4 IMAD + 1 SHF per word

    e4m3   nibble in the low half of a byte:      (x << 4) & 0x80 | (x << 2) & 0x1C
           nibble in the high half:               x & 0x80 | (x >> 2) & 0x1C
           s lands on bit 7, e e m on bits 4..2: e2m1 * 2^-6 as an E4M3 byte; then the hardware's e4m3x2 -> f16x2
           gives the pairs (0, 2), (4, 6), (1, 3), (5, 7)
           4 LOP3 + 3 shifts + 4 F2FP per word

The order of K inside a tile is free as long as both operands of the product use the same one (smem_layout.py). A table
by PRMT needs 15 instructions per word, 8 to 10 of them PRMT; moving bits straight to fp16 needs 17, because there the
shifted copies of a nibble overlap and have to be masked apart.
"""

from cutlass import Uint32
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

PAIRS_PER_WORD = 4

BF16_EXPONENT = -126
"""A pair from `decode_pair_bf16` is e2m1 * 2^BF16_EXPONENT."""

FP16_EXPONENT = -6
"""A pair from `decode_pair_fp16` is e2m1 * 2^FP16_EXPONENT."""

BF16_PAIRS = ((0, 4), (1, 5), (2, 6), (3, 7))
FP16_PAIRS = ((0, 2), (4, 6), (1, 3), (5, 7))
"""Which elements of a word of eight a pair holds, low half first."""

_BF16_KEEP = 0x81C081C0
_E4M3_SIGN, _E4M3_MAGNITUDE = 0x80808080, 0x1C1C1C1C


def decode_pair_bf16(word: Uint32, j: int) -> Uint32:
    """Pair j of BF16_PAIRS as bf16x2."""
    shifted = word if j < 2 else word >> Uint32(8)
    if j % 2 == 0:
        return ((shifted & Uint32(0x000F000F)) * Uint32(0x1040)) & Uint32(_BF16_KEEP)
    return ((shifted & Uint32(0x00F000F0)) * Uint32(0x0104)) & Uint32(_BF16_KEEP)


def decode_pair_fp16(word: Uint32, j: int) -> Uint32:
    """Pair j of FP16_PAIRS as f16x2."""
    sign, magnitude = (word << Uint32(4), word << Uint32(2)) if j < 2 else (word, word >> Uint32(2))
    e4m3x4 = (sign & Uint32(_E4M3_SIGN)) | (magnitude & Uint32(_E4M3_MAGNITUDE))
    return e4m3x2_to_f16x2(e4m3x4, j % 2)


@dsl_user_op
def e4m3x2_to_f16x2(word: Uint32, half: int, *, loc=None, ip=None) -> Uint32:
    """Two E4M3 bytes (the low or the high half of a word) as f16x2, exact."""
    source = ("lo", "hi")[half]
    code = f"{{ .reg .b16 lo, hi; mov.b32 {{lo, hi}}, $1; cvt.rn.f16x2.e4m3x2 $0, {source}; }}"
    argument = [word.ir_value(loc=loc, ip=ip)]
    return Uint32(llvm.inline_asm(T.i32(), argument, code, "=r,r", has_side_effects=False, loc=loc, ip=ip))
