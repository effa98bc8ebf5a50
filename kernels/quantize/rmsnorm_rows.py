"""What a row of RMSNorm is read from and written to: x, the residual, their sum h, the normalised row."""

from dataclasses import dataclass

import cutlass
from cutefp4.kernels.common import ptx
from cutefp4.kernels.quantize.cast_rows import block_of
from cutefp4.kernels.quantize.input_block import BYTES, load_block
from cutlass import Int32, Int64, Uint32

from cutefp4.quant_plan import RmsnormPlan


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


def write_normed(plan: RmsnormPlan, io: NormIo, y: list, row: Int32, first: Int32) -> None:
    for j, words in enumerate(y):
        b = block_of(plan, io, first, j)
        store_block(io.normed.block(row, b, plan.dtype), words, (row < io.m) & (b < io.blocks))
