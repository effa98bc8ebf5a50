"""Schedules: repeatable, different by seed, fair, and what is said when nothing can go on."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from ptx import fault, kernel, launch

from cutefp4 import emulator

SHARED = ".shared .align 8 .b64 bar; .shared .align 16 .b8 x[4096];"
EXCHANGE = """
  mov.b32 %r0, x; mad.lo.u32 %r1, %lane, 4, %r0; st.shared.b32 [%r1], %lane;
  {barrier}
  xor.b32 %r2, %lane, 32; mad.lo.u32 %r2, %r2, 4, %r0; ld.shared.b32 %r3, [%r2]; st.global.b32 [%mine], %r3;"""
ORDER = "  atom.global.add.u32 %r0, [%out+1020], 1; st.global.b32 [%mine], %r0;"


def test_a_seed_repeats_itself():
    for seed in range(1, 6):
        (a, first), (b, second) = (launch(kernel(ORDER), words=256, block=128, seed=seed) for _ in range(2))
        np.testing.assert_array_equal(a, b)
        assert first.counters == second.counters


def test_seeds_differ():
    orders = {launch(kernel(ORDER), words=256, block=128, seed=seed)[0][:128].tobytes() for seed in range(1, 9)}
    assert len(orders) > 3


def test_a_missing_barrier_is_caught_by_some_schedule():
    """The read of another warp's slot: uninitialised shared memory where the reader came first."""
    right = kernel(EXCHANGE.replace("{barrier}", "bar.sync 0;"), declarations=SHARED)
    wrong = kernel(EXCHANGE.replace("{barrier}", ""), declarations=SHARED)
    for seed in (None, 1, 2, 3, 4):
        out, report = launch(right, block=64, seed=seed)
        np.testing.assert_array_equal(out[:64], np.arange(64) ^ 32)
        assert report.findings == []
    caught = 0
    for seed in (None, 1, 2, 3, 4):
        try:
            launch(wrong, block=64, seed=seed)
        except emulator.KernelFault as error:
            caught += "UNINITIALISED_SHARED" in error.report.kinds()
    assert caught >= 4


def test_deadlock_names_places_and_barriers():
    text = kernel(
        """
  mov.b32 %r0, bar; setp.eq.u32 %p, %lane, 0; @%p mbarrier.init.shared::cta.b64 [%r0], 2; @%p fence.mbarrier_init.release.cluster; bar.sync 0;
  setp.ge.u32 %q, %lane, 32; @%q bra SECOND;
  @%p mbarrier.arrive.shared::cta.b64 _, [%r0];
WAIT: mbarrier.try_wait.parity.shared::cta.b64 %s, [%r0], 0; @!%s bra WAIT; ret;
SECOND: bar.sync 3, 96;""",
        declarations=SHARED,
    )
    for seed in (None, 7):
        report = fault(text, block=64, seed=seed)
        assert "DEADLOCK" in report.kinds()
        for words in (
            "warp 0",
            "warp 1",
            "waits for mbarrier",
            "waits for named barrier 3",
            "1 of 2 arrivals missing",
            "32 of 96 threads",
        ):
            assert words in report.deadlock, words
        assert "where everything stands" in report.describe()


def test_endless_spinning_is_reported():
    text = kernel("SPIN: ld.volatile.global.b32 %r0, [%out]; setp.eq.u32 %p, %r0, 0; @%p bra SPIN;")
    start = time.perf_counter()
    assert fault(text, max_steps=100_000).kinds() == {"LIVELOCK"}
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_ctas_wait_for_each_other_through_memory(seed: int | None):
    """CTA i may go on when CTA i - 1 has stored: a chain over all resident CTAs, in any launch order."""
    text = kernel("""
  mov.u32 %r0, %ctaid.x; setp.eq.u32 %p, %r0, 0; @%p bra GO; mad.wide.u32 %rd0, %r0, 4, %out;
SPIN: ld.acquire.gpu.global.b32 %r1, [%rd0+-4]; setp.eq.u32 %q, %r1, 0; @%q bra SPIN;
GO: mad.wide.u32 %rd0, %r0, 4, %out; add.u32 %r2, %r0, 1; setp.ne.u32 %p, %lane, 0; @%p ret; st.release.gpu.global.b32 [%rd0], %r2;""")
    out, _ = launch(text, grid=16, sms=4, seed=seed)
    np.testing.assert_array_equal(out[:16], np.arange(1, 17))


def test_more_ctas_than_fit_run_one_after_the_other():
    text = kernel(
        "  mov.u32 %r0, %ctaid.x; setp.ne.u32 %p, %lane, 0; @%p ret; mad.wide.u32 %rd0, %r0, 4, %out; st.global.b32 [%rd0], %r0;"
    )
    out, report = launch(text, words=1000, grid=1000, sms=1)
    np.testing.assert_array_equal(out, np.arange(1000))
    assert report.counters["ctas"] == 1000


@pytest.mark.parametrize("seed", [None, 1, 2, 3, 4, 5, 6])
def test_asynchronous_copies_land_when_waited_for(seed: int | None):
    """cp.async in groups: after wait_group 1 the first group is there; the second only after wait_group 0."""
    source = torch.arange(64, dtype=torch.int32)
    text = kernel(
        """
  ld.param.u64 %rd0, [P]; mad.wide.u32 %rd0, %lane, 4, %rd0; mov.b32 %r0, x; mad.lo.u32 %r0, %lane, 4, %r0;
  cp.async.ca.shared.global [%r0], [%rd0], 4; cp.async.commit_group; cp.async.ca.shared.global [%r0+128], [%rd0+128], 4, 0;
  cp.async.commit_group; cp.async.wait_group 1; ld.shared.b32 %r1, [%r0]; cp.async.wait_group 0; ld.shared.b32 %r2, [%r0+128];
  mad.lo.u32 %r1, %r2, 1000, %r1; st.global.b32 [%mine], %r1;""",
        declarations=SHARED,
        params=", .param .u64 P",
    )
    out, report = launch(text, seed=seed, extra=[source])
    np.testing.assert_array_equal(out[:32], np.arange(32))
    assert report.findings == [] and report.counters["async_load_bytes"] == 128
    unwaited = text.replace("cp.async.wait_group 1; ", "")
    results, kinds = set(), set()
    for other in range(1, 6):
        try:
            results.add(launch(unwaited, seed=other, extra=[source])[0].tobytes())
        except emulator.KernelFault as error:
            kinds |= error.report.kinds()
    assert "RACE_ASYNC_WRITE" in kinds


@pytest.mark.parametrize("seed", [None, 1, 2, 3, 4])
def test_bulk_copies_there_and_back(seed: int | None):
    source = torch.arange(256, dtype=torch.int32)
    text = kernel(
        """
  ld.param.u64 %rd0, [P]; mov.b32 %r0, x; mov.b32 %r1, bar; setp.eq.u32 %p, %lane, 0;
  @%p mbarrier.init.shared::cta.b64 [%r1], 1; @%p fence.mbarrier_init.release.cluster; bar.sync 0; @!%p bra WAIT;
  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 1024;
  cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r0], [%rd0], 1024, [%r1];
WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q, [%r1], 0; @!%q bra WAIT;
  mad.lo.u32 %r2, %lane, 4, %r0; ld.shared.b32 %r3, [%r2]; add.u32 %r3, %r3, 7; st.shared.b32 [%r2], %r3;
  fence.proxy.async.shared::cta; bar.sync 0; @!%p ret;
  cp.async.bulk.global.shared::cta.bulk_group [%out], [%r0], 1024;
  cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%out], [%r0], 1024;
  cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;""",
        declarations=SHARED,
        params=", .param .u64 P",
    )
    out, report = launch(text, words=256, block=256, seed=seed, extra=[source])
    assert report.errors == []
    np.testing.assert_array_equal(out, 2 * (np.arange(256) + 7))
    assert report.counters["async_store_bytes"] == 2048
