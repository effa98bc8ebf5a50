"""The weight of the small-M kernel: global memory to registers to fragments of mma.sync, by one warp.

A fragment of mma.m16n8k16 takes four elements each of rows g and g + 8 from a thread (g = lane / 4, t = lane % 4).
Which four is free as long as the activations follow (small_m_activations.py), so thread t of a quad owns 16 bytes of a
row, 32 elements with their two scales, and nothing is exchanged between threads:

    K unit u, 128 elements:   thread t reads bytes 64 u + 16 t .. of its two rows
    word w of the 16 bytes:   steps 2w and 2w + 1 of eight; step 2w + i takes pairs 2i and 2i + 1 of the word

Rows: tile i of 16 has rows 128 (i / 8) + 4 (i % 8) + 32 q + (0..3), q = 0..3. Fragment row g is q = 2 (g / 4),
g % 4, and row g + 8 the same with q + 1, whose scales are neighbours in a 128x4 tile: one 8-byte copy for both.

A warp keeps `depth` units of each of its row tiles in flight by cp.async, in slots of its own. A lane reads back what
it has copied itself, so that nobody waits for anybody. Loads straight into registers were as fast, but ptxas moved them
behind the arithmetic that they should run under, and they cost 10 registers a unit.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, Int64, Uint32

from cutefp4.config_small_m import SLOT_BYTES, UNIT, SmallMConfig

from ..common import ptx
from ..common.device_struct import DeviceStruct
from .number_format import FORMATS

TILED_UNIT_BYTES = 1024
"""Scale bytes of 128 rows of one K unit: two 128x4 tiles."""


def first_row(tile: Int32, g: Int32) -> Int32:
    """Row of the matrix of fragment row g of a row tile; row g + 8 is 32 further."""
    return (tile >> 3) * 128 + (tile & 7) * 4 + (g & 3) + (g >> 2) * 64


class WeightStream(DeviceStruct):
    """One warp's view of the weight, and its registers in flight.

    memory: byte addresses of codes and scales of this batch entry, rows and bytes of a row of the codes, bytes of a
    128-row group of scale tiles or of a row of compact scales. vector: bytes of a copy of codes, 16, or 8 if
    K % 64 != 0. ring: address of the warp's slots. at_once: units of a `load`.
    """

    at_once = 1

    def __init__(self, config: SmallMConfig, layout: str, vector: int, memory, ring: Uint32, lane: Int32):
        self.config, self.layout, self.vector = config, layout, vector
        self.codes, self.scales, self.rows, self.row_bytes, self.scale_pitch = memory
        self.ring = ring
        self.policy = ptx.asm("createpolicy.fractional.L2::evict_first.b64 $0, 1.0;", Int64)
        self.of_lane(lane)
        # Compact rows that do not start at a multiple of 4 bytes cannot be copied: their scales go through registers.
        self.by_byte = layout == "compact" and vector == 8
        self.scale_words = cute.make_rmem_tensor(2 * config.row_tiles * config.depth, Uint32)

    def of_lane(self, lane: Int32) -> None:
        """Derive what depends on the lane."""
        self.g, self.t = lane >> 2, lane & 3
        self.code_slots, self.scale_slots = self.ring + Uint32(lane * 16), self.ring + Uint32(1024 + lane * 8)
        # A lane copies four scales each of rows g and g + 8, those of 64 elements, and takes two: its chunk's, or those
        # of the blocks whose sums it holds (small_m_single.py).
        if self.config.separate:
            self.scale_group, self.scale_block, self.scale_step = self.t & 1, self.t >> 1, 2
            self.selector = Uint32(0x6420) + Uint32(self.scale_block) * Uint32(0x1111)
        else:
            self.scale_group, self.scale_block, self.scale_step = self.t >> 1, (self.t & 1) * 2, 1
            self.selector = Uint32(0x5410) + Uint32(self.t & 1) * Uint32(0x2222)

    def bases(self, tile: Int32) -> list:
        """What addresses of `row_tiles` tiles are made of: a row for each, and addresses of its scales of K unit 0."""
        found = []
        for i in range(self.config.row_tiles):
            row = first_row(tile + i, self.g)
            found += [row, *self._scale_addresses(row)]
        return found

    def _scale_addresses(self, row: Int32) -> list:
        if self.layout == "tiled":
            # Rows behind the matrix lie in its padding, except in tiles behind the last group.
            group = cutlass.min(row >> 7, (self.rows - 1) >> 7)
            inside = (row & 31) * 16 + (self.g >> 2) * 8 + self.scale_group * 512
            return [wide_product(group, self.scale_pitch, self.scales + Int64(Uint32(inside)))]
        rows = [cutlass.min(row + 32 * h, self.rows - 1) for h in range(2)]
        first = self.scale_group * 4 + (self.scale_block if self.by_byte else 0)
        return [wide_product(r, self.scale_pitch, self.scales + Int64(Uint32(first))) for r in rows]

    def place(self, bases: list, unit: Int32, limit: Int32):
        """Addresses in K unit `unit`, and how many elements there are from its beginning to `limit`."""
        scale_bytes = Int64(Uint32(unit * (TILED_UNIT_BYTES if self.layout == "tiled" else 8)))
        column = self.codes + Int64(Uint32(unit * 64 + self.t * 16))
        each, addresses = len(bases) // self.config.row_tiles, []
        for n in range(0, len(bases), each):
            rows = [cutlass.min(bases[n] + 32 * q, self.rows - 1) for q in range(2)]
            codes = [wide_product(row, self.row_bytes, column) for row in rows]
            addresses.append((codes, [base + scale_bytes for base in bases[n + 1 : n + each]]))
        return addresses, limit - unit * UNIT

    def load(self, place, d: int, more: Boolean) -> None:
        """Start copying unit `d` behind a place, or nothing if not `more`."""
        addresses, left = place
        # A copy of 0 bytes fills with zeros. Checking every copy costs less than 1 % of the loop's instructions.
        valid = [left > UNIT * d + self.t * 32, left > UNIT * d + self.t * 32 + 16]
        for i, (rows, scales) in enumerate(addresses):
            slot = i * self.config.depth + d
            codes = self.code_slots + Uint32(slot * SLOT_BYTES)
            for h in range(2):
                for piece in range(16 // self.vector):
                    at = self.vector * piece
                    target, offset = codes + Uint32(512 * h + at), 64 * d + at
                    copy_async(target, rows[h], offset, self.vector, valid[piece], more, self.policy)
            self._load_scales(scales, slot, d, left - UNIT * d, more)
        ptx.asm("cp.async.commit_group;", None, effect=True)

    def _load_scales(self, where, slot: int, d: int, left: Int32, more: Boolean) -> None:
        target = self.scale_slots + Uint32(slot * SLOT_BYTES)
        valid = left > self.scale_group * 64
        if self.layout == "tiled":
            copy_async(target, where[0], TILED_UNIT_BYTES * d, 8, valid, more, self.policy)
            return
        for h, address in enumerate(where):
            if not self.by_byte:
                copy_async(target + Uint32(4 * h), address, 8 * d, 4, valid, more, self.policy)
                continue
            blocks = [self.scale_group * 4 + self.scale_block + self.scale_step * i for i in range(2)]
            bytes_ = [
                ptx.load_byte(address + Int64(8 * d + self.scale_step * i), more & (left > block * 16))
                for i, block in enumerate(blocks)
            ]
            self.scale_words[2 * slot + h] = bytes_[0] | (bytes_[1] << Uint32(8))

    def take(self, i: int, d: int) -> tuple:
        """(words, scale bytes) of unit d, row tile i: four words each of rows g and g + 8, two bytes each; waits."""
        slot = i * self.config.depth + d
        if i == 0:
            ptx.asm(f"cp.async.wait_group {self.config.depth - 1};", None, effect=True)
        codes = self.code_slots + Uint32(slot * SLOT_BYTES)
        words = [*ptx.load_shared(codes, 4), *ptx.load_shared(codes + Uint32(512), 4)]
        if self.by_byte:
            return words, ptx.prmt(self.scale_words[2 * slot], self.scale_words[2 * slot + 1], 0x5410)
        low, high = ptx.load_shared(self.scale_slots + Uint32(slot * SLOT_BYTES), 2)
        return words, ptx.asm("prmt.b32 $0, $1, $2, $3;", Uint32, low, high, self.selector)

    def multipliers(self, scale_bytes: Uint32) -> list:
        """Of rows g and g + 8 the two scales that `take` returned, as the two halves of a word."""
        return [FORMATS[self.config.decode_to].scale_pair(scale_bytes, h) for h in range(2)]

    def fragment(self, words: list, scales: list, step: int) -> list:
        """The four A registers of step `step` (0..7) of a unit."""
        fmt, w = FORMATS[self.config.decode_to], step // 2
        return [
            fmt.scaled_by_half(words[4 * h + w], 2 * (step % 2) + j, scales[h], w // 2)
            for j in range(2)
            for h in range(2)
        ]


def wide_product(a: Int32, b: Int32, c: Int64) -> Int64:
    """a * b + c in 64 bits; a and b are not negative."""
    return ptx.asm("mad.wide.u32 $0, $1, $2, $3;", Int64, a, b, c)


def copy_async(target: Uint32, base: Int64, offset: int, size: int, valid: Boolean, more: Boolean, policy) -> None:
    """Copy `size` bytes of global memory to shared memory; zeros if not `valid`, nothing if not `more`.

    Every byte of the weight is read once: it leaves the L2 cache first, and what others keep there stays, above all
    what they have written and is not yet in memory. Behind a kernel that has filled the cache, as in benchmarks, its
    50 MB had to be written back while the weight came in: 28.2 us without the policy at (7168, 16384) on an H200, 25.9
    with it; where the cache had been filled by reading, 24.3 without. L2 fetches whole lines around codes: 256 bytes
    were 0.3 us slower with this policy.
    """
    kind = "cg.shared.global.L2::cache_hint.L2::128B" if size == 16 else "ca.shared.global.L2::cache_hint"
    text = (
        "{ .reg .pred m, v; .reg .b32 n; setp.ne.u32 m, $2, 0; setp.ne.u32 v, $3, 0; "
        f"selp.b32 n, {size}, 0, v; "
        f"@m cp.async.{kind} [$0], [$1+{offset}], {size}, n, $4; }}"
    )
    ptx.asm(text, None, target, base, Uint32(more), Uint32(valid), policy, effect=True)
