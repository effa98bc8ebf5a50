"""fp32 to E2M1 codes, bit-exact: round to nearest even by hardware or by our own instructions, or stochastically.

    magnitudes of codes 0..7: 0 0.5 1 1.5 2 3 4 6;  bit 3 is the sign;  |y| > 6 saturates;  NaN gives 0x7;  -0 gives 0x8

Every function takes eight elements x and a multiplier m >= 0, and encodes y = fl(x * m). The sign comes from x, so a NaN
in x must be positive (`input_block.unpack` sees to it).

**Nearest, in software** (sm_90a has no e2m1 instruction). With a = |y| the code is a sum of three uniform pieces,

    code = RNE( 2*clamp(a, 0, 2) + clamp(a - 2, 0, 2) + clamp(a - 4, 0, 2) / 2 )

each of which is exact in fp32 where it is neither empty nor full. They are added one by one to 2^23, whose ulp is 1: that
rounds to the nearest integer, ties to even, at the one piece that is not an integer. The lowest bits of the sum are the
code, and the bits of 2^23 above it are constant, so that codes can be joined by integer multiply-adds:

    w2 = sat(3 - a/2)          w1 = sat(2 - a/2)          u0 = min(a, 2)
    t  = 2^23 + 3 - w2         t  = t - 2*w1              t  = t + 2*u0

The complements w make NaN work: .sat turns NaN into 0, which stands for a full piece, and min turns NaN into 2. In the
first step 3 - w2 lies in 2..3, an even offset, so that ties still go to the even code.

Per element: FMUL, FMNMX, 2 FFMA.SAT, FADD, 2 FFMA, SHF (sign), 7/8 IMAD (joining), of which 2.4 run on the ALU pipe,
which has half the rate of the FMA pipe. Rejected: one addition of a magic number chosen by |y|'s exponent (2 FMNMX, 2
LOP3 and a LEA.HI on the ALU pipe); packed fp16 (double rounding); y * 2^-126, whose bits 24..22 are the code (the scaling
rounds first, so 0.25 + 2^-25 would give 0).

**Stochastic.** Away from zero iff floor(256 * position between the neighbours) + r8 >= 256, for 8 random bits r8. Here the
scaling by 2^-126, truncated, is exactly right: bits 24..22 hold the code (subnormals included) and the bits below the
position, so adding r8 << 14, clamping and shifting right by 22 is the rule.
"""

from cutlass import Float32, Uint32

from cutefp4.kernels.common import ptx

_MAGIC = float(2**23 + 3)
_MAGIC_DIGIT = (0x4B000000 << 1) & 0xFFFFFFFF  # the bits of 2^23 in a digit (t << 1) | sign
_TWO_TO_MINUS_126 = 2.0**-126
_FULL = 0x01FFFFFF  # code 7 at bits 24..22, all position bits set


def _join(digits: list[Uint32], extra: int) -> Uint32:
    """Eight digits (code << 1 | sign, plus `extra` in the upper bits) as one word of codes, the first one lowest."""
    word = digits[7]
    for digit in reversed(digits[:7]):
        word = ptx.mad(word, Uint32(16), digit)
    constant = sum(extra << (4 * i) for i in range(8)) & 0xFFFFFFFF
    if constant:
        word = word - Uint32(constant)
    # The sign of each nibble moves from bit 0 to bit 3: (a & c) | (b & ~c).
    return ptx.lop3(word >> Uint32(1), word << Uint32(3), Uint32(0x77777777), 0xE4)


def _nearest_bits(magnitude: Float32) -> Uint32:
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


def encode_nearest(x: list[Float32], multiplier: Float32, arch: str) -> Uint32:
    """Codes of eight elements, the first one in the lowest nibble."""
    if arch != "sm_90a":
        return _nearest_hardware(x, multiplier)
    sums = [_nearest_bits(ptx.mul(ptx.fabs(v), multiplier)) for v in x]
    return _join([ptx.shift_in_sign(t, ptx.bits(v)) for t, v in zip(sums, x, strict=True)], _MAGIC_DIGIT)


def encode_and_decode(x: list[Float32], multiplier: Float32, arch: str) -> tuple[Uint32, list[Float32]]:
    """Codes of eight elements, and the magnitudes of the rounded values times `raw_value(arch)`, exact."""
    if arch != "sm_90a":
        word = _nearest_hardware(x, multiplier)
        return word, _magnitudes_hardware(word)
    sums = [_nearest_bits(ptx.mul(ptx.fabs(v), multiplier)) for v in x]
    word = _join([ptx.shift_in_sign(t, ptx.bits(v)) for t, v in zip(sums, x, strict=True)], _MAGIC_DIGIT)
    # The three code bits, moved to bits 24..22, read as a (sub)normal fp32; the bits of 2^23 fall out at the top.
    return word, [ptx.from_bits(t << Uint32(22)) for t in sums]


def _magnitudes_hardware(word: Uint32) -> list[Float32]:
    word = word & Uint32(0x77777777)
    bytes_in = "mov.b32 {b0, b1, b2, b3}, $8;"
    pairs = " ".join(
        f"cvt.rn.f16x2.e2m1x2 w, b{i}; mov.b32 {{lo, hi}}, w; cvt.f32.f16 ${2 * i}, lo; cvt.f32.f16 ${2 * i + 1}, hi;"
        for i in range(4)
    )
    text = f"{{ .reg .b8 b0, b1, b2, b3; .reg .b32 w; .reg .b16 lo, hi; {bytes_in} {pairs} }}"
    return list(ptx.asm(text, (Float32,) * 8, word))


def raw_value(arch: str) -> float:
    """The power of two that `encode_and_decode` leaves on its magnitudes."""
    return _TWO_TO_MINUS_126 if arch == "sm_90a" else 1.0


def encode_stochastic(x: list[Float32], multiplier: Float32, random: tuple[Uint32, Uint32]) -> Uint32:
    """Codes of eight elements; byte j of random word w belongs to element 4 * w + j."""
    digits = []
    for i, v in enumerate(x):
        scaled = ptx.bits(ptx.mul_rz(ptx.mul(v, multiplier), Float32(_TWO_TO_MINUS_126)))
        byte = ptx.prmt(random[i // 4], Uint32(0), 0x4440 + i % 4)
        position = ptx.mad(byte, Uint32(1 << 14), scaled & Uint32(0x7FFFFFFF))
        digits.append(ptx.shift_in_sign(ptx.umin(position, Uint32(_FULL)) >> Uint32(22), scaled))
    return _join(digits, 0)
