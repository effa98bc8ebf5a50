"""E2M1 codes to bf16x2, eight codes per 32-bit word, exactly.

A code is `s e e m`. With `e e` in the lowest exponent bits of a bf16, `m` in its top mantissa bit, `s` in its sign bit and
zeros elsewhere, the hardware reads e2m1 * 2^-126: the exponent field is 0..3, and code 1 (0.5) is the bf16 subnormal 2^-127.
So decoding is bit movement and needs no table; the missing 2^126 goes into the scale multiplication (e4m3.py).

    nibble  n = s e e m           at bits 3..0 of each 16-bit half
    n * (2^12 + 2^6)              s lands on bit 15, e e m on bits 8..6; the rest is masked off
    n * (2^8  + 2^2)              the same for a nibble at bits 7..4

The two halves of a word give the pair (n_j, n_j+4), so a decoded pair is (k, k + 4): the order of K inside a tile is free
as long as both operands of the product use the same one (k_order.py).

Counted on sm_90a: 8 LOP3 + 4 IMAD + 1 SHF per word. A table by PRMT needs 15 (8 to 10 of them PRMT); fp16 as the target needs 17,
because there the shifted copies of the nibble overlap and have to be masked apart.
"""

import cutlass
from cutlass import Uint32
from cutlass.cutlass_dsl import dsl_user_op

_KEEP = 0x81C081C0
"""Sign, two exponent bits and one mantissa bit of both bf16 halves."""

PAIRS_PER_WORD = 4
RAW_EXPONENT = -126
"""A raw pair from `decode_pairs` is e2m1 * 2^RAW_EXPONENT."""


@dsl_user_op
def decode_pair(word: Uint32, j: cutlass.Constexpr, *, loc=None, ip=None) -> Uint32:
    """Codes (j, j + 4) of a word of eight, j in 0..3, as raw bf16x2: e2m1 * 2^-126, code j in the low half."""
    shifted = word if j < 2 else word >> Uint32(8)
    if j % 2 == 0:
        return ((shifted & Uint32(0x000F000F)) * Uint32(0x1040)) & Uint32(_KEEP)
    return ((shifted & Uint32(0x00F000F0)) * Uint32(0x0104)) & Uint32(_KEEP)
