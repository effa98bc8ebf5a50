"""Outer amaxes of the Hadamard-transformed columnwise copy of (M, N), and of x itself, in one read.

    y[:, c] = RHT of 16 consecutive rows of column c;   amax = max |y| of the tensor or of every column, NaN ignored

A thread reads 16 rows of two neighbouring columns (one 32-bit word a row; one column of fp32 data), transforms each
column in registers and keeps running maxima while it walks down 16 rows at a time. A warp covers 32 words of a row, a
CTA of 8 warps 256 words. The amax of x comes from the same registers: of the tensor as a packed running maximum, of
the rows by one REDUX per row and warp. Results are raised with atomic maxima, so the outputs must be zero before the
launch.

Arguments: x (M, N), M a multiple of 16 unless grouped (groups are padded with zeros to 64); transformed amax (1,),
(E,), (N,) or (E * N,); raw amax (1,), (E,) or (M,); places: map of the tiles, if grouped (group_map.py); mask: signs;
rows_per_cta, a multiple of 16 (not grouped).
"""

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.hadamard16 import sign_factors, transform
from cutefp4.kernels.quantize.input_block import BYTES, DTYPES, max_words, to_float, unpack, values_amax
from cutefp4.kernels.quantize.tile_map import in_groups
from cutlass import Boolean, Float32, Int32, Int64, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from cutefp4.quant_plan import MAP_WORDS, HadamardAmaxPlan

THREADS = 256


def columns_per_thread(plan: HadamardAmaxPlan) -> int:
    return 2 if plan.paired and plan.dtype != "float32" else 1


def load_rows(
    plan: HadamardAmaxPlan, x: Int64, stride: Int64, first: Int32, end: Int32, inside: Boolean
) -> list[Uint32]:
    """One word from each of 16 rows, zeros outside."""
    words = []
    for r in range(16):
        row = first + Int32(r)
        where, valid = x + Int64(row) * stride, inside & (row < end)
        if columns_per_thread(plan) == 2 or plan.dtype == "float32":
            words.append(ptx.load_words(where, 1, valid)[0])
        else:
            words.append(ptx.load_half(where, valid))
    return words


def columns_of(plan: HadamardAmaxPlan, words: list[Uint32]) -> list[list[Float32]]:
    """The 16 values of each column of this thread."""
    values = unpack(words, plan.dtype)
    if plan.dtype == "float32":
        return [values]
    return [values[i::2] for i in range(columns_per_thread(plan))]


def word_amax(plan: HadamardAmaxPlan, word: Uint32) -> Uint32:
    """Bits of max |element| of one word."""
    if plan.dtype == "float32":
        return ptx.bits(values_amax([ptx.from_bits(word)]))
    return ptx.bits(values_amax([to_float(word, half, plan.dtype) for half in (0, 1)]))


def raise_rows(plan: HadamardAmaxPlan, words: list[Uint32], raw: Int64, first: Int32, end: Int32) -> None:
    """Raise the amaxes of 16 rows by what this warp sees: lane r keeps the maximum of row r."""
    lane = cute.arch.lane_idx()
    mine = Uint32(0)
    for r, word in enumerate(words):
        mine = ptx.select(lane == r, ptx.warp_umax(word_amax(plan, word)), mine)
    ptx.atomic_umax(raw + Int64(first + lane) * Int64(4), mine, (lane < 16) & (first + lane < end))


def build(plan: HadamardAmaxPlan):
    """The kernel of a plan, and fake arguments for compiling it."""
    per_thread = columns_per_thread(plan)
    size = BYTES[plan.dtype]

    @cute.kernel
    def amax_hadamard_kernel(
        x: cute.Tensor,
        transformed: cute.Tensor,
        raw: cute.Tensor,
        places: cute.Tensor,
        mask: Int32,
        rows_per_cta: Int32,
    ):
        m, n = x.shape
        strip, part, _ = cute.arch.block_idx()
        tid = cute.arch.thread_idx()[0]
        column = (strip * THREADS + tid) * per_thread
        inside = column < n
        group, begin, end = Int32(0), part * rows_per_cta, cutlass.min(m, (part + 1) * rows_per_cta)
        if cutlass.const_expr(plan.grouped):
            rows, _ = in_groups(part, places)
            group = rows.group
            begin, end = Int32(0), Int32(0)
            if rows.exists:
                begin = rows.begin + rows.local
                end = cutlass.min(rows.begin + rows.rows, begin + 128)
        factors = sign_factors(Uint32(mask), plan.dtype)
        stride = Int64(x.stride[0]) * Int64(size)
        base = ptx.address(x) + Int64(column) * Int64(size)
        tops = [Float32(0.0) for _ in range(per_thread)]
        raw_top = Uint32(0)
        for first in cutlass.range(begin, end, 16):
            words = load_rows(plan, base, stride, first, end, inside)
            if cutlass.const_expr(plan.raw == "rows"):
                raise_rows(plan, words, ptx.address(raw), first, end)
            if cutlass.const_expr(plan.raw == "tensor"):
                for i in cutlass.range_constexpr(16):
                    raw_top = max_words(raw_top, words[i], plan.dtype)
            columns = columns_of(plan, words)
            for i in cutlass.range_constexpr(per_thread):
                values = transform(columns[i], factors, plan.rht, plan.dtype)
                tops[i] = ptx.fmax(tops[i], values_amax(values))
        exists = (begin < end) & inside
        if cutlass.const_expr(plan.transformed == "columns"):
            for i in cutlass.range_constexpr(per_thread):
                where = ptx.address(transformed) + (Int64(group) * Int64(n) + Int64(column + i)) * Int64(4)
                ptx.atomic_umax(where, ptx.bits(tops[i]), exists)
        else:
            top = tops[0]
            for i in cutlass.range_constexpr(1, per_thread):
                top = ptx.fmax(top, tops[i])
            where = ptx.address(transformed) + Int64(group) * Int64(4)
            ptx.atomic_umax(where, ptx.warp_umax(ptx.bits(top)), (begin < end) & (tid % 32 == 0))
        if cutlass.const_expr(plan.raw == "tensor"):
            where = ptx.address(raw) + Int64(group) * Int64(4)
            ptx.atomic_umax(where, ptx.warp_umax(word_amax(plan, raw_top)), (begin < end) & (tid % 32 == 0))

    @cute.jit
    def amax_hadamard(
        x: cute.Tensor,
        transformed: cute.Tensor,
        raw: cute.Tensor,
        places: cute.Tensor,
        mask: Int32,
        rows_per_cta: Int32,
        stream: cuda.CUstream,
    ):
        m, n = x.shape
        parts = places.shape[0] if plan.grouped else cute.ceil_div(m, rows_per_cta)
        amax_hadamard_kernel(x, transformed, raw, places, mask, rows_per_cta).launch(
            grid=[cute.ceil_div(n, THREADS * per_thread), parts, 1], block=[THREADS, 1, 1], stream=stream
        )

    def flat(dtype):
        return make_fake_tensor(dtype, (cute.sym_int(),), (1,), assumed_align=4)

    x = make_fake_tensor(
        DTYPES[plan.dtype], (cute.sym_int(), cute.sym_int()), (cute.sym_int64(), 1), assumed_align=size
    )
    return amax_hadamard, (
        x,
        flat(Float32),
        flat(Float32),
        make_fake_tensor(Int32, (cute.sym_int(), MAP_WORDS), (MAP_WORDS, 1), assumed_align=16),
        Int32(0),
        Int32(16),
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
