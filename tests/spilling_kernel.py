"""A kernel with 4 KiB of shared memory and, if its plan says so, local memory: for the compile report's tests."""

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutlass import Float32
from cutlass.cute.runtime import make_fake_compact_tensor, make_fake_stream
from cutlass.memory import SmemAllocator


def build(plan):
    """`plan.unused` = 1 indexes a register array at run time, which puts it into local memory."""
    local = plan.unused == 1

    @cute.kernel
    def mix_kernel(x: cute.Tensor, y: cute.Tensor):
        tile = SmemAllocator().allocate_tensor(Float32, cute.make_layout(1024), byte_alignment=16)
        thread = cute.arch.thread_idx()[0]
        values = cute.make_rmem_tensor(200, Float32)
        for i in cutlass.range_constexpr(200):
            values[i] = x[thread + 128 * i]
        tile[thread] = values[0]
        cute.arch.sync_threads()
        first = thread if cutlass.const_expr(local) else 1
        y[thread] = tile[127 - thread] + values[first]

    @cute.jit
    def mix(x: cute.Tensor, y: cute.Tensor, stream: cuda.CUstream):
        mix_kernel(x, y).launch(grid=[1, 1, 1], block=[128, 1, 1], stream=stream)

    n = cute.sym_int()
    x, y = (make_fake_compact_tensor(Float32, (n,), assumed_align=16) for _ in range(2))
    return mix, (x, y, make_fake_stream(use_tvm_ffi_env_stream=True))
