"""The passes over a tile: rows from registers, columns from shared memory."""

from dataclasses import dataclass, replace

import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.e2m1_stochastic import LEAST_FOLDED, Dither
from cutefp4.kernels.common.hadamard16 import transform
from cutefp4.kernels.common.philox import philox
from cutefp4.kernels.quantize import tile_choice, tile_smem, tile_transpose
from cutefp4.kernels.quantize.block_encode import (
    Encoded,
    encode_block,
    encode_line,
)
from cutefp4.kernels.quantize.block_scale import least_multiplier
from cutefp4.kernels.quantize.grid_encode import encode_columns_on_grid, encode_row_on_grid
from cutefp4.kernels.quantize.input_block import (
    BYTES,
    Values,
    block_amax,
    column_amaxes,
    pack,
    positive_nans,
    unpack,
    unpack_columns,
    unpack_row,
    values_amax,
)
from cutefp4.kernels.quantize.lane_encode import encode_columns_in_lanes, encode_rows_in_lanes
from cutefp4.kernels.quantize.tile_io import (
    GROUPS,
    THREADS,
    Sink,
    TileIo,
    column_item,
    column_sink,
    column_step,
    row_item,
    row_sink,
    row_step,
    store_block,
)
from cutefp4.kernels.quantize.tile_outers import read_outer
from cutlass import Float32, Int32, Uint32

from cutefp4.quant_plan import CastTilesPlan


@dataclass(frozen=True)
class Shared:
    """Shared-memory addresses; 0 where the plan needs none."""

    tile: Uint32
    outers: Uint32
    codes: Uint32
    choice: tile_choice.ChoiceSlots | None


@dataclass(frozen=True)
class Random:
    """Offset and round keys of one copy."""

    counter: tuple[Uint32, Uint32]
    keys: list
    folded: bool = False

    def words(self, plan: CastTilesPlan, block: Int32, row: Int32) -> Dither | None:
        """Random words of a block of the copy, None if the recipe rounds to nearest."""
        if plan.math.rounding != "stochastic":
            return None
        return Dither(philox((*self.counter, Uint32(block), Uint32(row)), self.keys), self.folded)


@cute.jit
def _folded_or_not(plan: cutlass.Constexpr, encode: cutlass.Constexpr, random: cutlass.Constexpr, outer):
    """encode(random), with folded multipliers (common/e2m1_stochastic.py) unless the outer amax is astronomic.

    One branch a pass instead of one a block. Token scaling has an outer amax a line, and does not fold; nor does
    4over6, whose two copies of a pass would spill.
    """
    folds = plan.math.rounding == "stochastic" and plan.math.four_over_six == "none" and not plan.token
    if cutlass.const_expr(not folds):
        encode(random)
    else:
        if least_multiplier(outer, plan.math.arithmetic) >= Float32(LEAST_FOLDED):
            encode(replace(random, folded=True))
        else:
            encode(random)


def encode_rows(plan: CastTilesPlan, io: TileIo, shared: Shared, loaded: list, random: Random, outer) -> None:
    """Encode the blocks in registers and store them in the rowwise copy."""
    _folded_or_not(plan, lambda r: _encode_rows(plan, io, shared, loaded, r, outer), random, outer)


def _encode_rows(plan: CastTilesPlan, io: TileIo, shared: Shared, loaded: list, random: Random, outer) -> None:
    sink = row_sink(plan, io)
    # Codes that are transposed are needed behind a group's last row, too.
    if plan.grouped and not plan.shares_codes:
        _encode_group_rows(plan, io, shared, sink, loaded, random, outer)
    else:
        _encode_whole_rows(plan, io, shared, sink, loaded, random, outer)


def _encode_whole_rows(
    plan: CastTilesPlan, io: TileIo, shared: Shared, sink: Sink, loaded: list, random, outer
) -> None:
    """All blocks of all threads."""
    if plan.in_lanes:
        for j in range(0, len(loaded), 2):
            _encode_row_pair(plan, io, shared, sink, loaded, outer, j)
    else:
        for j, words in enumerate(loaded):
            _encode_row(plan, io, shared, sink, words, random, outer, j)


@cute.jit
def _encode_group_rows(
    plan: cutlass.Constexpr,
    io: cutlass.Constexpr,
    shared: cutlass.Constexpr,
    sink: cutlass.Constexpr,
    loaded: cutlass.Constexpr,
    random: cutlass.Constexpr,
    outer: cutlass.Constexpr,
):
    """Rows of a tile in which a group may end. In most tiles none does, and the blocks of a thread overlap."""
    if io.rows.local + 128 <= io.rows.rows:
        _encode_whole_rows(plan, io, shared, sink, loaded, random, outer)
    else:
        for j in cutlass.range_constexpr(len(loaded)):
            _encode_row_of_group(plan, io, shared, sink, loaded[j], random, outer, j)


@cute.jit
def _encode_row_of_group(
    plan: cutlass.Constexpr,
    io: cutlass.Constexpr,
    shared: cutlass.Constexpr,
    sink: cutlass.Constexpr,
    words: cutlass.Constexpr,
    random: cutlass.Constexpr,
    outer: cutlass.Constexpr,
    j: cutlass.Constexpr,
):
    """`_encode_row`, which the rows behind a group's last one skip: groups end anywhere in their last tile."""
    r, b = row_item(plan, io.tid, j)
    if io.rows.local + r < io.rows.rows:
        _encode_row(plan, io, shared, sink, words, random, outer, j)
    else:
        if cutlass.const_expr(plan.scale_layout == "tiled"):
            where = sink.scales + row_step(plan, io, j).scales
            blocks, block = io.n // 16, io.first_column // 16 + b
            ptx.store_byte(where, Uint32(0), block < (blocks + 3) // 4 * 4)


def _encode_row(
    plan: CastTilesPlan, io: TileIo, shared: Shared, sink: Sink, words: list, random: Random, outer, j: int
) -> None:
    """Block j of this thread."""
    mine, top, four = _outer_and_tile(plan, io, shared, outer, j)
    if plan.on_grid:
        words = positive_nans(words, plan.dtype)
        done = encode_row_on_grid(words, top, mine, plan.math.arithmetic, plan.dtype)
    else:
        r, b = row_item(plan, io.tid, j)
        dither = random.words(plan, io.first_column // 16 + b, io.rows.local + r)
        top = block_amax(words, plan.dtype) if top is None else top
        done = _encode(plan, unpack_row(words, plan.dtype), top, four, mine, dither)
    _store_row(plan, io, shared, sink, done, j)


def _encode_row_pair(plan: CastTilesPlan, io: TileIo, shared: Shared, sink: Sink, loaded: list, outer, j: int) -> None:
    """Blocks j and j + 1 of this thread, together with those of all threads of its warp."""
    places = range(j, min(j + 2, len(loaded)))
    outers = [_outer_and_tile(plan, io, shared, outer, i)[0] for i in places]
    done = encode_rows_in_lanes([loaded[i] for i in places], outers, plan.math.arithmetic, io.n)
    for i, encoded in zip(places, done, strict=True):
        _store_row(plan, io, shared, sink, encoded, i)


def _outer_and_tile(plan: CastTilesPlan, io: TileIo, shared: Shared, outer, j: int):
    """The outer amax of block j of this thread; amax and choice of its 16x16 block, if it belongs to one."""
    r, b = row_item(plan, io.tid, j)
    mine = read_outer(plan, shared.outers, r) if plan.token else outer
    if plan.block == "1d":
        return mine, None, None
    return mine, *tile_choice.read(plan, shared.choice, r // 16, b)


def _store_row(plan: CastTilesPlan, io: TileIo, shared: Shared, sink: Sink, done: Encoded, j: int) -> None:
    blocks = io.n // 16
    r, b = row_item(plan, io.tid, j)
    row, block = io.rows.local + r, io.first_column // 16 + b
    if plan.shares_codes:
        tile_transpose.put(plan, shared.codes, r, b, (done.low, done.high))
    valid = (row < io.rows.rows) & (block < blocks)
    store_block(plan, sink, row_step(plan, io, j), done, valid, block < (blocks + 3) // 4 * 4)


def _encode(plan: CastTilesPlan, values: Values, top: Float32, four, outer, random) -> Encoded:
    """A block, or a line of a 16x16 block, element by element."""
    if plan.block == "1d":
        return encode_block(values, top, outer, plan.math, plan.arch, random)
    return encode_line(values, top, four, outer, plan.math, plan.arch, random)


def read_item(plan: CastTilesPlan, shared: Shared, tid: Int32, j: int) -> list[Uint32]:
    """The 16 words of this thread's item j."""
    return tile_smem.read_column(shared.tile, (tid // 4) % GROUPS, tid // 32, j * (THREADS // 32), tid % 4)


def encode_columns(plan: CastTilesPlan, io: TileIo, shared: Shared, random: Random, outer, signs) -> None:
    """Read columns back, [transform], encode and store them in the columnwise copy.

    `signs` of the transform: `hadamard16.sign_factors`; None without it.
    """
    _folded_or_not(plan, lambda r: _encode_columns(plan, io, shared, r, outer, signs), random, outer)


def _encode_columns(plan: CastTilesPlan, io: TileIo, shared: Shared, random: Random, outer, signs) -> None:
    sink, blocks = column_sink(plan, io), io.rows.rows_k // 16
    padded_n = (io.n + 127) // 128 * 128
    for j in range(2):
        if j > 0 and plan.token:
            cute.arch.sync_warp()  # keeps the compiler from holding two items in registers
        words = read_item(plan, shared, io.tid, j)
        places = [column_item(plan, io.tid, j, i) for i in range(4 // BYTES[plan.dtype])]
        outers = [read_outer(plan, shared.outers, c + 128) if plan.token else outer for _, c in places]
        randoms = [random.words(plan, io.rows.local // 16 + g, io.first_column + in_tile) for g, in_tile in places]
        for i, done in enumerate(_encode_item(plan, io, shared, words, places, outers, randoms, signs)):
            g, in_tile = places[i]
            column, group = io.first_column + in_tile, io.rows.local // 16 + g
            valid = (column < io.n) & (group < blocks)
            padded = (column < padded_n) & (group < (blocks + 3) // 4 * 4)
            store_block(plan, sink, column_step(plan, io, j, i), done, valid, padded)


def _encode_item(plan: CastTilesPlan, io: TileIo, shared: Shared, words, places, outers, randoms, factors):
    """The blocks of one columnwise item of a thread."""
    columns = unpack_columns(words, plan.dtype)
    if plan.rht == "bf16" and plan.dtype == "bfloat16":
        blocks = [pack(transform(values.x, factors, "exact", plan.dtype), "bfloat16") for values in columns]
        return [_encode_packed(plan, io, *rest) for rest in zip(blocks, outers, randoms, strict=True)]
    if plan.rht == "none":
        tops = None if plan.on_grid else column_amaxes(words, plan.dtype)
    else:
        columns = [Values.of(transform(values.x, factors, plan.rht, plan.dtype)) for values in columns]
        tops = [values_amax(values.x) for values in columns]
    fours = [None] * len(places)
    if plan.block == "2d":
        tops, fours = zip(*(tile_choice.read(plan, shared.choice, g, c // 16) for g, c in places), strict=True)
    if plan.on_grid and plan.rht == "none":
        registers = plan.ctas_per_sm < 4
        if plan.in_lanes:
            return encode_columns_in_lanes(words, outers, plan.math.arithmetic, registers, io.n)
        return encode_columns_on_grid(
            positive_nans(words, plan.dtype), tops, outers, plan.math.arithmetic, plan.dtype, registers
        )
    return [_encode(plan, *rest) for rest in zip(columns, tops, fours, outers, randoms, strict=True)]


def _encode_packed(plan: CastTilesPlan, io: TileIo, words: list, outer, random) -> Encoded:
    """A block of packed bf16."""
    if plan.in_lanes:
        return encode_rows_in_lanes([words], [outer], plan.math.arithmetic, io.n)[0]
    return _encode(plan, unpack_row(words, "bfloat16"), block_amax(words, "bfloat16"), None, outer, random)


def row_lines(plan: CastTilesPlan, io: TileIo, loaded: list):
    """(16-row group, block column, line in the 16x16 block, values, `Values.short`) of this thread's blocks."""
    for j, words in enumerate(loaded):
        r, b = row_item(plan, io.tid, j)
        yield r // 16, b, r % 16, unpack(words, plan.dtype), plan.dtype != "float32"


def column_lines(plan: CastTilesPlan, io: TileIo, shared: Shared):
    """The same for the lines of the columnwise copy."""
    for j in range(2):
        words = read_item(plan, shared, io.tid, j)
        for i, values in enumerate(unpack_columns(words, plan.dtype)):
            g, in_tile = column_item(plan, io.tid, j, i)
            yield g, in_tile // 16, in_tile % 16, values.x, values.short
