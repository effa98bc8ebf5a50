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

    CTA (rank r of cluster c):   K units r * cta_units .., every groups-th item of row_tiles row tiles, from c on
    warp (row warp, K warp):     every row_warps-th of these items; `depth` of every round_units K units

Constraints: K % 16 == 0, any N >= 1, M <= 8 * n_tiles; no SwiGLU over column pairs; sm_90a.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32, Uint8, Uint32
from cutlass.cute.runtime import make_fake_stream

from cutefp4.config_small_m import UNIT, SmallMConfig, ceil_div, ring_bytes
from cutefp4.gemm_plan_small_m import Sm90SmallMPlan

from ..common import ptx
from ..epilogue.arguments import fake_tensors
from . import small_m_operands as operands
from . import small_m_single as single
from .number_format import FORMATS
from .small_m_reduce import Partials, SmallMEpilogue
from .small_m_weight import first_row


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

        split: `cutefp4.config_small_m.launch_numbers`.
        """
        config = self.config
        groups, activation_bytes, partial_bytes = split[0], *split[-2:]
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
        rank, group = remainder(block, config.cluster), quotient(block, config.cluster)
        groups, items_each, items_more, cta_units, pass_units, passes, activation_bytes, _ = split
        if cutlass.const_expr(config.cluster > 1):
            cute.arch.cluster_arrive_relaxed()
        ring = Uint32(cute.arch.get_dyn_smem(Uint8, alignment=128).toint())
        shared = ring + Uint32(ring_bytes(config))
        k = b.shape[2] * 2
        row_warp, k_warp = remainder(warp, config.row_warps), quotient(warp, config.row_warps)
        items = items_each + Int32(group < items_more)
        own_items = quotient(items + (config.row_warps - 1) - row_warp, config.row_warps)

        slots = ring + Uint32(warp * (ring_bytes(config) // config.warps))
        weight = operands.weight_stream(self.plan, b, b_scales, l, slots, lane)
        activations = operands.activations(self.plan, a, a_scales, (l, k, pass_units), shared)
        partials = Partials(config, shared + Uint32(activation_bytes), rank, k_warp, lane)
        tensors = dict(zip(self.plan.tensor_names(), epilogue_tensors, strict=True))
        sizes = a.shape[1], b.shape[1]
        epilogue = SmallMEpilogue(self.plan.epilogue, self.acc_exponent, tensors, sizes, l, lane)

        cta_last = (rank + 1) * cta_units
        first, tile = rank * cta_units, group * config.row_tiles + row_warp * (groups * config.row_tiles)
        self.begin(weight, activations, tile, own_items, (first, cta_last, k_warp * config.depth, k, thread))
        epilogue.prefetch(self.owned_fragment(epilogue, (group, groups), rank, warp))
        for index in cutlass.range(passes, unroll=1):
            last = cutlass.min(first + pass_units, cta_last)
            where = groups, row_warp, own_items, tile, first, k_warp * config.depth, last
            self.run_pass(weight, activations, partials, where, (cutlass.min(last * UNIT, k), index > 0, thread))
            first = last
            if index + 1 < passes:
                cute.arch.sync_threads()
                self.begin(weight, activations, tile, own_items, (first, cta_last, k_warp * config.depth, k, thread))

        # The lane is read again, so that nothing that depends on it waits in registers through the main loop.
        lane = hidden_lane()
        epilogue = SmallMEpilogue(self.plan.epilogue, self.acc_exponent, tensors, sizes, l, lane)
        partials.lane = lane
        self.finish(partials, epilogue, (group, groups), items * config.row_tiles, rank, warp)

    def begin(self, weight, activations, tile: Int32, items: Int32, where: tuple) -> None:
        """Request the first activations and K units of a pass.

        Activations are needed first, and there are few: their loads go ahead of the weight's, those of all warps. Only
        a barrier keeps ptxas from moving them behind.
        """
        config = self.config
        first, cta_last, warp_unit, k, thread = where
        last = cutlass.min(first + activations.units, cta_last)
        limit = cutlass.min(last * UNIT, k)
        activations.begin(first, limit, thread)
        cute.arch.sync_threads()
        place = weight.place(weight.bases(tile), first + warp_unit, limit)
        for d in range(0, min(config.early, config.depth), weight.at_once):
            weight.load(place, d, items > 0)

    @cute.jit
    def run_pass(self, weight, activations, partials, where, rest):
        """All row tiles of this warp times the activations of one pass, which `begin` has requested."""
        config = self.config
        groups, row_warp, items, tile, first, warp_unit, last = where
        limit, later, thread = rest
        rounds = quotient(last - first + (config.round_units - 1), config.round_units)
        first_unit, stride = first + warp_unit, groups * config.row_tiles
        activations.prepare(first, limit, thread)
        # From here on with a lane that the compiler cannot know: what the main loop needs would else be computed before
        # the first copies.
        hidden = hidden_lane()
        weight.of_lane(hidden)
        lane = hidden % (32 if config.separate else 4 * config.columns)
        bases = weight.bases(tile)
        place = weight.place(bases, first_unit, limit)
        early = ceil_div(min(config.early, config.depth), weight.at_once) * weight.at_once
        for d in cutlass.range_constexpr(early, config.depth, weight.at_once):
            weight.load(place, d, items > 0)
        cute.arch.sync_threads()
        if cutlass.const_expr(config.cluster > 1):
            if not later:
                cute.arch.cluster_wait()
        acc = cute.make_rmem_tensor(4 * config.n_tiles * config.row_tiles, Float32)
        acc.fill(0.0)
        table = single.table_word(activations, lane) if cutlass.const_expr(config.separate) else Uint32(0)
        steps = items * rounds
        item, turn = row_warp, Int32(0)
        for step in cutlass.range(steps, unroll=1):
            last_turn = turn == rounds - 1
            next_item, next_turn = item, turn + 1
            if last_turn:
                cute.arch.sync_warp()  # a branch: predicated, these addresses would cost their issue slots every time
                next_item, next_turn = item + config.row_warps, Int32(0)
                tile += stride * config.row_warps
                bases = weight.bases(tile)
            place = weight.place(bases, first_unit + next_turn * config.round_units, limit)
            unit = turn * config.round_units + warp_unit
            self.step(weight, activations, acc, unit, (lane, table), place, step < steps - 1)
            if last_turn:
                self.flush(partials, acc, item, later)
            item, turn = next_item, next_turn

    def step(self, weight, activations, acc, unit: Int32, lane_values: tuple, place, more: Boolean) -> None:
        """Multiply the `depth` units that are in flight; as each one is read, its slot is loaded from `place`."""
        config, (lane, table) = self.config, lane_values
        columns = single.Columns(activations, unit, lane) if config.separate else None
        for first in range(0, config.depth, weight.at_once):
            units = range(first, first + weight.at_once)
            taken = [[weight.take(i, d) for i in range(config.row_tiles)] for d in units]
            if weight.at_once > 1:
                cute.arch.sync_warp()
            weight.load(place, first, more)
            for d, tiles in zip(units, taken, strict=True):
                if not config.separate:
                    self.multiply_unit(weight, activations, acc, tiles, unit + d, lane)
                    continue
                words, scales = [columns.words(d, w) for w in range(4)], columns.scales(d)
                for i in range(config.row_tiles):
                    single.accumulate(acc, 4 * i, tiles[i], words, scales, table)

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
    def finish(self, partials, epilogue, group, group_tiles: Int32, rank: Int32, warp: Int32):
        """Add what the cluster has put into this CTA's slots, evaluate the tree, store."""
        config = self.config
        if cutlass.const_expr(config.cluster > 1):
            cute.arch.cluster_arrive()
        fragment = self.owned_fragment(epilogue, group, rank, warp)
        # Most warps have one tile: what its epilogue reads is loaded while others still multiply.
        loaded = epilogue.load(fragment)
        if cutlass.const_expr(config.cluster > 1):
            cute.arch.cluster_wait()
        else:
            cute.arch.sync_threads()
        owned = quotient(group_tiles - rank + (config.cluster - 1), config.cluster) * config.n_tiles
        if warp < owned:
            epilogue.apply(fragment, loaded, partials.total(*self.tile_of(warp)))
        for index in cutlass.range(warp + config.warps, owned, config.warps, unroll=1):
            fragment = self.owned_fragment(epilogue, group, rank, index)
            epilogue.apply(fragment, epilogue.load(fragment), partials.total(*self.tile_of(index)))

    def tile_of(self, index: Int32) -> tuple:
        """(row tile, n tile) of a CTA's own 16x8 tile `index`."""
        return quotient(index, self.config.n_tiles), remainder(index, self.config.n_tiles)

    def owned_fragment(self, epilogue, group, rank: Int32, index: Int32):
        """Where the 16x8 tile `index` of this CTA's own is in D. group: that of the cluster, and how many there are."""
        own, nt = self.tile_of(index)
        local, row_tiles = own * self.config.cluster + rank, self.config.row_tiles
        item = group[0] + quotient(local, row_tiles) * group[1]
        return epilogue.fragment(first_row(item * row_tiles + remainder(local, row_tiles), epilogue.lane >> 2), nt)


def hidden_lane() -> Int32:
    """The lane, read anew."""
    return Int32(ptx.asm("mov.u32 $0, %laneid;", Uint32, effect=True))


def quotient(a: Int32, b: int) -> Int32:
    """a / b, rounded down; a is not negative, which spares the corrections of a signed division."""
    return Int32(Uint32(a) // Uint32(b))


def remainder(a: Int32, b: int) -> Int32:
    """a % b; a is not negative."""
    return Int32(Uint32(a) % Uint32(b))


def build(plan: Sm90SmallMPlan):
    """The jit function and fake arguments of a plan."""
    l, m, n, bytes_k = cute.sym_int(), cute.sym_int(), cute.sym_int(), cute.sym_int(divisibility=plan.vector)
    a = operands.fakes(plan.activations, plan.a_scales, l, m, bytes_k, plan.vector)
    b = operands.fakes("nvfp4", plan.b_scales, l, n, bytes_k, plan.vector)
    leaves = fake_tensors(plan.epilogue, plan.out_dtype, None, l, m, n)
    split = tuple(Int32(1) for _ in range(8))
    return SmallM(plan), (*a, *b, leaves, split, make_fake_stream(use_tvm_ffi_env_stream=True))


__all__ = ["SmallM", "SmallMConfig", "build"]
