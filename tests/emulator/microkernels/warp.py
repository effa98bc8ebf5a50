"""Warp-wide exchange: shuffles with clamps and segments, votes, matches, reductions, election, divergence."""

from __future__ import annotations

from itertools import product

import numpy as np

from .inputs import bytes_, hash32, i32_triples
from .kernel import Buffer, Microkernel
from .lanewise import HEADER, Op, lanewise, op

FULL = "0xffffffff"


def shuffle_ops() -> list[Op]:
    """Every mode; %b picks the lane or distance and %c the segment and clamp, both from a few uniform bits too."""
    ops = []
    both = "selp.b32 %t0, 0x80000000, 0, %p; and.b32 %d, %d, 0x7fffffff; or.b32 %d, %d, %t0;"
    for mode, control in product(("up", "down", "bfly", "idx"), (0x1F, 0x0, 0x1807, 0x100F, 0x181F, 0x1C03)):
        clamp = control if mode != "up" else control & 0x1F00
        for distance in (0, 1, 5, 16, 31):
            ops.append(op(f"shfl.sync.{mode}.b32 %d|%p, %a, {distance}, {clamp:#x}, {FULL}; {both}"))
        ops.append(op(f"and.b32 %t1, %b, 31; shfl.sync.{mode}.b32 %d|%p, %a, %t1, {clamp:#x}, {FULL}; {both}"))
    for mode in ("up", "down", "bfly", "idx"):
        ops.append(op(f"shfl.sync.{mode}.b32 %d|%p, %a, %b, %c, {FULL}; {both}"))
    # half the warp shuffles among itself
    ops.append(op("mov.u32 %t1, %laneid; setp.lt.u32 %q, %t1, 16; mov.b32 %d, 7; "
                  "@%q shfl.sync.bfly.b32 %d, %a, 3, 0x1f, 0xffff;"))  # fmt: skip
    return ops


def vote_ops() -> list[Op]:
    ops = []
    for mode, neg in product(("all", "any", "uni"), ("", "!")):
        for test in ("setp.gt.s32 %p, %a, 0;", "setp.ne.u32 %p, %c, 0xfffffff7;", "setp.eq.u32 %p, %a, 0x7fffffff;"):
            ops.append(op(f"{test} vote.sync.{mode}.pred %q, {neg}%p, {FULL}; selp.b32 %d, 1, 0, %q;"))
    ops.append(op(f"setp.gt.s32 %p, %a, %b; vote.sync.ballot.b32 %d, %p, {FULL};"))
    ops.append(op(f"setp.gt.s32 %p, %a, %b; vote.sync.ballot.b32 %d, !%p, {FULL};"))
    ops.append(op("activemask.b32 %d;"))
    ops.append(op(f"and.b32 %t0, %a, 3; match.any.sync.b32 %d, %t0, {FULL};"))
    ops.append(op(f"match.any.sync.b32 %d, %a, {FULL};"))
    ops.append(op(f"and.b32 %t0, %a, 1; cvt.u64.u32 %l0, %t0; match.any.sync.b64 %d, %l0, {FULL};"))
    for value in ("%a", "%t0"):
        code = f"mov.b32 %t0, 5; match.all.sync.b32 %d|%p, {value}, {FULL};"
        ops.append(op(f"{code} selp.b32 %t1, 7, 0, %p; xor.b32 %d, %d, %t1;"))
    for name, t in product(("add", "min", "max"), ("s32", "u32")):
        ops.append(op(f"redux.sync.{name}.{t} %d, %a, {FULL};"))
    ops += [op(f"redux.sync.{name}.b32 %d, %a, {FULL};") for name in ("and", "or", "xor")]
    ops.append(op("mov.u32 %t1, %laneid; and.b32 %t1, %t1, 1; setp.eq.u32 %q, %t1, 1; mov.b32 %d, 9; "
                  "@%q redux.sync.add.u32 %d, %a, 0xaaaaaaaa;"))  # fmt: skip
    ops.append(op(f"elect.sync %t0|%p, {FULL}; selp.b32 %d, 256, 0, %p; or.b32 %d, %d, %t0;"))
    ops.append(op("mov.u32 %t1, %laneid; setp.ge.u32 %q, %t1, 4; mov.b32 %d, 9; "
                  "@%q elect.sync %t0|%p, 0xfffffff0; @%q selp.b32 %d, 256, 0, %p; "
                  "@%q or.b32 %d, %d, %t0;"))  # fmt: skip
    specials = ("%laneid", "%tid.x", "%ntid.x", "%ctaid.x", "%nctaid.x", "%lanemask_eq", "%lanemask_lt",
                "%lanemask_le", "%lanemask_gt", "%lanemask_ge", "%tid.y", "%ntid.z", "%ctaid.z",
                "%nctaid.y", "%clusterid.x", "%nclusterid.x", "%cluster_ctarank", "%cluster_nctarank",
                "%cluster_ctaid.x", "%cluster_nctaid.y")  # fmt: skip
    ops += [op(f"mov.u32 %d, {name};") for name in specials]
    return ops


def divergence() -> Microkernel:
    """Loops with a trip count per lane, nested branches, a switch, early exits, and votes inside divergent code."""
    ptx = f"""{HEADER}
.visible .entry k(.param .u64 IN, .param .u64 OUT)
{{
  .reg .b64 %pi, %po, %off;
  .reg .b32 %i, %v, %n, %acc, %steps, %m, %lane, %t;
  .reg .pred %p, %q, %r;
  ld.param.u64 %pi, [IN]; ld.param.u64 %po, [OUT];
  mov.u32 %i, %tid.x; mov.u32 %lane, %laneid;
  mul.wide.u32 %off, %i, 4;
  add.s64 %pi, %pi, %off; mul.lo.u32 %t, %i, 16; cvt.u64.u32 %off, %t; add.s64 %po, %po, %off;
  ld.global.b32 %v, [%pi];
  and.b32 %n, %v, 127; mov.b32 %acc, 1; mov.b32 %steps, 0;
LOOP:
  setp.ge.u32 %p, %steps, %n;
  @%p bra DONE;
  and.b32 %t, %acc, 1; setp.eq.u32 %q, %t, 1;
  @%q bra ODD;
  shr.u32 %acc, %acc, 1; bra NEXT;
ODD:
  mad.lo.u32 %acc, %acc, 3, %v;
  and.b32 %t, %acc, 7; setp.eq.u32 %r, %t, 5;
  @%r bra DONE;
NEXT:
  add.u32 %steps, %steps, 1;
  bra.uni LOOP;
DONE:
  bar.warp.sync 0xffffffff;
  st.global.b32 [%po], %acc; st.global.b32 [%po+4], %steps;
  // the reconverged warp sees all lanes again
  setp.gt.u32 %p, %steps, 8; vote.sync.ballot.b32 %m, %p, 0xffffffff;
  st.global.b32 [%po+8], %m;
  // lanes 0..7 leave; the others vote among themselves
  setp.lt.u32 %p, %lane, 8;
  @%p bra LEAVE;
  setp.gt.u32 %q, %v, %acc; vote.sync.ballot.b32 %m, %q, 0xffffff00;
  st.global.b32 [%po+12], %m;
  @%q ret;
  and.b32 %t, %lane, 3;
  ts: .branchtargets A0, A1, A2, A3;
  brx.idx %t, ts;
A0: add.u32 %m, %m, 100; bra JOIN;
A1: add.u32 %m, %m, 200; bra JOIN;
A2: mul.lo.u32 %m, %m, 3;
A3: xor.b32 %m, %m, 0x5a5a5a5a;
JOIN:
  st.global.b32 [%po+12], %m;
LEAVE:
  ret;
}}
"""
    out = Buffer("out", np.full(128 * 16, 0xCD, dtype=np.uint8), result=True)
    return Microkernel("divergence", ptx, (Buffer("in", hash32(128, 100)), out))


MATRIX_FORMS = tuple(product(("x1", "x2", "x4"), ("", ".trans")))
SMEM = 4096


def matrix_moves() -> list[Microkernel]:
    """ldmatrix and stmatrix in every form; row addresses are a fixed shuffle of 16-byte rows of 4 KiB."""
    out = []
    for num, trans in MATRIX_FORMS:
        count = int(num[1])
        regs = ", ".join(f"%r{i}" for i in range(count))
        moves = {
            "ldmatrix": f"ldmatrix.sync.aligned.m8n8.{num}{trans}.shared.b16 {{{regs}}}, [%row];",
            "stmatrix": f"stmatrix.sync.aligned.m8n8.{num}{trans}.shared.b16 [%row], {{{regs}}};",
        }
        for name, code in moves.items():
            out.append(_matrix_kernel(f"{name}_{num}{trans.replace('.', '_')}", code, name == "stmatrix"))
    return out


def _matrix_kernel(name: str, code: str, store: bool) -> Microkernel:
    ptx = f"""{HEADER}
.visible .entry k(.param .u64 IN, .param .u64 ROWS, .param .u64 OUT)
{{
  .shared .align 128 .b8 smem[{SMEM}];
  .reg .b64 %pi, %pr, %po, %off;
  .reg .b32 %i, %lane, %s, %base, %row, %t, %r<4>, %v<4>;
  .reg .pred %p;
  ld.param.u64 %pi, [IN]; ld.param.u64 %pr, [ROWS]; ld.param.u64 %po, [OUT];
  mov.u32 %i, %tid.x; mov.u32 %base, smem;
  // 32 threads bring in 4 KiB, 16 bytes at a time
  mov.b32 %t, 0;
FILL:
  mad.lo.u32 %s, %t, 32, %i; shl.b32 %s, %s, 4; cvt.u64.u32 %off, %s; add.s64 %off, %off, %pi;
  ld.global.v4.b32 {{%v0, %v1, %v2, %v3}}, [%off];
  add.u32 %s, %s, %base; st.shared.v4.b32 [%s], {{%v0, %v1, %v2, %v3}};
  add.u32 %t, %t, 1; setp.lt.u32 %p, %t, {SMEM // 512}; @%p bra FILL;
  bar.sync 0;
  mul.wide.u32 %off, %i, 4; add.s64 %off, %off, %pr; ld.global.b32 %row, [%off]; add.u32 %row, %row, %base;
  mad.lo.u32 %r0, %i, 0x01000193, 17; mad.lo.u32 %r1, %i, 0x9e3779b1, 3;
  xor.b32 %r2, %r0, %r1; not.b32 %r3, %r0;
  {code}
  bar.sync 0;
  mov.b32 %t, 0;
{_drain() if store else _keep()}
  ret;
}}
"""
    rows = np.arange(SMEM // 16, dtype=np.uint32)
    order = np.argsort(hash32(len(rows), 101), kind="stable")[:32]
    out = np.full(SMEM if store else 512, 0xCD, dtype=np.uint8)
    args = (Buffer("in", bytes_(SMEM, 102)), Buffer("rows", (rows[order] * 16).astype(np.uint32)),
            Buffer("out", out, result=True))  # fmt: skip
    return Microkernel(name, ptx, args, block=(32, 1, 1), whole=True)


def _keep() -> str:
    return """  shl.b32 %s, %i, 4; cvt.u64.u32 %off, %s; add.s64 %off, %off, %po;
  st.global.v4.b32 [%off], {%r0, %r1, %r2, %r3};"""


def _drain() -> str:
    return f"""DRAIN:
  mad.lo.u32 %s, %t, 32, %i; shl.b32 %s, %s, 4; cvt.u64.u32 %off, %s; add.s64 %off, %off, %po;
  add.u32 %s, %s, %base; ld.shared.v4.b32 {{%v0, %v1, %v2, %v3}}, [%s];
  st.global.v4.b32 [%off], {{%v0, %v1, %v2, %v3}};
  add.u32 %t, %t, 1; setp.lt.u32 %p, %t, {SMEM // 512}; @%p bra DRAIN;"""


def kernels() -> list[Microkernel]:
    return [
        lanewise("shuffle", shuffle_ops(), i32_triples(12)),
        lanewise("vote_match_redux", vote_ops(), i32_triples(13)),
        divergence(),
        *matrix_moves(),
    ]
