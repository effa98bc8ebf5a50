"""E2M1 and E4M3: every tie, every code, saturation, specials, and the outer scale."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutefp4 import format as nvfp4
from tests.compare import assert_same_bits

MAGNITUDES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])

floats = st.floats(width=32, allow_nan=False)


def code(value: float) -> int:
    return int(nvfp4.encode_e2m1(torch.tensor([value]))[0])


@pytest.mark.parametrize("value, expected", [(0.25, 0), (0.75, 2), (1.25, 2), (1.75, 4), (2.5, 4), (3.5, 6), (5.0, 6)])
def test_ties_go_to_the_even_code(value, expected):
    assert code(value) == expected and code(-value) == expected | 8
    below, above = (code(float(torch.nextafter(torch.tensor(value), torch.tensor(t)))) for t in (0.0, math.inf))
    assert above == below + 1 and expected == below + (below & 1)


@pytest.mark.parametrize("value", [5.0000005, 6.0, 6.375, 7.0, 1e30])
def test_e2m1_saturates(value):
    assert code(value) == 7 and code(-value) == 15


@pytest.mark.parametrize(
    "value, expected",
    [
        (0.0, 0x0),
        (-0.0, 0x8),
        (-0.1, 0x8),
        (1e-45, 0x0),
        (-1e-45, 0x8),
        (math.inf, 0x7),
        (-math.inf, 0xF),
        (math.nan, 0x7),
        (-math.nan, 0x7),
        (5.0000005, 0x7),
    ],
)
def test_e2m1_specials(value, expected):
    assert code(value) == expected


def test_negative_nan_bits_also_encode_to_six():
    nans = torch.tensor([0x7FC00000, -0x400000, 0x7F800001, -0x7FFFFF], dtype=torch.int32).view(torch.float32)
    assert nans.isnan().all()
    assert nvfp4.encode_e2m1(nans).tolist() == [7, 7, 7, 7]


def test_codes_decode_to_the_grid_and_back():
    codes = torch.arange(16, dtype=torch.uint8)
    values = nvfp4.decode_e2m1(codes)
    assert_same_bits(values, torch.cat((MAGNITUDES, -MAGNITUDES)))
    assert_same_bits(nvfp4.encode_e2m1(values), codes)


@given(st.lists(floats, min_size=1, max_size=64))
def test_e2m1_is_the_nearest_grid_value(values):
    y = torch.tensor(values, dtype=torch.float32)
    q = nvfp4.decode_e2m1(nvfp4.encode_e2m1(y)).double()
    clamped = y.double().clamp(-6, 6)
    distance = (clamped.abs().unsqueeze(-1) - MAGNITUDES.double()).abs().amin(dim=-1)
    assert torch.equal((clamped - q).abs(), distance)
    assert torch.equal(torch.signbit(q), torch.signbit(y))


def test_packing_puts_even_k_into_the_low_nibble():
    codes = torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8)
    packed = nvfp4.pack_codes(codes)
    assert packed.tolist() == [[0x21, 0x0F]]
    assert torch.equal(nvfp4.unpack_codes(packed), codes)


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**31))
def test_packing_round_trips(rows, half, seed):
    packed = torch.randint(0, 256, (rows, half), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    assert torch.equal(nvfp4.pack_codes(nvfp4.unpack_codes(packed)), packed)


def e4m3_value(byte: int) -> float:
    exponent, fraction = byte >> 3 & 15, byte & 7
    return fraction * 2.0**-9 if exponent == 0 else (8 + fraction) * 2.0 ** (exponent - 10)


def test_every_e4m3_byte_decodes_and_round_trips():
    scales = torch.arange(127, dtype=torch.uint8)
    values = nvfp4.decode_e4m3(scales)
    assert values.tolist() == [e4m3_value(b) for b in range(127)]
    assert torch.equal(nvfp4.encode_e4m3(values).view(torch.uint8), scales)
    assert math.isnan(float(nvfp4.decode_e4m3(torch.tensor([127], dtype=torch.uint8))))


def test_every_e4m3_tie_goes_to_the_even_byte():
    for byte in range(126):
        low, high = e4m3_value(byte), e4m3_value(byte + 1)
        tie = torch.tensor([(low + high) / 2])
        even = byte + (byte & 1)
        towards = [torch.nextafter(tie, torch.tensor([t])) for t in (0.0, 1e9)]
        encoded = nvfp4.encode_e4m3(torch.cat((tie, *towards))).view(torch.uint8).tolist()
        assert encoded == [even, byte, byte + 1], f"between bytes {byte} and {byte + 1}"


@pytest.mark.parametrize(
    "value, byte", [(448, 0x7E), (449, 0x7E), (1e30, 0x7E), (math.inf, 0x7E), (math.nan, 0x7F), (0, 0), (2.0**-10, 0)]
)
def test_e4m3_saturates(value, byte):
    assert int(nvfp4.encode_e4m3(torch.tensor([value], dtype=torch.float32)).view(torch.uint8)) == byte


def test_encode_scale_of_special_amaxes():
    top = nvfp4.numerator(448)
    amax = torch.tensor([0.0, math.inf, top, 1e-38, 7.8e-36, 3.4e38])
    s = nvfp4.encode_scale(amax)
    assert s[:5].tolist() == [1.0, 1.0, 1.0, nvfp4.FLT_MAX, nvfp4.FLT_MAX]
    assert float(s[5]) > 0


def test_decode_scale_is_not_amax_over_numerator():
    amax = torch.rand(100_000, generator=torch.Generator().manual_seed(1)) * 10
    s_dec = nvfp4.decode_scale(nvfp4.encode_scale(amax))
    share = float((s_dec != nvfp4.divide(amax, nvfp4.numerator(448))).float().mean())
    assert 0.25 < share < 0.31


def test_gemm_constants():
    assert nvfp4.gemm_constant(448, 448).hex() == "0x1.2937260000000p-23"
    assert nvfp4.gemm_constant(256, 256).hex() == "0x1.c71c720000000p-22"
    mixed = torch.tensor(36 * 448 * 256, dtype=torch.float32)
    assert int(mixed) == 4128768
    assert nvfp4.gemm_constant(448, 256) == nvfp4.gemm_constant(256, 448) == float(1 / mixed)


def test_reciprocal_of_six():
    assert float(nvfp4.divide(torch.ones(()), 6.0)).hex() == "0x1.5555560000000p-3"


def test_divide_is_ieee_and_not_a_reciprocal_product():
    x = torch.rand(10_000, generator=torch.Generator().manual_seed(2))
    exact = (x.double() / 6).float()
    assert_same_bits(nvfp4.divide(x, 6.0), exact)
    assert not torch.equal(x * nvfp4.divide(torch.ones(()), 6.0), exact)


def test_amax_ignores_nan_and_keeps_inf():
    x = torch.tensor([[1.0, math.nan, -3.0], [math.nan, math.nan, math.nan], [-math.inf, 1, 2]])
    assert nvfp4.amax(x, dim=1).tolist() == [3.0, 0.0, math.inf]
    assert float(nvfp4.amax(x)) == math.inf
    assert float(nvfp4.amax(torch.zeros(0, 4))) == 0.0
    assert nvfp4.amax(torch.zeros(0, 4), dim=1).shape == (0,)
