"""Staging: the shared operand of a Hopper GEMM decoded once per call, into a 16-bit matrix that TMA brings to wgmma.

    staged[l, r, :]   e2m1 * e4m3 * 2^product_exponent of row r, in the K order of smem_layout.py

Input: codes (L, R, K/2) uint8, block scales tiled (flat bytes) or compact (L, R, K/16); K % 64 == 0. Output: (L, R, K
rounded up to 64 * k_blocks), fp16 or bf16; what is behind K is written as zeros.

A thread makes 16-byte chunks, one pair of elements of each of the four 16-element blocks of a sub-tile: eight threads
write the 128 bytes of a sub-tile of one row, a warp four of them. The eight read the same sector of codes, which L1
serves. A CTA walks down the rows of its 256 columns, two at a time per warp.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32, Int64, Uint32

from ..common import ptx
from ..common.device_struct import DeviceStruct
from ..common.scale_layout import column_offset, row_offset
from .number_format import NumberFormat
from .smem_layout import quad_block

THREADS = 256
COLUMNS = 256
"""Along K of a CTA: four sub-tiles, one warp's."""
ROWS = 2 * THREADS // 32
"""Of a CTA at once."""
CTAS = 2048
"""About as many as run at the same time on 132 SMs; more of them only repeat the computation of addresses."""


class OperandStager(DeviceStruct):
    """The kernel of one format, scale layout and K order (compile-time constants)."""

    def __init__(self, fmt: NumberFormat, scales: str, k_blocks: int):
        self.fmt, self.scales, self.k_blocks = fmt, scales, k_blocks

    @cute.jit
    def launch(self, codes: cute.Tensor, scales: cute.Tensor, staged: cute.Tensor, stream):
        """Decode `codes` and `scales` into `staged`."""
        l, rows, staged_k = staged.shape
        across = cute.ceil_div(staged_k, COLUMNS)
        down = cutlass.min(cute.ceil_div(rows, ROWS), cute.ceil_div(CTAS, across))
        self.kernel(codes, scales, staged).launch(grid=[down, across, l], block=[THREADS, 1, 1], stream=stream)

    @cute.kernel
    def kernel(self, codes: cute.Tensor, scales: cute.Tensor, staged: cute.Tensor):
        # The GEMM may take this CTA's SM as soon as it is free; it waits for the data where it reads them.
        cute.arch.griddepcontrol_launch_dependents()
        thread, _, _ = cute.arch.thread_idx()
        first, across, l = cute.arch.block_idx()
        step, _, _ = cute.arch.grid_dim()
        _, rows, staged_k = staged.shape
        blocks = codes.shape[2] // 8
        sub_tile, chunk = across * (COLUMNS // 64) + (thread % 32) // 8, thread % 8
        # The quad's blocks come in two pairs of neighbours: 16 bytes of codes and 2 of scales each.
        block = (sub_tile // self.k_blocks) * (4 * self.k_blocks) + 2 * (sub_tile % self.k_blocks)
        pairs = [block + quad_block(self.k_blocks, 0, t) for t in (0, 2)]
        targets = ptx.address(staged) + (Int64(l) * rows * staged_k + Int64(sub_tile * 64 + chunk * 8)) * Int64(2)
        sources = ptx.address(codes) + Int64(l) * rows * Int64(8 * blocks)
        scale_rows = ptx.address(scales) + self.batch_scales(rows, blocks) * l
        shift, low_half = self.fmt.pair_shift(chunk % 4), chunk < 4
        for row_tile in cutlass.range(first, cute.ceil_div(rows, ROWS), step, unroll=1):
            row = row_tile * ROWS + thread // 32
            source = sources + Int64(row) * Int64(8 * blocks)
            scale_row = scale_rows + row_offset(row, blocks, self.scales)
            loaded = self.load_rows(source, scale_row, row, (rows, blocks), pairs)
            target = targets + Int64(row) * Int64(2 * staged_k)
            self.store_rows(loaded, target, row, staged.shape, sub_tile, low_half, shift)

    def load_rows(self, source: Int64, scale_row: Int64, row: Int32, sizes: tuple, pairs: list) -> list:
        """Codes (4 words) and scales (2 bytes) of both pairs of blocks of rows `row` and `row` + 8."""
        rows, blocks = sizes
        loaded = []
        for below in (0, ROWS // 2):
            # A row and the one 8 below it lie in one 16-byte column of a scale tile.
            scale_step = below * blocks if self.scales == "compact" else Int32(16 * below)
            for block in pairs:
                valid = (row + below < rows) & (block < blocks)
                words = ptx.load_words(source + Int64(8 * block + below * 8 * blocks), 4, valid)
                scale_at = scale_row + Int64(column_offset(block, self.scales) + scale_step)
                loaded.append((words, ptx.load_half(scale_at, valid)))
        return loaded

    def store_rows(self, loaded, target: Int64, row: Int32, shape, sub_tile: Int32, low_half: Boolean, shift: Uint32):
        """Decode this thread's chunks and write them."""
        _, rows, staged_k = shape
        for half, below in enumerate((0, ROWS // 2)):
            chunk = []
            for words, scales in loaded[2 * half : 2 * half + 2]:
                for t, multiplier in enumerate(self.fmt.multipliers(scales)):
                    word = cutlass.select_(low_half, words[2 * t], words[2 * t + 1])
                    chunk.append(self.fmt.scaled_pair(word >> shift, 0, multiplier))
            inside = (row + below < rows) & (sub_tile * 64 < staged_k)
            ptx.store_words(target + Int64(below * 2 * staged_k), tuple(chunk), inside)

    def batch_scales(self, rows: Int32, blocks: Int32) -> Int64:
        """Bytes of the scales of one matrix."""
        if self.scales == "compact":
            return Int64(rows) * Int64(blocks)
        return Int64((rows + 127) // 128) * Int64((blocks + 3) // 4) * Int64(512)
