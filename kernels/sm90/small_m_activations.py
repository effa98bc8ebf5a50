"""The activations of the small-M kernel, prepared once per CTA, in the order of the weight's fragments.

A K unit of an n tile (`columns` rows of A, 128 elements) takes 256 * columns bytes, 16 bytes at

    ((n_tile * units + unit) * 4 + w) * 64 * columns + (c * 4 + t) * 16

for what lane (g, t) with g % columns = c multiplies with word w of its chunk of the weight: row 8 * n_tile + c,
elements 32 t + 8 w .. + 7 of the unit, as four pairs in the order of `NumberFormat.pairs`. One 16-byte load without
bank conflicts brings the B fragments of two steps. With fewer than 8 columns lanes share them, and the sums of the
surplus are never looked at: a single row of A needs an eighth of the memory and of the work.

NVFP4 activations are decoded, 16-bit ones reordered. Rows behind M and elements behind the end are zeros.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, Uint32

from cutefp4.config_small_m import UNIT, SmallMConfig

from ..common import ptx
from ..common.device_struct import DeviceStruct
from ..common.scale_layout import column_offset, row_offset
from . import small_m_single as single
from .number_format import FORMATS


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
        self.loaded = cute.make_rmem_tensor(self.chunk_words * self.at_once, Uint32)

    @property
    def at_once(self) -> int:
        """Chunks of a thread in flight: a pass of one row has fewer than there are threads."""
        rows = self.config.n_tiles * self.config.columns
        return min((rows + 1) // 2, 2)

    def begin(self, first_unit: Int32, limit: Int32, thread: Int32) -> None:
        """Start loading a pass: what begins at K unit `first_unit`; elements from `limit` on are zeros."""
        self._load_batch(thread, first_unit, limit)

    def _load_batch(self, first: Int32, first_unit: Int32, limit: Int32) -> None:
        for i in range(self.at_once):
            t, row, unit = self._chunk(first + self.config.threads * i)
            for n, word in enumerate(self._load(row, (first_unit + unit) * UNIT + t * 32, limit)):
                self.loaded[i * self.chunk_words + n] = word

    @cute.jit
    def prepare(self, first_unit: Int32, limit: Int32, thread: Int32):
        """Fill shared memory for the pass that was begun.

        A thread makes chunks of 32 elements, several at a time, while the next ones are on their way.
        """
        config = self.config
        chunks = self.units * (4 * config.n_tiles * config.columns)
        stride = config.threads * self.at_once
        if cutlass.const_expr(config.separate):
            single.zero(self, thread)
        for first in cutlass.range(thread, chunks, stride, unroll=1):
            words = [self.loaded[n] for n in range(self.at_once * self.chunk_words)]
            self._load_batch(first + stride, first_unit, limit)
            for i in cutlass.range_constexpr(self.at_once):
                if first + config.threads * i < chunks:
                    t, row, unit = self._chunk(first + config.threads * i)
                    self._store(words[i * self.chunk_words : (i + 1) * self.chunk_words], t, row, unit)

    def _store(self, words: list, t: Int32, row: Int32, unit: Int32) -> None:
        if self.config.separate:
            single.store(self, words, t, unit)
            return
        base = self._address(row // 8, unit, row % 8 * 4 + t)
        for w in range(4):
            ptx.store_shared(base + Uint32(64 * self.config.columns * w), tuple(self._pairs(words, w)))

    def _chunk(self, index: Int32):
        """(t, row of A, unit of the pass) of a chunk."""
        rows = self.config.n_tiles * self.config.columns
        return index % 4, index // 4 % rows, index // (4 * rows)

    def _address(self, nt, unit: Int32, slot: Int32) -> Uint32:
        unit_bytes = 256 * self.config.columns
        return self.shared + Uint32((nt * self.units + unit) * unit_bytes + slot * 16)

    def _load(self, row: Int32, k: Int32, limit: Int32) -> tuple:
        """32 elements of a row: their words and, of codes, a word with the two scale bytes."""
        inside = row < self.m
        first, second = inside & (k < limit), inside & (k + 16 < limit)
        if self.kind != "nvfp4":
            where = self.rows + (Int64(row) * Int64(self.k) + Int64(k)) * Int64(2)
            halves = [(where + Int64(16 * i), first if i < 2 else second) for i in range(4)]
            return [word for address, valid in halves for word in ptx.load_words(address, 4, valid)]
        where = self.rows + Int64(row) * Int64(self.k // 2) + Int64(k // 2)
        if self.vector == 16:
            words = ptx.load_words(where, 4, first)
        else:
            words = (*ptx.load_words(where, 2, first), *ptx.load_words(where + Int64(8), 2, second))
        scale_row = self.scales + row_offset(row, self.k // 16, self.layout)
        low, high = (
            ptx.load_byte(scale_row + Int64(column_offset(k // 16 + i, self.layout)), valid)
            for i, valid in enumerate((first, second))
        )
        return [*words, low | (high << Uint32(8))]

    def _pairs(self, words: list, w: int) -> list:
        """The four pairs of word w."""
        fmt = FORMATS[self.config.decode_to]
        if self.kind == "nvfp4":
            scales = fmt.scale_pair(words[4], 0)
            return [fmt.scaled_by_half(words[w], j, scales, w // 2) for j in range(4)]
        eight = words[4 * w : 4 * w + 4]
        return [
            ptx.prmt(eight[a // 2], eight[b // 2], (0x32 if a % 2 else 0x10) + (0x7600 if b % 2 else 0x5400))
            for a, b in fmt.pairs
        ]

    def fragments(self, nt: int, unit: Int32, w: int, slot: Int32) -> tuple:
        """Pairs of word w in K unit `unit` of the pass: B fragments of steps 2w (first two) and 2w + 1.

        slot: `lane % (4 * columns)`.
        """
        return ptx.load_shared(self._address(nt, unit, slot) + Uint32(64 * self.config.columns * w), 4)
