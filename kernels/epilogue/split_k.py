"""Deterministic sharing of K (split-K, stream-K): the last warpgroup to finish a tile adds all partial sums in order.

Each warpgroup writes its accumulators, as they lie in its registers, to the workspace, and counts itself in. The one
that finds all others done reads every partial back, adds them in the order of K (so the sum does not depend on who was
last), and resets the counter for the next launch. A tile that one CTA has computed alone skips all this.

    partials   fp32 (slots, consumer_groups, registers, 128); the scheduler says which slot a part of a tile has
    counters   int32 (tiles, consumer_groups), zero before the first launch and after every launch
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32

from cutefp4.config import Sm90Config

from ..common.device_struct import DeviceStruct
from . import math
from .fragment import element_pointer
from .sinks import store_values


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
        per_atom = self.config.tile_n // 2
        for atom in cutlass.range_constexpr(self.config.m_atoms):
            for i in cutlass.range_constexpr(per_atom):
                store_values(self._partial(work.part_slot(work.part), atom * per_atom + i), [acc[atom][i]])
        # Every thread's partials before the count, and (below) the count before reading anybody's partials.
        cute.arch.fence_acq_rel_gpu()
        self._sync()
        counter = self.counters.iterator + (work.tile * self.config.consumer_groups + self.consumer)
        flag = self.flags + self.consumer
        if self.thread == 0:
            arrived = cute.arch.atomic_add(counter, Int32(1), scope="gpu")
            cute.make_tensor(flag, cute.make_layout(1))[0] = Int32(arrived)
        self._sync()
        last = cute.make_tensor(flag, cute.make_layout(1))[0] == work.parts - 1
        if last:
            cute.arch.fence_acq_rel_gpu()
            self._load_partial(work.part_slot(Int32(0)), acc)
            for part in cutlass.range(1, work.parts, unroll=4):
                self._add_partial(work.part_slot(part), acc)
            if self.thread == 0:
                cute.make_tensor(counter, cute.make_layout(1))[0] = Int32(0)
        # Nobody may overwrite the flag of this tile before all have read it.
        self._sync()
        return last

    def _partial(self, slot: Int32, register: int) -> cute.Pointer:
        return element_pointer(self.partials, (slot, self.consumer, register, self.thread))

    def _values(self, slot: Int32, atom: int) -> list:
        per_atom = self.config.tile_n // 2
        return [
            cute.make_tensor(self._partial(slot, atom * per_atom + i), cute.make_layout(1))[0] for i in range(per_atom)
        ]

    def _load_partial(self, slot: Int32, acc) -> None:
        for atom in range(self.config.m_atoms):
            for i, value in enumerate(self._values(slot, atom)):
                acc[atom][i] = value

    def _add_partial(self, slot: Int32, acc) -> None:
        for atom in range(self.config.m_atoms):
            for i, value in enumerate(self._values(slot, atom)):
                acc[atom][i] = math.add(acc[atom][i], value)

    def _sync(self) -> None:
        cute.arch.barrier(barrier_id=1 + self.consumer, number_of_threads=128)
