"""How to quantise: `QuantRecipe`, and the named recipes for training."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from cutefp4.errors import RecipeError
from cutefp4.format import E4M3_MAX, E4M3_MAX_CHOICES
from cutefp4.scale_layout import LAYOUTS

RHT_SIGN_MASK = 0xD7E8
"""Signs of the 16 rows of the random Hadamard transform; bit i set means -1. TransformerEngine's constant."""

_CHOICES = {
    "scaling": ("tensor", "token"),
    "block": ("1d", "2d"),
    "arithmetic": ("te", "per_token", "torchao"),
    "rht": ("none", "bf16", "fp32"),
    "rounding": ("nearest", "stochastic"),
    "four_over_six": ("none", "mae", "mse"),
    "four_over_six_error": ("strict", "fast"),
    "four_over_six_columnwise": ("shared", "recomputed"),
    "e4m3_max": E4M3_MAX_CHOICES,
    "scale_layout": LAYOUTS,
}


@dataclass(frozen=True)
class QuantRecipe:
    """How one tensor is quantised. Frozen and hashable; every field is part of the compile key.

    Attributes:
        scaling: scope of the outer amax: the whole tensor, or "token": one per row of the rowwise copy and one per
            column of the input for the columnwise copy.
        block: "1d" = 1x16 along the contraction axis; "2d" = 16x16, so that both copies share their scales and are
            exact transposes of each other (weights). With scaling="token", 2d uses the tensor's amax for every row.
        arithmetic: the order of fp32 operations, byte-exact to its source and never mixed: "te" (TransformerEngine),
            "per_token" (one division per block; amax floored at 1e-12 for the scale), "torchao" (decode convention;
            scales floored at 2^-6).
        rht: random Hadamard transform of 16 elements along the contraction axis of the columnwise copy: "bf16" rounds
            the transformed values to bf16, "fp32" keeps them.
        rht_sign_mask: 16 signs of the transform, bit i set = -1; both operands of a GEMM must use the same.
        rounding: "nearest" (ties to even) or "stochastic" (Philox4x32-10, 8 random bits an element; scales stay
            nearest).
        four_over_six: per block, try the scale that maps the block's amax to 4 beside the one that maps it to 6, and
            keep the one with the smaller "mae" or "mse" error. Replaces the scale and encode order of `arithmetic`.
        four_over_six_error: "strict" measures in input units, "fast" in scaled units.
        four_over_six_columnwise: for block="2d": "shared" = one decision per 16x16 tile, made by the rowwise pass, so
            that both copies agree; "recomputed" = the columnwise pass sums its errors along columns
            (TransformerEngine's way).
        e4m3_max: the block scale that the outer scale aims at, 448 or 256; travels with the tensor into the GEMM.
        scale_layout: "tiled" (128x4, what tensor cores read) or "compact".

    Raises:
        RecipeError: an unknown value, or a combination that has no meaning.
    """

    scaling: str = "tensor"
    block: str = "1d"
    arithmetic: str = "te"
    rht: str = "none"
    rht_sign_mask: int = RHT_SIGN_MASK
    rounding: str = "nearest"
    four_over_six: str = "none"
    four_over_six_error: str = "strict"
    four_over_six_columnwise: str = "shared"
    e4m3_max: int = E4M3_MAX
    scale_layout: str = "tiled"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if (type(value), value) not in [(type(choice), choice) for choice in choices]:  # 448.0 would be another key
                raise RecipeError(
                    f"QuantRecipe({name}={value!r})", ", ".join(map(repr, choices)), f"choose one of these for {name}"
                )
        whole = type(self.rht_sign_mask) is int
        if not whole or not 0 <= self.rht_sign_mask <= 0xFFFF:
            given = f"{self.rht_sign_mask:#x}" if whole else repr(self.rht_sign_mask)
            raise RecipeError(
                f"QuantRecipe(rht_sign_mask={given})",
                "an integer of 16 bits, 0 to 0xFFFF",
                "drop the upper bits",
            )
        if self.rht != "none" and self.block == "2d":
            raise RecipeError(
                f"QuantRecipe(rht={self.rht!r}, block='2d')",
                "rht with block='1d', or block='2d' without rht",
                "2-D blocks exist so that both copies are transposes of each other; a transformed copy cannot be",
            )
        if self.four_over_six != "none" and self.arithmetic == "torchao":
            raise RecipeError(
                f"QuantRecipe(four_over_six={self.four_over_six!r}, arithmetic='torchao')",
                "four_over_six with arithmetic 'te' or 'per_token'",
                "4over6 brings its own scale arithmetic, which has no torchao form",
            )

    def replace(self, **changes) -> QuantRecipe:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def describe(self) -> str:
        """The fields that differ from the defaults, e.g. `token 2d 4over6=mae/256`."""
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return ", ".join(changed) or "defaults"


@dataclass(frozen=True)
class TrainingRecipe:
    """The three recipes of a linear layer: activations x, weights w, output gradients dy."""

    x: QuantRecipe = field(default_factory=QuantRecipe)
    w: QuantRecipe = field(default_factory=QuantRecipe)
    dy: QuantRecipe = field(default_factory=QuantRecipe)

    def with_four_over_six(self, metric: str = "mae", e4m3_max: int = 256, error: str = "strict") -> TrainingRecipe:
        """The same recipe with 4over6 on all three tensors."""
        changes = {"four_over_six": metric, "e4m3_max": e4m3_max, "four_over_six_error": error}
        return TrainingRecipe(self.x.replace(**changes), self.w.replace(**changes), self.dy.replace(**changes))


TE = TrainingRecipe(
    x=QuantRecipe(rht="bf16"),
    w=QuantRecipe(block="2d"),
    dy=QuantRecipe(rht="bf16", rounding="stochastic"),
)
"""TransformerEngine's NVFP4 defaults: per-tensor, 2-D weights, RHT on wgrad operands, stochastic dY."""

_PER_TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")
PER_TOKEN = TrainingRecipe(x=_PER_TOKEN, w=_PER_TOKEN, dy=_PER_TOKEN)
"""One outer amax per row and per column, no transform, nearest rounding."""

TE_4OVER6 = TE.with_four_over_six()
PER_TOKEN_4OVER6 = PER_TOKEN.with_four_over_six()

NAMED = {"te": TE, "per_token": PER_TOKEN, "te_4over6": TE_4OVER6, "per_token_4over6": PER_TOKEN_4OVER6}
"""The shipped training recipes by name."""


def named_recipe(name: str) -> TrainingRecipe:
    """A shipped training recipe.

    Raises:
        RecipeError: no recipe has this name.
    """
    if not isinstance(name, str) or name not in NAMED:
        raise RecipeError(f"recipe {name!r}", ", ".join(NAMED), "choose one of these names")
    return NAMED[name]
