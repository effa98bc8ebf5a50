"""Where every tile of a grouped launch lies, and cleared amaxes: what the kernels of row groups need before they start.

Groups (experts) are cast as matrices of their own. Tiles are counted over the groups' rows, each rounded up to 128,
so a tile never straddles two groups, and tile number * 128 is the row of its scales in the padded tiled layout. The
columnwise copy of group g begins at K position `k_start` = sum of the earlier sizes, each rounded up to 64, and the
rows between the group's end and that padding are zeros that are encoded like data.

The map has MAP_WORDS words a tile (tile_map.py reads them). One warp finds a tile's group by scanning 32 sizes at a
time. When the warps of each cast tile did that themselves, nothing could be loaded before: (16384, 6144) took 20 us
longer than a single matrix with up to 32 groups, 46 us with 64.

Arguments: offs int32 (E,), end offsets; the map, int32 (tiles, MAP_WORDS); amaxes float32, flat, cleared if the plan
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
def _write_tile(tile: Int32, tiles: Int32, offs: cute.Tensor, places: Int64):
    """The words of one tile, by one warp."""
    groups = offs.shape[0]
    group, begin, end, first_tile, k_start, used, k_end = _scan(tile, offs, groups)
    rows, local = end - begin, (tile - first_tile) * 128
    words = (begin, rows, local, k_start)
    slots = cutlass.max(cutlass.min((rows - local + 15) // 16, 8), 1)
    if group == groups:
        words = (offs[groups - 1], k_end, tile - used, tiles - used)
    where, leads = places + Int64(tile) * Int64(4 * MAP_WORDS), cute.arch.lane_idx() == 0
    ptx.store_words(where, tuple(Uint32(w) for w in words), leads)
    ptx.store_words(
        where + Int64(16),
        (Uint32(group), Uint32(group < groups), Uint32(slots), Uint32((65535 + slots) // slots)),
        leads,
    )


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
        tiles = places.shape[0]
        tile = cute.arch.block_idx()[0] * WARPS + cute.arch.warp_idx()
        if tile < tiles:
            _write_tile(tile, tiles, offs, ptx.address(places))
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
