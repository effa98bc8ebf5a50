"""float32 and float64 arithmetic, comparison and selection: every rounding, flush, saturation and NaN rule."""

from __future__ import annotations

from itertools import product

import numpy as np

from .inputs import F32_SPECIALS, f32_triples, hash32, wide_triples
from .kernel import Microkernel
from .lanewise import Op, lanewise, op, predicate

ROUNDINGS = ("rn", "rz", "rm", "rp")
COMPARES = ("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")


def f32_ops() -> list[Op]:
    ops = []
    for name, rnd, ftz, sat in product(("add", "sub", "mul"), ROUNDINGS, ("", ".ftz"), ("", ".sat")):
        ops.append(op(f"{name}.{rnd}{ftz}{sat}.f32 %d, %a, %b;"))
    for rnd, ftz, sat in product(ROUNDINGS, ("", ".ftz"), ("", ".sat")):
        ops.append(op(f"fma.{rnd}{ftz}{sat}.f32 %d, %a, %b, %c;"))
    for rnd, ftz in product(ROUNDINGS, ("", ".ftz")):
        ops.append(op(f"div.{rnd}{ftz}.f32 %d, %a, %b;"))
        ops.append(op(f"rcp.{rnd}{ftz}.f32 %d, %a;"))
        ops.append(op(f"sqrt.{rnd}{ftz}.f32 %d, %a;"))
    for name, ftz, nan, xor in product(("min", "max"), ("", ".ftz"), ("", ".NaN"), ("", ".xorsign.abs")):
        ops.append(op(f"{name}{ftz}{nan}{xor}.f32 %d, %a, %b;"))
    for name, ftz in product(("abs", "neg"), ("", ".ftz")):
        ops.append(op(f"{name}{ftz}.f32 %d, %a;"))
    ops.append(op("copysign.f32 %d, %a, %b;"))
    ops += [predicate(f"testp.{t}.f32 %p, %a;") for t in
            ("finite", "infinite", "number", "notanumber", "normal", "subnormal")]  # fmt: skip
    for rnd, ftz, sat in product(("rni", "rzi", "rmi", "rpi"), ("", ".ftz"), ("", ".sat")):
        ops.append(op(f"cvt.{rnd}{ftz}{sat}.f32.f32 %d, %a;"))
    ops.append(op("cvt.sat.f32.f32 %d, %a;"))
    ops.append(op("cvt.ftz.f32.f32 %d, %a;"))
    return ops


def f32_compare_ops() -> list[Op]:
    ops = []
    for cmp, ftz in product(COMPARES, ("", ".ftz")):
        ops.append(predicate(f"setp.{cmp}{ftz}.f32 %p, %a, %b;"))
        ops.append(op(f"set.{cmp}{ftz}.u32.f32 %d, %a, %b;"))
        ops.append(op(f"set.{cmp}{ftz}.f32.f32 %d, %a, %b;"))
    for logic, neg in product(("and", "or", "xor"), ("", "!")):
        code = f"setp.gt.f32 %q, %c, %a; setp.lt.{logic}.f32 %p, %a, %b, {neg}%q;"
        ops.append(predicate(code))
        both = f"setp.gt.f32 %q, %c, %a; setp.lt.{logic}.f32 %p|%q, %a, %b, {neg}%q;"
        ops.append(op(f"{both} selp.b32 %d, 1, 0, %p; selp.b32 %t0, 2, 0, %q; or.b32 %d, %d, %t0;"))
    ops.append(op("setp.lt.f32 %p, %a, %b; selp.f32 %d, %a, %c, %p;"))
    ops.append(op("slct.f32.s32 %d, %a, %b, %c;"))
    ops.append(op("slct.u32.f32 %d, %a, %b, %c;"))
    ops.append(op("slct.ftz.u32.f32 %d, %a, %b, %c;"))
    return ops


def f64_ops() -> list[Op]:
    ops = []
    for name, rnd in product(("add", "sub", "mul", "div"), ROUNDINGS):
        ops.append(op(f"{name}.{rnd}.f64 %ld, %la, %lb;", wide=True))
    for rnd in ROUNDINGS:
        ops.append(op(f"fma.{rnd}.f64 %ld, %la, %lb, %lc;", wide=True))
        ops.append(op(f"sqrt.{rnd}.f64 %ld, %la;", wide=True))
        ops.append(op(f"rcp.{rnd}.f64 %ld, %la;", wide=True))
        ops.append(op(f"cvt.{rnd}.f32.f64 %d, %la;"))
        ops.append(op(f"cvt.{rnd}.ftz.f32.f64 %d, %la;"))
    for name in ("min", "max"):
        ops.append(op(f"{name}.f64 %ld, %la, %lb;", wide=True))
    for name in ("abs", "neg"):
        ops.append(op(f"{name}.f64 %ld, %la;", wide=True))
    ops += [predicate(f"setp.{cmp}.f64 %p, %la, %lb;") for cmp in COMPARES]
    for rnd in ("rni", "rzi", "rmi", "rpi"):
        ops.append(op(f"cvt.{rnd}.f64.f64 %ld, %la;", wide=True))
    return ops


def approx_ops() -> list[Op]:
    """Approximations; the two binary ones first, then functions of %a."""
    ops = [op(f"{name}{ftz}.f32 %d, %a, %b;") for name, ftz in product(("div.approx", "div.full"), ("", ".ftz"))]
    for name in ("rcp", "sqrt", "rsqrt", "lg2", "ex2"):
        ops += [op(f"{name}.approx{ftz}.f32 %d, %a;") for ftz in ("", ".ftz")]
    ops.append(op("tanh.approx.f32 %d, %a;"))
    return ops


def _approx_inputs() -> list[np.ndarray]:
    """%a and %b: normal values with exponents -24..23 of either sign, so that every function is in its useful range."""
    out = []
    for seed in (70, 71, 72):
        bits = hash32(1024, seed)
        value = ((np.uint32(103) + (bits >> np.uint32(8)) % np.uint32(48)) << np.uint32(23)) | (
            hash32(1024, seed + 10) & np.uint32(0x807FFFFF)
        )
        value[: len(F32_SPECIALS)] = F32_SPECIALS
        out.append(value.astype(np.uint32))
    out[1][: len(F32_SPECIALS)] = 0x3F800000
    return out


def kernels() -> list[Microkernel]:
    return [
        lanewise("f32_arithmetic", f32_ops(), f32_triples()),
        lanewise("f32_compare", f32_compare_ops(), f32_triples()),
        lanewise("f64_arithmetic", f64_ops(), wide_triples("f64")),
        lanewise("f32_approximate", approx_ops(), _approx_inputs(), max_ulp=2),
    ]
