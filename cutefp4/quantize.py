"""quantize, quantize_grouped, dequantize: check the call, choose a backend, run.

Every function checks all of its arguments before any backend sees them, without reading tensor values (no
synchronisation) unless `check_finite=True` asks for it.
"""

from __future__ import annotations

import torch

from cutefp4 import backend as backends
from cutefp4.errors import OperandError
from cutefp4.operand import Nvfp4GroupedOperand, Nvfp4Operand
from cutefp4.quantize_checks import (
    INPUT_DTYPES,
    check_amax,
    check_input,
    check_offs,
    check_random_state,
    check_recipe,
    quantizer_options,
    random_state,
    require_finite,
)
from cutefp4.recipe import QuantRecipe
from cutefp4.tensor import NVFP4Copies, NVFP4GroupedTensor, NVFP4Tensor, wrap


def quantize(
    x: torch.Tensor,
    recipe: QuantRecipe = QuantRecipe(),  # noqa: B008 - frozen
    *,
    rowwise: bool = True,
    columnwise: bool = False,
    amax: torch.Tensor | None = None,
    columnwise_amax: torch.Tensor | None = None,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    check_finite: bool = False,
    backend: str | None = None,
) -> NVFP4Tensor:
    """Quantise a matrix to NVFP4.

    Args:
        x: (R, C), or a batch (L, R, C) that is quantised matrix by matrix; bfloat16, float16 or float32. Not
            differentiated through.
        recipe: how.
        rowwise: make the copy with blocks along C; C must be a multiple of 16.
        columnwise: make the transposed copy with blocks along R; R must be a multiple of 16. A weight that is stored
            (K, N) is quantised along K by rowwise=False, columnwise=True: an operand (N, K), without a transpose.
        amax: the outer amax if it is known already: float32 () for scaling="tensor", (R,) for "token" (with L in
            front if batched); None measures it.
        columnwise_amax: the same for the columnwise copy, (C,) for "token"; after the Hadamard transform if the recipe
            has one.
        seed, offset: state of stochastic rounding, integers or int64 device tensors of shape (). Required if the
            recipe rounds stochastically, else unused. Use another offset for every call.
        check_finite: raise on NaN or Inf, which otherwise follow the rule: amax ignores NaN, NaN encodes to +6, Inf
            saturates. Waits for the device.
        backend: a name of `cutefp4.backend.BACKENDS`; None follows the device.

    Raises:
        OperandError: a wrong shape, dtype, device or argument.
        NonFiniteError: check_finite found NaN or Inf.
        UnsupportedError: the backend does not have this operation or recipe.
    """
    amaxes = (amax, columnwise_amax)
    options = quantizer_options(x, recipe, (rowwise, columnwise), amaxes, (seed, offset), check_finite)
    copies = backends.run("quantize", backends.choose(x.device, backend), x.detach(), recipe, **options)
    return wrap(copies, x.dtype, recipe)


def quantize_grouped(
    x: torch.Tensor,
    offs: torch.Tensor,
    recipe: QuantRecipe = QuantRecipe(),  # noqa: B008 - frozen
    *,
    rowwise: bool = True,
    columnwise: bool = False,
    amax: torch.Tensor | None = None,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    check_finite: bool = False,
    backend: str | None = None,
) -> NVFP4GroupedTensor:
    """Quantise the row groups of a matrix (the tokens of each expert), each as `quantize` would alone.

    Args:
        x: (T, C) bfloat16, float16 or float32; group g is the rows offs[g-1] .. offs[g]-1.
        offs: int32 (E,), end offsets on x's device, non-decreasing, offs[-1] <= T. Its values are not read by the
            host. Rows behind offs[-1] belong to no group.
        recipe: how; 16x16 blocks count from each group's first row.
        rowwise: make the copy with blocks along C (groups split rows); C must be a multiple of 16.
        columnwise: make the transposed copy with blocks along T (groups split the contraction axis, each padded to a
            multiple of 64 with zeros).
        amax: the rowwise outer amax if known: float32 (E,) for scaling="tensor", (T,) for "token".
        seed, offset, check_finite, backend: as in `quantize`.

    Raises:
        OperandError, NonFiniteError, UnsupportedError: as `quantize`.
    """
    check_recipe(recipe)
    # Groups are padded along T, so the columnwise copy puts no condition on T.
    check_input(x, recipe, rowwise, False if rowwise else None)
    if x.dim() != 2:
        raise OperandError(f"x of shape {tuple(x.shape)}", "(T, C)", "flatten the token axes")
    if not (rowwise or columnwise):
        raise OperandError("rowwise=False, columnwise=False", "at least one copy", "pass rowwise=True")
    check_offs(offs, x.device)
    check_amax("amax", amax, [(offs.numel(),) if recipe.scaling == "tensor" else (x.shape[0],)], recipe, x.device)
    check_random_state(recipe, seed, offset)
    if check_finite:
        require_finite(x)
    copies = backends.run(
        "quantize_grouped",
        backends.choose(x.device, backend),
        x.detach(),
        offs.contiguous(),
        recipe,
        rowwise=rowwise,
        columnwise=columnwise,
        amax=None if amax is None else amax.contiguous(),
        **random_state(seed, offset),
    )
    return NVFP4GroupedTensor(*copies, recipe)


def dequantize(
    t: NVFP4Tensor | NVFP4GroupedTensor | Nvfp4Operand | Nvfp4GroupedOperand,
    dtype: torch.dtype | None = None,
    *,
    backend: str | None = "reference",
) -> torch.Tensor:
    """The values of a quantised matrix as a dense tensor.

    value = fl(q * fl(s * fl(amax / (6 * e4m3_max)))) in fp32, then one cast to `dtype`.

    Args:
        t: a tensor (its rowwise copy if it has one; see `NVFP4Tensor.dequantize`), or one operand, whose shape
            (rows, k) the result has. Grouped ones are dequantised without padding, with zeros behind offs[-1].
        dtype: bfloat16, float16 or float32; None takes the tensor's, and float32 if it has none.
        backend: plain PyTorch on the tensor's device by default; None asks for the device's kernel.

    Raises:
        OperandError: t is none of these, or dtype is another.
        UnsupportedError: see `NVFP4Tensor.dequantize`.
    """
    if dtype not in (None, *INPUT_DTYPES):
        raise OperandError(f"dtype={dtype}", "bfloat16, float16 or float32", "dequantise to one of these and convert")
    if isinstance(t, (NVFP4Tensor, NVFP4Copies)):
        operand, transposed = t.readable_copy()
        dtype = dtype or t.dtype
    elif isinstance(t, NVFP4GroupedTensor):
        operand, transposed = t.readable_copy()
    else:
        operand, transposed = t, False
    if not isinstance(operand, (Nvfp4Operand, Nvfp4GroupedOperand)):
        raise OperandError(f"a {type(t).__name__}", "an NVFP4Tensor or an operand", "call cutefp4.quantize first")
    values = backends.run("dequantize", backends.choose(operand.device, backend), operand, dtype or torch.float32)
    return values.transpose(-1, -2).contiguous() if transposed else values
