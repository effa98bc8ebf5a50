"""GEMM for some dozens of rows of A on Hopper: one wgmma takes all of them. D = epilogue(A * B^T), M <= 128.

    acc[i, j] = sum_k (e2m1 * e4m3)_a[i, k] * (e2m1 * e4m3)_b[j, k]        W4A4; with 16-bit A: W4A16

    A    codes (L, M, K/2) uint8 and E4M3 scales (tiled or compact), or activations (L, M, K) bf16 / fp16
    B    codes (L, N, K/2) uint8 and scales in 128x4 tiles: the weight
    D    (L, M, N)

A small kernel before this one brings A into 16 bits an element and the order of the decoded weight
(few_rows_activations.py); this one begins beside it.

The weight is the register operand of wgmma, 64 rows of it times all rows of A; it is read once. Warps of a CTA:

    4 * atoms * k_groups     decode the weight and multiply: a warpgroup has one 64-row atom, and of the stages along
                             K every k_groups-th                                        decode.py
    4                        one loads the weight by TMA, one the activations           loader.py

One ring of stages, 128 along K, holds both operands. K is shared further by the CTAs of a cluster. Sums meet in
distributed shared memory (small_m_reduce.py): no partial sums in global memory, and the same order in every run.

What bounds a stage of 256 rows times 64, in clocks: tensor core 1024; shared memory 976 (512 of them wgmma's reads of
A, which each atom repeats); issue slots 900. So as many warps as possible decode (16), and up to four wgmma of each are
in flight.

Constraints: K % 64 == 0, any N >= 1, M <= tile_n; no SwiGLU over column pairs; sm_90a.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32, Int64, Uint8, Uint32
from cutlass.cute.nvgpu import cpasync, warpgroup
from cutlass.cute.runtime import make_fake_stream
from cutlass.memory import SmemAllocator

from cutefp4.config_few_rows import LOADER_REGISTERS, STAGE_K, FewRowsConfig, partial_bytes
from cutefp4.gemm_plan_few_rows import Sm90FewRowsPlan

from ..common import ptx
from ..common.barriers import Ring, RingSpec
from ..common.device_struct import DeviceStruct
from ..epilogue.arguments import DTYPES, fake_matrix, fake_tensors
from ..epilogue.fragment import Fragment
from .decode import RegisterOperandReader, first_scale_row
from .few_rows_activations import ActivationLoader, ActivationStager, activation_tma
from .loader import PackedLoader, decoded_layout, packed_tma
from .mma import WarpgroupMma, register_operand_mma
from .number_format import FORMATS
from .small_m_reduce import Partials, SmallMEpilogue
from .smem_layout import StageBytes


class Storage(DeviceStruct):
    """Shared memory of a CTA: the ring's barriers and stages, and the sums that it finishes."""

    def __init__(self, config: FewRowsConfig, size: StageBytes):
        smem, stages = SmemAllocator(), config.stages
        self.full, self.empty = smem.allocate_array(Int64, stages), smem.allocate_array(Int64, stages)

        def buffer(count: int) -> cute.Pointer:
            return smem.allocate_array(Uint8, count, byte_alignment=1024)

        counts = [stages * size.landed_m, stages * size.decoded_n, stages * size.scales_m]
        if config.overlay:
            # In one piece, so that sums can lie over them.
            first = buffer(max(sum(counts), partial_bytes(config)))
            self.landed_m, self.decoded_n = first, first + counts[0]
            self.scales_m, self.partials = first + (counts[0] + counts[1]), first
        else:
            self.landed_m, self.decoded_n, self.scales_m = (buffer(count) for count in counts)
            self.partials = buffer(partial_bytes(config))


class FewRowsEpilogue(SmallMEpilogue):
    """The tree on one 16x8 tile of sums, whose rows g and g + 8 lie 8 apart."""

    def fragment(self, first_row: Int32, nt) -> Fragment:
        return Fragment(first_row, nt * 8 + self.lane % 4 * 2, self.l, self.size_m, self.size_n, True)


class FewRows:
    """The kernel of one plan; attributes are compile-time constants."""

    def __init__(self, plan: Sm90FewRowsPlan):
        self.plan, self.config = plan, plan.config
        self.tiles, self.weight = plan.config.tiles(), plan.config.weight()
        self.format = FORMATS[plan.config.decode_to]
        self.acc_exponent = self.format.product_exponent * (2 if plan.activations == "nvfp4" else 1)
        self.size = StageBytes(
            landed_m=self.weight.tile_bytes(self.tiles),
            landed_n=0,
            scales_m=self.weight.scale_bytes(self.tiles),
            scales_n=0,
            decoded_n=2 * STAGE_K * plan.config.tile_n,
            tma=self.weight.tma_bytes(self.tiles),
        )

    @cute.jit
    def __call__(self, a, a_scales, b, b_scales, epilogue_tensors, stream):
        """Launch.

        a: codes (L, M, K/2) or activations (L, M, K). a_scales: flat bytes if tiled, (L, M, K/16) if compact. b:
        (L, N, K/2). b_scales: flat bytes. epilogue_tensors: those of `plan.tensor_names()`.
        """
        config, staged = self.config, epilogue_tensors[-1]
        l, n, _ = b.shape
        ActivationStager(self.format, self.plan.activations, self.plan.a_scales).launch(a, a_scales, staged, stream)
        tma = packed_tma(b, b_scales, self.weight, self.tiles)
        tma_n = activation_tma(staged, self.tiles)
        sizes = a.shape[1], n, b.shape[2]
        self.kernel(tma, tma_n, sizes, epilogue_tensors, register_operand_mma(self.format.dtype, config.tile_n)).launch(
            grid=[cute.ceil_div(n, config.tile_m) * config.cluster, 1, l],
            block=[config.threads, 1, 1],
            cluster=[config.cluster, 1, 1] if config.cluster > 1 else None,
            min_blocks_per_mp=1,
            use_pdl=True,
            stream=stream,
        )

    @cute.kernel
    def kernel(self, tma, tma_n, sizes, epilogue_tensors, tiled_mma):
        config = self.config
        thread, _, _ = cute.arch.thread_idx()
        warp, lane = cute.arch.make_warp_uniform(cute.arch.warp_idx()), thread % 32
        block, _, l = cute.arch.block_idx()
        tile, rank = block // config.cluster, block % config.cluster
        if warp == config.consumer_warps:
            for atom in (*tma[::2], tma_n[0]):
                cpasync.prefetch_descriptor(atom)
        storage = Storage(config, self.size)
        spec = RingSpec("stages", config.stages, 2, 4 * config.atoms)
        ring = Ring(spec, storage.full, storage.empty)
        if thread == 0:
            ring.init()
            cute.arch.mbarrier_init_fence()
        if cutlass.const_expr(not config.overlay):
            # Sums are written to other CTAs only when those have begun.
            self.arrive()
        cute.arch.sync_threads()
        k_stages = cute.ceil_div(sizes[2] * 2, STAGE_K)
        first = k_stages * rank // config.cluster
        count = k_stages * (rank + 1) // config.cluster - first

        if warp < config.consumer_warps:
            cute.arch.setmaxregister_increase(config.registers_available)
            tensors = dict(zip(self.plan.tensor_names(), epilogue_tensors, strict=True))
            epilogue = FewRowsEpilogue(self.plan.epilogue, self.acc_exponent, tensors, sizes[:2], l, lane)
            for fragment in self.owned(epilogue, tile, rank, warp):
                epilogue.prefetch(fragment)
            acc = self.multiply(storage, ring, tiled_mma, tile, count, warp, thread)
            if cutlass.const_expr(config.overlay):
                self.arrive()
            self.wait()
            group, here = warp // 4, Uint32(storage.partials.toint())
            partials = Partials(config, here, rank, group // config.atoms, lane)
            for nt in cutlass.range_constexpr(config.n_tiles):
                partials.put(group % config.atoms * 4 + warp % 4, nt, acc, 4 * nt, False)
            self.arrive()
            # The lane is read again, so that nothing that depends on it waits in registers through the main loop.
            lane = Int32(ptx.asm("mov.u32 $0, %laneid;", Uint32, effect=True))
            epilogue = FewRowsEpilogue(self.plan.epilogue, self.acc_exponent, tensors, sizes[:2], l, lane)
            self.finish(epilogue, here, tile, rank, warp)
        else:
            cute.arch.setmaxregister_decrease(LOADER_REGISTERS)
            if warp == config.consumer_warps:
                loader = PackedLoader(tma, storage.landed_m, storage.scales_m, self.weight, self.tiles)
                load_role(loader, ring, (tile, first, count, l), self.size.tma)
            elif warp == config.consumer_warps + 1:
                loader = ActivationLoader(tma_n, storage.decoded_n, self.format.dtype, self.tiles)
                # Everything else may begin before the activations are staged.
                cute.arch.griddepcontrol_wait()
                load_role(loader, ring, (0, first, count, l), self.size.decoded_n)
            if cutlass.const_expr(config.overlay):
                self.arrive()
            self.wait()
            self.arrive()
            self.wait()

    def arrive(self) -> None:
        """Tell the cluster."""
        if self.config.cluster > 1:
            cute.arch.cluster_arrive()

    def wait(self) -> None:
        """For what all CTAs of the cluster have done before they arrived; the CTA's threads, if it is alone."""
        if self.config.cluster > 1:
            cute.arch.cluster_wait()
        else:
            cute.arch.sync_threads()

    @cute.jit
    def multiply(self, storage, ring, tiled_mma, tile: Int32, count: Int32, warp: Int32, thread: Int32):
        """Decode and multiply every k_groups-th stage of one atom; returns the sums."""
        config, tiles = self.config, self.tiles
        atom, k_group = warp // 4 % config.atoms, warp // 4 // config.atoms
        layout = decoded_layout(tiles, self.format.dtype)
        pointer = cute.recast_ptr(storage.decoded_n, layout.inner, dtype=self.format.dtype)
        mma = WarpgroupMma(tiled_mma, cute.make_tensor(pointer, layout.outer), tiles)
        reader = RegisterOperandReader(tiles, storage, atom * 64, thread % 128)
        scale_offset = reader.scale_offset(first_scale_row(tile, config.tile_m))
        mma.clear()
        slot, phase = Int32(k_group), Int32(0)
        for stage in cutlass.range(k_group, count, config.k_groups, unroll=1):
            cute.arch.mbarrier_wait(ring.full + slot, phase)
            ahead = reader.load(slot, self.size, scale_offset, 0, 0)
            for q in cutlass.range_constexpr(2):
                words, scales = ahead
                if cutlass.const_expr(q == 0):
                    ahead = reader.load(slot, self.size, scale_offset, 0, 1)
                multipliers = reader.multipliers(self.format, scales)
                for i in cutlass.range_constexpr(4 // config.steps):
                    group = 4 // config.steps * q + i
                    warpgroup.wait_group(mma.buffers - 1)
                    if cutlass.const_expr(group == mma.buffers - 1):
                        # Whatever was multiplied before this stage is done.
                        if stage >= config.k_groups:
                            before = slot - config.k_groups
                            before = cutlass.select_(before < 0, before + config.stages, before)
                            if thread % 32 == 0:
                                ring.arrive_empty(before)
                    buffer, step = group % mma.buffers, i * config.steps
                    reader.decode(self.format, words, multipliers, step, config.steps, mma.registers[buffer])
                    mma.issue(0, 4 * q + step, buffer, slot, True)
            slot += config.k_groups
            if slot >= config.stages:
                slot -= config.stages
                phase = phase ^ 1
        warpgroup.wait_group(0)
        return mma.acc[0]

    @cute.jit
    def finish(self, epilogue, here: Uint32, tile: Int32, rank: Int32, warp: Int32):
        """Add what the cluster has put into this CTA's slots, evaluate the tree, store."""
        config = self.config
        fragments = self.owned(epilogue, tile, rank, warp)
        # What the epilogue reads is loaded while others still multiply; more of it than here spilled.
        loaded = [epilogue.load(fragment) for fragment in fragments[:2]]
        self.wait()
        partials = Partials(config, here, rank, Int32(0), epilogue.lane)
        owned = (config.row_tiles - rank + (config.cluster - 1)) // config.cluster * config.n_tiles
        for i in cutlass.range_constexpr(len(fragments)):
            index = warp + i * config.consumer_warps
            if index < owned:
                sums = partials.total(index // config.n_tiles, index % config.n_tiles)
                values = loaded[i] if i < len(loaded) else epilogue.load(fragments[i])
                epilogue.apply(fragments[i], values, sums)

    def owned(self, epilogue, tile: Int32, rank: Int32, warp: Int32) -> list:
        """Where the 16x8 tiles that this warp finishes are in D; those behind the last one are not its own."""
        config, found = self.config, []
        most = -(-config.row_tiles // config.cluster) * config.n_tiles
        for first in range(0, most, config.consumer_warps):
            index = warp + first
            row_tile = index // config.n_tiles * config.cluster + rank
            row = tile * config.tile_m + 16 * row_tile + (epilogue.lane >> 2)
            found.append(epilogue.fragment(row, index % config.n_tiles))
        return found


@cute.jit
def load_role(loader, ring, work, tma_bytes: cutlass.Constexpr):
    """Load the stages first .. first + count - 1 of a tile (one warp)."""
    tile, first, count, l = work
    state = ring.producer_state()
    for k in cutlass.range(first, first + count, unroll=1):
        ring.wait_empty(state)
        with cute.arch.elect_one():
            ring.expect_bytes(state, tma_bytes)
        loader.issue(tile, k, l, state.index, ring.full + state.index)
        state.advance()


def build(plan: Sm90FewRowsPlan):
    """The jit function and fake arguments of a plan."""
    l, m, n, bytes_k = cute.sym_int(), cute.sym_int(), cute.sym_int(), cute.sym_int(divisibility=32)
    if plan.activations == "nvfp4":
        shape = (cute.sym_int(),) if plan.a_scales == "tiled" else (l, m, cute.sym_int())
        a = fake_matrix(Uint8, l, m, bytes_k), fake_matrix(Uint8, *shape, align=8 if plan.a_scales == "tiled" else 1)
    else:
        a = (
            fake_matrix(DTYPES[plan.activations], l, m, cute.sym_int(divisibility=64)),
            fake_matrix(Uint8, cute.sym_int(), align=1),
        )
    b = fake_matrix(Uint8, l, n, bytes_k), fake_matrix(Uint8, cute.sym_int())
    staged = fake_matrix(DTYPES[plan.config.decode_to], l, m, cute.sym_int(divisibility=STAGE_K))
    leaves = fake_tensors(plan.epilogue, plan.out_dtype, None, l, m, n)
    return FewRows(plan), (*a, *b, (*leaves, staged), make_fake_stream(use_tvm_ffi_env_stream=True))
