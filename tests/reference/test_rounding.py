"""Philox, the stochastic rule and its statistics."""

import math

import pytest
import torch

from cutefp4.format import decode_e2m1, encode_e2m1
from cutefp4.recipe import QuantRecipe
from cutefp4.reference import decoded, dequantize, quantize
from cutefp4.reference.philox import philox4x32
from cutefp4.reference.rounding import RandomState, encode_e2m1_stochastic, random_bytes
from tests.cases import PROFILES, matrix, normal
from tests.compare import assert_same_bits, assert_same_operand

ALL_BYTES = torch.arange(256, dtype=torch.int32)


@pytest.mark.parametrize(
    "counter, key, words",
    [  # the generator's published known answers
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    assert tuple(int(w) for w in philox4x32(counter, key)) == words


def test_block_bytes():
    words = philox4x32((0, 0, 0, 0), (7, 0))
    assert [f"{int(w):08x}" for w in words] == ["f4607a2d", "c009f9dc", "1d3aba42", "15edac82"]
    got = random_bytes(RandomState(7, 0), torch.tensor([0]), 1).flatten().tolist()
    assert got == [45, 122, 96, 244, 220, 249, 9, 192, 66, 186, 58, 29, 130, 172, 237, 21]


def test_bytes_depend_on_each_coordinate():
    rows = torch.arange(4)
    base = random_bytes(RandomState(1, 2), rows, 5)
    assert base.shape == (4, 5, 16)
    assert_same_bits(random_bytes(RandomState(1, 2), rows[2:], 5), base[2:])
    assert_same_bits(random_bytes(RandomState(1, 2), rows, 3), base[:, :3].contiguous())
    for other in (RandomState(2, 2), RandomState(1, 3), RandomState(1 + (1 << 32), 2), RandomState(1, 2 + (1 << 32))):
        assert float((random_bytes(other, rows, 5) == base).float().mean()) < 0.1
    assert len({tuple(block) for row in base.tolist() for block in row}) == 20


def expected_dither(value: float) -> int:
    magnitude = abs(value)
    low = max(v for v in (0, 0.5, 1, 1.5, 2, 3, 4) if v <= magnitude)
    step = 0.5 if low < 2 else 1.0 if low < 4 else 2.0
    return math.floor(256 * (magnitude - low) / step)


@pytest.mark.parametrize(
    "value", [0.1, 0.001, 0.25, 0.4999, 0.5001, 0.9, 1.25, 1.7, 2.3, 2.9999, 3.5, 4.1, 5.0, 5.9999, 2.0**-9 - 2.0**-33]
)
def test_round_ups_over_all_bytes(value):
    y = torch.full((256,), value)
    for signed in (y, -y):
        q = decode_e2m1(encode_e2m1_stochastic(signed, ALL_BYTES)).abs()
        assert int((q > y.abs()).sum()) == expected_dither(float(y[0]))
        assert torch.equal(q[1:] >= q[:-1], torch.ones(255, dtype=torch.bool))
        codes = encode_e2m1_stochastic(signed, ALL_BYTES)
        assert set((codes >> 3).tolist()) == {int(signed[0] < 0)}


def test_fixed_points_ignore_the_bytes():
    grid = decode_e2m1(torch.arange(16, dtype=torch.uint8))
    edge = torch.tensor([6.0, -6.0, 6.375, 7.0, -1e30, math.inf, -math.inf, math.nan, -math.nan])
    for y in (*grid, *edge):
        codes = encode_e2m1_stochastic(y.expand(256), ALL_BYTES)
        assert_same_bits(codes, encode_e2m1(y.expand(256)))


def test_never_further_than_a_step():
    y = torch.rand(4096, generator=torch.Generator().manual_seed(1)) * 12 - 6
    r8 = torch.randint(0, 256, (4096,), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    q = decode_e2m1(encode_e2m1_stochastic(y, r8))
    step = torch.where(y.abs() < 2, 0.5, torch.where(y.abs() < 4, 1.0, 2.0))
    assert bool(((q - y).abs() <= step).all())


def test_halfway_values_split_evenly():
    draws = []
    for offset in range(32):
        state = RandomState(11, offset)
        r8 = random_bytes(state, torch.arange(64), 64).flatten()
        draws.append(decode_e2m1(encode_e2m1_stochastic(torch.full((65536,), 1.25), r8)))
    q = torch.stack(draws)
    assert abs(float(q.mean()) - 1.25) < 0.01
    assert 0.45 < float((q == 1.5).float().mean()) < 0.55


def scaled_draws(x: torch.Tensor, count: int) -> torch.Tensor:
    return torch.stack([dequantize(quantize(x, PROFILES["rsr"], seed=3, offset=o)[0]) for o in range(count)])


def test_the_mean_of_draws_beats_nearest_beats_one_draw():
    x = matrix(64, 256, seed=1)
    draws, nearest = scaled_draws(x, 64), dequantize(quantize(x, QuantRecipe())[0])

    def rmse(v):
        return float((v - x.float()).square().mean().sqrt())

    assert rmse(draws.mean(0)) < rmse(nearest) / 3 < rmse(nearest) < rmse(draws[0])


def test_draws_follow_the_dither_probability():
    """z-scores of the mean of 256 draws against g + step * D / 256."""
    y = torch.rand(4096, generator=torch.Generator().manual_seed(5)) * 6
    low = torch.where(y < 2, (y * 2).floor() / 2, torch.where(y < 4, y.floor(), torch.full_like(y, 4)))
    step = torch.where(y < 2, 0.5, torch.where(y < 4, 1.0, 2.0))
    up = torch.tensor([expected_dither(v) / 256 for v in y.tolist()], dtype=torch.float64)
    total = torch.zeros(4096, dtype=torch.float64)
    for offset in range(256):
        r8 = random_bytes(RandomState(17, offset), torch.arange(16), 16).flatten()
        total += decode_e2m1(encode_e2m1_stochastic(y, r8))
    noise = step.double() * (up * (1 - up) / 256).sqrt()
    keep = noise > 0
    z = ((total / 256 - low - step * up) / noise)[keep]
    assert abs(float(z.mean())) < 3 / math.sqrt(len(z)) and abs(float(z.std()) - 1) < 0.04


def test_bias_is_the_truncated_part_of_a_step():
    y = torch.rand(1 << 18, generator=torch.Generator().manual_seed(6)) * 6
    step = torch.where(y < 2, 0.5, torch.where(y < 4, 1.0, 2.0))
    low = torch.where(y < 2, (y * 2).floor() / 2, torch.where(y < 4, y.floor(), torch.full_like(y, 4)))
    fraction = 256 * (y - low).double() / step
    expectation = low + step * fraction.floor() / 256
    assert float((expectation - y).mean()) == pytest.approx(-0.00227, abs=5e-5)
    for start in range(0, 256, 85):  # the rule at a few bytes, on all values
        q = decode_e2m1(encode_e2m1_stochastic(y, torch.full(y.shape, start, dtype=torch.int32)))
        assert torch.equal(q > low, fraction.floor() + start >= 256)


def test_only_codes_change():
    x = normal(101, (256, 256))
    for name in ("te1d", "pt", "ao", "te2d", "4o6-mae-256", "4o6-mse-448-2d", "4o6-mse-256-row"):
        recipe = PROFILES[name]
        nearest = quantize(x, recipe, columnwise=True)
        stochastic = quantize(x, recipe.replace(rounding="stochastic"), columnwise=True, seed=9)
        for n, s in zip(nearest, stochastic, strict=True):
            assert_same_bits(s.block_scales.view(torch.uint8), n.block_scales.view(torch.uint8), name)
            assert_same_bits(s.amax, n.amax, name)
            assert 0.3 < float((s.codes != n.codes).float().mean()) < 0.6, name


def test_share_of_changed_bytes():
    x = normal(101, (1024, 1024))
    nearest, one = quantize(x, QuantRecipe())[0], quantize(x, PROFILES["rsr"], seed=1)[0]
    assert float((one.codes != nearest.codes).float().mean()) == pytest.approx(0.413, abs=0.01)
    assert float((decoded(one) != decoded(nearest)).float().mean()) == pytest.approx(0.234, abs=0.01)


def test_offsets_and_repeatability():
    x, recipe = matrix(64, 64, seed=2), PROFILES["rsr"]
    row, column = quantize(x, recipe, columnwise=True, seed=5, offset=10)
    assert_same_operand(quantize(x, recipe, seed=5, offset=10)[0], row)
    assert not torch.equal(quantize(x, recipe, seed=5, offset=11)[0].codes, row.codes)
    assert not torch.equal(quantize(x, recipe, seed=6, offset=10)[0].codes, row.codes)
    # the columnwise copy is the rowwise copy of the transpose at the next offset
    assert_same_operand(column, quantize(x.t(), recipe, seed=5, offset=11)[0])
    # and does not move when it is made alone
    assert_same_operand(quantize(x, recipe, rowwise=False, columnwise=True, seed=5, offset=10)[1], column)
    assert_same_operand(quantize(x, QuantRecipe())[0], quantize(x, QuantRecipe(), seed=77, offset=3)[0])


def test_large_seeds_and_offsets_count_modulo_64_bits():
    x, recipe = matrix(16, 32, seed=2), PROFILES["rsr"]
    first = quantize(x, recipe, seed=-1, offset=-1, columnwise=True)
    second = quantize(x, recipe, seed=2**64 - 1, offset=2**64 - 1, columnwise=True)
    third = quantize(x, recipe, seed=torch.tensor(-1), offset=torch.tensor(-1), columnwise=True)
    for a, b, c in zip(first, second, third, strict=True):
        assert_same_operand(a, b)
        assert_same_operand(a, c)
    assert_same_operand(first[1], quantize(x.t(), recipe, seed=-1, offset=0)[0])
