"""What the 16 lines of a 16x16 block agree on in shared memory: their amax, and the choice of 4over6.

A tile of 128 rows has 8 x B such blocks (B = 8 for 16-bit input, 4 for fp32). The amax is a maximum over lines, in any
order. The choice compares two error sums whose order is part of the contract: each line adds its 16 errors in ascending
order, then v[i] += v[i + 8], += v[i + 4], += v[i + 2], += v[i + 1]; 4 is chosen iff err_4 < err_6.
"""

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.quantize.block_encode import both_errors
from cutefp4.kernels.quantize.four_over_six import candidates
from cutefp4.kernels.quantize.input_block import block_amax
from cutlass import Int32, Uint32

from cutefp4.quant_plan import CastTilesPlan

GROUPS = 8


@dataclass(frozen=True)
class ChoiceSlots:
    """Shared-memory addresses: amax bits and choice (one word per 16x16 block), error sums of every line."""

    amaxes: Uint32
    choices: Uint32
    errors: Uint32


def _across(plan: CastTilesPlan) -> int:
    return plan.tile_columns // 16


def allocate(plan: CastTilesPlan, allocate_bytes) -> ChoiceSlots:
    """Slots of a tile; the errors only for 4over6."""
    count = GROUPS * _across(plan)
    errors = allocate_bytes(count * 16 * 8) if plan.math.four_over_six != "none" else Uint32(0)
    return ChoiceSlots(allocate_bytes(64 * 4), allocate_bytes(64 * 4), errors)


@cute.jit
def clear(slots: cutlass.Constexpr, tid: Int32):
    """Set all amaxes to 0. A barrier must follow."""
    if tid < 64:
        ptx.store_shared(slots.amaxes + Uint32(tid) * Uint32(4), (Uint32(0),))


def add_amaxes(plan: CastTilesPlan, slots: ChoiceSlots, tid: Int32, items: list, loaded: list) -> None:
    """Add the amaxes of this thread's lines, (row, block) in `items`. A barrier must follow."""
    for (row, block), words in zip(items, loaded, strict=True):
        where = slots.amaxes + Uint32(row // 16 * _across(plan) + block) * Uint32(4)
        ptx.shared_umax(where, ptx.bits(block_amax(words, plan.dtype)))


def decide(plan: CastTilesPlan, slots: ChoiceSlots, lines, outer, tid: Int32) -> None:
    """Make the 4over6 choice of every 16x16 block out of all threads' lines: (group, block, line, 16 values,
    whether they have at most 11 bits) each."""
    for group, block, line, values, short in lines:
        index = Uint32(group * _across(plan) + block)
        tile_amax = ptx.from_bits(ptx.load_shared(slots.amaxes + index * Uint32(4), 1)[0])
        six, four = both_errors(values, outer, candidates(tile_amax, outer), plan.math, plan.arch, short)
        where = slots.errors + (index * Uint32(16) + Uint32(line)) * Uint32(8)
        ptx.store_shared(where, (ptx.bits(six[0]), ptx.bits(four[0])))
    cute.arch.sync_threads()
    _reduce(plan, slots, tid)
    cute.arch.sync_threads()


@cute.jit
def _reduce(plan: cutlass.Constexpr, slots: cutlass.Constexpr, tid: Int32):
    if tid < GROUPS * _across(plan):
        sums = [[], []]
        for line in cutlass.range_constexpr(16):
            pair = ptx.load_shared(slots.errors + (Uint32(tid) * Uint32(16) + Uint32(line)) * Uint32(8), 2)
            sums[0].append(ptx.from_bits(pair[0]))
            sums[1].append(ptx.from_bits(pair[1]))
        choose_four = _tree(sums[1]) < _tree(sums[0])
        ptx.store_shared(slots.choices + Uint32(tid) * Uint32(4), (Uint32(choose_four),))


def _tree(v: list):
    for half in (8, 4, 2, 1):
        v = [ptx.add(a, b) for a, b in zip(v[:half], v[half : 2 * half], strict=True)]
    return v[0]


def read(plan: CastTilesPlan, slots: ChoiceSlots, group: Int32, block: Int32):
    """(amax, choice) of a 16x16 block; choice is None without 4over6."""
    index = Uint32(group * _across(plan) + block) * Uint32(4)
    amax = ptx.from_bits(ptx.load_shared(slots.amaxes + index, 1)[0])
    if plan.math.four_over_six == "none":
        return amax, None
    return amax, ptx.load_shared(slots.choices + index, 1)[0] != Uint32(0)
