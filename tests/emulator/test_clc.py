"""clusterlaunchcontrol: running clusters take over the ones that have not started; every tile is done exactly once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cutefp4 import emulator

KERNEL = """.version 8.8
.target sm_100a
.address_size 64
.visible .entry k(.param .u64 COUNTS)
{
  .shared .align 16 .b8 response[16];
  .shared .align 8 .b64 bar;
  .reg .b64 %counts, %at, %lo, %hi;
  .reg .b128 %handle;
  .reg .b32 %i, %r, %b, %x, %y, %z, %w, %tile, %parity, %one, %rank, %nx;
  .reg .pred %p, %q, %taken;
  ld.param.u64 %counts, [COUNTS];
  mov.u32 %i, %tid.x; mov.u32 %r, response; mov.u32 %b, bar; setp.eq.u32 %p, %i, 0; mov.u32 %x, %ctaid.x; mov.u32 %y, %ctaid.y;
  mov.u32 %rank, %cluster_ctarank; mov.u32 %nx, %nctaid.x; mov.b32 %parity, 0; mov.b32 %one, 1;
  @%p mbarrier.init.shared::cta.b64 [%b], 1;
  fence.mbarrier_init.release.cluster;
  barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
TILE:
  @%p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%b], 16;
  barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
  setp.eq.and.u32 %q, %rank, 0, %p;
  @%q clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytes.multicast::cluster::all.b128 [%r], [%b];
  mad.lo.u32 %tile, %y, %nx, %x; mul.wide.u32 %at, %tile, 4; add.s64 %at, %at, %counts;
  @%p red.global.add.u32 [%at], %one;
WAIT:
  mbarrier.try_wait.parity.shared::cta.b64 %q, [%b], %parity; @!%q bra WAIT;
  xor.b32 %parity, %parity, 1;
  ld.shared.v2.b64 {%lo, %hi}, [%r]; mov.b128 %handle, {%lo, %hi};
  fence.proxy.async.shared::cta;
  clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 %taken, %handle;
  @!%taken bra DONE;
  clusterlaunchcontrol.query_cancel.get_first_ctaid.v4.b32.b128 {%x, %y, %z, %w}, %handle;
  clusterlaunchcontrol.query_cancel.get_first_ctaid::x.b32.b128 %z, %handle;
  setp.ne.u32 %q, %z, %x; @%q trap;
  add.u32 %x, %x, %rank;
  barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
  bra TILE;
DONE:
  barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
  ret;
}
"""


@pytest.mark.parametrize("seed", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("sms", [2, 6, 200])
def test_every_tile_once(sms, seed):
    counts = torch.zeros(10, 8, dtype=torch.int32)
    with emulator.device("sm_100a", seed=seed, sms=sms) as dev:
        dev.launch_ptx(KERNEL, "k", (8, 10, 1), (32, 1, 1), [counts], cluster=(2, 1, 1))
    assert np.array_equal(counts.numpy(), np.ones((10, 8), np.int32))
