"""NVFP4 GEMM for Hopper: D = epilogue(A * B^T), NVFP4 packed in memory and decoded exactly in the kernel.

    acc[i, j] = sum_k (e2m1 * e4m3)_a[i, k] * (e2m1 * e4m3)_b[j, k]        W4A4, fp32 accumulation in wgmma
    acc[i, j] = sum_k a[i, k] * (e2m1 * e4m3)_b[j, k]                      W4A16, a in bf16 or fp16

    A    codes (L, M, K/2) uint8, low nibble = even k, and E4M3 scales; or activations (L, M, K)
    B    codes (L, N, K/2) and scales;  scales in 128x4 tiles or compact (L, rows, K/16)
    D    (L, M, N)

One operand is the *register operand* (rows on the M of wgmma, decoded in registers), the other the *shared operand*
(rows on the N of wgmma). They are A and B, or with config.swap_ab B and A: small M, and W4A16. wgmma reads 16 bits of
the shared operand from shared memory. They are decoded there by decode warps; or, `config.staged`, once per call into
global memory by a kernel that runs before this one (stage_operand.py); or they are the activations of W4A16.

Why staged: decoding 256 + 128 rows for every 256x128 tile left the tensor core idle a third of the time.

Warp roles, one CTA per SM:

    decode_groups warpgroups     write the shared operand (tile_n rows) to smem in wgmma's layout     decode.py
    consumer_groups warpgroups   decode the register operand and issue wgmma, then the epilogue       consumer.py
    the last warp(group)         a warp issues TMA loads of packed rows, one those of 16-bit rows,    loader.py
                                 two copy compact scales

    load ring     packed tiles        filled by TMA                     drained by decode and consumer warps
    mma ring      16-bit tiles        filled by decode warps, or TMA    drained by the consumer warps

The grid is persistent. The consumer warpgroups do not wait for each other: while one stores its tile the other one
multiplies, and loads and decoding of the next tile go on.

They share the MMA ring, and so reach the epilogue within 600 clocks of each other (traced; an epilogue takes 2200,
with C 3800, in fp32 with C 9800; a tile 71 000 at K = 4096). Starting the first one 1 to 4 blocks of K ahead does not
keep them apart: the ring's 5 stages are needed against the latency of loads, and the lead falls to one block. It gained
0.5 % with a staged operand at 4096^3 and lost 2 to 6 % beside 16-bit activations.
Large products run at the power limit (decode.py): shorter waits gain little. Clusters of 4 took 319 us instead of 174
at (1024, 8192, 8192): 32 of them do not fit at once.

Constraints: K % 64 == 0 (pad with zeros otherwise), any M, N >= 1; sm_90a.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32
from cutlass.cute.nvgpu import cpasync

from cutefp4.budget_sm90 import sm90_registers
from cutefp4.config import store_slots
from cutefp4.gemm_plan import Sm90GemmPlan

from ..common.barriers import Ring, RingSpec
from ..epilogue import tile as tile_epilogue
from ..epilogue.split_cluster import SplitCluster
from ..epilogue.split_helped import HelpedSums
from ..epilogue.staged_store import matrix_tma
from ..scheduler import ClusterScheduler, HelpedScheduler, StaticScheduler, StreamKScheduler
from .arguments import fake_arguments
from .consumer import consumer_role
from .decode import SharedOperandDecoder, decode_role
from .loader import (
    SCALE_WARPS,
    CompactScaleLoader,
    PackedLoader,
    SharedLoader,
    compact_scale_role,
    load_role,
    packed_tma,
    shared_load_role,
    shared_tma,
)
from .mma import register_operand_mma
from .number_format import FORMATS
from .smem_layout import allocate, stage_bytes
from .stage_operand import OperandStager


def ring_specs(plan: Sm90GemmPlan) -> tuple[RingSpec, RingSpec]:
    """The load ring and the MMA ring as data; arrivals are per warp, except the TMA warp's one and cp.async's per
    thread."""
    config = plan.config
    consumers, decoders = 4 * config.consumer_groups, 4 * config.decode_groups
    compact = any(operand.scales == "compact" for operand in plan.operands())
    return (
        RingSpec("load", config.load_stages, 1 + (32 * SCALE_WARPS if compact else 0), consumers + decoders),
        RingSpec("mma", config.mma_stages, decoders or 1, consumers * config.cluster),
    )


class Sm90Gemm:
    """The kernel of one plan; attributes are compile-time constants."""

    def __init__(self, plan: Sm90GemmPlan):
        self.plan, self.config = plan, plan.config
        self.format = FORMATS[plan.config.decode_to]
        self.operand_m, self.operand_n = plan.operands()
        compact = any(operand.scales == "compact" for operand in plan.operands())
        self.registers = sm90_registers(plan.config, compact)
        self.size = stage_bytes(plan)
        acc_exponent = self.format.product_exponent * (2 if plan.activations == "nvfp4" else 1)
        self.epilogue = tile_epilogue.EpilogueSpec(plan.epilogue, acc_exponent, plan.store, plan.load)
        config, element = plan.config.finished_tile(), plan.staged_store()
        self.store_bytes = config.tile_m * config.tile_n * element // config.store_passes
        self.tile_slots = config.consumer_groups * store_slots(config, element) if element else 0
        vectors = tile_epilogue.n_vectors(plan.epilogue, plan.config.swap_ab)
        self.vector_floats = vectors * config.tile_n * config.consumer_groups
        self.finished = config

    @cute.jit
    def __call__(self, a, a_scales, b, b_scales, epilogue_tensors, sms: Int32, stream):
        """Launch.

        a, b: codes (L, rows, K/2), or activations (L, M, K) as a. a_scales, b_scales: flat bytes if tiled, (L, rows,
        K/16) if compact. epilogue_tensors: those of `plan.tensor_names()`. sms: CTAs to launch at most.
        """
        config = self.config
        first, second = (a, a_scales), (b, b_scales)
        if cutlass.const_expr(config.swap_ab):
            first, second = second, first
        l, rows_m, bytes_k = first[0].shape
        rows_n = second[0].shape[1]
        if cutlass.const_expr(config.staged):
            staged = epilogue_tensors[-1]
            OperandStager(self.format, self.plan.staged_scales(), config.k_blocks).launch(*second, staged, stream)
            second = (staged, None)
        tma_m = packed_tma(*first, self.operand_m, config)
        if cutlass.const_expr(config.decode_groups > 0):
            tma_n = packed_tma(*second, self.operand_n, config)
        else:
            tma_n = shared_tma(second[0], config)
        tma_d = self.epilogue_tma(epilogue_tensors)
        compact = [
            (side, scales)
            for side, scales, operand in (("m", first[1], self.operand_m), ("n", second[1], self.operand_n))
            if operand.scales == "compact"
        ]
        tiles_m = cute.ceil_div(rows_m, config.tile_m * config.cluster)
        tiles_n = cute.ceil_div(rows_n, config.tile_n)
        k_stages = cute.ceil_div(bytes_k * 2, config.tile_k)
        clusters = sms // config.cluster
        if cutlass.const_expr(config.stream_k):
            scheduler = StreamKScheduler(tiles_m, tiles_n, l, k_stages, config.raster_group, clusters)
        elif cutlass.const_expr(config.helped):
            shares = config.splits, clusters, config.tile_k
            scheduler = HelpedScheduler(tiles_m, tiles_n, l, k_stages, config.raster_group, shares)
        else:
            scheduler = StaticScheduler(tiles_m, tiles_n, l, k_stages, config.raster_group, config.splits)
        tiled_mma = register_operand_mma(self.format.dtype, config.tile_n)
        # In a cluster that shares K the MMA ring ends as the buffer of the exchange: one work tile a CTA.
        if cutlass.const_expr(config.helped):
            ctas = scheduler.ctas()
        elif cutlass.const_expr(config.split_pair):
            ctas = scheduler.total()
        else:
            ctas = scheduler.ctas(clusters) * config.cluster
        compact_tensors = tuple(scales for _, scales in compact)
        self.compact_sides = tuple(side for side, _ in compact)
        self.kernel(
            tma_m, tma_n, tma_d, compact_tensors, tiled_mma, epilogue_tensors, (rows_m, rows_n), scheduler
        ).launch(
            grid=[ctas, 1, 1],
            block=[config.threads, 1, 1],
            cluster=[config.cluster_size, 1, 1],
            min_blocks_per_mp=1,
            use_pdl=config.staged,
            stream=stream,
        )

    def epilogue_tma(self, tensors) -> tuple:
        """(atom, coordinates) of D, of the leaf that comes through its staging buffer, of D to add to; or () each."""
        element, load = self.plan.staged_store(), ()
        if not element:
            return (), (), ()
        name = tile_epilogue.staged_tile(self.plan.epilogue, element) if self.plan.load == "tma" else ""
        if name:
            tile = tensors[self.plan.tensor_names().index(name)]
            load = matrix_tma(tile, self.finished, cpasync.CopyBulkTensorTileG2SOp())
        store = matrix_tma(tensors[0], self.finished, cpasync.CopyBulkTensorTileS2GOp())
        if self.plan.store == "tma":
            return store, load, ()
        return store, load, matrix_tma(tensors[0], self.finished, cpasync.CopyReduceBulkTensorTileS2GOp())

    @cute.kernel
    def kernel(self, tma_m, tma_n, tma_d, compact_tensors, tiled_mma, epilogue_tensors, sizes, scheduler):
        config, size = self.config, self.size
        thread, _, _ = cute.arch.thread_idx()
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        group, lane = warp // 4, thread % 32
        load_group = config.decode_groups + config.consumer_groups
        if warp == 4 * load_group:
            # First of all: the first use of a descriptor fetches it from memory.
            for tma in (tma_m, tma_n, *tma_d):
                for atom in tma[::2]:
                    cpasync.prefetch_descriptor(atom)
        storage = allocate(config, size, self.store_bytes, self.tile_slots, self.vector_floats)
        load_spec, mma_spec = ring_specs(self.plan)
        load_ring = Ring(load_spec, storage.full, storage.empty)
        mma_ring = Ring(mma_spec, storage.mma_full, storage.mma_empty)
        if thread == 0:
            load_ring.init()
            mma_ring.init()
            for slot in cutlass.range_constexpr(self.tile_slots):
                cute.arch.mbarrier_init(storage.tile_full + slot, 1)
            if cutlass.const_expr(config.split_pair):
                peers = config.splits - 1
                cute.arch.mbarrier_init(storage.sums_free, peers * 4 * config.consumer_groups)
                for consumer in cutlass.range_constexpr(config.consumer_groups):
                    cute.arch.mbarrier_init(storage.sums_full + consumer, 1)
            cute.arch.mbarrier_init_fence()
        rank = Int32(0)
        if cutlass.const_expr(config.cluster_size > 1):
            # Barriers of the whole cluster are ready before anybody signals them.
            cute.arch.cluster_arrive_relaxed()
            cute.arch.cluster_wait()
        if cutlass.const_expr(config.cluster > 1):
            rank = cute.arch.make_warp_uniform(cute.arch.block_idx_in_cluster())
            scheduler = ClusterScheduler(scheduler, config.cluster, rank)
        elif cutlass.const_expr(config.cluster_size == 1):
            cute.arch.sync_threads()

        if group == load_group:
            if cutlass.const_expr(config.decode_groups < 2):
                cute.arch.setmaxregister_decrease(self.registers.load)
            if warp == 4 * load_group:
                loader_m = PackedLoader(tma_m, storage.landed_m, storage.scales_m, self.operand_m, config)
                loaders = [("m", loader_m)]
                if cutlass.const_expr(config.decode_groups > 0):
                    loader_n = PackedLoader(tma_n, storage.landed_n, storage.scales_n, self.operand_n, config)
                    loaders.append(("n", loader_n))
                load_role(scheduler, load_ring, loaders, config, size.tma)
            elif warp == 4 * load_group + 1:
                if cutlass.const_expr(config.decode_groups == 0):
                    if cutlass.const_expr(config.staged):
                        # Everything else may begin before the staging kernel has ended.
                        cute.arch.griddepcontrol_wait()
                    loader = SharedLoader(tma_n, storage.decoded_n, self.format.dtype, config, rank)
                    shared_load_role(scheduler, mma_ring, loader, config, size.decoded_n)
            elif cutlass.const_expr(len(compact_tensors) > 0):
                loaders = self.compact_loaders(compact_tensors, storage, thread - 128 * load_group - 64)
                compact_scale_role(scheduler, load_ring, loaders, config)
        elif cutlass.const_expr(config.decode_groups > 0):
            if group < config.decode_groups:
                cute.arch.setmaxregister_decrease(self.registers.decode)
                decoder = SharedOperandDecoder(config, storage, thread)
                decode_role(scheduler, load_ring, mma_ring, decoder, size, lane)
            else:
                self.consume(scheduler, load_ring, mma_ring, storage, tiled_mma, epilogue_tensors, sizes, tma_d)
        else:
            self.consume(scheduler, load_ring, mma_ring, storage, tiled_mma, epilogue_tensors, sizes, tma_d)

    def consume(self, scheduler, load_ring, mma_ring, storage, tiled_mma, epilogue_tensors, sizes, tma_d):
        """A consumer warpgroup's part of the kernel."""
        thread, _, _ = cute.arch.thread_idx()
        consumer = cute.arch.make_warp_uniform(cute.arch.warp_idx()) // 4 - self.config.decode_groups
        cute.arch.setmaxregister_increase(self.registers.consumer)
        tensors = dict(zip(self.plan.tensor_names(), epilogue_tensors, strict=True))
        epilogue = tile_epilogue.bind(
            self.epilogue, self.finished, tensors, sizes, storage, tma_d, consumer, thread % 128
        )
        cluster_sum = helped_sum = ()
        if self.config.split_pair:
            cluster_sum = SplitCluster(storage, self.config, consumer, thread % 128)
        if self.config.helped:
            workspace = tensors["partials"], tensors["counters"]
            helped_sum = HelpedSums(*workspace, storage.flags, self.config, consumer, thread % 128)
        endings, parts = (epilogue, cluster_sum, helped_sum), ((load_ring, mma_ring), storage, tiled_mma)
        consumer_role(scheduler, parts, endings, (self.config, self.format, self.size), consumer, thread % 128)
        if cutlass.const_expr(self.plan.staged_store() > 0):
            epilogue.staged.drain()

    def compact_loaders(self, tensors: tuple, storage, thread: Int32) -> list:
        """(side, loader) of the operands with compact scales."""
        sides = {
            "m": (storage.scales_m, self.size.scales_m, self.operand_m),
            "n": (storage.scales_n, self.size.scales_n, self.operand_n),
        }
        return [
            (side, CompactScaleLoader(tensor, *sides[side], self.config, thread))
            for side, tensor in zip(self.compact_sides, tensors, strict=True)
        ]


def build(plan: Sm90GemmPlan):
    """The jit function and fake arguments of a plan."""
    return Sm90Gemm(plan), fake_arguments(plan)
