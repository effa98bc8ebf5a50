"""Narrow conversions against tables of the formats' values (sm_90a's conversions are also in the H200 fixtures)."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from microkernels.compare import run_in_emulator
from microkernels.lanewise import lanewise, op

HALVES = np.arange(1 << 16, dtype=np.uint32)


def run(code: str, a: np.ndarray, b: np.ndarray | None = None, c: np.ndarray | None = None) -> np.ndarray:
    """The 32-bit results of one operation for every lane's inputs a, b, c (uint32)."""
    padded = np.zeros((3, -(-a.size // 128) * 128), np.uint32)
    for row, x in zip(padded, (a, b, c), strict=True):
        row[: a.size] = 0 if x is None else x
    inputs = list(padded)
    kernel = lanewise("conversion", [op(code)], inputs, target="sm_100a", version="8.8")
    return run_in_emulator(kernel)[0]["out"].view(np.uint32)[: a.size]


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def magnitudes(exponent_bits: int, mantissa_bits: int, bias: int, count: int) -> list[Fraction]:
    """The first `count` non-negative values of a format, in the order of their codes."""
    out = []
    for code in range(count):
        e, f = code >> mantissa_bits, Fraction(code & (1 << mantissa_bits) - 1, 1 << mantissa_bits)
        out.append((1 + f) * Fraction(2) ** (e - bias) if e else f * Fraction(2) ** (1 - bias))
    assert exponent_bits + mantissa_bits >= (count - 1).bit_length()
    return out


FORMATS = {  # values in code order, width in bits, code of NaN, how many codes two of them take in a register
    "e2m1": (magnitudes(2, 1, 1, 8), 4, 0x7),
    "e2m3": (magnitudes(2, 3, 1, 32), 6, 0x1F),
    "e3m2": (magnitudes(3, 2, 3, 32), 6, 0x1F),
    "e4m3": (magnitudes(4, 3, 7, 127), 8, 0x7F),
    "e5m2": (magnitudes(5, 2, 15, 124), 8, 0x7F),
}


def interesting(values: list[Fraction]) -> np.ndarray:
    """Every value, every midpoint, and their neighbours in fp32; beyond the largest; specials; both signs."""
    points = [float(v) for v in values]
    points += [float((a + b) / 2) for a, b in zip(values, values[1:], strict=False)]
    points += [points[len(values) - 1] * k for k in (1.0625, 1.25, 2, 1e6)]
    x = np.array(points, np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(-np.inf)), [np.inf]])
    return np.concatenate([x, -x, [np.nan]]).astype(np.float32)


def nearest_even(x: np.ndarray, name: str) -> np.ndarray:
    """Codes by the definition: the nearest value, the even code at a tie, saturated; sign in the top bit."""
    values, width, nan = FORMATS[name]
    table = np.array([float(v) for v in values])
    magnitude = np.minimum(np.abs(x.astype(np.float64)), table[-1])
    distance = np.abs(magnitude[:, None] - table[None, :])
    codes = np.arange(len(values))
    best = np.where(distance == distance.min(1, keepdims=True), codes + (codes & 1) * 1000, 10**6).argmin(1)
    coded = best | np.signbit(x).astype(int) << (width - 1)
    return np.where(np.isnan(x), nan, coded).astype(np.uint32)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("relu", [False, True])
def test_pack_two_floats(name: str, relu: bool):
    x = interesting(FORMATS[name][0])
    y = x[::-1].copy()
    shift = 4 if name == "e2m1" else 8
    modifier = ".relu" if relu else ""
    if name == "e2m1":
        code = f"{{ .reg .b8 %n; cvt.rn.satfinite{modifier}.e2m1x2.f32 %n, %a, %b; cvt.u32.u8 %d, %n; }}"
    else:
        code = f"cvt.rn.satfinite{modifier}.{name}x2.f32 %h7, %a, %b; mov.b32 %d, {{%h7, %hz}};"
    got = run(code, bits(x), bits(y))
    expected = [nearest_even(np.where(v > 0, v, np.where(np.isnan(v), v, 0)) if relu else v, name) for v in (x, y)]
    np.testing.assert_array_equal(got, expected[0] << shift | expected[1])


@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_against_torch_for_every_half(name: str):
    """All 65536 fp16 values, from fp32 and straight from fp16x2."""
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[name]
    limit = {"e4m3": 448.0, "e5m2": 57344.0}[name]
    half = torch.from_numpy(HALVES.astype(np.uint16).view(np.int16)).view(torch.float16).float()
    expected = half.clamp(-limit, limit).to(dtype).view(torch.uint8).numpy().astype(np.uint32)
    nan = half.isnan().numpy()
    expected[nan] = 0x7F
    swapped = expected[::-1]
    direct = run(
        f"cvt.rn.satfinite.{name}x2.f32 %h7, %a, %b; mov.b32 %d, {{%h7, %hz}};",
        bits(half.numpy()),
        bits(half.numpy()[::-1]),
    )
    np.testing.assert_array_equal(direct, expected << 8 | swapped)
    packed = run(f"cvt.rn.satfinite.{name}x2.f16x2 %h7, %a; mov.b32 %d, {{%h7, %hz}};", HALVES << 16 | HALVES[::-1])
    np.testing.assert_array_equal(packed, expected << 8 | swapped)


@pytest.mark.parametrize("name", FORMATS)
def test_unpack_every_code(name: str):
    values, width, nan = FORMATS[name]
    codes = np.arange(1 << width, dtype=np.uint32)
    other = codes[::-1].copy()
    shift = 4 if width == 4 else 8
    packed = codes << shift | other
    source = "{ .reg .b8 %n; cvt.u8.u32 %n, %a; " if width == 4 else "{ cvt.u16.u32 %h0, %a; "
    register = "%n" if width == 4 else "%h0"
    got = run(f"{source} cvt.rn.f16x2.{name}x2 %d, {register}; }}", packed)

    def decode(code: np.ndarray) -> np.ndarray:
        out = np.zeros(code.shape, np.float32)
        for i, c in enumerate(code):
            m = int(c) & (1 << (width - 1)) - 1
            value = float(values[m]) if m < len(values) else (np.inf if name == "e5m2" and m == 0x7C else np.nan)
            out[i] = -value if int(c) >> (width - 1) else value
        return out

    for field, code in ((got >> 16, codes), (got & 0xFFFF, other)):
        value, want = field.astype(np.uint16).view(np.float16).astype(np.float32), decode(code)
        np.testing.assert_array_equal(value, want)
        np.testing.assert_array_equal(np.signbit(value[want == 0]), np.signbit(want[want == 0]))
    assert nan < 1 << width


@pytest.mark.parametrize("rounding", ["rz", "rp"])
def test_powers_of_two(rounding: str):
    """ue8m0: the power of two below (rz) or above (rp), 2^-127 .. 2^127."""
    exponents = np.arange(-130, 128)
    x = np.concatenate([np.float64(2.0) ** exponents, 1.5 * np.float64(2.0) ** exponents[:-1]]).astype(np.float32)
    x = np.concatenate([x, -x, [0, np.inf, np.nan]]).astype(np.float32)
    got = run(f"cvt.{rounding}.satfinite.ue8m0x2.f32 %h7, %a, %b; mov.b32 %d, {{%h7, %hz}};", bits(x), bits(x))
    for value, pair in zip(np.abs(x.astype(np.float64)), got, strict=True):
        if np.isnan(value):
            want = 0xFF
        elif np.isinf(value):
            want = 0xFE
        elif value == 0:
            want = 0
        else:
            mantissa, e = np.frexp(value)
            e = int(e) - 1 + int(rounding == "rp" and mantissa > 0.5)
            want = min(max(e + 127, 0), 0xFE)
        assert pair == want << 8 | want, value
    code = np.arange(255, dtype=np.uint32)
    back = run("cvt.u16.u32 %h0, %a; cvt.rn.bf16x2.ue8m0x2 %d, %h0;", code << 8 | code)
    np.testing.assert_array_equal((back & 0xFFFF0000).view(np.float32), np.float64(2.0) ** (code - 127.0))


def test_stochastic_fp4_rounds_up_in_the_right_share_of_cases():
    """rbits byte r rounds |x| up iff floor(256 (|x| - g) / step) + r >= 256, over all 256 bytes, per element."""
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.uniform(0, 6.5, 200), [0, 0.1, 0.25, 0.49999, 5.999, 6, 7, 2.75]]).astype(np.float32)
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float64)
    byte_of = (2, 0, 3, 1)  # which byte of rbits serves element 0 (lowest) .. 3; bytes 0 and 1 are read bit-reversed
    reverse = np.array([int(f"{i:08b}"[::-1], 2) for i in range(256)])
    r = np.arange(256)
    for element in range(4):
        at = byte_of[element]
        rbits = np.uint32((reverse[r] if at < 2 else r).astype(np.uint32) << np.uint32(8 * at))
        sources = ["%c"] * 4
        sources[3 - element] = "%a"
        code = (
            f"mov.b32 %t0, 0; cvt.rs.satfinite.e2m1x4.f32 %h7, {{{', '.join(sources)}}}, %b; mov.b32 %d, {{%h7, %hz}};"
        )
        x = np.repeat(values, 256)
        got = run(code, bits(x), np.tile(rbits, len(values))) >> 4 * element & 0xF
        magnitude = np.minimum(values.astype(np.float64), 6)
        low = np.searchsorted(table, magnitude, side="right") - 1
        step = np.append(np.diff(table), np.inf)[low]
        dither = np.floor(256 * (magnitude - table[low]) / step)
        want = low[:, None] + (dither[:, None] + r[None, :] >= 256)
        np.testing.assert_array_equal(got.reshape(len(values), 256), want)


def test_stochastic_halves_are_fair():
    """The discarded bits decide: of all 2^16 random words for a bf16, as many round up as the remainder says."""
    x = np.full(1 << 16, 1 + 0x3039 / (1 << 23), np.float32)
    rbits = np.arange(1 << 16, dtype=np.uint32)
    got = run("cvt.rs.bf16x2.f32 %d, %a, %b, %c;", bits(x), bits(x), rbits << 16 | rbits)
    assert set(np.unique(got >> 16)) == {0x3F80, 0x3F81}
    assert int((got >> 16 == 0x3F81).sum()) == int((got & 0xFFFF == 0x3F81).sum()) == 0x3039
    got = run("cvt.rs.f16x2.f32 %d, %a, %b, %c;", bits(x), bits(x), rbits << 16 | rbits)
    assert int((got >> 16 == 0x3C00 + 2).sum()) == (0x3039 & 0x1FFF) * 8  # 13 of the 16 random bits count


def test_saturating_and_directed_halves():
    x = np.array([65504, 65519.996, 65520, 1e9, -1e9, np.inf, -np.inf, 1e-8, -1e-8, np.nan], np.float32)
    plain = run("cvt.rn.f16.f32 %h7, %a; mov.b32 %d, {%h7, %hz};", bits(x))
    np.testing.assert_array_equal(plain, [0x7BFF, 0x7BFF, 0x7C00, 0x7C00, 0xFC00, 0x7C00, 0xFC00, 0, 0x8000, 0x7FFF])
    toward_zero = run("cvt.rz.f16.f32 %h7, %a; mov.b32 %d, {%h7, %hz};", bits(x))
    np.testing.assert_array_equal(toward_zero[:5], [0x7BFF, 0x7BFF, 0x7BFF, 0x7BFF, 0xFBFF])
    finite = run("cvt.rn.satfinite.f16x2.f32 %d, %a, %b;", bits(x), bits(x)) >> 16
    np.testing.assert_array_equal(finite[:7], [0x7BFF, 0x7BFF, 0x7BFF, 0x7BFF, 0xFBFF, 0x7BFF, 0xFBFF])
    up = run("cvt.rp.f16.f32 %h7, %a; mov.b32 %d, {%h7, %hz};", bits(x))
    np.testing.assert_array_equal(up[7:9], [1, 0x8000])
    down = run("cvt.rm.f16.f32 %h7, %a; mov.b32 %d, {%h7, %hz};", bits(x))
    np.testing.assert_array_equal(down[7:9], [0, 0x8001])


@pytest.mark.parametrize(
    "kind, low, high",
    [("s8", -128, 127), ("u8", 0, 255), ("s16", -32768, 32767), ("u32", 0, 2**32 - 1), ("s32", -(2**31), 2**31 - 1)],
)
def test_float_to_integer_saturates(kind: str, low: int, high: int):
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e10, -1e10, np.inf, -np.inf, np.nan, low, high], np.float32)
    wide = "s32" if kind[0] == "s" else "u32"
    code = (
        f"cvt.rni.{kind}.f32 %d, %a;"
        if kind.endswith("32")
        else f"cvt.rni.{kind}.f32 %h7, %a; cvt.{wide}.{kind} %d, %h7;"
    )
    got = run(code, bits(x)).view(np.int32 if kind[0] == "s" else np.uint32).astype(np.int64)
    rounded = np.nan_to_num(np.round(x.astype(np.float64)), nan=0, posinf=1e30, neginf=-1e30)
    np.testing.assert_array_equal(got, np.clip(rounded, low, high).astype(np.int64))
