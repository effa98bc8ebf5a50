"""Which elements of a tile a thread handles, where they come from and where their codes and scales go.

A tile has 128 rows of 256 bytes (128 columns of 16-bit data, 64 of fp32), and 256 threads.

    rowwise      block j of thread t: row t / B + j * 256 / B, block t % B of the row's B = 8 (4) blocks
    columnwise   item j of thread t: 16-row group (t / 4) % 8; one word a row, which is two columns of 16-bit data (one
                 of fp32): columns 8 (4) * (t / 32) + 2 (1) * (t % 4) and up, 64 (32) further for the next item

A thread's outputs lie at constant distances from its first one, so that addresses are computed once per tile.
"""

from dataclasses import dataclass

from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.scale_layout import column_offset, row_offset
from cutefp4.kernels.quantize.input_block import BYTES, load_block
from cutefp4.kernels.quantize.tile_map import TileRows
from cutlass import Int32, Int64, Uint32

from cutefp4.quant_plan import CastTilesPlan

THREADS = 256
GROUPS = 8  # 16-row groups of a tile


@dataclass(frozen=True)
class TileIo:
    """Addresses and sizes of one launch, and where this tile lies."""

    x: Int64
    x_stride: Int64
    row_codes: Int64
    row_scales: Int64
    col_codes: Int64
    col_scales: Int64
    row_amax: Int64
    col_amax: Int64
    n: Int32
    col_stride: Int64  # bytes of a row of columnwise codes
    first_column: Int32
    rows: TileRows
    tid: Int32


def blocks_per_row(plan: CastTilesPlan) -> int:
    return plan.tile_columns // 16


def items_per_thread(plan: CastTilesPlan) -> int:
    """Blocks of the tile that a thread loads: 4 for 16-bit input, 2 for fp32."""
    return 128 * blocks_per_row(plan) // THREADS


def rows_to_item(plan: CastTilesPlan, j: int) -> int:
    """Rows from a thread's first block to its block j."""
    return j * (THREADS // blocks_per_row(plan))


def row_item(plan: CastTilesPlan, tid: Int32, j: int) -> tuple[Int32, Int32]:
    """(row of the tile, block of the row) of this thread's block j."""
    across = blocks_per_row(plan)
    return tid // across + Int32(rows_to_item(plan, j)), tid % across


def column_stride(plan: CastTilesPlan) -> int:
    """Columns from one of a thread's column items to the next."""
    return THREADS // 32 * 16 // BYTES[plan.dtype]


def column_item(plan: CastTilesPlan, tid: Int32, j: int, i: int) -> tuple[Int32, Int32]:
    """(16-row group, column of the tile) of column i of this thread's item j."""
    per_word = 4 // BYTES[plan.dtype]
    column = (tid // 32 * 4 + tid % 4) * per_word
    return (tid // 4) % GROUPS, column + Int32(j * column_stride(plan) + i)


def load_tile(plan: CastTilesPlan, io: TileIo) -> list:
    """This thread's blocks as they are; zeros outside the matrix."""
    loaded = []
    r, b = row_item(plan, io.tid, 0)
    first = io.x + Int64(io.rows.begin + io.rows.local + r) * io.x_stride
    first = first + Int64(io.first_column + b * 16) * Int64(BYTES[plan.dtype])
    row, column = io.rows.local + r, io.first_column + b * 16
    for j in range(items_per_thread(plan)):
        where = first + Int64(rows_to_item(plan, j)) * io.x_stride
        inside = io.n - column if plan.partial_columns else None
        # Not row + rows_to_item(): the compiler would keep the sum for what is encoded later, and spill it.
        valid = (row < io.rows.rows - rows_to_item(plan, j)) & (column < io.n)
        words = load_block(where, valid, plan.dtype, plan.vector_bytes, inside)
        loaded.append(words)
    return loaded


@dataclass(frozen=True)
class Sink:
    """Where this thread's first block of a copy goes; the others lie at constant distances (`Steps`)."""

    codes: Int64
    scales: Int64


@dataclass(frozen=True)
class Steps:
    """Bytes from this thread's first block to a later one."""

    codes: Int64
    scales: Int64


def row_sink(plan: CastTilesPlan, io: TileIo) -> Sink:
    """Of the rowwise copy."""
    r, b = row_item(plan, io.tid, 0)
    blocks, block = io.n // 16, io.first_column // 16 + b
    index = Int64(io.rows.begin + io.rows.local + r) * Int64(blocks) + Int64(block)
    if plan.scale_layout == "compact":
        return Sink(io.row_codes + index * Int64(8), io.row_scales + index)
    scales = io.row_scales + row_offset(io.rows.scale_row + r, blocks, "tiled") + Int64(column_offset(block, "tiled"))
    return Sink(io.row_codes + index * Int64(8), scales)


def row_step(plan: CastTilesPlan, io: TileIo, j: int) -> Steps:
    """To block j: a multiple of 32 rows further, which is 4 bytes per 32 rows within a scale tile."""
    rows = rows_to_item(plan, j)
    blocks = Int64(rows) * Int64(io.n // 16)
    return Steps(blocks * Int64(8), Int64(rows // 32 * 4) if plan.scale_layout == "tiled" else blocks)


def column_sink(plan: CastTilesPlan, io: TileIo) -> Sink:
    """Of the columnwise copy."""
    return column_sink_at(plan, io, *column_item(plan, io.tid, 0, 0))


def column_sink_at(plan: CastTilesPlan, io: TileIo, g: Int32, in_tile: Int32) -> Sink:
    """Where 16-row group g of a column of the tile goes."""
    column, group = io.first_column + in_tile, io.rows.local // 16 + g
    codes = io.col_codes + Int64(column) * io.col_stride + Int64(io.rows.k_start // 2) + Int64(group) * Int64(8)
    if plan.scale_layout == "compact":
        where = Int64(column) * (io.col_stride // Int64(8)) + Int64(io.rows.k_start // 16 + group)
    else:
        start = Int64((io.n + 127) // 128 * 128) * Int64(io.rows.k_start // 16)
        where = start + row_offset(column, io.rows.rows_k // 16, "tiled") + Int64(column_offset(group, "tiled"))
    return Sink(codes, io.col_scales + where)


def column_step(plan: CastTilesPlan, io: TileIo, j: int, i: int) -> Steps:
    """To column i of item j; the first item's columns, and what follows closely, never cross a multiple of 32."""
    columns = j * column_stride(plan) + i
    if plan.scale_layout == "tiled":
        scales = Int64(columns // 32 * 4 + columns % 32 * 16)
    else:
        scales = Int64(columns) * (io.col_stride // Int64(8))
    return Steps(Int64(columns) * io.col_stride, scales)


def store_scale(plan: CastTilesPlan, sink: Sink, step: Steps, byte: Uint32, valid, padded) -> None:
    """Scale of a block; `padded`: the tiled layout has a byte for it, zero if it is not valid."""
    if plan.scale_layout == "tiled":
        ptx.store_byte(sink.scales + step.scales, ptx.select(valid, byte, Uint32(0)), padded)
    else:
        ptx.store_byte(sink.scales + step.scales, byte, valid)


def store_block(plan: CastTilesPlan, sink: Sink, step: Steps, done, valid, padded) -> None:
    """Codes and scale of a block; `padded` as in `store_scale`."""
    ptx.store_words(sink.codes + step.codes, (done.low, done.high), valid)
    store_scale(plan, sink, step, done.scale, valid, padded)
