"""The transform: its matrix, its two arithmetics, its invariance."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutefp4.recipe import RHT_SIGN_MASK, QuantRecipe
from cutefp4.reference import quantize
from cutefp4.reference.hadamard import inverse_transform, signs, transform
from tests.cases import matrix, normal
from tests.compare import assert_same_bits

masks = st.integers(0, 0xFFFF)


def hadamard_matrix(mask: int) -> torch.Tensor:
    rows = [[0.25 * (-1) ** ((r & c).bit_count() + (mask >> r & 1)) for c in range(16)] for r in range(16)]
    return torch.tensor(rows, dtype=torch.float64)


def test_default_mask_is_the_sign_vector():
    expected = [1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1]
    assert signs(RHT_SIGN_MASK).tolist() == expected


@given(masks)
def test_matrix_is_orthogonal_and_is_what_transform_applies(mask):
    h = hadamard_matrix(mask)
    assert torch.equal(h @ h.T, torch.eye(16, dtype=torch.float64))
    unit = torch.eye(16, dtype=torch.float32)
    for kind in ("bf16", "fp32"):
        assert torch.equal(transform(unit, kind, mask).double(), h)


@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_groups_are_independent(kind):
    x = matrix(5, 64, seed=1)
    whole = transform(x, kind, RHT_SIGN_MASK)
    for g in range(4):
        part = x[:, 16 * g : 16 * g + 16]
        assert_same_bits(transform(part, kind, RHT_SIGN_MASK), whole[:, 16 * g : 16 * g + 16])


def test_bf16_is_the_exact_sum_rounded_twice():
    x = normal(3, (256, 16))
    exact = x.double() @ hadamard_matrix(RHT_SIGN_MASK)
    expected = exact.float().to(torch.bfloat16).float()
    assert_same_bits(transform(x, "bf16", RHT_SIGN_MASK), expected)


def test_fp32_keeps_more_than_bf16():
    x = normal(3, (256, 16))
    exact = x.double() @ hadamard_matrix(RHT_SIGN_MASK)
    fine, coarse = ((transform(x, k, RHT_SIGN_MASK).double() - exact).abs().max() for k in ("fp32", "bf16"))
    assert fine < 1e-6 < 1e-3 < coarse
    assert float((transform(x, "fp32", RHT_SIGN_MASK) != exact.float()).float().mean()) < 1e-3  # mostly exact sums


def test_fp32_rounds_after_every_stage():
    """1 + 2**-30 - 1 in three different stages: the small term survives only where the order keeps it."""
    x = torch.zeros(1, 16)
    x[0, 0], x[0, 1], x[0, 2] = 1.0, 2.0**-30, -1.0
    out = transform(x, "fp32", 0)[0]
    # stage 1 rounds x0 + x1 to 1, stage 2 cancels x2: column 0 loses the small term
    assert float(out[0]) == 0.0
    assert float(transform(x, "bf16", 0)[0, 0]) == 2.0**-32


@given(masks, st.integers(0, 1000))
def test_inverse(mask, seed):
    x = matrix(4, 32, seed=seed, dtype=torch.float32)
    back = inverse_transform(transform(x, "fp32", mask), mask)
    assert float((back - x).abs().max()) < 1e-5


@given(masks)
def test_products_are_invariant(mask):
    dy, x = matrix(24, 64, seed=1).double(), matrix(40, 64, seed=2).double()
    h = hadamard_matrix(mask)
    plain = dy @ x.T
    turned = (dy.view(24, 4, 16) @ h).view(24, 64) @ (x.view(40, 4, 16) @ h).view(40, 64).T
    assert float((plain - turned).abs().max()) < 1e-9


@pytest.mark.parametrize("kind", ["bf16", "fp32"])
@pytest.mark.parametrize("scaling", ["tensor", "token"])
def test_columnwise_copy_quantises_the_transformed_transpose(kind, scaling):
    x = matrix(48, 40, seed=4)
    recipe = QuantRecipe(rht=kind, scaling=scaling, rht_sign_mask=0xACE1)
    copy = quantize(x, recipe, rowwise=False, columnwise=True)[1]
    values = transform(x.t(), kind, 0xACE1)
    plain = quantize(values, recipe.replace(rht="none"))[0]
    assert copy.rht == 0xACE1 and plain.rht is None
    for name in ("codes", "amax"):
        assert_same_bits(getattr(copy, name), getattr(plain, name), name)
    assert_same_bits(copy.compact_scales().view(torch.uint8), plain.compact_scales().view(torch.uint8))
    # the amax is that of the transformed values, not of x
    dim = None if scaling == "tensor" else 1
    assert_same_bits(copy.amax, values.abs().amax() if dim is None else values.abs().amax(dim))


def test_rowwise_copy_is_never_transformed():
    x = matrix(48, 64, seed=4)
    a, b = (quantize(x, QuantRecipe(rht=kind), columnwise=True)[0] for kind in ("bf16", "none"))
    assert a.rht is None
    assert_same_bits(a.codes, b.codes)


def test_the_two_arithmetics_are_different_specifications():
    x = normal(101, (1024, 256))
    bf16, fp32 = (quantize(x, QuantRecipe(rht=k), rowwise=False, columnwise=True)[1] for k in ("bf16", "fp32"))
    scales = bf16.compact_scales().view(torch.uint8) != fp32.compact_scales().view(torch.uint8)
    assert 0.005 < float(scales.float().mean()) < 0.05
