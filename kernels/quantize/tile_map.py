"""Which rows a tile of 128 rows covers, and where its outputs lie: one matrix, or row groups at device-resident
offsets, where a kernel before has written it down (group_map.py).
"""

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutlass import Int32, Int64, Uint32

from cutefp4.quant_plan import MAP_WORDS


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
        slots: 16-row groups of the tile that hold rows.
        inverse: n * inverse >> 16 is n / slots, for n up to 256.
    """

    group: Int32
    begin: Int32
    rows: Int32
    rows_k: Int32
    local: Int32
    scale_row: Int32
    k_start: Int32
    exists: cutlass.Boolean
    slots: Int32 | None = None
    inverse: Int32 | None = None


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


def in_groups(place: Int32, places: cute.Tensor) -> tuple[TileRows, Tail]:
    """The tile at a place of the grid, of a matrix whose rows are split, as the map `places` says (group_map.py)."""
    where = ptx.address(places) + Int64(place) * Int64(4 * MAP_WORDS)
    words = (*ptx.load_words(where, 4, True), *ptx.load_words(where + Int64(16), 4, True))
    group = words[4].to(Int32)
    # All but the group, which may be missing, have at most 24 bits; if the compiler knows, dividing their sums by
    # powers of two is one shift.
    a, b, c, d, _, tile, slots, inverse = ((word & Uint32(0x00FFFFFF)).to(Int32) for word in words)
    found = TileRows(
        group=group,
        begin=a,
        rows=b,
        rows_k=(b + 63) // 64 * 64,
        local=c,
        scale_row=tile * 128,
        k_start=d,
        exists=group >= 0,
        slots=slots,
        inverse=inverse,
    )
    return found, Tail(row=a, k=b, index=c, count=d)
