"""Where block scales lie in memory, on the device; the layouts are described in cutefp4/scale_layout.py.

    tiled:  offset(r, c) = ((r / 128) * ceil(C / 4) + c / 4) * 512 + (r % 32) * 16 + (r % 128) / 32 * 4 + c % 4

The offset is a sum of a part of r and a part of c, which kernels compute once each.
"""

from cutlass import Int32, Int64, Uint32


def row_offset(row: Int32, columns: Int32, layout: str) -> Int64:
    """Byte offset of scale (row, 0) in a matrix of `columns` scale columns."""
    if layout == "compact":
        return Int64(row) * Int64(columns)
    r = Uint32(row)
    tiles = Int64(row // 128) * Int64((columns + 3) // 4)
    inside = (r & Uint32(31)) * Uint32(16) + ((r >> Uint32(5)) & Uint32(3)) * Uint32(4)
    return tiles * Int64(512) + Int64(inside)


def column_offset(column: Int32, layout: str) -> Int32:
    """Byte offset of column `column` from column 0 in the same row."""
    if layout == "compact":
        return column
    return column // 4 * 512 + column % 4
