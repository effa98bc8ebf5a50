"""Outer amaxes of a tile to encode factors: of a tensor or group once a thread, else to shared memory."""

import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.quantize.block_encode import make_outer
from cutefp4.kernels.quantize.block_scale import Outer
from cutefp4.kernels.quantize.tile_io import TileIo
from cutlass import Float32, Int32, Int64, Uint32

from cutefp4.quant_plan import CastTilesPlan

OUTER_BYTES = 32
"""Shared memory of one outer amax and its factors."""


def _outer_vector(plan: CastTilesPlan, amax: Int64, index: Int32, valid, shared: Uint32, slot: Int32) -> None:
    """Encode factors of one outer amax to a slot."""
    value = ptx.from_bits(ptx.load_words(amax + Int64(index) * Int64(4), 1, valid)[0])
    outer = make_outer(value, plan.math)
    first = outer.usual if plan.in_lanes else outer.s_enc
    words = tuple(ptx.bits(v) for v in (first, outer.block_factor, outer.s_dec, outer.rescale))
    where = shared + Uint32(slot) * Uint32(OUTER_BYTES)
    ptx.store_shared(where, words)
    ptx.store_shared(where + Uint32(16), (ptx.bits(outer.amax),))


def read_outer(plan: CastTilesPlan, shared: Uint32, slot: Int32) -> Outer:
    """The factors that `_outer_vector` stored: the amax itself only for 4over6, the one that uses it, and either s_enc
    or `usual`."""
    where = shared + Uint32(slot) * Uint32(OUTER_BYTES)
    rest = [ptx.from_bits(w) for w in ptx.load_shared(where, 4)]
    fours = plan.math.four_over_six != "none"
    amax = ptx.from_bits(ptx.load_shared(where + Uint32(16), 1)[0]) if fours else rest[0]
    return Outer(amax, *rest, usual=rest[0])


@cute.jit
def _other_outer(plan: cutlass.Constexpr, outer: cutlass.Constexpr, amax: Float32, other: Float32):
    """The fields of the `Outer` of another amax, which mostly is the same one."""
    s_enc, block_factor, s_dec, rescale = outer.s_enc, outer.block_factor, outer.s_dec, outer.rescale
    usual = s_dec if outer.usual is None else outer.usual
    if ptx.bits(amax) != ptx.bits(other):
        made = make_outer(other, plan.math)
        s_enc, block_factor, s_dec, rescale = made.s_enc, made.block_factor, made.s_dec, made.rescale
        usual = s_dec if made.usual is None else made.usual
    return other, s_enc, block_factor, s_dec, rescale, usual


def scalar_outers(plan: CastTilesPlan, io: TileIo) -> list[Outer]:
    """The one outer amax of the tensor or group, of the rowwise and the columnwise copy (of one if only it is made)."""
    amaxes = [
        ptx.load_words(amax + Int64(io.rows.group) * Int64(4), 1, io.rows.exists)[0]
        for wanted, amax in ((plan.rowwise, io.row_amax), (plan.columnwise, io.col_amax))
        if wanted
    ]
    row, column = ptx.from_bits(amaxes[0]), ptx.from_bits(amaxes[-1])
    outer = make_outer(row, plan.math)
    if len(amaxes) == 1:
        return [outer, outer]
    return [outer, Outer(*_other_outer(plan, outer, row, column))]


@cute.jit
def fill_outers(plan: cutlass.Constexpr, io: cutlass.Constexpr, outers: Uint32):
    """Encode factors of the tile's rows (threads 0..127) and columns (128..255) to shared memory."""
    slot = io.tid % 128
    if io.tid < 128:
        if cutlass.const_expr(plan.rowwise):
            row = io.rows.local + slot
            _outer_vector(plan, io.row_amax, io.rows.begin + row, row < io.rows.rows, outers, io.tid)
    else:
        if cutlass.const_expr(plan.columnwise):
            column = io.first_column + slot
            valid = (column < io.n) & (slot < plan.tile_columns)
            _outer_vector(plan, io.col_amax, io.rows.group * io.n + column, valid, outers, io.tid)
