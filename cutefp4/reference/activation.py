"""The activation functions of the epilogue and of the fused quantisers, on fp32.

Transcendental ones are evaluated in fp64 and rounded once to fp32, which makes them the same on every device; a kernel
that uses the hardware's exp is compared with a tolerance of a few fp32 ulps before the final cast.

    relu   max(z, 0), NaN stays NaN, -0 becomes +0
    relu2  fl(r * r), r = relu(z)
    gelu   fl(z * Phi(z)) = fl(z / 2 * erfc(-z / sqrt(2)))      (the erf form)
    silu   fl(z / (1 + exp(-z)))
"""

from __future__ import annotations

import math

import torch

from cutefp4.errors import OperandError


def relu(z: torch.Tensor) -> torch.Tensor:
    """max(z, 0) in fp32."""
    return torch.relu(z) + 0.0  # torch keeps -0, of which +0 is the larger one


def relu2(z: torch.Tensor) -> torch.Tensor:
    """fl(max(z, 0) ** 2)."""
    r = relu(z)
    return r * r


def gelu(z: torch.Tensor) -> torch.Tensor:
    """fl(z * Phi(z)), the erf form."""
    wide = z.double()
    return (wide * 0.5 * torch.special.erfc(wide * -math.sqrt(0.5))).float()


def silu(z: torch.Tensor) -> torch.Tensor:
    """fl(z * sigmoid(z))."""
    wide = z.double()
    return (wide / (1 + torch.exp(-wide))).float()


ACTIVATIONS = {"relu": relu, "relu2": relu2, "gelu": gelu, "silu": silu}


def activate(z: torch.Tensor, name: str | None) -> torch.Tensor:
    """Apply the activation `name` to fp32 `z`; None changes nothing.

    Raises:
        OperandError: no activation has this name.
    """
    if name is None:
        return z
    if name not in ACTIVATIONS:
        raise OperandError(
            f"activation={name!r}", ", ".join(map(repr, ACTIVATIONS)) + " or None", "choose one of these"
        )
    return ACTIVATIONS[name](z)
