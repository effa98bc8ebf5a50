"""Sum of squares of a row in the order of cutefp4/reference/rmsnorm.py, whatever threads hold the row.

    block    two chains of FMAs, over even and over odd elements
    chunk    32 blocks, one a lane: a butterfly adds neighbours first, as the oracle's tree does
    row      chunk sums go to one slot each in shared memory; slot k adds chunks k, k + 32, ...; a butterfly over slots

A thread holds V blocks of V chunks. Their butterflies share shuffles: at distance d, lanes whose bit d is set go on
with one half of the values and give the other half away (6 shuffles instead of 20 for V = 4). Addition commutes, so
every lane that holds a sum holds the same bits.
"""

import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.quantize.input_block import unpack
from cutlass import Float32, Int32, Uint32

MAX_CHUNKS = 2048
"""Chunks of the longest row that shared memory has slots for."""


def block_square_sum(words: list[Uint32], dtype: str) -> Float32:
    """Sum of the squares of 16 elements."""
    values = unpack(words, dtype)
    chains = []
    for first in (0, 1):
        total = ptx.mul(values[first], values[first])
        for value in values[first + 2 :: 2]:
            total = ptx.fma(value, value, total)
        chains.append(total)
    return ptx.add(*chains)


def _from_lane(value: Float32, distance: int) -> Float32:
    return ptx.from_bits(ptx.shuffle_xor(ptx.bits(value), distance))


def _add_lanes(value: Float32, distance: int, end: int) -> Float32:
    """The butterfly from `distance` up to below `end`."""
    while distance < end:
        value = ptx.add(value, _from_lane(value, distance))
        distance *= 2
    return value


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def chunk_sums(sums: list[Float32], lanes: int) -> Float32:
    """Lane l gets the sum of `sums[l % P]` over `lanes` lanes, P the power of two that holds them all."""
    values = sums + [Float32(0.0)] * (_power_of_two(len(sums)) - len(sums))
    distance = 1
    while len(values) > 1:
        upper = (Uint32(cute.arch.lane_idx()) & Uint32(distance)) != Uint32(0)
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [ptx.add(ptx.select(upper, b, a), _from_lane(ptx.select(upper, a, b), distance)) for a, b in pairs]
        distance *= 2
    return _add_lanes(values[0], distance, lanes)


def store_chunk_sums(sums: list[Float32], threads_per_row: int, chunk: Int32, slots: Uint32) -> None:
    """Put the sums of this warp's chunks into slots chunk, chunk + warps of a row, ..."""
    value, warps = chunk_sums(sums, 32), threads_per_row // 32
    lane = Int32(cute.arch.lane_idx())
    where = slots + Uint32(chunk + lane * warps) * Uint32(4)
    ptx.store_shared_if(where, ptx.bits(value), lane < len(sums))


def _slot(slots: Uint32, index: Uint32, count) -> Float32:
    """One slot's value; 0 if there is no such slot."""
    inside = index < Uint32(count)
    word = ptx.load_shared(slots + ptx.select(inside, index, Uint32(0)) * Uint32(4), 1)[0]
    return ptx.select(inside, ptx.from_bits(word), Float32(0.0))


def sum_of_slots(slots: Uint32, count: int) -> Float32:
    """The sum over `count` slots that every warp may read, in all lanes."""
    lanes = min(32, _power_of_two(count))
    lane = Uint32(cute.arch.lane_idx()) & Uint32(lanes - 1)
    total = _slot(slots, lane, count)
    for first in range(32, count, 32):
        total = ptx.add(total, _slot(slots, lane + Uint32(first), count))
    return _add_lanes(total, 1, lanes)


@cute.jit
def sum_of_many_slots(slots: Uint32, count: Int32) -> Float32:
    """The same for a number of slots that is known at run time alone."""
    lane, total = Uint32(cute.arch.lane_idx()), Float32(0.0)
    for first in cutlass.range(0, count, 32):
        total = ptx.add(total, _slot(slots, lane + Uint32(first), count))
    return _add_lanes(total, 1, 32)


def row_square_sum(plan, sums: list[Float32], tid: Int32, slots: Uint32) -> Float32:
    """The sum over a row whose threads hold all of it, in all of them.

    Args:
        plan: threads_per_row, blocks_per_thread.
        sums: `block_square_sum` of this thread's blocks.
        slots: of shared memory, which no thread may still be reading. Every thread of the CTA must call.
    """
    threads = plan.threads_per_row
    if threads <= 32:
        return _add_lanes(chunk_sums(sums, threads), 1, _power_of_two(len(sums)))
    store_chunk_sums(sums, threads, tid // 32, slots)
    cute.arch.sync_threads()
    return sum_of_slots(slots, threads // 32 * len(sums))
