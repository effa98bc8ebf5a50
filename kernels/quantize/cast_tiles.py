"""Cast in tiles of 128 rows x 256 bytes: rowwise copy, columnwise (transposed) copy, or both from one read of the
input.

    rowwise     codes (M, N/2), scales of (M, N/16)          blocks of 16 along N
    columnwise  codes (N, M/2), scales of (N, M/16)          blocks of 16 along M, after the Hadamard transform if any

256 threads a tile; each passes these steps, separated by barriers where shared memory changes hands:

    load        blocks of 16 elements into registers (4 a thread for 16-bit input), and into swizzled shared memory
    outers      outer amaxes of the tile's 128 rows and columns to encode factors in shared memory (token scaling)
    tile amax   16x16 blocks: shared-memory maxima of the lines' amaxes
    rows        encode and store from the registers
    columns     read 16 rows x 1 word (two columns of 16-bit data) from shared memory, [transform], encode and store;
                16x16 blocks: transpose the rows' codes if both outer amaxes are equal (`tile_transpose.py`)

4over6 on 16x16 blocks sums the errors of 16 lines by a fixed tree (`tile_choice.py`); the columnwise copy takes the
rowwise pass's decision ("shared") or makes its own ("recomputed").

A warp's column stores cover 4 columns x 64 bytes. The padding of tiled scales is written as zeros. N must be a
multiple of 16 for the rowwise copy, M for the columnwise copy (groups are padded to 64 instead); row strides are
free.

Rejected, in us for (16384, 6144) bf16, tensor / token scaling, where this takes 92 to 95 / 104 to 106: prefetching the
tile 512 further into L2 106 / 118; starting the first wave of CTAs one after the other 95 / 104; token scaling with 64
registers and 4 CTAs an SM 103.5, which is no difference. Passes as loops spill. Amaxes walked side by side and then
the cast from the last rows on, which are still in L2: token with amaxes 157 instead of 159, but 3 us slower where no
amax kernel runs before.

Arguments: x (M, N); row codes, row scales, column codes, column scales (uint8, flat); row amax, column amax (float32);
random int64 (4,): seed and offset of the rowwise, then of the columnwise copy; places: map of the tiles, if grouped
(group_map.py); mask: signs of the transform; bytes of a row of columnwise codes. Outputs of a copy that is not wanted
are never touched.
"""

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.hadamard16 import sign_factors
from cutefp4.kernels.common.philox import key_schedule
from cutefp4.kernels.quantize import tile_choice, tile_smem, tile_transpose
from cutefp4.kernels.quantize.input_block import BYTES, DTYPES, positive_nans
from cutefp4.kernels.quantize.tile_encode import (
    Random,
    Shared,
    column_lines,
    encode_columns,
    encode_rows,
    row_lines,
)
from cutefp4.kernels.quantize.tile_group import encode_group_columns
from cutefp4.kernels.quantize.tile_io import THREADS, TileIo, items_per_thread, load_tile, row_item, rows_to_item
from cutefp4.kernels.quantize.tile_map import in_groups, single
from cutefp4.kernels.quantize.tile_outers import OUTER_BYTES, fill_outers, scalar_outers
from cutefp4.kernels.quantize.tile_tail import clear_tail
from cutlass import Int32, Int64, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from cutefp4.quant_plan import MAP_WORDS, CastTilesPlan


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
        places: cute.Tensor,
        mask: Int32,
        col_stride: Int64,
    ):
        m, n = x.shape
        tile_n, tile_m, _ = cute.arch.block_idx()
        tid = cute.arch.thread_idx()[0]
        rows, tail = single(tile_m, m), None
        if cutlass.const_expr(plan.grouped):
            rows, tail = in_groups(tile_m, places)
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
        choice = tile_choice.allocate(plan, _allocate) if two_d else None
        codes = Uint32(0)
        if cutlass.const_expr(plan.shares_codes):
            # The errors of the 4over6 choice have been used when codes come, and take as much memory.
            codes = choice.errors if fours else _allocate(tile_transpose.code_bytes(plan))
        shared = Shared(
            tile=_allocate(tile_smem.TILE_BYTES, tile_smem.ROW_BYTES) if plan.columnwise else Uint32(0),
            outers=_allocate(OUTER_BYTES * 256) if plan.token else Uint32(0),
            codes=codes,
            choice=choice,
        )
        if rows.exists:
            # Loads first: what depends on the outer amaxes is made while they are under way.
            loaded = load_tile(plan, io)
            row_outer = col_outer = None
            if cutlass.const_expr(not plan.token):
                row_outer, col_outer = scalar_outers(plan, io)
            if cutlass.const_expr(not plan.on_grid):
                loaded = [positive_nans(words, plan.dtype) for words in loaded]
            if cutlass.const_expr(plan.columnwise):
                for j in cutlass.range_constexpr(items_per_thread(plan)):
                    row, block = row_item(plan, tid, 0)
                    tile_smem.write_block(shared.tile, row, rows_to_item(plan, j), block, loaded[j])
            if cutlass.const_expr(plan.token):
                fill_outers(plan, io, shared.outers)
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
                encode_rows(plan, io, shared, loaded, random_of(random, 0), row_outer)
            if cutlass.const_expr(plan.columnwise):
                if cutlass.const_expr(rows_first):
                    cute.arch.sync_threads()
                if cutlass.const_expr(two_d and fours and plan.columnwise_fours == "recomputed"):
                    cute.arch.sync_threads()
                    tile_choice.decide(plan, shared.choice, column_lines(plan, io, shared), col_outer, tid)
                signs = sign_factors(Uint32(mask), plan.dtype) if plan.rht != "none" else None
                if cutlass.const_expr(plan.shares_codes):
                    cute.arch.sync_threads()
                    if ptx.bits(row_outer.amax) == ptx.bits(col_outer.amax):
                        tile_transpose.store_scales(plan, io, shared.choice, row_outer)
                        tile_transpose.store_transposed(plan, io, shared.codes)
                    else:
                        encode_columns(plan, io, shared, random_of(random, 1), col_outer, signs)
                elif cutlass.const_expr(plan.packs_columns):
                    encode_group_columns(plan, io, shared, random_of(random, 1), col_outer, signs)
                else:
                    encode_columns(plan, io, shared, random_of(random, 1), col_outer, signs)
        elif cutlass.const_expr(plan.grouped):
            groups = places.shape[0] - m // 128 - 1
            clear_tail(plan, io, tail, rows.scale_row // 128, m, m // 128 + groups, m // 64 + groups)

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
        places: cute.Tensor,
        mask: Int32,
        col_stride: Int64,
        stream: cuda.CUstream,
    ):
        m, n = x.shape
        tiles_m = (m + 127) // 128
        if cutlass.const_expr(plan.grouped):
            tiles_m = places.shape[0]
        tiles_n = (n + 127) // 128 * (128 // plan.tile_columns)
        cast_tiles_kernel(
            x, row_codes, row_scales, col_codes, col_scales, row_amax, col_amax, random, places, mask, col_stride
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
        make_fake_tensor(cutlass.Int32, (cute.sym_int(), MAP_WORDS), (MAP_WORDS, 1), assumed_align=16),
        Int32(0),
        Int64(0),
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )


def _allocate(size: int, alignment: int = 128) -> Uint32:
    """Address of `size` bytes of shared memory."""
    return Uint32(cute.arch.alloc_smem(cutlass.Uint8, size, alignment=alignment).toint())


def random_of(random: cute.Tensor, copy: int) -> Random:
    """Of the rowwise (0) or columnwise copy (1); made where it is used, which saves registers."""
    seed, offset = random[2 * copy], random[2 * copy + 1]
    keys = key_schedule(Uint32(seed), Uint32(seed >> Int64(32)))
    return Random((Uint32(offset), Uint32(offset >> Int64(32))), keys)
