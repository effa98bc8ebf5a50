"""One row of NVFP4 activations: the eight columns of mma.sync keep blocks apart, so that scales multiply sums.

A quad's threads own 32 elements of a row each, two blocks (small_m_weight.py). Column n = chunk + 4 * block of B holds
A's elements of that thread's block and zeros in the places of all others. After the eight steps of a K unit column n of
D is the sum of one block, of codes alone: its scales are applied to four numbers a thread instead of 64, and codes need
not become floats. They become 2 * e2m1 in int8, by table:

    prmt(table, word)                 magnitudes of four codes, and zeros for negative ones: PRMT repeats the sign
                                      bit of the byte in the table where bit 3 of its selector is set
    prmt(table, word ^ 0x88888888)    magnitudes of the negative ones, which multiply -A

Sums are exact in int32, begin at the bits of 1.5 * 2^23 and so end as floats. Per 8 weights: 4 PRMT, 1 LOP3, 2 shifts
and 1/4 of two IMMA, where the scaled fp16 pairs take 4 LOP3, 3 shifts, 4 F2FP and 4 HMUL2.

Shared memory: A's values and their negatives of a K unit in 256 bytes, 16 for (word, chunk); 16 bytes with its scales,
two fp16 times 2^-2 for each thread of a quad; then `depth` units of zeros, which lanes read that have none of a column.
"""

import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32

from ..common import e4m3, ptx
from ..common.e2m1 import e4m3x2_to_f16x2

_TABLE = 0x03020100, 0x0C080604
_SIGNS = 0x88888888
_QUARTER = 0x34003400
_MAGIC = 0x4B400000
"""1.5 * 2^23 in fp32: adding a small integer to the bits adds it to the value."""


def table_word(activations, lane: Int32) -> Uint32:
    """The low word of the table, in a register: ptxas would move what is the same in all lanes there every time."""
    return ptx.load_shared(_table_address(activations) + Uint32((lane & 3) * 4), 1)[0]


def _table_address(activations) -> Uint32:
    return activations.shared + Uint32(activations.units * 272 + activations.config.depth * 256)


def split(word: Uint32, low: Uint32) -> tuple[list, list]:
    """Twice the magnitudes of eight codes as two words of bytes: of the positive ones, and of the negative ones.

    low: `table_word()`.
    """
    high = Uint32(_TABLE[1])
    flipped = word ^ Uint32(_SIGNS)
    return tuple([e4m3.permute_by(low, high, x >> Uint32(16 * half)) for half in range(2)] for x in (word, flipped))


def _negated(magnitudes: Uint32) -> Uint32:
    """Bytes 0..12 times -1."""
    return (Uint32(0x80808080) - magnitudes) ^ Uint32(0x80808080)


def store(activations, words: list, t: Int32, unit: Int32) -> None:
    """Prepare 32 elements: their codes' words, and one with the two scale bytes."""
    base = activations.shared + Uint32(unit * 256 + t * 16)
    for w in range(4):
        plus, minus = split(words[w], Uint32(_TABLE[0]))
        values = [p | _negated(m) for p, m in zip(plus, minus, strict=True)]
        negated = [m | _negated(p) for p, m in zip(plus, minus, strict=True)]
        ptx.store_shared(base + Uint32(64 * w), (*values, *negated))
    scales = e4m3.mul_x2("f16", e4m3x2_to_f16x2(words[4], 0), Uint32(_QUARTER))
    where = activations.shared + Uint32(activations.units * 256 + unit * 16 + (t >> 1) * 4 + (t & 1) * 2)
    text = "{ .reg .b16 lo, hi; mov.b32 {lo, hi}, $1; st.shared.b16 [$0], lo; st.shared.b16 [$0+8], hi; }"
    ptx.asm(text, None, where, scales, effect=True)


@cute.jit
def zero(activations, thread: Int32):
    """Clear the units of zeros, and write the table behind them."""
    if thread < activations.config.depth * 16:
        where = activations.shared + Uint32(activations.units * 272 + thread * 16)
        ptx.store_shared(where, (Uint32(0), Uint32(0), Uint32(0), Uint32(0)))
        ptx.store_shared(_table_address(activations), (Uint32(_TABLE[0]),) * 4)


class Columns:
    """This lane's part of B for the `depth` units that begin at `unit`."""

    def __init__(self, activations, unit: Int32, lane: Int32):
        g, t = lane >> 2, lane & 3
        own, zeros = (
            activations.shared + Uint32(unit * 256 + t * 16),
            activations.shared + Uint32(activations.units * 272),
        )
        self.addresses = [ptx.select(g == t + 4 * block, own + Uint32(128 * block), zeros) for block in range(2)]
        self.scale_address = activations.shared + Uint32(activations.units * 256 + unit * 16 + t * 4)

    def words(self, d: int, w: int) -> tuple:
        """Two registers of B, and the two of -B, for word w of unit d."""
        return ptx.load_shared(self.addresses[w // 2] + Uint32(256 * d + 64 * (w % 2)), 4)

    def scales(self, d: int) -> Uint32:
        """Scales of columns 2t and 2t + 1 of D, times 2^-2."""
        return ptx.load_shared(self.scale_address + Uint32(16 * d), 1)[0]


def multiply(sums: list, a: list, b: tuple) -> list:
    """sums + A * B, one mma.sync.m16n8k32 of int8."""
    text = (
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, "
        "{$10, $11, $12, $13};"
    )
    return list(ptx.asm(text, (Uint32,) * 4, *a, *b, *sums))


def accumulate(acc: cute.Tensor, first: int, taken: tuple, columns: list, scales: Uint32, table: Uint32) -> None:
    """acc[first .. first + 3] += one K unit of a row tile: what `WeightStream.take` has returned."""
    words, scale_bytes = taken
    sums = [Uint32(_MAGIC)] * 4
    for w in range(4):
        parts = list(zip(split(words[w], table), split(words[4 + w], table), strict=True))
        for sign, (upper, lower) in enumerate(parts):
            a = [upper[0], lower[0], upper[1], lower[1]]
            sums = multiply(sums, a, columns[w][2 * sign : 2 * sign + 2])
    for h in range(2):
        product = e4m3.mul_x2("f16", e4m3x2_to_f16x2(scale_bytes, h), scales)
        for j, scale in enumerate(halves(product)):
            value = ptx.sub(ptx.from_bits(sums[2 * h + j]), Float32(1.5 * 2**23))
            acc[first + 2 * h + j] = ptx.fma(value, scale, acc[first + 2 * h + j])


def halves(pair: Uint32) -> tuple:
    """Two fp16 as fp32."""
    text = "{ .reg .b16 lo, hi; mov.b32 {lo, hi}, $2; cvt.f32.f16 $0, lo; cvt.f32.f16 $1, hi; }"
    return ptx.asm(text, (Float32, Float32), pair)


def join(acc: cute.Tensor, first: int) -> None:
    """Add the columns of D, over the quad: every element of a row becomes the row's sum."""
    for h in range(2):
        total = ptx.add(acc[first + 2 * h], acc[first + 2 * h + 1])
        for distance in (1, 2):
            total = ptx.add(total, ptx.from_bits(ptx.shuffle_xor(ptx.bits(total), distance)))
        acc[first + 2 * h] = acc[first + 2 * h + 1] = total
