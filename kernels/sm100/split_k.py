"""Deterministic split-K: the CTA that finishes a tile last adds all partial sums in the order of K.

Every epilogue warp works for itself: it writes its 32 rows of partial sums to the workspace, counts itself in, and the
one that finds all others done reads every partial back and goes on with the sum, which does not depend on who was last.

    partials   fp32 (tiles * splits * CTAs of a cluster, 4 warps, tile_n columns, 32 lanes)
    counters   int32 (tiles * CTAs, 4 warps), zero before the first launch and after every launch

The CTAs of a pair have rows of their own, and their warps do not wait for each other here either.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32

from cutefp4.config_sm100 import Sm100Config

from ..common.device_struct import DeviceStruct
from ..epilogue import math
from ..epilogue.sinks import element_pointer


class SplitSum(DeviceStruct):
    """One epilogue warp's share of the reduction."""

    def __init__(
        self, partials: cute.Tensor, counters: cute.Tensor, config: Sm100Config, place, warp: Int32, lane: Int32
    ):
        self.partials, self.counters, self.warp, self.lane = partials, counters, warp, lane
        self.splits, self.ctas, self.rank = config.splits, config.cluster_size, place.rank

    def _own(self, index: Int32) -> Int32:
        """This CTA's of the entries of a cluster."""
        return index * self.ctas + self.rank

    def _pointer(self, slot: Int32, column: Int32) -> cute.Pointer:
        return element_pointer(self.partials, (slot, self.warp, column, self.lane))

    def write(self, work, column: Int32, values: tuple) -> None:
        """Partial sums of this thread's row from `column` of the tile on."""
        for j, value in enumerate(values):
            slot = cute.make_tensor(
                self._pointer(self._own(work.part_slot(work.part)), column + j), cute.make_layout(1)
            )
            slot[0] = value

    @cute.jit
    def count_in(self, work) -> Boolean:
        """After the last `write` of a tile: whether this warp must finish it."""
        # Every lane's partials before the count, and (below) the count before reading anybody's partials.
        cute.arch.fence_acq_rel_gpu()
        cute.arch.sync_warp()
        counter = element_pointer(self.counters, (self._own(work.tile), self.warp))
        arrived = Int32(0)
        if self.lane == 0:
            arrived = Int32(cute.arch.atomic_add(counter, Int32(1), scope="gpu", sem="relaxed"))
        arrived = cute.arch.shuffle_sync(arrived, 0)
        last = arrived == self.splits - 1
        if last:
            cute.arch.fence_acq_rel_gpu()
            if self.lane == 0:
                cute.make_tensor(counter, cute.make_layout(1))[0] = Int32(0)
        return last

    @cute.jit
    def add_up(self, work, column: Int32, sums: cute.Tensor, first: cutlass.Constexpr, count: cutlass.Constexpr):
        """Finished sums of this thread's row at `count` columns of the tile from `column` on, into sums[first ..]."""
        # Adding to a zero first would turn a sum of -0 into +0.
        for j, value in enumerate(self._part(work, Int32(0), column, count)):
            sums[first + j] = value
        for part in cutlass.range(1, self.splits, unroll=2):
            for j, value in enumerate(self._part(work, part, column, count)):
                sums[first + j] = math.add(sums[first + j], value)

    def _part(self, work, part: Int32, column: Int32, count: int) -> list[Float32]:
        slot = self._own(work.part_slot(part))
        return [cute.make_tensor(self._pointer(slot, column + j), cute.make_layout(1))[0] for j in range(count)]
