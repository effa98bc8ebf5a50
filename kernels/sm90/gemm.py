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
from cutlass import BFloat16, Float32, Int32
from cutlass.cute.nvgpu import OperandMajorMode, warpgroup

from cutefp4.config import SM90_SMEM_BYTES, Sm90Config, sm90_registers, sm90_smem

from ..common.barriers import Ring, RingSpec
from ..common.e4m3 import PRODUCT_EXPONENT
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
    """The kernel of one configuration; attributes are compile-time constants."""

    def __init__(self, config: Sm90Config, epilogue):
        self.config, self.epilogue = config, epilogue
        self.registers = sm90_registers(config)
        self.size = stage_bytes(config)
        self.store_bytes = sm90_smem(config).store

    @cute.jit
    def __call__(self, a_codes, a_scales, b_codes, b_scales, epilogue_args, sms: Int32, stream):
        config = self.config
        l, m, bytes_k = a_codes.shape
        n = b_codes.shape[1]
        first, second = (a_codes, a_scales), (b_codes, b_scales)
        tma_m = packed_tma(*first, config.tile_m, config)
        tma_n = packed_tma(*second, config.tile_n, config)
        tiles_m, tiles_n = cute.ceil_div(m, config.tile_m), cute.ceil_div(n, config.tile_n)
        k_stages = cute.ceil_div(bytes_k * 2, config.tile_k)
        work = tiles_m * tiles_n * l * config.splits
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
        self.kernel(*tma_m, *tma_n, tiled_mma, epilogue_args, (m, n, l), (tiles_m, tiles_n, k_stages)).launch(
            grid=[cutlass.min(work, sms), 1, 1], block=[config.threads, 1, 1], min_blocks_per_mp=1, stream=stream
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
        tiled_mma: cute.TiledMma,
        epilogue_args,
        problem,
        tiles,
    ):
        config, size = self.config, self.size
        thread, _, _ = cute.arch.thread_idx()
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        group, lane = warp // 4, thread % 32
        storage = allocate(config, self.store_bytes)
        load_spec, mma_spec = ring_specs(config)
        load_ring = Ring(load_spec, storage.full, storage.empty)
        mma_ring = Ring(mma_spec, storage.mma_full, storage.mma_empty)
        if thread == 0:
            load_ring.init()
            mma_ring.init()
            cute.arch.mbarrier_init_fence()
        cute.arch.sync_threads()
        scheduler = StaticScheduler(tiles[0], tiles[1], problem[2], tiles[2], config.raster_group, config.splits)

        if group == LOAD_GROUP:
            cute.arch.setmaxregister_decrease(self.registers.load)
            if warp == 0:
                loader_m = OperandLoader(
                    TmaOperand(m_codes_atom, m_codes, m_scales_atom, m_scales),
                    storage.packed_m, storage.scales_m, config.tile_m, config,
                )  # fmt: skip
                loader_n = OperandLoader(
                    TmaOperand(n_codes_atom, n_codes, n_scales_atom, n_scales),
                    storage.packed_n, storage.scales_n, config.tile_n, config,
                )  # fmt: skip
                loader_m.prefetch_descriptors()
                loader_n.prefetch_descriptors()
                load_role(scheduler, load_ring, loader_m, loader_n, size.landing)
        elif group == DECODE_GROUP:
            cute.arch.setmaxregister_decrease(self.registers.decode)
            decoder = SharedOperandDecoder(config, storage, thread % 128)
            decode_role(scheduler, load_ring, mma_ring, decoder, size, lane)
        else:
            cute.arch.setmaxregister_increase(self.registers.consumer)
            self.consumer_role(
                scheduler, (load_ring, mma_ring), storage, tiled_mma, epilogue_args, problem, group - FIRST_CONSUMER
            )

    @cute.jit
    def consumer_role(self, scheduler, rings, storage, tiled_mma, epilogue_args, problem, consumer: Int32):
        """Mainloop and epilogue of one consumer warpgroup for every work tile of this CTA."""
        config = self.config
        thread, _, _ = cute.arch.thread_idx()
        thread = thread % 128
        layout = cute.tile_to_shape(
            warpgroup.make_smem_layout_atom(warpgroup.SmemLayoutAtomKind.K_SW128, BFloat16),
            (config.tile_n, config.tile_k, config.mma_stages),
            order=(0, 1, 2),
        )
        shared_operand = cute.make_tensor(
            cute.recast_ptr(storage.decoded_n, layout.inner, dtype=BFloat16), layout.outer
        )
        mma = WarpgroupMma(tiled_mma, shared_operand, config)
        reader = RegisterOperandReader(config, storage, consumer * (64 * config.m_atoms), thread)
        epilogue = self.epilogue.bind(config, epilogue_args, problem, storage.store, consumer, thread)
        states = rings[0].consumer_state(), rings[1].consumer_state()
        first, _, _ = cute.arch.block_idx()
        step, _, _ = cute.arch.grid_dim()
        for index in cutlass.range(first, scheduler.total(), step, unroll=1):
            work = scheduler.work(index)
            states = mainloop(work, mma, reader, rings, states, self.size, thread % 32)
            epilogue.store_tile(work, mma.acc)
