"""The rowwise cast against the oracle: arithmetics, layouts, dtypes, shapes, ties' neighbours, special values."""

import pytest
import torch

from cutefp4.recipe import QuantRecipe
from tests import cases
from tests.kernels.machines import check, on_gpu, on_machines

TE = QuantRecipe()
TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")
RECIPES = [
    TE,
    TOKEN,
    TE.replace(scale_layout="compact", arithmetic="torchao"),
    TOKEN.replace(arithmetic="te", e4m3_max=256, scale_layout="compact"),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Every recipe and every dtype once; the GPU tests take all combinations.
PAIRS = pytest.mark.parametrize(
    ("recipe", "dtype"),
    list(zip(RECIPES, [DTYPES[0], *DTYPES], strict=True)),
    ids=lambda v: getattr(v, "describe", v.__str__)(),
)


@on_machines
@PAIRS
def test_equals_the_oracle(machine, recipe, dtype):
    for kind in ("heavy", "ties"):
        for rows, k in ((3, 16), (5, 80), (9, 1040)):
            check(machine, cases.matrix(rows, k, kind, rows, dtype), recipe)


@on_gpu
@pytest.mark.parametrize("recipe", RECIPES, ids=QuantRecipe.describe)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_shapes(machine, recipe, dtype):
    shapes = [
        *cases.odd_shapes(12, largest=2000),
        (1, 7168),
        (64, 7168),
        (300, 2112),
        (129, 16),
        (2, 8192),
        (1000, 6144),
    ]
    for rows, k in shapes:
        check(machine, cases.matrix(rows, k, "row_scaled", k, dtype), recipe)


@on_machines
@pytest.mark.parametrize("recipe", [TE, TOKEN], ids=QuantRecipe.describe)
def test_rows_longer_than_a_cta_holds(machine, recipe):
    check(machine, cases.matrix(2, 33 * 1024 + 16, "row_scaled", 3), recipe)


@on_gpu
@pytest.mark.parametrize("recipe", RECIPES, ids=QuantRecipe.describe)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_special_values(machine, recipe, dtype):
    test_special_values(machine, recipe, dtype)


@on_machines
@PAIRS
def test_special_values(machine, recipe, dtype):
    check(machine, cases.specials(dtype=dtype), recipe)
    check(machine, cases.specials(dtype=dtype, inf=False), recipe)
    check(machine, -cases.specials(dtype=dtype), recipe)
    check(machine, cases.matrix(4, 64, "zeros", dtype=dtype), recipe)
    check(machine, cases.edge_row().to(dtype), recipe)


def tie_neighbours() -> torch.Tensor:
    """fp32 (n, 16): under a scale of 1 every tie of the grid, and its neighbours up to 3 ulps, both signs."""
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    bits = ties.view(torch.int32)[:, None] + torch.arange(-3, 4, dtype=torch.int32)
    values = torch.cat((bits.flatten().view(torch.float32), torch.tensor([0.0, 1e-30, 1e-42, 0.25 + 2**-25])))
    values = torch.cat((values, -values))
    values = torch.nn.functional.pad(values, (0, -len(values) % 15))
    blocks = values.view(-1, 15)
    return torch.cat((torch.full((len(blocks), 1), 6.0), blocks), dim=1)


@on_machines
def test_ties_and_their_neighbours(machine):
    """With amax = 6 * 448 the encode scale is 1, and a block maximum of 6 has the scale 1."""
    x = tie_neighbours()
    amax = torch.tensor(6.0 * 448)
    check(machine, x, TE, amax=amax)
    for exponent in (-20, 7, 60):
        check(machine, x * 2.0**exponent, TE, amax=amax * 2.0**exponent)


@on_machines
@pytest.mark.parametrize("recipe", [TE, TOKEN], ids=QuantRecipe.describe)
def test_extreme_amaxes(machine, recipe):
    x = cases.matrix(8, 64, "heavy", 1, torch.float32)
    for scale in (1e-44, 1e-38, 3e-36, 1e-13, 1e30, 3e35):
        check(machine, x * (scale / x.abs().max()), recipe)
    x = cases.matrix(8, 64, "normal", 1, torch.float32)
    check(machine, x * (3.4e38 / x.abs().max()), recipe)


@on_machines
def test_given_amaxes(machine):
    x = cases.matrix(20, 96, "row_scaled", 9)
    check(machine, x, TE, amax=torch.tensor(3.7))
    check(machine, x, TOKEN, amax=torch.linspace(0, 5, 20))


@on_machines
@pytest.mark.parametrize("recipe", [TE, TOKEN], ids=QuantRecipe.describe)
def test_strided_and_misaligned_rows(machine, recipe):
    check(machine, cases.strided(cases.matrix(10, 160, "distinct")), recipe)
    wide = cases.matrix(6, 77, "distinct", dtype=torch.float32)
    check(machine, wide[:, 3:67], recipe)
    check(machine, wide.half()[:, 3:67], recipe)
    check(machine, cases.matrix(64, 32, "distinct").t(), recipe)


@on_machines
def test_batch(machine):
    check(machine, cases.batch(3, 20, 64), TOKEN)
    check(machine, cases.batch(3, 20, 64), TE)
