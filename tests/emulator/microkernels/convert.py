"""cvt between every pair of types that sm_90a has, over special values and, where 16 bits go in, over all of them."""

from __future__ import annotations

from itertools import product

import numpy as np

from .inputs import F32_SPECIALS, f32_triples, hash32, i32_triples, wide_triples
from .kernel import Microkernel
from .lanewise import Op, half_result, lanewise, op

INTS = ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64")
FP8 = ("e4m3x2", "e5m2x2")


def _to_int(source: str, reg: str) -> list[Op]:
    ops = []
    ftzs = ("", ".ftz") if source == "f32" else ("",)
    for rnd, ftz, sat, dst in product(("rni", "rzi", "rmi", "rpi"), ftzs, ("", ".sat"), INTS):
        bits = int(dst[1:])
        if sat and bits > 16:
            continue  # float to integer saturates anyway; the modifier is legal but adds nothing
        code = f"cvt.{rnd}{ftz}{sat}.{dst}.{source}"
        if bits == 64:
            ops.append(op(f"{code} %ld, {reg};", wide=True))
        elif bits == 32:
            ops.append(op(f"{code} %d, {reg};"))
        else:
            ops.append(half_result(f"{code} %h7, {reg};"))
    return ops


def f32_to_narrow_ops() -> list[Op]:
    """float32 to f16, bf16, tf32 and fp8, with every rounding, relu and saturation."""
    ops = []
    for rnd, ftz, sat in product(("rn", "rz", "rm", "rp"), ("", ".ftz"), ("", ".sat")):
        ops.append(half_result(f"cvt.{rnd}{ftz}{sat}.f16.f32 %h7, %a;"))
    for rnd, relu, dst in product(("rn", "rz"), ("", ".relu"), ("f16", "bf16")):
        ops.append(half_result(f"cvt.{rnd}{relu}.{dst}.f32 %h7, %a;"))
        ops.append(op(f"cvt.{rnd}{relu}.{dst}x2.f32 %d, %a, %b;"))
    ops += [half_result(f"cvt.{rnd}.bf16.f32 %h7, %a;") for rnd in ("rm", "rp")]
    ops.append(op("cvt.rna.tf32.f32 %d, %a;"))
    ops += [op(f"cvt.{rnd}{relu}.tf32.f32 %d, %a;") for rnd, relu in product(("rn", "rz"), ("", ".relu"))]
    for relu, dst in product(("", ".relu"), FP8):
        ops.append(half_result(f"cvt.rn.satfinite{relu}.{dst}.f32 %h7, %a, %b;"))
    return ops


def half_source_ops() -> list[Op]:
    """Two 16-bit values in %a: everything an f16, a bf16 or a pair of fp8 can become."""
    low = "mov.b32 {%h0, %h1}, %a;"
    ops = [op(f"{low} cvt.f32.{t} %d, %h0;") for t in ("f16", "bf16")]
    ops.append(op(f"{low} cvt.ftz.f32.f16 %d, %h0;"))
    for relu, dst in product(("", ".relu"), FP8):
        ops.append(half_result(f"cvt.rn.satfinite{relu}.{dst}.f16x2 %h7, %a;"))
        ops.append(op(f"{low} cvt.rn{relu}.f16x2.{dst} %d, %h0;"))
    for rnd, t in product(("rni", "rzi", "rmi", "rpi"), ("f16", "bf16")):
        ops.append(half_result(f"{low} cvt.{rnd}.{t}.{t} %h7, %h0;"))
        for dst in ("s32", "u32", "s16", "u16", "s8", "u8")[: 4 if t == "bf16" else 6]:
            if dst[1:] == "32":
                ops.append(op(f"{low} cvt.{rnd}.{dst}.{t} %d, %h0;"))
            else:
                ops.append(half_result(f"{low} cvt.{rnd}.{dst}.{t} %h7, %h0;"))
    for rnd in ("rn", "rz", "rm", "rp"):
        ops.append(half_result(f"{low} cvt.{rnd}.f16.bf16 %h7, %h0;"))
        ops.append(half_result(f"{low} cvt.{rnd}.bf16.f16 %h7, %h0;"))
    return ops


def int_to_float_ops() -> list[Op]:
    ops = []
    for rnd, dst, src in product(("rn", "rz", "rm", "rp"), ("f32", "f16", "bf16"), ("s32", "u32", "s16", "u16", "u8")):
        low = "" if src.endswith("32") else "mov.b32 {%h0, %h1}, %a; "
        reg = "%a" if src.endswith("32") else "%h0"
        if dst == "bf16" and src == "u8":
            continue  # the one pair that the instruction set lacks
        if dst == "f32":
            ops.append(op(f"{low}cvt.{rnd}.{dst}.{src} %d, {reg};"))
        else:
            ops.append(half_result(f"{low}cvt.{rnd}.{dst}.{src} %h7, {reg};"))
    for rnd, src in product(("rn", "rz"), ("s32", "u32")):
        ops.append(op(f"cvt.{rnd}.f64.{src} %ld, %a;", wide=True))
    return ops


def wide_ops() -> list[Op]:
    ops = [op(f"cvt.{rnd}.{dst}.{src} %{'l' if dst == 'f64' else ''}d, %la;", wide=dst == "f64")
           for rnd, dst, src in product(("rn", "rz", "rm", "rp"), ("f32", "f64"), ("s64", "u64"))]  # fmt: skip
    return ops


def _every_half() -> list[np.ndarray]:
    """All 65536 patterns in the low half, hashed ones in the high half."""
    low = np.arange(65536, dtype=np.uint32)
    a = low | (hash32(65536, 90) & np.uint32(0xFFFF0000))
    return [a, hash32(65536, 91), hash32(65536, 92)]


def _float_sweep() -> list[np.ndarray]:
    """%a: every sign, exponent and leading seven mantissa bits, tails around the rounding points of each target."""
    tails = np.array([0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x3000, 0xF000],
                     dtype=np.uint32)  # fmt: skip
    high = np.arange(65536, dtype=np.uint32) << np.uint32(16)
    a = high | tails[hash32(65536, 93) % np.uint32(len(tails))]
    b = f32_triples(7)[0]
    b = np.tile(b, 65536 // len(b))
    # the neighbourhood of each fp8 and f16 rounding point: a step of 1/64 of an ulp of three mantissa bits
    a[:2048] = (np.uint32(0x3A000000) + (np.arange(2048, dtype=np.uint32) << np.uint32(16))) | tails[3]
    a[2048 : 2048 + len(F32_SPECIALS)] = F32_SPECIALS
    return [a, b, hash32(65536, 94)]


def kernels() -> list[Microkernel]:
    return [
        lanewise("cvt_f32_to_narrow", f32_to_narrow_ops(), _float_sweep()),
        lanewise("cvt_every_half", half_source_ops(), _every_half()),
        lanewise("cvt_f32_to_int", _to_int("f32", "%a"), f32_triples(8)),
        lanewise("cvt_f64_to_int", _to_int("f64", "%la"), wide_triples("f64", 9)),
        lanewise("cvt_int_to_float", int_to_float_ops(), i32_triples(10)),
        lanewise("cvt_wide_int_to_float", wide_ops(), wide_triples("i64", 11)),
    ]
