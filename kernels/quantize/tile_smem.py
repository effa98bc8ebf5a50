"""A 128-row x 256-byte tile in shared memory: written by rows, read by columns, without bank conflicts on the read.

Row r occupies 256 bytes, 16 chunks of 16. Chunk c of row r is stored at chunk c ^ ((r / 16) % 8), low three bits only:

    column read   lanes = 4 words of one chunk x 8 groups of 16 rows: the 8 groups hit 8 different chunks, all 32 banks
    row write     8 lanes write every other chunk of one row, so a 16-byte store takes two passes instead of one
"""

from cutefp4.kernels.common import ptx
from cutlass import Int32, Uint32

ROW_BYTES = 256
TILE_BYTES = 128 * ROW_BYTES


def write_block(base: Uint32, row: Int32, step: int, block: Int32, words: list[Uint32]) -> None:
    """Store a block of 16 elements (8 or 16 words) of row `row + step`, `block` counted within the tile's row.

    `row` is below 32 (64 for fp32) and the same for all blocks of a thread, `step` a multiple of that, which changes an
    address by constants then. base: a multiple of ROW_BYTES.
    """
    chunks = len(words) // 4
    first = base + Uint32(row) * Uint32(ROW_BYTES)
    first = first + ((Uint32(block) * Uint32(chunks)) ^ (Uint32(row) >> Uint32(4))) * Uint32(16)
    for i in range(chunks):
        # i and step / 16 share no bits with the numbers that they are parts of: the chunk's and the swizzle.
        where = (first ^ Uint32((i ^ (step // 16)) * 16)) + Uint32(step * ROW_BYTES)
        ptx.store_shared(where, tuple(words[4 * i : 4 * i + 4]))


def read_column(base: Uint32, row_group: Int32, chunk: Int32, step: int, word: Int32) -> list[Uint32]:
    """One word from each of the 16 rows of a group: two neighbouring columns of 16-bit data, or one of fp32.

    The word is in chunk `chunk + step`, chunk < 8, step 0 or 8.
    """
    start = base + Uint32(row_group) * Uint32(16 * ROW_BYTES)
    start = start + (Uint32(chunk) ^ Uint32(row_group)) * Uint32(16) + Uint32(word) * Uint32(4)
    return [ptx.load_shared(start + Uint32(r * ROW_BYTES + step * 16), 1)[0] for r in range(16)]
