"""Deterministic split-K: the last warpgroup to finish a tile adds all partial sums in the order of the splits.

Each warpgroup writes its accumulators, as they lie in its registers, to the workspace, and counts itself in. The one
that finds all others done reads every partial back, adds them 0, 1, 2, ... (so the sum does not depend on who was
last), and resets the counter for the next launch.

    partials   fp32 (splits, tiles, consumer_groups, registers, 128)
    counters   int32 (tiles, consumer_groups), zero before the first launch and after every launch
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32

from cutefp4.config import Sm90Config

from ..common.device_struct import DeviceStruct
from . import math
from .sinks import element_pointer, store_values


class SplitK(DeviceStruct):
    """One warpgroup's share of the reduction."""

    def __init__(self, partials, counters, flags: cute.Pointer, config: Sm90Config, tiles, consumer, thread):
        self.partials, self.counters, self.flags = partials, counters, flags
        self.config, self.tiles, self.consumer, self.thread = config, tiles, consumer, thread

    def _partial(self, split, slot: Int32, register: int) -> cute.Pointer:
        return element_pointer(self.partials, (split, slot, register, self.thread))

    @cute.jit
    def reduce(self, tile: Int32, split: Int32, acc) -> Boolean:
        """Returns whether this warpgroup holds the finished sum of `tile` in `acc` now."""
        config = self.config
        per_atom = config.tile_n // 2
        slot = tile * config.consumer_groups + self.consumer
        for atom in cutlass.range_constexpr(config.m_atoms):
            for i in cutlass.range_constexpr(per_atom):
                store_values(self._partial(split, slot, atom * per_atom + i), [acc[atom][i]])
        # Every thread's partials before the count, and (below) the count before reading anybody's partials.
        cute.arch.fence_acq_rel_gpu()
        self._sync()
        counter, flag = self.counters.iterator + slot, self.flags + self.consumer
        if self.thread == 0:
            arrived = cute.arch.atomic_add(counter, Int32(1), scope="gpu")
            cute.make_tensor(flag, cute.make_layout(1))[0] = Int32(arrived)
        self._sync()
        last = cute.make_tensor(flag, cute.make_layout(1))[0] == config.splits - 1
        if last:
            cute.arch.fence_acq_rel_gpu()
            self._add_partials(slot, acc)
            if self.thread == 0:
                cute.make_tensor(counter, cute.make_layout(1))[0] = Int32(0)
        # Nobody may overwrite the flag of this tile before all have read it.
        self._sync()
        return last

    def _add_partials(self, slot: Int32, acc) -> None:
        per_atom = self.config.tile_n // 2
        for atom in range(self.config.m_atoms):
            for i in range(per_atom):
                parts = [
                    cute.make_tensor(self._partial(s, slot, atom * per_atom + i), cute.make_layout(1))[0]
                    for s in range(self.config.splits)
                ]
                total = parts[0]
                for part in parts[1:]:
                    total = math.add(total, part)
                acc[atom][i] = total

    def _sync(self) -> None:
        cute.arch.barrier(barrier_id=1 + self.consumer, number_of_threads=128)
