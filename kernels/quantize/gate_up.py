"""Where the columns of gate and up lie in x (M, 2I), and blocks of the de-interleaved matrix.

    halves          gate j,                         up I + j
    granularity n   gate 2n * (j / n) + j % n,      up n columns further          (n a multiple of 8)

De-interleaved, x is (M, 2I) with all gate columns first, then all up columns.
"""

from cutefp4.kernels.common import ptx
from cutefp4.kernels.quantize.input_block import BYTES, load_block
from cutlass import Boolean, Int32, Int64, Uint32


def gate_column(j: Int32, layout: str) -> Int32:
    """Column of x that holds gate column j, and the 7 that follow for j a multiple of 8."""
    if layout == "halves":
        return j
    n = int(layout)
    return j // n * (2 * n) + j % n


def up_distance(width: Int32, layout: str):
    """Columns from a gate column to its up column; `width`: I."""
    return width if layout == "halves" else Int32(int(layout))


def load_deinterleaved(
    row: Int64, block: Int32, blocks: Int32, valid: Boolean, dtype: str, layout: str, vector_bytes: int
) -> list[Uint32]:
    """Words of block `block` of a row of the de-interleaved matrix.

    Args:
        row: address of the row of x.
        blocks: of that row, 2I / 16; odd if the middle block holds 8 gate and 8 up columns.
        layout: the granularity.
        vector_bytes: at most the bytes of 8 elements.
    """
    words, width = [], blocks * 8
    for half in (0, 8):
        j = block * 16 + Int32(half)
        up = j >= width
        inside = j - Int32(ptx.select(up, Uint32(width), Uint32(0)))
        column = gate_column(inside, layout) + Int32(ptx.select(up, Uint32(int(layout)), Uint32(0)))
        where = row + Int64(column) * Int64(BYTES[dtype])
        words += load_block(where, valid, dtype, vector_bytes, count=8)
    return words
