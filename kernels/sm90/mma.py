"""The consumer warpgroups: decode the register operand and issue wgmma.

For each sub-tile of 64 along K and each 64-row tile m, four m64nNk16 wgmma with A in registers form one group. While a group
runs, the next one's fragment is decoded: `wait_group(1)` before a decode leaves exactly the latest group in flight, so the
tensor core always has work queued and two fragment buffers are enough.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32
from cutlass.cute.nvgpu import warpgroup

from cutefp4.config import K_BLOCK, Sm90Config

from ..common.device_struct import DeviceStruct
from .decode import RegisterOperandReader, decode_fragment, first_scale_row


class WarpgroupMma(DeviceStruct):
    """Accumulators and fragments of one consumer warpgroup: m_atoms tiles of 64 x tile_n."""

    def __init__(self, tiled_mma: cute.TiledMma, shared_operand: cute.Tensor, config: Sm90Config):
        self.tiled_mma, self.config = tiled_mma, config
        thread_mma = tiled_mma.get_slice(0)
        self.fragment_n = tiled_mma.make_fragment_B(thread_mma.partition_B(shared_operand))
        acc_shape = tiled_mma.partition_shape_C((64, config.tile_n))
        self.acc = [cute.make_rmem_tensor(acc_shape, Float32) for _ in range(config.m_atoms)]
        # Two buffers need an even number of groups per stage, so that the parity is known at compile time.
        self.buffers = 2 - (config.m_atoms * config.k_blocks) % 2
        shape = tiled_mma.partition_shape_A((64, K_BLOCK))
        self.fragments = [tiled_mma.make_fragment_A(shape) for _ in range(self.buffers)]
        self.registers = [cute.recast_tensor(f, Uint32) for f in self.fragments]

    def clear(self) -> None:
        for acc in self.acc:
            acc.fill(0.0)

    def issue(self, m: int, q: int, buffer: int, stage: Int32) -> None:
        """One group: 64-row tile m (its fragment in `buffer`) times sub-tile q of the shared operand in `stage`."""
        warpgroup.fence()
        for s in range(4):
            cute.gemm(
                self.tiled_mma,
                self.acc[m],
                self.fragments[buffer][(None, None, s)],
                self.fragment_n[(None, None, 4 * q + s, stage)],
                self.acc[m],
            )
        warpgroup.commit_group()


@cute.jit
def mainloop(
    work, mma: WarpgroupMma, reader: RegisterOperandReader, rings, states, size: cutlass.Constexpr, lane: Int32
):
    """Accumulate one work tile; returns the advanced (load, mma) ring positions."""
    load_ring, mma_ring = rings
    load_state, mma_state = states
    config = mma.config
    groups = config.m_atoms * config.k_blocks
    mma.clear()
    mma.tiled_mma.set(warpgroup.Field.ACCUMULATE, True)
    previous = mma_state.index
    scale_row0 = first_scale_row(work.m, config.tile_m)
    for k in cutlass.range(work.k_count, unroll=1):
        load_ring.wait_full(load_state)
        for group in cutlass.range_constexpr(groups):
            q, m = group // config.m_atoms, group % config.m_atoms
            bases = (load_state.index * size.packed_m, load_state.index * size.scales_m, scale_row0)
            packed = reader.load(bases, m, q)
            if cutlass.const_expr(group == groups - 1):
                cute.arch.sync_warp()
                if lane == 0:
                    load_ring.arrive_empty(load_state.index)
            # All groups but the latest are done, so this fragment buffer is free ...
            warpgroup.wait_group(mma.buffers - 1)
            if cutlass.const_expr(group == mma.buffers - 1):
                # ... and so is the previous stage of the shared operand.
                if k > 0:
                    if lane == 0:
                        mma_ring.arrive_empty(previous)
            decode_fragment(*packed, mma.registers[group % mma.buffers])
            if cutlass.const_expr(group == 0):
                mma_ring.wait_full(mma_state)
            mma.issue(m, q, group % mma.buffers, mma_state.index)
        previous = mma_state.index
        load_state.advance()
        mma_state.advance()
    warpgroup.wait_group(0)
    if work.k_count > 0:
        if lane == 0:
            mma_ring.arrive_empty(previous)
    return load_state, mma_state
