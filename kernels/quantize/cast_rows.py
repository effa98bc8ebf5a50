"""Rowwise cast: (M, N) to codes (M, N/2) and one E4M3 scale per 16 elements, with one read of the input.

    code = e2m1(fl(x * m)),  (scale, m) from the block's amax and the outer amax of the tensor or of the row

Thread mapping: `threads_per_row` (T) threads share a row and hold V = `blocks_per_thread` blocks of 16 elements each in
registers, block t + T*j for thread t; neighbouring threads read neighbouring 32 bytes (16-bit input), write 8 bytes of
codes and one scale byte. CTAs walk over the rows with the stride of the grid.

Token scaling finds the row's amax in the registers that are encoded afterwards: lanes combine by REDUX or shuffles,
warps through shared memory (two sets of slots in turn, so that one barrier per row suffices). Rows that do not fit
are walked in chunks, twice if their amax is to be found. With `ahead`, a thread's next row is copied to shared memory
while it works on this one (rows_ahead.py), and blocks are read one by one as they are encoded.

Tiled scales: rows are padded to 128 and columns to 4, and the padding is written as zeros by the threads that would own
these blocks.

With `swiglu` the input is h = silu(gate) * up of x (M, 2N), made in registers as it is loaded (swiglu.py); with
`deinterleave` it is x with its gate columns before its up columns (gate_up.py).

Arguments: x (M, N) with any row stride; codes (M, N/2) uint8; scales uint8, flat, in the layout of the plan; amax
float32, (1,) or (M,), read or written, or partial amaxes (amax_partials.py); random int64 (4,), of which the first two
are the seed and offset (unused if rounding is nearest); ctas.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.e2m1_stochastic import Dither
from cutefp4.kernels.common.philox import key_schedule, philox
from cutefp4.kernels.common.scale_layout import column_offset, row_offset
from cutefp4.kernels.quantize.amax_partials import collect
from cutefp4.kernels.quantize.block_encode import Encoded, encode_block, encode_usual_block, make_outer
from cutefp4.kernels.quantize.gate_up import deinterleaved_pieces
from cutefp4.kernels.quantize.grid_encode import encode_row_on_grid
from cutefp4.kernels.quantize.input_block import (
    BYTES,
    DTYPES,
    block_amax,
    load_block,
    positive_nans,
    unpack_row,
)
from cutefp4.kernels.quantize.rows_ahead import Ahead, Piece, wait_for_copies
from cutefp4.kernels.quantize.swiglu import load_gated
from cutlass import Float32, Int32, Int64, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from cutefp4.quant_plan import CastRowsPlan, RmsnormPlan, rounds_on_grid, tries_usual_blocks


def row_reduce_max(value: Float32, plan: CastRowsPlan, slots, parity: Int32) -> Float32:
    """The largest value (>= 0) of the threads of a row, in all of them. Every thread of the CTA must call it."""
    top, threads = ptx.bits(value), plan.threads_per_row
    if threads < 32:
        distance = 1
        while distance < threads:
            top = ptx.umax(top, ptx.shuffle_xor(top, distance))
            distance *= 2
        return ptx.from_bits(top)
    top = ptx.warp_umax(top)
    warps = threads // 32
    if warps == 1:
        return ptx.from_bits(top)
    base = Uint32(slots.toint()) + Uint32(parity) * Uint32(4 * 32)
    ptx.store_shared(base + Uint32(cute.arch.warp_idx()) * Uint32(4), (top,))
    cute.arch.sync_threads()
    lane = Uint32(cute.arch.lane_idx())
    mine = ptx.load_shared(base + ptx.umin(lane, Uint32(warps - 1)) * Uint32(4), 1)[0]
    return ptx.from_bits(ptx.warp_umax(mine))


@dataclass(frozen=True)
class RowsIo:
    """Addresses and sizes of one launch, and the block of a row that this thread begins with."""

    x: Int64
    x_stride: Int64
    codes: Int64
    scales: Int64
    amax: Int64
    m: Int32
    blocks: Int32
    padded_rows: Int32
    padded_blocks: Int32
    lane: Int32
    counter: tuple[Uint32, Uint32]
    keys: list


def block_of(plan: CastRowsPlan | RmsnormPlan, io, first: Int32, j) -> Int32:
    """Number of this thread's block j in the chunk of a row that begins at block `first`; io.lane: its first one."""
    return first + io.lane + Int32(j) * Int32(plan.threads_per_row)


def load_input(plan: CastRowsPlan, io: RowsIo, row: Int32, b: Int32) -> list[Uint32]:
    """Block b of a row, zeros outside the matrix."""
    base, valid = io.x + Int64(row) * io.x_stride, (row < io.m) & (b < io.blocks)
    if plan.swiglu != "none":
        return load_gated(base, b, io.blocks * 16, valid, plan.dtype, plan.swiglu, plan.vector_bytes)
    pieces = input_pieces(plan, io, row, b)
    return [w for at, count in pieces for w in load_block(at, valid, plan.dtype, plan.vector_bytes, count=count)]


def input_pieces(plan: CastRowsPlan, io: RowsIo, row: Int32, b: Int32) -> list[Piece]:
    """Where block b of a row lies."""
    base = io.x + Int64(row) * io.x_stride
    if plan.deinterleave != "none":
        return deinterleaved_pieces(base, b, io.blocks, plan.dtype, plan.deinterleave)
    return [(base + Int64(b) * Int64(16 * BYTES[plan.dtype]), 16)]


def copy_ahead(plan: CastRowsPlan, io: RowsIo, ahead: Ahead, row: Int32, j: int) -> None:
    """Begin to copy this thread's block j of a row."""
    b = block_of(plan, io, Int32(0), j)
    ahead.copy_block(j, input_pieces(plan, io, row, b), (row < io.m) & (b < io.blocks), plan.dtype)


def take_blocks(plan: CastRowsPlan, io: RowsIo, ahead: Ahead, following: Int32):
    """This thread's blocks of a row one by one, as they are needed; the copy of `following`'s replaces each."""
    for j in range(plan.blocks_per_thread):
        words = ahead.block(j, plan.dtype)
        copy_ahead(plan, io, ahead, following, j)
        yield words


def load_chunk(plan: CastRowsPlan, io: RowsIo, row: Int32, first: Int32) -> list:
    """The blocks of this thread in the chunk of a row that begins at block `first`."""
    return [load_input(plan, io, row, block_of(plan, io, first, j)) for j in range(plan.blocks_per_thread)]


def chunk_amax(plan: CastRowsPlan, loaded: list) -> Float32:
    """max |x| of this thread's blocks."""
    top = block_amax(loaded[0], plan.dtype)
    for words in loaded[1:]:
        top = ptx.fmax(top, block_amax(words, plan.dtype))
    return top


def store_encoded(plan, io: RowsIo, row: Int32, b: Int32, done: Encoded) -> None:
    """Codes and scale of block b of a row; zero scale bytes in the padding of the tiled layout."""
    valid = (row < io.m) & (b < io.blocks)
    codes_row = io.codes + Int64(row) * (Int64(io.blocks) * Int64(8))
    ptx.store_words(codes_row + Int64(b) * Int64(8), (done.low, done.high), valid)
    where = io.scales + row_offset(row, io.blocks, plan.scale_layout) + Int64(column_offset(b, plan.scale_layout))
    if plan.scale_layout == "tiled":
        byte = ptx.select(valid, done.scale, Uint32(0))
        ptx.store_byte(where, byte, (row < io.padded_rows) & (b < io.padded_blocks))
    else:
        ptx.store_byte(where, done.scale, valid)


@cute.jit
def encode_carefully(
    plan: cutlass.Constexpr, io: cutlass.Constexpr, row: Int32, first: Int32, outer: cutlass.Constexpr, which: Uint32
):
    """Encode those of this thread's blocks again whose bits in `which` are set. They are rare, and are read again:
    keeping them costs registers in every chunk."""
    if which != 0:
        for j in cutlass.range(plan.blocks_per_thread, unroll=1):
            if (which >> Uint32(j)) & 1 != 0:
                b = block_of(plan, io, first, j)
                words = load_input(plan, io, row, b)
                values = unpack_row(positive_nans(words, plan.dtype), plan.dtype)
                bamax = block_amax(words, plan.dtype)
                store_encoded(plan, io, row, b, encode_block(values, bamax, outer, plan.math, plan.arch))


def encode_chunk(
    plan, io: RowsIo, loaded: Iterable, row: Int32, first: Int32, outer, computed: bool, on_grid: bool
) -> None:
    """Encode and store this thread's blocks.

    `computed`: the values are results of arithmetic, whose NaNs are positive. `on_grid`: round on a grid.
    """
    math, which = plan.math, Uint32(0)
    usual = not computed and tries_usual_blocks(plan.arch, plan.dtype, math)
    for j, words in enumerate(loaded):
        b = block_of(plan, io, first, j)
        random = None
        if math.rounding == "stochastic":
            random = Dither(philox((*io.counter, Uint32(b), Uint32(row)), io.keys))
        bamax = block_amax(words, plan.dtype)
        if not (computed or usual):
            words = positive_nans(words, plan.dtype)
        if usual:  # a NaN is encoded again, whatever its sign
            done, good = encode_usual_block(unpack_row(words, plan.dtype), bamax, outer, math)
            which = which | ptx.select(good, Uint32(0), Uint32(1 << j))
        elif on_grid:
            done = encode_row_on_grid(words, bamax, outer, math.arithmetic, plan.dtype)
        else:
            done = encode_block(unpack_row(words, plan.dtype), bamax, outer, math, plan.arch, random)
        store_encoded(plan, io, row, b, done)
    if usual:
        encode_carefully(plan, io, row, first, outer, which)


def build(plan: CastRowsPlan):
    """The kernel of a plan, and fake arguments for compiling it."""
    threads, rows_per_cta, math = plan.threads, plan.rows_per_cta, plan.math
    find_amax = plan.scaling == "token" and not plan.amax_given
    tiled, computed = plan.scale_layout == "tiled", plan.swiglu != "none"
    # On the grid SwiGLU takes 115 registers instead of 76, for as many instructions.
    on_grid = rounds_on_grid(plan.arch, plan.dtype, math) and not computed

    @cute.kernel
    def cast_rows_kernel(
        x: cute.Tensor, codes: cute.Tensor, scales: cute.Tensor, amax: cute.Tensor, random: cute.Tensor
    ):
        m, n = x.shape
        blocks = n // 16 if plan.swiglu == "none" else n // 32
        tid = cute.arch.thread_idx()[0]
        seed, offset = Int64(random[0]), Int64(random[1])
        io = RowsIo(
            x=ptx.address(x),
            x_stride=Int64(x.stride[0]) * Int64(BYTES[plan.dtype]),
            codes=ptx.address(codes),
            scales=ptx.address(scales),
            amax=ptx.address(amax),
            m=m,
            blocks=blocks,
            padded_rows=(m + 127) // 128 * 128 if tiled else m,
            padded_blocks=(blocks + 3) // 4 * 4 if tiled else blocks,
            lane=tid % plan.threads_per_row,
            counter=(Uint32(offset), Uint32(offset >> Int64(32))),
            keys=key_schedule(Uint32(seed), Uint32(seed >> Int64(32))),
        )
        slots = cute.arch.alloc_smem(cutlass.Uint32, 64, alignment=16)
        tensor_outer = None
        if cutlass.const_expr(plan.scaling == "tensor"):
            tensor_outer = make_outer(collect(amax, threads) if plan.partials else Float32(amax[0]), math)

        first_row = cute.arch.block_idx()[0] * rows_per_cta
        step = cute.arch.grid_dim()[0] * rows_per_cta
        parity = Int32(0)
        ahead = None
        if cutlass.const_expr(plan.ahead):
            ahead = Ahead.allocate(plan.ahead_bytes, threads, tid)
            for j in cutlass.range_constexpr(plan.blocks_per_thread):
                copy_ahead(plan, io, ahead, first_row + tid // plan.threads_per_row, j)
        for row0 in cutlass.range(first_row, io.padded_rows, step):
            row = row0 + tid // plan.threads_per_row
            outer = tensor_outer
            loaded = None
            if cutlass.const_expr(plan.ahead):
                wait_for_copies()
                loaded = [ahead.block(j, plan.dtype) for j in range(plan.blocks_per_thread)] if find_amax else None
            elif cutlass.const_expr(not plan.looped):
                loaded = load_chunk(plan, io, row, Int32(0))
            if cutlass.const_expr(find_amax):
                top = Float32(0.0)
                if cutlass.const_expr(not plan.looped):
                    top = chunk_amax(plan, loaded)
                else:
                    for first in cutlass.range(0, io.blocks, plan.chunk):
                        top = ptx.fmax(top, chunk_amax(plan, load_chunk(plan, io, row, first)))
                top = row_reduce_max(top, plan, slots, parity)
                parity = parity ^ 1
                ptx.store_words(io.amax + Int64(row) * Int64(4), (ptx.bits(top),), (row < io.m) & (io.lane == 0))
                outer = make_outer(top, math)
            elif cutlass.const_expr(plan.scaling == "token"):
                given = ptx.load_words(io.amax + Int64(row) * Int64(4), 1, row < io.m)[0]
                outer = make_outer(ptx.from_bits(given), math)
            if cutlass.const_expr(plan.ahead):
                loaded = take_blocks(plan, io, ahead, row + step)
            if cutlass.const_expr(not plan.looped):
                encode_chunk(plan, io, loaded, row, Int32(0), outer, computed, on_grid)
            else:
                for first in cutlass.range(0, io.padded_blocks, plan.chunk):
                    encode_chunk(plan, io, load_chunk(plan, io, row, first), row, first, outer, computed, on_grid)

    @cute.jit
    def cast_rows(
        x: cute.Tensor,
        codes: cute.Tensor,
        scales: cute.Tensor,
        amax: cute.Tensor,
        random: cute.Tensor,
        ctas: Int32,
        stream: cuda.CUstream,
    ):
        rows = (x.shape[0] + 127) // 128 * 128 if tiled else x.shape[0]
        grid = cutlass.min(ctas, cute.ceil_div(rows, rows_per_cta))
        cast_rows_kernel(x, codes, scales, amax, random).launch(
            grid=[grid, 1, 1],
            block=[threads, 1, 1],
            min_blocks_per_mp=plan.ctas_per_sm,
            stream=stream,
            use_pdl=plan.partials,
        )

    m, n = cute.sym_int(), cute.sym_int(divisibility=16)
    size = BYTES[plan.dtype]
    return cast_rows, (
        make_fake_tensor(DTYPES[plan.dtype], (m, n), (cute.sym_int64(), 1), assumed_align=size),
        make_fake_tensor(cutlass.Uint8, (m, cute.sym_int(divisibility=8)), (cute.sym_int64(), 1), assumed_align=16),
        make_fake_tensor(cutlass.Uint8, (cute.sym_int(),), (1,), assumed_align=16),
        make_fake_tensor(cutlass.Float32, (cute.sym_int(),), (1,), assumed_align=4),
        make_fake_tensor(cutlass.Int64, (4,), (1,), assumed_align=8),
        Int32(1),
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
