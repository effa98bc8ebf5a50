"""K shared by the CTAs of one cluster: each finishes an equal part of the tile's columns.

A warpgroup sends the columns that a peer finishes to that peer's shared memory, and adds what it receives to its own.
The order of the sum is fixed, so results repeat bit for bit; nothing goes through global memory, there is no workspace,
and every CTA stores. A CTA has one work tile: the sums arrive where its MMA ring was.

    sums_free   one barrier: every warp of every peer has left its mainloop. Peers arrive, at each other's
    sums_full   one per warpgroup: st.async counts the bytes that it brings

`st.async` carries its completion with it. A release at cluster scope before an arrival is a fence of the whole GPU
(MEMBAR.ALL.GPU).
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Uint32

from cutefp4.config import WARPGROUP, Sm90Config

from ..common import ptx
from ..common.device_struct import DeviceStruct
from ..scheduler import WorkTile
from . import math

VECTOR = 4
"""Registers of one access."""


class SplitCluster(DeviceStruct):
    """One warpgroup's share of the exchange.

    storage: shared memory of the kernel: `decoded_n` (the MMA ring), `sums_free` and `sums_full`.
    """

    def __init__(self, storage, config: Sm90Config, consumer: Int32, thread: Int32):
        self.storage, self.config, self.consumer, self.thread = storage, config, consumer, thread
        self.registers = config.tile_n // (2 * config.splits)
        self.sent = WARPGROUP * config.m_atoms * self.registers * 4
        """Bytes of one warpgroup's part of one peer's columns."""

    def part_of(self, work) -> WorkTile:
        """The work tile with the columns that this CTA finishes, in tiles as wide as those."""
        n = self.config.splits * work.n + work.part
        return WorkTile(work.m, n, work.l, work.tile, work.k_begin, work.k_count, work.part, work.parts, work.slots)

    @cute.jit
    def exchange(self, work, acc) -> list:
        """The finished sums of this CTA's columns, per 64-row tile."""
        config, full = self.config, self.storage.sums_full + self.consumer
        sums = [cute.make_rmem_tensor(self.registers, Float32) for _ in range(config.m_atoms)]
        lane = self.thread % 32
        if lane < config.splits and lane != work.part:
            cute.arch.mbarrier_arrive(self.storage.sums_free, lane)
        if self.thread == 0:
            cute.arch.mbarrier_arrive_and_expect_tx(full, (config.splits - 1) * self.sent)
        cute.arch.mbarrier_wait(self.storage.sums_free, 0)
        for rank in cutlass.range_constexpr(config.splits):
            if work.part == rank:
                self._send(acc, rank)
                self._keep(sums, acc, rank)
        cute.arch.mbarrier_wait(full, 0)
        for slot in cutlass.range_constexpr(config.splits - 1):
            self._add(sums, slot)
        return sums

    def _mine(self) -> Uint32:
        """This thread's place in this CTA's buffer, which a peer's thread of the same warpgroup and index writes."""
        offset = self.consumer * self.sent + self.thread * (4 * VECTOR)
        return Uint32(self.storage.decoded_n.toint()) + Uint32(offset)

    def _offset(self, slot: int, atom: int, i: int) -> int:
        """Of registers i .. i + 3 of a 64-row tile, in one slot per sender."""
        vector = (atom * self.registers + i) // VECTOR
        return slot * self.config.consumer_groups * self.sent + vector * (WARPGROUP * 4 * VECTOR)

    def _send(self, acc, rank: int) -> None:
        """To every peer of CTA `rank` the columns that the peer finishes; slots are in the order of the senders."""
        full, mine = Uint32((self.storage.sums_full + self.consumer).toint()), self._mine()
        store = "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32"
        for step in range(1, self.config.splits):
            # Everybody begins with another peer.
            peer = (rank + step) % self.config.splits
            slot, place, barrier = rank - (rank > peer), _at(mine, peer), _at(full, peer)
            for atom in range(self.config.m_atoms):
                for i in range(0, self.registers, VECTOR):
                    values = [acc[atom][peer * self.registers + i + j] for j in range(VECTOR)]
                    text = f"{store} [$0 + {self._offset(slot, atom, i)}], {{$1, $2, $3, $4}}, [$5];"
                    ptx.asm(text, None, place, *values, barrier, effect=True)

    def _keep(self, sums, acc, rank: int) -> None:
        for atom in range(self.config.m_atoms):
            for i in range(self.registers):
                sums[atom][i] = acc[atom][rank * self.registers + i]

    def _add(self, sums, slot: int) -> None:
        mine = self._mine()
        for atom in range(self.config.m_atoms):
            for i in range(0, self.registers, VECTOR):
                text = f"ld.shared.v4.f32 {{$0, $1, $2, $3}}, [$4 + {self._offset(slot, atom, i)}];"
                values = ptx.asm(text, (Float32,) * VECTOR, mine, effect=True)
                for j, value in enumerate(values):
                    sums[atom][i + j] = math.add(sums[atom][i + j], value)


def _at(address: Uint32, cta: int) -> Uint32:
    """The same place in the shared memory of another CTA of the cluster."""
    return ptx.asm("mapa.shared::cluster.u32 $0, $1, $2;", Uint32, address, Uint32(cta))
