"""The load warps: packed rows and block scales into the load ring, 16-bit rows into the MMA ring.

TMA brings rows and tiled scales; one elected thread of a warp issues. It fills what lies outside a matrix with zeros,
and zero codes with zero scales add nothing, so tails in M, N and K need no other code.

A shared operand of 16 bits (staged, or activations) has a warp of its own. In a cluster each CTA loads a slice of its
rows and multicasts it to the others.

Compact scales, rows of K/16 bytes, have no row pitch that TMA accepts. Two more warps of the load warpgroup copy
them with 4-byte cp.async (the 4 scales of one row and 64 elements of K) to where the 128x4 tile has them; after that
nothing knows the difference.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, Uint8
from cutlass._mlir.dialects import llvm
from cutlass.cute.nvgpu import cpasync, warpgroup
from cutlass.cutlass_dsl import dsl_user_op

from cutefp4.config import K_BLOCK, SCALE_TILE_BYTES, Sm90Config, Sm90Operand, scale_rows

from ..common.device_struct import DeviceStruct
from ..scheduler import first_and_step

SCALE_WORDS = SCALE_TILE_BYTES // 4
SCALE_WARPS = 2
"""Warps of the load warpgroup that copy compact scales: the last ones."""

_PACKED_SWIZZLE = {
    1: warpgroup.SmemLayoutAtomKind.K_SW32,
    2: warpgroup.SmemLayoutAtomKind.K_SW64,
    4: warpgroup.SmemLayoutAtomKind.K_SW128,
}


def code_layout(config: Sm90Config, rows: int):
    """Swizzled shared layout (rows, bytes of codes, load_stages)."""
    atom = warpgroup.make_smem_layout_atom(_PACKED_SWIZZLE[config.k_blocks], Uint8)
    return cute.tile_to_shape(atom, (rows, config.tile_k // 2, config.load_stages), order=(0, 1, 2))


def decoded_layout(config: Sm90Config, dtype, slices: int = 1):
    """Swizzled shared layout (tile_n / slices, K of an MMA stage, mma_stages * slices) of the 16-bit shared operand."""
    atom = warpgroup.make_smem_layout_atom(warpgroup.SmemLayoutAtomKind.K_SW128, dtype)
    shape = (config.tile_n // slices, K_BLOCK * config.mma_blocks, config.mma_stages * slices)
    return cute.tile_to_shape(atom, shape, order=(0, 1, 2))


def scale_layout(config: Sm90Config, operand: Sm90Operand):
    """Staged shared layout (words of a tile, k_blocks, row tiles, load_stages) of scale tiles."""
    return cute.make_layout((SCALE_WORDS, config.k_blocks, scale_rows(operand.rows), config.load_stages))


def _rows_columns_batch(rows: cute.Tensor) -> cute.Tensor:
    """(L, R, columns) as (R, columns, L)."""
    l, r, columns = rows.shape
    return cute.make_tensor(rows.iterator, cute.make_layout((r, columns, l), stride=(columns, 1, r * columns)))


def packed_tma(codes: cute.Tensor, scales, operand: Sm90Operand, config: Sm90Config) -> tuple:
    """TMA descriptors of a packed operand.

    Args:
        codes: (L, R, K/2) uint8.
        scales: flat bytes, tiled; anything else if the operand's scales are not tiled.

    Returns:
        (atom, coordinates (R, K/2, L)) of the codes, and with tiled scales (atom, coordinates (128 words, K tiles, row
        tiles, L)).
    """
    l, r, columns = codes.shape
    op = cpasync.CopyBulkTensorTileG2SOp()
    stage = cute.slice_(code_layout(config, operand.rows), (None, None, 0))
    box = (operand.rows, config.tile_k // 2)
    result = tuple(cpasync.make_tiled_tma_atom(op, _rows_columns_batch(codes), stage, box))[:2]
    if operand.scales != "tiled":
        return result
    shape = (SCALE_WORDS, cute.ceil_div(columns, 32), cute.ceil_div(r, 128), l)
    words = cute.make_tensor(cute.recast_ptr(scales.iterator, dtype=Int32), cute.make_layout(shape))
    stage = cute.slice_(scale_layout(config, operand), (None, None, None, 0))
    box = (SCALE_WORDS, config.k_blocks, scale_rows(operand.rows))
    return (*result, *tuple(cpasync.make_tiled_tma_atom(op, words, stage, box))[:2])


def shared_tma(rows: cute.Tensor, config: Sm90Config) -> tuple:
    """TMA atom and coordinates (R, K, L) of a 16-bit shared operand (L, R, K), for boxes of one CTA's slice."""
    op = cpasync.CopyBulkTensorTileG2SMulticastOp() if config.cluster > 1 else cpasync.CopyBulkTensorTileG2SOp()
    stage = cute.slice_(decoded_layout(config, rows.element_type, config.cluster), (None, None, 0))
    box = (config.tile_n // config.cluster, K_BLOCK)
    return tuple(cpasync.make_tiled_tma_atom(op, _rows_columns_batch(rows), stage, box))[:2]


class PackedLoader(DeviceStruct):
    """Issues the TMA copies of one packed operand into its load stages."""

    def __init__(self, tma: tuple, landed, scales, operand: Sm90Operand, config: Sm90Config):
        self.atom, self.operand, self.config = tma[0], operand, config
        layout = code_layout(config, operand.rows)
        smem = cute.make_tensor(cute.recast_ptr(landed, layout.inner, dtype=Uint8), layout.outer)
        self.smem, self.gmem = _partition(tma[0], smem, tma[1], (operand.rows, config.tile_k // 2))
        self.scales_atom = self.smem_scales = self.gmem_scales = ()
        if operand.scales == "tiled":
            smem = cute.make_tensor(cute.recast_ptr(scales, dtype=Int32), scale_layout(config, operand))
            box = (SCALE_WORDS, config.k_blocks, scale_rows(operand.rows))
            self.scales_atom = tma[2]
            self.smem_scales, self.gmem_scales = _partition(tma[2], smem, tma[3], box)

    def issue(self, tile: Int32, k: Int32, l: Int32, stage: Int32, barrier: cute.Pointer) -> None:
        """Copy row tile `tile` and K stage `k` of batch `l` into `stage`; completes on `barrier`."""
        cute.copy(self.atom, self.gmem[(None, tile, k, l)], self.smem[(None, stage)], tma_bar_ptr=barrier)
        if self.operand.scales == "tiled":
            # A tile of fewer than 128 rows lies inside one 128-row scale tile.
            scale_tile = tile if self.operand.rows >= 128 else tile // (128 // self.operand.rows)
            source = self.gmem_scales[(None, 0, k, scale_tile, l)]
            cute.copy(self.scales_atom, source, self.smem_scales[(None, stage)], tma_bar_ptr=barrier)


class SharedLoader(DeviceStruct):
    """Issues the TMA copies of a 16-bit shared operand: this CTA's slice of each MMA stage, to its whole cluster."""

    def __init__(self, tma: tuple, decoded, dtype, config: Sm90Config, rank: Int32):
        self.atom, self.config, self.rank = tma[0], config, rank
        layout = decoded_layout(config, dtype, config.cluster)
        smem = cute.make_tensor(cute.recast_ptr(decoded, layout.inner, dtype=dtype), layout.outer)
        self.smem, self.gmem = _partition(tma[0], smem, tma[1], (config.tile_n // config.cluster, K_BLOCK))

    def issue(self, tile: Int32, k: Int32, l: Int32, stage: Int32, barrier: cute.Pointer) -> None:
        """Copy this CTA's rows of tile `tile`, block `k` of 64 along K of batch `l`; completes on `barrier`."""
        cluster = self.config.cluster
        source = self.gmem[(None, tile * cluster + self.rank, k, l)]
        multicast = {"mcast_mask": cutlass.Int16((1 << cluster) - 1)} if cluster > 1 else {}
        cute.copy(self.atom, source, self.smem[(None, stage * cluster + self.rank)], tma_bar_ptr=barrier, **multicast)


def _partition(atom, smem: cute.Tensor, gmem: cute.Tensor, box: tuple):
    """TMA's view of a staged shared tensor and of a global tensor cut into boxes."""
    tiles = cute.local_tile(gmem, box, (None,) * cute.rank(gmem))
    rank = len(box)
    return cpasync.tma_partition(
        atom, 0, cute.make_layout(1), cute.group_modes(smem, 0, rank), cute.group_modes(tiles, 0, rank)
    )


@cute.jit
def load_role(scheduler, ring, loaders: list, config: cutlass.Constexpr, tma_bytes: cutlass.Constexpr):
    """Fill the load ring for every work tile of this CTA (one warp). loaders: (side "m" or "n", PackedLoader)."""
    state = ring.producer_state()
    first, step = first_and_step(config.cluster)
    for index in cutlass.range(first, scheduler.total(), step, unroll=1):
        work = scheduler.work(index)
        for k in cutlass.range(work.k_begin, work.k_begin + work.k_count, unroll=1):
            ring.wait_empty(state)
            with cute.arch.elect_one():
                ring.expect_bytes(state, tma_bytes)
            for side, loader in loaders:
                loader.issue(work.m if side == "m" else work.n, k, work.l, state.index, ring.full + state.index)
            state.advance()
    drain(ring, state)


@cute.jit
def shared_load_role(scheduler, ring, loader: SharedLoader, config: cutlass.Constexpr, stage_bytes: cutlass.Constexpr):
    """Fill the MMA ring for every work tile of this CTA (one warp)."""
    state = ring.producer_state()
    first, step = first_and_step(config.cluster)
    for index in cutlass.range(first, scheduler.total(), step, unroll=1):
        work = scheduler.work(index)
        k_begin, k_end = work.k_begin * config.k_blocks, (work.k_begin + work.k_count) * config.k_blocks
        for k in cutlass.range(k_begin, k_end, unroll=1):
            ring.wait_empty(state)
            with cute.arch.elect_one():
                ring.expect_bytes(state, stage_bytes)
            loader.issue(work.n, k, work.l, state.index, ring.full + state.index)
            state.advance()
    drain(ring, state)


@cute.jit
def drain(ring, state):
    """Wait until every stage has been read: shared memory must outlive the copies into it, and in a cluster its
    barriers the other CTAs' arrivals."""
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
def compact_scale_role(scheduler, ring, loaders: list, config: cutlass.Constexpr):
    """Fill the scales of the load ring for every work tile of this CTA (SCALE_WARPS warps)."""
    state = ring.producer_state()
    first, step = first_and_step(config.cluster)
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
