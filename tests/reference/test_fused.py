"""SwiGLU and RMSNorm, alone and in front of the quantiser."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from cutefp4.errors import OperandError
from cutefp4.recipe import QuantRecipe
from cutefp4.reference import (
    add_residual,
    deinterleave,
    interleave,
    quantize,
    rmsnorm,
    rmsnorm_quantize,
    swiglu,
    swiglu_quantize,
)
from cutefp4.reference.rmsnorm import norm_factor, sum_of_squares
from tests.cases import PROFILES, matrix
from tests.compare import assert_close, assert_same_bits, assert_same_operand, ulps

M, I = 20, 96


def fused_columns(granularity: int) -> tuple[list[int], list[int]]:
    gate = [2 * granularity * (j // granularity) + j % granularity for j in range(I)]
    return gate, [g + granularity for g in gate]


@pytest.mark.parametrize("granularity", [1, 8, 16, 32, 48, 96])
def test_interleaved_columns(granularity):
    x = torch.arange(M * 2 * I).view(M, 2 * I)
    gate_columns, up_columns = fused_columns(granularity)
    gate, up = deinterleave(x, granularity)
    assert torch.equal(gate, x[:, gate_columns]) and torch.equal(up, x[:, up_columns])
    assert torch.equal(interleave(gate, up, granularity), x)


def test_halves_are_the_largest_granularity():
    x = matrix(M, 2 * I)
    gate, up = deinterleave(x)
    assert torch.equal(gate, x[:, :I]) and torch.equal(up, x[:, I:])
    assert_same_bits(swiglu(x), swiglu(x, I))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_swiglu_values(dtype):
    x = matrix(M, 2 * I, seed=1, dtype=dtype) * 3
    gate, up = x[:, :I].float(), x[:, I:].float()
    silu = (gate.double() / (1 + torch.exp(-gate.double()))).float()  # one rounding
    assert_same_bits(swiglu(x), (silu * up).to(dtype))
    exact = torch.nn.functional.silu(gate.double()) * up.double()
    assert_close(swiglu(x), exact, rtol=1.01 * torch.finfo(dtype).eps / 2 + 2e-7, atol=1e-7)


def test_an_fp32_expf_rarely_changes_a_bf16():
    x = matrix(256, 2048, seed=2)
    gate, up = x[:, :1024].float(), x[:, 1024:].float()
    other = (gate / (1 + torch.exp(-gate)) * up).bfloat16()
    distance = ulps(other, swiglu(x))
    assert int(distance.max()) <= 1 and float((distance > 0).float().mean()) < 1e-3


@pytest.mark.parametrize("granularity", [None, 8, 16, 32])
@pytest.mark.parametrize("profile", ["te1d", "pt", "4o6-mae-256", "rsr_rht"])
def test_swiglu_quantize_equals_its_parts(profile, granularity):
    x, recipe = matrix(32, 2 * I, seed=3), PROFILES[profile]
    h = swiglu(x, granularity)
    fused = swiglu_quantize(x, recipe, granularity, columnwise=True, seed=5, offset=2)
    for got, want in zip(fused, quantize(h, recipe, columnwise=True, seed=5, offset=2), strict=True):
        assert_same_operand(got, want)
    halves = torch.cat(deinterleave(x, granularity), dim=1)
    assert_same_operand(swiglu_quantize(halves, recipe, seed=5, offset=2)[0], fused[0])


@pytest.mark.parametrize(
    "columns, granularity, words",
    [
        (7, None, ["7 columns", "even number"]),
        (2 * I, 40, ["192 columns with interleave=40", "I a multiple of interleave"]),
        (2 * I, 0, ["interleave=0"]),
        (2 * I, -8, ["interleave=-8"]),
        (0, None, ["0 columns"]),
    ],
)
def test_columns_that_do_not_divide(columns, granularity, words):
    with pytest.raises(OperandError) as error:
        swiglu(torch.zeros(4, columns), granularity)
    for word in words:
        assert word in str(error.value)


# ---------------------------------------------------------------- RMSNorm


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("columns", [96, 700, 20000])
def test_rmsnorm_values(dtype, columns):
    x, weight = matrix(M, columns, "row_scaled", seed=4, dtype=dtype), matrix(1, columns, seed=5, dtype=dtype)[0]
    wide = x.double()
    exact = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()
    assert_close(rmsnorm(x, weight, 1e-5), exact, rtol=1.01 * torch.finfo(dtype).eps / 2 + 6e-7, atol=1e-7)
    r = norm_factor(x.float(), 1e-5)
    assert_same_bits(rmsnorm(x, weight, 1e-5), ((x.float() * r) * weight.float()).to(dtype))


def scalar_sum_of_squares(row: np.ndarray) -> np.float32:
    """The documented order, one number at a time, fused multiply-adds by exact fractions."""

    def fma(a, total):
        exact = Fraction(float(a)) ** 2 + Fraction(float(total))
        near = np.float32(float(exact))
        around = (np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf)))
        return min(around, key=lambda v: abs(Fraction(float(v)) - exact))

    def tree(values):
        values = values + [np.float32(0)] * (32 - len(values))
        while len(values) > 1:
            values = [a + b for a, b in zip(values[::2], values[1::2], strict=True)]
        return values[0]

    blocks = []
    for block in np.pad(row, (0, -len(row) % 16)).reshape(-1, 16):
        chains = [np.float32(0), np.float32(0)]
        for i, value in enumerate(block):
            chains[i % 2] = fma(value, chains[i % 2])
        blocks.append(chains[0] + chains[1])
    chunks = [tree(blocks[i : i + 32]) for i in range(0, len(blocks), 32)]
    slots = chunks[:32]
    for i, chunk in enumerate(chunks[32:]):
        slots[i % 32] = slots[i % 32] + chunk
    return tree(slots)


@pytest.mark.parametrize("columns", [1, 16, 40, 1040, 33 * 512 + 48])
def test_sum_of_squares_has_the_documented_order(columns):
    x = matrix(2, columns, "heavy", seed=columns, dtype=torch.float32)
    expected = [scalar_sum_of_squares(row) for row in x.numpy()]
    assert_same_bits(sum_of_squares(x), torch.from_numpy(np.stack(expected)))


def test_norm_factor_is_rounded_correctly():
    """sqrt and reciprocal, one rounding each, against fp64."""
    x = torch.zeros(4000, 16)
    x[:, 0] = torch.linspace(1e-3, 900, 4000)
    mean = (x[:, 0] * x[:, 0] / 16).numpy()
    root = np.sqrt(mean.astype(np.float64)).astype(np.float32)
    assert_same_bits(norm_factor(x, 0.0)[:, 0], torch.from_numpy((1 / root.astype(np.float64)).astype(np.float32)))


def test_residual_is_rounded_before_the_norm():
    x, residual, weight = matrix(M, 96, seed=4), matrix(M, 96, seed=6), matrix(1, 96, seed=5)[0]
    total = add_residual(x, residual)
    assert total.dtype == torch.bfloat16
    assert_same_bits(total, (x.float() + residual.float()).bfloat16())
    assert_same_bits(rmsnorm(x, weight, 1e-6, residual), rmsnorm(total, weight, 1e-6))


@pytest.mark.parametrize("profile", ["te1d", "pt", "rsr_rht"])
def test_rmsnorm_quantize_equals_its_parts(profile):
    x, residual, weight = matrix(32, 96, seed=4), matrix(32, 96, seed=6), matrix(1, 96, seed=5)[0]
    fused, total, normed = rmsnorm_quantize(
        x, weight, PROFILES[profile], residual=residual, keep_normed=True, columnwise=True, seed=3
    )
    y = rmsnorm(x, weight, 1e-6, residual)
    assert_same_bits(normed, y)
    assert_same_bits(total, add_residual(x, residual))
    for got, want in zip(fused, quantize(y, PROFILES[profile], columnwise=True, seed=3), strict=True):
        assert_same_operand(got, want)


def test_rmsnorm_of_zeros():
    assert not rmsnorm(torch.zeros(3, 32), torch.ones(32), 1e-6).any()
    (row, _), total, normed = rmsnorm_quantize(torch.zeros(3, 32), torch.ones(32), QuantRecipe())
    assert not row.codes.any() and total is None and normed is None


@pytest.mark.parametrize(
    "weight, residual, words",
    [
        (torch.ones(32), None, ["weight of shape (32,)", "(96,)"]),
        (torch.ones(96), torch.ones(M, 32), ["residual of shape (20, 32)", "(20, 96)"]),
    ],
)
def test_wrong_shapes(weight, residual, words):
    with pytest.raises(OperandError) as error:
        rmsnorm(torch.zeros(M, 96), weight, 1e-6, residual)
    for word in words:
        assert word in str(error.value)
