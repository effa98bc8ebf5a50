"""Every recipe, both copies, against the element-by-element oracle."""

import pytest
import torch

from cutefp4.format import unpack_codes
from cutefp4.reference import quantize
from tests.cases import all_recipes, matrix, specials
from tests.compare import assert_same_bits
from tests.reference.scalar_oracle import scalar_quantize

RECIPES = list(all_recipes())
SEED, OFFSET = -3, (1 << 32) - 1  # a negative seed, and a columnwise offset that carries into the high word
# Odd strides through RECIPES mix all of its fields, whose choices alternate with even periods.


def check(x: torch.Tensor, recipe) -> None:
    operands = quantize(x, recipe, columnwise=True, seed=SEED, offset=OFFSET)
    expected = scalar_quantize(x.float().tolist(), recipe, SEED, OFFSET)
    for name, got, want in zip(("rowwise", "columnwise"), operands, expected, strict=True):
        what = f"{name} {recipe.describe()}"
        amax = torch.tensor([float(a) for a in want.amax], dtype=torch.float32)
        assert_same_bits(got.row_amax().contiguous(), amax, f"{what} amax")
        scales = torch.tensor(want.scales, dtype=torch.uint8)
        assert_same_bits(got.compact_scales().view(torch.uint8), scales, f"{what} scales")
        assert_same_bits(unpack_codes(got.codes), torch.tensor(want.codes, dtype=torch.uint8), f"{what} codes")
        assert got.scaling == recipe.scaling and got.e4m3_max == recipe.e4m3_max
        assert got.rht == (recipe.rht_sign_mask if recipe.rht != "none" and name == "columnwise" else None)


@pytest.mark.parametrize("part", range(8))
def test_every_recipe(part):
    """Rows of different magnitude, so that block scales of all sizes occur, some of them zero."""
    x = matrix(32, 32, "heavy", seed=part)
    for recipe in RECIPES[part::8]:
        check(x[:, :16] if recipe.block == "1d" and recipe.four_over_six == "none" else x, recipe)


@pytest.mark.parametrize("kind", ["ties", "zeros", "distinct", "row_scaled"])
def test_other_data(kind):
    for recipe in RECIPES[::25]:
        check(matrix(32, 16, kind, seed=7, dtype=torch.float16 if kind == "ties" else torch.float32), recipe)


@pytest.mark.parametrize("inf", [True, False])
def test_special_values(inf):
    """NaN, Inf, -0, subnormals and extremes; without the transform, which would mix them into NaN."""
    for recipe in RECIPES[::17]:
        check(specials(32, 16, inf=inf), recipe.replace(rht="none"))


@pytest.mark.parametrize("mask", [0x0000, 0xFFFF, 0xACE1, 0x0001])
def test_sign_masks(mask):
    for recipe in RECIPES:
        if recipe.rht != "none" and recipe.four_over_six == "none" and recipe.arithmetic == "te":
            check(matrix(32, 16, seed=mask), recipe.replace(rht_sign_mask=mask))


@pytest.mark.parametrize("scale", [2.0**-126, 2.0**-118, 2.0**-40, 2.0**100])
def test_tiny_and_huge_tensors(scale):
    """Below an amax of 8e-36 the outer scale is clamped, and subnormals take part."""
    x = (matrix(32, 16, seed=3, dtype=torch.float32) * scale).bfloat16()
    for recipe in RECIPES[::25]:
        check(x, recipe)
