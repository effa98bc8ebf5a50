"""Zeros behind the last group: codes and scales of rows that belong to no group, and of the unused K positions.

The outputs of grouped casts are sized for any split, so part of them is behind what the groups need. The tiles that
got no group clear it, which saves a pass over all outputs before the launch (35 of 248 us at (16384, 6144)).
"""

import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.scale_layout import column_offset, row_offset
from cutefp4.kernels.quantize.input_block import BYTES
from cutefp4.kernels.quantize.tile_io import TileIo, column_item, items_per_thread, row_item
from cutlass import Int32, Int64, Uint32

from cutefp4.quant_plan import CastTilesPlan


def clear_row_tail(plan: CastTilesPlan, io: TileIo, tile_m: Int32, first_row: Int32, m: Int32, row_tiles: Int32):
    """Zero codes and scales of 128 rows from `first_row`, and the scale rows of tile `tile_m` if they are tiled."""
    blocks, zero = io.n // 16, Uint32(0)
    for j in range(items_per_thread(plan)):
        r, b = row_item(plan, io.tid, j)
        row, block = first_row + r, io.first_column // 16 + b
        valid = (row < m) & (block < blocks)
        index = Int64(row) * Int64(blocks) + Int64(block)
        ptx.store_words(io.row_codes + index * Int64(8), (zero, zero), valid)
        if plan.scale_layout == "compact":
            ptx.store_byte(io.row_scales + index, zero, valid)
        else:
            where = row_offset(tile_m * 128 + r, blocks, "tiled") + Int64(column_offset(block, "tiled"))
            ptx.store_byte(io.row_scales + where, zero, (tile_m < row_tiles) & (block < (blocks + 3) // 4 * 4))


def clear_column_tail(plan: CastTilesPlan, io: TileIo, first_k: Int32, k_end: Int32):
    """Zero codes and scales of 128 positions from `first_k` along the contraction axis of the columnwise copy."""
    zero, padded_n = Uint32(0), (io.n + 127) // 128 * 128
    for j in range(2):
        for i in range(4 // BYTES[plan.dtype]):
            g, in_tile = column_item(plan, io.tid, j, i)
            column, group = io.first_column + in_tile, first_k // 16 + g
            inside = group < k_end // 16
            codes = io.col_codes + Int64(column) * io.col_stride + Int64(group) * Int64(8)
            ptx.store_words(codes, (zero, zero), inside & (column < io.n))
            if plan.scale_layout == "compact":
                where = Int64(column) * (io.col_stride // Int64(8)) + Int64(group)
                ptx.store_byte(io.col_scales + where, zero, inside & (column < io.n))
            else:  # any order of the bytes will do
                where = Int64(group) * Int64(padded_n) + Int64(column)
                ptx.store_byte(io.col_scales + where, zero, inside & (column < padded_n))


@cute.jit
def clear_tail(
    plan: cutlass.Constexpr,
    io: cutlass.Constexpr,
    tail: cutlass.Constexpr,
    tile_m: Int32,
    m: Int32,
    row_tiles: Int32,
    k_tiles: Int32,
):
    """What a tile without a group does: zero its share of everything behind the last group.

    row_tiles: 128-row tiles of the tiled rowwise scales; k_tiles: 64-element steps of the columnwise copy.
    """
    if cutlass.const_expr(plan.rowwise):
        # Once even if there are no such rows: this tile's scales are there in any case.
        for first_row in cutlass.range(tail.row + tail.index * 128, m + 128 * tail.count, 128 * tail.count):
            clear_row_tail(plan, io, tile_m, first_row, m, row_tiles)
    if cutlass.const_expr(plan.columnwise):
        for first_k in cutlass.range(tail.k + tail.index * 128, k_tiles * 64, 128 * tail.count):
            clear_column_tail(plan, io, first_k, k_tiles * 64)
