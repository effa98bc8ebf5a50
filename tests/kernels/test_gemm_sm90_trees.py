"""Composed epilogues on Hopper, against their formulas in float64."""

from __future__ import annotations

import pytest
import torch

import cutefp4
from cutefp4.epilogue import (
    Column,
    ColumnAmax,
    Row,
    RowAmax,
    Store,
    SwigluPair,
    Tile,
    default_epilogue,
    epilogue,
    relu,
    silu,
    unary,
)
from cutefp4.errors import OperandError
from tests.compare import assert_same_bits
from tests.kernels.hopper import BACKEND, DEVICES, operand, poisoned, running_on, weight_values


@epilogue
def forward_tree(acc, alpha_a: Row(), alpha_b: Column(), bias: Column("bfloat16")):
    z = 2.0**-20 * (alpha_b * (alpha_a * acc)) + bias
    return relu(z), Store(z, "float32", "pre"), RowAmax(z, "rows"), ColumnAmax(z, "columns")


@epilogue
def backward_tree(acc, alpha_a: Row(), pre: Tile("bfloat16")):
    return (alpha_a * acc) * unary("silu_grad", pre)


@epilogue
def swiglu_tree(acc, alpha_a: Row()):
    return SwigluPair(2.0**-12 * (alpha_a * acc))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("m", [9, 131])
def test_a_composed_tree_with_every_sink(device, m):
    n, k = 136, 128
    a, b = operand(m, k, 1, device=device), operand(n, k, 2, device=device)
    bias = torch.randn(n, generator=torch.Generator().manual_seed(1)).bfloat16().to(device)
    sinks = {
        "pre": poisoned(m, n, dtype=torch.float32, device=device),
        "rows": torch.zeros(m, device=device),
        "columns": torch.zeros(n, device=device),
    }
    with running_on(device):
        tensors = {"bias": bias, **sinks}
        d = cutefp4.gemm(a, b, epilogue=forward_tree, tensors=tensors, backend=BACKEND[device])
    acc = (weight_values(a) @ weight_values(b).T).float()
    z = 2.0**-20 * (b.amax.cpu() * (a.amax.cpu()[:, None] * acc)) + bias.cpu().float()
    assert_same_bits(sinks["pre"].cpu(), z)
    assert_same_bits(d.cpu(), torch.relu(z).bfloat16())
    assert_same_bits(sinks["rows"].cpu(), z.abs().amax(1))
    assert_same_bits(sinks["columns"].cpu(), z.abs().amax(0))


@pytest.mark.parametrize("device", DEVICES)
def test_a_derivative_of_a_saved_pre_activation(device):
    a, b = operand(66, 64, 1, device=device), operand(40, 64, 2, device=device)
    pre = torch.randn(66, 40, generator=torch.Generator().manual_seed(1)).bfloat16()
    with running_on(device):
        tensors = {"pre": pre.to(device)}
        options = {"out_dtype": torch.float32, "backend": BACKEND[device]}
        d = cutefp4.gemm(a, b, epilogue=backward_tree, tensors=tensors, **options)
    x = pre.double().requires_grad_()
    torch.nn.functional.silu(x).sum().backward()
    acc = (weight_values(a) @ weight_values(b).T).float()
    expected = (a.amax.cpu()[:, None] * acc).double() * x.grad
    # The derivative passes through zero: what is left of its terms there is compared with their size.
    torch.testing.assert_close(d.cpu().double(), expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("device", DEVICES)
def test_swiglu_over_column_pairs(device):
    a, b = operand(70, 64, 1, device=device), operand(72, 64, 2, device=device)
    with running_on(device):
        d = cutefp4.gemm(a, b, epilogue=swiglu_tree, out_dtype=torch.float32, backend=BACKEND[device])
    z = 2.0**-12 * (a.amax.cpu()[:, None] * (weight_values(a) @ weight_values(b).T).float()).double()
    torch.testing.assert_close(
        d.cpu().double(), torch.nn.functional.silu(z[:, 0::2]) * z[:, 1::2], rtol=2e-6, atol=1e-5
    )


def test_trees_are_checked_and_compared():
    with pytest.raises(OperandError, match="declare it"):
        epilogue(lambda acc, alpha: acc * alpha)
    with pytest.raises(OperandError, match="D's expression first"):
        epilogue(lambda acc: Store(acc, "float32"))
    with pytest.raises(OperandError, match="activation 'tanh'"):
        unary("tanh", silu(1.0))
    assert default_epilogue(2.0) == default_epilogue(2.0) != default_epilogue(3.0)
