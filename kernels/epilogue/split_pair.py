"""K shared by a pair of CTAs of one cluster: each finishes half of the tile's columns.

A warpgroup writes the half that its peer finishes to the workspace, counts itself in, waits for the peer, and adds what
that one wrote to its own half. A sum of two does not depend on their order, so results repeat bit for bit. Against the
last one adding everything (split_k.py), half as much is written and read, and both store.

Waiting is safe because the CTAs of a cluster run at the same time.

    partials, counters   as in split_k.py; a counter counts to 2 as they arrive and to 4 as they leave, and is reset
"""

import cutlass.cute as cute
from cutlass import Float32, Int32

from ..common import ptx
from ..scheduler import WorkTile
from .split_k import SplitK


class SplitPair(SplitK):
    """One warpgroup's share of the exchange."""

    def half(self, work) -> WorkTile:
        """The work tile with the columns that this CTA finishes, in tiles of half the width."""
        n = 2 * work.n + work.part
        return WorkTile(work.m, n, work.l, work.tile, work.k_begin, work.k_count, work.part, work.parts, work.slots)

    @cute.jit
    def exchange(self, work, acc) -> list:
        """The finished sums of this CTA's half of the columns, per 64-row tile."""
        registers = self.config.tile_n // 4
        sums = [cute.make_rmem_tensor(registers, Float32) for _ in range(self.config.m_atoms)]
        mine, other = work.part_slot(work.part), work.part_slot(1 - work.part)
        if work.part == 0:
            self._write(mine, acc, registers, registers)
            self._keep(sums, acc, 0)
        else:
            self._write(mine, acc, 0, registers)
            self._keep(sums, acc, 1)
        self._sync()
        if self.thread == 0:
            self._meet(work)
        self._sync()
        self._add(other, sums, work.part * registers, registers)
        return sums

    @cute.jit
    def _meet(self, work):
        """One thread: release what the warpgroup wrote, and acquire what the peer's wrote."""
        counter = self.counters.iterator + (work.tile * self.config.consumer_groups + self.consumer)
        arrived = Int32(cute.arch.atomic_add(counter, Int32(1), sem="acq_rel", scope="gpu")) + 1
        while arrived < 2:
            arrived = Int32(ptx.load_acquire(counter.toint()))
        left = cute.arch.atomic_add(counter, Int32(1), sem="relaxed", scope="gpu")
        if left == 3:
            cute.make_tensor(counter, cute.make_layout(1))[0] = Int32(0)

    def _keep(self, sums, acc, half: int) -> None:
        registers = self.config.tile_n // 4
        for atom in range(self.config.m_atoms):
            for i in range(registers):
                sums[atom][i] = acc[atom][half * registers + i]
