"""Decoding packed NVFP4: the register operand in the consumers, the shared operand in the decode warpgroup.

Both follow the K order of smem_layout.py and give e2m1 * e4m3 * 2^-7 in bf16, exactly (common/e2m1.py, common/e4m3.py).

Per 64 x 64 sub-tile of the register operand a thread reads, for its rows g and g + 8, one 8-byte block and one scale byte, and
makes the 16 registers of four m64k16 fragments: 4 words x (13 + 4) + 2 scales x 3 = 74 instructions.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from cutefp4.config import SCALE_TILE_BYTES, Sm90Config

from ..common.device_struct import DeviceStruct
from ..common.e2m1 import PAIRS_PER_WORD, decode_pair
from ..common.e4m3 import decode_scale, mul_bf16x2
from .smem_layout import load_byte, load_words, quad_block, store_words, swizzle_chunk


def packed_offset(config: Sm90Config, row: Int32, block: Int32) -> Int32:
    """Byte offset in a packed stage of the 8-byte block `block` of row `row`."""
    chunk = (block // 2) ^ swizzle_chunk(config.k_blocks, row)
    return row * (32 * config.k_blocks) + chunk * 16 + (block % 2) * 8


def scale_offset(config: Sm90Config, row: Int32, block: Int32) -> Int32:
    """Byte offset in a stage of scale tiles of the scale of block `block` of row `row`."""
    tile = (row // 128) * config.k_blocks + block // 4
    return tile * SCALE_TILE_BYTES + (row % 32) * 16 + ((row % 128) // 32) * 4 + block % 4


def first_scale_row(tile: Int32, rows: int):
    """Row in its 128-row scale tile where a tile of `rows` rows begins."""
    return (tile * rows) % 128 if rows < 128 else 0


class RegisterOperandReader(DeviceStruct):
    """One consumer thread's view of the packed register operand.

    Its rows in 64-row tile `m` of the warpgroup are 64 * m + 16 * warp + g and + 8, with g = lane // 4.
    """

    def __init__(self, config: Sm90Config, storage, group_row: Int32, thread: Int32):
        self.config, self.storage = config, storage
        self.row = group_row + (thread // 32) * 16 + (thread % 32) // 4
        self.t = thread % 4

    def load(self, bases, m: int, q: int):
        """Packed words and scale bytes of 64-row tile m, sub-tile q: ([words of row g], [of g + 8]), (byte, byte).

        bases: byte offsets of the stage in codes and scales, first scale row of the tile.
        """
        codes_base, scales_base, scale_row0 = bases
        block = quad_block(self.config.k_blocks, q, self.t)
        words, scales = [], []
        for half in range(2):
            row = self.row + 64 * m + 8 * half
            words.append(load_words(self.storage.packed_m, codes_base + packed_offset(self.config, row, block), 2))
            offset = scale_offset(self.config, scale_row0 + row, block)
            scales.append(load_byte(self.storage.scales_m, scales_base + offset))
        return words, scales


def decode_fragment(words, scales, fragment: cute.Tensor) -> None:
    """Write the 16 registers of four m64k16 A fragments: step s holds pairs 2s and 2s + 1 of rows g and g + 8."""
    multipliers = [decode_scale(s) for s in scales]
    for s in range(4):
        for high in range(2):
            for half in range(2):
                raw = decode_pair(words[half][s // 2], 2 * (s % 2) + high)
                fragment[4 * s + 2 * high + half] = mul_bf16x2(raw, multipliers[half])


CHUNKS = 2 * PAIRS_PER_WORD
"""16-byte chunks of a decoded 64-element row."""


class SharedOperandDecoder(DeviceStruct):
    """The decode warpgroup: packed rows of the shared operand to swizzled bf16 rows that wgmma reads.

    A stage has k_blocks * tile_n rows of 64 elements (8 chunks of 16 bytes each). With 128 of them or more, a thread decodes whole
    rows; with fewer, the chunks of a row are split over 128 / rows warps, which take different branches.
    """

    def __init__(self, config: Sm90Config, storage, thread: Int32):
        self.config, self.storage, self.thread = config, storage, thread

    @cute.jit
    def decode_stage(self, bases):
        """Decode one load stage into one MMA stage.

        bases: byte offsets of the stage in the codes, in the scales and in the decoded buffer; first scale row of the tile.
        """
        rows = self.config.tile_n * self.config.k_blocks
        if cutlass.const_expr(rows >= 128):
            for i in cutlass.range_constexpr(rows // 128):
                self._decode_row(bases, self.thread + 128 * i, range(CHUNKS))
        else:
            pieces = 128 // rows
            per_piece = CHUNKS // pieces
            for piece in cutlass.range_constexpr(pieces):
                if self.thread // rows == piece:
                    chunks = range(piece * per_piece, (piece + 1) * per_piece)
                    self._decode_row(bases, self.thread % rows, chunks)

    def _decode_row(self, bases, item: Int32, chunks: range) -> None:
        """Decode some chunks of row `item % tile_n`, sub-tile `item // tile_n`."""
        codes_base, scales_base, out_base, scale_row0 = bases
        config, storage = self.config, self.storage
        q, row = item // config.tile_n, item % config.tile_n
        blocks = [quad_block(config.k_blocks, q, t) for t in range(4)]
        words = []
        for first in (blocks[0], blocks[2]):  # blocks 0, 1 and 2, 3 of the quad are neighbours: 16 bytes
            words += load_words(storage.packed_n, codes_base + packed_offset(config, row, first), 4)
        multipliers = []
        for block in blocks:
            offset = scale_offset(config, scale_row0 + row, block)
            multipliers.append(decode_scale(load_byte(storage.scales_n, scales_base + offset)))
        row_base = out_base + q * (config.tile_n * 128) + row * 128
        for chunk in chunks:
            half, j = chunk // PAIRS_PER_WORD, chunk % PAIRS_PER_WORD
            pairs = [mul_bf16x2(decode_pair(words[2 * t + half], j), multipliers[t]) for t in range(4)]
            store_words(storage.decoded_n, row_base + (Int32(chunk) ^ (row % 8)) * 16, pairs)


@cute.jit
def decode_role(
    scheduler, load_ring, mma_ring, decoder: SharedOperandDecoder, size: cutlass.Constexpr, lane: Int32
):
    """Decode the shared operand of every stage of every work tile of this CTA (one warpgroup)."""
    load_state, mma_state = load_ring.consumer_state(), mma_ring.producer_state()
    first, _, _ = cute.arch.block_idx()
    step, _, _ = cute.arch.grid_dim()
    for index in cutlass.range(first, scheduler.total(), step, unroll=1):
        work = scheduler.work(index)
        scale_row0 = first_scale_row(work.n, decoder.config.tile_n)
        for _ in cutlass.range(work.k_count, unroll=1):
            load_ring.wait_full(load_state)
            mma_ring.wait_empty(mma_state)
            stage = load_state.index
            decoder.decode_stage(
                (stage * size.packed_n, stage * size.scales_n, mma_state.index * size.decoded_n, scale_row0)
            )
            # The tensor core reads through the async proxy: each writer makes its stores visible to it, then arrives.
            cute.arch.fence_view_async_shared()
            cute.arch.sync_warp()
            if lane == 0:
                mma_ring.arrive_full(mma_state.index)
                load_ring.arrive_empty(load_state.index)
            load_state.advance()
            mma_state.advance()
