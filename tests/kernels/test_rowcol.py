"""Both copies from one read, and the columnwise copy alone: 1x16 and 16x16 blocks, RHT, stochastic rounding, 4over6."""

import pytest
import torch

from cutefp4.format import E4M3_MAX, numerator
from cutefp4.recipe import QuantRecipe
from tests import cases
from tests.kernels.machines import check, on_gpu, on_machines

TE = QuantRecipe()
TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")
BOTH = {"rowwise": True, "columnwise": True}
RECIPES = [
    TE,
    TOKEN,
    TE.replace(block="2d"),
    TOKEN.replace(block="2d", scale_layout="compact"),
    TE.replace(arithmetic="torchao", scale_layout="compact"),
    TOKEN.replace(rounding="stochastic"),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Every recipe with one dtype; the GPU tests take all combinations.
PAIRS = pytest.mark.parametrize(
    ("recipe", "dtype"), list(zip(RECIPES, 2 * DTYPES, strict=True)), ids=lambda v: getattr(v, "describe", v.__str__)()
)


@on_machines
@PAIRS
def test_both_copies(machine, recipe, dtype):
    for rows, k in ((16, 16), (48, 80), (144, 208)):
        check(machine, cases.matrix(rows, k, "heavy", rows, dtype), recipe, seed=7, offset=3, **BOTH)


@on_gpu
@pytest.mark.parametrize("recipe", RECIPES, ids=QuantRecipe.describe)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_shapes(machine, recipe, dtype):
    for rows, k in [*cases.odd_shapes(8, multiple=(16, 16), largest=1500), (4096, 1536), (304, 2112)]:
        check(machine, cases.matrix(rows, k, "row_scaled", k, dtype), recipe, seed=2**40, offset=2**33, **BOTH)


@on_machines
@pytest.mark.parametrize("recipe", [TE, TOKEN, TE.replace(block="2d")], ids=QuantRecipe.describe)
def test_columnwise_alone_with_any_number_of_columns(machine, recipe):
    for rows, k, dtype in ((16, 1, DTYPES[0]), (32, 37, DTYPES[1]), (144, 131, DTYPES[2])):
        check(machine, cases.matrix(rows, k, "heavy", 1, dtype), recipe, rowwise=False, columnwise=True)


@on_machines
def test_two_dimensional_blocks_rowwise_alone(machine):
    for rows in (1, 17, 40):
        check(machine, cases.matrix(rows, 48, "heavy", 4), TE.replace(block="2d"))


@on_machines
@pytest.mark.parametrize(
    ("kind", "recipe"), [("bf16", TE), ("fp32", TOKEN), ("bf16", TE.replace(rounding="stochastic"))], ids=str
)
def test_hadamard(machine, kind, recipe):
    for mask in (0xD7E8, 0xACE1, 0):
        masked = recipe.replace(rht=kind, rht_sign_mask=mask)
        for rows, k in ((16, 16), (144, 80)):
            check(machine, cases.matrix(rows, k, "normal", rows), masked, seed=1, offset=2, **BOTH)
    check(machine, cases.matrix(48, 33, "normal", 8), masked, seed=1, offset=2, rowwise=False, columnwise=True)


@on_machines
@pytest.mark.parametrize("recipe", [TE, TE.replace(rounding="stochastic"), TOKEN], ids=QuantRecipe.describe)
def test_hadamard_of_hard_inputs(machine, recipe):
    """Zeros of both signs, sums that cancel, Inf and NaN, the ends of the range; rows and columns that fill no tile."""
    masks = (0xD7E8, 0xFFFF)
    generator = torch.Generator().manual_seed(3)
    whole = torch.randint(-2, 3, (48, 160), generator=generator).bfloat16()
    whole *= torch.where(torch.rand(48, 160, generator=generator) < 0.5, -1.0, 1.0).bfloat16()  # -0, too
    whole[:16, ::3], whole[16:32, 1::3] = 0.0, -0.0
    inputs = [whole, cases.specials(), whole * 2.0**125, whole * 2.0**-133, cases.matrix(272, 144, "normal", 11)]
    for x, mask in zip(inputs, 3 * masks, strict=False):
        check(machine, x, recipe.replace(rht="bf16", rht_sign_mask=mask), seed=1, offset=2, **BOTH)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hadamard_many_shapes(machine, dtype):
    for recipe in (TE.replace(rht="fp32"), TOKEN.replace(rht="fp32")):
        for rows, k in [(16, 16), (2048, 1024), (304, 2112)]:
            check(machine, cases.matrix(rows, k, "row_scaled", k, dtype), recipe, **BOTH)


@on_gpu
@pytest.mark.parametrize("recipe", RECIPES, ids=QuantRecipe.describe)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_special_values(machine, recipe, dtype):
    test_special_values(machine, recipe, dtype)


@on_machines
@PAIRS
def test_special_values(machine, recipe, dtype):
    check(machine, cases.specials(dtype=dtype), recipe, seed=1, offset=1, **BOTH)
    check(machine, -cases.specials(dtype=dtype, inf=False), recipe, seed=1, offset=1, **BOTH)


@on_machines
def test_given_amaxes(machine):
    x = cases.matrix(32, 64, "row_scaled", 9)
    check(machine, x, TE, amax=torch.tensor(3.7), **BOTH)
    check(machine, x, TE, amax=torch.tensor(3.7), columnwise_amax=torch.tensor(9.0), **BOTH)
    check(machine, x, TOKEN, amax=torch.linspace(0, 5, 32), **BOTH)
    check(machine, x, TOKEN, columnwise_amax=torch.linspace(0, 5, 64), **BOTH)
    check(machine, x, TE.replace(rht="fp32"), amax=torch.tensor(3.7), **BOTH)
    check(machine, x, TOKEN.replace(block="2d"), amax=torch.linspace(0, 5, 32), **BOTH)
    check(machine, x, TE.replace(block="2d"), amax=torch.tensor(3.7), columnwise_amax=torch.tensor(9.0), **BOTH)


@on_machines
def test_ties_and_saturation(machine):
    """Elements on the ties of the grid, and block scales so small that elements saturate."""
    for recipe in (TE, TOKEN, TE.replace(block="2d"), TE.replace(rounding="stochastic")):
        x = cases.matrix(48, 96, "ties", 3)
        check(machine, x, recipe, seed=1, offset=2, **BOTH)
        check(machine, x * 3, recipe, seed=1, offset=2, **BOTH)
    x = cases.matrix(32, 64, "heavy", 5)
    for factor in (0.01, 30.0):
        check(machine, x, TE, amax=x.float().abs().max() * factor, **BOTH)
        check(machine, x, TOKEN, amax=x.float().abs().amax(1) * factor, **BOTH)


def _rounds_to_ties(amax: float) -> list[torch.Tensor]:
    """16x16 blocks in whose first row and column fl(x * m) is a tie of E2M1 while x * m is not, for an outer amax."""
    scales = torch.arange(64, 72, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    integers = torch.arange(128, 256, dtype=torch.float64)
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], dtype=torch.float64)
    s_enc = numerator(E4M3_MAX) / torch.tensor(amax)
    exact = (1 / (scales * (1 / s_enc))).double()[:, None] * integers
    rounded = exact.float().double()
    down = torch.log2(rounded[..., None] / ties)
    blocks = []
    for i, j, t in ((down == down.round()) & (rounded != exact)[..., None]).nonzero().tolist():
        block = torch.zeros(16, 16)
        block[0, 1:4] = block[1:4, 0] = (integers[j] * 2.0 ** -down[i, j, t]).float()
        block[0, 4:8] = -block[0, 1]
        block[0, 0] = 6 * scales[i] / s_enc
        blocks.append(block.bfloat16())
    return blocks


@on_machines
def test_products_that_round_to_ties(machine):
    """A multiplication that is fused with the rounding to the grid does not see these ties."""
    for amax in (0.2062174528837204, 0.494290828704834, 37.95000076293945, 0.33541667461395264):
        known = {"amax": torch.tensor(amax), "columnwise_amax": torch.tensor(amax)}
        blocks = _rounds_to_ties(amax)
        assert blocks
        check(machine, torch.cat(blocks), TE, **known, **BOTH)


@on_machines
@pytest.mark.parametrize("recipe", [TE, TOKEN], ids=QuantRecipe.describe)
def test_ties_of_outer_amaxes_with_few_factors(machine, recipe):
    """Outer amaxes of 8 bits that are multiples of 3, 7 or 21 have block scales for which many products are ties."""
    generator = torch.Generator().manual_seed(2)
    for amax in (168.0, 147.0, 192.0, 126.0, 128.0):
        integers = torch.randint(-255, 256, (80, 96), generator=generator).float()
        x = integers * torch.exp2(torch.randint(-9, 1, (80, 96), generator=generator).float())
        x = x.clamp(-amax, amax).bfloat16()
        x[0], x[:, 1], x[2:4] = amax, amax / 2, x[2:4] / 64
        check(machine, x, recipe, **BOTH)


@on_machines
def test_one_exceptional_block_in_a_warp(machine):
    """The blocks beside it are encoded as carefully as it is; zeros, astronomic and tiny outer amaxes."""
    x = cases.matrix(64, 128, "normal", 6)
    x[3, 5], x[20, 40], x[21, 41] = float("nan"), float("inf"), -float("inf")
    for recipe in (TE, TOKEN):
        check(machine, x, recipe, amax=torch.tensor(3.5) if recipe is TE else None, **BOTH)
        for scale in (0.0, 2.0**90, 2.0**-90, 2.0**-125):
            check(machine, cases.matrix(64, 128, "row_scaled", 7) * scale, recipe, **BOTH)


@on_machines
def test_strided_misaligned_and_batched(machine):
    check(machine, cases.strided(cases.matrix(32, 160, "distinct")), TOKEN, **BOTH)
    wide = cases.matrix(32, 77, "distinct", dtype=torch.float32)
    check(machine, wide[:, 3:67], TE, **BOTH)
    check(machine, wide.half()[:, 3:67], TE.replace(rht="fp32"), **BOTH)
    check(machine, cases.batch(2, 32, 48), TOKEN, **BOTH)


@on_machines
def test_stochastic_states(machine):
    recipe = TE.replace(rounding="stochastic")
    x = cases.matrix(32, 64, "normal", 2)
    for seed, offset in ((0, 0), (-1, 2**63 - 1), (2**64 - 1, 2**63), (123, 2**32 - 1)):
        check(machine, x, recipe, seed=seed, offset=offset, **BOTH)
    check(machine, x, recipe, seed=torch.tensor(5), offset=torch.tensor(2**32 - 1), **BOTH)
    check(machine, cases.specials(), recipe, seed=1, offset=1)
