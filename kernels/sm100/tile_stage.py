"""Matrices that the epilogue reads (C), through shared memory by TMA.

Each epilogue warp brings its own 32 rows in chunks of 128 bytes, the width of a swizzled row, and waits for nobody
else: no other warp reads them. It has two buffers per matrix. The first two chunks of a work tile are asked for before
its accumulator is there, so that they come under the mainloop; a buffer that has been read takes the chunk after next.
A chunk has 32 columns of float32, or the 64 of a whole panel in 16 bits.

Thread `lane` reads row `lane` in pieces of 16 bytes, piece p from place p XOR lane % 8 (TMA's 128-byte swizzle).
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32
from cutlass.cute.nvgpu import cpasync

from cutefp4.config_sm100 import EPILOGUE_WARPS, PANEL, TILE_BUFFERS, TILE_CHUNK_BYTES

from ..common.device_struct import DeviceStruct
from ..common.ptx import load_shared
from ..quantize.input_block import unpack
from .store import ROWS, buffer_columns, buffer_layout

_NAMES = {cutlass.BFloat16: "bfloat16", cutlass.Float16: "float16", cutlass.Float32: "float32"}


def tile_tma(matrix: cute.Tensor) -> tuple:
    """TMA atom and coordinates (M, N, L) of a matrix (L, M, N), for boxes of one chunk."""
    l, m, n = matrix.shape
    mnl = cute.make_tensor(matrix.iterator, cute.make_layout((m, n, l), stride=(n, 1, m * n)))
    box = (ROWS, buffer_columns(matrix.element_type))
    layout = cute.slice_(buffer_layout(matrix.element_type), (None, None, 0))
    return tuple(cpasync.make_tiled_tma_atom(cpasync.CopyBulkTensorTileG2SOp(), mnl, layout, box))[:2]


class TileStage(DeviceStruct):
    """One warp's chunks of one matrix."""

    def __init__(self, tma: tuple, dtype, storage, index: int, warp: Int32, lane: Int32, panels: int):
        self.atom, self.dtype, self.lane, self.panels = tma[0], dtype, lane, panels
        self.columns = buffer_columns(dtype)
        self.chunks = panels * PANEL // self.columns
        own = storage.tiles + (index * EPILOGUE_WARPS + warp) * (TILE_BUFFERS * TILE_CHUNK_BYTES)
        self.barriers = storage.tile_full + (index * EPILOGUE_WARPS + warp) * TILE_BUFFERS
        self.row = Int32(own.toint()) + lane * (TILE_CHUNK_BYTES // ROWS)
        layout = buffer_layout(dtype)
        smem = cute.make_tensor(cute.recast_ptr(own, layout.inner, dtype=dtype), layout.outer)
        tiles = cute.local_tile(tma[1], (ROWS, self.columns), (None, None, None))
        self.smem, self.gmem = cpasync.tma_partition(
            self.atom, 0, cute.make_layout(1), cute.group_modes(smem, 0, 2), cute.group_modes(tiles, 0, 2)
        )
        # Chunks read so far, of all work tiles: the parity of the barriers follows from it.
        self.read = cute.make_rmem_tensor(1, Int32)
        self.read[0] = Int32(0)

    def begin(self, where: tuple) -> None:
        """Ask for the first chunks of a work tile. where: as in `_ask`."""
        for position in range(min(TILE_BUFFERS, self.chunks)):
            self._ask(Int32(position), (self.read[0] + position) % TILE_BUFFERS, where)

    def _ask(self, position: Int32, buffer: Int32, where: tuple) -> None:
        """Bring the chunk at `position`, in the order of reading, into a buffer.

        where: (row tile of 32, first panel in the matrix, panel of the work tile that is read first, l).
        """
        row_tile, panel0, first_panel, l = where
        per_panel = PANEL // self.columns
        panel = panel0 + (first_panel + position // per_panel) % self.panels
        barrier = self.barriers + buffer
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive_and_expect_tx(barrier, TILE_CHUNK_BYTES)
        tile = self.gmem[(None, row_tile, panel * per_panel + position % per_panel, l)]
        cute.copy(self.atom, tile, self.smem[(None, buffer)], tma_bar_ptr=barrier)

    def before(self, column: int) -> None:
        """Before the values from `column` of a panel on are read: if a chunk begins there, wait for it."""
        if column % self.columns == 0:
            self._wait()

    def after(self, panel: Int32, column: int, where: tuple) -> None:
        """The values before `column` of the panel that is read as number `panel` have been read."""
        if column % self.columns == 0:
            self._done(panel * (PANEL // self.columns) + (column // self.columns - 1), where)

    def _wait(self) -> None:
        cute.arch.mbarrier_wait(self.barriers + self.read[0] % TILE_BUFFERS, (self.read[0] // TILE_BUFFERS) % 2)

    def values(self, column: int, count: int) -> list[Float32]:
        """`count` values of this thread's row from column `column` of the panel on."""
        column = column % self.columns
        start = self.row + (self.read[0] % TILE_BUFFERS) * TILE_CHUNK_BYTES
        first, pieces = column * self.dtype.width // 128, count * self.dtype.width // 128
        words = []
        for piece in range(first, first + pieces):
            words += load_shared(Uint32(start + (Int32(piece) ^ (self.lane % 8)) * 16), 4)
        return unpack(words, _NAMES[self.dtype])

    @cute.jit
    def _done(self, position: Int32, where):
        """The chunk at `position` has been read: its buffer takes the chunk after next."""
        cute.arch.sync_warp()
        if position + TILE_BUFFERS < self.chunks:
            self._ask(position + TILE_BUFFERS, self.read[0] % TILE_BUFFERS, where)
        self.read[0] = self.read[0] + 1
