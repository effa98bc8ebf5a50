"""The MMA warp of a group's leader: scales to tensor memory, then tcgen05.mma, for every stage of every work tile.

Per stage and block of 64 along K: one scale tile of A and sfb_tiles of B are copied to tensor memory, and one MMA of
tile_m x tile_n x 64 follows in the same in-order queue.

Scales of B are addressed by 64 rows: a tile that starts in the middle of a 128-row scale tile (tile_n 64 or 192, odd
tile) finds its rows 2 columns further on.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from cutefp4.config_sm100 import K_BLOCKS, SCALE_TILE_BYTES, Sm100Config, stage_bytes, tmem_layout

from ..common.device_struct import DeviceStruct
from . import tcgen05

_CODE_STEP = 32 >> 4
"""A block of 64 codes, in the descriptor's unit of 16 bytes."""
_SCALE_STEP = SCALE_TILE_BYTES >> 4


class StageMma(DeviceStruct):
    """Issues the copies and MMAs of one stage (one thread)."""

    def __init__(self, storage, tmem: Int32, config: Sm100Config):
        self.tmem, self.config, self.layout = tmem, config, tmem_layout(config)
        self.descriptors = [
            tcgen05.smem_descriptor(Int32(pointer.toint()), kind)
            for pointer, kind in (
                (storage.a, tcgen05.CODE_DESCRIPTOR),
                (storage.b, tcgen05.CODE_DESCRIPTOR),
                (storage.sfa, tcgen05.SCALE_DESCRIPTOR),
                (storage.sfb, tcgen05.SCALE_DESCRIPTOR),
            )
        ]

    def issue(self, stage: Int32, acc: Int32, sfb_shift: Int32, continued) -> None:
        """Multiply `stage` into accumulator address `acc`, added to what is there if `continued`."""
        config, layout, size = self.config, self.layout, stage_bytes(self.config)
        group, tiles = config.cta_group, config.sfb_tiles
        strides = (size.a, size.b, size.sfa, size.sfb)
        a, b, sfa, sfb = (
            descriptor + cutlass.Int64(stage * (stride >> 4))
            for descriptor, stride in zip(self.descriptors, strides, strict=True)
        )
        instruction = tcgen05.instruction_descriptor(config.tile_m, config.tile_n)
        for q in range(K_BLOCKS):
            tcgen05.copy_scales(group, self.tmem + (layout.sfa + 4 * q), sfa + q * _SCALE_STEP)
            for t in range(tiles):
                column = layout.sfb + 4 * (q * tiles + t)
                tcgen05.copy_scales(group, self.tmem + column, sfb + (t * K_BLOCKS + q) * _SCALE_STEP)
        for q in range(K_BLOCKS):
            accumulate = cutlass.Boolean(True) if q else continued
            tcgen05.mma(
                group,
                acc,
                a + q * _CODE_STEP,
                b + q * _CODE_STEP,
                instruction,
                self.tmem + (layout.sfa + 4 * q),
                self.tmem + (layout.sfb + 4 * q * tiles) + sfb_shift,
                accumulate,
            )


def acc_column(state, layout, producer: bool) -> Int32:
    """First column of the accumulator at a ring position.

    Overlapped accumulators alternate on a ring of one stage, where the phase tells which; a producer's phase starts at
    1."""
    index = (state.phase ^ 1 if producer else state.phase) if layout.overlapped else state.index
    return index * layout.acc_step


@cute.jit
def mma_role(scheduler, queue, rings, place, stage_mma: StageMma):
    """Multiply every work tile of this group (one warp of its leader)."""
    load_ring, acc_ring = rings
    config, layout = stage_mma.config, stage_mma.layout
    readers = place.senders() if config.cluster_size > 1 else None
    group = place.group() if config.cta_group > 1 else None
    load_state, acc_state = load_ring.consumer_state(), acc_ring.producer_state()
    while queue.more():
        work = scheduler.work(queue.index)
        sfb_shift = Int32(0)
        if cutlass.const_expr(config.tile_n % 128 == 64):
            sfb_shift = 2 * (place.n_tile(work) % 2)
        acc_ring.wait_empty(acc_state)
        tcgen05.fence_after()
        acc = stage_mma.tmem + acc_column(acc_state, layout, True)
        for k in cutlass.range(work.k_count, unroll=1):
            load_ring.wait_full(load_state)
            tcgen05.fence_after()
            with cute.arch.elect_one():
                stage_mma.issue(load_state.index, acc, sfb_shift, k > 0)
                tcgen05.commit(config.cta_group, Int32((load_ring.empty + load_state.index).toint()), readers)
            load_state.advance()
        with cute.arch.elect_one():
            tcgen05.commit(config.cta_group, Int32((acc_ring.full + acc_state.index).toint()), group)
        acc_state.advance()
        queue.advance()
