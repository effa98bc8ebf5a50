"""A thread's share of its next row, copied to shared memory while it works on this one (cp.async).

No other thread looks there, so no barrier is needed, and what is on its way takes no registers: kept in registers,
three blocks of 4over6 a thread leave 16 or 20 warps an SM instead of 24. A thread reads a block before the copy of the
next row's begins in the same place. A copy is 16 bytes; those of neighbouring threads lie side by side. They go through
L1: past it, every 32-byte sector would be read from L2 twice, and each kernel took 130 us instead of 73 to 104.

(16384, 6144): 4over6 98.7 us instead of 103.5 (fast) and 103.8 instead of 106.9 (strict); de-interleaving 32 columns
146 us instead of 152, 8 columns 143 and 142 (a second run: 148 and 145). RMSNorm took 95 us instead of 85 and has its
next row in registers.
"""

from dataclasses import dataclass

import cutlass.cute as cute
from cutefp4.kernels.common import ptx
from cutefp4.kernels.quantize.input_block import BYTES
from cutlass import Boolean, Int32, Int64, Uint32

from cutefp4.quant_plan import COPY_BYTES

Piece = tuple[Int64, int]
"""Address of elements that lie together, and how many."""


@dataclass(frozen=True)
class Ahead:
    """This thread's places: address of the first one, and bytes from each to the next."""

    base: Uint32
    step: int

    @classmethod
    def allocate(cls, size: int, threads: int, tid: Int32) -> "Ahead":
        """`size`: bytes of all threads."""
        base = Uint32(cute.arch.alloc_smem(Uint32, size // 4, alignment=COPY_BYTES).toint())
        return cls(base + Uint32(tid) * Uint32(COPY_BYTES), threads * COPY_BYTES)

    def copy_block(self, index: int, pieces: list[Piece], valid: Boolean, dtype: str) -> None:
        """Begin to copy a block, or zeros, to be number `index` of this thread's."""
        place = self._first(index, dtype)
        text = (
            "{ .reg .pred p; .reg .b32 n; setp.ne.u32 p, $2, 0; selp.b32 n, 16, 0, p; "
            "cp.async.ca.shared.global [$0], [$1], 16, n; }"
        )
        for where, count in pieces:
            for byte in range(0, count * BYTES[dtype], COPY_BYTES):
                ptx.asm(text, None, self._place(place), where + Int64(byte), Uint32(valid), effect=True)
                place += 1

    def block(self, index: int, dtype: str) -> list[Uint32]:
        """The words of a block that has arrived."""
        first = self._first(index, dtype)
        return [w for i in range(BYTES[dtype]) for w in ptx.load_shared(self._place(first + i), COPY_BYTES // 4)]

    def _first(self, index: int, dtype: str) -> int:
        return index * 16 * BYTES[dtype] // COPY_BYTES

    def _place(self, place: int) -> Uint32:
        return self.base + Uint32(place * self.step)


def wait_for_copies() -> None:
    """Until everything this thread copies has arrived."""
    ptx.asm("cp.async.wait_all;", None, effect=True)
