"""Where the E4M3 block scales of a (rows, K) matrix lie in memory.

`compact`: row-major (rows, K/16) bytes, no padding.

`tiled`: the 128x4 tiles that the block-scaled tensor cores read. Rows are padded to 128 and scale columns to 4 with
zero bytes; with C = K/16 columns, the byte of (r, c) lies at

    tile   = (r // 128) * ceil(C / 4) + c // 4
    offset = tile * 512 + (r % 32) * 16 + ((r % 128) // 32) * 4 + c % 4

    one tile, 512 bytes:   row  0: c0 c1 c2 c3 | row 32: c0 c1 c2 c3 | row 64: ... | row 96: ...     16 bytes
                           row  1: ...                                                               16 bytes
                           ...  row 31                                      (a warp reads 4 scales of 32 rows at once)

A tiled tensor is kept in the shape (padded rows, padded columns), so that its size tells its padding; its bytes are in
tile order. Padding must be zero: a NaN byte there would poison a whole tile in the tensor core.

Grouped matrices (one per expert, sizes known on the device alone):

* groups along the rows (rowwise copy): in the tiled layout each group starts at a row that is a multiple of 128;
* groups along K (columnwise copy): each group starts at a multiple of 64 elements, in the codes too, and the tile order
  restarts in each group, so that a group is a complete tiled matrix of its own.
"""

from __future__ import annotations

import torch

from cutefp4.format import BLOCK

LAYOUTS = ("tiled", "compact")
TILE_ROWS = 128
TILE_COLS = 4
TILE_K = TILE_COLS * BLOCK
"""Elements along K that one scale tile covers; groups along K are padded to it."""


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is >= n."""
    return -(-n // multiple) * multiple


def scale_shape(rows: int, k: int, layout: str) -> tuple[int, int]:
    """Shape of the scale tensor of a (rows, k) matrix: (rows, k/16), padded to (128, 4) if tiled."""
    cols = k // BLOCK
    if layout == "compact":
        return rows, cols
    return round_up(rows, TILE_ROWS), round_up(cols, TILE_COLS)


def tiled_offset(row, col, cols: int):
    """Byte offset of scale (row, col) in the tiled layout of a matrix with `cols` scale columns.

    Works on Python integers and on integer tensors.
    """
    tile = (row // TILE_ROWS) * (-(-cols // TILE_COLS)) + col // TILE_COLS
    return tile * (TILE_ROWS * TILE_COLS) + (row % 32) * 16 + ((row % TILE_ROWS) // 32) * 4 + col % TILE_COLS


def to_tiled(scales: torch.Tensor) -> torch.Tensor:
    """(..., rows, K/16) compact scales of any 1-byte dtype to (..., padded rows, padded columns) in tile order."""
    *batch, rows, cols = scales.shape
    padded_rows, padded_cols = round_up(rows, TILE_ROWS), round_up(cols, TILE_COLS)
    padded = torch.zeros(*batch, padded_rows, padded_cols, dtype=torch.uint8, device=scales.device)
    padded[..., :rows, :cols] = scales.view(torch.uint8)
    tiles = padded.view(*batch, padded_rows // TILE_ROWS, 4, 32, padded_cols // TILE_COLS, TILE_COLS)
    return tiles.transpose(-4, -2).reshape(*batch, padded_rows, padded_cols).view(scales.dtype)


def from_tiled(tiled: torch.Tensor, rows: int, k: int) -> torch.Tensor:
    """The inverse of `to_tiled`: (..., padded rows, padded columns) to compact (..., rows, k/16)."""
    *batch, padded_rows, padded_cols = tiled.shape
    shape = (*batch, padded_rows // TILE_ROWS, padded_cols // TILE_COLS, 32, 4, TILE_COLS)
    padded = tiled.view(torch.uint8).reshape(shape).transpose(-4, -2).reshape(*batch, padded_rows, padded_cols)
    return padded[..., :rows, : k // BLOCK].contiguous().view(tiled.dtype)


def grouped_rows_bound(total_rows: int, groups: int) -> int:
    """Rows of a tiled scale tensor that hold any split of `total_rows` into `groups` (each padded to 128)."""
    return (total_rows // TILE_ROWS + groups) * TILE_ROWS


def grouped_k_bound(total_k: int, groups: int) -> int:
    """Elements along K that hold any split of `total_k` into `groups` (each padded to 64)."""
    return (total_k // TILE_K + groups) * TILE_K


def padded_starts(offs: torch.Tensor, multiple: int) -> torch.Tensor:
    """Where each group starts when every group is padded to `multiple`.

    Args:
        offs: (E,) int32 end offsets, non-decreasing, on any device (not synchronised).
        multiple: 128 for scale rows, 64 for K.

    Returns:
        (E + 1,) int32 on the same device; the last entry is the padded total.
    """
    sizes = torch.diff(offs, prepend=offs.new_zeros(1))
    padded = -(-sizes // multiple) * multiple
    return torch.cat((offs.new_zeros(1), padded.cumsum(0).to(offs.dtype)))
