"""fp32 to E2M1 codes on sm_90a, two elements at a time as fp16, to nearest even.

E2M1 has two exponent bits, and fp16 its smallest normal number at 2^-14: of y * 2^-14, y < 7, truncated to fp16, bits
11..9 are the code of the neighbour below y (subnormals included), and bit 8 says whether y has reached the midpoint to
the next one, which truncation cannot hide. Of the number before y, it says whether y is behind the midpoint. The first
bit decides where the code below is odd, the second one where it is even.

The lower byte of a lane is not needed: one PRMT gathers the upper bytes of four elements, s000cccm. Per element 2 FMUL,
F2FP, and 15/8 for joining; on the grid (common/e2m1_grid.py) it is 5, 1/2 F2FP, 1/4 and, for clamps and signs, 2.
Rejected: the first bit alone, and the grid where a product may be a tie. Outer amaxes of 8 bits that are multiples of
3 or 7 have block scales with such ties: 1 in 9 blocks, most warps (113 us for both copies of (16384, 6144), not 95).
"""

from cutefp4.kernels.common import ptx
from cutlass import Float32, Uint32

TO_FP16 = 2.0**-14
_HALVES = 0x0F0F0F0F
_BEFORE_ONE = 0x3F7FFFFF


def _lanes(low: Float32, high: Float32) -> Uint32:
    """Two products as truncated fp16."""
    return ptx.asm("cvt.rz.f16x2.f32 $0, $2, $1;", Uint32, low, high)


def _upper_bytes(y: list[Float32]) -> tuple[Uint32, Uint32]:
    """Of the lanes of elements 0, 2, 4, 6 and 1, 3, 5, 7."""
    a, b, c, d = (_lanes(y[i], y[i + 2]) for i in (0, 1, 4, 5))
    return ptx.prmt(a, c, 0x7531), ptx.prmt(b, d, 0x7531)


def _nibbles(even: Uint32, odd: Uint32) -> Uint32:
    """The lower halves of bytes."""
    return ptx.lop3(even, odd << Uint32(4), Uint32(_HALVES), 0xE4)


def encode_in_pairs(x: list[Float32], factor: Float32) -> Uint32:
    """Codes of eight elements with their signs; `factor`: the multiplier times TO_FP16. No product is NaN or >= 7."""
    y = [ptx.mul(v, factor) for v in x]
    before = [ptx.mul_rz(v, ptx.from_bits(Uint32(_BEFORE_ONE))) for v in y]
    even, odd = _upper_bytes(y)
    reached, behind = _nibbles(even, odd), _nibbles(*_upper_bytes(before))
    codes = reached >> Uint32(1)  # and a bit of the next nibble above it
    up = ptx.lop3(reached, codes, behind, 0xE0) & Uint32(0x11111111)
    signs = ptx.lop3(even >> Uint32(4), odd, Uint32(_HALVES), 0xE4)
    return ptx.lop3(codes + up, signs, Uint32(0x77777777), 0xE4)
