"""NVFP4 GEMM for Blackwell: D = epilogue(A * B^T) with block-scaled tcgen05.mma.

    acc[i, j] = sum_k (e2m1 * e4m3)_a[i, k] * (e2m1 * e4m3)_b[j, k]        fp32 accumulation in tensor memory

    A    codes (L, M, K/2) uint8, low nibble = even k; E4M3 scales in 128x4 tiles, flat
    B    codes (L, N, K/2), scales likewise
    D    (L, M, N) bf16, fp16 or fp32; or NVFP4 as A

With config.swap_ab the kernel computes D^T = B * A^T: below, A, M and rows are then those of the GEMM's B.

Warp roles, one CTA per SM, 192 threads, or 224 with cluster launch control:

    warps 0-3   epilogue   tensor memory -> epilogue tree -> D             epilogue.py, epilogue_load.py, store.py
    warp 4      load       TMA of codes and scales, multicast in clusters  loader.py
    warp 5      mma        scales to tensor memory, tcgen05.mma            mma.py, tcgen05.py; cluster.py
    warp 6      schedule   asks for the next tile, if config.scheduler is "clc"    work_queue.py

    load ring   stages of 256 along K     filled by TMA             drained by tcgen05.mma (commit)
    acc ring    two accumulators          filled by tcgen05.mma     drained by the epilogue warps
    work ring   answers of launch control filled by the schedule warp's questions    read by all roles ("clc" alone)

Clusters work on one tile after the other: the epilogue of one tile runs beside the mainloop of the next. With
`plan.pdl` the kernel may start while the one before it ends: it prepares barriers and tensor memory, and waits before
it touches global memory; it lets its successor start when its last loads are under way. Tensor memory, shared memory
and registers are laid out in cutefp4/config_sm100.py.

Constraints: K % 32 == 0, any M, N >= 1; tiled scales; sm_100a or sm_103a.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint8
from cutlass.cute.runtime import make_fake_stream

from cutefp4 import epilogue as nodes
from cutefp4.config_sm100 import (
    CTA_ROWS,
    EPILOGUE_WARPS,
    LOAD_WARP,
    MMA_WARP,
    SCHEDULE_WARP,
    TILE_K,
    TMEM_COLUMNS,
)
from cutefp4.gemm_plan_sm100 import Sm100GemmPlan

from ..common.barriers import Ring
from ..epilogue.arguments import DTYPES, fake_matrix, fake_tensors
from ..scheduler import StaticScheduler
from .cluster import ClusterPlace
from .epilogue import TmemEpilogue, epilogue_role
from .loader import StageLoader, code_tma, load_role, scale_tma
from .mma import StageMma, mma_role
from .smem_layout import allocate, ring_specs, tile_barriers
from .store import store_tma
from .tcgen05 import fence_after, fence_before
from .tile_stage import tile_tma
from .work_queue import ClusterLaunchQueue, StaticQueue, queue_ring, schedule_role


class Sm100Gemm:
    """The kernel of one plan; attributes are compile-time constants."""

    def __init__(self, plan: Sm100GemmPlan):
        self.plan, self.config = plan, plan.config
        matrices = (*plan.epilogue.leaves(), *plan.epilogue.sinks)
        self.matrices = {"d", *(node.name for node in matrices if isinstance(node, (nodes.Tile, nodes.Store)))}

    @cute.jit
    def __call__(self, a, a_scales, b, b_scales, epilogue_tensors, sms: Int32, stream):
        """Launch.

        a, b: codes. a_scales, b_scales: flat bytes of the tiles. epilogue_tensors: those of `plan.tensor_names()`. sms:
        CTAs of a persistent grid at most.
        """
        config = self.config
        if cutlass.const_expr(config.swap_ab):
            a, a_scales, b, b_scales = b, b_scales, a, a_scales
            epilogue_tensors = tuple(
                transposed_matrix(t) if name in self.matrices else t
                for name, t in zip(self.plan.tensor_names(), epilogue_tensors, strict=True)
            )
        l, size_m, bytes_k = a.shape
        size_n = b.shape[1]
        tma = (
            code_tma(a, CTA_ROWS, config.a_slices, config),
            scale_tma(a_scales, a, config.a_slices, config),
            code_tma(b, config.b_rows, config.b_slices, config),
            scale_tma(b_scales, b, config.sfb_slices, config),
        )
        tma_d = store_tma(epilogue_tensors[0]) if self.plan.store == "tma" else ()
        tensors = dict(zip(self.plan.tensor_names(), epilogue_tensors, strict=True))
        tma_tiles = tuple(tile_tma(tensors[name]) for name in self.plan.staged_tiles())
        scheduler = StaticScheduler(
            cute.ceil_div(size_m, CTA_ROWS * config.cluster_m),
            cute.ceil_div(size_n, config.tile_n * config.cluster_n),
            l,
            cute.ceil_div(bytes_k * 2, TILE_K),
            config.raster_group,
            config.splits,
        )
        clusters = scheduler.total()
        if cutlass.const_expr(config.scheduler == "static"):
            clusters = cutlass.max(cutlass.min(clusters, sms // config.cluster_size), 1)
        self.kernel(tma, (tma_d, tma_tiles), epilogue_tensors, (size_m, size_n), scheduler).launch(
            grid=[clusters * config.cluster_size, 1, 1],
            block=[config.threads, 1, 1],
            cluster=[config.cluster_size, 1, 1],
            min_blocks_per_mp=1,
            use_pdl=self.plan.pdl,
            stream=stream,
        )

    @cute.kernel
    def kernel(self, tma, epilogue_tma, epilogue_tensors, sizes, scheduler):
        config = self.config
        thread, _, _ = cute.arch.thread_idx()
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        storage = allocate(config, self.plan.column_vectors(), len(self.plan.staged_tiles()))
        load_spec, acc_spec = ring_specs(config)
        load_ring = Ring(load_spec, storage.full, storage.empty)
        acc_ring = Ring(acc_spec, storage.acc_full, storage.acc_empty)
        work_ring = Ring(queue_ring(config), storage.work_full, storage.work_empty)
        place = ClusterPlace(config)
        self.start(thread, warp, (load_ring, acc_ring, work_ring), storage)
        tmem = Int32(cute.make_tensor(storage.tmem_address, cute.make_layout(1))[0])

        if warp == LOAD_WARP:
            loader = StageLoader(tma, storage, place, config)
            loader.prefetch_descriptors()
            self.wait_for_previous_kernel()
            load_role(scheduler, self.queue(place, scheduler, work_ring, storage), load_ring, loader)
            self.let_next_kernel_start()
        elif warp == MMA_WARP:
            if place.rank == place.leader:
                queue = self.queue(place, scheduler, work_ring, storage)
                mma_role(scheduler, queue, (load_ring, acc_ring), place, StageMma(storage, tmem, config))
        elif warp == SCHEDULE_WARP:
            if cutlass.const_expr(config.scheduler == "clc"):
                if place.rank == 0:
                    queue = self.queue(place, scheduler, work_ring, storage, release=False)
                    schedule_role(work_ring, queue, thread % 32)
        else:
            self.wait_for_previous_kernel()
            tensors = dict(zip(self.plan.tensor_names(), epilogue_tensors, strict=True))
            epilogue = TmemEpilogue(self.plan, tensors, sizes, storage, epilogue_tma, place, tmem, warp, thread % 32)
            epilogue_role(scheduler, self.queue(place, scheduler, work_ring, storage), acc_ring, epilogue)
        self.finish(warp, storage)

    def queue(self, place, scheduler, ring, storage, release: bool = True):
        """The work of this cluster as one warp follows it."""
        if self.config.scheduler == "clc":
            return ClusterLaunchQueue(place, ring, storage.responses, self.config, release)
        return StaticQueue(place, scheduler.total())

    def wait_for_previous_kernel(self) -> None:
        """Before the first access to global memory, if this kernel may have started early."""
        if self.plan.pdl:
            cute.arch.griddepcontrol_wait()

    def let_next_kernel_start(self) -> None:
        """It waits for the end of this one before it touches memory, so that this is never too early."""
        if self.plan.pdl:
            cute.arch.griddepcontrol_launch_dependents()

    @cute.jit
    def start(self, thread: Int32, warp: Int32, rings, storage):
        """Barriers and tensor memory, known to the whole cluster."""
        if thread == 0:
            for ring in rings if self.config.scheduler == "clc" else rings[:2]:
                ring.init()
            for i in range(tile_barriers(len(self.plan.staged_tiles()))):
                cute.arch.mbarrier_init(storage.tile_full + i, 1)
            cute.arch.mbarrier_init_fence()
        if warp == MMA_WARP:
            two = self.config.cta_group == 2
            cute.arch.alloc_tmem(TMEM_COLUMNS, storage.tmem_address, is_two_cta=two)
            cute.arch.relinquish_tmem_alloc_permit(is_two_cta=two)
        fence_before()
        self.sync()
        fence_after()

    @cute.jit
    def finish(self, warp: Int32, storage):
        """Give tensor memory back when no CTA of the cluster needs this one any more."""
        fence_before()
        self.sync()
        fence_after()
        if warp == MMA_WARP:
            pointer = cute.arch.retrieve_tmem_ptr(Float32, 16, storage.tmem_address)
            cute.arch.dealloc_tmem(pointer, TMEM_COLUMNS, is_two_cta=self.config.cta_group == 2)

    def sync(self) -> None:
        """All threads of the cluster."""
        if self.config.cluster_size > 1:
            cute.arch.cluster_arrive()
            cute.arch.cluster_wait()
        else:
            cute.arch.sync_threads()


def transposed_matrix(tensor: cute.Tensor) -> cute.Tensor:
    """(L, M, N) as (L, N, M), the same memory."""
    l, m, n = tensor.shape
    return cute.make_tensor(tensor.iterator, cute.make_layout((l, n, m), stride=(m * n, 1, n)))


def build(plan: Sm100GemmPlan):
    """The jit function and fake arguments of a plan."""
    l, m, bytes_k = cute.sym_int(), cute.sym_int(), cute.sym_int(divisibility=16)
    staged = plan.store == "tma"
    n = cute.sym_int(divisibility=128 // DTYPES[plan.out_dtype].width if staged else 1)
    operands = (
        fake_matrix(Uint8, l, m, bytes_k),
        fake_matrix(Uint8, cute.sym_int()),
        fake_matrix(Uint8, l, n, bytes_k),
        fake_matrix(Uint8, cute.sym_int()),
    )
    if plan.out_dtype == "nvfp4":
        d = fake_matrix(Uint8, l, m, cute.sym_int(divisibility=8), align=8), fake_matrix(Uint8, cute.sym_int())
        tensors = (*d, *fake_tensors(plan.epilogue, "float32", None, l, m, n)[1:])
    else:
        tensors = fake_tensors(plan.epilogue, plan.out_dtype, 16 if staged else None, l, m, n)
    if plan.config.splits > 1:
        partials = fake_matrix(Float32, cute.sym_int(), EPILOGUE_WARPS, plan.config.tile_n, 32)
        tensors = (*tensors, partials, fake_matrix(Int32, cute.sym_int(), EPILOGUE_WARPS, align=4))
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return Sm100Gemm(plan), (*operands, tensors, Int32(1), stream)
