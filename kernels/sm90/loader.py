"""The load warps: packed rows (or 16-bit activations) and block scales into the load ring.

TMA brings rows and tiled scales; one elected thread of one warp issues. It fills what lies outside a matrix with zeros,
and zero codes with zero scales add nothing, so tails in M, N and K need no other code.

Compact scales, rows of K/16 bytes, have no row pitch that TMA accepts. The other three warps of the load warpgroup copy
them with 4-byte cp.async (the 4 scales of one row and 64 elements of K) to where the 128x4 tile has them; after that
nothing knows the difference.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, Uint8
from cutlass._mlir.dialects import llvm
from cutlass.cute.nvgpu import cpasync, warpgroup
from cutlass.cutlass_dsl import dsl_user_op

from cutefp4.config import SCALE_TILE_BYTES, Sm90Config, Sm90Operand, scale_rows

from ..common.device_struct import DeviceStruct
from .number_format import FORMATS

SCALE_WORDS = SCALE_TILE_BYTES // 4
SCALE_WARPS = 3
"""Warps of the load warpgroup that copy compact scales."""

_PACKED_SWIZZLE = {
    1: warpgroup.SmemLayoutAtomKind.K_SW32,
    2: warpgroup.SmemLayoutAtomKind.K_SW64,
    4: warpgroup.SmemLayoutAtomKind.K_SW128,
}


def landed_layout(config: Sm90Config, operand: Sm90Operand, dtype):
    """Staged, swizzled shared layout (rows, row elements of dtype, load_stages): bytes of codes, or activations."""
    if operand.bits == 4:
        kind, columns = _PACKED_SWIZZLE[config.k_blocks], config.tile_k // 2
    else:
        kind, columns = warpgroup.SmemLayoutAtomKind.K_SW128, config.tile_k
    atom = warpgroup.make_smem_layout_atom(kind, dtype)
    return cute.tile_to_shape(atom, (operand.rows, columns, config.load_stages), order=(0, 1, 2))


def scale_layout(config: Sm90Config, operand: Sm90Operand):
    """Staged shared layout (words of a tile, k_blocks, row tiles, load_stages) of scale tiles."""
    return cute.make_layout((SCALE_WORDS, config.k_blocks, scale_rows(operand.rows), config.load_stages))


def operand_tma(rows: cute.Tensor, scales, operand: Sm90Operand, config: Sm90Config) -> tuple:
    """TMA descriptors of one operand.

    Args:
        rows: codes (L, R, K/2) uint8, or activations (L, R, K).
        scales: flat bytes, tiled; anything else if the operand's scales are not tiled.

    Returns:
        (atom, coordinates (R, columns, L)) of the rows, and with tiled scales (atom, coordinates (128 words, K tiles,
        row tiles, L)).
    """
    l, r, columns = rows.shape
    rkl = cute.make_tensor(rows.iterator, cute.make_layout((r, columns, l), stride=(columns, 1, r * columns)))
    op = cpasync.CopyBulkTensorTileG2SOp()
    layout = landed_layout(config, operand, rows.element_type)
    stage = cute.slice_(layout, (None, None, 0))
    box = (operand.rows, config.tile_k // 2 if operand.bits == 4 else config.tile_k)
    result = tuple(cpasync.make_tiled_tma_atom(op, rkl, stage, box))[:2]
    if operand.scales != "tiled":
        return result
    shape = (SCALE_WORDS, cute.ceil_div(columns, 32), cute.ceil_div(r, 128), l)
    words = cute.make_tensor(cute.recast_ptr(scales.iterator, dtype=Int32), cute.make_layout(shape))
    stage = cute.slice_(scale_layout(config, operand), (None, None, None, 0))
    box = (SCALE_WORDS, config.k_blocks, scale_rows(operand.rows))
    return (*result, *tuple(cpasync.make_tiled_tma_atom(op, words, stage, box))[:2])


class OperandLoader(DeviceStruct):
    """Issues the TMA copies of one operand into its stages."""

    def __init__(self, tma: tuple, landed, scales, operand: Sm90Operand, config: Sm90Config):
        self.atom, self.operand, self.config = tma[0], operand, config
        dtype = Uint8 if operand.bits == 4 else FORMATS[config.decode_to].dtype
        layout = landed_layout(config, operand, dtype)
        smem = cute.make_tensor(cute.recast_ptr(landed, layout.inner, dtype=dtype), layout.outer)
        columns = config.tile_k // 2 if operand.bits == 4 else config.tile_k
        self.smem, self.gmem = _partition(tma[0], smem, tma[1], (operand.rows, columns))
        self.scales_atom = self.smem_scales = self.gmem_scales = ()
        if operand.scales == "tiled":
            smem = cute.make_tensor(cute.recast_ptr(scales, dtype=Int32), scale_layout(config, operand))
            box = (SCALE_WORDS, config.k_blocks, scale_rows(operand.rows))
            self.scales_atom = tma[2]
            self.smem_scales, self.gmem_scales = _partition(tma[2], smem, tma[3], box)

    def prefetch_descriptors(self) -> None:
        cpasync.prefetch_descriptor(self.atom)
        if self.operand.scales == "tiled":
            cpasync.prefetch_descriptor(self.scales_atom)

    def issue(self, tile: Int32, k: Int32, l: Int32, stage: Int32, barrier: cute.Pointer) -> None:
        """Copy row tile `tile` and K stage `k` of batch `l` into `stage`; completes on `barrier`."""
        cute.copy(self.atom, self.gmem[(None, tile, k, l)], self.smem[(None, stage)], tma_bar_ptr=barrier)
        if self.operand.scales == "tiled":
            # A tile of fewer than 128 rows lies inside one 128-row scale tile.
            scale_tile = tile if self.operand.rows >= 128 else tile // (128 // self.operand.rows)
            source = self.gmem_scales[(None, 0, k, scale_tile, l)]
            cute.copy(self.scales_atom, source, self.smem_scales[(None, stage)], tma_bar_ptr=barrier)


def _partition(atom, smem: cute.Tensor, gmem: cute.Tensor, box: tuple):
    """TMA's view of a staged shared tensor and of a global tensor cut into boxes."""
    tiles = cute.local_tile(gmem, box, (None,) * cute.rank(gmem))
    rank = len(box)
    return cpasync.tma_partition(
        atom, 0, cute.make_layout(1), cute.group_modes(smem, 0, rank), cute.group_modes(tiles, 0, rank)
    )


@cute.jit
def load_role(scheduler, ring, loader_m: OperandLoader, loader_n: OperandLoader, tma_bytes: cutlass.Constexpr):
    """Fill the load ring for every work tile of this CTA (one warp)."""
    state = ring.producer_state()
    first, _, _ = cute.arch.block_idx()
    step, _, _ = cute.arch.grid_dim()
    for index in cutlass.range(first, scheduler.total(), step, unroll=1):
        work = scheduler.work(index)
        for k in cutlass.range(work.k_begin, work.k_begin + work.k_count, unroll=1):
            ring.wait_empty(state)
            with cute.arch.elect_one():
                ring.expect_bytes(state, tma_bytes)
            barrier = ring.full + state.index
            loader_m.issue(work.m, k, work.l, state.index, barrier)
            loader_n.issue(work.n, k, work.l, state.index, barrier)
            state.advance()
    # Leave only when every stage has been read: the CTA's shared memory must outlive the copies in flight.
    for _ in cutlass.range_constexpr(ring.spec.stages):
        ring.wait_empty(state)
        state.advance()


@dsl_user_op
def cp_async_word(destination: Int32, source: Int64, source_bytes: Int32, *, loc=None, ip=None) -> None:
    """4-byte cp.async; source_bytes 0 writes zeros and reads nothing. Through L1, which keeps the rest of the 32-byte
    sector."""
    arguments = [value.ir_value(loc=loc, ip=ip) for value in (destination, source, source_bytes)]
    code = "cp.async.ca.shared.global [$0], [$1], 4, $2;"
    llvm.inline_asm(None, arguments, code, "r,l,r,~{memory}", has_side_effects=True, loc=loc, ip=ip)


class CompactScaleLoader(DeviceStruct):
    """Copies the compact scales (L, R, K/16) of one operand into 128x4 tiles."""

    def __init__(self, scales: cute.Tensor, smem, stage_size: int, operand: Sm90Operand, config: Sm90Config, thread):
        self.scales, self.smem, self.stage_size, self.thread = scales, smem, stage_size, thread
        self.operand, self.config = operand, config

    @cute.jit
    def issue(self, tile: Int32, k: Int32, l: Int32, stage: Int32):
        """This thread's share of row tile `tile` and K stage `k` of batch `l`."""
        # A runtime loop: unrolled 8 times it spilled 136 bytes of the load warps' 40 registers.
        words = self.operand.rows * self.config.k_blocks
        for item in cutlass.range(self.thread, words, 32 * SCALE_WARPS, unroll=1):
            self._copy_word(tile, k, l, stage, item)

    def _copy_word(self, tile: Int32, k: Int32, l: Int32, stage: Int32, item: Int32) -> None:
        """Copy the 4 scales of one row and one block of 64, or write zeros outside the matrix."""
        rows, k_blocks = self.operand.rows, self.config.k_blocks
        _, size, columns = self.scales.shape
        row, k_tile = item // k_blocks, item % k_blocks
        source_row, column = tile * rows + row, 4 * (k * k_blocks + k_tile)
        inside = (source_row < size) & (column < columns)
        index = (Int64(l) * size + source_row) * columns + column
        source = self.scales.iterator.toint() + Int64(cutlass.select_(inside, index, Int64(0)))
        in_tile = row + ((tile * rows) % 128 if rows < 128 else 0)
        offset = ((in_tile // 128) * k_blocks + k_tile) * SCALE_TILE_BYTES
        offset += (in_tile % 32) * 16 + ((in_tile % 128) // 32) * 4
        destination = (self.smem + (stage * self.stage_size + offset)).toint()
        cp_async_word(Int32(destination), source, Int32(cutlass.select_(inside, Int32(4), Int32(0))))


@cute.jit
def compact_scale_role(scheduler, ring, loaders: list):
    """Fill the scales of the load ring for every work tile of this CTA (SCALE_WARPS warps)."""
    state = ring.producer_state()
    first, _, _ = cute.arch.block_idx()
    step, _, _ = cute.arch.grid_dim()
    for index in cutlass.range(first, scheduler.total(), step, unroll=1):
        work = scheduler.work(index)
        for k in cutlass.range(work.k_begin, work.k_begin + work.k_count, unroll=1):
            ring.wait_empty(state)
            for side, loader in loaders:
                loader.issue(work.m if side == "m" else work.n, k, work.l, state.index)
            cute.arch.cp_async_mbarrier_arrive_noinc(ring.full + state.index)
            state.advance()
    cute.arch.cp_async_commit_group()
    cute.arch.cp_async_wait_group(0)
