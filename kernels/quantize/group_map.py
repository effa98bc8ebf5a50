"""Where every tile of a grouped launch lies, and cleared amaxes: what the kernels of row groups need before they start.

Groups (experts) are cast as matrices of their own. Tiles are counted over the groups' rows, each rounded up to 128,
so a tile never straddles two groups, and tile number * 128 is the row of its scales in the padded tiled layout. The
columnwise copy of group g begins at K position `k_start` = sum of the earlier sizes, each rounded up to 64, and the
rows between the group's end and that padding are zeros that are encoded like data.

The map has MAP_WORDS words for each place in the order of the grid (tile_map.py reads them). There are more places than
tiles, for any split; the spare ones, which clear what is behind all groups, lie among the others, so that their stores
overlap with arithmetic. One warp finds a tile's group by scanning 32 sizes at a time.

When a warp of each cast CTA did that itself, nothing could be loaded before. (16384, 6144), both copies, took 126 us
with 8 equal groups and 157 with 64 random ones; with the map and tile_group.py 118 and 138; a single matrix takes 106.

Arguments: offs int32 (E,), end offsets; the map, int32 (places, MAP_WORDS); amaxes float32, flat, cleared if the plan
says so.
"""

import cuda.bindings.driver as cuda
import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutlass import Float32, Int32, Int64, Uint32
from cutlass.cute.runtime import make_fake_stream, make_fake_tensor

from cutefp4.quant_plan import MAP_WORDS, GroupMapPlan

THREADS = 256
WARPS = THREADS // 32


def _prefix_sum(value: Int32) -> Int32:
    """Inclusive sum over the lanes up to this one."""
    lane = cute.arch.lane_idx()
    for distance in (1, 2, 4, 8, 16):
        below = cute.arch.shuffle_sync_up(value, distance, mask_and_clamp=0)
        value = value + ptx.select(lane >= distance, Uint32(below), Uint32(0)).to(Int32)
    return value


@cute.jit
def _scan(tile: Int32, offs: cute.Tensor, groups: Int32):
    """(group, begin, end, first tile, k_start) of the group that holds `tile`, group = `groups` if none does; then the
    number of tiles and of K positions of all groups."""
    lane = cute.arch.lane_idx()
    group, begin, end, first_tile, k_start = groups, Int32(0), Int32(0), Int32(0), Int32(0)
    tiles_before, k_before = Int32(0), Int32(0)
    for base in cutlass.range(0, groups, 32):
        g = base + lane
        upper, lower = Int32(0), Int32(0)
        if g < groups:
            upper = offs[g]
            if g > 0:
                lower = offs[g - 1]
        size = upper - lower
        tiles, k = (size + 127) // 128, (size + 63) // 64 * 64
        tiles_to, k_to = _prefix_sum(tiles) + tiles_before, _prefix_sum(k) + k_before
        mine = (tile < tiles_to) & (tile >= tiles_to - tiles)
        holders = cute.arch.vote_ballot_sync(mine)
        if holders != 0:
            holder = Int32(31) - Int32(cute.arch.clz(holders))
            group = base + holder
            begin = cute.arch.shuffle_sync(lower, holder)
            end = cute.arch.shuffle_sync(upper, holder)
            first_tile = cute.arch.shuffle_sync(tiles_to - tiles, holder)
            k_start = cute.arch.shuffle_sync(k_to - k, holder)
        tiles_before = cute.arch.shuffle_sync(tiles_to, 31)
        k_before = cute.arch.shuffle_sync(k_to, 31)
    return group, begin, end, first_tile, k_start, tiles_before, k_before


@cute.jit
def _write_place(place: Int32, places: Int32, offs: cute.Tensor, base: Int64):
    """The words of one place of the grid, by one warp: a tile of a group, or one that clears what is behind them."""
    groups = offs.shape[0]
    _, _, _, _, _, used, k_end = _scan(Int32(-1), offs, groups)
    spare = Uint32(places - used)
    before = (Uint32(place) * spare // Uint32(places)).to(Int32)
    clears = (Uint32(place + 1) * spare // Uint32(places)).to(Int32) > before
    tile = place - before
    group, begin, end, first_tile, k_start, _, _ = _scan(tile, offs, groups)
    rows, local = end - begin, (tile - first_tile) * 128
    words = (begin, rows, local, k_start)
    if clears:
        group, tile = Int32(-1), used + before
        words = (offs[groups - 1], k_end, before, places - used)
    slots = cutlass.max(cutlass.min((rows - local + 15) // 16, 8), 1)
    where, leads = base + Int64(place) * Int64(4 * MAP_WORDS), cute.arch.lane_idx() == 0
    ptx.store_words(where, tuple(Uint32(w) for w in words), leads)
    more = (group, tile, slots, (65535 + slots) // slots)
    ptx.store_words(where + Int64(16), tuple(Uint32(w) for w in more), leads)


@cute.jit
def _clear(amaxes: cute.Tensor):
    """Zero four amaxes a thread."""
    first = (cute.arch.block_idx()[0] * THREADS + cute.arch.thread_idx()[0]) * 4
    count, zero = amaxes.shape[0], Uint32(0)
    if first + 4 <= count:
        ptx.store_words(ptx.address(amaxes) + Int64(first) * Int64(4), (zero, zero, zero, zero), True)
    else:
        for i in cutlass.range_constexpr(4):
            ptx.store_words(ptx.address(amaxes) + Int64(first + i) * Int64(4), (zero,), first + i < count)


def build(plan: GroupMapPlan):
    """The kernel of a plan, and fake arguments for compiling it."""

    @cute.kernel
    def group_map_kernel(offs: cute.Tensor, places: cute.Tensor, amaxes: cute.Tensor):
        cute.arch.griddepcontrol_launch_dependents()
        place = cute.arch.block_idx()[0] * WARPS + cute.arch.warp_idx()
        if place < places.shape[0]:
            _write_place(place, places.shape[0], offs, ptx.address(places))
        if cutlass.const_expr(plan.clears):
            _clear(amaxes)

    @cute.jit
    def group_map(offs: cute.Tensor, places: cute.Tensor, amaxes: cute.Tensor, stream: cuda.CUstream):
        ctas = cute.ceil_div(places.shape[0], WARPS)
        if cutlass.const_expr(plan.clears):
            ctas = cutlass.max(ctas, cute.ceil_div(amaxes.shape[0], 4 * THREADS))
        group_map_kernel(offs, places, amaxes).launch(grid=[ctas, 1, 1], block=[THREADS, 1, 1], stream=stream)

    return group_map, (
        make_fake_tensor(Int32, (cute.sym_int(),), (1,), assumed_align=4),
        make_fake_tensor(Int32, (cute.sym_int(), MAP_WORDS), (MAP_WORDS, 1), assumed_align=16),
        make_fake_tensor(Float32, (cute.sym_int(),), (1,), assumed_align=16),
        make_fake_stream(use_tvm_ffi_env_stream=True),
    )
