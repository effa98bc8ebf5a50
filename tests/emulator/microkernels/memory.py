"""Loads and stores of every width and space, atomics and reductions, and non-bulk asynchronous copies."""

from __future__ import annotations

from itertools import product

import numpy as np

from .inputs import bytes_, f32_triples, half_triples, i32_triples, wide_triples
from .kernel import Buffer, Microkernel
from .lanewise import HEADER, Op, lanewise, op

SCRATCH = """  .shared .align 16 .b8 scratch[4096];
  .reg .b32 %sa; .reg .b64 %ga;
  mov.u32 %sa, scratch; mov.u32 %t0, %tid.x; mad.lo.u32 %sa, %t0, 16, %sa;
  cvt.u64.u32 %ga, %sa; cvta.shared.u64 %ga, %ga;"""

SPACES = {"global": "@ROW@", "shared": "%sa", "": "%ga"}


def _atomic(space: str, code: str, bits: int, label: str) -> list[Op]:
    """Rows for the value before and the value after ``code`` ({at} is the address) on a word that starts as %b."""
    at = SPACES[space]
    dot = f".{space}" if space else ""
    start, read = {32: ("%b", "%d"), 64: ("%lb", "%ld")}[bits]
    put = f"st{dot}.b{bits} [{at}], {start};"
    run = code.replace("{sp}", dot).replace("{at}", f"[{at}]")
    wide = bits == 64
    rows = []
    if run.startswith("atom"):
        rows.append(op(f"{put} {run}", wide=wide, label=f"{label}{dot} before"))
    rows.append(op(f"{put} {run} ld{dot}.b{bits} {read}, [{at}];", wide=wide, label=f"{label}{dot} after"))
    return rows


def atomic32_ops() -> list[Op]:
    ops = []
    two = [f"add.{t}" for t in ("u32", "s32")] + [f"{n}.{t}" for n, t in product(("min", "max"), ("u32", "s32"))]
    two += [f"{n}.b32" for n in ("and", "or", "xor")] + ["exch.b32", "inc.u32", "dec.u32"]
    for space, what in product(SPACES, two):
        ops += _atomic(space, f"atom{{sp}}.{what} %d, {{at}}, %a;", 32, f"atom.{what}")
        if not what.startswith("exch"):
            ops += _atomic(space, f"red{{sp}}.{what} {{at}}, %a;", 32, f"red.{what}")
    for space in SPACES:
        ops += _atomic(space, "atom{sp}.cas.b32 %d, {at}, %a, %c;", 32, "atom.cas.b32")
        ops += _atomic(space, "atom{sp}.cas.b32 %d, {at}, %b, %c;", 32, "atom.cas.b32 (equal)")
        ops += _atomic(space, "atom{sp}.acq_rel.gpu.add.u32 %d, {at}, %a;", 32, "atom.acq_rel.gpu.add.u32")
    return ops


def atomic_float_ops() -> list[Op]:
    ops = []
    for space in SPACES:
        ops += _atomic(space, "atom{sp}.add.f32 %d, {at}, %a;", 32, "atom.add.f32")
        ops += _atomic(space, "red{sp}.add.f32 {at}, %a;", 32, "red.add.f32")
    return ops


def atomic_half_ops(kind: str) -> list[Op]:
    ops = []
    for space in SPACES:
        ops += _atomic(space, f"atom{{sp}}.add.noftz.{kind}x2 %d, {{at}}, %a;", 32, f"atom.add.noftz.{kind}x2")
        ops += _atomic(space, f"red{{sp}}.add.noftz.{kind}x2 {{at}}, %a;", 32, f"red.add.noftz.{kind}x2")
    return ops


def atomic64_ops() -> list[Op]:
    ops = []
    for space, what in product(SPACES, ("add.u64", "min.u64", "max.s64", "and.b64", "or.b64", "xor.b64", "exch.b64")):
        ops += _atomic(space, f"atom{{sp}}.{what} %ld, {{at}}, %la;", 64, f"atom.{what}")
    for space in SPACES:
        ops += _atomic(space, "atom{sp}.cas.b64 %ld, {at}, %lb, %lc;", 64, "atom.cas.b64 (equal)")
        ops += _atomic(space, "atom{sp}.cas.b64 %ld, {at}, %la, %lc;", 64, "atom.cas.b64")
        ops += _atomic(space, "atom{sp}.add.f64 %ld, {at}, %la;", 64, "atom.add.f64")
    ops += _atomic("global", "red{sp}.add.u64 {at}, %la;", 64, "red.add.u64")
    return ops


def contended() -> Microkernel:
    """512 threads of four CTAs on a few words: sums, extremes and counters whose result does not depend on order."""
    ptx = f"""{HEADER}
.visible .entry k(.param .u64 IN, .param .u64 OUT)
{{
  .shared .align 16 .b8 sm[64];
  .reg .b64 %pi, %po, %off, %q, %w;
  .reg .b32 %i, %x, %v, %t, %s, %f, %u, %h, %e0, %e1;
  .reg .pred %p;
  ld.param.u64 %pi, [IN]; ld.param.u64 %po, [OUT];
  mov.u32 %i, %tid.x; mov.u32 %x, %ctaid.x; mad.lo.u32 %t, %x, 128, %i;
  mul.wide.u32 %off, %t, 4; add.s64 %off, %pi, %off; ld.global.b32 %v, [%off];
  mov.u32 %s, sm; setp.lt.u32 %p, %i, 16;
  mad.lo.u32 %u, %i, 4, %s; @%p st.shared.b32 [%u], 0;
  bar.sync 0;
  and.b32 %u, %i, 3; mad.lo.u32 %u, %u, 4, %s;
  atom.shared.add.u32 %t, [%u], %v;
  red.shared.max.s32 [%s+16], %v; red.shared.min.u32 [%s+20], %v; red.shared.xor.b32 [%s+24], %v;
  atom.shared.inc.u32 %t, [%s+28], 50;
  and.b32 %f, %v, 255; cvt.rn.f32.u32 %f, %f; red.shared.add.f32 [%s+32], %f;
  bar.sync 0;
  mul.wide.u32 %off, %x, 64; add.s64 %q, %po, %off;
  mul.wide.u32 %off, %i, 4; add.s64 %w, %q, %off;
  mad.lo.u32 %u, %i, 4, %s; @%p ld.shared.b32 %t, [%u]; @%p st.global.b32 [%w], %t;
  red.global.add.u32 [%po+256], %v; red.global.add.f32 [%po+260], %f;
  red.global.or.b32 [%po+264], %v; cvt.u64.u32 %w, %v; red.global.add.u64 [%po+272], %w;
  atom.global.dec.u32 %t, [%po+280], 100;
  cvt.rn.f32.u32 %h, %x; red.global.add.v2.f32 [%po+288], {{%f, %h}};
  red.relaxed.gpu.global.add.v4.f32 [%po+304], {{%f, %f, %h, %h}};
  mov.b32 %e0, 0x3c003c00; red.global.add.noftz.v2.f16x2 [%po+320], {{%e0, %e0}};
  mov.b32 %e1, 0x3f803f80; red.global.add.noftz.v4.bf16x2 [%po+336], {{%e1, %e1, %e1, %e1}};
  ret;
}}
"""
    args = (Buffer("in", i32_triples(14)[0][:512]), Buffer("out", np.zeros(352, dtype=np.uint8), result=True))
    return Microkernel("atomics_contended", ptx, args, grid=(4, 1, 1), whole=True)


def _vector_moves(load: str, store: str) -> str:
    """Copies 64 bytes through every register shape; {src} and {dst} are the two address registers."""
    code = []
    for step, (kind, count) in enumerate((("b8", 1), ("b8", 2), ("b8", 4), ("b16", 1), ("b16", 2), ("b16", 4),
    ("b32", 1),
                                          ("b32", 2), ("b32", 4), ("b64", 1), ("b64", 2))):  # fmt: skip
        regs = ", ".join(f"%{'h' if kind in ('b8', 'b16') else 'r' if kind == 'b32' else 'l'}{i}" for i in range(count))
        vec = f".v{count}" if count > 1 else ""
        at = 16 * step
        operand = f"{{{regs}}}" if count > 1 else regs
        code.append(f"  ld.{load}{vec}.{kind} {operand}, [%src+{at}]; st.{store}{vec}.{kind} [%dst+{at}], {operand};")
    return "\n".join(code)


def load_store() -> Microkernel:
    """Vector loads and stores, sign extension of narrow ones, and the global, shared, local, const and param spaces."""
    rounds = [("global", "shared"), ("shared", "local"), ("local", "global")]
    hops = []
    for src, dst in rounds:
        hops.append(
            {"global": "mov.b64 %src, %gin;", "shared": "mov.b64 %src, %sh;", "local": "mov.b64 %src, %lo;"}[src]
        )
        hops.append(
            {"global": "mov.b64 %dst, %gout;", "shared": "mov.b64 %dst, %sh;", "local": "mov.b64 %dst, %lo;"}[dst]
        )
        hops.append(_vector_moves(src, dst))
    ptx = f"""{HEADER}
.const .align 8 .b32 table[4] = {{11, 22, -33, 0x44444444}};
.global .align 8 .b8 bytes[8] = {{1, 2, 3, 4, 250, 251, 252, 253}};
.visible .entry k(.param .u64 IN, .param .u64 OUT, .param .align 16 .b8 BLOB[32], .param .u16 SHORT, .param .u32 WORD)
{{
  .shared .align 16 .b8 sm[6144];
  .local .align 16 .b8 stack[256];
  .reg .b64 %gin, %gout, %sh, %lo, %src, %dst, %off, %t, %l<2>;
  .reg .b32 %i, %r<8>, %s;
  .reg .b16 %h<4>;
  ld.param.u64 %gin, [IN]; ld.param.u64 %gout, [OUT];
  mov.u32 %i, %tid.x; mul.wide.u32 %off, %i, 192; add.s64 %gin, %gin, %off;
  mul.wide.u32 %off, %i, 512; add.s64 %gout, %gout, %off;
  mov.u32 %s, sm; mad.lo.u32 %s, %i, 192, %s; cvt.u64.u32 %sh, %s;
  mov.b64 %lo, stack;
{chr(10).join(hops)}
  // the same through generic addresses
  cvta.shared.u64 %src, %sh; cvta.local.u64 %dst, %lo;
  ld.v4.b32 {{%r0, %r1, %r2, %r3}}, [%src+128]; st.v4.b32 [%dst+192], {{%r3, %r2, %r1, %r0}};
  ld.local.v2.b64 {{%l0, %l1}}, [%lo+192]; st.v2.b64 [%gout+192], {{%l0, %l1}};
  // sign and zero extension
  ld.global.s8 %r0, [%gin+3]; ld.global.u8 %r1, [%gin+3]; ld.global.s16 %r2, [%gin+6]; ld.global.u16 %r3, [%gin+6];
  st.global.v4.b32 [%gout+208], {{%r0, %r1, %r2, %r3}};
  ld.global.s8 %l0, [%gin+5]; ld.global.s32 %l1, [%gin+8]; st.global.v2.b64 [%gout+224], {{%l0, %l1}};
  ld.global.nc.L1::no_allocate.v4.b32 {{%r4, %r5, %r6, %r7}}, [%gin+16];
  st.global.v4.b32 [%gout+240], {{%r4, %r5, %r6, %r7}};
  ld.volatile.global.b32 %r0, [%gin+20]; ld.relaxed.gpu.global.b32 %r1, [%gin+24];
  ld.acquire.sys.global.b32 %r2, [%gin];
  ld.global.L2::cache_hint.b32 %r3, [%gin+28], %off;
  st.release.gpu.global.b32 [%gout+256], %r0; st.relaxed.gpu.global.b32 [%gout+260], %r1;
  st.global.cs.b32 [%gout+264], %r2; st.volatile.global.b32 [%gout+268], %r3;
  fence.acq_rel.gpu; fence.sc.sys; membar.cta; fence.proxy.async; fence.acq_rel.cluster; prefetch.global.L2 [%gin];
  .reg .b64 %policy; createpolicy.fractional.L2::evict_first.b64 %policy, 1.0;
  ld.global.nc.L1::no_allocate.L2::cache_hint.L2::256B.v4.b32 {{%r4, %r5, %r6, %r7}}, [%gin+32], %policy;
  st.global.L2::cache_hint.v4.b32 [%gout+368], {{%r4, %r5, %r6, %r7}}, %policy;
  // constants, module variables, parameters
  ld.const.v2.b32 {{%r0, %r1}}, [table]; ld.const.s32 %l0, [table+8]; ld.const.b32 %r2, [table+12];
  st.global.v2.b32 [%gout+272], {{%r0, %r1}}; st.global.b64 [%gout+280], %l0; st.global.b32 [%gout+288], %r2;
  ld.global.u8 %r0, [bytes+4]; ld.global.b32 %r1, [bytes]; st.global.v2.b32 [%gout+296], {{%r0, %r1}};
  ld.param.v4.b32 {{%r0, %r1, %r2, %r3}}, [BLOB+16]; st.global.v4.b32 [%gout+304], {{%r0, %r1, %r2, %r3}};
  ld.param.u16 %r0, [SHORT]; ld.param.s16 %r1, [SHORT]; ld.param.b32 %r2, [WORD]; ld.param.u8 %r3, [BLOB+5];
  st.global.v4.b32 [%gout+320], {{%r0, %r1, %r2, %r3}};
  // which space an address is in
  .reg .pred %p;
  isspacep.shared %p, %src; selp.b32 %r0, 1, 0, %p; isspacep.global %p, %gin; selp.b32 %r1, 1, 0, %p;
  isspacep.local %p, %dst; selp.b32 %r2, 1, 0, %p; isspacep.shared %p, %gin; selp.b32 %r3, 1, 0, %p;
  st.global.v4.b32 [%gout+336], {{%r0, %r1, %r2, %r3}};
  cvta.to.shared.u64 %t, %src; sub.s64 %t, %t, %sh; st.global.b64 [%gout+352], %t;
  ret;
}}
"""
    blob = bytes_(32, 111)
    out = Buffer("out", np.full(32 * 512, 0xCD, dtype=np.uint8), result=True)
    args = (Buffer("in", bytes_(32 * 192, 110)), out, blob.tobytes(), 0x8123, 0x89ABCDEF)
    return Microkernel("load_store", ptx, args, block=(32, 1, 1))


def cp_async() -> Microkernel:
    """cp.async of 4, 8 and 16 bytes with short sources and ignored sources, by groups and by mbarrier."""
    ptx = f"""{HEADER}
.visible .entry k(.param .u64 IN, .param .u64 OUT)
{{
  .shared .align 16 .b8 sm[8192];
  .shared .align 8 .b64 bar;
  .reg .b64 %gin, %gout, %off, %src, %st;
  .reg .b32 %i, %s, %n, %b, %r<4>, %k;
  .reg .pred %p, %done;
  ld.param.u64 %gin, [IN]; ld.param.u64 %gout, [OUT];
  mov.u32 %i, %tid.x; mov.u32 %b, bar; setp.eq.u32 %p, %i, 0;
  @%p mbarrier.init.shared.b64 [%b], 128;
  mov.u32 %s, sm; mad.lo.u32 %s, %i, 64, %s; mul.wide.u32 %off, %i, 64; add.s64 %src, %gin, %off;
  mov.b32 %k, 0xa5a5a5a5;
  st.shared.v4.b32 [%s], {{%k, %k, %k, %k}}; st.shared.v4.b32 [%s+16], {{%k, %k, %k, %k}};
  st.shared.v4.b32 [%s+32], {{%k, %k, %k, %k}}; st.shared.v4.b32 [%s+48], {{%k, %k, %k, %k}};
  bar.sync 0;
  and.b32 %n, %i, 15;
  cp.async.cg.shared.global [%s], [%src], 16, %n;
  cp.async.ca.shared.global.L2::128B [%s+16], [%src+16], 16;
  cp.async.commit_group;
  and.b32 %n, %i, 7; cp.async.ca.shared.global [%s+32], [%src+32], 8, %n;
  and.b32 %n, %i, 3; cp.async.ca.shared.global [%s+40], [%src+40], 4, %n;
  and.b32 %n, %i, 1; setp.eq.u32 %p, %n, 1;
  cp.async.ca.shared.global [%s+44], [%src+44], 4, %p;
  cp.async.commit_group;
  cp.async.wait_group 1;
  ld.shared.v4.b32 {{%r0, %r1, %r2, %r3}}, [%s+16];
  mul.wide.u32 %off, %i, 80; add.s64 %gout, %gout, %off; st.global.v4.b32 [%gout+64], {{%r0, %r1, %r2, %r3}};
  cp.async.cg.shared.global.L2::256B [%s+48], [%src+48], 16;
  cp.async.mbarrier.arrive.noinc.shared.b64 [%b];
  mov.b32 %n, 0;
WAIT:
  mbarrier.try_wait.parity.shared.b64 %done, [%b], 0;
  @!%done bra WAIT;
  cp.async.wait_all;
  ld.shared.v4.b32 {{%r0, %r1, %r2, %r3}}, [%s]; st.global.v4.b32 [%gout], {{%r0, %r1, %r2, %r3}};
  ld.shared.v4.b32 {{%r0, %r1, %r2, %r3}}, [%s+16]; st.global.v4.b32 [%gout+16], {{%r0, %r1, %r2, %r3}};
  ld.shared.v4.b32 {{%r0, %r1, %r2, %r3}}, [%s+32]; st.global.v4.b32 [%gout+32], {{%r0, %r1, %r2, %r3}};
  ld.shared.v4.b32 {{%r0, %r1, %r2, %r3}}, [%s+48]; st.global.v4.b32 [%gout+48], {{%r0, %r1, %r2, %r3}};
  ret;
}}
"""
    out = Buffer("out", np.full(128 * 80, 0xCD, dtype=np.uint8), result=True)
    return Microkernel("cp_async", ptx, (Buffer("in", bytes_(128 * 64, 112)), out))


def kernels() -> list[Microkernel]:
    return [
        lanewise("atomics_32", atomic32_ops(), i32_triples(15), prologue=SCRATCH),
        lanewise("atomics_f32", atomic_float_ops(), f32_triples(16), prologue=SCRATCH),
        lanewise("atomics_f16x2", atomic_half_ops("f16"), half_triples("f16", 17), prologue=SCRATCH),
        lanewise("atomics_bf16x2", atomic_half_ops("bf16"), half_triples("bf16", 18), prologue=SCRATCH),
        lanewise("atomics_64", atomic64_ops(), wide_triples("f64", 19), prologue=SCRATCH),
        contended(),
        load_store(),
        cp_async(),
    ]
