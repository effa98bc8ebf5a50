"""Deterministic sharing of K (split-K, stream-K): the last warpgroup to finish a tile adds all partial sums in order.

Each warpgroup writes its accumulators, as they lie in its registers, to the workspace, and counts itself in. The one
that finds all others done adds the other partial sums in the order of K (so the sum does not depend on who was last),
and resets the counter for the next launch. A tile that one CTA has computed alone skips all this.

    partials   fp32 (slots, consumer_groups, registers, 128), used as (slots, consumer_groups, registers / 4, 128, 4);
               the scheduler says which slot a part of a tile has
    counters   int32 (tiles, consumer_groups), zero before the first launch and after every launch
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32

from cutefp4.config import Sm90Config

from ..common.device_struct import DeviceStruct
from . import math
from .fragment import element_pointer
from .sinks import store_values

VECTOR = 4
"""Registers of one access."""


class SplitK(DeviceStruct):
    """One warpgroup's share of the reduction."""

    def __init__(self, partials, counters, flags: cute.Pointer, config: Sm90Config, consumer: Int32, thread: Int32):
        self.partials, self.counters, self.flags = partials, counters, flags
        self.config, self.consumer, self.thread = config, consumer, thread

    @cute.jit
    def reduce(self, work, acc) -> Boolean:
        """Returns whether this warpgroup holds the finished sum of the work tile in `acc` now."""
        finished = work.parts == 1
        if work.parts > 1:
            finished = self._exchange(work, acc)
        return finished

    @cute.jit
    def _exchange(self, work, acc) -> Boolean:
        self._write(work.part_slot(work.part), acc, 0, self.config.tile_n // 2)
        self._sync()
        flag = self.flags + self.consumer
        if self.thread == 0:
            # Releases what the whole warpgroup wrote before the barrier, and acquires what the others wrote.
            counter = self.counters.iterator + (work.tile * self.config.consumer_groups + self.consumer)
            arrived = cute.arch.atomic_add(counter, Int32(1), sem="acq_rel", scope="gpu")
            cute.make_tensor(flag, cute.make_layout(1))[0] = Int32(arrived)
            if arrived == work.parts - 1:
                cute.make_tensor(counter, cute.make_layout(1))[0] = Int32(0)
        self._sync()
        last = cute.make_tensor(flag, cute.make_layout(1))[0] == work.parts - 1
        if last:
            self._add_others(work, acc)
        # Nobody may overwrite the flag of this tile before all have read it.
        self._sync()
        return last

    @cute.jit
    def _add_others(self, work, acc):
        """part 0 + part 1 + ..., from left to right.

        This warpgroup's own sum is still in its registers, and a sum of two does not depend on their order; so part 0
        or 1 begins with what it has. Any other begins with -0, to which adding changes nothing, and reads its own back.
        """
        first = Int32(1)
        if work.part > 1:
            first = Int32(0)
            for atom in cutlass.range_constexpr(self.config.m_atoms):
                acc[atom].fill(-0.0)
        for step in cutlass.range(first, work.parts, unroll=self._parts_at_once()):
            part = cutlass.select_((work.part == 1) & (step == 1), Int32(0), step)
            self._add(work.part_slot(part), acc, 0, self.config.tile_n // 2)

    def _parts_at_once(self) -> int:
        """As many as 64 registers hold: then the first ones are added while others are on their way (128 spilled)."""
        return max(1, 64 // (self.config.m_atoms * self.config.tile_n // 2))

    def _vector(self, slot: Int32, atom: int, i: int) -> cute.Pointer:
        """Of registers i .. i + 3 of a 64-row tile."""
        place = VECTOR * self.thread
        row = atom * (self.config.tile_n // 2) + i + place // 128
        return element_pointer(self.partials, (slot, self.consumer, row, place % 128), VECTOR)

    def _write(self, slot: Int32, acc, first: int, count: int) -> None:
        """Write `count` registers of each 64-row tile, from `first` on."""
        for atom in range(self.config.m_atoms):
            for i in range(first, first + count, VECTOR):
                store_values(self._vector(slot, atom, i), [acc[atom][i + j] for j in range(VECTOR)])

    def _add(self, slot: Int32, acc, first: int | Int32, count: int) -> None:
        """Add to `acc` the `count` registers of each 64-row tile that were written from `first` on."""
        for atom in range(self.config.m_atoms):
            for i in range(0, count, VECTOR):
                values = cute.make_tensor(self._vector(slot, atom, first + i), cute.make_layout(VECTOR)).load()
                for j in range(VECTOR):
                    acc[atom][i + j] = math.add(acc[atom][i + j], Float32(values[j]))

    def _sync(self) -> None:
        cute.arch.barrier(barrier_id=1 + self.consumer, number_of_threads=128)
