"""The load warp: codes and scale tiles into the load ring by TMA.

A cluster loads nothing twice: CTAs that need the same rows of A or B, or the same scales, load a slice each and
multicast it to the others. Codes are sliced along their rows, scale tiles along K.

TMA fills what lies outside a matrix with zeros, and zero codes with zero scales add nothing, so tails in M, N and K
need no other code. (The MMA reads whole blocks of 64 along K: scales behind K must be zero, as the tiled layout
guarantees.)
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Uint8
from cutlass.cute.nvgpu import cpasync, tcgen05

from cutefp4.config_sm100 import CTA_ROWS, K_BLOCKS, ROW_BYTES, SCALE_TILE_BYTES, Sm100Config, stage_bytes

from ..common.device_struct import DeviceStruct

SCALE_WORDS = SCALE_TILE_BYTES // 4


def code_layout(rows: int, slots: int):
    """Shared layout (rows, 128 bytes, slots) of slices of codes, 128-byte swizzle."""
    atom = tcgen05.make_smem_layout_atom(tcgen05.SmemLayoutAtomKind.K_SW128, Uint8)
    return cute.tile_to_shape(atom, (rows, ROW_BYTES, slots), order=(0, 1, 2))


def _load_op(config: Sm100Config, slices: int):
    group = tcgen05.CtaGroup.TWO if config.cta_group == 2 else tcgen05.CtaGroup.ONE
    return cpasync.CopyBulkTensorTileG2SMulticastOp(group) if slices > 1 else cpasync.CopyBulkTensorTileG2SOp(group)


def code_tma(codes: cute.Tensor, rows: int, slices: int, config: Sm100Config) -> tuple:
    """TMA atom and coordinates (R, K/2, L) of codes (L, R, K/2), for boxes of rows / slices rows."""
    l, r, columns = codes.shape
    rkl = cute.make_tensor(codes.iterator, cute.make_layout((r, columns, l), stride=(columns, 1, r * columns)))
    stage = cute.slice_(code_layout(rows // slices, 1), (None, None, 0))
    return tuple(cpasync.make_tiled_tma_atom(_load_op(config, slices), rkl, stage, (rows // slices, ROW_BYTES)))[:2]


def scale_tma(scales: cute.Tensor, codes: cute.Tensor, slices: int, config: Sm100Config) -> tuple:
    """TMA atom and coordinates (128 words, K tiles, row tiles, L) of tiled scales, for boxes of 4 / slices tiles."""
    l, r, columns = codes.shape
    shape = (SCALE_WORDS, cute.ceil_div(columns, 32), cute.ceil_div(r, 128), l)
    words = cute.make_tensor(cute.recast_ptr(scales.iterator, dtype=Int32), cute.make_layout(shape))
    box = (SCALE_WORDS, K_BLOCKS // slices, 1)
    return tuple(cpasync.make_tiled_tma_atom(_load_op(config, slices), words, cute.make_layout(box), box))[:2]


class SliceLoader(DeviceStruct):
    """Copies this CTA's slice of a buffer, and multicasts it."""

    def __init__(self, tma: tuple, smem: cute.Tensor, box: tuple, slices: int, mask: Int32):
        self.atom, self.slices, self.mask = tma[0], slices, mask
        tiles = cute.local_tile(tma[1], box, (None,) * cute.rank(tma[1]))
        rank = len(box)
        self.smem, self.gmem = cpasync.tma_partition(
            self.atom, 0, cute.make_layout(1), cute.group_modes(smem, 0, rank), cute.group_modes(tiles, 0, rank)
        )

    def issue(self, coordinates: tuple, slot: Int32, barrier: cute.Pointer) -> None:
        """Copy the box at `coordinates` (in boxes) into shared-memory slot `slot` (of one slice each)."""
        multicast = {"mcast_mask": cutlass.Int16(self.mask)} if self.slices > 1 else {}
        cute.copy(self.atom, self.gmem[(None, *coordinates)], self.smem[(None, slot)], tma_bar_ptr=barrier, **multicast)


class StageLoader(DeviceStruct):
    """The four copies that fill one stage of this CTA (and slices of its neighbours' stages)."""

    def __init__(self, tma: tuple, storage, place, config: Sm100Config):
        self.config, self.place = config, place
        a, sfa, b, sfb = tma
        self.a = self._codes(a, storage.a, CTA_ROWS, config.a_slices, place.same_m())
        self.b = self._codes(b, storage.b, config.b_rows, config.b_slices, place.same_b())
        self.sfa = self._scales(sfa, storage.sfa, 1, config.a_slices, place.same_m())
        self.sfb = self._scales(sfb, storage.sfb, config.sfb_tiles, config.sfb_slices, place.same_n())

    def _codes(self, tma: tuple, pointer, rows: int, slices: int, mask) -> SliceLoader:
        layout = code_layout(rows // slices, slices * self.config.stages)
        smem = cute.make_tensor(cute.recast_ptr(pointer, layout.inner, dtype=Uint8), layout.outer)
        return SliceLoader(tma, smem, (rows // slices, ROW_BYTES), slices, mask)

    def _scales(self, tma: tuple, pointer, tiles: int, slices: int, mask) -> SliceLoader:
        box = (SCALE_WORDS, K_BLOCKS // slices, 1)
        layout = cute.make_layout((*box, slices * tiles * self.config.stages))
        return SliceLoader(tma, cute.make_tensor(cute.recast_ptr(pointer, dtype=Int32), layout), box, slices, mask)

    def prefetch_descriptors(self) -> None:
        for loader in (self.a, self.b, self.sfa, self.sfb):
            cpasync.prefetch_descriptor(loader.atom)

    def issue(self, work, k: Int32, stage: Int32, barrier: cute.Pointer) -> None:
        """K stage `k` of work tile `work` into `stage`; completes on `barrier` of the group's leader."""
        config, place = self.config, self.place
        m, n, l = place.m_tile(work), place.n_tile(work), work.l
        slice_a, slices_a = place.n, config.a_slices
        slice_b, slices_b = place.m // config.cta_group, config.b_slices
        part_b = n * config.cta_group + place.m % config.cta_group
        self.a.issue((m * slices_a + slice_a, k, l), stage * slices_a + slice_a, barrier)
        self.b.issue((part_b * slices_b + slice_b, k, l), stage * slices_b + slice_b, barrier)
        self.sfa.issue((0, k * slices_a + slice_a, m, l), stage * slices_a + slice_a, barrier)
        first_tile = n * config.tile_n // 128
        for t in range(config.sfb_tiles):
            slot = (stage * config.sfb_tiles + t) * config.sfb_slices + place.m
            self.sfb.issue((0, k * config.sfb_slices + place.m, first_tile + t, l), slot, barrier)


@cute.jit
def load_role(scheduler, queue, ring, loader: StageLoader):
    """Fill the load ring for every work tile of this CTA (one warp)."""
    config, place = loader.config, loader.place
    group_bytes = config.cta_group * stage_bytes(config).total
    state = ring.producer_state()
    while queue.more():
        work = scheduler.work(queue.index)
        for k in cutlass.range(work.k_begin, work.k_begin + work.k_count, unroll=1):
            ring.wait_empty(state)
            if place.rank == place.leader:
                with cute.arch.elect_one():
                    ring.expect_bytes(state, group_bytes)
            loader.issue(work, k, state.index, ring.full + state.index)
            state.advance()
        queue.advance()
    # Leave only when every stage has been read: the shared memory of a cluster must outlive the copies into it.
    for _ in cutlass.range_constexpr(ring.spec.stages):
        ring.wait_empty(state)
        state.advance()
