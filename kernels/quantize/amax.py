"""Outer amaxes of (M, N) in one read: of the tensor, of every row, of every column, or any of these together.

    amax = max |x| as fp32, NaN ignored

A CTA of 8 warps covers a strip: 32 blocks of 16 columns across (one block a lane), warp w the rows w, w + 8, ... of
its share of rows. Column maxima stay packed in registers while a thread walks down (one instruction for two
elements), and are combined in shared memory at the end; a row's maximum is one REDUX over its warp. The results are
raised in global memory with atomic maxima of the bits of non-negative floats, so the outputs must be zero before the
launch; the order of the atomics does not matter.

Grouped: rows are split at device-resident end offsets, and tensor and column maxima are per group. A CTA's share of
rows is the same; it hands in its maxima wherever a group ends. (By tiles of 128 rows of one group it took 8 % longer.)
It may start while the map of the groups is made and amaxes are cleared (programmatic dependent launch).

Arguments: x (M, N) with any row stride; tensor amax (1,) or (E,), row amax (M,), column amax (N,) or (E * N,)
float32, of which unwanted ones are never touched; offs int32; rows_per_cta.
"""

from dataclasses import dataclass

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.quantize.input_block import (
    BYTES,
    DTYPES,
    block_amax,
    load_block,
    lower_bits,
    max_words,
    upper_bits,
    words_per_block,
)
from cutlass import Boolean, Float32, Int32, Int64, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from cutefp4.quant_plan import AmaxPlan

THREADS = 256
WARPS = THREADS // 32
STRIP_COLUMNS = 512
UNROLL = 4


@cute.jit
def group_of(row: Int32, offs: cute.Tensor) -> Int32:
    """The group that holds a row, given the end offsets `offs`; as many as there are if none does.

    Every thread of a warp must call it.
    """
    groups, before = offs.shape[0], Int32(0)
    for base in cutlass.range(0, groups, 32):
        g = base + Int32(cute.arch.lane_idx())
        ended = False
        if g < groups:
            ended = offs[g] <= row
        before += Int32(cute.arch.popc(cute.arch.vote_ballot_sync(ended)))
    return before


@dataclass(frozen=True)
class StripIo:
    """Addresses of one launch, and this thread's place in it."""

    x: Int64
    x_stride: Int64
    n: Int32
    first_column: Int32
    column: Int32
    tensor_amax: Int64
    row_amax: Int64
    column_amax: Int64


def load_row(plan: AmaxPlan, io: StripIo, row: Int32, valid: Boolean) -> list[Uint32]:
    """This thread's block of a row, zeros outside the matrix."""
    where = io.x + Int64(row) * io.x_stride + Int64(io.column) * Int64(BYTES[plan.dtype])
    remaining = io.n - io.column if plan.partial_columns else None
    return load_block(where, valid & (io.column < io.n), plan.dtype, plan.vector_bytes, remaining)


def add_row_amax(plan: AmaxPlan, io: StripIo, words: list[Uint32], row: Int32, valid: Boolean) -> None:
    """Raise the amax of a row by what this warp sees of it."""
    top = ptx.warp_umax(ptx.bits(block_amax(words, plan.dtype)))
    ptx.atomic_umax(io.row_amax + Int64(row) * Int64(4), top, valid & (cute.arch.lane_idx() == 0))


def column_bits(plan: AmaxPlan, word: Uint32) -> list[Uint32]:
    """Bits of the fp32 magnitudes in a running maximum."""
    if plan.dtype == "float32":
        return [word]
    return [lower_bits(word, plan.dtype), upper_bits(word, plan.dtype)]


@cute.jit
def combine_columns(plan: cutlass.Constexpr, slots: Uint32, tops: cutlass.Constexpr):
    """Maximum over the warps of a CTA: every thread raises the slots of its 16 columns.

    A thread reads and clears the same two slots (`raise_columns`), so that nothing has to wait before the next time.
    """
    tid = cute.arch.thread_idx()[0]
    for i in cutlass.range_constexpr(2):
        ptx.store_shared(slots + Uint32(tid + i * THREADS) * Uint32(4), (Uint32(0),))
    cute.arch.sync_threads()
    values = [v for word in tops for v in column_bits(plan, word)]
    for i in cutlass.range_constexpr(16):
        # Slot i * 32 + lane: lanes hit different banks.
        ptx.shared_umax(slots + Uint32(tid % 32 + i * 32) * Uint32(4), values[i])
    cute.arch.sync_threads()


@cute.jit
def raise_columns(plan: cutlass.Constexpr, io: cutlass.Constexpr, slots: Uint32, tops: cutlass.Constexpr, group: Int32):
    """Raise the column amaxes of a group by this CTA's."""
    combine_columns(plan, slots, tops)
    tid = cute.arch.thread_idx()[0]
    for i in cutlass.range_constexpr(2):
        slot = tid + i * THREADS
        value = ptx.load_shared(slots + Uint32(slot) * Uint32(4), 1)[0]
        column = io.first_column + slot % 32 * 16 + slot // 32
        where = io.column_amax + (Int64(group) * Int64(io.n) + Int64(column)) * Int64(4)
        ptx.atomic_umax(where, value, column < io.n)


@cute.jit
def measure_rows(plan: cutlass.Constexpr, io: cutlass.Constexpr, slots: Uint32, begin: Int32, end: Int32, group: Int32):
    """Raise all amaxes by the rows from `begin` to below `end`, which belong to one group."""
    tops = [Uint32(0) for _ in range(words_per_block(plan.dtype))]
    for first in cutlass.range(begin + cute.arch.thread_idx()[0] // 32, end, WARPS * UNROLL):
        loaded = []
        for i in cutlass.range_constexpr(UNROLL):
            row = first + i * WARPS
            loaded.append(load_row(plan, io, row, row < end))
        if cutlass.const_expr(plan.grouped):
            # The kernel that clears the amaxes (group_map.py) may still run; loads need not wait for it.
            cute.arch.griddepcontrol_wait()
        for i in cutlass.range_constexpr(UNROLL):
            row = first + i * WARPS
            if cutlass.const_expr(plan.rows):
                add_row_amax(plan, io, loaded[i], row, row < end)
            if cutlass.const_expr(plan.tensor or plan.columns):
                tops = [max_words(a, b, plan.dtype) for a, b in zip(tops, loaded[i], strict=True)]
    if cutlass.const_expr(plan.tensor):
        top = ptx.warp_umax(ptx.bits(block_amax(tops, plan.dtype)))
        ptx.atomic_umax(io.tensor_amax + Int64(group) * Int64(4), top, cute.arch.lane_idx() == 0)
    if cutlass.const_expr(plan.columns):
        raise_columns(plan, io, slots, tops, group)


def build(plan: AmaxPlan):
    """The kernel of a plan, and fake arguments for compiling it."""

    @cute.kernel
    def amax_kernel(
        x: cute.Tensor,
        tensor_amax: cute.Tensor,
        row_amax: cute.Tensor,
        column_amax: cute.Tensor,
        offs: cute.Tensor,
        rows_per_cta: Int32,
    ):
        m, n = x.shape
        strip, part, _ = cute.arch.block_idx()
        tid = cute.arch.thread_idx()[0]
        first_column = strip * STRIP_COLUMNS
        begin, end = part * rows_per_cta, cutlass.min(m, (part + 1) * rows_per_cta)
        io = StripIo(
            x=ptx.address(x),
            x_stride=Int64(x.stride[0]) * Int64(BYTES[plan.dtype]),
            n=n,
            first_column=first_column,
            column=first_column + tid % 32 * 16,
            tensor_amax=ptx.address(tensor_amax),
            row_amax=ptx.address(row_amax),
            column_amax=ptx.address(column_amax),
        )
        slots = Uint32(cute.arch.alloc_smem(Uint32, STRIP_COLUMNS, alignment=16).toint())
        if cutlass.const_expr(plan.grouped):
            group, groups = group_of(begin, offs), offs.shape[0]
            while group < groups and begin < end:
                group_end = cutlass.min(end, offs[group])
                if begin < group_end:
                    measure_rows(plan, io, slots, begin, group_end, group)
                    begin = group_end
                group += 1
            # Whoever waits for this kernel waits for the one before, too, even if no CTA had rows.
            cute.arch.griddepcontrol_wait()
        else:
            measure_rows(plan, io, slots, begin, end, Int32(0))

    @cute.jit
    def amax(
        x: cute.Tensor,
        tensor_amax: cute.Tensor,
        row_amax: cute.Tensor,
        column_amax: cute.Tensor,
        offs: cute.Tensor,
        rows_per_cta: Int32,
        stream: cuda.CUstream,
    ):
        m, n = x.shape
        grid = [cute.ceil_div(n, STRIP_COLUMNS), cute.ceil_div(m, rows_per_cta), 1]
        amax_kernel(x, tensor_amax, row_amax, column_amax, offs, rows_per_cta).launch(
            grid=grid, block=[THREADS, 1, 1], stream=stream, use_pdl=plan.grouped
        )

    def flat(dtype):
        return make_fake_tensor(dtype, (cute.sym_int(),), (1,), assumed_align=4)

    x = make_fake_tensor(
        DTYPES[plan.dtype], (cute.sym_int(), cute.sym_int()), (cute.sym_int64(), 1), assumed_align=BYTES[plan.dtype]
    )
    outputs = (flat(Float32), flat(Float32), flat(Float32))
    return amax, (x, *outputs, flat(Int32), Int32(1), make_fake_stream(use_tvm_ffi_env_stream=True))
