"""D from the epilogue's registers to memory: through shared memory by TMA, or element by element.

Each epilogue warp stores its own 32 rows and waits for nobody else. It owns two buffers of 32 rows x 128 bytes in TMA's
128-byte swizzle: thread `lane` writes row `lane` in chunks of 16 bytes, chunk c to place c XOR lane % 8, so that the 8
threads of a quarter warp touch all banks once. While TMA reads one buffer the other one is filled.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint32
from cutlass.cute.nvgpu import cpasync, tcgen05

from cutefp4.config_sm100 import STORE_BUFFER_BYTES, STORE_BUFFERS

from ..common.device_struct import DeviceStruct
from ..common.ptx import store_shared
from ..epilogue import math
from ..epilogue.staged_store import pack_pair

ROW_BYTES = 128
ROWS = 32


def buffer_columns(dtype) -> int:
    """Columns of D in a buffer."""
    return ROW_BYTES * 8 // dtype.width


def buffer_layout(dtype):
    """Shared layout (32 rows, columns, buffers) of a warp's buffers."""
    atom = tcgen05.make_smem_layout_atom(tcgen05.SmemLayoutAtomKind.K_SW128, dtype)
    return cute.tile_to_shape(atom, (ROWS, buffer_columns(dtype), STORE_BUFFERS), order=(0, 1, 2))


def store_tma(d: cute.Tensor) -> tuple:
    """TMA atom and coordinates (M, N, L) of D (L, M, N), for boxes of one buffer."""
    l, m, n = d.shape
    mnl = cute.make_tensor(d.iterator, cute.make_layout((m, n, l), stride=(n, 1, m * n)))
    box = (ROWS, buffer_columns(d.element_type))
    layout = cute.slice_(buffer_layout(d.element_type), (None, None, 0))
    return tuple(cpasync.make_tiled_tma_atom(cpasync.CopyBulkTensorTileS2GOp(), mnl, layout, box))[:2]


def to_words(values: list, dtype) -> list:
    """fp32 values rounded to dtype, as 32-bit words."""
    if dtype.width == 32:
        return [Uint32(math.bits(v)) for v in values]
    kind = "bf16" if dtype is cutlass.BFloat16 else "f16"
    return [pack_pair(values[i], values[i + 1], kind) for i in range(0, len(values), 2)]


class WarpStore(DeviceStruct):
    """The staging buffers of one epilogue warp."""

    def __init__(self, tma: tuple, pointer: cute.Pointer, warp: Int32, lane: Int32, dtype):
        self.atom, self.lane, self.dtype = tma[0], lane, dtype
        own = pointer + warp * (STORE_BUFFERS * STORE_BUFFER_BYTES)
        self.row = Int32(own.toint()) + lane * ROW_BYTES
        layout = buffer_layout(dtype)
        smem = cute.make_tensor(cute.recast_ptr(own, layout.inner, dtype=dtype), layout.outer)
        tiles = cute.local_tile(tma[1], (ROWS, buffer_columns(dtype)), (None, None, None))
        self.smem, self.gmem = cpasync.tma_partition(
            self.atom, 0, cute.make_layout(1), cute.group_modes(smem, 0, 2), cute.group_modes(tiles, 0, 2)
        )

    def wait_buffer(self) -> None:
        """Before filling a buffer: the store that used it last has read it."""
        cute.arch.cp_async_bulk_wait_group(STORE_BUFFERS - 1, read=True)
        cute.arch.sync_warp()

    def put(self, buffer: Int32, chunk: int, values: list) -> None:
        """Write values, rounded, to this thread's row of a buffer, from 16-byte chunk `chunk` on."""
        words = to_words(values, self.dtype)
        for i in range(0, len(words), 4):
            place = (Int32(chunk + i // 4) ^ (self.lane % 8)) * 16
            store_shared(Uint32(self.row + buffer * STORE_BUFFER_BYTES + place), tuple(words[i : i + 4]))

    def send(self, buffer: Int32, row_tile: Int32, column_tile: Int32, l: Int32) -> None:
        """Store a filled buffer; TMA drops what lies outside D."""
        cute.arch.fence_view_async_shared()
        cute.arch.sync_warp()
        # cute.copy elects a thread for TMA loads, not for stores: in PTX every lane would store the box. (On sm_90a
        # ptxas makes one uniform instruction of that, but nothing promises it.)
        with cute.arch.elect_one():
            cute.copy(self.atom, self.smem[(None, buffer)], self.gmem[(None, row_tile, column_tile, l)])
            cute.arch.cp_async_bulk_commit_group()

    def drain(self) -> None:
        """Before the CTA exits: every store has read its buffer."""
        cute.arch.cp_async_bulk_wait_group(0, read=True)
