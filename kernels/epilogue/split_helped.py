"""What the CTAs that are left over add to tiles that clusters share (`HelpedScheduler`).

A helper multiplies the end of K of several tiles, one after the other, and leaves its sums in the workspace. The CTAs
of a tile's cluster, which need as long for theirs, add them to the columns that they finish. The order of the sum is
fixed.

Waiting is safe because helpers wait for nobody and are the first CTAs of the grid: where a cluster runs, they do too.
CUDA does not promise that CTAs begin in the order of the grid; the GPUs do it. Whatever else shares K either does not
wait (split_k.py) or waits inside a cluster, which runs as a whole.

    partials   fp32 as in split_k.py, one slot per tile
    counters   int32 (tiles, consumer_groups): 1 when the helper has written, one more per CTA that has read; then 0
"""

import cutlass.cute as cute
from cutlass import Int32

from ..common import ptx
from .split_k import SplitK


class HelpedSums(SplitK):
    """One warpgroup's sums, on either side."""

    @cute.jit
    def give(self, work, acc):
        """A helper's: write the sums of a tile."""
        self._write(work.tile, acc, 0, self.config.tile_n // 2)
        self._sync()
        if self.thread == 0:
            cute.arch.atomic_add(self._counter(work), Int32(1), sem="release", scope="gpu")

    @cute.jit
    def take(self, work, sums):
        """A cluster's: add what the helper wrote of this CTA's columns."""
        if self.thread == 0:
            counter = self._counter(work)
            written = Int32(0)
            while written == 0:
                written = Int32(ptx.load_acquire(counter.toint()))
            read = cute.arch.atomic_add(counter, Int32(1), sem="relaxed", scope="gpu")
            if read == self.config.splits:
                cute.make_tensor(counter, cute.make_layout(1))[0] = Int32(0)
        self._sync()
        registers = self.config.tile_n // (2 * self.config.splits)
        self._add(work.tile, sums, work.part * registers, registers)

    def _counter(self, work) -> cute.Pointer:
        return self.counters.iterator + (work.tile * self.config.consumer_groups + self.consumer)
