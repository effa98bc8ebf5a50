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

from dataclasses import dataclass

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.philox import key_schedule
from cutefp4.kernels.quantize.amax_partials import collect, store_partials
from cutefp4.kernels.quantize.block_encode import make_outer
from cutefp4.kernels.quantize.cast_rows import chunk_amax, encode_chunk, row_reduce_max
from cutefp4.kernels.quantize.input_block import BYTES, DTYPES, load_block, pack, unpack
from cutefp4.kernels.quantize.square_sum import (
    MAX_CHUNKS,
    block_square_sum,
    row_square_sum,
    store_chunk_sums,
    sum_of_many_slots,
)
from cutlass import Float32, Int32, Int64, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from cutefp4.quant_plan import RmsnormPlan, rounds_on_grid


@dataclass(frozen=True)
class Matrix:
    """A row-major matrix: address and bytes between rows."""

    base: Int64
    stride: Int64

    @classmethod
    def of(cls, tensor, dtype: str):
        return cls(ptx.address(tensor), Int64(tensor.stride[0]) * Int64(BYTES[dtype]))

    def block(self, row: Int32, b: Int32, dtype: str) -> Int64:
        """Address of block b of a row."""
        return self.base + Int64(row) * self.stride + Int64(b) * Int64(16 * BYTES[dtype])


@dataclass(frozen=True)
class NormIo:
    """Addresses and sizes of one launch, and the block of a row that this thread begins with (see cast_rows.RowsIo)."""

    x: Matrix
    residual: Matrix
    sum: Matrix
    normed: Matrix
    weight: Int64
    kept: Uint32
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


def block_of(plan: RmsnormPlan, io: NormIo, first: Int32, j: int) -> Int32:
    """Number of this thread's block j in the chunk of a row that begins at block `first`."""
    return first + io.lane + Int32(j * plan.threads_per_row)


def store_block(where: Int64, words: list[Uint32], valid) -> None:
    """A block to memory that is aligned to 16 bytes."""
    for i in range(0, len(words), 4):
        ptx.store_words(where + Int64(4 * i), tuple(words[i : i + 4]), valid)


def load_raw(plan: RmsnormPlan, io: NormIo, row: Int32, first: Int32) -> list:
    """This thread's blocks of x and, behind them, of the residual; zeros behind a row.

    Rows behind the matrix are its last one again, which nothing is made of, so that exact rows need no predicate.
    """
    loaded, row = [], cutlass.min(row, io.m - 1)
    for source in (io.x, io.residual)[: 1 + plan.residual]:
        for j in range(plan.blocks_per_thread):
            b = block_of(plan, io, first, j)
            valid = True if plan.exact else b < io.blocks
            loaded.append(load_block(source.block(row, b, plan.dtype), valid, plan.dtype, plan.vector_bytes))
    return loaded


def add_words(a: Uint32, b: Uint32, dtype: str) -> Uint32:
    """Sum of packed elements, rounded once to the dtype.

    For 16-bit types the sum in fp32 and its rounding give the same: 24 bits are enough for two roundings to be one.
    """
    if dtype == "float32":
        return ptx.bits(ptx.add(ptx.from_bits(a), ptx.from_bits(b)))
    return ptx.add_16x2(a, b, {"bfloat16": "bf16", "float16": "f16"}[dtype])


def make_h(plan: RmsnormPlan, io: NormIo, raw: list, row: Int32, first: Int32, write: bool) -> list:
    """h of this thread's blocks, written if it is a sum that is wanted."""
    count = plan.blocks_per_thread
    if not plan.residual:
        return raw
    h = [
        [add_words(a, b, plan.dtype) for a, b in zip(x, y, strict=True)]
        for x, y in zip(raw[:count], raw[count:], strict=True)
    ]
    if write and plan.write_sum:
        for j, words in enumerate(h):
            b = block_of(plan, io, first, j)
            store_block(io.sum.block(row, b, plan.dtype), words, (row < io.m) & (b < io.blocks))
    return h


def norm_factor(total: Float32, columns: Int32, eps: Float32) -> Float32:
    """r of a sum of squares."""
    mean = ptx.div(total, Float32(columns))
    return ptx.reciprocal(ptx.sqrt(ptx.add(mean, eps)))


def load_weight(plan: RmsnormPlan, io: NormIo, first: Int32, j: int) -> list[Float32]:
    """The weights of block j."""
    b = block_of(plan, io, first, j)
    where = io.weight + Int64(b) * Int64(16 * BYTES[plan.weight_dtype])
    valid = True if plan.exact else b < io.blocks
    return unpack(load_block(where, valid, plan.weight_dtype, plan.weight_vector_bytes), plan.weight_dtype)


def _weight_slot(plan: RmsnormPlan, io: NormIo, j: int, i: int) -> Uint32:
    """Where this thread keeps weights 4 i to 4 i + 3 of its block j: neighbouring threads side by side."""
    return io.kept + (Uint32(cute.arch.thread_idx()[0]) + Uint32((4 * j + i) * plan.threads)) * Uint32(16)


def keep_weights(plan: RmsnormPlan, io: NormIo) -> None:
    """Put this thread's weights into shared memory as fp32, where no other thread looks."""
    for j in range(plan.blocks_per_thread):
        weight = load_weight(plan, io, Int32(0), j)
        for i in range(4):
            ptx.store_shared(_weight_slot(plan, io, j, i), tuple(ptx.bits(w) for w in weight[4 * i : 4 * i + 4]))


def kept_weight(plan: RmsnormPlan, io: NormIo, j: int) -> list[Float32]:
    return [ptx.from_bits(w) for i in range(4) for w in ptx.load_shared(_weight_slot(plan, io, j, i), 4)]


def normalise(plan: RmsnormPlan, io: NormIo, h: list, r: Float32, first: Int32) -> list:
    """y of this thread's blocks, rounded to the dtype and packed."""
    normed = []
    for j, words in enumerate(h):
        weight = kept_weight(plan, io, j) if plan.keeps_weight else load_weight(plan, io, first, j)
        values = [ptx.mul(ptx.mul(v, r), w) for v, w in zip(unpack(words, plan.dtype), weight, strict=True)]
        normed.append(pack(values, plan.dtype))
    return normed


def write_normed(plan: RmsnormPlan, io: NormIo, y: list, row: Int32, first: Int32) -> None:
    for j, words in enumerate(y):
        b = block_of(plan, io, first, j)
        store_block(io.normed.block(row, b, plan.dtype), words, (row < io.m) & (b < io.blocks))


@cute.jit
def looped_factor(plan: cutlass.Constexpr, io: cutlass.Constexpr, row: Int32, eps: Float32, slots: Uint32, tid: Int32):
    """r of a row that is walked in chunks; writes the sum on the way."""
    # The slots of the row before are read until all threads are here.
    cute.arch.sync_threads()
    for first in cutlass.range(0, io.blocks, plan.chunk):
        h = make_h(plan, io, load_raw(plan, io, row, first), row, first, write=True)
        sums = [block_square_sum(words, plan.dtype) for words in h]
        store_chunk_sums(sums, plan.threads_per_row, first // 32 + tid // 32, slots)
    cute.arch.sync_threads()
    chunks = (io.blocks + plan.chunk - 1) // plan.chunk * (plan.chunk // 32)
    return norm_factor(sum_of_many_slots(slots, chunks), io.blocks * 16, eps)


def normalised_chunk(plan: RmsnormPlan, io: NormIo, row: Int32, first: Int32, r: Float32) -> list:
    """y of this thread's blocks of a chunk, read again."""
    h = make_h(plan, io, load_raw(plan, io, row, first), row, first, write=False)
    return normalise(plan, io, h, r, first)


@cute.jit
def looped_amax(plan: cutlass.Constexpr, io: cutlass.Constexpr, row: Int32, r: Float32):
    """max |y| of this thread's blocks of a row."""
    top = Float32(0.0)
    for first in cutlass.range(0, io.blocks, plan.chunk):
        top = ptx.fmax(top, chunk_amax(plan, normalised_chunk(plan, io, row, first, r)))
    return top


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
