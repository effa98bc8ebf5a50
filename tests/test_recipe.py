"""Recipes: what is accepted, what is refused and with which words, the named ones."""

import dataclasses

import pytest

from cutefp4.errors import CuteFP4Error, RecipeError
from cutefp4.recipe import NAMED, RHT_SIGN_MASK, QuantRecipe, named_recipe
from tests.cases import PROFILES, all_recipes


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"scaling": "row"}, ["scaling='row'", "'tensor', 'token'"]),
        ({"block": "3d"}, ["block='3d'", "'1d', '2d'"]),
        ({"arithmetic": "fast"}, ["arithmetic='fast'", "'te', 'per_token', 'torchao'"]),
        ({"rht": "fp16"}, ["rht='fp16'", "'bf16', 'fp32'"]),
        ({"rounding": "up"}, ["rounding='up'", "'nearest', 'stochastic'"]),
        ({"four_over_six": "max"}, ["four_over_six='max'", "'mae', 'mse'"]),
        ({"four_over_six_error": "exact"}, ["four_over_six_error='exact'", "'strict', 'fast'"]),
        ({"four_over_six_columnwise": "own"}, ["four_over_six_columnwise='own'", "'shared', 'recomputed'"]),
        ({"e4m3_max": 240}, ["e4m3_max=240", "448, 256"]),
        ({"e4m3_max": 448.0}, ["e4m3_max=448.0", "448, 256"]),
        ({"scaling": ["token"]}, ["scaling=['token']", "'tensor', 'token'"]),
        ({"rht_sign_mask": "0xD7E8"}, ["rht_sign_mask='0xD7E8'", "an integer"]),
        ({"scale_layout": "swizzled"}, ["scale_layout='swizzled'", "'tiled', 'compact'"]),
        ({"rht_sign_mask": 0x1D7E8}, ["rht_sign_mask=0x1d7e8", "0xFFFF"]),
        ({"rht": "bf16", "block": "2d"}, ["block='2d'", "without rht", "transposes"]),
        ({"four_over_six": "mae", "arithmetic": "torchao"}, ["arithmetic='torchao'", "'te' or 'per_token'"]),
    ],
)
def test_refused(fields, words):
    with pytest.raises(RecipeError) as error:
        QuantRecipe(**fields)
    for word in (*words, "accepted:", "to fix:"):
        assert word in str(error.value)
    assert isinstance(error.value, CuteFP4Error) and isinstance(error.value, ValueError)


def test_recipes_are_frozen_and_hashable():
    recipes = list(all_recipes())
    assert len(set(recipes)) == len(recipes) > 400
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipes[0].scaling = "token"


def test_every_field_changes_equality():
    base = QuantRecipe()
    other = {
        "scaling": "token",
        "block": "2d",
        "arithmetic": "torchao",
        "rht": "fp32",
        "rht_sign_mask": 0,
        "rounding": "stochastic",
        "four_over_six": "mse",
        "four_over_six_error": "fast",
        "four_over_six_columnwise": "recomputed",
        "e4m3_max": 256,
        "scale_layout": "compact",
    }
    assert set(other) == {f.name for f in dataclasses.fields(base)}
    for name, value in other.items():
        changed = base.replace(**{name: value})
        assert changed != base and getattr(changed, name) == value
        assert changed.describe() == f"{name}={value!r}"
    assert base.describe() == "defaults"


def test_named_recipes():
    te = named_recipe("te")
    assert (te.x.rht, te.w.rht, te.dy.rht) == ("bf16", "none", "bf16")
    assert (te.x.block, te.w.block, te.dy.block) == ("1d", "2d", "1d")
    assert (te.x.rounding, te.w.rounding, te.dy.rounding) == ("nearest", "nearest", "stochastic")
    assert te.x.rht_sign_mask == te.dy.rht_sign_mask == RHT_SIGN_MASK == 0xD7E8
    token = named_recipe("per_token")
    assert all(r == QuantRecipe(scaling="token", arithmetic="per_token") for r in (token.x, token.w, token.dy))
    for name, plain in (("te_4over6", te), ("per_token_4over6", token)):
        for changed, base in zip(*(vars(r).values() for r in (named_recipe(name), plain)), strict=True):
            assert changed == base.replace(four_over_six="mae", e4m3_max=256)
    with pytest.raises(RecipeError, match="recipe 'nvidia'.*te, per_token, te_4over6, per_token_4over6"):
        named_recipe("nvidia")
    assert len({hash(r) for r in NAMED.values()}) == len(NAMED)


def test_profiles_of_the_tests_are_all_meaningful():
    assert len(PROFILES) > 30 and len(set(PROFILES.values())) == len(PROFILES)
