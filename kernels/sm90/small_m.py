"""GEMM for few rows of A on Hopper: reads the weight at the speed of memory. D = epilogue(A * B^T), M <= 64.

    acc[i, j] = sum_k (e2m1 * e4m3)_a[i, k] * (e2m1 * e4m3)_b[j, k]        W4A4; with 16-bit A: W4A16

    A    codes (L, M, K/2) uint8 and E4M3 scales, or activations (L, M, K) bf16 / fp16
    B    codes (L, N, K/2) uint8 and scales: the weight;  scales in 128x4 tiles or compact (L, rows, K/16)
    D    (L, M, N)

The weight takes the tall side of mma.sync.m16n8k16: a warp copies it into slots of its own, decodes it in registers,
exactly, and multiplies at once (small_m_weight.py). A CTA prepares its share of the activations in shared memory
(small_m_activations.py) while its first copies of the weight are under way. The mainloop has no barriers and no stages
between warps: each keeps `depth` KB in flight by itself, 64 KB an SM, where latency times bandwidth is 23 KB; more was
slower (cutefp4/heuristics/small_m.py). One row of NVFP4 activations is multiplied as integers (small_m_single.py).

K is shared by the CTAs of a cluster, rows of the weight by the clusters, so that every SM works and no CTA prepares
more than its part of the activations. Sums meet in distributed shared memory (small_m_reduce.py): no workspace, and the
same order in every run.

    CTA (rank r of cluster c):   K units r * cta_units .., row tiles c * group_tiles ..
    warp (row warp, K warp):     every row_warps-th item of row_tiles row tiles; `depth` of every round_units K units

Constraints: K % 16 == 0, any N >= 1, M <= 8 * n_tiles; no SwiGLU over column pairs; sm_90a.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32, Int64, Uint8, Uint32
from cutlass.cute.runtime import make_fake_stream

from cutefp4.config_small_m import UNIT, SmallMConfig, ring_bytes
from cutefp4.gemm_plan_small_m import Sm90SmallMPlan

from ..common import ptx
from ..epilogue.arguments import DTYPES, fake_matrix, fake_tensors
from . import small_m_single as single
from .number_format import FORMATS
from .small_m_activations import Activations
from .small_m_reduce import Partials, SmallMEpilogue
from .small_m_weight import WeightStream, first_row


def multiply(kind: str, acc: cute.Tensor, first: int, a: list, b: tuple) -> None:
    """acc[first .. first + 3] += A * B, one mma.sync.m16n8k16."""
    text = (
        f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{$0, $1, $2, $3}}, {{$4, $5, $6, $7}}, {{$8, $9}}, "
        "{$10, $11, $12, $13};"
    )
    before = [acc[first + i] for i in range(4)]
    # The accumulators come last in the text, but first they go: inline assembly numbers operands by position.
    for i, value in enumerate(ptx.asm(text, (Float32,) * 4, *a, *b, *before)):
        acc[first + i] = value


class SmallM:
    """The kernel of one plan; attributes are compile-time constants."""

    def __init__(self, plan: Sm90SmallMPlan):
        self.plan, self.config = plan, plan.config
        self.format = FORMATS[plan.config.decode_to]
        self.acc_exponent = self.format.product_exponent * (2 if plan.activations == "nvfp4" else 1)
        if plan.config.separate:
            self.acc_exponent = 0

    @cute.jit
    def __call__(self, a, a_scales, b, b_scales, epilogue_tensors, split, stream):
        """Launch.

        split: (groups, group_tiles, cta_units, pass_units, tiles, bytes of activations and of partial sums) of
        `SmallMSplit`.
        """
        config = self.config
        groups, _, _, _, _, activation_bytes, partial_bytes = split
        ring = ring_bytes(config)
        l = b.shape[0]
        self.kernel(a, a_scales, b, b_scales, epilogue_tensors, split).launch(
            grid=[groups * config.cluster, 1, l],
            block=[config.threads, 1, 1],
            cluster=[config.cluster, 1, 1] if config.cluster > 1 else None,
            smem=activation_bytes + partial_bytes + ring,
            min_blocks_per_mp=config.ctas_per_sm,
            preferred_smem_carveout=100,
            stream=stream,
        )

    @cute.kernel
    def kernel(self, a, a_scales, b, b_scales, epilogue_tensors, split):
        config = self.config
        thread, _, _ = cute.arch.thread_idx()
        warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
        lane = thread % 32
        block, _, l = cute.arch.block_idx()
        rank, group = block % config.cluster, block // config.cluster
        _, group_tiles, cta_units, pass_units, tiles, activation_bytes, _ = split
        if cutlass.const_expr(config.cluster > 1):
            cute.arch.cluster_arrive_relaxed()
        ring = Uint32(cute.arch.get_dyn_smem(Uint8, alignment=128).toint())
        shared = ring + Uint32(ring_bytes(config))
        k = b.shape[2] * 2
        first_tile = group * group_tiles
        group_tiles = cutlass.min(group_tiles, tiles - first_tile)
        row_warp, k_warp = warp % config.row_warps, warp // config.row_warps

        weight = self.weight(b, b_scales, l, ring + Uint32(warp * (ring_bytes(config) // config.warps)), lane)
        activations = self.activations(a, a_scales, l, k, shared, pass_units)
        partials = Partials(config, shared + Uint32(activation_bytes), rank, k_warp, lane)
        items = (group_tiles + (config.row_tiles - 1)) // config.row_tiles
        items = cutlass.max((items - row_warp + (config.row_warps - 1)) // config.row_warps, 0)

        tensors = dict(zip(self.plan.tensor_names(), epilogue_tensors, strict=True))
        sizes = a.shape[1], b.shape[1]
        epilogue = SmallMEpilogue(self.plan.epilogue, self.acc_exponent, tensors, sizes, l, lane)
        epilogue.prefetch(self.owned_fragment(epilogue, first_tile, rank, warp))

        cta_first = rank * cta_units
        cta_last = cta_first + cta_units
        for first in cutlass.range(cta_first, cta_last, pass_units, unroll=1):
            limit = cutlass.min(cutlass.min(first + pass_units, cta_last) * UNIT, k)
            units = cutlass.min(pass_units, cta_last - first)
            rounds = (units + (config.round_units - 1)) // config.round_units
            later = first > cta_first
            self.run_pass(
                weight, activations, partials,
                (first_tile, row_warp, items, first + k_warp * config.depth, rounds, limit, later, warp, thread),
            )  # fmt: skip

        # The lane is read again, so that nothing that depends on it waits in registers through the main loop.
        lane = Int32(ptx.asm("mov.u32 $0, %laneid;", Uint32, effect=True))
        epilogue = SmallMEpilogue(self.plan.epilogue, self.acc_exponent, tensors, sizes, l, lane)
        partials.lane = lane
        self.finish(partials, epilogue, first_tile, group_tiles, rank, warp)

    def weight(self, b, b_scales, l: Int32, ring: Uint32, lane: Int32) -> WeightStream:
        plan, rows, row_bytes = self.plan, b.shape[1], b.shape[2]
        pitch = b_scales_pitch(row_bytes, plan.b_scales)
        per_entry = pitch * ((rows + 127) // 128 if plan.b_scales == "tiled" else rows)
        memory = (
            ptx.address(b) + Int64(l) * (Int64(rows) * Int64(row_bytes)),
            ptx.address(b_scales) + Int64(l) * Int64(per_entry),
            rows, row_bytes, pitch,
        )  # fmt: skip
        return WeightStream(self.config, plan.b_scales, plan.vector, memory, ring, lane)

    def activations(self, a, a_scales, l: Int32, k: Int32, shared: Uint32, units: Int32) -> Activations:
        plan, m = self.plan, a.shape[1]
        if plan.activations == "nvfp4":
            row_bytes = k // 2
            pitch = b_scales_pitch(row_bytes, plan.a_scales)
            per_entry = pitch * ((m + 127) // 128 if plan.a_scales == "tiled" else m)
        else:
            row_bytes, per_entry = k * 2, Int32(0)
        memory = (
            ptx.address(a) + Int64(l) * (Int64(m) * Int64(row_bytes)),
            ptx.address(a_scales) + Int64(l) * Int64(per_entry),
        )
        return Activations(self.config, plan.activations, plan.a_scales, plan.vector, memory, (m, k, units), shared)

    @cute.jit
    def run_pass(self, weight, activations, partials, where):
        """All row tiles of this warp times the activations of one pass."""
        config = self.config
        first_tile, row_warp, items, first_unit, rounds, limit, later, warp, thread = where
        lane = thread % (32 if config.separate else 4 * config.columns)
        steps = items * rounds
        k_warp = warp // config.row_warps
        acc = cute.make_rmem_tensor(4 * config.n_tiles * config.row_tiles, Float32)
        acc.fill(0.0)
        # Activations are needed first, and there are few: their loads go ahead of the weight's, most of which waits
        # until they are there.
        activations.begin(first_unit - k_warp * config.depth, limit, thread)
        place = weight.place(weight.bases(first_tile + row_warp * config.row_tiles), first_unit, limit)
        early = min(config.early, config.depth)
        for d in cutlass.range_constexpr(early):
            weight.load(place, d, steps > 0)
        if later:
            cute.arch.sync_threads()
        activations.prepare(first_unit - k_warp * config.depth, limit, thread)
        for d in cutlass.range_constexpr(early, config.depth):
            weight.load(place, d, steps > 0)
        cute.arch.sync_threads()
        if cutlass.const_expr(config.cluster > 1):
            if not later:
                cute.arch.cluster_wait()
        table = single.table_word(activations, lane) if cutlass.const_expr(config.separate) else Uint32(0)
        item, turn = row_warp, Int32(0)
        bases = weight.bases(first_tile + row_warp * config.row_tiles)
        for step in cutlass.range(steps, unroll=1):
            last_turn = turn == rounds - 1
            next_item, next_turn = item, turn + 1
            if last_turn:
                cute.arch.sync_warp()  # a branch: predicated, these addresses would cost their issue slots every time
                next_item, next_turn = item + config.row_warps, Int32(0)
                bases = weight.bases(first_tile + next_item * config.row_tiles)
            place = weight.place(bases, first_unit + next_turn * config.round_units, limit)
            unit = turn * config.round_units + k_warp * config.depth
            self.step(weight, activations, acc, unit, (lane, table), place, step < steps - 1)
            if last_turn:
                self.flush(partials, acc, item, later)
            item, turn = next_item, next_turn

    def step(self, weight, activations, acc, unit: Int32, lane_values: tuple, place, more: Boolean) -> None:
        """Multiply the `depth` units that are in flight; as each one is done, its slot is loaded from `place`."""
        config, (lane, table) = self.config, lane_values
        columns = single.Columns(activations, unit, lane) if config.separate else None
        for d in range(config.depth):
            taken = [weight.take(i, d) for i in range(config.row_tiles)]
            if config.separate:
                words, scales = [columns.words(d, w) for w in range(4)], columns.scales(d)
                for i in range(config.row_tiles):
                    single.accumulate(acc, 4 * i, taken[i], words, scales, table)
            else:
                self.multiply_unit(weight, activations, acc, taken, unit + d, lane)
            weight.load(place, d, more)

    def multiply_unit(self, weight, activations, acc, taken: list, unit: Int32, lane: Int32) -> None:
        """One K unit of the warp's row tiles times all n tiles."""
        config = self.config
        scales = [weight.multipliers(scale_bytes) for _, scale_bytes in taken]
        for w in range(4):
            words = [activations.fragments(nt, unit, w, lane) for nt in range(config.n_tiles)]
            for i in range(config.row_tiles):
                for half in range(2):
                    a = weight.fragment(taken[i][0], scales[i], 2 * w + half)
                    for nt in range(config.n_tiles):
                        first = 4 * (i * config.n_tiles + nt)
                        multiply(self.format.ptx, acc, first, a, words[nt][2 * half : 2 * half + 2])

    @cute.jit
    def flush(self, partials, acc, item: Int32, later):
        """Hand the sums of an item's row tiles to their owners."""
        config = self.config
        for i in cutlass.range_constexpr(config.row_tiles):
            for nt in cutlass.range_constexpr(config.n_tiles):
                first = 4 * (i * config.n_tiles + nt)
                if cutlass.const_expr(config.separate):
                    single.join(acc, first)
                partials.put(item * config.row_tiles + i, nt, acc, first, later)
                for r in cutlass.range_constexpr(4):
                    acc[first + r] = Float32(0.0)

    @cute.jit
    def finish(self, partials, epilogue, first_tile: Int32, group_tiles: Int32, rank: Int32, warp: Int32):
        """Add what the cluster has put into this CTA's slots, evaluate the tree, store."""
        config = self.config
        if cutlass.const_expr(config.cluster > 1):
            cute.arch.cluster_arrive()
        fragment = self.owned_fragment(epilogue, first_tile, rank, warp)
        # Most warps have one tile: what its epilogue reads is loaded while others still multiply.
        loaded = epilogue.load(fragment)
        if cutlass.const_expr(config.cluster > 1):
            cute.arch.cluster_wait()
        else:
            cute.arch.sync_threads()
        owned = (group_tiles - rank + (config.cluster - 1)) // config.cluster * config.n_tiles
        if warp < owned:
            epilogue.apply(fragment, loaded, partials.total(warp // config.n_tiles, warp % config.n_tiles))
        for index in cutlass.range(warp + config.warps, owned, config.warps, unroll=1):
            fragment = self.owned_fragment(epilogue, first_tile, rank, index)
            sums = partials.total(index // config.n_tiles, index % config.n_tiles)
            epilogue.apply(fragment, epilogue.load(fragment), sums)

    def owned_fragment(self, epilogue, first_tile: Int32, rank: Int32, index: Int32):
        """Where the 16x8 tile `index` of this CTA's own is in D."""
        tile = first_tile + index // self.config.n_tiles * self.config.cluster + rank
        return epilogue.fragment(first_row(tile, epilogue.lane >> 2), index % self.config.n_tiles)


def b_scales_pitch(row_bytes: Int32, layout: str) -> Int32:
    """Bytes of scales of a 128-row group (tiled) or of a row (compact)."""
    return (row_bytes + 31) // 32 * 512 if layout == "tiled" else row_bytes // 8


def _operand_fakes(activations: str, scales: str, l, rows, bytes_k, vector: int) -> tuple:
    """Fake rows and scales of one operand."""
    if activations != "nvfp4":
        unused = fake_matrix(Uint8, cute.sym_int(), align=1)
        return fake_matrix(DTYPES[activations], l, rows, cute.sym_int(divisibility=16)), unused
    shape = (cute.sym_int(),) if scales == "tiled" else (l, rows, cute.sym_int())
    codes = fake_matrix(Uint8, l, rows, bytes_k, align=vector)
    return codes, fake_matrix(Uint8, *shape, align=8 if scales == "tiled" else 1)


def build(plan: Sm90SmallMPlan):
    """The jit function and fake arguments of a plan."""
    l, m, n, bytes_k = cute.sym_int(), cute.sym_int(), cute.sym_int(), cute.sym_int(divisibility=plan.vector)
    a = _operand_fakes(plan.activations, plan.a_scales, l, m, bytes_k, plan.vector)
    b = _operand_fakes("nvfp4", plan.b_scales, l, n, bytes_k, plan.vector)
    leaves = fake_tensors(plan.epilogue, plan.out_dtype, None, l, m, n)
    split = tuple(Int32(1) for _ in range(7))
    return SmallM(plan), (*a, *b, leaves, split, make_fake_stream(use_tvm_ffi_env_stream=True))


__all__ = ["SmallM", "SmallMConfig", "build"]
