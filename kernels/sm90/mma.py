"""The consumer warpgroups: decode the register operand and issue wgmma.

The unit is a *group*: `steps_per_group` m64nNk16 wgmma with A in registers, of one 64-row tile m and one sub-tile of 64
along K. A group's fragment is decoded right before its wgmma are issued, while earlier groups run. Fragments rotate
through a ring of buffers (`fragment_registers` in all); `wait_group(buffers - 1)` before a decode keeps as many groups
in flight as there are other buffers. It also says which MMA stages nobody of this warpgroup reads any more.

ptxas must see that no register of a running wgmma is touched, or it serialises all of them (warning C7513, and DEPBAR
... 0x0 after every HGMMA). Packed words are read one 64-row tile ahead of their use, but only within a stage: reading
ahead across the wait for the next stage was enough to lose it.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32
from cutlass.cute.nvgpu import OperandMajorMode, warpgroup

from cutefp4.config import K_BLOCK, Sm90Config

from ..common.device_struct import DeviceStruct
from .decode import RegisterOperandReader, first_scale_row
from .number_format import FORMATS

STEPS = K_BLOCK // 16
"""wgmma k-steps of one sub-tile."""


def register_operand_mma(dtype, tile_n: int) -> cute.TiledMma:
    """wgmma of one warpgroup: 64 rows in registers times tile_n rows in shared memory, both along K, sums in fp32."""
    major = OperandMajorMode.K
    op = warpgroup.MmaF16BF16Op(dtype, Float32, (64, tile_n, 16), warpgroup.OperandSource.RMEM, major, major)
    return cute.make_tiled_mma(op)


class WarpgroupMma(DeviceStruct):
    """Accumulators and fragments of one consumer warpgroup: m_atoms tiles of 64 x tile_n."""

    def __init__(self, tiled_mma: cute.TiledMma, shared_operand: cute.Tensor, config: Sm90Config):
        self.tiled_mma, self.config = tiled_mma, config
        thread_mma = tiled_mma.get_slice(0)
        self.fragment_n = tiled_mma.make_fragment_B(thread_mma.partition_B(shared_operand))
        acc_shape = tiled_mma.partition_shape_C((64, config.tile_n))
        self.acc = [cute.make_rmem_tensor(acc_shape, Float32) for _ in range(config.m_atoms)]
        self.buffers = config.fragment_buffers
        shape = tiled_mma.partition_shape_A((64, 16 * config.steps_per_group))
        self.fragments = [tiled_mma.make_fragment_A(shape) for _ in range(self.buffers)]
        self.registers = [cute.recast_tensor(f, Uint32) for f in self.fragments]

    def clear(self) -> None:
        for acc in self.acc:
            acc.fill(0.0)

    def accumulating(self, value) -> cute.TiledMma:
        """The wgmma that adds to the accumulators where `value` is true, and overwrites them elsewhere.

        A new one: it carries `value`, which may belong to the body of a loop.
        """
        tiled_mma = cute.make_tiled_mma(self.tiled_mma.op)
        tiled_mma.set(warpgroup.Field.ACCUMULATE, value)
        return tiled_mma

    def issue(self, m: int, first_step: int, buffer: int, stage: Int32, not_first) -> None:
        """One group: 64-row tile m (its fragment in `buffer`) times k-steps first_step.. of the shared operand.

        not_first: whether to add to what the accumulators hold.
        """
        warpgroup.fence()
        for s in range(self.config.steps_per_group):
            cute.gemm(
                self.accumulating(not_first if s == 0 else True),
                self.acc[m],
                self.fragments[buffer][(None, None, s)],
                self.fragment_n[(None, None, first_step + s, stage)],
                self.acc[m],
            )
        warpgroup.commit_group()


@cute.jit
def mainloop(
    work,
    mma: WarpgroupMma,
    reader: RegisterOperandReader,
    rings,
    states,
    size: cutlass.Constexpr,
    lane: Int32,
    meanwhile: tuple,
):
    """Accumulate one work tile; returns the advanced (load, mma) ring positions.

    meanwhile: the epilogue, and the tile that it finishes, for which it loads C; or ().
    """
    load_ring, mma_ring = rings
    load_state, mma_state = states
    config = mma.config
    fmt = FORMATS[config.decode_to]
    parts = config.m_atoms * config.k_blocks
    per_part = STEPS // config.steps_per_group
    per_mma_stage, in_flight = config.groups_per_mma_stage, config.stages_in_flight
    mma_stages_per_load = config.k_blocks // config.mma_blocks
    # The first wgmma of a tile overwrites the accumulators, unless there may be none (a share of K without stages).
    overwrites = config.splits == 1
    if cutlass.const_expr(not overwrites):
        mma.clear()
    scale_offset = reader.scale_offset(first_scale_row(work.m, config.tile_m))
    landed = load_ring.is_full(load_state)
    for k in cutlass.range(work.k_count, unroll=1):
        load_ring.wait_full_unless(landed, load_state)
        stage = load_state.index
        load_state.advance()
        ahead = reader.load(stage, size, scale_offset, 0, 0)
        for part in cutlass.range_constexpr(parts):
            q, m = part // config.m_atoms, part % config.m_atoms
            words, scales = ahead
            if cutlass.const_expr(part < parts - 1):
                ahead = reader.load(
                    stage, size, scale_offset, (part + 1) % config.m_atoms, (part + 1) // config.m_atoms
                )
            multipliers = reader.multipliers(fmt, scales)
            for i in cutlass.range_constexpr(per_part):
                group = part * per_part + i
                buffer = group % mma.buffers
                # This buffer's last group is done ...
                warpgroup.wait_group(mma.buffers - 1)
                if cutlass.const_expr(group % per_mma_stage == (mma.buffers - 1) % per_mma_stage):
                    # ... and with it a whole stage of the shared operand.
                    earlier = group // per_mma_stage - in_flight
                    if cutlass.const_expr(earlier >= 0):
                        release(config, mma_ring, mma_state.index - in_flight, lane)
                    else:
                        if k * mma_stages_per_load >= -earlier:
                            release(config, mma_ring, mma_state.index - in_flight, lane)
                if cutlass.const_expr(group == parts * per_part - 1):
                    landed = load_ring.is_full(load_state)
                if cutlass.const_expr(group % per_mma_stage == 0):
                    filled = mma_ring.is_full(mma_state)
                step = i * config.steps_per_group
                reader.decode(fmt, words, multipliers, step, config.steps_per_group, mma.registers[buffer])
                if cutlass.const_expr(group % per_mma_stage == 0):
                    mma_ring.wait_full_unless(filled, mma_state)
                not_first = k > 0 if overwrites and part < config.m_atoms and i == 0 else True
                mma.issue(m, STEPS * (q % config.mma_blocks) + step, buffer, mma_state.index, not_first)
                if cutlass.const_expr(group % per_mma_stage == per_mma_stage - 1):
                    mma_state.advance()
            if cutlass.const_expr(part == parts - 1):
                # Only now that every packed word has been decoded. Releasing the stage right behind the last loads was
                # legal PTX and raced on an H200: ptxas puts SYNCS.ARRIVE behind LDS whose data are still in flight, and
                # with W4A16 under stream-K 3 of 200 runs read bytes of the next stage.
                cute.arch.sync_warp()
                if lane == 0:
                    load_ring.arrive_empty(stage)
        if cutlass.const_expr(len(meanwhile) > 0):
            meanwhile[0].during(meanwhile[1], k)
    warpgroup.wait_group(0)
    for back in cutlass.range_constexpr(in_flight, 0, -1):
        if work.k_count * mma_stages_per_load >= back:
            release(config, mma_ring, mma_state.index - back, lane)
    return load_state, mma_state


@cute.jit
def release(config: cutlass.Constexpr, mma_ring, index: Int32, lane: Int32):
    """This warp has read MMA stage `index` (modulo the ring): tell the producers, in a cluster those of every CTA."""
    stage = cutlass.select_(index < 0, index + config.mma_stages, index)
    if cutlass.const_expr(config.cluster > 1):
        if lane < config.cluster:
            mma_ring.arrive_empty_at(stage, lane)
    else:
        if lane == 0:
            mma_ring.arrive_empty(stage)
