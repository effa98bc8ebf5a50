"""Cast in tiles of 128 rows x 256 bytes: rowwise copy, columnwise (transposed) copy, or both from one read of the
input.

    rowwise     codes (M, N/2), scales of (M, N/16)          blocks of 16 along N
    columnwise  codes (N, M/2), scales of (N, M/16)          blocks of 16 along M, after the Hadamard transform if any

256 threads a tile; each passes these steps, separated by barriers where shared memory changes hands:

    load        blocks of 16 elements into registers (4 a thread for 16-bit input), and into swizzled shared memory
    outers      outer amaxes of the tile's 128 rows and columns to encode factors in shared memory (token scaling)
    tile amax   16x16 blocks: shared-memory maxima of the lines' amaxes
    rows        encode and store from the registers
    columns     read 16 rows x 1 word (two columns of 16-bit data) from shared memory, [transform], encode and store

4over6 on 16x16 blocks sums the errors of 16 lines by a fixed tree (`tile_choice.py`); the columnwise copy takes the
rowwise pass's decision ("shared") or makes its own ("recomputed").

A warp's column stores cover 4 columns x 64 bytes. The padding of tiled scales is written as zeros. N must be a
multiple of 16 for the rowwise copy, M for the columnwise copy (groups are padded to 64 instead); row strides are
free.

Arguments: x (M, N); row codes, row scales, column codes, column scales (uint8, flat); row amax, column amax (float32);
random int64 (4,): seed and offset of the rowwise, then of the columnwise copy; offs int32 (E,); mask: signs of the
transform; ctas. Outputs of a copy that is not wanted are never touched.
"""

from dataclasses import dataclass

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.hadamard16 import sign_factors, transform
from cutefp4.kernels.common.philox import key_schedule, philox
from cutefp4.kernels.common.scale_layout import column_offset, row_offset
from cutefp4.kernels.quantize import tile_choice, tile_smem
from cutefp4.kernels.quantize.block_encode import encode_block, encode_line, make_outer
from cutefp4.kernels.quantize.block_scale import Outer
from cutefp4.kernels.quantize.input_block import (
    BYTES,
    DTYPES,
    Values,
    block_amax,
    column_amaxes,
    load_block,
    positive_nans,
    unpack,
    unpack_columns,
    unpack_row,
    values_amax,
)
from cutefp4.kernels.quantize.tile_map import TileRows, in_groups, single
from cutlass import Int32, Int64, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from cutefp4.quant_plan import CastTilesPlan

THREADS = 256
GROUPS = 8  # 16-row groups of a tile
OUTER_BYTES = 32
"""Shared memory of one outer amax and its factors."""


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


@dataclass(frozen=True)
class Shared:
    """Shared-memory addresses; 0 where the plan needs none."""

    tile: Uint32
    outers: Uint32
    choice: tile_choice.ChoiceSlots | None


@dataclass(frozen=True)
class Random:
    """Offset and round keys of one copy."""

    counter: tuple[Uint32, Uint32]
    keys: list

    def words(self, plan: CastTilesPlan, block: Int32, row: Int32):
        """Random words of a block of the copy, None if the recipe rounds to nearest."""
        if plan.math.rounding != "stochastic":
            return None
        return philox((*self.counter, Uint32(block), Uint32(row)), self.keys)


def blocks_per_row(plan: CastTilesPlan) -> int:
    return plan.tile_columns // 16


def items_per_thread(plan: CastTilesPlan) -> int:
    """Blocks of the tile that a thread loads: 4 for 16-bit input, 2 for fp32."""
    return 128 * blocks_per_row(plan) // THREADS


def row_item(plan: CastTilesPlan, tid: Int32, j: int) -> tuple[Int32, Int32]:
    """(row of the tile, block of the row) of this thread's block j."""
    across = blocks_per_row(plan)
    return tid // across + Int32(j * (THREADS // across)), tid % across


def load_tile(plan: CastTilesPlan, io: TileIo) -> list:
    """This thread's blocks; zeros outside the matrix."""
    loaded = []
    for j in range(items_per_thread(plan)):
        r, b = row_item(plan, io.tid, j)
        row, column = io.rows.local + r, io.first_column + b * 16
        where = io.x + Int64(io.rows.begin + row) * io.x_stride + Int64(column) * Int64(BYTES[plan.dtype])
        inside = io.n - column if plan.partial_columns else None
        valid = (row < io.rows.rows) & (column < io.n)
        words = load_block(where, valid, plan.dtype, plan.vector_bytes, inside)
        loaded.append(words)
    return [positive_nans(words, plan.dtype) for words in loaded]


def _outer_vector(plan: CastTilesPlan, amax: Int64, index: Int32, valid, shared: Uint32, slot: Int32) -> None:
    """Encode factors of one outer amax to a slot."""
    value = ptx.from_bits(ptx.load_words(amax + Int64(index) * Int64(4), 1, valid)[0])
    outer = make_outer(value, plan.math)
    words = tuple(ptx.bits(v) for v in (outer.s_enc, outer.block_factor, outer.s_dec, outer.rescale))
    where = shared + Uint32(slot) * Uint32(OUTER_BYTES)
    ptx.store_shared(where, words)
    ptx.store_shared(where + Uint32(16), (ptx.bits(outer.amax),))


def read_outer(plan: CastTilesPlan, shared: Uint32, slot: Int32) -> Outer:
    """The factors that `_outer_vector` stored; the amax itself only for 4over6, the one that uses it."""
    where = shared + Uint32(slot) * Uint32(OUTER_BYTES)
    rest = [ptx.from_bits(w) for w in ptx.load_shared(where, 4)]
    fours = plan.math.four_over_six != "none"
    amax = ptx.from_bits(ptx.load_shared(where + Uint32(16), 1)[0]) if fours else rest[0]
    return Outer(amax, *rest)


def scalar_outer(plan: CastTilesPlan, amax: Int64, io: TileIo) -> Outer:
    """The one outer amax of the tensor or group."""
    return make_outer(
        ptx.from_bits(ptx.load_words(amax + Int64(io.rows.group) * Int64(4), 1, io.rows.exists)[0]), plan.math
    )


@cute.jit
def fill_outers(plan: cutlass.Constexpr, io: cutlass.Constexpr, shared: cutlass.Constexpr):
    """Encode factors of the tile's rows (threads 0..127) and columns (128..255) to shared memory."""
    slot = io.tid % 128
    if io.tid < 128:
        if cutlass.const_expr(plan.rowwise):
            row = io.rows.local + slot
            _outer_vector(plan, io.row_amax, io.rows.begin + row, row < io.rows.rows, shared.outers, io.tid)
    else:
        if cutlass.const_expr(plan.columnwise):
            column = io.first_column + slot
            valid = (column < io.n) & (slot < plan.tile_columns)
            _outer_vector(plan, io.col_amax, io.rows.group * io.n + column, valid, shared.outers, io.tid)


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
    rows = j * (THREADS // blocks_per_row(plan))
    blocks = Int64(rows) * Int64(io.n // 16)
    return Steps(blocks * Int64(8), Int64(rows // 32 * 4) if plan.scale_layout == "tiled" else blocks)


def column_sink(plan: CastTilesPlan, io: TileIo) -> Sink:
    """Of the columnwise copy."""
    g, in_tile = column_item(plan, io.tid, 0, 0)
    column, group = io.first_column + in_tile, io.rows.local // 16 + g
    codes = io.col_codes + Int64(column) * io.col_stride + Int64(io.rows.k_start // 2) + Int64(group) * Int64(8)
    if plan.scale_layout == "compact":
        where = Int64(column) * (io.col_stride // Int64(8)) + Int64(io.rows.k_start // 16 + group)
    else:
        start = Int64((io.n + 127) // 128 * 128) * Int64(io.rows.k_start // 16)
        where = start + row_offset(column, io.rows.rows_k // 16, "tiled") + Int64(column_offset(group, "tiled"))
    return Sink(codes, io.col_scales + where)


def column_step(plan: CastTilesPlan, io: TileIo, j: int, i: int) -> Steps:
    """To column i of item j; the first item's column pair never crosses a multiple of 32."""
    columns = j * column_stride(plan) + i
    if plan.scale_layout == "tiled":
        scales = Int64(j * column_stride(plan) // 32 * 4 + i * 16)
    else:
        scales = Int64(columns) * (io.col_stride // Int64(8))
    return Steps(Int64(columns) * io.col_stride, scales)


def store_block(plan: CastTilesPlan, sink: Sink, step: Steps, done, valid, padded) -> None:
    """Codes and scale of a block; `padded`: the tiled layout has a byte for it, zero if it is not valid."""
    ptx.store_words(sink.codes + step.codes, (done.low, done.high), valid)
    if plan.scale_layout == "tiled":
        ptx.store_byte(sink.scales + step.scales, ptx.select(valid, done.scale, Uint32(0)), padded)
    else:
        ptx.store_byte(sink.scales + step.scales, done.scale, valid)


def encode_rows(plan: CastTilesPlan, io: TileIo, shared: Shared, loaded: list, random: Random, outer) -> None:
    """Encode the blocks in registers and store them in the rowwise copy."""
    sink, blocks = row_sink(plan, io), io.n // 16
    for j, words in enumerate(loaded):
        r, b = row_item(plan, io.tid, j)
        row, block = io.rows.local + r, io.first_column // 16 + b
        mine = read_outer(plan, shared.outers, r) if plan.token else outer
        values, words4 = unpack_row(words, plan.dtype), random.words(plan, block, row)
        if plan.block == "1d":
            done = encode_block(values, block_amax(words, plan.dtype), mine, plan.math, plan.arch, words4)
        else:
            amax, four = tile_choice.read(plan, shared.choice, r // 16, b)
            done = encode_line(values, amax, four, mine, plan.math, plan.arch, words4)
        valid = (row < io.rows.rows) & (block < blocks)
        store_block(plan, sink, row_step(plan, io, j), done, valid, block < (blocks + 3) // 4 * 4)


def column_stride(plan: CastTilesPlan) -> int:
    """Columns from one of a thread's column items to the next."""
    return THREADS // 32 * 16 // BYTES[plan.dtype]


def column_item(plan: CastTilesPlan, tid: Int32, j: int, i: int) -> tuple[Int32, Int32]:
    """(16-row group, column of the tile) of column i of this thread's item j."""
    per_word = 4 // BYTES[plan.dtype]
    column = (tid // 32 * 4 + tid % 4) * per_word
    return (tid // 4) % GROUPS, column + Int32(j * column_stride(plan) + i)


def read_item(plan: CastTilesPlan, shared: Shared, tid: Int32, j: int) -> list[Uint32]:
    """The 16 words of this thread's item j."""
    chunk = tid // 32 + Int32(j * (THREADS // 32))
    return tile_smem.read_column(shared.tile, (tid // 4) % GROUPS, chunk, tid % 4)


def encode_columns(plan: CastTilesPlan, io: TileIo, shared: Shared, random: Random, outer, factors) -> None:
    """Read columns back, [transform], encode and store them in the columnwise copy."""
    sink, blocks = column_sink(plan, io), io.rows.rows_k // 16
    padded_n = (io.n + 127) // 128 * 128
    for j in range(2):
        words = read_item(plan, shared, io.tid, j)
        tops = column_amaxes(words, plan.dtype)
        for i, values in enumerate(unpack_columns(words, plan.dtype)):
            g, in_tile = column_item(plan, io.tid, j, i)
            column, group = io.first_column + in_tile, io.rows.local // 16 + g
            mine = read_outer(plan, shared.outers, in_tile + 128) if plan.token else outer
            words4 = random.words(plan, group, column)
            top = tops[i]
            if plan.rht != "none":
                values = Values.of(transform(values.x, factors, plan.rht, plan.dtype))
                top = values_amax(values.x)
            if plan.block == "1d":
                done = encode_block(values, top, mine, plan.math, plan.arch, words4)
            else:
                amax, four = tile_choice.read(plan, shared.choice, g, in_tile // 16)
                done = encode_line(values, amax, four, mine, plan.math, plan.arch, words4)
            valid = (column < io.n) & (group < blocks)
            padded = (column < padded_n) & (group < (blocks + 3) // 4 * 4)
            store_block(plan, sink, column_step(plan, io, j, i), done, valid, padded)


def row_lines(plan: CastTilesPlan, io: TileIo, loaded: list):
    """(16-row group, block column, line in the 16x16 block, values) of this thread's blocks."""
    for j, words in enumerate(loaded):
        r, b = row_item(plan, io.tid, j)
        yield r // 16, b, r % 16, unpack(words, plan.dtype)


def column_lines(plan: CastTilesPlan, io: TileIo, shared: Shared):
    """The same for the lines of the columnwise copy."""
    for j in range(2):
        words = read_item(plan, shared, io.tid, j)
        for i, values in enumerate(unpack_columns(words, plan.dtype)):
            g, in_tile = column_item(plan, io.tid, j, i)
            yield g, in_tile // 16, in_tile % 16, values.x


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


def build(plan: CastTilesPlan):
    """The kernel of a plan, and fake arguments for compiling it."""
    two_d, fours = plan.block == "2d", plan.math.four_over_six != "none"

    @cute.kernel
    def cast_tiles_kernel(
        x: cute.Tensor,
        row_codes: cute.Tensor,
        row_scales: cute.Tensor,
        col_codes: cute.Tensor,
        col_scales: cute.Tensor,
        row_amax: cute.Tensor,
        col_amax: cute.Tensor,
        random: cute.Tensor,
        offs: cute.Tensor,
        mask: Int32,
        col_stride: Int64,
    ):
        m, n = x.shape
        tile_n, tile_m, _ = cute.arch.block_idx()
        tid = cute.arch.thread_idx()[0]
        rows, tail = single(tile_m, m), None
        if cutlass.const_expr(plan.grouped):
            rows, tail = in_groups(tile_m, cute.arch.grid_dim()[1], offs)
        io = TileIo(
            x=ptx.address(x),
            x_stride=Int64(x.stride[0]) * Int64(BYTES[plan.dtype]),
            row_codes=ptx.address(row_codes),
            row_scales=ptx.address(row_scales),
            col_codes=ptx.address(col_codes),
            col_scales=ptx.address(col_scales),
            row_amax=ptx.address(row_amax),
            col_amax=ptx.address(col_amax),
            n=n,
            col_stride=col_stride,
            first_column=tile_n * plan.tile_columns,
            rows=rows,
            tid=tid,
        )
        randoms = []
        for seed, offset in ((random[0], random[1]), (random[2], random[3])):
            keys = key_schedule(Uint32(seed), Uint32(seed >> Int64(32)))
            randoms.append(Random((Uint32(offset), Uint32(offset >> Int64(32))), keys))
        shared = Shared(
            tile=_allocate(tile_smem.TILE_BYTES) if plan.columnwise else Uint32(0),
            outers=_allocate(OUTER_BYTES * 256) if plan.token else Uint32(0),
            choice=tile_choice.allocate(plan, _allocate) if two_d else None,
        )
        row_outer = col_outer = None
        if cutlass.const_expr(not plan.token):
            row_outer = scalar_outer(plan, io.row_amax, io)
            col_outer = scalar_outer(plan, io.col_amax, io)

        if rows.exists:
            loaded = load_tile(plan, io)
            if cutlass.const_expr(plan.columnwise):
                for j in cutlass.range_constexpr(items_per_thread(plan)):
                    tile_smem.write_block(shared.tile, *row_item(plan, tid, j), loaded[j])
            if cutlass.const_expr(plan.token):
                fill_outers(plan, io, shared)
            if cutlass.const_expr(two_d):
                tile_choice.clear(shared.choice, tid)
                cute.arch.sync_threads()
                tile_choice.add_amaxes(
                    plan, shared.choice, tid, [row_item(plan, tid, j) for j in range(len(loaded))], loaded
                )
            # Rows with scalar amaxes need nothing from other threads: their barrier comes after them, which hides the
            # slowest warp's loads.
            rows_first = plan.rowwise and not (two_d or plan.token)
            if cutlass.const_expr(not rows_first):
                cute.arch.sync_threads()
            if cutlass.const_expr(two_d and fours and (plan.rowwise or plan.columnwise_fours == "shared")):
                tile_choice.decide(plan, shared.choice, row_lines(plan, io, loaded), row_outer, tid)
            if cutlass.const_expr(plan.rowwise):
                encode_rows(plan, io, shared, loaded, randoms[0], row_outer)
            if cutlass.const_expr(plan.columnwise):
                if cutlass.const_expr(rows_first):
                    cute.arch.sync_threads()
                if cutlass.const_expr(two_d and fours and plan.columnwise_fours == "recomputed"):
                    cute.arch.sync_threads()
                    tile_choice.decide(plan, shared.choice, column_lines(plan, io, shared), col_outer, tid)
                factors = sign_factors(Uint32(mask), plan.dtype) if plan.rht != "none" else None
                encode_columns(plan, io, shared, randoms[1], col_outer, factors)
        elif cutlass.const_expr(plan.grouped):
            clear_tail(plan, io, tail, tile_m, m, m // 128 + offs.shape[0], m // 64 + offs.shape[0])

    @cute.jit
    def cast_tiles(
        x: cute.Tensor,
        row_codes: cute.Tensor,
        row_scales: cute.Tensor,
        col_codes: cute.Tensor,
        col_scales: cute.Tensor,
        row_amax: cute.Tensor,
        col_amax: cute.Tensor,
        random: cute.Tensor,
        offs: cute.Tensor,
        mask: Int32,
        col_stride: Int64,
        stream: cuda.CUstream,
    ):
        m, n = x.shape
        tiles_m = (m + 127) // 128
        if cutlass.const_expr(plan.grouped):
            # One more than the groups can need, so that there is a tile to clear what is behind them.
            tiles_m = m // 128 + offs.shape[0] + 1
        tiles_n = (n + 127) // 128 * (128 // plan.tile_columns)
        cast_tiles_kernel(
            x, row_codes, row_scales, col_codes, col_scales, row_amax, col_amax, random, offs, mask, col_stride
        ).launch(
            grid=[tiles_n, tiles_m, 1],
            block=[THREADS, 1, 1],
            min_blocks_per_mp=plan.ctas_per_sm,
            # Given because the DSL would otherwise ask a GPU when it compiles.
            preferred_smem_carveout=100 if plan.columnwise else 0,
            stream=stream,
        )

    size = BYTES[plan.dtype]

    def flat(dtype, align):
        return make_fake_tensor(dtype, (cute.sym_int64(),), (1,), assumed_align=align)

    return cast_tiles, (
        make_fake_tensor(
            DTYPES[plan.dtype], (cute.sym_int(), cute.sym_int()), (cute.sym_int64(), 1), assumed_align=size
        ),
        *(flat(cutlass.Uint8, 16) for _ in range(4)),
        *(flat(cutlass.Float32, 4) for _ in range(2)),
        make_fake_tensor(cutlass.Int64, (4,), (1,), assumed_align=8),
        flat(cutlass.Int32, 4)
        if not plan.grouped
        else make_fake_tensor(cutlass.Int32, (cute.sym_int(),), (1,), assumed_align=4),
        Int32(0),
        Int64(0),
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )


def _allocate(size: int) -> Uint32:
    """Address of `size` bytes of shared memory."""
    return Uint32(cute.arch.alloc_smem(cutlass.Uint8, size, alignment=128).toint())
