"""RMSNorm, alone and in front of the quantiser.

    h = x, or cast(fl(x + residual)) if there is a residual
    r = fl(1 / sqrt(mean(h**2) + eps))        the mean and the root in fp64, one rounding
    y = cast(fl(fl(h * r) * weight))

casts are to x.dtype; the quantiser sees the rounded y, so that the fused form equals the unfused one. A kernel's
sum of squares has its own order, and is compared with a tolerance of a few fp32 ulps in r.
"""

from __future__ import annotations

import torch

from cutefp4.errors import OperandError
from cutefp4.operand import Nvfp4Operand
from cutefp4.recipe import QuantRecipe
from cutefp4.reference.quantize import quantize


def add_residual(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """cast(fl(x + residual)): the new residual stream, in x.dtype."""
    return (x.float() + residual.float()).to(x.dtype)


def rmsnorm(
    x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """RMSNorm over the last axis.

    Args:
        x: (..., C).
        weight: (C,), any floating dtype.
        eps: added to the mean square.
        residual: added to x first; `add_residual` gives the sum that the norm sees.

    Returns:
        (..., C) in x.dtype.

    Raises:
        OperandError: weight or residual of a wrong shape.
    """
    for name, tensor, shape in (("weight", weight, x.shape[-1:]), ("residual", residual, x.shape)):
        if tensor is not None and tensor.shape != shape:
            raise OperandError(f"{name} of shape {tuple(tensor.shape)}", f"{tuple(shape)}", f"reshape {name}")
    h = (x if residual is None else add_residual(x, residual)).float()
    mean_square = h.double().square().mean(dim=-1, keepdim=True)
    r = (mean_square + eps).rsqrt().float()
    return (h * r * weight.float()).to(x.dtype)


def rmsnorm_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    recipe: QuantRecipe,
    *,
    residual: torch.Tensor | None = None,
    **options,
) -> tuple[Nvfp4Operand | None, Nvfp4Operand | None]:
    """`quantize(rmsnorm(x, weight, eps, residual), recipe, **options)` for x (R, C)."""
    return quantize(rmsnorm(x, weight, eps, residual), recipe, **options)
