"""From h to the normalised row: the factor of a row, the weights, and rows that are walked in chunks.

r = fl(1 / fl(sqrt(fl(fl(s / N) + eps))));   y = cast(fl(fl(h * r) * weight))
"""

import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.quantize.cast_rows import block_of, chunk_amax
from cutefp4.kernels.quantize.input_block import BYTES, load_block, pack, unpack
from cutefp4.kernels.quantize.rmsnorm_rows import NormIo, load_raw, make_h
from cutefp4.kernels.quantize.square_sum import block_square_sum, store_chunk_sums, sum_of_many_slots
from cutlass import Float32, Int32, Int64, Uint32

from cutefp4.quant_plan import RmsnormPlan


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
