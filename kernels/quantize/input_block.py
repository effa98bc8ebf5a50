"""A block of 16 input elements in registers: load, amax, unpack.

A block is a list of words: 8 for bfloat16 and float16 (two elements each, the first in the low half), 16 for float32.
It stays packed until it is encoded, which halves the registers of what is in flight.
"""

from __future__ import annotations

from dataclasses import dataclass

import cutlass
from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.e2m1_encode import interleave_signs, signs_of
from cutlass import Boolean, Float32, Int32, Int64, Uint32

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
DTYPES = {"bfloat16": cutlass.BFloat16, "float16": cutlass.Float16, "float32": cutlass.Float32}
_SHORT = {"bfloat16": "bf16", "float16": "f16"}
_NEGATIVE_ZEROS = 0x80008000


def words_per_block(dtype: str) -> int:
    return 16 * BYTES[dtype] // 4


def load_block(
    where: Int64, valid: Boolean, dtype: str, vector_bytes: int, remaining=None, count: int = 16
) -> list[Uint32]:
    """`count` consecutive elements from global memory, zeros if not valid.

    Args:
        where: address of the first element, a multiple of `vector_bytes`.
        vector_bytes: bytes per load instruction: 16, 8, 4 or 2.
        remaining: elements from `where` to the end of the row, if a block may cross it (zeros behind it); the row must
            end between two loads.
    """
    size, words = BYTES[dtype], []

    def inside(byte: int):
        return valid if remaining is None else valid & (remaining > Int32(byte // size))

    if vector_bytes >= 4:
        for i in range(0, count * size, vector_bytes):
            words += ptx.load_words(where + Int64(i), vector_bytes // 4, inside(i))
        return words
    for i in range(0, count * size, 4):
        low, high = (ptx.load_half(where + Int64(i + j), inside(i + j)) for j in (0, 2))
        words.append(low | (high << Uint32(16)))
    return words


def to_float(word: Uint32, half: int, dtype: str) -> Float32:
    """Element 0 or 1 of a packed word."""
    if dtype == "bfloat16":
        return ptx.from_bits(word & Uint32(0xFFFF0000) if half else word << Uint32(16))
    text = "{ .reg .b16 lo, hi; mov.b32 {lo, hi}, $1; cvt.f32.f16 $0, " + ("hi" if half else "lo") + "; }"
    return ptx.asm(text, Float32, word)


def positive_nans(words: list[Uint32], dtype: str) -> list[Uint32]:
    """The same elements with the signs of NaNs cleared: adding -0 changes nothing else."""
    if dtype == "float32":
        # Not Float32(-0.0): the DSL gives equal constants one value, and 0.0 == -0.0.
        zero = ptx.from_bits(Uint32(0x80000000))
        return [ptx.bits(ptx.add(ptx.from_bits(w), zero)) for w in words]
    text = f"add.rn.{_SHORT[dtype]}x2 $0, $1, $2;"
    return [ptx.asm(text, Uint32, w, Uint32(_NEGATIVE_ZEROS)) for w in words]


@dataclass(frozen=True)
class Values:
    """16 values of a block, the sign words of their halves (see e2m1_encode), and whether they have at most 11 bits."""

    x: list[Float32]
    signs: tuple[Uint32, Uint32]
    short: bool = False

    @classmethod
    def of(cls, x: list[Float32]) -> Values:
        """Values that were computed."""
        return cls(x, (signs_of(x[:8]), signs_of(x[8:])))


def row_signs(words: list[Uint32]) -> tuple[Uint32, Uint32]:
    """Sign words of the halves of a block of 16-bit elements."""
    signs = []
    for a, b, c, d in (words[:4], words[4:]):
        first, second = ptx.prmt(a, b, 0x7351), ptx.prmt(c, d, 0x7351)
        signs.append(interleave_signs(ptx.prmt(first, second, 0x5410), ptx.prmt(first, second, 0x7632)))
    return signs[0], signs[1]


def column_signs(words: list[Uint32]) -> tuple:
    """Sign words of the halves of two columns of 16-bit elements, one word from each of 16 rows."""
    signs = [[], []]
    for rows in (words[:8], words[8:]):
        even, odd = ((ptx.prmt(r[0], r[2], 0x7351), ptx.prmt(r[4], r[6], 0x7351)) for r in (rows, rows[1:] + rows[:1]))
        for column, selector in enumerate((0x5410, 0x7632)):
            signs[column].append(interleave_signs(ptx.prmt(*even, selector), ptx.prmt(*odd, selector)))
    return tuple(tuple(s) for s in signs)


def unpack_row(words: list[Uint32], dtype: str) -> Values:
    """The values of a block with no negative NaN."""
    if dtype == "float32":
        return Values.of([ptx.from_bits(w) for w in words])
    return Values([to_float(word, half, dtype) for word in words for half in (0, 1)], row_signs(words), True)


def unpack_columns(words: list[Uint32], dtype: str) -> list[Values]:
    """One word from each of 16 rows, with no negative NaN: two columns of 16-bit data, or one of fp32."""
    if dtype == "float32":
        return [Values.of([ptx.from_bits(w) for w in words])]
    return [Values([to_float(w, i, dtype) for w in words], signs, True) for i, signs in enumerate(column_signs(words))]


def finite_to_float(word: Uint32, half: int) -> Float32:
    """Element 0 or 1 of a word of finite bf16, by a multiplication: bit moves would load the ALU."""
    pair = "hi, hi" if half else "lo, lo"
    text = (
        f"{{ .reg .b16 lo, hi; .reg .b32 w; mov.b32 {{lo, hi}}, $1; mov.b32 w, {{{pair}}}; mul.rn.bf16x2 $0, w, $2; }}"
    )
    zero_and_one = Uint32(0x3F800000)
    return ptx.from_bits(ptx.asm(text, Uint32, word, zero_and_one))


def zero_below_negative(count: Int32) -> Uint32:
    """+0 and -0 as bf16, as the compiler, which would make it anew for every use, does not know: count >= 0."""
    return ptx.lop3(Uint32(count), Uint32(0x80000000), Uint32(0), 0x0C)


def signed_to_float(word: Uint32, half: int, zeros: Uint32) -> Float32:
    """The same of either sign: (x * 0 + 0, x * 1 - 0). zeros: `zero_below_negative`."""
    pair = "lo, hi" if half else "lo, lo"
    text = (
        "{ .reg .b16 lo, hi; .reg .b32 w; mov.b32 {lo, hi}, $1; "
        f"mov.b32 w, {{{pair}}}; fma.rn.bf16x2 $0, w, $2, $3; }}"
    )
    return ptx.from_bits(ptx.asm(text, Uint32, word, Uint32(0x3F800000), zeros))


def magnitudes_of(words: list[Uint32], dtype: str) -> list[Uint32]:
    """|x| of 16-bit elements, half by half."""
    return [ptx.asm(f"abs.{_SHORT[dtype]}x2 $0, $1;", Uint32, word) for word in words]


def clamp(magnitudes: list[Uint32], top: Uint32, dtype: str) -> list[Uint32]:
    """min(x, top) of 16-bit elements, half by half; NaN becomes top."""
    return [ptx.asm(f"min.{_SHORT[dtype]}x2 $0, $1, $2;", Uint32, word, top) for word in magnitudes]


def largest(magnitudes: list[Uint32], dtype: str) -> Uint32:
    """Lane-wise maximum of 16-bit magnitudes, NaN ignored. sm_90 has an instruction for three operands."""
    text = f"{{ .reg .b32 t; max.{_SHORT[dtype]}x2 t, $1, $2; max.{_SHORT[dtype]}x2 $0, t, $3; }}"
    while len(magnitudes) > 2:
        rest = len(magnitudes) // 3 * 3
        triples = [ptx.asm(text, Uint32, *magnitudes[i : i + 3]) for i in range(0, rest, 3)]
        magnitudes = triples + magnitudes[rest:]
    if len(magnitudes) == 1:
        return magnitudes[0]
    return ptx.asm(f"max.{_SHORT[dtype]}x2 $0, $1, $2;", Uint32, *magnitudes)


def unpack(words: list[Uint32], dtype: str) -> list[Float32]:
    """The fp32 values of words, as they are."""
    if dtype == "float32":
        return [ptx.from_bits(w) for w in words]
    return [to_float(word, half, dtype) for word in words for half in (0, 1)]


def pack(values: list[Float32], dtype: str) -> list[Uint32]:
    """fp32 values rounded once to the dtype, as words."""
    if dtype == "float32":
        return [ptx.bits(v) for v in values]
    text = f"cvt.rn.{_SHORT[dtype]}x2.f32 $0, $2, $1;"
    return [ptx.asm(text, Uint32, low, high) for low, high in zip(values[::2], values[1::2], strict=True)]


def lower_bits(word: Uint32, dtype: str) -> Uint32:
    """fp32 bits of the magnitude of the first element of a packed word."""
    return ptx.bits(ptx.fabs(to_float(word, 0, dtype)))


def upper_bits(word: Uint32, dtype: str) -> Uint32:
    """fp32 bits of the magnitude of the second element of a packed word."""
    return ptx.bits(ptx.fabs(to_float(word, 1, dtype)))


def max_words(top: Uint32, word: Uint32, dtype: str) -> Uint32:
    """Running maximum of magnitudes, lane by lane, NaN ignored; for 16-bit data its signs mean nothing."""
    if dtype == "float32":
        return ptx.bits(ptx.fmax(ptx.from_bits(top), ptx.fabs(ptx.from_bits(word))))
    return ptx.max_abs_16x2(top, word, _SHORT[dtype])


def _nan_lanes(words: list[Uint32]) -> Uint32:
    """Lane-wise amax of bf16 words, NaN if there is one."""
    text = "max.NaN.xorsign.abs.bf16x2 $0, $1, $2;"
    while len(words) > 1:
        pairs = [ptx.asm(text, Uint32, a, b) for a, b in zip(words[::2], words[1::2], strict=False)]
        words = pairs + (words[len(words) - 1 :] if len(words) % 2 else [])
    return words[0]


def nan_amax(words: list[Uint32]) -> Float32:
    """max |x| of a block of bf16, NaN if there is one."""
    top = _nan_lanes(words)
    low, high = (ptx.fabs(to_float(top, half, "bfloat16")) for half in (0, 1))
    return ptx.asm("max.NaN.f32 $0, $1, $2;", Float32, low, high)


def nan_amaxes(words: list[Uint32]) -> list[Float32]:
    """max |x| of the two columns of 16 words of bf16, NaN if there is one."""
    top = _nan_lanes(words)
    return [ptx.fabs(to_float(top, half, "bfloat16")) for half in (0, 1)]


def packed_amax(words: list[Uint32], dtype: str) -> Uint32:
    """Lane-wise amax of 16-bit words: a tree of maxima of magnitudes."""
    while len(words) > 1:
        pairs = [ptx.max_abs_16x2(a, b, _SHORT[dtype]) for a, b in zip(words[::2], words[1::2], strict=False)]
        words = pairs + (words[len(words) - 1 :] if len(words) % 2 else [])
    return words[0]


def column_amaxes(words: list[Uint32], dtype: str) -> list[Float32]:
    """The amax of each column of 16 words, as `unpack_columns` splits them."""
    if dtype == "float32":
        return [values_amax([ptx.from_bits(w) for w in words])]
    top = packed_amax(words, dtype)
    return [values_amax([to_float(top, half, dtype)]) for half in (0, 1)]


def block_amax(words: list[Uint32], dtype: str) -> Float32:
    """max |x| of a block, NaN ignored, +0 if there is nothing else."""
    if dtype == "float32":
        return values_amax([ptx.from_bits(w) for w in words])
    top = packed_amax(words, dtype)
    return values_amax([to_float(top, 0, dtype), to_float(top, 1, dtype)])


def values_amax(values: list[Float32]) -> Float32:
    """max |v| of fp32 values, NaN ignored."""
    top = Float32(0.0)
    for value in values:
        top = ptx.fmax(top, ptx.fabs(value))
    return top
