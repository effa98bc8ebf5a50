"""Tile schedulers: which output tile and which part of K a CTA works on next.

A scheduler maps a linear work index to a `WorkTile`. The roles of a kernel (load, decode, consume) each walk the same
indices `first, first + step, ...` (`first_and_step`) and ask the scheduler, so that nothing has to be communicated
between them. Grouped GEMM plugs in here: a scheduler that reads group offsets from device memory returns the same
`WorkTile`.
"""

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from cutefp4.config import HELPER_K

from .common.device_struct import DeviceStruct


@dataclass
class WorkTile(DeviceStruct):
    """One unit of work: tile coordinates and a range of K in stages.

    m, n: tile indices along the register and the shared operand. l: batch index. tile: linear index of the output tile.
    k_begin, k_count: first stage of K and their number. A count of 0: nothing to do, go on.
    part, parts: which of how many CTAs' shares of this tile's K, in the order of K.
    slots: where the shares' partial sums lie (`part_slot`).
    """

    m: Int32
    n: Int32
    l: Int32
    tile: Int32
    k_begin: Int32
    k_count: Int32
    part: Int32
    parts: Int32
    slots: object

    def part_slot(self, part: Int32) -> Int32:
        """Workspace slot of the partial sum of one share of this tile."""
        return self.slots.slot(self.tile, part)


class _Raster(DeviceStruct):
    """Linear tile index -> coordinates: groups of `group` register-operand tiles run through n before the next group.

    CTAs that run at the same time then share few tiles of either operand, which keeps their traffic in L2.

    Made by the host, which prepares the divisions: as they were, they took 700 of a tile's 70 000 clocks (4096^3), with
    all warps that multiply waiting.
    """

    def __init__(self, tiles_m: Int32, tiles_n: Int32, batch: Int32, group: int):
        self.tiles_m, self.tiles_n, self.batch, self.group = tiles_m, tiles_n, batch, group
        self.per_batch = cute.fast_divmod_create_divisor_v2(tiles_m * tiles_n)
        self.per_group = cute.fast_divmod_create_divisor_v2(tiles_n * group)
        self.last_rows = cute.fast_divmod_create_divisor_v2(cutlass.max(tiles_m % group, 1))

    def total(self) -> Int32:
        return self.tiles_m * self.tiles_n * self.batch

    def coordinates(self, tile: Int32):
        """(m, n, l) of a tile."""
        l, in_batch = _divmod(tile, self.per_batch)
        group, in_group = _divmod(in_batch, self.per_group)
        first_m = group * self.group
        n, row = in_group // self.group, in_group % self.group
        last_n, last_row = _divmod(in_group, self.last_rows)
        whole = first_m + self.group <= self.tiles_m
        return first_m + cutlass.select_(whole, row, last_row), cutlass.select_(whole, n, last_n), l


def _divmod(dividend: Int32, divisor: cute.FastDivmodDivisorV2) -> tuple[Int32, Int32]:
    quotient, remainder = divmod(dividend, divisor)
    return Int32(quotient), Int32(remainder)


class _SplitSlots(DeviceStruct):
    """Every tile has `splits` slots."""

    def __init__(self, splits: int):
        self.splits = splits

    def slot(self, tile: Int32, part: Int32) -> Int32:
        return tile * self.splits + part


class StaticScheduler(DeviceStruct):
    """Persistent and static: whole tiles, or with splits > 1 equal parts of their K."""

    def __init__(self, tiles_m: Int32, tiles_n: Int32, batch: Int32, k_stages: Int32, group: int, splits: int):
        self.raster, self.k_stages, self.splits = _Raster(tiles_m, tiles_n, batch, group), k_stages, splits

    def total(self) -> Int32:
        """Number of work indices."""
        return self.raster.total() * self.splits

    def ctas(self, sms: Int32) -> Int32:
        """CTAs to launch."""
        return cutlass.min(self.total(), sms)

    def work(self, index: Int32) -> WorkTile:
        """The work tile of a linear index."""
        part, tile = index % self.splits, index // self.splits
        k_begin = (self.k_stages * part) // self.splits
        k_end = (self.k_stages * (part + 1)) // self.splits
        m, n, l = self.raster.coordinates(tile)
        parts, slots = Int32(self.splits), _SplitSlots(self.splits)
        return WorkTile(m, n, l, tile, k_begin, k_end - k_begin, part, parts, slots)


class HelpedScheduler(DeviceStruct):
    """Parts of tiles for clusters of `splits` CTAs, one tile each; the CTAs that are left over help all of them.

    Helper c takes the last `helped` stages of the tiles c, c + helpers, ...; the clusters share the stages before. They
    come first in the grid (split_helped.py says why). Everybody has as much to do, counting that a helper writes all
    sums of a tile: in a time in which it could multiply HELPER_K of K.
    """

    def __init__(self, tiles_m: Int32, tiles_n: Int32, batch: Int32, k_stages: Int32, group: int, shares: tuple):
        """shares: splits, CTAs that run at once, K of a stage."""
        self.raster, self.k_stages = _Raster(tiles_m, tiles_n, batch, group), k_stages
        self.splits, sms, tile_k = shares
        tiles = self.raster.total()
        left = cutlass.max(sms - tiles * self.splits, 0)
        self.helpers = Int32(left - left % self.splits)
        self.rounds = Int32((tiles + self.helpers - 1) // cutlass.max(self.helpers, 1))
        spent = self.splits * self.rounds * (HELPER_K // tile_k)
        helped = cutlass.max(k_stages - spent, 0) // (self.splits * self.rounds + 1)
        self.helped = Int32(cutlass.select_(self.helpers > 0, helped, Int32(0)))

    def ctas(self) -> Int32:
        """CTAs to launch."""
        return self.helpers + self.raster.total() * self.splits

    def total(self) -> Int32:
        """Number of work indices: every CTA gets as many as a helper."""
        return self.ctas() * cutlass.max(self.rounds, 1)

    def work(self, index: Int32) -> WorkTile:
        """Work number index // ctas of CTA index % ctas; `part` is `splits` for a helper."""
        cta, turn = index % self.ctas(), index // self.ctas()
        helps, shared = cta < self.helpers, self.k_stages - self.helped
        position = cta - self.helpers
        part = cutlass.select_(helps, Int32(self.splits), position % self.splits)
        tile = cutlass.select_(helps, cta + turn * self.helpers, position // self.splits)
        k_begin = cutlass.select_(helps, shared, (shared * part) // self.splits)
        k_end = cutlass.select_(helps, self.k_stages, (shared * (part + 1)) // self.splits)
        idle = cutlass.select_(helps, tile >= self.raster.total(), turn > 0)
        m, n, l = self.raster.coordinates(cutlass.min(tile, self.raster.total() - 1))
        parts, count = Int32(self.splits), cutlass.select_(idle, Int32(0), k_end - k_begin)
        return WorkTile(m, n, l, tile, k_begin, count, part, parts, _SplitSlots(1))


class _StreamSlots(DeviceStruct):
    """Every CTA has two slots: for the tile that it begins with, and for the one that it ends with."""

    def __init__(self, stages: Int32, k_stages: Int32, ctas: Int32):
        self.stages, self.k_stages, self.ctas = stages, k_stages, ctas

    def cta_of(self, stage: Int32) -> Int32:
        """The CTA c whose share [c * stages // ctas, (c + 1) * stages // ctas) holds a stage."""
        return ((stage + 1) * self.ctas - 1) // self.stages

    def begin(self, cta: Int32) -> Int32:
        return (cta * self.stages) // self.ctas

    def slot(self, tile: Int32, part: Int32) -> Int32:
        first = tile * self.k_stages
        cta = self.cta_of(first)
        # Only the first share of a tile can have begun in the tile before it.
        return 2 * (cta + part) + Int32((part == 0) & (self.begin(cta) < first))


class _ClusterSlots(DeviceStruct):
    """Every CTA of a cluster has the slots that its cluster would have alone."""

    def __init__(self, slots, cluster: int, rank: Int32):
        self.slots, self.cluster, self.rank = slots, cluster, rank

    def slot(self, tile: Int32, part: Int32) -> Int32:
        return self.slots.slot(tile // self.cluster, part) * self.cluster + self.rank


class ClusterScheduler(DeviceStruct):
    """The tiles of one CTA of a cluster: `cluster` neighbours along m share a tile of the scheduler below.

    scheduler: its tiles are `cluster` times as tall as a CTA's. rank: of this CTA in its cluster.
    """

    def __init__(self, scheduler, cluster: int, rank: Int32):
        self.scheduler, self.cluster, self.rank = scheduler, cluster, rank

    def total(self) -> Int32:
        return self.scheduler.total()

    def work(self, index: Int32) -> WorkTile:
        work = self.scheduler.work(index)
        m, tile = work.m * self.cluster + self.rank, work.tile * self.cluster + self.rank
        slots = _ClusterSlots(work.slots, self.cluster, self.rank)
        return WorkTile(m, work.n, work.l, tile, work.k_begin, work.k_count, work.part, work.parts, slots)


def first_and_step(cluster: int = 1) -> tuple[Int32, Int32]:
    """The first work index of this CTA, and the step to the next one; CTAs of a cluster have the same indices."""
    first, _, _ = cute.arch.block_idx()
    step, _, _ = cute.arch.grid_dim()
    return (first, step) if cluster == 1 else (first // cluster, step // cluster)


class StreamKScheduler(DeviceStruct):
    """Stream-K: the stages of all tiles in one row, cut into equal shares, one per CTA.

    A share covers the end of one tile, whole tiles, and the beginning of another; so every SM has the same work
    whatever the number of tiles. The cut depends on the shapes and the number of CTAs alone: results repeat bit for
    bit.
    """

    def __init__(self, tiles_m: Int32, tiles_n: Int32, batch: Int32, k_stages: Int32, group: int, sms: Int32):
        self.raster, self.k_stages = _Raster(tiles_m, tiles_n, batch, group), k_stages
        self.stages = self.raster.total() * k_stages
        self.grid = cutlass.min(self.stages, sms)

    def ctas(self, sms: Int32) -> Int32:
        """CTAs to launch."""
        return self.grid

    def total(self) -> Int32:
        """Number of work indices: every CTA gets as many as a share can touch tiles."""
        share = (self.stages + self.grid - 1) // self.grid
        return self.grid * ((share + self.k_stages - 2) // self.k_stages + 1)

    def work(self, index: Int32) -> WorkTile:
        """Part number index // ctas of the share of CTA index % ctas."""
        slots = _StreamSlots(self.stages, self.k_stages, self.grid)
        cta, segment = index % self.grid, index // self.grid
        begin, end = slots.begin(cta), slots.begin(cta + 1)
        tile = begin // self.k_stages + segment
        first = tile * self.k_stages
        k_begin = cutlass.max(begin, first)
        k_count = cutlass.max(cutlass.min(end, first + self.k_stages) - k_begin, 0)
        first_cta, last_cta = slots.cta_of(first), slots.cta_of(first + self.k_stages - 1)
        m, n, l = self.raster.coordinates(cutlass.min(tile, self.raster.total() - 1))
        return WorkTile(m, n, l, tile, k_begin - first, k_count, cta - first_cta, last_cta - first_cta + 1, slots)
