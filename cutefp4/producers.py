"""swiglu_quantize, deinterleave_quantize, rmsnorm_quantize: what stands in front of a quantiser, in one step with it.

Each gives the bytes of its two steps (the step's result rounded to x's dtype, then `quantize`); where a kernel fuses
them, the result between them is never written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from cutefp4 import backend as backends
from cutefp4.errors import OperandError
from cutefp4.format import BLOCK
from cutefp4.quantize_checks import (
    INPUT_DTYPES,
    describe,
    quantizer_options,
)
from cutefp4.recipe import QuantRecipe
from cutefp4.tensor import NVFP4Tensor, wrap


def swiglu_quantize(
    x: torch.Tensor,
    recipe: QuantRecipe = QuantRecipe(),  # noqa: B008 - frozen
    *,
    interleave: int | None = None,
    rowwise: bool = True,
    columnwise: bool = False,
    amax: torch.Tensor | None = None,
    columnwise_amax: torch.Tensor | None = None,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    check_finite: bool = False,
    backend: str | None = None,
) -> NVFP4Tensor:
    """SwiGLU and quantisation in one step: quantize(h) with h = silu(gate) * up, in fp32, rounded once to x's dtype.

    Args:
        x: (M, 2I) gate and up projections.
        recipe: how to quantise h (M, I).
        interleave: None if gate is the first half of the columns and up the second; g (often 8, 16 or 32) if chunks of
            g gate columns alternate with chunks of g up columns. Kernels read multiples of 8 in place; for another g
            they rearrange x first.
        amax, columnwise_amax: outer amaxes of h, as in `quantize`.
        rowwise, columnwise, seed, offset, check_finite, backend: as in `quantize`; check_finite looks at x.

    Raises:
        OperandError, NonFiniteError, UnsupportedError: as `quantize`.
    """
    _check_gate_up(x, interleave)
    shape, amaxes = (x.shape[0], x.shape[1] // 2), (amax, columnwise_amax)
    options = quantizer_options(x, recipe, (rowwise, columnwise), amaxes, (seed, offset), check_finite, shape)
    chosen = backends.choose(x.device, backend)
    copies = backends.run("swiglu_quantize", chosen, x.detach(), recipe, interleave=interleave, **options)
    return wrap(copies, x.dtype, recipe)


def deinterleave_quantize(
    x: torch.Tensor,
    recipe: QuantRecipe = QuantRecipe(),  # noqa: B008 - frozen
    *,
    interleave: int | None = None,
    rowwise: bool = True,
    columnwise: bool = False,
    amax: torch.Tensor | None = None,
    columnwise_amax: torch.Tensor | None = None,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    check_finite: bool = False,
    backend: str | None = None,
) -> NVFP4Tensor:
    """Quantise a matrix of interleaved gate and up columns in the order [gate | up], without an activation.

    Args:
        x: (M, 2I).
        recipe: how to quantise the (M, 2I) result, whose first I columns are gate and last I columns up. Blocks and row
            amaxes are those of the result.
        interleave: as in `swiglu_quantize`; None leaves the columns where they are.
        amax, columnwise_amax: outer amaxes as in `quantize`; the columnwise one in the order of the result.
        rowwise, columnwise, seed, offset, check_finite, backend: as in `quantize`. The rowwise copy of 1x16 blocks
            reads x in place, for other copies kernels rearrange x first.

    Raises:
        OperandError, NonFiniteError, UnsupportedError: as `quantize`.
    """
    _check_gate_up(x, interleave)
    amaxes = (amax, columnwise_amax)
    options = quantizer_options(x, recipe, (rowwise, columnwise), amaxes, (seed, offset), check_finite)
    chosen = backends.choose(x.device, backend)
    copies = backends.run("deinterleave_quantize", chosen, x.detach(), recipe, interleave=interleave, **options)
    return wrap(copies, x.dtype, recipe)


class NormedTensor(NamedTuple):
    """What `rmsnorm_quantize` returns.

    Attributes:
        quantized: the normalised matrix in NVFP4.
        residual: x + residual, (M, N) of x's dtype; None without a residual, or if it was not to be kept.
        normed: the normalised matrix, (M, N) of x's dtype, if it was to be kept.
    """

    quantized: NVFP4Tensor
    residual: torch.Tensor | None
    normed: torch.Tensor | None


def rmsnorm_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    recipe: QuantRecipe = QuantRecipe(),  # noqa: B008 - frozen
    *,
    eps: float = 1e-6,
    residual: torch.Tensor | None = None,
    keep_sum: bool = True,
    keep_normed: bool = False,
    rowwise: bool = True,
    columnwise: bool = False,
    amax: torch.Tensor | None = None,
    columnwise_amax: torch.Tensor | None = None,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    check_finite: bool = False,
    backend: str | None = None,
) -> NormedTensor:
    """RMSNorm (of a residual sum) and quantisation in one step.

        h = x, or x + residual rounded to x's dtype
        y = h / sqrt(mean(h**2) + eps) * weight, rounded to x's dtype, and quantised

    The norm is computed in fp32; cutefp4/reference/rmsnorm.py states every rounding and the order of the sum, which
    the kernels reproduce bit for bit.

    Args:
        x: (M, N) bfloat16, float16 or float32; N a multiple of 16.
        weight: (N,) bfloat16, float16 or float32.
        recipe: how to quantise y (M, N).
        eps: added to the mean square.
        residual: (M, N) of x's dtype, added to x.
        keep_sum: return x + residual, the next residual.
        keep_normed: return y, too.
        amax, columnwise_amax: outer amaxes of y, as in `quantize`.
        rowwise, columnwise, seed, offset, check_finite, backend: as in `quantize`; check_finite looks at x.

    Raises:
        OperandError, NonFiniteError, UnsupportedError: as `quantize`.
    """
    if not isinstance(x, torch.Tensor) or x.dim() != 2 or x.shape[1] % BLOCK:
        raise OperandError(
            describe("x", x), f"a tensor (M, N) with N a multiple of {BLOCK}", "flatten the token axes, or pad N"
        )
    amaxes = (amax, columnwise_amax)
    options = quantizer_options(x, recipe, (rowwise, columnwise), amaxes, (seed, offset), check_finite)
    _check_norm(x, weight, eps, residual)
    copies, total, normed = backends.run(
        "rmsnorm_quantize",
        backends.choose(x.device, backend),
        x.detach(),
        weight.detach(),
        recipe,
        float(eps),
        residual=None if residual is None else residual.detach(),
        keep_sum=keep_sum,
        keep_normed=keep_normed,
        **options,
    )
    return NormedTensor(wrap(copies, x.dtype, recipe), total, normed)


def _check_gate_up(x, interleave: int | None) -> None:
    if interleave is not None and (not isinstance(interleave, int) or interleave < 1):
        raise OperandError(
            f"interleave={interleave!r}", "None or a positive number of columns", "pass the chunk width of gate and up"
        )
    if not isinstance(x, torch.Tensor) or x.dim() != 2 or x.shape[1] % (2 * (interleave or 1)):
        raise OperandError(
            f"{describe('x', x)} with interleave={interleave}",
            f"a tensor (M, 2I) with 2I a multiple of {2 * (interleave or 1)}",
            "pass gate and up side by side along the last axis",
        )


def _check_norm(x: torch.Tensor, weight, eps, residual) -> None:
    columns = x.shape[1]
    if not isinstance(weight, torch.Tensor) or weight.dtype not in INPUT_DTYPES or tuple(weight.shape) != (columns,):
        raise OperandError(
            describe("weight", weight), f"bfloat16, float16 or float32 ({columns},)", "pass one factor for each column"
        )
    if residual is not None and (
        not isinstance(residual, torch.Tensor) or residual.dtype != x.dtype or residual.shape != x.shape
    ):
        raise OperandError(
            describe("residual", residual), f"{x.dtype} {tuple(x.shape)}, as x", "convert the residual to x's dtype"
        )
    for name, value in (("weight", weight), ("residual", residual)):
        if value is not None and value.device != x.device:
            raise OperandError(f"{name} on {value.device}", f"{x.device}, where x is", f"move it: {name}.to(x.device)")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not eps >= 0:
        raise OperandError(f"eps={eps!r}", "a number >= 0", "pass the eps of the model's norm, often 1e-6")
