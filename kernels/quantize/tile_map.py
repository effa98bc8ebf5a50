"""Which rows a tile of 128 rows covers, and where its outputs lie: one matrix, or row groups at device-resident
offsets.

Groups (experts) are cast as matrices of their own. Tiles are counted over the groups' rows, each rounded up to 128,
so a tile never straddles two groups, and tile number * 128 is the row of its scales in the padded tiled layout. The
columnwise copy of group g begins at K position `k_start` = sum of the earlier sizes, each rounded up to 64, and the
rows between the group's end and that padding are zeros that are encoded like data.

One warp finds its tile's group by scanning 32 sizes at a time, and shares it: the scan takes about 350 instructions for
64 groups, a sixth of what a cast does with a tile if every warp repeats it.
"""

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutlass import Int32, Uint32


@dataclass(frozen=True)
class TileRows:
    """Rows of a tile. Local rows count from the beginning of the group (or matrix).

    Attributes:
        group: index of the group, 0 for a single matrix.
        begin: row of x where the group begins.
        rows: rows of the group.
        rows_k: rows of the group as the contraction axis of the columnwise copy: padded to 64 if grouped.
        local: local row of the tile's first row.
        scale_row: row of the tile's first row in tiled rowwise scales.
        k_start: position of the group along the contraction axis of the columnwise copy.
        exists: the tile belongs to a group.
    """

    group: Int32
    begin: Int32
    rows: Int32
    rows_k: Int32
    local: Int32
    scale_row: Int32
    k_start: Int32
    exists: cutlass.Boolean


@dataclass(frozen=True)
class Tail:
    """What lies behind the last group, and this tile's share of it.

    Attributes:
        row: first row of x that belongs to no group.
        k: first position behind the groups along the contraction axis of the columnwise copy.
        index, count: this tile is number `index` of `count` tiles without a group.
    """

    row: Int32
    k: Int32
    index: Int32
    count: Int32


def single(tile: Int32, m: Int32) -> TileRows:
    """The tile of one (M, N) matrix."""
    first = tile * 128
    return TileRows(Int32(0), Int32(0), m, m, first, first, Int32(0), first < m)


def _prefix_sum(value: Int32) -> Int32:
    """Inclusive sum over the lanes up to this one."""
    lane = cute.arch.lane_idx()
    for distance in (1, 2, 4, 8, 16):
        below = cute.arch.shuffle_sync_up(value, distance, mask_and_clamp=0)
        value = value + ptx.select(lane >= distance, Uint32(below), Uint32(0)).to(Int32)
    return value


@cute.jit
def _scan(tile: Int32, offs: cute.Tensor, groups: Int32):
    """(group, begin, end, first tile, k_start) of the group that holds `tile`, group = `groups` if none does; then the
    number of tiles and of K positions of all groups."""
    lane = cute.arch.lane_idx()
    group, begin, end, first_tile, k_start = groups, Int32(0), Int32(0), Int32(0), Int32(0)
    tiles_before, k_before = Int32(0), Int32(0)
    for base in cutlass.range(0, groups, 32):
        g = base + lane
        upper, lower = Int32(0), Int32(0)
        if g < groups:
            upper = offs[g]
            if g > 0:
                lower = offs[g - 1]
        size = upper - lower
        tiles, k = (size + 127) // 128, (size + 63) // 64 * 64
        tiles_to, k_to = _prefix_sum(tiles) + tiles_before, _prefix_sum(k) + k_before
        mine = (tile < tiles_to) & (tile >= tiles_to - tiles)
        holders = cute.arch.vote_ballot_sync(mine)
        if holders != 0:
            holder = Int32(31) - Int32(cute.arch.clz(holders))
            group = base + holder
            begin = cute.arch.shuffle_sync(lower, holder)
            end = cute.arch.shuffle_sync(upper, holder)
            first_tile = cute.arch.shuffle_sync(tiles_to - tiles, holder)
            k_start = cute.arch.shuffle_sync(k_to - k, holder)
        tiles_before = cute.arch.shuffle_sync(tiles_to, 31)
        k_before = cute.arch.shuffle_sync(k_to, 31)
    return group, begin, end, first_tile, k_start, tiles_before, k_before


@cute.jit
def _share_scan(tile: Int32, offs: cute.Tensor, groups: Int32, slots: Uint32):
    """Store what `_scan` finds, by warp 0. Ends with a barrier."""
    if cute.arch.warp_idx() == 0:
        found = _scan(tile, offs, groups)
        ptx.store_shared(slots, tuple(Uint32(v) for v in found[:4]))
        ptx.store_shared(slots + Uint32(16), (*(Uint32(v) for v in found[4:]), Uint32(0)))
    cute.arch.sync_threads()


def in_groups(tile: Int32, tiles: Int32, offs: cute.Tensor) -> tuple[TileRows, Tail]:
    """Tile `tile` of `tiles` of a matrix whose rows are split at the end offsets `offs`.

    Every thread of the CTA must call it.
    """
    groups = offs.shape[0]
    slots = Uint32(cute.arch.alloc_smem(Uint32, 8, alignment=16).toint())
    _share_scan(tile, offs, groups, slots)
    words = (*ptx.load_shared(slots, 4), *ptx.load_shared(slots + Uint32(16), 4)[:3])
    group, begin, end, first_tile, k_start, used, k_end = (word.to(Int32) for word in words)
    rows = end - begin
    found = TileRows(
        group=group,
        begin=begin,
        rows=rows,
        rows_k=(rows + 63) // 64 * 64,
        local=(tile - first_tile) * 128,
        scale_row=tile * 128,
        k_start=k_start,
        exists=group < groups,
    )
    return found, Tail(offs[groups - 1], k_end, tile - used, tiles - used)
