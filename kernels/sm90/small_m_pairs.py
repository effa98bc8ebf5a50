"""The weight of the small-M kernel in whole cache lines: two K units of a row are 128 bytes, eight lanes copy them.

    copy j (0..3) of a pair:   lane l copies 16 bytes l % 8 of row 4 * (j % 2) + l / 8 of the fragment's half j / 2
    scales of a pair:          lanes 0..15 copy 16 bytes each: four rows in all four quarters of 64 elements

Other lanes read what a lane has copied, so that the warp meets before and after. The chunks of odd units change places
with those of the neighbouring row, or both units of a copy would be written to the same banks.

`WeightStream` copies 64 bytes of a row at once. Half lines cost nothing while the L2 cache keeps what it reads, but the
weight leaves it first (`copy_async`): a kernel that only reads took 23.7 us with half lines and 22.9 with whole ones on
an H200 at (7168, 16384), 15.5 and 15.1 at (8192, 8192).
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, Int64, Uint32

from cutefp4.config_small_m import SLOT_BYTES, UNIT

from ..common import ptx
from .small_m_weight import TILED_UNIT_BYTES, WeightStream, copy_async, first_row, wide_product


class PairStream(WeightStream):
    """`WeightStream` of 16-byte aligned rows and tiled scales, and an even `depth`."""

    at_once = 2

    def of_lane(self, lane: Int32) -> None:
        super().of_lane(lane)
        self.row, self.chunk = lane >> 3, lane & 7
        odd = self.chunk >> 2
        self.code_targets = self.ring + Uint32(odd * SLOT_BYTES + (self.row ^ odd) * 64 + (self.chunk & 3) * 16)
        self.code_places = [self.code_slots, self.code_slots ^ Uint32(64)]
        # Lane 4 * q + r, q and r in 0..3: row r, the q-th 64 elements of the pair.
        self.quarter, self.copies_scales = (lane >> 2) & 3, lane < 16
        self.scale_source = self.quarter * 512 + (lane & 3) * 16
        self.scale_targets = self.ring + Uint32(1024 + ((lane >> 3) & 1) * SLOT_BYTES + (lane & 7) * 16)
        self.scale_places = self.ring + Uint32(1024 + self.scale_group * 64 + (self.g & 3) * 16 + (self.g >> 2) * 8)

    def bases(self, tile: Int32) -> list:
        found = []
        for i in range(self.config.row_tiles):
            first = first_row(tile + i, Int32(0))
            group = cutlass.min(first >> 7, (self.rows - 1) >> 7)
            inside = self.scales + Int64(Uint32((first & 31) * 16 + self.scale_source))
            found += [first + self.row, wide_product(group, self.scale_pitch, inside)]
        return found

    def place(self, bases: list, unit: Int32, limit: Int32):
        scale_bytes = Int64(Uint32(unit * TILED_UNIT_BYTES))
        column, addresses = self.codes + Int64(Uint32(unit * 64 + self.chunk * 16)), []
        for first, scales in zip(bases[::2], bases[1::2], strict=True):
            rows = [cutlass.min(first + 64 * (j % 2) + 32 * (j // 2), self.rows - 1) for j in range(4)]
            addresses.append(([wide_product(row, self.row_bytes, column) for row in rows], scales + scale_bytes))
        return addresses, limit - unit * UNIT

    def load(self, place, d: int, more: Boolean) -> None:
        """Start copying units `d` and `d + 1` behind a place, or nothing if not `more`."""
        addresses, left = place
        valid = left > UNIT * d + self.chunk * 32
        for i, (rows, scales) in enumerate(addresses):
            slot = (i * self.config.depth + d) * SLOT_BYTES
            for j, row in enumerate(rows):
                target = self.code_targets + Uint32(slot + 512 * (j // 2) + 256 * (j % 2))
                copy_async(target, row, 64 * d, 16, valid, more, self.policy)
            inside = left > UNIT * d + self.quarter * 64
            target = self.scale_targets + Uint32(slot)
            copy_async(target, scales, TILED_UNIT_BYTES * d, 16, inside, more & self.copies_scales, self.policy)
        ptx.asm("cp.async.commit_group;", None, effect=True)

    def take(self, i: int, d: int) -> tuple:
        slot = Uint32((i * self.config.depth + d) * SLOT_BYTES)
        if i == 0 and d % 2 == 0:
            ptx.asm(f"cp.async.wait_group {self.config.depth // 2 - 1};", None, effect=True)
            cute.arch.sync_warp()
        codes = self.code_places[d % 2] + slot
        words = [*ptx.load_shared(codes, 4), *ptx.load_shared(codes + Uint32(512), 4)]
        low, high = ptx.load_shared(self.scale_places + slot, 2)
        return words, ptx.asm("prmt.b32 $0, $1, $2, $3;", Uint32, low, high, self.selector)
