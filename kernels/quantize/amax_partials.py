"""Partial amaxes of a small tensor (M, N): PARTIALS CTAs, each writes the largest magnitude that it saw to a place.

Nothing has to be zero before, and the kernel that casts takes the maximum itself: two launches in all.

Thread t of CTA c takes blocks of 16 elements c * THREADS + t, + PARTIALS * THREADS, ... in row-major order, UNROLL of
them in flight. The cast may start while this kernel runs (programmatic dependent launch); it waits before it reads.

Arguments: x (M, N), N a multiple of 16, with any row stride; amax float32 (1 + PARTIALS,): the tensor's amax, which the
cast writes, and the partial ones.
"""

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.quantize.input_block import BYTES, DTYPES, block_amax, load_block
from cutlass import Float32, Int32, Int64, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from cutefp4.quant_plan import PARTIALS, AmaxPartialsPlan

THREADS = 256
UNROLL = 2


def cta_max(value: Float32, threads: int) -> Float32:
    """The largest value (>= 0) of the threads of a CTA, in all of them."""
    slots = Uint32(cute.arch.alloc_smem(Uint32, 32, alignment=16).toint())
    top = ptx.warp_umax(ptx.bits(value))
    ptx.store_shared(slots + Uint32(cute.arch.warp_idx()) * Uint32(4), (top,))
    cute.arch.sync_threads()
    lane = ptx.umin(Uint32(cute.arch.lane_idx()), Uint32(threads // 32 - 1))
    return ptx.from_bits(ptx.warp_umax(ptx.load_shared(slots + lane * Uint32(4), 1)[0]))


def collect(amax: cute.Tensor, threads: int) -> Float32:
    """The maximum of the partial amaxes, in all threads; waits for the kernel that writes them. CTA 0 stores it."""
    cute.arch.griddepcontrol_wait()
    tid, top = cute.arch.thread_idx()[0], Float32(0.0)
    for first in range(0, PARTIALS, threads):
        index = ptx.umin(Uint32(tid + Int32(first)), Uint32(PARTIALS - 1))
        # Not read-only for this kernel: the other one may still have been running when it began.
        top = ptx.fmax(top, ptx.from_bits(ptx.load_changing(ptx.address(amax) + Int64(index + Uint32(1)) * Int64(4))))
    top = cta_max(top, threads)
    first_thread = (tid == 0) & (cute.arch.block_idx()[0] == 0)
    ptx.store_words(ptx.address(amax), (ptx.bits(top),), first_thread)
    return top


@cute.jit
def store_partials(amax: cute.Tensor, value: Float32, threads: cutlass.Constexpr):
    """Write the maximum of a CTA; a grid of fewer CTAs than PARTIALS fills the other places, too."""
    top, tid = cta_max(value, threads), cute.arch.thread_idx()[0]
    for place in cutlass.range(cute.arch.block_idx()[0], PARTIALS, cute.arch.grid_dim()[0]):
        ptx.store_words(ptx.address(amax) + Int64(place + 1) * Int64(4), (ptx.bits(top),), tid == 0)


def build(plan: AmaxPartialsPlan):
    """The kernel of a plan, and fake arguments for compiling it."""
    size = BYTES[plan.dtype]

    @cute.kernel
    def amax_partials_kernel(x: cute.Tensor, amax: cute.Tensor):
        cute.arch.griddepcontrol_launch_dependents()
        m, n = x.shape
        across = n // 16
        blocks, stride = m * across, Int64(x.stride[0]) * Int64(size)
        cta, tid = cute.arch.block_idx()[0], cute.arch.thread_idx()[0]
        top = Float32(0.0)
        for first in cutlass.range(cta * THREADS + tid, blocks, UNROLL * PARTIALS * THREADS):
            loaded = []
            for i in cutlass.range_constexpr(UNROLL):
                block = first + Int32(i * PARTIALS * THREADS)
                row = block // across
                where = ptx.address(x) + Int64(row) * stride + Int64(block - row * across) * Int64(16 * size)
                loaded.append(load_block(where, block < blocks, plan.dtype, plan.vector_bytes))
            for words in loaded:
                top = ptx.fmax(top, block_amax(words, plan.dtype))
        store_partials(amax, top, THREADS)

    @cute.jit
    def amax_partials(x: cute.Tensor, amax: cute.Tensor, stream: cuda.CUstream):
        amax_partials_kernel(x, amax).launch(grid=[PARTIALS, 1, 1], block=[THREADS, 1, 1], stream=stream)

    n = cute.sym_int(divisibility=16)
    return amax_partials, (
        make_fake_tensor(DTYPES[plan.dtype], (cute.sym_int(), n), (cute.sym_int64(), 1), assumed_align=size),
        make_fake_tensor(Float32, (cute.sym_int(),), (1,), assumed_align=4),
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
