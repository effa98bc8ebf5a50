"""Activations as the kernels evaluate them, over their whole range: against the oracle's fp64 evaluation."""

from __future__ import annotations

import pytest
import torch

import cutefp4
from cutefp4.epilogue import Store, Tile, gelu
from tests.compare import assert_ulps
from tests.kernels.hopper import BACKEND, GPU, operand, running_on


@cutefp4.epilogue
def gelu_of_c(z, c: Tile("float32")):
    return gelu(c), Store(z, "float32", "z")


def arguments() -> torch.Tensor:
    """(96, 64) fp32: dense where gelu bends, both tails into the subnormals and beyond, and what is special."""
    g = torch.Generator().manual_seed(1)
    special = [
        0.0,
        -0.0,
        torch.inf,
        -torch.inf,
        torch.nan,
        1e-40,
        -1e-40,
        3e38,
        -3e38,
        -13.5,
        -14.1,
        -14.6,
        -15.0,
        -40.0,
    ]
    parts = [
        torch.tensor(special),
        torch.linspace(-13.1, 9.0, 3000),
        torch.randn(2500, generator=g),
        -torch.logspace(-30, 0, 315),
        torch.logspace(-30, 0, 315),
    ]
    return torch.cat(parts).float().view(96, 64)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_gelu_is_within_12_ulps_from_tail_to_tail(device):
    c = arguments()
    a, b = operand(96, 64, 1), operand(64, 64, 2)
    options = {"epilogue": gelu_of_c, "out_dtype": torch.float32}
    expected = cutefp4.gemm(a, b, tensors={"c": c, "z": torch.empty(96, 64)}, **options)
    tensors = {"c": c.to(device), "z": torch.empty(96, 64, device=device)}
    with running_on(device):
        d = cutefp4.gemm(a.to(device), b.to(device), tensors=tensors, backend=BACKEND[device], **options).cpu()
    assert torch.equal(d.isnan(), expected.isnan()) and d.isnan().sum() == 2
    numbers = ~expected.isnan()
    d, expected = d[numbers], expected[numbers]
    assert torch.equal(d.signbit(), expected.signbit())
    small = expected.abs() < 1e-37  # one subnormal unit is many times their own precision
    assert_ulps(d[~small], expected[~small], 12)
    torch.testing.assert_close(d[small], expected[small], rtol=1e-6, atol=1e-43)
