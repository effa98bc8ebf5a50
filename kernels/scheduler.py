"""Tile schedulers: which output tile and which part of K a CTA works on next.

A scheduler maps a linear work index to a `WorkTile`. The roles of a kernel (load, decode, consume) each walk the same
indices `block, block + grid, block + 2 * grid, ...` and ask the scheduler, so that nothing has to be communicated
between them. Grouped GEMM plugs in here: a scheduler that reads group offsets from device memory returns the same
`WorkTile`.
"""

from dataclasses import dataclass

import cutlass
from cutlass import Int32

from .common.device_struct import DeviceStruct


@dataclass
class WorkTile(DeviceStruct):
    """One unit of work: tile coordinates and a range of K in stages.

    m, n: tile indices along the register and the shared operand. l: batch index. split: which part of K.
    tile: linear index of the output tile. k_begin, k_count: first stage of K and their number (may be 0).
    """

    m: Int32
    n: Int32
    l: Int32
    split: Int32
    tile: Int32
    k_begin: Int32
    k_count: Int32


class StaticScheduler(DeviceStruct):
    """Persistent and static: tiles in groups of `group` register-operand tiles, which run through n before the next
    group.

    CTAs that run at the same time then share few tiles of either operand, which keeps their traffic in L2.
    """

    def __init__(self, tiles_m: Int32, tiles_n: Int32, batch: Int32, k_stages: Int32, group: int, splits: int):
        self.tiles_m, self.tiles_n, self.batch, self.k_stages = tiles_m, tiles_n, batch, k_stages
        self.group, self.splits = group, splits

    def total(self) -> Int32:
        """Number of work tiles."""
        return self.tiles_m * self.tiles_n * self.batch * self.splits

    def work(self, index: Int32) -> WorkTile:
        """The work tile of a linear index."""
        split = index % self.splits
        tile = index // self.splits
        per_batch = self.tiles_m * self.tiles_n
        l = tile // per_batch
        in_batch = tile % per_batch
        per_group = self.group * self.tiles_n
        first_m = (in_batch // per_group) * self.group
        in_group = in_batch % per_group
        rows = cutlass.min(self.tiles_m - first_m, self.group)
        k_begin = (self.k_stages * split) // self.splits
        k_end = (self.k_stages * (split + 1)) // self.splits
        return WorkTile(first_m + in_group % rows, in_group // rows, l, split, tile, k_begin, k_end - k_begin)
