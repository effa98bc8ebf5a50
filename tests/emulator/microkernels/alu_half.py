"""f16 and bf16, single and packed: arithmetic, NaN and sign rules of min and max, comparisons."""

from __future__ import annotations

from itertools import product

from .inputs import half_triples
from .kernel import Microkernel
from .lanewise import Op, half_result, lanewise, op

COMPARES = ("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")
SPLIT = "mov.b32 {%h0, %h1}, %a; mov.b32 {%h2, %h3}, %b; mov.b32 {%h4, %h5}, %c;"


def _single(code: str) -> Op:
    return half_result(f"{SPLIT} {code}", label=code)


def f16_ops() -> list[Op]:
    ops = []
    for name, rnd, ftz, sat in product(("add", "sub", "mul"), ("", ".rn"), ("", ".ftz"), ("", ".sat")):
        ops.append(op(f"{name}{rnd}{ftz}{sat}.f16x2 %d, %a, %b;"))
        ops.append(_single(f"{name}{rnd}{ftz}{sat}.f16 %h7, %h0, %h2;"))
    for ftz, tail in product(("", ".ftz"), ("", ".sat", ".relu")):
        ops.append(op(f"fma.rn{ftz}{tail}.f16x2 %d, %a, %b, %c;"))
        ops.append(_single(f"fma.rn{ftz}{tail}.f16 %h7, %h0, %h2, %h4;"))
    for name, ftz, nan, xor in product(("min", "max"), ("", ".ftz"), ("", ".NaN"), ("", ".xorsign.abs")):
        ops.append(op(f"{name}{ftz}{nan}{xor}.f16x2 %d, %a, %b;"))
        ops.append(_single(f"{name}{ftz}{nan}{xor}.f16 %h7, %h0, %h2;"))
    for name, ftz in product(("abs", "neg"), ("", ".ftz")):
        ops.append(op(f"{name}{ftz}.f16x2 %d, %a;"))
        ops.append(_single(f"{name}{ftz}.f16 %h7, %h1;"))
    for cmp, ftz in product(COMPARES, ("", ".ftz")):
        both = "selp.b32 %d, 1, 0, %p; selp.b32 %t0, 2, 0, %q; or.b32 %d, %d, %t0;"
        ops.append(op(f"setp.{cmp}{ftz}.f16x2 %p|%q, %a, %b; {both}"))
        ops.append(op(f"{SPLIT} setp.{cmp}{ftz}.f16 %p, %h0, %h2; selp.b32 %d, 1, 0, %p;"))
        ops.append(op(f"set.{cmp}{ftz}.f16x2.f16x2 %d, %a, %b;"))
    ops.append(_single("set.lt.f16.f16 %h7, %h0, %h2;"))
    ops.append(op(f"{SPLIT} set.lt.u32.f16 %d, %h0, %h2;", label="set.lt.u32.f16"))
    return ops


def bf16_ops() -> list[Op]:
    ops = []
    for name, rnd in product(("add", "sub", "mul"), ("", ".rn")):
        ops.append(op(f"{name}{rnd}.bf16x2 %d, %a, %b;"))
        ops.append(_single(f"{name}{rnd}.bf16 %h7, %h0, %h2;"))
    for tail in ("", ".relu"):
        ops.append(op(f"fma.rn{tail}.bf16x2 %d, %a, %b, %c;"))
        ops.append(_single(f"fma.rn{tail}.bf16 %h7, %h0, %h2, %h4;"))
    for name, nan, xor in product(("min", "max"), ("", ".NaN"), ("", ".xorsign.abs")):
        ops.append(op(f"{name}{nan}{xor}.bf16x2 %d, %a, %b;"))
        ops.append(_single(f"{name}{nan}{xor}.bf16 %h7, %h0, %h2;"))
    for name in ("abs", "neg"):
        ops.append(op(f"{name}.bf16x2 %d, %a;"))
        ops.append(_single(f"{name}.bf16 %h7, %h1;"))
    for cmp in COMPARES:
        both = "selp.b32 %d, 1, 0, %p; selp.b32 %t0, 2, 0, %q; or.b32 %d, %d, %t0;"
        ops.append(op(f"setp.{cmp}.bf16x2 %p|%q, %a, %b; {both}"))
        ops.append(op(f"{SPLIT} setp.{cmp}.bf16 %p, %h0, %h2; selp.b32 %d, 1, 0, %p;"))
        ops.append(op(f"set.{cmp}.bf16x2.bf16x2 %d, %a, %b;"))
    return ops


def kernels() -> list[Microkernel]:
    return [
        lanewise("f16_arithmetic", f16_ops(), half_triples("f16")),
        lanewise("bf16_arithmetic", bf16_ops(), half_triples("bf16")),
    ]
