"""fp32 to E2M1 codes, bit-exact: round to nearest even, by hardware or by our own instructions.

    magnitudes of codes 0..7: 0 0.5 1 1.5 2 3 4 6;  bit 3 is the sign;  |y| > 6 saturates;  NaN gives 0x7;  -0 gives 0x8

Every function takes eight elements x and a multiplier m >= 0, encodes y = fl(x * m), and returns a word with the
first code in the lowest nibble. Signs travel apart from magnitudes, as a word whose bit 4i + 3 is the sign of x[i]
(other bits do not matter), because the caller can take them out of packed input with fewer instructions than one an
element. The sign of NaN must be clear.

**Nearest, in software** (sm_90a has no e2m1 instruction). With a = |y| the code is a sum of three uniform pieces,

    code = RNE( 2*clamp(a, 0, 2) + clamp(a - 2, 0, 2) + clamp(a - 4, 0, 2) / 2 )

each of which is exact in fp32 where it is neither empty nor full. They are added one by one to 2^23, whose ulp is 1:
that rounds to the nearest integer, ties to even, at the one piece that is not an integer. The lowest byte of the sum
is the code:

    w2 = sat(3 - a/2)          w1 = sat(2 - a/2)          u0 = min(a, 2)
    t  = 2^23 + 3 - w2         t  = t - 2*w1              t  = t + 2*u0

The complements w make NaN work: .sat turns NaN into 0, which stands for a full piece, and min turns NaN into 2. In the
first step 3 - w2 lies in 2..3, an even offset, so that ties still go to the even code.

Per element: FMUL, FMNMX, 2 FFMA.SAT, FADD, 2 FFMA, and 7/8 for joining (PRMT, LEA). Rejected: one addition of a magic
number chosen by |y|'s exponent (one instruction less, but 4 of 6 on the ALU pipe, which has half the rate); packed fp16
(double rounding); y * 2^-126, whose bits 24..22 are the code (the scaling rounds first, so 0.25 + 2^-25 would give 0);
shifting each sign in below its code (19 instead of 14 instructions for eight codes).
"""

from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.e2m1_grid import GRID_SCALE, grid_factor, join_rounded, round_on_grid
from cutlass import Float32, Uint32

from cutefp4.format import E2M1_MAX

_MAGIC = float(2**23 + 3)
_TWO_TO_MINUS_126 = 2.0**-126
_SIGNS = 0x88888888


def join(bytes_of: list[Uint32], byte: int = 0) -> Uint32:
    """Eight codes, each in a byte of a word (0, or 3 with anything below it), as nibbles of one word."""
    if byte == 3:
        even, odd = (
            ptx.prmt(ptx.prmt(a, b, 0x0073), ptx.prmt(c, d, 0x0073), 0x5410)
            for a, b, c, d in (bytes_of[::2], bytes_of[1::2])
        )
        return ptx.mad(odd, Uint32(16), even)
    pairs = [ptx.mad(odd, Uint32(16), even) for even, odd in zip(bytes_of[::2], bytes_of[1::2], strict=True)]
    halves = [ptx.prmt(pairs[i], pairs[i + 1], 0x0040) for i in (0, 2)]
    return ptx.prmt(halves[0], halves[1], 0x5410)


def with_signs(magnitudes: Uint32, signs: Uint32) -> Uint32:
    """magnitudes | (signs & 0x88888888)."""
    return ptx.lop3(magnitudes, signs, Uint32(_SIGNS), 0xF8)


def interleave_signs(even: Uint32, odd: Uint32) -> Uint32:
    """Sign word of eight elements out of the upper bits of bytes: `even` has elements 0, 2, 4, 6, `odd` 1, 3, 5, 7."""
    return ptx.lop3(even >> Uint32(4), odd, Uint32(0x0F0F0F0F), 0xE4)


def signs_of(x: list[Float32]) -> Uint32:
    """Sign word of eight fp32 values."""
    words = [ptx.bits(v) for v in x]
    gathered = []
    for first in (0, 1):
        a, b, c, d = words[first::2]
        gathered.append(ptx.prmt(ptx.prmt(a, b, 0x0073), ptx.prmt(c, d, 0x0073), 0x5410))
    return interleave_signs(*gathered)


def _nearest_sum(magnitude: Float32) -> Uint32:
    """Bits of 2^23 + code."""
    w2 = ptx.fma_sat(magnitude, Float32(-0.5), Float32(3.0))
    w1 = ptx.fma_sat(magnitude, Float32(-0.5), Float32(2.0))
    t = ptx.sub(Float32(_MAGIC), w2)
    t = ptx.fma(w1, Float32(-2.0), t)
    t = ptx.fma(ptx.fmin(magnitude, Float32(2.0)), Float32(2.0), t)
    return ptx.bits(t)


def _nearest_hardware(x: list[Float32], multiplier: Float32) -> Uint32:
    y = [ptx.mul(v, multiplier) for v in x]
    pairs = " ".join(f"cvt.rn.satfinite.e2m1x2.f32 b{i}, ${2 * i + 2}, ${2 * i + 1};" for i in range(4))
    return ptx.asm(f"{{ .reg .b8 b0, b1, b2, b3; {pairs} mov.b32 $0, {{b0, b1, b2, b3}}; }}", Uint32, *y)


def encode_nearest(x: list[Float32], multiplier: Float32, signs: Uint32, arch: str) -> Uint32:
    """Codes of eight elements, to nearest even."""
    if arch != "sm_90a":
        return _nearest_hardware(x, multiplier)
    return with_signs(join([_nearest_sum(ptx.mul(ptx.fabs(v), multiplier)) for v in x]), signs)


def encode_and_decode(x: list[Float32], multiplier: Float32, arch: str, short: bool) -> tuple[Uint32, list[Float32]]:
    """Codes of eight elements, and the magnitudes of the rounded values times `raw_value(arch, short)`, exact.

    The codes have their signs on sm_100a, and lack them on sm_90a. `short`: the elements have at most 11 bits.
    """
    if arch != "sm_90a":
        word = _nearest_hardware(x, multiplier)
        return word, _magnitudes_hardware(word)
    if short:
        factor = grid_factor(multiplier)
        y = [ptx.fmin(ptx.mul(ptx.fabs(v), multiplier), Float32(E2M1_MAX)) for v in x]
        values = [round_on_grid(ptx.fabs(v), scaled, factor) for v, scaled in zip(x, y, strict=True)]
        return join_rounded(values), values
    sums = [_nearest_sum(ptx.mul(ptx.fabs(v), multiplier)) for v in x]
    # The three code bits, moved to bits 24..22, read as a (sub)normal fp32; the bits of 2^23 fall out at the top.
    return join(sums), [ptx.from_bits(t << Uint32(22)) for t in sums]


def _magnitudes_hardware(word: Uint32) -> list[Float32]:
    word = word & Uint32(0x77777777)
    bytes_in = "mov.b32 {b0, b1, b2, b3}, $8;"
    pairs = " ".join(
        f"cvt.rn.f16x2.e2m1x2 w, b{i}; mov.b32 {{lo, hi}}, w; cvt.f32.f16 ${2 * i}, lo; cvt.f32.f16 ${2 * i + 1}, hi;"
        for i in range(4)
    )
    text = f"{{ .reg .b8 b0, b1, b2, b3; .reg .b32 w; .reg .b16 lo, hi; {bytes_in} {pairs} }}"
    return list(ptx.asm(text, (Float32,) * 8, word))


def raw_value(arch: str, short: bool) -> float:
    """The power of two that `encode_and_decode` leaves on its magnitudes."""
    if arch != "sm_90a":
        return 1.0
    return GRID_SCALE if short else _TWO_TO_MINUS_126
