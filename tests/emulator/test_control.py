"""Divergence and reconvergence, exchange between lanes, calls, branch tables."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import fault, kernel, launch

from cutefp4.emulator import PtxError

SEEDS = (None, 1, 2, 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_loops_of_different_length_reconverge(seed: int | None):
    """Lane i loops i times; after the loop all lanes meet again at a warp-synchronous instruction."""
    text = kernel("""
  mov.b32 %r0, 0; mov.b32 %r1, 0;
LOOP:
  setp.ge.u32 %p, %r0, %lane; @%p bra DONE;
  add.u32 %r1, %r1, %r0; add.u32 %r0, %r0, 1; bra LOOP;
DONE:
  redux.sync.add.u32 %r2, %r1, 0xffffffff; st.global.b32 [%mine], %r2;""")
    out, report = launch(text, seed=seed)
    assert (out[:32] == sum(i * (i - 1) // 2 for i in range(32))).all()
    assert report.instructions["redux.sync.add.u32"] == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_nested_branches(seed: int | None):
    text = kernel("""
  and.b32 %r0, %lane, 1; setp.eq.u32 %p, %r0, 0; and.b32 %r1, %lane, 2; setp.eq.u32 %q, %r1, 0;
  @%p bra EVEN;
  @%q bra ODD_LOW;
  mov.b32 %r2, 3; bra JOIN;
ODD_LOW: mov.b32 %r2, 1; bra JOIN;
EVEN: @%q bra EVEN_LOW;
  mov.b32 %r2, 2; bra JOIN;
EVEN_LOW: mov.b32 %r2, 0;
JOIN: st.global.b32 [%mine], %r2;""")
    out, report = launch(text, seed=seed)
    np.testing.assert_array_equal(out[:32], np.arange(32) % 4)
    assert report.instructions["st.global.b32"] == 1


def test_exited_lanes_do_not_hold_up_the_others():
    text = kernel(
        "  setp.lt.u32 %p, %lane, 10; @%p ret; vote.sync.ballot.b32 %r0, %p, 0xffffffff; activemask.b32 %r1; "
        "st.global.b32 [%mine], %r1;"
    )
    out, _ = launch(text)
    np.testing.assert_array_equal(out[:32], [0] * 10 + [0xFFFFFC00] * 22)


def test_a_lane_that_never_arrives_is_reported():
    text = kernel(
        "  setp.lt.u32 %p, %lane, 10; @%p bra OTHER; shfl.sync.idx.b32 %r0, %lane, 0, 31, 0xffffffff; ret;\n"
        "OTHER: vote.sync.any.pred %q, %p, 0xffffffff;"
    )
    found = fault(text).findings[0]
    assert found.kind == "DIVERGED_SYNC" and "PTX line" in found.message


def test_reading_a_lane_outside_the_shuffle_is_reported():
    text = kernel("  setp.lt.u32 %p, %lane, 16; @!%p bra END; shfl.sync.idx.b32 %r0, %lane, 20, 31, 0xffff; END:")
    assert fault(text).kinds() == {"DIVERGED_SYNC"}


@pytest.mark.parametrize("seed", SEEDS)
def test_lanes_of_one_warp_make_progress_for_each_other(seed: int | None):
    """Lane 0 spins until lane 31, further down in the program, has stored: independent thread scheduling."""
    text = kernel(
        """
  mov.b32 %r0, flag; setp.eq.u32 %p, %lane, 31; setp.eq.u32 %q, %lane, 0;
  @%q st.shared.b32 [%r0], 0; bar.warp.sync 0xffffffff;
  @%p bra SET;
SPIN: @!%q bra END; ld.volatile.shared.b32 %r1, [%r0]; setp.eq.u32 %s, %r1, 0; @%s bra SPIN; bra END;
SET: st.volatile.shared.b32 [%r0], 1;
END: st.global.b32 [%mine], 5;""",
        declarations=".shared .b32 flag;",
    )
    out, _ = launch(text, seed=seed)
    assert (out[:32] == 5).all()


def test_warp_barrier_joins_different_instructions():
    text = kernel(
        """
  mov.b32 %r0, x; setp.lt.u32 %p, %lane, 16; mad.lo.u32 %r1, %lane, 4, %r0; xor.b32 %r2, %lane, 16; mad.lo.u32 %r2, %r2, 4, %r0;
  st.shared.b32 [%r1], %lane;
  @%p bra LOW;
  bar.warp.sync 0xffffffff; ld.shared.b32 %r3, [%r2]; bra JOIN;
LOW: bar.warp.sync 0xffffffff; ld.shared.b32 %r3, [%r2];
JOIN: st.global.b32 [%mine], %r3;""",
        declarations=".shared .align 4 .b8 x[128];",
    )
    out, _ = launch(text)
    np.testing.assert_array_equal(out[:32], np.arange(32) ^ 16)


def test_branch_table():
    text = kernel("""
  and.b32 %r0, %lane, 3;
TABLE: .branchtargets A, B, C, A;
  brx.idx %r0, TABLE;
A: mov.b32 %r1, 100; bra JOIN;
B: mov.b32 %r1, 200; bra JOIN;
C: mov.b32 %r1, 300;
JOIN: add.u32 %r1, %r1, %lane; st.global.b32 [%mine], %r1;""")
    out, _ = launch(text)
    lane = np.arange(32)
    np.testing.assert_array_equal(out[:32], np.array([100, 200, 300, 100])[lane % 4] + lane)
    with pytest.raises(PtxError, match="not declared"):
        launch(kernel("  brx.idx %lane, NOWHERE;"))


def test_device_functions_are_inlined():
    module = """
.func (.param .b32 result) square_plus (.param .b32 x, .param .b32 y)
{ .reg .b32 %a, %b; .reg .pred %z; ld.param.b32 %a, [x]; ld.param.b32 %b, [y]; setp.eq.u32 %z, %a, 3; @%z bra OUT;
  mad.lo.u32 %b, %a, %a, %b; OUT: st.param.b32 [result], %b; ret; }"""
    call = """
  {{ .param .b32 p0; st.param.b32 [p0], {x}; .param .b32 p1; st.param.b32 [p1], 7; .param .b32 r0;
     call.uni (r0), square_plus, (p0, p1); ld.param.b32 {d}, [r0]; }}"""
    body = call.format(x="%lane", d="%r0") + call.format(x="%r0", d="%r1") + " st.global.b32 [%mine], %r1;"
    out, _ = launch(kernel(body, module=module))
    first = np.where(np.arange(32) == 3, 7, np.arange(32) ** 2 + 7)
    np.testing.assert_array_equal(out[:32], np.where(first == 3, 7, first**2 + 7))


def test_shuffles_votes_and_election():
    text = kernel("""
  shfl.sync.up.b32 %r0|%p, %lane, 3, 0, 0xffffffff; shfl.sync.down.b32 %r1|%q, %lane, 5, 31, 0xffffffff;
  shfl.sync.bfly.b32 %r2, %lane, 7, 0x181f, 0xffffffff; shfl.sync.idx.b32 %r3, %lane, 9, 0x1c1f, 0xffffffff;
  selp.b32 %r4, 1, 0, %p; selp.b32 %r5, 1, 0, %q; elect.sync %r6|%s, 0xffffffff; selp.b32 %r7, 1, 0, %s;
  and.b32 %r8, %lane, 3; match.any.sync.b32 %r9, %r8, 0xffffffff;
  mad.wide.u32 %mine, %lane, 36, %out;
  st.global.b32 [%mine], %r0; st.global.b32 [%mine+4], %r1; st.global.b32 [%mine+8], %r2; st.global.b32 [%mine+12], %r3;
  st.global.b32 [%mine+16], %r4; st.global.b32 [%mine+20], %r5; st.global.b32 [%mine+24], %r7; st.global.b32 [%mine+28], %r9;""")
    out, _ = launch(text, words=288)
    rows, lane = out.reshape(32, 9), np.arange(32)
    np.testing.assert_array_equal(rows[:, 0], np.where(lane >= 3, lane - 3, lane))
    np.testing.assert_array_equal(rows[:, 1], np.where(lane + 5 <= 31, lane + 5, lane))
    np.testing.assert_array_equal(rows[:, 2], lane ^ 7)
    np.testing.assert_array_equal(rows[:, 3], lane // 4 * 4 + 9 % 4)
    np.testing.assert_array_equal(rows[:, 4], lane >= 3)
    np.testing.assert_array_equal(rows[:, 5], lane + 5 <= 31)
    np.testing.assert_array_equal(rows[:, 6], lane == 0)
    np.testing.assert_array_equal(rows[:, 7], 0x11111111 << lane % 4)


def test_trap_and_register_budget():
    assert fault(kernel("  setp.eq.u32 %p, %lane, 9; @%p trap;")).findings[0].lane == 9
    assert fault(kernel("  setmaxnreg.inc.sync.aligned.u32 100;")).kinds() == {"SETMAXNREG"}
    assert (
        launch(kernel("  setmaxnreg.dec.sync.aligned.u32 24; setmaxnreg.inc.sync.aligned.u32 240;"))[1].findings == []
    )


def test_special_registers_of_a_cluster_launch():
    text = kernel("""
  mov.u32 %r0, %ctaid.x; mov.u32 %r1, %cluster_ctaid.x; mov.u32 %r2, %clusterid.x; mov.u32 %r3, %cluster_ctarank;
  mov.u32 %r4, %nclusterid.x; mov.u32 %r5, %cluster_nctarank; mov.u32 %r6, %nctaid.x; mov.u32 %r7, %ntid.x;
  setp.ne.u32 %p, %lane, 0; @%p ret; mad.wide.u32 %mine, %r0, 32, %out;
  st.global.v4.b32 [%mine], {%r0, %r1, %r2, %r3}; st.global.v4.b32 [%mine+16], {%r4, %r5, %r6, %r7};""")
    out, _ = launch(text, grid=6, cluster=2)
    want = [[i, i % 2, i // 2, i % 2, 3, 2, 6, 32] for i in range(6)]
    np.testing.assert_array_equal(out[:48].reshape(6, 8), want)


def test_a_cluster_that_the_kernel_prescribes():
    text = kernel("  mov.u32 %r0, %ctaid.x; mov.u32 %r1, %cluster_nctarank; setp.ne.u32 %p, %lane, 0; @%p ret; "
                  "mad.wide.u32 %mine, %r0, 4, %out; st.global.b32 [%mine], %r1;")  # fmt: skip
    text = text.replace("(.param .u64 OUT)\n{", "(.param .u64 OUT)\n.explicitcluster .reqnctapercluster 4, 1, 1\n{")
    out, report = launch(text, grid=8)
    assert (out[:8] == 4).all() and report.cluster == (4, 1, 1)
