"""The load warp: TMA brings packed rows and scale tiles into the load ring.

Per stage: (tile_m, tile_k/2) and (tile_n, tile_k/2) bytes of codes, and the 128x4 scale tiles of both. TMA fills what lies outside a
matrix with zeros, and zero codes with zero scales add nothing: tails in M, N and K need no other code.
"""

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint8
from cutlass.cute.nvgpu import cpasync, warpgroup

from cutefp4.config import SCALE_TILE_BYTES, Sm90Config, scale_rows

from ..common.device_struct import DeviceStruct

SCALE_WORDS = SCALE_TILE_BYTES // 4

_ROW_SWIZZLE = {
    1: warpgroup.SmemLayoutAtomKind.K_SW32,
    2: warpgroup.SmemLayoutAtomKind.K_SW64,
    4: warpgroup.SmemLayoutAtomKind.K_SW128,
}


def packed_layout(config: Sm90Config, rows: int):
    """Staged, swizzled shared layout (rows, tile_k/2, load_stages) of packed codes."""
    atom = warpgroup.make_smem_layout_atom(_ROW_SWIZZLE[config.k_blocks], Uint8)
    return cute.tile_to_shape(atom, (rows, config.tile_k // 2, config.load_stages), order=(0, 1, 2))


def scale_layout(config: Sm90Config, rows: int):
    """Staged shared layout (words of a tile, k_blocks, row tiles, load_stages) of scale tiles."""
    shape = (SCALE_WORDS, config.k_blocks, scale_rows(rows), config.load_stages)
    return cute.make_layout(shape)


@dataclass
class TmaOperand(DeviceStruct):
    """The TMA descriptors of one packed operand: codes and scales, with their coordinate tensors."""

    codes_atom: cute.CopyAtom
    codes: cute.Tensor
    scales_atom: cute.CopyAtom
    scales: cute.Tensor


def packed_tma(codes: cute.Tensor, scales: cute.Tensor, rows: int, config: Sm90Config):
    """Descriptors for codes (L, R, K/2) and tiled scales (flat 32-bit words), box of `rows` rows and one stage.

    Returns codes atom and tensor (R, K/2, L), scales atom and tensor (128 words, K tiles, row tiles, L).
    """
    l, r, bytes_k = codes.shape
    codes_rkl = cute.make_tensor(codes.iterator, cute.make_layout((r, bytes_k, l), stride=(bytes_k, 1, r * bytes_k)))
    op = cpasync.CopyBulkTensorTileG2SOp()
    codes_atom, codes_tma = cpasync.make_tiled_tma_atom(
        op, codes_rkl, cute.slice_(packed_layout(config, rows), (None, None, 0)), (rows, config.tile_k // 2)
    )
    k_tiles, row_tiles = cute.ceil_div(bytes_k, 32), cute.ceil_div(r, 128)
    shape = (SCALE_WORDS, k_tiles, row_tiles, l)
    scale_words = cute.make_tensor(cute.recast_ptr(scales.iterator, dtype=Int32), cute.make_layout(shape))
    box = (SCALE_WORDS, config.k_blocks, scale_rows(rows))
    scales_atom, scales_tma = cpasync.make_tiled_tma_atom(
        op, scale_words, cute.slice_(scale_layout(config, rows), (None, None, None, 0)), box
    )
    return codes_atom, codes_tma, scales_atom, scales_tma


class OperandLoader(DeviceStruct):
    """Issues the TMA copies of one operand into its stages."""

    def __init__(self, tma: TmaOperand, codes_ptr, scales_ptr, rows: int, config: Sm90Config):
        self.tma, self.rows, self.config = tma, rows, config
        layout = packed_layout(config, rows)
        smem_codes = cute.make_tensor(cute.recast_ptr(codes_ptr, layout.inner, dtype=Uint8), layout.outer)
        smem_scales = cute.make_tensor(cute.recast_ptr(scales_ptr, dtype=Int32), scale_layout(config, rows))
        tiles = cute.local_tile(tma.codes, (rows, config.tile_k // 2), (None, None, None))
        self.smem_codes, self.gmem_codes = cpasync.tma_partition(
            tma.codes_atom, 0, cute.make_layout(1), cute.group_modes(smem_codes, 0, 2), cute.group_modes(tiles, 0, 2)
        )
        box = (SCALE_WORDS, config.k_blocks, scale_rows(rows))
        scale_tiles = cute.local_tile(tma.scales, box, (None, None, None, None))
        self.smem_scales, self.gmem_scales = cpasync.tma_partition(
            tma.scales_atom,
            0,
            cute.make_layout(1),
            cute.group_modes(smem_scales, 0, 3),
            cute.group_modes(scale_tiles, 0, 3),
        )

    def prefetch_descriptors(self) -> None:
        cpasync.prefetch_descriptor(self.tma.codes_atom)
        cpasync.prefetch_descriptor(self.tma.scales_atom)

    def issue(self, tile: Int32, k: Int32, l: Int32, stage: Int32, barrier: cute.Pointer) -> None:
        """Copy row tile `tile` and K stage `k` of batch `l` into `stage`; completes on `barrier`."""
        # A tile of fewer than 128 rows lies inside one 128-row scale tile.
        scale_tile = tile if self.rows >= 128 else tile // (128 // self.rows)
        cute.copy(
            self.tma.codes_atom,
            self.gmem_codes[(None, tile, k, l)],
            self.smem_codes[(None, stage)],
            tma_bar_ptr=barrier,
        )
        cute.copy(
            self.tma.scales_atom,
            self.gmem_scales[(None, 0, k, scale_tile, l)],
            self.smem_scales[(None, stage)],
            tma_bar_ptr=barrier,
        )


@cute.jit
def load_role(scheduler, ring, loader_m: OperandLoader, loader_n: OperandLoader, landing_bytes: cutlass.Constexpr):
    """Fill the load ring for every work tile of this CTA (one warp)."""
    state = ring.producer_state()
    first, _, _ = cute.arch.block_idx()
    step, _, _ = cute.arch.grid_dim()
    for index in cutlass.range(first, scheduler.total(), step, unroll=1):
        work = scheduler.work(index)
        for k in cutlass.range(work.k_begin, work.k_begin + work.k_count, unroll=1):
            ring.wait_empty(state)
            with cute.arch.elect_one():
                ring.expect_bytes(state, landing_bytes)
            barrier = ring.full + state.index
            loader_m.issue(work.m, k, work.l, state.index, barrier)
            loader_n.issue(work.n, k, work.l, state.index, barrier)
            state.advance()
    # Leave only when every stage has been read: the CTA's shared memory must outlive the copies in flight.
    for _ in cutlass.range_constexpr(ring.spec.stages):
        ring.wait_empty(state)
        state.advance()
