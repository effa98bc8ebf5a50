"""A consumer warpgroup's work tiles: mainloop (mma.py) and what follows it (../epilogue).

    finish_tiles   tiles one after the other, whole or as shares of K that meet in a workspace
    share_tile     one tile, whose K a cluster shares: sums are exchanged, and each CTA finishes a part of the columns
    help_tiles     the end of K of several tiles, left in a workspace for clusters that share them

parts: (load ring, MMA ring), shared memory, wgmma. endings: the tile's epilogue, `SplitCluster` or (), `HelpedSums` or
(). spec: configuration, number format, bytes of a stage; compile-time constants.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Int32

from ..scheduler import first_and_step
from .decode import NaturalOrderReader, RegisterOperandReader
from .loader import decoded_layout
from .mma import WarpgroupMma, mainloop


@cute.jit
def consumer_role(scheduler, parts, endings, spec: cutlass.Constexpr, consumer: Int32, thread: Int32):
    """All that consumer warpgroup `consumer` of this CTA does."""
    if cutlass.const_expr(spec[0].helped):
        first, _ = first_and_step()
        if first < scheduler.helpers:
            help_tiles(scheduler, parts, endings, spec, consumer, thread)
        else:
            share_tile(scheduler, parts, endings, spec, consumer, thread)
    elif cutlass.const_expr(spec[0].split_pair):
        share_tile(scheduler, parts, endings, spec, consumer, thread)
    else:
        finish_tiles(scheduler, parts, endings, spec, consumer, thread)


def working(parts, spec, consumer: Int32, thread: Int32) -> tuple:
    """What a mainloop works with: multiplier, reader, rings and the positions in them."""
    (rings, storage, tiled_mma), (config, fmt, _) = parts, spec
    layout = decoded_layout(config, fmt.dtype)
    pointer = cute.recast_ptr(storage.decoded_n, layout.inner, dtype=fmt.dtype)
    # Its own wgmma: setting a field of one changes it for every branch.
    mma = WarpgroupMma(cute.make_tiled_mma(tiled_mma.op), cute.make_tensor(pointer, layout.outer), config)
    kind = NaturalOrderReader if config.natural_order else RegisterOperandReader
    reader = kind(config, storage, consumer * (64 * config.m_atoms), thread)
    return mma, reader, rings, (rings[0].consumer_state(), rings[1].consumer_state())


@cute.jit
def finish_tiles(scheduler, parts, endings, spec: cutlass.Constexpr, consumer: Int32, thread: Int32):
    """Every work tile of this CTA: mainloop and epilogue."""
    epilogue, config = endings[0], spec[0]
    mma, reader, rings, states = working(parts, spec, consumer, thread)
    first, step = first_and_step(config.cluster)
    tiles = Int32(0)
    for index in cutlass.range(first, scheduler.total(), step, unroll=1):
        work = scheduler.work(index)
        prefetched = epilogue.prefetch(work)
        states = mainloop(work, mma, reader, rings, states, spec[2], thread % 32, (epilogue, work))
        if cutlass.const_expr(config.stream_k):
            if work.k_count > 0:
                tiles = epilogue.store_tile(work, mma.acc, prefetched, tiles)
        else:
            tiles = epilogue.store_tile(work, mma.acc, prefetched, tiles)


@cute.jit
def share_tile(scheduler, parts, endings, spec: cutlass.Constexpr, consumer: Int32, thread: Int32):
    """The only work tile of a CTA whose cluster shares K: mainloop, exchange and epilogue."""
    epilogue, cluster_sum, helped_sum = endings
    mma, reader, rings, states = working(parts, spec, consumer, thread)
    first, _ = first_and_step()
    work = scheduler.work(first)
    part = cluster_sum.part_of(work)
    prefetched = epilogue.prefetch(part)
    if part.k_count == 0:
        epilogue.load_c(part)
    mainloop(work, mma, reader, rings, states, spec[2], thread % 32, (epilogue, part))
    sums = cluster_sum.exchange(work, mma.acc)
    if cutlass.const_expr(spec[0].helped):
        if scheduler.helped > 0:
            helped_sum.take(work, sums)
    epilogue.store_tile(part, sums, prefetched, Int32(0))


@cute.jit
def help_tiles(scheduler, parts, endings, spec: cutlass.Constexpr, consumer: Int32, thread: Int32):
    """The work tiles of a helper: mainloop, and the sums left for others."""
    mma, reader, rings, states = working(parts, spec, consumer, thread)
    first, step = first_and_step()
    for index in cutlass.range(first, scheduler.total(), step, unroll=1):
        work = scheduler.work(index)
        states = mainloop(work, mma, reader, rings, states, spec[2], thread % 32, ())
        if work.k_count > 0:
            endings[2].give(work, mma.acc)
