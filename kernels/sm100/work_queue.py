"""Which work index a cluster does next; every role walks the same sequence, in its own time.

    while queue.more():
        work = scheduler.work(queue.index)
        ...
        queue.advance()

Static: every nth index, n clusters running; nothing has to be communicated.

Cluster launch control ("clc"): the grid has a cluster for every index. A running cluster takes the index of one that
has not started: the schedule warp of its first CTA asks (try_cancel), and the answer arrives in the shared memory of
all its CTAs, in a ring of CLC_STAGES responses:

    full    the answer's 16 bytes in each CTA's own memory; announced by the schedule warp to every CTA
    empty   in the first CTA; one arrival from each warp of the cluster that follows the queue

An answer "nothing left" ends the queue; nobody may ask again after it. So SMs that are late, or busy with other
kernels, get fewer tiles, where a static grid would make everybody wait for them.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Int32

from cutefp4.config_sm100 import CLC_STAGES, EPILOGUE_WARPS, Sm100Config

from ..common.barriers import Ring, RingSpec
from ..common.device_struct import DeviceStruct
from ..common.ptx import asm
from . import tcgen05

RESPONSE_BYTES = 16


def queue_ring(config: Sm100Config) -> RingSpec:
    """The ring of responses as data. Followers: load and epilogue warps of every CTA, the MMA warp of every group."""
    followers = config.cluster_size * (1 + EPILOGUE_WARPS) + config.cluster_size // config.cta_group
    return RingSpec("work", CLC_STAGES, full_arrivals=1, empty_arrivals=followers)


class StaticQueue(DeviceStruct):
    """Indices first, first + step, ..."""

    def __init__(self, place, total: Int32):
        self.index, self.step = place.first_work()
        self.total = total

    def more(self) -> Boolean:
        return self.index < self.total

    def advance(self) -> None:
        self.index = self.index + self.step


class ClusterLaunchQueue(DeviceStruct):
    """The cluster's own index, then those that its schedule warp takes over (one warp's view).

    release: whether this warp is one of the followers that `queue_ring` counts.
    """

    def __init__(self, place, ring: Ring, responses: cute.Pointer, config: Sm100Config, release: bool = True):
        self.index, _ = place.first_work()
        self.taken = Int32(1)
        self.ring, self.responses, self.config, self.release = ring, responses, config, release
        self.state = ring.consumer_state()

    def more(self) -> Boolean:
        return self.taken != 0

    def advance(self) -> None:
        """Wait for the next answer and read it."""
        self.ring.wait_full(self.state)
        first_cta, self.taken = _read_response(self.responses + self.state.index * RESPONSE_BYTES)
        self.index = first_cta // self.config.cluster_size
        # The next answer overwrites this one through the async proxy.
        cute.arch.fence_view_async_shared()
        cute.arch.sync_warp()
        if self.release:
            with cute.arch.elect_one():
                if self.config.cluster_size == 1:
                    self.ring.arrive_empty(self.state.index)
                else:
                    tcgen05.arrive_in_cluster(Int32((self.ring.empty + self.state.index).toint()), Int32(0))
        self.state.advance()


@cute.jit
def schedule_role(ring: Ring, queue: ClusterLaunchQueue, lane: Int32):
    """Ask for work until there is none (one warp of the cluster's first CTA)."""
    state = ring.producer_state()
    config = queue.config
    while queue.more():
        ring.wait_empty(state)
        if lane < config.cluster_size:
            _expect_response(Int32((ring.full + state.index).toint()), lane, config.cluster_size)
        cute.arch.sync_warp()
        with cute.arch.elect_one():
            response = queue.responses + state.index * RESPONSE_BYTES
            _try_cancel(Int32(response.toint()), Int32((ring.full + state.index).toint()), config.cluster_size)
        state.advance()
        queue.advance()


def _expect_response(barrier: Int32, rank: Int32, cluster_size: int) -> None:
    """Arrive on the barrier of CTA `rank`, which shall expect an answer."""
    if cluster_size == 1:
        asm(f"mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], {RESPONSE_BYTES};", None, barrier, effect=True)
        return
    text = (
        "{ .reg .b32 r; mapa.shared::cluster.u32 r, $0, $1;"
        f" mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [r], {RESPONSE_BYTES}; }}"
    )
    asm(text, None, barrier, rank, effect=True)


def _try_cancel(response: Int32, barrier: Int32, cluster_size: int) -> None:
    """Ask for a cluster that has not started; the answer goes to all CTAs of this one. One thread."""
    everywhere = ".multicast::cluster::all" if cluster_size > 1 else ""
    text = (
        f"clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytes{everywhere}.b128 [$0], [$1];"
    )
    asm(text, None, response, barrier, effect=True)


def _read_response(response: cute.Pointer) -> tuple[Int32, Int32]:
    """(x of the first CTA of the cluster that was taken over, 1), or (anything, 0) if there was none."""
    text = (
        "{ .reg .b64 lo, hi; .reg .b128 answer; .reg .pred p; ld.shared.v2.b64 {lo, hi}, [$2];"
        " mov.b128 answer, {lo, hi}; clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 p, answer;"
        " selp.u32 $1, 1, 0, p; mov.u32 $0, 0;"
        " @p clusterlaunchcontrol.query_cancel.get_first_ctaid::x.b32.b128 $0, answer; }"
    )
    x, taken = asm(text, (cutlass.Uint32, cutlass.Uint32), Int32(response.toint()), effect=True)
    return Int32(x), Int32(taken)
