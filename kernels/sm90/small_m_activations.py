"""The activations of the small-M kernel, prepared once per CTA, in the order of the weight's fragments.

A K unit of an n tile (`columns` rows of A, 128 elements) takes 256 * columns + 64 bytes, 16 bytes at

    ((n_tile * units + unit) * 4 + w) * (64 * columns + 16) + (c * 4 + t) * 16

for what lane (g, t) with g % columns = c multiplies with word w of its chunk of the weight: row 8 * n_tile + c,
elements 32 t + 8 w .. + 7 of the unit, as four pairs in the order of `NumberFormat.pairs`. One 16-byte load without
bank conflicts brings the B fragments of two steps. With fewer than 8 columns lanes share them, and the sums of the
surplus are never looked at: a single row of A needs an eighth of the memory and of the work.

NVFP4 activations are decoded, 16-bit ones reordered: a thread makes four of these pieces at once. Of codes they are
one chunk, words 0..3 for one t; of 16-bit elements word w for t = 0..3, so that four threads read 64 bytes in a row (a
chunk a thread: 64 KB took 4 us on an H200). The 16 bytes between words keep their stores apart in the banks. Rows
behind M and elements behind the end are zeros.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, Int64, Uint32

from cutefp4.config_small_m import UNIT, SmallMConfig, word_bytes

from ..common import ptx
from ..common.device_struct import DeviceStruct
from . import small_m_single as single
from .number_format import FORMATS
from .small_m_weight import wide_product


class Activations(DeviceStruct):
    """A in global memory and the CTA's prepared copy.

    kind: "nvfp4", "bfloat16" or "float16". memory: addresses of codes (or elements) and scales of this batch entry.
    m, k: rows and elements. shared: address of the prepared copy. units: of a pass.
    """

    def __init__(self, config: SmallMConfig, kind: str, layout: str, vector: int, memory, sizes, shared: Uint32):
        self.config, self.kind, self.layout, self.vector = config, kind, layout, vector
        self.rows, self.scales = memory
        self.m, self.k, self.units = sizes
        self.shared = shared
        self.chunk_words = 5 if kind == "nvfp4" else 16
        self.loaded = cute.make_rmem_tensor(self.chunk_words * config.chunks, Uint32)

    def begin(self, first_unit: Int32, limit: Int32, thread: Int32) -> None:
        """Start loading a pass: what begins at K unit `first_unit`; elements from `limit` on are zeros."""
        self._load_batch(thread, first_unit, limit)

    def _load_batch(self, first: Int32, first_unit: Int32, limit: Int32) -> None:
        for i in range(self.config.chunks):
            j, row, unit = self._chunk(first + self.config.threads * i)
            for n, word in enumerate(self._load(j, row, first_unit + unit, limit)):
                self.loaded[i * self.chunk_words + n] = word

    @cute.jit
    def prepare(self, first_unit: Int32, limit: Int32, thread: Int32):
        """Fill shared memory for the pass that was begun.

        A thread makes chunks of 32 elements, several at a time, while the next ones are on their way.
        """
        config = self.config
        chunks = self.units * (4 * config.n_tiles * config.columns)
        stride = config.threads * config.chunks
        if cutlass.const_expr(config.separate):
            single.zero(self, thread)
        for first in cutlass.range(thread, chunks, stride, unroll=1):
            words = [self.loaded[n] for n in range(config.chunks * self.chunk_words)]
            if cutlass.const_expr(self.kind == "nvfp4"):  # twice 64 registers would be too many
                self._load_more(first + stride, chunks, first_unit, limit)
            for i in cutlass.range_constexpr(config.chunks):
                if first + config.threads * i < chunks:
                    j, row, unit = self._chunk(first + config.threads * i)
                    self._store(words[i * self.chunk_words : (i + 1) * self.chunk_words], j, row, unit)
            if cutlass.const_expr(self.kind != "nvfp4"):
                self._load_more(first + stride, chunks, first_unit, limit)

    @cute.jit
    def _load_more(self, first: Int32, chunks: Int32, first_unit: Int32, limit: Int32):
        if first < chunks:
            self._load_batch(first, first_unit, limit)

    def _store(self, words: list, j: Int32, row: Int32, unit: Int32) -> None:
        if self.config.separate:
            single.store(self, words, j, unit)
            return
        base, c4 = self._address(row >> 3, unit), (row & 7) * 4
        if self.kind == "nvfp4":
            base += Uint32((c4 + j) * 16)
            for w in range(4):
                ptx.store_shared(base + Uint32(word_bytes(self.config) * w), tuple(self._decoded(words, w)))
            return
        base += Uint32(c4 * 16 + j * word_bytes(self.config))
        for t in range(4):
            ptx.store_shared(base + Uint32(16 * t), tuple(self._reordered(words[4 * t : 4 * t + 4])))

    def _chunk(self, index: Int32):
        """(t of codes or w of 16-bit elements, row of A, unit of the pass) of a chunk."""
        rows = self.config.n_tiles * self.config.columns  # a power of two
        return index & 3, (index >> 2) & (rows - 1), index >> (1 + rows.bit_length())

    def _address(self, nt, unit: Int32) -> Uint32:
        return self.shared + Uint32((nt * self.units + unit) * (4 * word_bytes(self.config)))

    def _load(self, j: Int32, row: Int32, unit: Int32, limit: Int32) -> tuple:
        """32 elements of a row: their words and, of codes, a word with the two scale bytes."""
        inside = row < self.m
        if self.kind != "nvfp4":
            k = unit * UNIT + j * 8
            where = wide_product(row, self.k * 2, self.rows + Int64(Uint32(k)) * Int64(2))
            return [
                word for t in range(4) for word in load_now(where + Int64(64 * t), 4, inside & (k + 32 * t < limit))
            ]
        t, k = j, unit * UNIT + j * 32
        first, second = inside & (k < limit), inside & (k + 16 < limit)
        where = wide_product(row, self.k >> 1, self.rows + Int64(Uint32(k >> 1)))
        if self.vector == 16:
            words = load_now(where, 4, first)
        else:
            words = (*load_now(where, 2, first), *load_now(where + Int64(8), 2, second))
        return [*words, self._load_scales(t, row, unit, first, second)]

    def _load_scales(self, t: Int32, row: Int32, unit: Int32, first, second) -> Uint32:
        """The two scale bytes of a chunk. Rows are few: all are in the first 128 of tiled scales."""
        if self.layout == "tiled":
            inside = (row & 31) * 16 + (row >> 5) * 4 + (t >> 1) * 512 + (t & 1) * 2
            both = load_half_now(wide_product(unit, Int32(1024), self.scales + Int64(Uint32(inside))), first)
            return both & ptx.select(second, Uint32(0xFFFF), Uint32(0xFF))
        where = wide_product(row, self.k >> 4, self.scales + Int64(Uint32(unit * 8 + t * 2)))
        low, high = load_byte_now(where, first), load_byte_now(where + Int64(1), second)
        return low | (high << Uint32(8))

    def _decoded(self, words: list, w: int) -> list:
        """The four pairs of word w of a chunk of codes."""
        fmt = FORMATS[self.config.decode_to]
        scales = fmt.scale_pair(words[4], 0)
        return [fmt.scaled_by_half(words[w], i, scales, w // 2) for i in range(4)]

    def _reordered(self, eight: list) -> list:
        """The four pairs of eight 16-bit elements."""
        return [
            ptx.prmt(eight[a // 2], eight[b // 2], (0x32 if a % 2 else 0x10) + (0x7600 if b % 2 else 0x5400))
            for a, b in FORMATS[self.config.decode_to].pairs
        ]

    def fragments(self, nt: int, unit: Int32, w: int, slot: Int32) -> tuple:
        """Pairs of word w in K unit `unit` of the pass: B fragments of steps 2w (first two) and 2w + 1.

        slot: `lane % (4 * columns)`.
        """
        where = self._address(nt, unit) + Uint32(slot * 16)
        return ptx.load_shared(where + Uint32(word_bytes(self.config) * w), 4)


# Volatile, so that ptxas does not move them behind a barrier and the copies of the weight that follow it.


def load_now(where: Int64, count: int, valid: Boolean) -> tuple[Uint32, ...]:
    """`count` (2 or 4) words of global memory, zeros if not valid."""
    zeros = " ".join(f"mov.b32 ${i}, 0;" for i in range(count))
    kind = f"v{count}.b32 {{{', '.join(f'${i}' for i in range(count))}}}, [${count}]"
    text = f"{{ .reg .pred p; setp.ne.u32 p, ${count + 1}, 0; {zeros} @p ld.volatile.global.{kind}; }}"
    return ptx.asm(text, (Uint32,) * count, where, Uint32(valid), effect=True)


def load_half_now(where: Int64, valid: Boolean) -> Uint32:
    """16 bits, zero-extended; 0 if not valid."""
    text = "{ .reg .pred p; setp.ne.u32 p, $2, 0; mov.b32 $0, 0; @p ld.volatile.global.u16 $0, [$1]; }"
    return ptx.asm(text, Uint32, where, Uint32(valid), effect=True)


def load_byte_now(where: Int64, valid: Boolean) -> Uint32:
    """8 bits, zero-extended; 0 if not valid."""
    text = "{ .reg .pred p; setp.ne.u32 p, $2, 0; mov.b32 $0, 0; @p ld.volatile.global.u8 $0, [$1]; }"
    return ptx.asm(text, Uint32, where, Uint32(valid), effect=True)
