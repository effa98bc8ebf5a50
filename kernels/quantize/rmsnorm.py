"""RMSNorm of rows, and their cast in the same read: x (M, N) (+ residual) to h, y and the rowwise copy of y.

    h = x, or cast(fl(x + residual));   r = fl(1 / fl(sqrt(fl(fl(s / N) + eps))));   y = cast(fl(fl(h * r) * weight))

s is the sum of squares in the order of the oracle (square_sum.py), which is the same for every thread layout. y stays
packed in registers and goes to the quantiser as if it had been read: the thread mapping, the row amax and the encoding
are those of cast_rows.py. A row has two reductions, s and the amax, with one barrier each.

Rows that do not fit in registers are walked in chunks: once for s, once for the amax if it is to be found, once for
what is written.

Arguments: x, residual, sum, normed (M, N) of one dtype, any row strides; weight (N,); codes (M * N / 2,) and scales
uint8, flat; amax float32 (1,) or (M,), or partial amaxes (amax_partials.py); random as in cast_rows.py; eps; ctas.
Tensors that the plan does not use are never touched.
"""

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.philox import key_schedule
from cutefp4.kernels.quantize.amax_partials import collect, store_partials
from cutefp4.kernels.quantize.block_encode import make_outer
from cutefp4.kernels.quantize.cast_rows import chunk_amax, encode_chunk, row_reduce_max
from cutefp4.kernels.quantize.input_block import BYTES, DTYPES
from cutefp4.kernels.quantize.rmsnorm_rows import Matrix, NormIo, load_raw, make_h, write_normed
from cutefp4.kernels.quantize.rmsnorm_values import (
    keep_weights,
    looped_amax,
    looped_factor,
    norm_factor,
    normalise,
    normalised_chunk,
)
from cutefp4.kernels.quantize.square_sum import MAX_CHUNKS, block_square_sum, row_square_sum
from cutlass import Float32, Int32, Int64, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from cutefp4.quant_plan import RmsnormPlan, rounds_on_grid


@cute.jit
def finish(plan: cutlass.Constexpr, io: cutlass.Constexpr, y: cutlass.Constexpr, row: Int32, first: Int32, outer):
    """Write what is made of y; returns max |y| if it is measured."""
    top = Float32(0.0)
    if cutlass.const_expr(plan.write_normed):
        write_normed(plan, io, y, row, first)
    if cutlass.const_expr(plan.measure):
        top = chunk_amax(plan, y)
    if cutlass.const_expr(plan.cast != "none"):
        on_grid = rounds_on_grid(plan.arch, plan.dtype, plan.math)
        encode_chunk(plan, io, y, row, first, outer, computed=True, on_grid=on_grid)
    return top


def build(plan: RmsnormPlan):
    """The kernel of a plan, and fake arguments for compiling it."""
    threads, rows_per_cta, math, dtype = plan.threads, plan.rows_per_cta, plan.math, plan.dtype
    tiled = plan.cast != "none" and plan.scale_layout == "tiled"
    slot_count = MAX_CHUNKS if plan.looped else plan.chunk // 32 + 1

    @cute.kernel
    def rmsnorm_kernel(
        x: cute.Tensor,
        residual: cute.Tensor,
        total: cute.Tensor,
        normed: cute.Tensor,
        weight: cute.Tensor,
        codes: cute.Tensor,
        scales: cute.Tensor,
        amax: cute.Tensor,
        random: cute.Tensor,
        eps: Float32,
    ):
        m, n = x.shape
        blocks = n // 16
        tid = cute.arch.thread_idx()[0]
        seed, offset = Int64(random[0]), Int64(random[1])
        io = NormIo(
            x=Matrix.of(x, dtype),
            residual=Matrix.of(residual, dtype),
            sum=Matrix.of(total, dtype),
            normed=Matrix.of(normed, dtype),
            weight=ptx.address(weight),
            kept=Uint32(cute.arch.alloc_smem(Uint32, plan.kept_bytes // 4, alignment=16).toint())
            if plan.keeps_weight
            else Uint32(0),
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
        # Two sets of slots for sums in turn: without an amax to find there is one barrier a row.
        sum_slots = Uint32(cute.arch.alloc_smem(Uint32, 2 * slot_count, alignment=16).toint())
        max_slots = cute.arch.alloc_smem(Uint32, 64, alignment=16)
        given_outer = None
        if cutlass.const_expr(plan.cast == "given" and plan.scaling == "tensor"):
            given_outer = make_outer(collect(amax, threads) if plan.partials else Float32(amax[0]), math)

        first_row = cute.arch.block_idx()[0] * rows_per_cta
        step = cute.arch.grid_dim()[0] * rows_per_cta
        if cutlass.const_expr(plan.measure and plan.partials):
            cute.arch.griddepcontrol_launch_dependents()
        if cutlass.const_expr(plan.keeps_weight):
            keep_weights(plan, io)
        parity, largest = Int32(0), Float32(0.0)
        zero = Int32(0)
        following = [[Uint32(0)]]
        if cutlass.const_expr(plan.prefetch):
            following = load_raw(plan, io, first_row + tid // plan.threads_per_row, zero)
        for row0 in cutlass.range(first_row, io.padded_rows, step):
            row = row0 + tid // plan.threads_per_row
            y = None
            r = None
            if cutlass.const_expr(plan.looped):
                r = looped_factor(plan, io, row, eps, sum_slots, tid)
            else:
                raw = following
                if cutlass.const_expr(plan.prefetch):
                    following = load_raw(plan, io, row + step, zero)
                else:
                    raw = load_raw(plan, io, row, zero)
                h = make_h(plan, io, raw, row, zero, write=True)
                sums = [block_square_sum(words, dtype) for words in h]
                slots = sum_slots + Uint32(parity) * Uint32(4 * slot_count)
                r = norm_factor(row_square_sum(plan, sums, tid, slots), n, eps)
                parity = parity ^ 1
                y = normalise(plan, io, h, r, zero)
            outer = given_outer
            if cutlass.const_expr(plan.cast == "token"):
                top = looped_amax(plan, io, row, r) if plan.looped else chunk_amax(plan, y)
                # One set of slots: the barrier of the next row's sum lies between.
                top = row_reduce_max(top, plan, max_slots, zero)
                ptx.store_words(io.amax + Int64(row) * Int64(4), (ptx.bits(top),), (row < io.m) & (io.lane == 0))
                outer = make_outer(top, math)
            elif cutlass.const_expr(plan.cast == "given" and plan.scaling == "token"):
                given = ptx.load_words(io.amax + Int64(row) * Int64(4), 1, row < io.m)[0]
                outer = make_outer(ptx.from_bits(given), math)
            if cutlass.const_expr(plan.looped):
                for first in cutlass.range(0, io.padded_blocks, plan.chunk):
                    found = finish(plan, io, normalised_chunk(plan, io, row, first, r), row, first, outer)
                    largest = ptx.fmax(largest, found)
            else:
                largest = ptx.fmax(largest, finish(plan, io, y, row, zero, outer))
        if cutlass.const_expr(plan.measure and plan.partials):
            store_partials(amax, largest, threads)
        elif cutlass.const_expr(plan.measure):
            top = ptx.warp_umax(ptx.bits(largest))
            ptx.atomic_umax(io.amax, top, cute.arch.lane_idx() == 0)

    @cute.jit
    def rmsnorm(
        x: cute.Tensor,
        residual: cute.Tensor,
        total: cute.Tensor,
        normed: cute.Tensor,
        weight: cute.Tensor,
        codes: cute.Tensor,
        scales: cute.Tensor,
        amax: cute.Tensor,
        random: cute.Tensor,
        eps: Float32,
        ctas: Int32,
        stream: cuda.CUstream,
    ):
        rows = (x.shape[0] + 127) // 128 * 128 if tiled else x.shape[0]
        grid = cutlass.min(ctas, cute.ceil_div(rows, rows_per_cta))
        rmsnorm_kernel(x, residual, total, normed, weight, codes, scales, amax, random, eps).launch(
            grid=[grid, 1, 1],
            block=[threads, 1, 1],
            stream=stream,
            use_pdl=plan.partials and plan.cast != "none",
        )

    m, n, size = cute.sym_int(), cute.sym_int(divisibility=16), BYTES[dtype]

    def matrix(align: int):
        return make_fake_tensor(DTYPES[dtype], (m, n), (cute.sym_int64(), 1), assumed_align=align)

    def flat(kind, align: int):
        return make_fake_tensor(kind, (cute.sym_int(),), (1,), assumed_align=align)

    weight = make_fake_tensor(DTYPES[plan.weight_dtype], (n,), (1,), assumed_align=BYTES[plan.weight_dtype])
    return rmsnorm, (
        *(matrix(size) for _ in range(4)),
        weight,
        flat(cutlass.Uint8, 16),
        flat(cutlass.Uint8, 16),
        flat(Float32, 4),
        make_fake_tensor(cutlass.Int64, (4,), (1,), assumed_align=8),
        Float32(1.0),
        Int32(1),
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
