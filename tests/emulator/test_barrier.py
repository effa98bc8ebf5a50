"""Misuse of barriers is reported; right use works under every schedule (hardware results are in the fixtures)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ptx import fault, kernel, launch

from cutefp4 import emulator
from cutefp4.emulator import counter_names, finding_kinds

SEEDS = (None, 1, 2, 3, 4, 5)
BAR = ".shared .align 8 .b64 bar; .shared .align 4 .b8 x[1024];"
INIT = """  mov.b32 %r0, bar; setp.eq.u32 %p, %lane, 0;
  @%p mbarrier.init.shared::cta.b64 [%r0], {count}; @%p fence.mbarrier_init.release.cluster; bar.sync 0;
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_named_barriers_order_producers_and_consumers(seed: int | None):
    """Warps 0-1 fill a buffer that warps 2-3 read, eight times; barrier 1 says full, barrier 2 says empty."""
    text = kernel(
        """
  mov.b32 %r0, x; and.b32 %r1, %lane, 63; mad.lo.u32 %r2, %r1, 4, %r0; setp.lt.u32 %p, %lane, 64; mov.b32 %r3, 0; mov.b32 %r6, 0;
LOOP:
  @%p bra PRODUCE;
  bar.sync 1, 128; xor.b32 %r4, %r2, 4; ld.shared.b32 %r5, [%r4]; add.u32 %r6, %r6, %r5; bar.arrive 2, 128; bra NEXT;
PRODUCE:
  setp.eq.u32 %q, %r3, 0; @%q bra FIRST; bar.sync 2, 128;
FIRST: mad.lo.u32 %r5, %r3, 100, %r1; st.shared.b32 [%r2], %r5; bar.arrive 1, 128;
NEXT: add.u32 %r3, %r3, 1; setp.lt.u32 %q, %r3, 8; @%q bra LOOP;
  @%p bar.sync 2, 128;
  @%p ret;
  st.global.b32 [%mine], %r6;""",
        declarations=BAR,
    )
    out, report = launch(text, block=128, seed=seed)
    want = sum(100 * i + (np.arange(64) ^ 1) for i in range(8))
    np.testing.assert_array_equal(out[64:128], want)
    assert report.findings == []


def test_named_barrier_misuse():
    different = "  setp.lt.u32 %p, %lane, 32; @%p bra A; bar.sync 1, 128; ret; A: bar.sync 1, 64;"
    found = fault(kernel(different), block=64)
    assert found.kinds() & {"BARRIER_MISUSE"} and "64" in found.findings[0].message
    assert fault(kernel("  bar.sync 1, 40;")).kinds() == {"BARRIER_MISUSE"}
    assert fault(kernel("  mov.b32 %r0, 16; bar.sync %r0;")).kinds() == {"BARRIER_MISUSE"}
    assert fault(kernel("  bar.arrive 3, 64;")).kinds() == {"BARRIER_PENDING_AT_EXIT"}


def test_reductions_over_a_barrier():
    text = kernel("""
  and.b32 %r0, %lane, 7; setp.lt.u32 %p, %r0, 3;
  bar.red.popc.u32 %r1, 0, %p; bar.red.and.pred %q, 0, %p; bar.red.or.pred %s, 0, %p; selp.b32 %r2, 1000, 0, %q; selp.b32 %r3, 5000, 0, %s;
  add.u32 %r1, %r1, %r2; add.u32 %r1, %r1, %r3; st.global.b32 [%mine], %r1;""")
    out, _ = launch(text, block=96)
    assert (out[:96] == 36 + 5000).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_mbarrier_phases(seed: int | None):
    """Every thread waits for phase i and adds what the other warp stored for it, five times round."""
    text = kernel(
        INIT.format(count=64)
        + """
  mov.b32 %r1, x; xor.b32 %r2, %lane, 32; mad.lo.u32 %r3, %lane, 4, %r1; mad.lo.u32 %r4, %r2, 4, %r1; mov.b32 %r5, 0; mov.b32 %r6, 0;
ROUND:
  add.u32 %r7, %lane, %r5; st.shared.b32 [%r3], %r7;
  mbarrier.arrive.shared::cta.b64 %rd0, [%r0];
WAIT: mbarrier.try_wait.shared::cta.b64 %q, [%r0], %rd0; @!%q bra WAIT;
  ld.shared.b32 %r8, [%r4]; add.u32 %r6, %r6, %r8; bar.sync 0;
  add.u32 %r5, %r5, 1; setp.lt.u32 %q, %r5, 5; @%q bra ROUND;
  st.global.b32 [%mine], %r6;""",
        declarations=BAR,
    )
    out, report = launch(text, block=64, seed=seed)
    np.testing.assert_array_equal(out[:64], 5 * (np.arange(64) ^ 32) + 10)
    assert report.findings == []


@pytest.mark.parametrize(
    "code, kind",
    [
        ("mov.b32 %r1, x; mbarrier.arrive.shared::cta.b64 _, [%r1+8];", "BAD_MBARRIER"),
        ("@%p mbarrier.arrive.shared::cta.b64 _, [%r0], 3;", "MBARRIER_OVERFLOW"),
        ("@%p st.shared.b32 [%r0+4], 12345; @%p mbarrier.arrive.shared::cta.b64 _, [%r0];", "MBARRIER_OVERWRITTEN"),
        (
            "@%p mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r0], 1048000; @%p mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r0], 1048000;",
            "MBARRIER_OVERFLOW",
        ),
        ("@%p mbarrier.inval.shared::cta.b64 [%r0]; @%p mbarrier.arrive.shared::cta.b64 _, [%r0];", "BAD_MBARRIER"),
        ("add.u32 %r0, %r0, 4; @%p mbarrier.init.shared::cta.b64 [%r0], 1;", "MISALIGNED"),
    ],
)
def test_mbarrier_misuse(code: str, kind: str):
    report = fault(kernel(INIT.format(count=2) + "  " + code, declarations=BAR))
    assert kind in report.kinds()


def test_an_unfinished_phase_at_exit_is_a_warning():
    text = kernel(INIT.format(count=2) + "  @%p mbarrier.arrive.shared::cta.b64 _, [%r0];", declarations=BAR)
    report = launch(text)[1]
    assert [f.kind for f in report.warnings] == ["MBARRIER_PENDING_AT_EXIT"] and not report.errors
    assert "1 of 2 arrivals missing" in report.findings[0].message


def test_remote_arrival_before_the_init_is_published():
    body = """
  mov.b32 %r0, bar; setp.eq.u32 %p, %lane, 0; mov.u32 %r3, %cluster_ctarank; setp.eq.u32 %q, %r3, 0;
  @%p mbarrier.init.shared::cta.b64 [%r0], 1; {fence}
  barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;
  mapa.shared::cluster.u32 %r1, %r0, 1; and.pred %s, %p, %q; @%s mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r1];
  barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"""
    fenced = kernel(body.replace("{fence}", "fence.mbarrier_init.release.cluster;"), declarations=BAR)
    assert launch(fenced, grid=2, cluster=2)[1].errors == []
    report = fault(kernel(body.replace("{fence}", ""), declarations=BAR), grid=2, cluster=2)
    assert report.kinds() == {"MBARRIER_NOT_FENCED"}


def test_cluster_barrier_misuse_and_early_exit():
    assert fault(kernel("  barrier.cluster.wait.aligned;")).kinds() == {"BARRIER_MISUSE"}
    assert fault(kernel("  barrier.cluster.arrive.aligned; barrier.cluster.arrive.aligned;")).kinds() == {
        "BARRIER_MISUSE"
    }
    leaves = kernel(
        "  mov.u32 %r0, %cluster_ctarank; setp.eq.u32 %p, %r0, 1; @%p ret; barrier.cluster.arrive; barrier.cluster.wait;"
    )
    assert launch(leaves, grid=2, cluster=2)[1].findings == []
    remote = kernel(
        """
  mov.b32 %r0, x; mov.u32 %r1, %cluster_ctarank; setp.eq.u32 %p, %r1, 1; @%p ret; mapa.shared::cluster.u32 %r2, %r0, 1;
  mov.b32 %r3, 0;
SPIN: nanosleep.u32 20; add.u32 %r3, %r3, 1; setp.lt.u32 %q, %r3, 50; @%q bra SPIN; st.shared::cluster.b32 [%r2], 1;""",
        declarations=BAR,
    )
    assert fault(remote, grid=2, cluster=2).kinds() == {"REMOTE_EXITED"}


def test_every_finding_and_counter_is_documented():
    readme = (Path(emulator.__file__).parent / "README.md").read_text()
    severity = ("warning", "error", "fatal")
    for kind in finding_kinds():
        assert f"| `{kind.name}` | {severity[kind.severity]} | {kind.meaning} |" in readme, kind.name
    for name, meaning in counter_names():
        assert f"| `{name}` | {meaning} |" in readme, name
