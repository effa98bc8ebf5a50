"""SwiGLU: h = cast(fl(silu(gate) * up)), silu(g) = g / (1 + exp(-g)); as the input of a cast, or written to memory.

Where gate and up of h's column j lie in x (M, 2I): gate_up.py.

exp and the reciprocal are the hardware's approximations: a few fp32 ulps before the one rounding to x's dtype, so a
bf16 h differs from the exactly evaluated one in about one of 10^4 elements, by one ulp.

The kernel of this file writes h (M, I); one thread makes 16 elements of a row at a time. Arguments: x (M, 2I) with any
row stride, h (M, I) contiguous, amax float32 (1,), raised to max |h| if the plan measures it.
"""

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.quantize.gate_up import gate_column, piece_columns, up_distance
from cutefp4.kernels.quantize.input_block import BYTES, DTYPES, block_amax, load_block, pack, unpack
from cutlass import Boolean, Float32, Int32, Int64
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from cutefp4.quant_plan import SwigluPlan

THREADS = 256
_LOG2_E = 1.4426950408889634


def silu(gate: Float32) -> Float32:
    """gate * sigmoid(gate); magnitudes below 1e-36 may become 0."""
    text = (
        "{ .reg .f32 t, e; mul.rn.f32 t, $1, $2; ex2.approx.ftz.f32 e, t; add.rn.f32 e, e, 0f3F800000; "
        "rcp.approx.ftz.f32 e, e; mul.rn.f32 $0, $1, e; }"
    )
    return ptx.asm(text, Float32, gate, Float32(-_LOG2_E))


def load_gated(row: Int64, block: Int32, width: Int32, valid: Boolean, dtype: str, layout: str, vector_bytes: int):
    """Words of block `block` of a row of h.

    Args:
        row: address of the row of x.
        width: I.
        layout: "halves" or the granularity.
        vector_bytes: at most the bytes of 8 elements.
    """
    values, piece = [], piece_columns(layout)
    for first in range(0, 16, piece):
        gate = gate_column(block * 16 + Int32(first), layout)
        pair = []
        for column in (gate, gate + up_distance(width, layout)):
            where = row + Int64(column) * Int64(BYTES[dtype])
            pair.append(unpack(load_block(where, valid, dtype, vector_bytes, count=piece), dtype))
        values += [ptx.mul(silu(g), u) for g, u in zip(*pair, strict=True)]
    return pack(values, dtype)


def build(plan: SwigluPlan):
    """The kernel of a plan, and fake arguments for compiling it."""
    size = BYTES[plan.dtype]

    @cute.kernel
    def swiglu_kernel(x: cute.Tensor, h: cute.Tensor, amax: cute.Tensor):
        m, width = h.shape
        largest = Float32(0.0)
        block = cute.arch.block_idx()[0] * THREADS + cute.arch.thread_idx()[0]
        for row in cutlass.range(cute.arch.block_idx()[1], m, cute.arch.grid_dim()[1]):
            where = ptx.address(x) + Int64(row) * Int64(x.stride[0]) * Int64(size)
            valid = block < width // 16
            words = load_gated(where, block, width, valid, plan.dtype, plan.layout, plan.vector_bytes)
            out = ptx.address(h) + (Int64(row) * Int64(width) + Int64(block) * Int64(16)) * Int64(size)
            for i in cutlass.range_constexpr(0, len(words), 4):
                ptx.store_words(out + Int64(4 * i), tuple(words[i : i + 4]), valid)
            if cutlass.const_expr(plan.measure):
                largest = ptx.fmax(largest, block_amax(words, plan.dtype))
        if cutlass.const_expr(plan.measure):
            top = ptx.warp_umax(ptx.bits(largest))
            ptx.atomic_umax(ptx.address(amax), top, cute.arch.lane_idx() == 0)

    @cute.jit
    def swiglu(x: cute.Tensor, h: cute.Tensor, amax: cute.Tensor, rows_at_once: Int32, stream: cuda.CUstream):
        m, width = h.shape
        grid = [cute.ceil_div(width // 16, THREADS), cutlass.min(m, rows_at_once), 1]
        swiglu_kernel(x, h, amax).launch(grid=grid, block=[THREADS, 1, 1], stream=stream)

    m, dtype = cute.sym_int(), DTYPES[plan.dtype]
    return swiglu, (
        make_fake_tensor(dtype, (m, cute.sym_int()), (cute.sym_int64(), 1), assumed_align=size),
        make_fake_tensor(dtype, (m, cute.sym_int(divisibility=16)), (cute.sym_int64(), 1), assumed_align=16),
        make_fake_tensor(Float32, (cute.sym_int(),), (1,), assumed_align=4),
        Int32(1),
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
