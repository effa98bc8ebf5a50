"""NVFP4 GEMM for Hopper: D = epilogue(A * B^T), both operands packed in memory, decoded exactly in the kernel.

    acc[i, j] = sum_k (e2m1 * e4m3)_a[i, k] * (e2m1 * e4m3)_b[j, k]        fp32 accumulation in wgmma

    operand       codes (L, rows, K/2) uint8, low nibble = even k; scales E4M3 in 128x4 tiles; rows: M of A, N of B
    D             (L, M, N)

Warp roles, one CTA per SM, 128 * (2 + consumer_groups) threads:

    warpgroup 0   one warp issues TMA loads of packed codes and scales            loader.py
    warpgroup 1   decodes the shared operand (tile_n rows) to bf16 in smem        decode.py
    warpgroup 2.. decode the register operand and issue wgmma, then the epilogue  mma.py, epilogue

    load ring     packed tiles        filled by TMA                 drained by decode and consumer warps
    mma ring      decoded tiles       filled by the decode warps    drained by the consumer warps

The grid is persistent. The consumer warpgroups do not wait for each other: while one stores its tile the other one multiplies, and
loads and decoding of the next tile go on.

Constraints: K % 64 == 0 (pad with zeros otherwise), any M, N >= 1; sm_90a.
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float16, Float32, Int32, Uint8
from cutlass.cute.nvgpu import OperandMajorMode, warpgroup
from cutlass.cute.runtime import make_fake_compact_tensor, make_fake_stream

from cutefp4 import epilogue as nodes
from cutefp4.config import Sm90Config, sm90_registers, sm90_smem
from cutefp4.gemm_plan import Sm90GemmPlan

from ..common.barriers import Ring, RingSpec
from ..common.e4m3 import PRODUCT_EXPONENT
from ..epilogue import tile as tile_epilogue
from ..epilogue.staged_store import store_tma
from ..scheduler import StaticScheduler
from .decode import RegisterOperandReader, SharedOperandDecoder, decode_role
from .loader import OperandLoader, TmaOperand, load_role, packed_tma
from .mma import WarpgroupMma, mainloop
from .smem_layout import allocate, stage_bytes

ACC_EXPONENT = 2 * PRODUCT_EXPONENT
"""The accumulator holds the true sum times 2^ACC_EXPONENT, exactly."""

LOAD_GROUP, DECODE_GROUP, FIRST_CONSUMER = 0, 1, 2


def ring_specs(config: Sm90Config) -> tuple[RingSpec, RingSpec]:
    """The load ring and the MMA ring as data; arrivals are per warp, except the loader's one."""
    consumers = 4 * config.consumer_groups
    return (
        RingSpec("load", config.load_stages, full_arrivals=1, empty_arrivals=consumers + 4),
        RingSpec("mma", config.mma_stages, full_arrivals=4, empty_arrivals=consumers),
    )


class Sm90Gemm:
    """The kernel of one plan; attributes are compile-time constants."""

    def __init__(self, plan: Sm90GemmPlan):
        self.plan, self.config = plan, plan.config
        self.registers = sm90_registers(plan.config)
        self.size = stage_bytes(plan.config)
        self.epilogue = tile_epilogue.EpilogueSpec(plan.epilogue, ACC_EXPONENT, plan.store)
        self.store_bytes = sm90_smem(plan.config).store if plan.store == "tma" else 0
        vectors = tile_epilogue.n_vectors(plan.epilogue, plan.config.swap_ab)
        self.vector_floats = vectors * plan.config.tile_n * plan.config.consumer_groups

    @cute.jit
    def __call__(self, a_codes, a_scales, b_codes, b_scales, epilogue_tensors, sms: Int32, stream):
        """Launch: codes (L, rows, K/2), tiled scales (flat), the tensors of `plan.tensor_names()`, the number of SMs."""
        config = self.config
        first, second = (a_codes, a_scales), (b_codes, b_scales)
        if cutlass.const_expr(config.swap_ab):
            first, second = second, first
        l, rows_m, bytes_k = first[0].shape
        rows_n = second[0].shape[1]
        tma_m = packed_tma(*first, config.tile_m, config)
        tma_n = packed_tma(*second, config.tile_n, config)
        tma_d = store_tma(epilogue_tensors[0], config) if self.plan.store == "tma" else ()
        tiles_m, tiles_n = cute.ceil_div(rows_m, config.tile_m), cute.ceil_div(rows_n, config.tile_n)
        scheduler = StaticScheduler(
            tiles_m, tiles_n, l, cute.ceil_div(bytes_k * 2, config.tile_k), config.raster_group, config.splits
        )
        tiled_mma = cute.make_tiled_mma(
            warpgroup.MmaF16BF16Op(
                BFloat16,
                Float32,
                (64, config.tile_n, 16),
                warpgroup.OperandSource.RMEM,
                OperandMajorMode.K,
                OperandMajorMode.K,
            )
        )
        self.kernel(*tma_m, *tma_n, tma_d, tiled_mma, epilogue_tensors, (rows_m, rows_n), scheduler).launch(
            grid=[cutlass.min(scheduler.total(), sms), 1, 1],
            block=[config.threads, 1, 1],
            min_blocks_per_mp=1,
            stream=stream,
        )

    @cute.kernel
    def kernel(
        self,
        m_codes_atom: cute.CopyAtom,
        m_codes: cute.Tensor,
        m_scales_atom: cute.CopyAtom,
        m_scales: cute.Tensor,
        n_codes_atom: cute.CopyAtom,
        n_codes: cute.Tensor,
        n_scales_atom: cute.CopyAtom,
        n_scales: cute.Tensor,
        tma_d,
        tiled_mma: cute.TiledMma,
        epilogue_tensors,
        sizes,
        scheduler,
    ):
        config, size = self.config, self.size
        thread, _, _ = cute.arch.thread_idx()
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        group, lane = warp // 4, thread % 32
        storage = allocate(config, self.store_bytes, self.vector_floats)
        load_spec, mma_spec = ring_specs(config)
        load_ring = Ring(load_spec, storage.full, storage.empty)
        mma_ring = Ring(mma_spec, storage.mma_full, storage.mma_empty)
        if thread == 0:
            load_ring.init()
            mma_ring.init()
            cute.arch.mbarrier_init_fence()
        cute.arch.sync_threads()

        if group == LOAD_GROUP:
            cute.arch.setmaxregister_decrease(self.registers.load)
            if warp == 0:
                tma_m = TmaOperand(m_codes_atom, m_codes, m_scales_atom, m_scales)
                tma_n = TmaOperand(n_codes_atom, n_codes, n_scales_atom, n_scales)
                loader_m = OperandLoader(tma_m, storage.packed_m, storage.scales_m, config.tile_m, config)
                loader_n = OperandLoader(tma_n, storage.packed_n, storage.scales_n, config.tile_n, config)
                loader_m.prefetch_descriptors()
                loader_n.prefetch_descriptors()
                load_role(scheduler, load_ring, loader_m, loader_n, size.landing)
        elif group == DECODE_GROUP:
            cute.arch.setmaxregister_decrease(self.registers.decode)
            decoder = SharedOperandDecoder(config, storage, thread % 128)
            decode_role(scheduler, load_ring, mma_ring, decoder, size, lane)
        else:
            cute.arch.setmaxregister_increase(self.registers.consumer)
            tensors = dict(zip(self.plan.tensor_names(), epilogue_tensors, strict=True))
            consumer = group - FIRST_CONSUMER
            epilogue = tile_epilogue.bind(
                self.epilogue, config, tensors, sizes, storage, tma_d, consumer, thread % 128
            )
            self.consumer_role(scheduler, (load_ring, mma_ring), storage, tiled_mma, epilogue, consumer, thread % 128)

    @cute.jit
    def consumer_role(self, scheduler, rings, storage, tiled_mma, epilogue, consumer: Int32, thread: Int32):
        """Mainloop and epilogue of one consumer warpgroup for every work tile of this CTA."""
        config = self.config
        shared_operand = decoded_operand(config, storage)
        mma = WarpgroupMma(tiled_mma, shared_operand, config)
        reader = RegisterOperandReader(config, storage, consumer * (64 * config.m_atoms), thread)
        states = rings[0].consumer_state(), rings[1].consumer_state()
        first, _, _ = cute.arch.block_idx()
        step, _, _ = cute.arch.grid_dim()
        for index in cutlass.range(first, scheduler.total(), step, unroll=1):
            work = scheduler.work(index)
            prefetched = epilogue.prefetch(work)
            states = mainloop(work, mma, reader, rings, states, self.size, thread % 32)
            epilogue.store_tile(work, mma.acc, prefetched)
        if cutlass.const_expr(self.plan.store == "tma"):
            epilogue.staged.drain()


def decoded_operand(config: Sm90Config, storage) -> cute.Tensor:
    """The decoded shared operand as wgmma sees it: (tile_n, tile_k, mma_stages) bf16, 128-byte swizzle."""
    layout = cute.tile_to_shape(
        warpgroup.make_smem_layout_atom(warpgroup.SmemLayoutAtomKind.K_SW128, BFloat16),
        (config.tile_n, config.tile_k, config.mma_stages),
        order=(0, 1, 2),
    )
    return cute.make_tensor(cute.recast_ptr(storage.decoded_n, layout.inner, dtype=BFloat16), layout.outer)


DTYPES = {"bfloat16": BFloat16, "float16": Float16, "float32": Float32}
_COLUMN_MULTIPLE = {"tma": 8, "pairs": 2, "elements": 1}


def _matrix(dtype, *shape, align: int = 16):
    """A row-major fake tensor."""
    order = tuple(reversed(range(len(shape))))
    return make_fake_compact_tensor(dtype, shape, stride_order=order, assumed_align=align)


def _epilogue_fakes(plan: Sm90GemmPlan, l, m, n_out) -> tuple:
    """Fake tensors of `plan.tensor_names()`, in their order."""
    tree = plan.epilogue
    d_dtype = DTYPES[plan.out_dtype]
    fakes = [_matrix(d_dtype, l, m, n_out, align=16 if plan.store == "tma" else d_dtype.width // 4)]
    for leaf in tree.leaves():
        dtype = DTYPES[leaf.dtype]
        shape = {nodes.Row: (l, m), nodes.Column: (l, cute.sym_int()), nodes.Scalar: (l,), nodes.Tile: (l, m, n_out)}
        fakes.append(_matrix(dtype, *shape[type(leaf)], align=dtype.width // 8))
    for sink in tree.sinks:
        dtype = DTYPES[sink.dtype] if isinstance(sink, nodes.Store) else Float32
        shape = {nodes.Store: (l, m, n_out), nodes.RowAmax: (l, m), nodes.ColumnAmax: (l, n_out)}
        fakes.append(_matrix(dtype, *shape[type(sink)], align=dtype.width // 8))
    if plan.config.splits > 1:
        registers = plan.config.m_atoms * plan.config.tile_n // 2
        fakes.append(_matrix(Float32, plan.config.splits, cute.sym_int(), registers, 128))
        fakes.append(_matrix(Int32, cute.sym_int(), align=4))
    return tuple(fakes)


def build(plan: Sm90GemmPlan):
    """The jit function and fake arguments of a plan."""
    l, m, n, bytes_k = cute.sym_int(), cute.sym_int(), cute.sym_int(), cute.sym_int(divisibility=32)
    n_out = cute.sym_int(divisibility=_COLUMN_MULTIPLE[plan.store])
    a_codes, b_codes = _matrix(Uint8, l, m, bytes_k), _matrix(Uint8, l, n, bytes_k)
    a_scales, b_scales = _matrix(Uint8, cute.sym_int()), _matrix(Uint8, cute.sym_int())
    tensors = _epilogue_fakes(plan, l, m, n_out)
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return Sm90Gemm(plan), (a_codes, a_scales, b_codes, b_scales, tensors, Int32(1), stream)
