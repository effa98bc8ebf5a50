"""D through shared memory: fragments are written by stmatrix, one thread per warpgroup stores the tile by TMA.

Each consumer warpgroup owns a staging buffer of (64 * m_atoms) x tile_n 16-bit elements, in panels of 64 columns: rows of 128
bytes in TMA's 128-byte swizzle (chunk index XOR row % 8). The copy runs while the next tile is multiplied; the buffer is
waited for only before the next tile is staged. TMA clips what lies outside D. Needs 16-byte aligned rows of D.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32
from cutlass._mlir.dialects import llvm
from cutlass.cute.nvgpu import cpasync, warpgroup
from cutlass.cutlass_dsl import T, dsl_user_op

from cutefp4.config import Sm90Config

from ..common.device_struct import DeviceStruct

PANEL = 64
"""Columns of a panel: 128 bytes."""


@dsl_user_op
def pack_pair(low: Float32, high: Float32, kind: cutlass.Constexpr, *, loc=None, ip=None) -> Uint32:
    """Two fp32 values rounded to 16 bits ("bf16" or "f16") in one register."""
    arguments = [Float32(high).ir_value(loc=loc, ip=ip), Float32(low).ir_value(loc=loc, ip=ip)]
    code = f"cvt.rn.{kind}x2.f32 $0, $1, $2;"
    return Uint32(llvm.inline_asm(T.i32(), arguments, code, "=r,f,f", has_side_effects=False, loc=loc, ip=ip))


@dsl_user_op
def stmatrix_x4(address: Int32, registers: list, *, loc=None, ip=None) -> None:
    """Store four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l // 8."""
    arguments = [value.ir_value(loc=loc, ip=ip) for value in (address, *registers)]
    code = "stmatrix.sync.aligned.m8n8.x4.shared.b16 [$0], {$1, $2, $3, $4};"
    llvm.inline_asm(None, arguments, code, "r,r,r,r,r,~{memory}", has_side_effects=True, loc=loc, ip=ip)


def staging_layout(config: Sm90Config, dtype):
    """Shared layout (rows, 64) of one panel of a warpgroup."""
    atom = warpgroup.make_smem_layout_atom(warpgroup.SmemLayoutAtomKind.K_SW128, dtype)
    return cute.tile_to_shape(atom, (64 * config.m_atoms, PANEL), order=(0, 1))


def store_tma(d: cute.Tensor, config: Sm90Config):
    """TMA descriptor and coordinate tensor of D (L, M, N) for boxes of one panel."""
    l, m, n = d.shape
    mnl = cute.make_tensor(d.iterator, cute.make_layout((m, n, l), stride=(n, 1, m * n)))
    layout = staging_layout(config, d.element_type)
    return cpasync.make_tiled_tma_atom(
        cpasync.CopyBulkTensorTileS2GOp(), mnl, layout, (64 * config.m_atoms, PANEL)
    )


class StagedStore(DeviceStruct):
    """One warpgroup's staging buffer and its TMA stores."""

    def __init__(self, atom, tma, store: cute.Pointer, config: Sm90Config, dtype, consumer: Int32, thread: Int32):
        self.atom, self.tma, self.config, self.dtype = atom, tma, config, dtype
        self.consumer, self.thread = consumer, thread
        self.buffer = store + consumer * (64 * config.m_atoms * config.tile_n * 2)
        lane = thread % 32
        # stmatrix: matrices 0, 1 are rows 0-7 and 8-15 of n-block b, matrices 2, 3 the same of b + 1.
        self.row = (thread // 32) * 16 + (lane // 8 % 2) * 8 + lane % 8
        self.block = lane // 16

    @cute.jit
    def wait_buffer(self):
        """Before staging: the previous tile has been read from the buffer, and all threads know it."""
        if self.thread // 32 == 0:
            cute.arch.cp_async_bulk_wait_group(0, read=True)
        self._sync()

    def stage(self, atom: int, block: int, registers: list) -> None:
        """Write n-blocks `block` and `block` + 1 of 64-row tile `atom`: packed pairs (h, block) = 00, 10, 01, 11."""
        row = self.row + 64 * atom
        panel, column_block = block // 8, block % 8
        chunk = (self.block + column_block) ^ (row % 8)
        offset = panel * (64 * self.config.m_atoms * 128) + row * 128 + chunk * 16
        stmatrix_x4(Int32((self.buffer + offset).toint()), registers)

    @cute.jit
    def store(self, tile_m: Int32, tile_n: Int32, l: Int32):
        """After staging: store the warpgroup's rows of tile (tile_m, tile_n) of batch l."""
        cute.arch.fence_view_async_shared()
        self._sync()
        if self.thread // 32 == 0:
            self._issue(tile_m, tile_n, l)

    def _issue(self, tile_m: Int32, tile_n: Int32, l: Int32) -> None:
        config = self.config
        rows = 64 * config.m_atoms
        layout = staging_layout(config, self.dtype)
        tiles = cute.local_tile(self.tma, (rows, PANEL), (None, None, None))
        for panel in range(config.tile_n // PANEL):
            smem = cute.make_tensor(
                cute.recast_ptr(self.buffer + panel * (rows * 128), layout.inner, dtype=self.dtype), layout.outer
            )
            smem_part, gmem_part = cpasync.tma_partition(
                self.atom, 0, cute.make_layout(1), cute.group_modes(smem, 0, 2), cute.group_modes(tiles, 0, 2)
            )
            row_tile = tile_m * config.consumer_groups + self.consumer
            column_tile = tile_n * (config.tile_n // PANEL) + panel
            cute.copy(self.atom, smem_part, gmem_part[(None, row_tile, column_tile, l)])
        cute.arch.cp_async_bulk_commit_group()

    @cute.jit
    def drain(self):
        """Before the CTA exits: its last store has read the buffer."""
        if self.thread // 32 == 0:
            cute.arch.cp_async_bulk_wait_group(0, read=True)

    def _sync(self) -> None:
        cute.arch.barrier(barrier_id=1 + self.consumer, number_of_threads=128)
