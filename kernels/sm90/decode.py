"""Decoding packed NVFP4: the register operand in the consumers, the shared operand in the decode warpgroups.

Both follow a K order of smem_layout.py and give e2m1 * e4m3 * 2^product_exponent in fp16 or bf16, exactly
(number_format.py).

Per 64 x 64 sub-tile of the register operand a thread reads, for its rows g and g + 8, one 8-byte block and one scale
byte, and makes the 16 registers of four m64k16 fragments: 4 words of 15 (fp16) or 17 (bf16) instructions.

Beside 16-bit activations the weight keeps the order of memory. Then a thread needs byte t of all 8 words of a row's
sub-tile and all 4 scales: two 16-byte reads, a PRMT per two bytes, and 11 (fp16) or 9 (bf16) instructions per two
pairs instead of 7.5 or 8.5. That is why tiles with 256 activations are used: half the decoding per product.

In large products decoding costs power and no time: on an H200, (1024, 8192, 8192) beside bf16, a tile's wgmma follow
each other without a gap (130 950 clocks; the tensor core takes 131 072), at 1.6 to 1.7 GHz. So instructions count:
174.4 us with 181 of them per 64 of K, 170.1 with none for decoding, 172.4 (of 173.5) without the shared-memory reads,
and 174.3 (of 173.2) where bf16 pairs are moved by two shifts instead of a multiplication.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32

from cutefp4.config import SCALE_TILE_BYTES, WARPGROUP, Sm90Config

from ..common import ptx
from ..common.device_struct import DeviceStruct
from ..common.e2m1 import PAIRS_PER_WORD
from ..common.e4m3 import mul_x2_by_half, permute_by
from ..scheduler import first_and_step
from .number_format import FORMATS, NATURAL_BYTES
from .smem_layout import ROW_BYTES, load_byte, load_half, load_words, store_words, swizzle_chunk

CHUNKS = 2 * PAIRS_PER_WORD
"""16-byte chunks of a decoded 64-element row."""


def first_scale_row(tile: Int32, rows: int):
    """Row in its 128-row scale tile where a tile of `rows` rows begins."""
    return (tile * rows) % 128 if rows < 128 else 0


def scale_row_offset(config: Sm90Config, row: Int32) -> Int32:
    """Byte offset in a stage of scale tiles of the first scale of a row."""
    return (row // 128) * (config.k_blocks * SCALE_TILE_BYTES) + (row % 32) * 16 + ((row % 128) // 32) * 4


def scale_block_offset(block: int) -> int:
    """What the scale of 16-element block `block` of a row adds to `scale_row_offset`."""
    return (block // 4) * SCALE_TILE_BYTES + block % 4


class RegisterOperandReader(DeviceStruct):
    """One consumer thread's view of the packed register operand.

    Its rows in 64-row tile m of the warpgroup are 64 * m + 16 * warp + g and + 8, with g = lane // 4. Swizzles repeat
    every 8 rows and scale tiles are regular, so that (m, h) only adds a constant to an address, and the sub-tile q
    flips bits of the chunk.
    """

    def __init__(self, config: Sm90Config, storage, group_row: Int32, thread: Int32):
        self.config, self.storage = config, storage
        self.pitch = 32 * config.k_blocks
        self.row = group_row + (thread // 32) * 16 + (thread % 32) // 4
        self.t = thread % 4
        self.first_chunk = (config.k_blocks * (self.t // 2)) ^ swizzle_chunk(config.k_blocks, self.row)

    def scale_offset(self, scale_row0) -> Int32:
        """Offset of this thread's first scale; scale_row0: first scale row of the work tile."""
        k_blocks = self.config.k_blocks
        column = self.t if k_blocks == 1 else (self.t // 2) * (k_blocks // 2) * SCALE_TILE_BYTES + self.t % 2
        return scale_row_offset(self.config, scale_row0 + self.row) + column

    def load(self, stage: Int32, size, scale_offset: Int32, m: int, q: int):
        """Words and scale bytes of 64-row tile m, sub-tile q: ([words of row g], [words of g + 8]), (byte, byte)."""
        offset = self.row * self.pitch + (self.first_chunk ^ q) * 16 + (self.t % 2) * 8
        codes = self.storage.landed_m + (stage * size.landed_m + offset)
        scales = self.storage.scales_m + (stage * size.scales_m + scale_offset)
        words, scale_bytes = [], []
        for h in range(2):
            words.append(load_words(codes, (64 * m + 8 * h) * self.pitch, 2))
            tile = (m // 2) * (self.config.k_blocks * SCALE_TILE_BYTES)
            scale_bytes.append(load_byte(scales, tile + (m % 2) * 8 + h * 128 + scale_block_offset(2 * q)))
        return words, scale_bytes

    def multipliers(self, fmt, scale_bytes: list) -> list:
        """From `load`'s scale bytes: of row g and of row g + 8, in the halves of a word."""
        return fmt.scale_pair(scale_bytes[0] | (scale_bytes[1] << Uint32(8)), 0)

    def decode(self, fmt, words, multipliers, first: int, steps: int, fragment: cute.Tensor) -> None:
        """Write the registers of `steps` m64k16 A fragments, 4 each: step s holds pairs 2s and 2s + 1 of rows g and g +
        8."""
        for s in range(first, first + steps):
            for high in range(2):
                for half in range(2):
                    pair = fmt.scaled_by_half(words[half][s // 2], 2 * (s % 2) + high, multipliers, half)
                    fragment[4 * (s - first) + 2 * high + half] = pair


class NaturalOrderReader(RegisterOperandReader):
    """The same in the order of memory: thread t of a quad takes byte t of every word of its rows.

    The k-slots {2t, 2t+1} and {2t+8, 2t+9} of step s are byte t of the words 2s and 2s + 1.
    """

    def __init__(self, config: Sm90Config, storage, group_row: Int32, thread: Int32):
        super().__init__(config, storage, group_row, thread)
        first_chunk = swizzle_chunk(config.k_blocks, self.row)
        t = Uint32(self.t)
        # PRMT: byte t of the first word and byte t of the second one.
        selector = Uint32(0)
        for place, which in enumerate(NATURAL_BYTES):
            selector = selector | ((t + Uint32(4 * which)) << Uint32(4 * place))
        self.selector = Uint32(ptx.opaque(Int32(selector)))
        self.chunks = [
            ptx.opaque(self.row * self.pitch + (first_chunk ^ chunk) * 16) for chunk in range(2 * config.k_blocks)
        ]

    def scale_offset(self, scale_row0) -> Int32:
        return ptx.opaque(scale_row_offset(self.config, scale_row0 + self.row))

    def load(self, stage: Int32, size, scale_offset: Int32, m: int, q: int):
        """All 8 words of rows g and g + 8, and their 4 scales as a word."""
        codes = self.storage.landed_m + stage * size.landed_m
        scales = self.storage.scales_m + (stage * size.scales_m + scale_offset)
        words, scale_words = [], []
        for h in range(2):
            row = (64 * m + 8 * h) * self.pitch
            halves = [load_words(codes + self.chunks[chunk], row, 4) for chunk in (2 * q, 2 * q + 1)]
            words.append(halves[0] + halves[1])
            tile = (m // 2) * (self.config.k_blocks * SCALE_TILE_BYTES) + q * SCALE_TILE_BYTES
            scale_words += load_words(scales, tile + (m % 2) * 8 + h * 128, 1)
        return words, scale_words

    def multipliers(self, fmt, scale_words: list) -> list:
        """Of row g and of row g + 8: two words, of steps 0 and 1 and of steps 2 and 3, one scale in each half."""
        return [[fmt.scale_pair(word, half) for half in range(2)] for word in scale_words]

    def decode(self, fmt, words, multipliers, first: int, steps: int, fragment: cute.Tensor) -> None:
        for s in range(first, first + steps):
            for half in range(2):
                two = permute_by(words[half][2 * s], words[half][2 * s + 1], self.selector)
                for high, pair in enumerate(fmt.natural_pairs(two)):
                    # The instruction takes the half by itself.
                    scaled = mul_x2_by_half(fmt.ptx, pair, multipliers[half][s // 2], s % 2)
                    fragment[4 * (s - first) + 2 * high + half] = scaled


class SharedOperandDecoder(DeviceStruct):
    """The decode warpgroups: packed rows of the shared operand, as they land, to swizzled 16-bit rows for wgmma.

    A stage has k_blocks * tile_n rows of 64 elements (8 chunks of 16 bytes each). With as many of them as decode
    threads, a thread makes whole rows; with fewer, the chunks of a row are split over several warps, which take
    different branches.
    """

    def __init__(self, config: Sm90Config, storage, thread: Int32):
        self.config, self.storage, self.thread = config, storage, thread
        self.fmt = FORMATS[config.decode_to]

    @cute.jit
    def write_stage(self, bases):
        """Turn one load stage into one MMA stage.

        bases: byte offsets of the stage in the rows, in the scales and in the decoded buffer; first scale row of the
        tile.
        """
        rows = self.config.tile_n * self.config.k_blocks
        threads = WARPGROUP * self.config.decode_groups
        if cutlass.const_expr(rows >= threads):
            for i in cutlass.range_constexpr(rows // threads):
                self._write_row(bases, self.thread + threads * i, range(CHUNKS))
        else:
            pieces = threads // rows
            per_piece = CHUNKS // pieces
            for piece in cutlass.range_constexpr(pieces):
                if self.thread // rows == piece:
                    chunks = range(piece * per_piece, (piece + 1) * per_piece)
                    self._write_row(bases, self.thread % rows, chunks)

    def _write_row(self, bases, item: Int32, chunks: range) -> None:
        """Make some chunks of row `item % tile_n`, sub-tile `item // tile_n`."""
        q, row = item // self.config.tile_n, item % self.config.tile_n
        row_base = bases[2] + q * (self.config.tile_n * ROW_BYTES) + row * ROW_BYTES
        for chunk, words in self._chunks(bases, q, row, chunks):
            store_words(self.storage.decoded_n, row_base + (Int32(chunk) ^ (row % 8)) * 16, words)

    def _chunks(self, bases, q: Int32, row: Int32, chunks: range):
        words, multipliers = self._load_row(bases, q, row)
        for chunk in chunks:
            half, j = chunk // PAIRS_PER_WORD, chunk % PAIRS_PER_WORD
            yield chunk, [self.fmt.scaled_pair(words[2 * t + half], j, multipliers[t]) for t in range(4)]

    def _load_row(self, bases, q: Int32, row: Int32):
        """The 8 words and 4 scale multipliers of sub-tile q of a row, in the order of the quad's threads.

        Blocks 0 and 1 of the quad are neighbours in memory, and so are 2 and 3.
        """
        codes_base, scales_base, _, scale_row0 = bases
        config, storage = self.config, self.storage
        k_blocks = config.k_blocks
        codes = storage.landed_n + (codes_base + row * (32 * k_blocks))
        scales = storage.scales_n + (scales_base + scale_row_offset(config, scale_row0 + row))
        first_chunk = q ^ swizzle_chunk(k_blocks, row)
        words = load_words(codes, first_chunk * 16, 4) + load_words(codes, (first_chunk ^ k_blocks) * 16, 4)
        column = (q // 2) * SCALE_TILE_BYTES + (q % 2) * 2
        second = 2 if k_blocks == 1 else column + (k_blocks // 2) * SCALE_TILE_BYTES
        pairs = [load_half(scales, column), load_half(scales, second)]
        return words, [multiplier for pair in pairs for multiplier in self.fmt.multipliers(pair)]


@cute.jit
def decode_role(scheduler, load_ring, mma_ring, writer: SharedOperandDecoder, size: cutlass.Constexpr, lane: Int32):
    """Make the shared operand of every stage of every work tile of this CTA (the decode warpgroups)."""
    load_state, mma_state = load_ring.consumer_state(), mma_ring.producer_state()
    first, step = first_and_step()
    for index in cutlass.range(first, scheduler.total(), step, unroll=1):
        work = scheduler.work(index)
        scale_row0 = first_scale_row(work.n, writer.config.tile_n)
        for _ in cutlass.range(work.k_count, unroll=1):
            load_ring.wait_full(load_state)
            mma_ring.wait_empty(mma_state)
            stage = load_state.index
            writer.write_stage(
                (stage * size.landed_n, stage * size.scales_n, mma_state.index * size.decoded_n, scale_row0)
            )
            # The tensor core reads through the async proxy: each writer makes its stores visible to it, then arrives.
            cute.arch.fence_view_async_shared()
            cute.arch.sync_warp()
            if lane == 0:
                mma_ring.arrive_full(mma_state.index)
                load_ring.arrive_empty(load_state.index)
            load_state.advance()
            mma_state.advance()
