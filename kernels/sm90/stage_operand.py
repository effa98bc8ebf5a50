"""Staging: the shared operand of a Hopper GEMM decoded once per call, into a 16-bit matrix that TMA brings to wgmma.

    staged[l, r, :]   e2m1 * e4m3 * 2^product_exponent of row r, in the K order of smem_layout.py

Input: codes (L, R, K/2) uint8, block scales tiled (flat bytes) or compact (L, R, K/16); K % 64 == 0. Output: (L, R, K
rounded up to 64 * k_blocks), fp16 or bf16; what is behind K is written as zeros.

A thread decodes one sub-tile of a row, 64 elements, and writes its 128 bytes to shared memory. The sub-tiles of a
matrix lie one behind the other in memory, so a warp then writes 32 of them, 4 KiB, in whole lines.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, Uint8
from cutlass.memory import SmemAllocator

from ..common import ptx
from ..common.device_struct import DeviceStruct
from ..common.scale_layout import column_offset, row_offset
from .number_format import NumberFormat
from .smem_layout import ROW_BYTES, load_words, quad_block, store_words

THREADS = 128
CHUNKS = 8
"""16-byte chunks of a sub-tile."""


class OperandStager(DeviceStruct):
    """The kernel of one format, scale layout and K order (compile-time constants)."""

    def __init__(self, fmt: NumberFormat, scales: str, k_blocks: int):
        self.fmt, self.scales, self.k_blocks = fmt, scales, k_blocks

    @cute.jit
    def launch(self, codes: cute.Tensor, scales: cute.Tensor, staged: cute.Tensor, stream):
        """Decode `codes` and `scales` into `staged`."""
        l, rows, staged_k = staged.shape
        sub_tiles = rows * (staged_k // 64)
        self.kernel(codes, scales, staged).launch(
            grid=[cute.ceil_div(sub_tiles, THREADS), l, 1], block=[THREADS, 1, 1], stream=stream
        )

    @cute.kernel
    def kernel(self, codes: cute.Tensor, scales: cute.Tensor, staged: cute.Tensor):
        # The GEMM may take this CTA's SM as soon as it is free; it waits for the data where it reads them.
        cute.arch.griddepcontrol_launch_dependents()
        thread, _, _ = cute.arch.thread_idx()
        cta, l, _ = cute.arch.block_idx()
        _, rows, staged_k = staged.shape
        blocks, across = codes.shape[2] // 8, staged_k // 64
        lane, first = thread % 32, cta * THREADS + thread // 32 * 32
        buffer = SmemAllocator().allocate_array(Uint8, THREADS * ROW_BYTES, byte_alignment=128)
        base = thread // 32 * (32 * ROW_BYTES)

        row, sub_tile = (first + lane) // across, (first + lane) % across
        scales_here = ptx.address(scales) + self.batch_scales(rows, blocks) * l
        codes_here = ptx.address(codes) + Int64(l) * rows * Int64(8 * blocks)
        words, multipliers = self.load(codes_here, scales_here, row, sub_tile, (rows, blocks))
        for chunk in cutlass.range_constexpr(CHUNKS):
            half, j = chunk // 4, chunk % 4
            pairs = [self.fmt.scaled_by_half(words[2 * t + half], j, multipliers[t // 2], t % 2) for t in range(4)]
            store_words(buffer, base + lane * ROW_BYTES + (Int32(chunk) ^ (lane % 8)) * 16, pairs)
        cute.arch.sync_warp()

        out = ptx.address(staged) + (Int64(l) * rows * across + Int64(first)) * ROW_BYTES
        for i in cutlass.range_constexpr(CHUNKS):
            there = 4 * i + lane // 8
            chunk = load_words(buffer, base + there * ROW_BYTES + ((lane % 8) ^ (there % 8)) * 16, 4)
            target = out + Int64(there * ROW_BYTES + lane % 8 * 16)
            ptx.store_words(target, tuple(chunk), first + there < rows * across)

    def load(self, codes: Int64, scales: Int64, row: Int32, sub_tile: Int32, sizes: tuple) -> tuple:
        """The 8 words of a sub-tile, and its 4 scales in the halves of two words; in the order of the quad."""
        rows, blocks = sizes
        # The quad's blocks come in two pairs of neighbours: 16 bytes of codes and 2 of scales each.
        block = (sub_tile // self.k_blocks) * (4 * self.k_blocks) + 2 * (sub_tile % self.k_blocks)
        pairs = [block + quad_block(self.k_blocks, 0, t) for t in (0, 2)]
        valid = [(row < rows) & (pair < blocks) for pair in pairs]
        source = codes + Int64(row) * Int64(8 * blocks)
        words = [ptx.load_words(source + Int64(8 * pair), 4, ok) for pair, ok in zip(pairs, valid, strict=True)]
        scale_row = scales + row_offset(row, blocks, self.scales)
        halves = [
            ptx.load_half(scale_row + Int64(column_offset(pair, self.scales)), ok)
            for pair, ok in zip(pairs, valid, strict=True)
        ]
        return words[0] + words[1], [self.fmt.scale_pair(half, 0) for half in halves]

    def batch_scales(self, rows: Int32, blocks: Int32) -> Int64:
        """Bytes of the scales of one matrix."""
        if self.scales == "compact":
            return Int64(rows) * Int64(blocks)
        return Int64((rows + 127) // 128) * Int64((blocks + 3) // 4) * Int64(512)
