"""Where the columns of gate and up lie in x (M, 2I), and blocks of the de-interleaved matrix.

    halves          gate j,                 up I + j
    granularity n   gate 2j - j % n,        up n columns further          (n a multiple of 8 that divides I)

De-interleaved, x is (M, 2I) with all gate columns first, then all up columns. Columns are read in pieces that lie
together: 16 columns if n is a multiple of 16, else 8.
"""

from cutefp4.kernels.common import ptx
from cutefp4.kernels.quantize.input_block import BYTES
from cutlass import Int32, Int64, Uint32


def piece_columns(layout: str) -> int:
    """Columns of a block that lie together."""
    return 16 if layout == "halves" or int(layout) % 16 == 0 else 8


def gate_column(j: Int32, layout: str) -> Int32:
    """Column of x that holds gate column j, the first of a piece."""
    if layout == "halves":
        return j
    n = int(layout)
    # Not % for powers of two: it would be that of signed numbers.
    return 2 * j - (j & Int32(n - 1) if n & (n - 1) == 0 else j % n)


def up_distance(width: Int32, layout: str) -> Int32:
    """Columns from a gate column to its up column; `width`: I."""
    return width if layout == "halves" else Int32(int(layout))


def deinterleaved_pieces(row: Int64, block: Int32, blocks: Int32, dtype: str, layout: str) -> list[tuple[Int64, int]]:
    """Where block `block` of a row of the de-interleaved matrix is read: addresses and numbers of columns.

    Args:
        row: address of the row of x.
        blocks: of that row, 2I / 16; odd if the middle block holds 8 gate and 8 up columns.
        layout: the granularity.
    """
    pieces, width, piece = [], blocks * 8, piece_columns(layout)
    for first in range(0, 16, piece):
        j = block * 16 + Int32(first)
        # Column j - I of up: n divides I, so that j % n is the same for both.
        shift = ptx.select(j >= width, Uint32(Int32(int(layout)) - 2 * width), Uint32(0))
        pieces.append((row + Int64(gate_column(j, layout) + Int32(shift)) * Int64(BYTES[dtype]), piece))
    return pieces
