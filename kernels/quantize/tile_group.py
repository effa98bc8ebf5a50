"""The columnwise pass over a tile that a group ends in: only what holds data is encoded.

A tile has up to 8 groups of 16 rows that hold data (slots). Usually a warp takes 4 words of a row in all 8 slots; where
there are fewer, it takes more words instead, and as many warps as there are slots do everything. What is left of the 64
positions that the group's K is padded to are blocks of zeros, stored without being encoded. With 64 random groups of
(16384, 6144), an eighth of all instructions were spent on blocks that do not exist.

Rejected: all 8 warps sharing the slots that there are, in one turn for up to 4: both turns' addresses are computed, and
8 equal and 64 random groups took 1.09 and 1.26 times the single tensor instead of 1.06 and 1.24.
"""

from dataclasses import replace

import cutlass
import cutlass.cute as cute
from cutefp4.kernels.quantize.block_encode import Encoded
from cutefp4.kernels.quantize.tile_encode import encode_columns
from cutefp4.kernels.quantize.tile_io import GROUPS, THREADS, Steps, TileIo, column_sink_at, store_block
from cutlass import Int32, Uint32

from cutefp4.quant_plan import CastTilesPlan

_TORCHAO_FLOOR = 0x08  # 2^-6 as E4M3: torchao's smallest scale, which blocks of zeros have


def _item_thread(io: TileIo) -> Int32:
    """The thread whose items of a full tile this one takes: slot tid % slots, word tid / slots."""
    word = ((Uint32(io.tid) * Uint32(io.rows.inverse)) >> Uint32(16)).to(Int32)
    slot = io.tid - word * io.rows.slots
    return word // 4 * 32 + slot * 4 + word % 4


@cute.jit
def encode_group_columns(
    plan: cutlass.Constexpr,
    io: cutlass.Constexpr,
    shared: cutlass.Constexpr,
    random: cutlass.Constexpr,
    outer: cutlass.Constexpr,
    factors: cutlass.Constexpr,
):
    """`encode_columns` of a tile in which a group may end."""
    if io.tid < io.rows.slots * 32:
        encode_columns(plan, replace(io, tid=_item_thread(io)), shared, random, outer, factors)
    end = cutlass.min((io.rows.rows_k - io.rows.local) // 16, GROUPS)
    for slot in cutlass.range(io.rows.slots + io.tid // plan.tile_columns, end, THREADS // plan.tile_columns):
        _store_zeros(plan, io, slot, io.tid % plan.tile_columns)


def _store_zeros(plan: CastTilesPlan, io: TileIo, slot: Int32, in_tile: Int32) -> None:
    """A block of zeros of the columnwise copy."""
    scale = Uint32(_TORCHAO_FLOOR if plan.math.arithmetic == "torchao" else 0)
    column, zero = io.first_column + in_tile, Uint32(0)
    sink = column_sink_at(plan, io, slot, in_tile)
    padded = column < (io.n + 127) // 128 * 128
    store_block(plan, sink, Steps(0, 0), Encoded(scale, zero, zero), column < io.n, padded)
