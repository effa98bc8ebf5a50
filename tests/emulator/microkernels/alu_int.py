"""Integer, bit and byte operations, with every mode of prmt, shf and lop3."""

from __future__ import annotations

from itertools import product

import numpy as np

from .inputs import hash32, i32_triples, wide_triples
from .kernel import Microkernel
from .lanewise import Op, lanewise, op, predicate

SIGNED = ("eq", "ne", "lt", "le", "gt", "ge")
UNSIGNED = ("eq", "ne", "lo", "ls", "hi", "hs", "lt", "ge")


def i32_ops() -> list[Op]:
    ops = []
    for name, t in product(("add", "sub", "min", "max", "div", "rem"), ("s32", "u32")):
        guard = "or.b32 %b, %b, 1; " if name in ("div", "rem") else ""  # division by zero has no defined result
        ops.append(op(f"{{ .reg .b32 %b0; mov.b32 %b0, %b; {guard.replace('%b', '%b0')}{name}.{t} %d, %a, %b0; }}"))
    ops += [op("add.sat.s32 %d, %a, %b;"), op("sub.sat.s32 %d, %a, %b;")]
    for half, t in product(("lo", "hi"), ("s32", "u32")):
        ops.append(op(f"mul.{half}.{t} %d, %a, %b;"))
        ops.append(op(f"mad.{half}.{t} %d, %a, %b, %c;"))
    ops.append(op("mad.hi.sat.s32 %d, %a, %b, %c;"))
    for half, t in product(("lo", "hi"), ("s32", "u32")):
        ops.append(op(f"mul24.{half}.{t} %d, %a, %b;"))
    for t in ("s32", "u32"):
        ops.append(op(f"mul.wide.{t} %ld, %a, %b;", wide=True))
        wide_c = "cvt.s64.s32 %l0, %c;" if t == "s32" else "cvt.u64.u32 %l0, %c;"
        ops.append(op(f"{wide_c} mad.wide.{t} %ld, %a, %b, %l0;", wide=True))
        ops.append(op(f"sad.{t} %d, %a, %b, %c;"))
        ops.append(op(f"shr.{t} %d, %a, %b;"))
        ops.append(op(f"bfe.{t} %d, %a, %b, %c;"))
        ops.append(op(f"and.b32 %t0, %b, 31; and.b32 %t1, %c, 31; bfe.{t} %d, %a, %t0, %t1;"))
        ops.append(op(f"bfind.{t} %d, %a;"))
        ops.append(op(f"bfind.shiftamt.{t} %d, %a;"))
    ops += [op(f"{name}.s32 %d, %a;") for name in ("abs", "neg")]
    ops += [op(f"{name}.b32 %d, %a;") for name in ("popc", "clz", "brev", "not", "cnot")]
    ops += [op(f"{name}.b32 %d, %a, %b;") for name in ("and", "or", "xor", "shl")]
    ops.append(op("shr.b32 %d, %a, %b;"))
    ops.append(op("bfi.b32 %d, %a, %b, %c, 5;"))
    ops.append(op("bfi.b32 %d, %a, %b, %c, %a;"))
    ops.append(op("and.b32 %t0, %c, 31; shr.u32 %t1, %c, 27; bfi.b32 %d, %a, %b, %t0, %t1;"))
    for mode, t in product(("clamp", "wrap"), ("s32", "u32")):
        ops.append(op(f"szext.{mode}.{t} %d, %a, %b;"))
    ops += [op(f"bmsk.{mode}.b32 %d, %a, %b;") for mode in ("clamp", "wrap")]
    for side, mode in product(("l", "r"), ("wrap", "clamp")):
        ops.append(op(f"shf.{side}.{mode}.b32 %d, %a, %b, %c;"))
    for a, b in product(("u32", "s32"), repeat=2):
        ops.append(op(f"dp4a.{a}.{b} %d, %a, %b, %c;"))
        ops.append(op(f"dp2a.lo.{a}.{b} %d, %a, %b, %c;"))
        ops.append(op(f"dp2a.hi.{a}.{b} %d, %a, %b, %c;"))
    ops.append(op("add.cc.u32 %t0, %a, %b; addc.u32 %d, %c, 0;"))
    ops.append(op("add.cc.u32 %t0, %a, %b; addc.cc.u32 %t1, %a, %c; addc.u32 %d, %b, %c;"))
    ops.append(op("sub.cc.u32 %t0, %a, %b; subc.u32 %d, %c, 0;"))
    ops.append(op("sub.cc.u32 %t0, %a, %b; subc.cc.u32 %t1, %a, %c; subc.u32 %d, %b, %c;"))
    ops.append(op("mad.lo.cc.u32 %t0, %a, %b, %c; madc.hi.u32 %d, %a, %b, %c;"))
    ops += [predicate(f"setp.{cmp}.s32 %p, %a, %b;") for cmp in SIGNED]
    ops += [predicate(f"setp.{cmp}.u32 %p, %a, %b;") for cmp in UNSIGNED]
    ops += [op(f"set.{cmp}.u32.s32 %d, %a, %b;") for cmp in SIGNED]
    ops.append(op("set.lt.f32.s32 %d, %a, %b;"))
    ops.append(op("slct.u32.s32 %d, %a, %b, %c;"))
    ops.append(op("setp.gt.s32 %p, %a, %b; @%p add.u32 %d, %a, 1; @!%p sub.u32 %d, %b, 1;"))
    ops.append(op("setp.gt.s32 %p, %a, %b; setp.lt.s32 %q, %b, %c; and.pred %p, %p, %q; selp.b32 %d, %a, %b, %p;"))
    ops.append(op("setp.gt.s32 %p, %a, %b; setp.lt.s32 %q, %b, %c; xor.pred %p, %p, %q; not.pred %q, %p; "
                  "selp.b32 %d, %a, %b, %q;"))  # fmt: skip
    return ops


def narrow_ops() -> list[Op]:
    """16-bit integers, vectors packed by mov, and width conversions."""
    split = "mov.b32 {%h0, %h1}, %a; mov.b32 {%h2, %h3}, %b; mov.b32 {%h4, %h5}, %c;"
    back = "mov.b32 %d, {%h6, %h7};"
    ops = []
    for name, t in product(("add", "sub", "min", "max", "mul.lo", "mul.hi"), ("s16", "u16")):
        ops.append(op(f"{split} {name}.{t} %h6, %h0, %h2; {name}.{t} %h7, %h1, %h3; {back}", label=f"{name}.{t}"))
    for t in ("s16", "u16"):
        ops.append(op(f"{split} mul.wide.{t} %d, %h0, %h3;", label=f"mul.wide.{t}"))
        ops.append(op(f"{split} mad.lo.{t} %h6, %h0, %h2, %h4; mad.lo.{t} %h7, %h1, %h3, %h5; {back}",
                      label=f"mad.lo.{t}"))  # fmt: skip
        ops.append(op(f"{split} mad.wide.{t} %d, %h0, %h3, %c;", label=f"mad.wide.{t}"))
        ops.append(op(f"{split} shr.{t} %h6, %h0, %c; shr.{t} %h7, %h1, %b; {back}", label=f"shr.{t}"))
        ops.append(op(f"{split} setp.lt.{t} %p, %h0, %h2; selp.b16 %h6, %h1, %h3, %p; mov.b16 %h7, %h4; {back}",
                      label=f"setp.lt.{t}"))  # fmt: skip
    for name in ("and", "or", "xor"):
        ops.append(op(f"{split} {name}.b16 %h6, %h0, %h2; {name}.b16 %h7, %h1, %h3; {back}", label=f"{name}.b16"))
    ops.append(op(f"{split} shl.b16 %h6, %h0, %c; not.b16 %h7, %h1; {back}", label="shl.b16 not.b16"))
    ops.append(op(f"{split} neg.s16 %h6, %h0; abs.s16 %h7, %h1; {back}", label="neg.s16 abs.s16"))
    ops.append(op("add.u16x2 %d, %a, %b;"))
    for name, t in product(("min", "max"), ("s16x2", "u16x2")):
        ops.append(op(f"{name}.{t} %d, %a, %b;"))
    ops += [op(f"{name}.relu.{t} %d, %a, %b;") for name, t in product(("min", "max"), ("s16x2", "s32"))]
    for dst, src in product(("s8", "u8", "s16", "u16"), ("s32", "u32")):
        ops.append(op(f"cvt.{dst}.{src} %h6, %a; mov.b16 %h7, 0; {back}", label=f"cvt.{dst}.{src}"))
        ops.append(op(f"cvt.sat.{dst}.{src} %h6, %a; mov.b16 %h7, 0; {back}", label=f"cvt.sat.{dst}.{src}"))
    for dst, src in product(("s32", "u32"), ("s8", "u8", "s16", "u16")):
        ops.append(op(f"{split} cvt.{dst}.{src} %d, %h0;", label=f"cvt.{dst}.{src}"))
    for dst, src in (("s32", "u32"), ("u32", "s32")):
        ops.append(op(f"cvt.sat.{dst}.{src} %d, %a;"))
    for dst, src in product(("s64", "u64"), ("s32", "u32")):
        ops.append(op(f"cvt.{dst}.{src} %ld, %a;", wide=True))
    ops += [op(f"cvt.pack.sat.{t}.s32 %d, %a, %b;") for t in ("s16", "u16")]
    ops += [op(f"cvt.pack.sat.{t}.s32.b32 %d, %a, %b, %c;") for t in ("s8", "u8")]
    ops.append(op("mov.b64 %ld, {%a, %b};", wide=True))
    ops.append(op("mov.b64 %l0, {%a, %b}; mov.b64 {_, %d}, %l0;"))
    ops.append(op(f"{split} mov.b64 %ld, {{%h0, %h3, %h4, %h1}};", wide=True, label="mov.b64 of four b16"))
    return ops


def i64_ops() -> list[Op]:
    ops = []
    for name, t in product(("add", "sub", "min", "max", "mul.lo", "mul.hi"), ("s64", "u64")):
        ops.append(op(f"{name}.{t} %ld, %la, %lb;", wide=True))
    for name, t in product(("div", "rem"), ("s64", "u64")):
        ops.append(op(f"or.b64 %l0, %lb, 1; {name}.{t} %ld, %la, %l0;", wide=True))
    for t in ("s64", "u64"):
        ops.append(op(f"mad.lo.{t} %ld, %la, %lb, %lc;", wide=True))
        ops.append(op(f"mad.hi.{t} %ld, %la, %lb, %lc;", wide=True))
        ops.append(op(f"cvt.u32.u64 %t0, %lb; shr.{t} %ld, %la, %t0;", wide=True))
        ops.append(op(f"cvt.u32.u64 %t0, %lb; cvt.u32.u64 %t1, %lc; bfe.{t} %ld, %la, %t0, %t1;", wide=True))
        ops.append(op(f"bfind.{t} %d, %la;"))
        ops.append(op(f"cvt.sat.s32.{t} %d, %la;"))
        ops.append(op(f"cvt.sat.u32.{t} %d, %la;"))
    ops.append(op("cvt.u32.u64 %t0, %lb; shl.b64 %ld, %la, %t0;", wide=True))
    ops.append(op("cvt.u32.u64 %t0, %lc; and.b32 %t0, %t0, 63; bfi.b64 %ld, %la, %lb, %t0, 17;", wide=True))
    ops += [op(f"{name}.b64 %ld, %la, %lb;", wide=True) for name in ("and", "or", "xor")]
    ops += [op(f"{name}.b64 %d, %la;") for name in ("popc", "clz")]
    ops += [op(f"{name} %ld, %la;", wide=True) for name in ("brev.b64", "not.b64", "cnot.b64", "neg.s64", "abs.s64")]
    ops += [predicate(f"setp.{cmp}.s64 %p, %la, %lb;") for cmp in SIGNED]
    ops += [predicate(f"setp.{cmp}.u64 %p, %la, %lb;") for cmp in UNSIGNED]
    ops.append(op("setp.lt.s64 %p, %la, %lb; selp.b64 %ld, %la, %lc, %p;", wide=True))
    ops.append(op("add.cc.u64 %l0, %la, %lb; addc.u64 %ld, %lc, 0;", wide=True))
    ops.append(op("mov.b64 {%t0, %t1}, %la; xor.b32 %d, %t0, %t1;"))
    return ops


def prmt_ops() -> list[Op]:
    ops = [op("prmt.b32 %d, %a, %b, %c;")]
    ops += [op(f"prmt.b32.{mode} %d, %a, %b, %c;") for mode in ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")]
    ops += [op(f"prmt.b32 %d, %a, %b, {sel:#06x};") for sel in
            (0x3210, 0x7654, 0x5410, 0x7632, 0x0123, 0xBA98, 0xFEDC, 0x4040, 0x8888, 0x6240)]  # fmt: skip
    return ops


def _lut_inputs() -> list[np.ndarray]:
    out = [hash32(128, 80 + i) for i in range(3)]
    for array, value in zip(out, (0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA), strict=True):
        array[0] = value
    return out


def kernels() -> list[Microkernel]:
    lop3 = [op(f"lop3.b32 %d, %a, %b, %c, {lut:#04x};") for lut in range(256)]
    lop3 += [predicate(f"setp.eq.u32 %q, %a, 0; lop3.{fold}.b32 %d|%p, %a, %b, %c, {lut:#04x}, %q;")
             for fold, lut in product(("or", "and"), (0xC0, 0x96, 0x01))]  # fmt: skip
    return [
        lanewise("i32_arithmetic", i32_ops(), i32_triples()),
        lanewise("narrow_integers", narrow_ops(), i32_triples(5)),
        lanewise("i64_arithmetic", i64_ops(), wide_triples("i64")),
        lanewise("prmt", prmt_ops(), i32_triples(6)),
        lanewise("lop3_every_table", lop3, _lut_inputs()),
    ]
