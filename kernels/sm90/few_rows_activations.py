"""The activations of the few-rows kernel: staged once per call, in 16 bits and the order of the decoded weight.

    staged[l, r, :]   row r in the K order of smem_layout.py with k_blocks = 2; what is behind K is zeros

NVFP4 activations are decoded, 16-bit ones reordered: in the order of memory the weight's decoding takes 158 instead of
114 instructions of a warp for 64 x 64 elements, and reads its codes four times from shared memory.

A thread takes 32 elements of a row, two neighbouring blocks of 16, those of a pair of threads of a quad: it writes 8
bytes of each of the 8 chunks of a sub-tile. Four threads make 128 elements. CTAs are small enough to leave room for one
of the GEMM beside them.

Reordering inside the GEMM, by a warpgroup that reads A from the L2 cache and writes every stage to shared memory, took
54.4 us at (64, 7168, 16384) with 256 rows of the weight a CTA and 71.7 with 128: its loads took 1500 clocks a stage,
and shared memory, which wgmma keeps busy half of the time, has no room for them.
"""

import cutlass.cute as cute
from cutlass import Boolean, Int32, Int64, Uint32
from cutlass.cute.nvgpu import cpasync, warpgroup

from cutefp4.config_few_rows import STAGE_K

from ..common import ptx
from ..common.device_struct import DeviceStruct
from ..common.scale_layout import column_offset, row_offset
from .loader import _partition, _rows_columns_batch, decoded_layout
from .number_format import NumberFormat

THREADS = 128
ELEMENTS = 32
"""Of a thread."""


class ActivationStager(DeviceStruct):
    """The kernel for one kind of activations ("nvfp4", "bfloat16", "float16") and scale layout: compile-time
    constants."""

    def __init__(self, fmt: NumberFormat, kind: str, layout: str):
        self.fmt, self.kind, self.layout = fmt, kind, layout

    @cute.jit
    def launch(self, rows: cute.Tensor, scales: cute.Tensor, staged: cute.Tensor, stream):
        """Stage `rows`, elements (L, R, K) or codes (L, R, K/2), into `staged` (L, R, K rounded up to 128)."""
        l, r, staged_k = staged.shape
        grid = [cute.ceil_div(staged_k, ELEMENTS * THREADS), r, l]
        self.kernel(rows, scales, staged).launch(grid=grid, block=[THREADS, 1, 1], stream=stream)

    @cute.kernel
    def kernel(self, rows: cute.Tensor, scales: cute.Tensor, staged: cute.Tensor):
        # The GEMM may take this CTA's SM as soon as there is room; it waits for the data where it reads them.
        cute.arch.griddepcontrol_launch_dependents()
        thread, _, _ = cute.arch.thread_idx()
        block, row, l = cute.arch.block_idx()
        _, r, staged_k = staged.shape
        piece = block * THREADS + thread
        # Of a stage: h of the quad's two pairs of threads, sub-tile q.
        stage, h, q = piece // 4, piece // 2 % 2, piece % 2
        start = (Int64(l) * r + Int64(row)) * Int64(staged_k) + Int64(stage * STAGE_K + 64 * q)
        target = ptx.address(staged) + start * Int64(2) + Int64(8 * h)
        pairs = self.pairs(rows, scales, (l, r, row), piece * ELEMENTS)
        for p, both in enumerate(pairs):
            ptx.store_words(target + Int64(16 * p), both, piece * ELEMENTS < staged_k)

    def pairs(self, rows, scales, where: tuple, column: Int32) -> list:
        """For p = 0..7 the pairs p of both blocks."""
        l, r, row = where
        matrix_row = Int64(l) * r + Int64(row)
        if self.kind == "nvfp4":
            return self.decoded_pairs(rows, scales, (l, r, row), column)
        k = rows.shape[2]
        source = ptx.address(rows) + (matrix_row * Int64(k) + Int64(column)) * Int64(2)
        words = [w for i in range(4) for w in ptx.load_words(source + Int64(16 * i), 4, column < k)]
        return [
            tuple(pick_pair(words[8 * t + 4 * half :], *pair) for t in range(2))
            for half in range(2)
            for pair in self.fmt.pairs
        ]

    def decoded_pairs(self, rows, scales, where: tuple, column: Int32) -> list:
        """The same of NVFP4 activations."""
        l, r, row = where
        k = rows.shape[2] * 2
        inside = Boolean(column < k)
        source = ptx.address(rows) + (Int64(l) * r + Int64(row)) * Int64(k // 2) + Int64(column // 2)
        words = ptx.load_words(source, 4, inside)
        tiled = Int64((r + 127) // 128) * Int64((k // 16 + 3) // 4 * 512)
        per_entry = tiled if self.layout == "tiled" else Int64(r) * Int64(k // 16)
        scale = ptx.address(scales) + Int64(l) * per_entry + row_offset(row, k // 16, self.layout)
        scale += Int64(column_offset(column // 16, self.layout))
        if self.layout == "tiled":
            bytes_ = ptx.load_half(scale, inside)
        else:
            bytes_ = ptx.load_byte(scale, inside) | (ptx.load_byte(scale + Int64(1), inside) << Uint32(8))
        multipliers = self.fmt.multipliers(bytes_)
        return [
            tuple(self.fmt.scaled_pair(words[2 * t + half], j, multipliers[t]) for t in range(2))
            for half in range(2)
            for j in range(4)
        ]


def pick_pair(words: list, a: int, b: int) -> Uint32:
    """Elements a and b of words of two 16-bit elements each."""
    return ptx.prmt(words[a // 2], words[b // 2], (0x32 if a % 2 else 0x10) + (0x7600 if b % 2 else 0x5400))


def activation_tma(staged: cute.Tensor, tiles) -> tuple:
    """TMA atom and coordinates (R, K, L) of the staged activations (L, R, K), for boxes of a stage."""
    atom = warpgroup.make_smem_layout_atom(warpgroup.SmemLayoutAtomKind.K_SW128, staged.element_type)
    stage = cute.tile_to_shape(atom, (tiles.tile_n, STAGE_K), order=(0, 1))
    op = cpasync.CopyBulkTensorTileG2SOp()
    return tuple(cpasync.make_tiled_tma_atom(op, _rows_columns_batch(staged), stage, (tiles.tile_n, STAGE_K)))[:2]


class ActivationLoader(DeviceStruct):
    """Issues the TMA copies of the staged activations."""

    def __init__(self, tma: tuple, decoded, dtype, tiles):
        layout = decoded_layout(tiles, dtype)
        smem = cute.make_tensor(cute.recast_ptr(decoded, layout.inner, dtype=dtype), layout.outer)
        self.atom, (self.smem, self.gmem) = tma[0], _partition(tma[0], smem, tma[1], (tiles.tile_n, STAGE_K))

    def issue(self, tile: Int32, k: Int32, l: Int32, stage: Int32, barrier: cute.Pointer) -> None:
        """Copy rows of tile `tile`, K stage `k` of batch `l`; completes on `barrier`."""
        cute.copy(self.atom, self.gmem[(None, tile, k, l)], self.smem[(None, stage)], tma_bar_ptr=barrier)
