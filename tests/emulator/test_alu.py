"""Arithmetic that only sm_100a has, against exact rational arithmetic (the rest is in the H200 fixtures)."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from microkernels.compare import run_in_emulator
from microkernels.inputs import hash32
from microkernels.lanewise import lanewise, op

from cutefp4.emulator import PtxError

LANES = 512


def run(code: str, *inputs: np.ndarray, wide: bool = False) -> np.ndarray:
    """Results of one operation over all lanes; inputs are uint32, or uint64 for wide ones."""
    dtype = np.uint64 if wide else np.uint32
    rows = [np.ascontiguousarray(x, dtype) for x in inputs]
    rows += [np.zeros(LANES, dtype)] * (3 - len(rows))
    kernel = lanewise("operation", [op(code, wide=wide)], rows, target="sm_100a", version="8.8")
    return run_in_emulator(kernel)[0]["out"].view(dtype)[:LANES]


def floats(seed: int) -> np.ndarray:
    """fp32 values of mixed magnitudes, some powers of two and near-ties among them, no specials."""
    raw = hash32(LANES, seed)
    out = ((raw & 0x807FFFFF) | (112 + (raw >> 8) % 32) << 23).astype(np.uint32).view(np.float32)
    out[::7] = np.round(out[::7])
    out[::11] = np.float32(2.0) ** (np.arange(out[::11].size) % 20 - 10)
    return out


def exact(x: np.float32) -> Fraction:
    return Fraction(float(x))


def round_to_f32(value: Fraction, mode: str) -> np.float32:
    """Rounds an exact value in the fp32 range without subnormals; zero gets the sign that the caller decides."""
    if value == 0:
        return np.float32(0)
    exponent = 0
    magnitude = abs(value)
    while magnitude >= 2:
        magnitude, exponent = magnitude / 2, exponent + 1
    while magnitude < 1:
        magnitude, exponent = magnitude * 2, exponent - 1
    scaled = magnitude * (1 << 23)
    low, rest = scaled.numerator // scaled.denominator, scaled - scaled.numerator // scaled.denominator
    up = {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low & 1),
        "rz": False,
        "rm": value < 0 and rest > 0,
        "rp": value > 0 and rest > 0,
    }[mode]
    rounded = Fraction(low + bool(up), 1 << 23) * Fraction(2) ** exponent
    return np.float32(float(-rounded if value < 0 else rounded))


OPERATIONS = {
    "add": ("add", lambda a, b, c: exact(a) + exact(b)),
    "mul": ("mul", lambda a, b, c: exact(a) * exact(b)),
    "fma": ("fma", lambda a, b, c: exact(a) * exact(b) + exact(c)),
}


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_packed_floats(name: str, mode: str):
    low = [floats(i) for i in range(3)]
    high = [floats(i + 10) for i in range(3)]
    words = [
        a.view(np.uint32).astype(np.uint64) | b.view(np.uint32).astype(np.uint64) << 32
        for a, b in zip(low, high, strict=True)
    ]
    operands = "%la, %lb, %lc" if name == "fma" else "%la, %lb"
    got = run(f"{name}.{mode}.f32x2 %ld, {operands};", *words, wide=True)
    for half, parts in ((got & 0xFFFFFFFF, low), (got >> 32, high)):
        want = [round_to_f32(OPERATIONS[name][1](*lane), mode) for lane in zip(*parts, strict=True)]
        values = half.astype(np.uint32).view(np.float32)
        np.testing.assert_array_equal(np.where(values == 0, 0, values), np.array(want))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_mixed_precision(kind: str):
    """add and fma of halves into fp32 round once."""
    raw = [hash32(LANES, 20 + i) for i in range(2)]
    if kind == "bf16":
        halves = [(r & 0x807F | (0x3C00 + (r >> 8 & 0x3FF) // 128 * 128) & 0x7F80).astype(np.uint32) for r in raw]
        values = [(h << 16).astype(np.uint32).view(np.float32) for h in halves]
    else:
        halves = [(r & 0x83FF | 0x3800 | (r >> 16 & 1) << 10).astype(np.uint32) for r in raw]
        values = [h.astype(np.uint16).view(np.float16).astype(np.float32) for h in halves]
    c = floats(23)
    got = run(
        f"cvt.u16.u32 %h0, %a; cvt.u16.u32 %h1, %b; fma.rn.f32.{kind} %d, %h0, %h1, %c;", *halves, c.view(np.uint32)
    )
    want = [round_to_f32(exact(a) * exact(b) + exact(x), "rn") for a, b, x in zip(*values, c, strict=True)]
    np.testing.assert_array_equal(got.view(np.float32), np.array(want))
    got = run(f"cvt.u16.u32 %h0, %a; add.rz.f32.{kind} %d, %h0, %c;", halves[0], halves[1], c.view(np.uint32))
    want = [round_to_f32(exact(a) + exact(x), "rz") for a, x in zip(values[0], c, strict=True)]
    np.testing.assert_array_equal(got.view(np.float32), np.array(want))


@pytest.mark.parametrize("name", ["min", "max"])
def test_three_inputs(name: str):
    a, b, c = (floats(30 + i) for i in range(3))
    a[5], b[6], c[7] = np.nan, np.nan, np.nan
    a[8] = b[8] = c[8] = np.nan
    a[9], b[9], c[9] = 0.0, -0.0, 0.0
    words = [x.view(np.uint32) for x in (a, b, c)]
    reduce = np.fmin if name == "min" else np.fmax
    got = run(f"{name}.f32 %d, %a, %b, %c;", *words).view(np.float32)
    np.testing.assert_array_equal(got, reduce(reduce(a, b), c))
    assert np.signbit(got[9]) == (name == "min")
    assert got.view(np.uint32)[8] == 0x7FFFFFFF
    strict = run(f"{name}.NaN.f32 %d, %a, %b, %c;", *words).view(np.float32)
    np.testing.assert_array_equal(np.isnan(strict), np.isnan(a) | np.isnan(b) | np.isnan(c))
    magnitudes = run(f"{name}.abs.f32 %d, %a, %b, %c;", *words).view(np.float32)
    np.testing.assert_array_equal(magnitudes, reduce(reduce(np.abs(a), np.abs(b)), np.abs(c)))


def test_redux_of_floats():
    x = floats(40)
    for name, function in (("min", np.min), ("max", np.max)):
        got = run(f"redux.sync.{name}.f32 %d, %a, 0xffffffff;", x.view(np.uint32)).view(np.float32)
        np.testing.assert_array_equal(got.reshape(-1, 32), function(x.reshape(-1, 32), 1, keepdims=True).repeat(32, 1))
        got = run(f"redux.sync.{name}.abs.f32 %d, %a, 0xffffffff;", x.view(np.uint32)).view(np.float32)
        np.testing.assert_array_equal(
            got.reshape(-1, 32), function(np.abs(x).reshape(-1, 32), 1, keepdims=True).repeat(32, 1)
        )
    x[3] = np.nan
    quiet = run("redux.sync.max.f32 %d, %a, 0xffffffff;", x.view(np.uint32)).view(np.float32)
    assert quiet[0] == np.nanmax(x[:32])
    loud = run("redux.sync.max.NaN.f32 %d, %a, 0xffffffff;", x.view(np.uint32)).view(np.float32)
    assert np.isnan(loud[:32]).all() and not np.isnan(loud[32:]).any()


def test_carry_chains():
    """128-bit sums and differences from 32-bit pieces, against Python's integers."""
    raw = [
        hash32(LANES, 50 + i).astype(np.uint64) | hash32(LANES, 60 + i).astype(np.uint64) << np.uint64(32)
        for i in range(2)
    ]
    a, b = raw
    a[:4] = [0, 2**64 - 1, 2**32, 2**63]
    b[:4] = [1, 1, 2**64 - 2**32, 2**63]
    for name, function in (("add", lambda x, y: x + y), ("sub", lambda x, y: x - y)):
        code = (
            "{ .reg .b32 %x0, %x1, %y0, %y1, %z0, %z1; mov.b64 {%x0, %x1}, %la; mov.b64 {%y0, %y1}, %lb;"
            f" {name}.cc.u32 %z0, %x0, %y0; {name}c.cc.u32 %z1, %x1, %y1; mov.b64 %ld, {{%z0, %z1}}; }}"
        )
        got = run(code, a, b, wide=True)
        want = [function(int(x), int(y)) % 2**64 for x, y in zip(a, b, strict=True)]
        np.testing.assert_array_equal(got, np.array(want, np.uint64))


@pytest.mark.parametrize("sign", ["s", "u"])
def test_sixteen_bit_products_and_differences(sign: str):
    raw = [hash32(LANES, 70 + i) & 0xFFFF for i in range(3)]
    values = [r.astype(np.int64) - ((r >= 0x8000) * 0x10000 if sign == "s" else 0) for r in raw]
    setup = "cvt.u16.u32 %h0, %a; cvt.u16.u32 %h1, %b; cvt.u16.u32 %h2, %c;"
    a, b, c = values
    for code, want in (("mad.hi", (a * b >> 16) + c), ("sad", np.abs(a - b) + c), ("mad.lo", a * b + c)):
        got = run(f"{setup} {code}.{sign}16 %h3, %h0, %h1, %h2; cvt.u32.u16 %d, %h3;", *raw)
        np.testing.assert_array_equal(got, want % 0x10000)


def test_unknown_modifiers_are_errors():
    for bad in (
        "add.rn.bogus.f32 %d, %a, %b;",
        "frobnicate.b32 %d, %a;",
        "shl.f32 %d, %a, %b;",
        "add.f32x4 %d, %a, %b;",
    ):
        with pytest.raises(PtxError, match=r"kernel k, PTX line \d+"):
            run(bad, np.zeros(LANES))
