"""4over6: candidates, error paths, order of summation, sharing between copies, combinations."""

import pytest
import torch

from cutefp4.format import numerator, unpack_codes
from cutefp4.recipe import QuantRecipe
from cutefp4.reference import quantize, sqnr_db
from cutefp4.reference.block_scale import block_amax
from cutefp4.reference.dequantize import dequantize
from cutefp4.reference.four_over_six import candidates, choose_four, line_errors, tile_errors
from tests.cases import PROFILES, edge_row, golden, matrix, normal
from tests.compare import assert_same_bits, assert_same_operand

METRICS = ("mae", "mse")


def picks(x: torch.Tensor, recipe: QuantRecipe) -> torch.Tensor:
    """Where map-to-4 was chosen, told from the stored scales; bool (rows, blocks) where the candidates differ."""
    operand = quantize(x, recipe)[0]
    pairs = candidates(block_amax(x.float(), recipe.block), operand.amax, recipe.e4m3_max)
    scales = operand.compact_scales().view(torch.uint8)
    four, six = (pairs[t][0].view(torch.uint8) for t in (4, 6))
    assert bool(((scales == four) | (scales == six)).all())
    return (scales == four) & (four != six)


@pytest.mark.parametrize(
    "metric, top, expected", [("mae", 256, 0.338), ("mse", 256, 0.452), ("mae", 448, 0.341), ("mse", 448, 0.454)]
)
def test_share_of_map_to_four_on_gaussian_blocks(metric, top, expected):
    x = normal(101, (1024, 1024))
    recipe = QuantRecipe(four_over_six=metric, e4m3_max=top)
    assert float(picks(x, recipe).float().mean()) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("top, largest", [(448, 448), (256, 384)])
def test_scales_under_each_maximum(top, largest):
    x = matrix(64, 256, seed=1)
    amax = x.float().abs().amax()
    pairs = candidates(block_amax(x.float(), "1d"), amax, top)
    assert float(pairs[6][0].float().max()) == top and float(pairs[4][0].float().max()) == largest
    # a block at the amax itself maps to 6 * top / 6, or 1.5 times that
    assert_same_bits(candidates(amax.view(1, 1), amax, top)[4][0].float(), torch.tensor([[float(largest)]]))


def test_edge_blocks():
    """A zero block ties and takes 6; nonzero elements of an underflown block saturate, as in the te arithmetic."""
    for metric in METRICS:
        operand = quantize(edge_row(), QuantRecipe(four_over_six=metric, scale_layout="compact"))[0]
        codes = unpack_codes(operand.codes)[0].tolist()
        assert operand.block_scales.view(torch.uint8)[0, :3].tolist() == [0x7E, 0, 0]
        assert codes[16:18] == [7, 15] and codes[32:34] == [0, 8]


def test_zero_scale_may_have_a_candidate_of_four():
    """base between 2**-10 / 1.5 and 2**-10: map-to-6 underflows to 0, map-to-4 does not."""
    pairs = candidates(torch.tensor([[6 * 0.0008]]), torch.tensor(numerator(448)), 448)
    assert float(pairs[6][0].float()) == 0 and float(pairs[4][0].float()) == 2.0**-9


@pytest.mark.parametrize("top", [448, 256])
@pytest.mark.parametrize("metric", METRICS)
def test_no_block_is_worse_than_plain_in_its_metric(metric, top):
    """Measured in exact arithmetic, up to near-ties that fp32 cannot tell apart."""
    x = golden("student_t3")[:256]

    def errors(recipe):
        d = (dequantize(quantize(x, recipe)[0]).double() - x.double()).abs()
        return (d if metric == "mae" else d * d).view(256, 64, 16).sum(-1)

    recipe = QuantRecipe(four_over_six=metric, e4m3_max=top)
    best, four_only = errors(recipe), picks(x, recipe)
    pairs = candidates(block_amax(x.float(), "1d"), x.float().abs().amax(), top)
    outer = x.float().abs().amax()
    err = {t: line_errors(x.float().view(256, 64, 16), *pairs[t], outer, recipe) for t in (4, 6)}
    assert bool((best <= torch.minimum(err[4], err[6]).double() * (1 + 1e-4) + 1e-12).all())
    assert 0.1 < float(four_only.float().mean()) < 0.6


def test_errors_are_added_in_ascending_order():
    """One large error first, then 15 that each vanish beside it, but would not if they were added to each other."""
    values = torch.zeros(1, 1, 16)
    values[0, 0, 0] = 2.0**24 + 2.0**23
    values[0, 0, 1:] = 1.0
    scale, multiplier = torch.ones(1, 1).to(torch.float8_e4m3fn), torch.zeros(1, 1)  # every code 0: errors = |values|
    recipe = QuantRecipe(four_over_six="mae")
    ascending = line_errors(values, scale, multiplier, torch.tensor(1.0), recipe)
    descending = line_errors(values.flip(-1), scale, multiplier, torch.tensor(1.0), recipe)
    assert float(ascending) == 2.0**24 + 2.0**23  # each 1 is half an ulp at most, and ties to even
    assert float(descending) == 2.0**24 + 2.0**23 + 16


def test_squares_are_rounded_before_they_are_added():
    a, b = 1 + 2.0**-12, 2.0**-13
    values = torch.zeros(1, 1, 16)
    values[0, 0, 0], values[0, 0, 1] = a, b
    recipe = QuantRecipe(four_over_six="mse")
    args = (torch.ones(1, 1).to(torch.float8_e4m3fn), torch.zeros(1, 1), torch.tensor(1.0), recipe)
    square = torch.tensor(a) * torch.tensor(a)
    assert float(line_errors(values, *args)) == float(square + torch.tensor(b) * torch.tensor(b))
    assert float(square) != a * a  # the exact sum, as an FMA would keep it, is another number


def test_tile_sums_use_the_fixed_tree():
    lines = matrix(32, 3, seed=5, dtype=torch.float32).abs() * 10.0 ** torch.arange(-16, 16).view(32, 1)
    got = tile_errors(lines)
    for tile in range(2):
        for block in range(3):
            v = lines[16 * tile : 16 * tile + 16, block]
            for half in (8, 4, 2, 1):
                v = v[:half] + v[half : 2 * half]
            assert float(got[tile, block]) == float(v[0])


@pytest.mark.parametrize("block", ["1d", "2d"])
@pytest.mark.parametrize("top", [448, 256])
@pytest.mark.parametrize("metric", METRICS)
def test_fast_errors_agree_with_strict_ones_almost_always(metric, top, block):
    x = normal(5, (1024, 1024))
    recipe = QuantRecipe(four_over_six=metric, e4m3_max=top, block=block)
    strict, fast = (quantize(x, recipe.replace(four_over_six_error=e))[0] for e in ("strict", "fast"))
    same = (strict.block_scales.view(torch.uint8) == fast.block_scales.view(torch.uint8)).float().mean()
    assert float(same) > (0.9995 if block == "1d" else 0.999)


@pytest.mark.parametrize("kind", ["normal", "row_scaled", "heavy"])
@pytest.mark.parametrize("metric", METRICS)
def test_shared_decisions_are_those_of_the_rowwise_pass(metric, kind):
    x = matrix(96, 64, kind, seed=6)
    recipe = QuantRecipe(four_over_six=metric, block="2d", scale_layout="compact")
    row, column = quantize(x, recipe, columnwise=True)
    alone = quantize(x, recipe, rowwise=False, columnwise=True)[1]
    assert_same_operand(alone, column)
    assert_same_bits(unpack_codes(column.codes), unpack_codes(row.codes).t().contiguous())
    tiles = row.block_scales.view(torch.uint8)[::16]
    assert_same_bits(column.block_scales.view(torch.uint8)[::16], tiles.t().contiguous())


def near_tie_tile(outer: torch.Tensor) -> torch.Tensor:
    """A 16x16 matrix where summing the errors along rows and along columns decides differently.

    On the way from a tile that takes 4 to one that takes 6 (of the same block amax, so that the errors are continuous)
    the decision flips, and near the flip the two error sums differ by less than their roundings.
    """
    recipe, count = QuantRecipe(four_over_six="mae", block="2d"), 1024

    def decisions(tiles):
        return quantize(tiles.reshape(-1, 16), recipe, amax=outer)[0].compact_scales().view(torch.uint8)[::16, 0]

    noise = torch.stack([matrix(16, 16, seed=seed, dtype=torch.float32) for seed in range(20)]) * 0.05
    likes_six = matrix(16, 16, "ties", seed=1, dtype=torch.float32).round() / 2  # on the grid of map-to-6
    likes_four = torch.full((16, 16), 2.5)  # 5 on the grid of map-to-6, its worst place
    for change in noise:
        start, end = likes_six + change, likes_four + change
        start[0, 0] = end[0, 0] = 3.0
        assert decisions(start) != decisions(end)
        low, high = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        for _ in range(4):
            t = (low + (high - low) * torch.linspace(0, 1, count, dtype=torch.float64)).view(-1, 1, 1)
            tiles = (start + t * (end - start).double()).float()
            by_row, by_column = decisions(tiles), decisions(tiles.mT)
            disagree = (by_row != by_column).nonzero()
            if disagree.numel():
                return tiles[int(disagree[0])]
            place = int((by_row[1:] != by_row[:-1]).nonzero()[0])
            low, high = t[place, 0, 0], t[place + 1, 0, 0]
    raise AssertionError("no tile found whose copies disagree")


def test_recomputed_decisions_may_differ_between_copies_and_shared_ones_never():
    outer = torch.tensor(8.0)
    x = near_tie_tile(outer)
    recipe = QuantRecipe(four_over_six="mae", block="2d")
    row, column = quantize(x, recipe, columnwise=True, amax=outer)
    assert_same_bits(unpack_codes(column.codes), unpack_codes(row.codes).t().contiguous())
    own = quantize(x, recipe.replace(four_over_six_columnwise="recomputed"), columnwise=True, amax=outer)
    assert_same_operand(own[0], row)
    assert float(own[1].compact_scales().float()[0, 0]) != float(row.compact_scales().float()[0, 0])
    assert_same_operand(own[1], quantize(x.t().contiguous(), recipe, amax=outer)[0])


def test_columns_that_are_no_multiple_of_sixteen():
    """A columnwise copy of a narrow matrix: the last tile's missing columns count as zeros."""
    x = matrix(32, 40, seed=3)
    wide = torch.nn.functional.pad(x, (0, 8))
    recipe = QuantRecipe(four_over_six="mae", block="2d", scale_layout="compact")
    narrow = quantize(x, recipe, rowwise=False, columnwise=True)[1]
    padded = quantize(wide, recipe, rowwise=False, columnwise=True)[1]
    assert_same_bits(narrow.codes, padded.codes[:40])
    assert_same_bits(narrow.block_scales.view(torch.uint8), padded.block_scales.view(torch.uint8)[:40])


def test_it_replaces_the_arithmetic():
    x = matrix(32, 64, "row_scaled", seed=2)
    for metric in METRICS:
        for scaling in ("tensor", "token"):
            recipe = QuantRecipe(four_over_six=metric, scaling=scaling, e4m3_max=256)
            a, b = (quantize(x, recipe.replace(arithmetic=v), columnwise=True) for v in ("te", "per_token"))
            for left, right in zip(a, b, strict=True):
                assert_same_operand(left, right)


def test_no_floor_under_the_amax():
    """Rows below 1e-12 keep full scales, unlike in the per_token arithmetic."""
    x = matrix(4, 64, seed=1, dtype=torch.float32) * 1e-14
    recipe = PROFILES["pt"].replace(four_over_six="mae")
    assert sqnr_db(dequantize(quantize(x, recipe)[0]), x) > 18
    assert sqnr_db(dequantize(quantize(x, PROFILES["pt"])[0]), x) < 3


@pytest.mark.parametrize("recipe", [PROFILES["4o6-mae-256"], PROFILES["4o6-mse-448-2d"], PROFILES["4o6-mse-256-row"]])
def test_stochastic_rounding_keeps_scales_and_their_expectation(recipe):
    x = matrix(64, 128, seed=3)
    nearest = quantize(x, recipe)[0]
    stochastic = recipe.replace(rounding="stochastic")
    mean = torch.zeros(64, 128, dtype=torch.float64)
    for offset in range(32):
        draw = quantize(x, stochastic, seed=1, offset=offset)[0]
        assert_same_bits(draw.block_scales.view(torch.uint8), nearest.block_scales.view(torch.uint8))
        mean += dequantize(draw).double() / 32
    assert sqnr_db(mean, x) > sqnr_db(dequantize(nearest), x) + 5


def test_picks_survive_nan_and_inf():
    x = matrix(32, 32, seed=1)
    x[0, 0], x[1, 1] = torch.nan, torch.inf
    for metric in METRICS:
        for error in ("strict", "fast"):
            recipe = QuantRecipe(four_over_six=metric, four_over_six_error=error, scaling="token")
            operand = quantize(x, recipe)[0]
            outer = operand.amax[:2].unsqueeze(-1)
            pairs = candidates(block_amax(x[:2].float(), "1d"), outer, 448)
            four = choose_four(x[:2].float().view(2, 2, 16), pairs, outer, recipe)
            assert not bool(four[0, 0]) and not bool(four[1, 0])  # an error of NaN takes 6
            assert not operand.compact_scales().float().isnan().any()
