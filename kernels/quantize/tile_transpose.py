"""The columnwise copy of a tile of 16x16 blocks as the transpose of the rowwise codes.

Both copies have the same block scales if their outer amaxes are equal, so a code is the same in both, and moving
nibbles takes half an instruction an element instead of encoding once more. 128 rows of 64 bytes of codes (32 for fp32)
pass through shared memory; the 8 bytes of block b of row r are stored at place b ^ (r / 16) of their row.

A thread transposes 8 rows x 8 columns: halves of words between rows 4 apart, bytes between rows 2 apart, nibbles
between neighbours. The lanes of a warp write 64 bytes of two columns at a time.
"""

import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.quantize import tile_choice
from cutefp4.kernels.quantize.block_encode import line_scale
from cutefp4.kernels.quantize.input_block import BYTES
from cutefp4.kernels.quantize.tile_io import TileIo, blocks_per_row, column_item, column_sink, column_step, store_scale
from cutlass import Int32, Int64, Uint32

from cutefp4.quant_plan import CastTilesPlan

ROWS = 128


def code_bytes(plan: CastTilesPlan) -> int:
    """Shared memory of a tile's codes."""
    return ROWS * blocks_per_row(plan) * 8


def _place(plan: CastTilesPlan, codes: Uint32, row: Int32, block: Int32) -> Uint32:
    swizzled = (Uint32(block) ^ Uint32(row // 16)) % Uint32(blocks_per_row(plan))
    return codes + Uint32(row) * Uint32(blocks_per_row(plan) * 8) + swizzled * Uint32(8)


def put(plan: CastTilesPlan, codes: Uint32, row: Int32, block: Int32, words: tuple[Uint32, Uint32]) -> None:
    """Keep the codes of a rowwise block."""
    ptx.store_shared(_place(plan, codes, row, block), words)


def transpose(a: list[Uint32]) -> list[Uint32]:
    """Eight words of eight nibbles: nibble r of word c is nibble c of a[r]."""
    quads = [[ptx.prmt(a[r], a[r + 4], selector) for r in range(4)] for selector in (0x5410, 0x7632)]
    columns = []
    for quad in quads:
        for selector in (0x6240, 0x7351):
            even, odd = (ptx.prmt(quad[r], quad[r + 2], selector) for r in (0, 1))
            columns.append(ptx.lop3(even, odd << Uint32(4), Uint32(0x0F0F0F0F), 0xE4))
            columns.append(ptx.lop3(even >> Uint32(4), odd, Uint32(0x0F0F0F0F), 0xE4))
    return columns


@cute.jit
def store_transposed(plan: cutlass.Constexpr, io: cutlass.Constexpr, codes: Uint32):
    """Write the columnwise codes of the tile."""
    lane, pair = io.tid % 32, io.tid // 32
    half, group, word = lane % 2, lane // 2 % 8, pair * 2 + lane // 16
    if pair < blocks_per_row(plan):
        where = _place(plan, codes, group * 16, pair) + Uint32(half) * Uint32(8 * 8 * blocks_per_row(plan))
        where = where + Uint32(lane // 16) * Uint32(4)
        rows = [ptx.load_shared(where + Uint32(r * 8 * blocks_per_row(plan)), 1)[0] for r in range(8)]
        first, k_group = io.first_column + word * 8, io.rows.local // 16 + group
        target = io.col_codes + Int64(first) * io.col_stride + Int64(io.rows.k_start // 2 + k_group * 8 + half * 4)
        columns = transpose(rows)
        for c in cutlass.range_constexpr(8):
            valid = (first + c < io.n) & (k_group < io.rows.rows_k // 16)
            ptx.store_words(target + Int64(c) * io.col_stride, (columns[c],), valid)


def store_scales(plan: CastTilesPlan, io: TileIo, slots: tile_choice.ChoiceSlots, outer) -> None:
    """Write the columnwise scales of the tile."""
    sink, blocks, padded_n = column_sink(plan, io), io.rows.rows_k // 16, (io.n + 127) // 128 * 128
    for j in range(2):
        for i in range(4 // BYTES[plan.dtype]):
            g, in_tile = column_item(plan, io.tid, j, i)
            column, group = io.first_column + in_tile, io.rows.local // 16 + g
            byte, _ = line_scale(*tile_choice.read(plan, slots, g, in_tile // 16), outer, plan.math)
            valid = (column < io.n) & (group < blocks)
            padded = (column < padded_n) & (group < (blocks + 3) // 4 * 4)
            store_scale(plan, sink, column_step(plan, io, j, i), byte, valid, padded)
