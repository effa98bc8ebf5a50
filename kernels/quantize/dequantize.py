"""Codes and scales of (rows, k) back to values.

    value = fl(q * fl(s * fl(A / NUM))) in fp32, rounded once to the output dtype

One thread decodes a block of 16 elements: 8 bytes of codes, one scale byte, 32 or 64 bytes of values; neighbouring
threads handle neighbouring blocks of a row. q comes from the code's bits: code << 22, read as an fp32 (sub)normal, is
|q| * 2^-126, and multiplying by 2^126 is exact.

Arguments: codes (rows * k / 2,), scales uint8 flat in the operand's layout, amax float32 (1,) or (rows,), out (rows, k)
contiguous, rows, k.
"""

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.e4m3_encode import scale_value
from cutefp4.kernels.common.scale_layout import column_offset, row_offset
from cutefp4.kernels.quantize.input_block import BYTES, DTYPES, pack
from cutlass import Boolean, Float32, Int32, Int64, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from cutefp4.format import numerator
from cutefp4.quant_plan import DequantizePlan

THREADS = 256


def decode(word: Uint32, i: int) -> Float32:
    """Value of code i of a word."""
    shift = 4 * i
    magnitude = (word >> Uint32(shift) & Uint32(7)) << Uint32(22)
    sign = word << Uint32(28 - shift) & Uint32(0x80000000)
    return ptx.mul(ptx.from_bits(magnitude | sign), Float32(2.0**126))


def store_values(where: Int64, values: list[Float32], dtype: str, valid: Boolean) -> None:
    """16 values, rounded once, to a 32- or 64-byte aligned address."""
    words = pack(values, dtype)
    for i in range(0, len(words), 4):
        ptx.store_words(where + Int64(4 * i), tuple(words[i : i + 4]), valid)


def build(plan: DequantizePlan):
    """The kernel of a plan, and fake arguments for compiling it."""

    @cute.kernel
    def dequantize_kernel(
        codes: cute.Tensor, scales: cute.Tensor, amax: cute.Tensor, out: cute.Tensor, rows: Int32, k: Int32
    ):
        columns = k // 16
        across, down, _ = cute.arch.block_idx()
        block = across * THREADS + cute.arch.thread_idx()[0]
        row_step = cute.arch.grid_dim()[1]
        for row in cutlass.range(down, rows, row_step):
            valid = block < columns
            index = Int64(row) * Int64(columns) + Int64(block)
            words = ptx.load_words(ptx.address(codes) + index * Int64(8), 2, valid)
            layout = plan.scale_layout
            where = ptx.address(scales) + row_offset(row, columns, layout) + Int64(column_offset(block, layout))
            scale = scale_value(ptx.load_byte(where, valid))
            outer = ptx.from_bits(
                ptx.load_words(
                    ptx.address(amax) + Int64(row if plan.scaling == "token" else Int32(0)) * Int64(4), 1, valid
                )[0]
            )
            factor = ptx.mul(scale, ptx.div(outer, Float32(numerator(plan.e4m3_max))))
            values = [ptx.mul(decode(word, i), factor) for word in words for i in range(8)]
            store_values(ptx.address(out) + index * Int64(16 * BYTES[plan.dtype]), values, plan.dtype, valid)

    @cute.jit
    def dequantize(
        codes: cute.Tensor,
        scales: cute.Tensor,
        amax: cute.Tensor,
        out: cute.Tensor,
        rows: Int32,
        k: Int32,
        stream: cuda.CUstream,
    ):
        grid = [cute.ceil_div(k // 16, THREADS), cutlass.min(rows, 65535), 1]
        dequantize_kernel(codes, scales, amax, out, rows, k).launch(grid=grid, block=[THREADS, 1, 1], stream=stream)

    def flat(dtype, align):
        return make_fake_tensor(dtype, (cute.sym_int64(),), (1,), assumed_align=align)

    return dequantize, (
        flat(cutlass.Uint8, 16),
        flat(cutlass.Uint8, 1),
        flat(Float32, 4),
        flat(DTYPES[plan.dtype], 16),
        Int32(0),
        Int32(16),
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
