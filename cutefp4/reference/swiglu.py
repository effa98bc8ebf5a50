"""SwiGLU, alone and in front of the quantiser, and the de-interleaving of gate and up without it.

    h = cast(fl(fl(g * sigmoid(g)) * u))        one rounding to fp32 for silu(g), one for the product, one to x.dtype

The quantiser sees the rounded h, so that the fused form equals the unfused one bit for bit.

Where gate and up lie in the last axis of x (2I columns):
    halves (interleave=None):   gate[j] = x[j],                       up[j] = x[I + j]
    granularity n:              gate[j] = x[2n * (j // n) + j % n],   up[j] = x[2n * (j // n) + n + j % n]
"""

from __future__ import annotations

import torch

from cutefp4.errors import OperandError
from cutefp4.operand import Nvfp4Operand
from cutefp4.recipe import QuantRecipe
from cutefp4.reference.activation import silu
from cutefp4.reference.quantize import quantize


def deinterleave(x: torch.Tensor, interleave: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the last axis of x into gate and up.

    Args:
        x: (..., 2I).
        interleave: columns per chunk, a divisor of I; None for [gate | up] halves.

    Returns:
        (gate, up), each (..., I).

    Raises:
        OperandError: the columns do not divide into gate and up chunks.
    """
    columns = x.shape[-1]
    n = columns // 2 if interleave is None else interleave
    if columns == 0 or n <= 0 or columns % (2 * n):
        raise OperandError(
            f"{columns} columns with interleave={interleave}",
            "2I columns with I a multiple of interleave" if interleave else "an even number of columns, [gate | up]",
            "check the width of the fused gate/up projection",
        )
    chunks = x.unflatten(-1, (-1, 2, n))
    return chunks[..., 0, :].flatten(-2), chunks[..., 1, :].flatten(-2)


def interleave(gate: torch.Tensor, up: torch.Tensor, granularity: int) -> torch.Tensor:
    """The inverse of `deinterleave`: (..., I) and (..., I) to (..., 2I) in alternating chunks."""
    chunks = (gate.unflatten(-1, (-1, granularity)), up.unflatten(-1, (-1, granularity)))
    return torch.stack(chunks, dim=-2).flatten(-3)


def swiglu(x: torch.Tensor, interleave: int | None = None) -> torch.Tensor:
    """silu(gate) * up of (..., 2I), rounded to x.dtype: (..., I)."""
    gate, up = deinterleave(x, interleave)
    return (silu(gate.float()) * up.float()).to(x.dtype)


def swiglu_quantize(
    x: torch.Tensor, recipe: QuantRecipe, interleave: int | None = None, **options
) -> tuple[Nvfp4Operand | None, Nvfp4Operand | None]:
    """`quantize(swiglu(x, interleave), recipe, **options)` for x (M, 2I): operands of the (M, I) result."""
    return quantize(swiglu(x, interleave), recipe, **options)


def deinterleave_quantize(
    x: torch.Tensor, recipe: QuantRecipe, interleave: int | None = None, **options
) -> tuple[Nvfp4Operand | None, Nvfp4Operand | None]:
    """`quantize([gate | up], recipe, **options)` for x (M, 2I): operands of the (M, 2I) matrix, gate columns first."""
    return quantize(torch.cat(deinterleave(x, interleave), dim=-1), recipe, **options)
