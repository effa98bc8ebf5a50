"""D through shared memory: fragments are written by stmatrix, one warp per warpgroup stores the tile by TMA.

Each consumer warpgroup owns a staging buffer for its (64 * m_atoms) x tile_n elements of 16 bits, or with
config.store_passes = 2 for half of them, in panels of 64
columns of D: rows of 128 bytes in TMA's 128-byte swizzle (chunk index XOR row % 8). The rows of D are m, and a panel is
64 of n; with swap_ab the rows of D are n, a panel is one 64-row tile of m, and stmatrix transposes. The copy runs while
the next tile is multiplied; the buffer is waited for only before the next tile is staged. TMA clips what lies outside
D. Needs 16-byte aligned rows of D.
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
def stmatrix_x4(address: Int32, registers: list, transpose: bool, *, loc=None, ip=None) -> None:
    """Store four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l // 8."""
    arguments = [value.ir_value(loc=loc, ip=ip) for value in (address, *registers)]
    code = f"stmatrix.sync.aligned.m8n8.x4{'.trans' if transpose else ''}.shared.b16 [$0], {{$1, $2, $3, $4}};"
    llvm.inline_asm(None, arguments, code, "r,r,r,r,r,~{memory}", has_side_effects=True, loc=loc, ip=ip)


def atoms_per_pass(config: Sm90Config) -> int:
    """64-row tiles that the staging buffer holds."""
    return config.m_atoms // config.store_passes


def panel_rows(config: Sm90Config) -> int:
    """Rows of D that a panel holds."""
    return config.tile_n if config.swap_ab else 64 * atoms_per_pass(config)


def panels(config: Sm90Config) -> int:
    """Panels of one pass of a warpgroup."""
    return atoms_per_pass(config) if config.swap_ab else config.tile_n // PANEL


def staging_layout(config: Sm90Config, dtype):
    """Shared layout (rows, 64) of one panel of a warpgroup."""
    atom = warpgroup.make_smem_layout_atom(warpgroup.SmemLayoutAtomKind.K_SW128, dtype)
    return cute.tile_to_shape(atom, (panel_rows(config), PANEL), order=(0, 1))


def store_tma(d: cute.Tensor, config: Sm90Config) -> tuple:
    """TMA atom and coordinate tensor of D (L, M, N) for boxes of one panel."""
    l, m, n = d.shape
    mnl = cute.make_tensor(d.iterator, cute.make_layout((m, n, l), stride=(n, 1, m * n)))
    layout = staging_layout(config, d.element_type)
    info = cpasync.make_tiled_tma_atom(cpasync.CopyBulkTensorTileS2GOp(), mnl, layout, (panel_rows(config), PANEL))
    return tuple(info)[:2]


class StagedStore(DeviceStruct):
    """One warpgroup's staging buffer and its TMA stores."""

    def __init__(self, atom, tma, store: cute.Pointer, config: Sm90Config, dtype, consumer: Int32, thread: Int32):
        self.atom, self.tma, self.config, self.dtype = atom, tma, config, dtype
        self.consumer, self.thread = consumer, thread
        self.buffer = store + consumer * (64 * atoms_per_pass(config) * config.tile_n * 2)
        self.lane, self.warp = thread % 32, thread // 32

    @cute.jit
    def wait_buffer(self):
        """Before staging: what was staged before has been read from the buffer, and all threads know it."""
        if self.thread // 32 == 0:
            cute.arch.cp_async_bulk_wait_group(0, read=True)
        self._sync()

    def stage(self, atom: int, block: int, registers: list) -> None:
        """Write n-blocks `block` and `block` + 1 of the pass's 64-row tile `atom`.

        registers: packed pairs of (rows g, block), (g + 8, block), (g, block + 1), (g + 8, block + 1): matrices 0..3.
        """
        high, second = (self.lane // 8) % 2, self.lane // 16
        if self.config.swap_ab:
            panel, row = atom, 8 * (second + block) + self.lane % 8
            chunk = 2 * self.warp + high
        else:
            panel, row = block // 8, 64 * atom + 16 * self.warp + 8 * high + self.lane % 8
            chunk = second + block % 8
        offset = panel * (panel_rows(self.config) * 128) + row * 128 + (chunk ^ (row % 8)) * 16
        stmatrix_x4(Int32((self.buffer + offset).toint()), registers, self.config.swap_ab)

    @cute.jit
    def store(self, tile_m: Int32, tile_n: Int32, l: Int32, store_pass: cutlass.Constexpr):
        """After staging: store this pass of the warpgroup's part of tile (tile_m, tile_n) of batch l."""
        cute.arch.fence_view_async_shared()
        self._sync()
        if self.thread // 32 == 0:
            self._issue(tile_m, tile_n, l, store_pass)

    def _issue(self, tile_m: Int32, tile_n: Int32, l: Int32, store_pass: int) -> None:
        config, rows = self.config, panel_rows(self.config)
        layout = staging_layout(config, self.dtype)
        tiles = cute.local_tile(self.tma, (rows, PANEL), (None, None, None))
        part = (tile_m * config.consumer_groups + self.consumer) * config.store_passes + store_pass
        for panel in range(panels(config)):
            smem = cute.make_tensor(
                cute.recast_ptr(self.buffer + panel * (rows * 128), layout.inner, dtype=self.dtype), layout.outer
            )
            smem_part, gmem_part = cpasync.tma_partition(
                self.atom, 0, cute.make_layout(1), cute.group_modes(smem, 0, 2), cute.group_modes(tiles, 0, 2)
            )
            if config.swap_ab:
                coordinates = (None, tile_n, part * panels(config) + panel, l)
            else:
                coordinates = (None, part, tile_n * panels(config) + panel, l)
            cute.copy(self.atom, smem_part, gmem_part[coordinates])
        cute.arch.cp_async_bulk_commit_group()

    @cute.jit
    def drain(self):
        """Before the CTA exits: its last store has read the buffer."""
        if self.thread // 32 == 0:
            cute.arch.cp_async_bulk_wait_group(0, read=True)

    def _sync(self) -> None:
        cute.arch.barrier(barrier_id=1 + self.consumer, number_of_threads=128)
