"""4over6 in every combination against the oracle."""

import itertools

import pytest
import torch

from cutefp4.recipe import QuantRecipe
from tests import cases
from tests.kernels.machines import check, on_gpu, on_machines

FORMS = [
    QuantRecipe(four_over_six=metric, four_over_six_error=error, e4m3_max=top)
    for metric, error, top in itertools.product(("mae", "mse"), ("strict", "fast"), (448, 256))
]
EMULATED_FORMS = [FORMS[0], FORMS[3], FORMS[5], FORMS[6]]
"""Every metric with every error; the GPU tests take all forms."""

VARIANTS = [
    {},
    {"scaling": "token", "arithmetic": "per_token"},
    {"block": "2d"},
    {"block": "2d", "four_over_six_columnwise": "recomputed", "scaling": "token"},
    {"rht": "fp32"},
    {"rounding": "stochastic"},
    {"rht": "bf16", "rounding": "stochastic", "scaling": "token", "scale_layout": "compact"},
]
BOTH = {"rowwise": True, "columnwise": True}


@on_machines
@pytest.mark.parametrize("form", EMULATED_FORMS, ids=QuantRecipe.describe)
def test_rowwise(machine, form):
    check(machine, cases.matrix(10, 96, "normal", 3), form.replace(scaling="token"))


@on_machines
@pytest.mark.parametrize(("form", "variant"), [*zip(FORMS[1:], VARIANTS, strict=True)], ids=str)
def test_both_copies(machine, form, variant):
    check(machine, cases.matrix(48, 80, "normal", 3), form.replace(**variant), seed=3, offset=4, **BOTH)


@on_gpu
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=QuantRecipe.describe)
def test_many(machine, form, variant):
    for kind, rows, k in (("normal", 512, 768), ("heavy", 272, 144)):
        kind = "normal" if "rht" in variant else kind
        check(machine, cases.matrix(rows, k, kind, 3), form.replace(**variant), seed=3, offset=4, **BOTH)


@on_machines
@pytest.mark.parametrize("form", FORMS[::5], ids=QuantRecipe.describe)
def test_special_values(machine, form):
    token = form.replace(scaling="token")
    for dtype in (torch.bfloat16, torch.float32):
        check(machine, cases.specials(dtype=dtype), token)
        check(machine, -cases.specials(dtype=dtype, inf=False), token)
    x = cases.matrix(16, 64, "heavy", 1, torch.float32)
    for scale in (1e-38, 1e-33, 1e33, 1e36):
        check(machine, x * (scale / x.abs().max()), token)


@on_machines
@pytest.mark.parametrize("amax", [None, 0.3], ids=["measured", "too small"])
@pytest.mark.parametrize("form", EMULATED_FORMS, ids=QuantRecipe.describe)
def test_blocks_that_need_care(machine, form, amax):
    """Among usual blocks of the same thread: NaN, Inf, zeros, tiny and huge ones, scales of few bits or of none."""
    for dtype, tiny in ((torch.bfloat16, 2.0**-120), (torch.float16, 2.0**-20)):
        x = cases.matrix(4, 800, "normal", 5, torch.float32)
        blocks = x.view(4, 50, 16)
        blocks[0, ::7] = 0
        blocks[0, 1::7, 3] = float("nan")
        blocks[1, ::5] *= tiny
        blocks[1, 1::5] *= 2.0**-16 * torch.rand(10, 1, generator=torch.Generator().manual_seed(1))
        blocks[2, 2::9] *= 300
        blocks[3, 40, 2] = float("inf")
        given = None if amax is None else torch.full((4,), amax)
        check(machine, x.to(dtype), form.replace(scaling="token"), amax=given)


def close_decisions(rows: int, dtype: torch.dtype) -> torch.Tensor:
    """(rows, 256): blocks whose two errors are equal or nearly so, or whose scales are a few steps of E4M3."""
    generator = torch.Generator().manual_seed(rows)
    kinds = torch.randint(-12, 13, (4, rows, 4, 16), generator=generator).float()
    kinds[1] *= (torch.rand(rows, 4, 16, generator=generator) < 0.07).float()  # one element, or none
    kinds[2] = kinds[2, ..., :1]  # all elements equal
    # The amax of the row's last block is 12; 6 * 2^-9 / 448 of that is one step, and so few steps may be doubled.
    kinds[3] *= torch.linspace(0, 4, rows * 4).view(rows, 4, 1) * 6 * 2.0**-9 / 448
    kinds[0, :, 0, 0] = 12
    return kinds.permute(1, 0, 2, 3).reshape(rows, 256).to(dtype)


@on_machines
@pytest.mark.parametrize("form", EMULATED_FORMS, ids=QuantRecipe.describe)
def test_close_decisions(machine, form):
    """Errors that compare as exact sums do, where approximate ones need not (four_over_six.decides)."""
    for dtype in (torch.bfloat16, torch.float16):
        check(machine, close_decisions(8, dtype), form)


@on_gpu
@pytest.mark.parametrize("form", FORMS, ids=QuantRecipe.describe)
def test_special_values_in_both_copies(machine, form):
    for dtype in (torch.bfloat16, torch.float32):
        check(machine, cases.specials(dtype=dtype), form, **BOTH)
        check(machine, cases.specials(dtype=dtype, inf=False), form.replace(block="2d"), **BOTH)
    x = cases.matrix(16, 64, "heavy", 1, torch.float32)
    for scale in (1e-38, 1e-33, 1e33, 1e36):
        check(machine, x * (scale / x.abs().max()), form, **BOTH)
