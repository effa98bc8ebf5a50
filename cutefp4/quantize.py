"""quantize, quantize_grouped, swiglu_quantize, dequantize: check the call, choose a backend, run.

Every function checks all of its arguments before any backend sees them, without reading tensor values (no
synchronisation) unless `check_finite=True` asks for it.
"""

from __future__ import annotations

import torch

from cutefp4 import backend as backends
from cutefp4.errors import NonFiniteError, OperandError
from cutefp4.format import BLOCK
from cutefp4.operand import Nvfp4GroupedOperand, Nvfp4Operand
from cutefp4.recipe import QuantRecipe
from cutefp4.scale_layout import round_up
from cutefp4.tensor import NVFP4Copies, NVFP4GroupedTensor, NVFP4Tensor, wrap

INPUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


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
        columnwise: make the transposed copy with blocks along R; R must be a multiple of 16.
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
    _check_recipe(recipe)
    _check_input(x, recipe, rowwise, columnwise)
    _check_amaxes(tuple(x.shape), x.device, recipe, amax, columnwise_amax)
    _check_random_state(recipe, seed, offset)
    if check_finite:
        require_finite(x)
    chosen = backends.choose(x.device, backend)
    copies = backends.run(
        "quantize",
        chosen,
        x.detach(),
        recipe,
        rowwise=rowwise,
        columnwise=columnwise,
        amax=amax,
        columnwise_amax=columnwise_amax,
        **_random_state(seed, offset),
    )
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
    _check_recipe(recipe)
    if x.dim() != 2:
        raise OperandError(f"x of shape {tuple(x.shape)}", "(T, C)", "flatten the token axes")
    # Groups are padded along T, so the columnwise copy puts no condition on T.
    _check_input(x, recipe, rowwise, False if rowwise else None)
    if not (rowwise or columnwise):
        raise OperandError("rowwise=False, columnwise=False", "at least one copy", "pass rowwise=True")
    _check_offs(offs, x.device)
    _check_amax("amax", amax, [(offs.numel(),) if recipe.scaling == "tensor" else (x.shape[0],)], recipe, x.device)
    _check_random_state(recipe, seed, offset)
    if check_finite:
        require_finite(x)
    copies = backends.run(
        "quantize_grouped",
        backends.choose(x.device, backend),
        x.detach(),
        offs,
        recipe,
        rowwise=rowwise,
        columnwise=columnwise,
        amax=amax,
        **_random_state(seed, offset),
    )
    return NVFP4GroupedTensor(*copies, recipe)


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
            g gate columns alternate with chunks of g up columns.
        amax, columnwise_amax: outer amaxes of h, as in `quantize`.
        rowwise, columnwise, seed, offset, check_finite, backend: as in `quantize`; check_finite looks at x.

    Raises:
        OperandError, NonFiniteError, UnsupportedError: as `quantize`.
    """
    _check_recipe(recipe)
    if interleave is not None and (not isinstance(interleave, int) or interleave < 1):
        raise OperandError(
            f"interleave={interleave!r}", "None or a positive number of columns", "pass the chunk width of gate and up"
        )
    if not isinstance(x, torch.Tensor) or x.dim() != 2 or x.shape[1] % (2 * (interleave or 1)):
        raise OperandError(
            f"{_describe('x', x)} with interleave={interleave}",
            f"a tensor (M, 2I) with 2I a multiple of {2 * (interleave or 1)}",
            "pass gate and up side by side along the last axis",
        )
    _check_input(x, recipe, rowwise, columnwise, columns=x.shape[1] // 2)
    _check_amaxes((x.shape[0], x.shape[1] // 2), x.device, recipe, amax, columnwise_amax)
    _check_random_state(recipe, seed, offset)
    if check_finite:
        require_finite(x)
    copies = backends.run(
        "swiglu_quantize",
        backends.choose(x.device, backend),
        x.detach(),
        recipe,
        interleave=interleave,
        rowwise=rowwise,
        columnwise=columnwise,
        amax=amax,
        columnwise_amax=columnwise_amax,
        **_random_state(seed, offset),
    )
    return wrap(copies, x.dtype, recipe)


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


def require_finite(x: torch.Tensor) -> None:
    """Raise if x holds NaN or Inf; waits for the device.

    Raises:
        NonFiniteError: it does; the message says how many and where the first one is.
    """
    bad = ~torch.isfinite(x)
    if bad.any():
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise NonFiniteError(
            f"x with {int(bad.sum())} NaN or Inf of {x.numel()} elements, the first, {x[first].item()}, at {first}",
            "finite values, since check_finite=True",
            "find where they come from, or pass check_finite=False to let NaN encode to +6 and Inf saturate",
        )


def _check_recipe(recipe: QuantRecipe) -> None:
    if not isinstance(recipe, QuantRecipe):
        raise OperandError(
            f"recipe of type {type(recipe).__name__}",
            "a QuantRecipe",
            "pass QuantRecipe(...), or one of the three of a TrainingRecipe: named_recipe('te').x, .w or .dy",
        )


def _check_input(x, recipe: QuantRecipe, rowwise: bool, columnwise: bool | None, columns: int | None = None) -> None:
    if not isinstance(x, torch.Tensor) or isinstance(x, NVFP4Tensor):
        raise OperandError(f"x of type {type(x).__name__}", "a dense torch.Tensor", "pass the unquantised matrix")
    if x.dtype not in INPUT_DTYPES:
        raise OperandError(f"x of dtype {x.dtype}", "bfloat16, float16 or float32", "convert x, e.g. x.bfloat16()")
    if x.dim() not in (2, 3):
        raise OperandError(f"x of shape {tuple(x.shape)}", "(R, C) or (L, R, C)", "reshape x: x.flatten(0, -2)")
    if x.numel() == 0:
        raise OperandError(f"x of shape {tuple(x.shape)}", "a matrix with elements", "do not quantise empty matrices")
    if columnwise is not None and not (rowwise or columnwise):
        raise OperandError(
            "rowwise=False, columnwise=False", "at least one copy", "pass rowwise=True or columnwise=True"
        )
    columns = columns or x.shape[-1]
    for wanted, size, copy, axis in (
        (rowwise, columns, "rowwise", "last"),
        (columnwise, x.shape[-2], "columnwise", "first"),
    ):
        if wanted and size % BLOCK:
            raise OperandError(
                f"x of shape {tuple(x.shape)}: K = {size} on the {axis} axis, which the {copy} copy contracts",
                f"a multiple of {BLOCK}",
                f"pad that axis with zeros to {round_up(size, BLOCK)}, or do not ask for this copy",
            )


def _check_amaxes(shape: tuple[int, ...], device: torch.device, recipe: QuantRecipe, amax, columnwise_amax) -> None:
    *batch, rows, columns = shape
    batch = tuple(batch)
    for name, value, length in (("amax", amax, rows), ("columnwise_amax", columnwise_amax, columns)):
        shapes = [batch] if recipe.scaling == "tensor" or recipe.block == "2d" else []
        if recipe.scaling == "token":
            shapes.append((*batch, length))
        _check_amax(name, value, shapes, recipe, device)


def _check_amax(name: str, value, shapes: list[tuple[int, ...]], recipe: QuantRecipe, device: torch.device) -> None:
    if value is None:
        return
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or tuple(value.shape) not in shapes:
        raise OperandError(
            f"{_describe(name, value)} with scaling={recipe.scaling!r}, block={recipe.block!r}",
            f"a float32 tensor of shape {' or '.join(map(str, shapes))}",
            f"pass the raw maximum of |x| in that shape, or leave {name} out to have it measured",
        )
    if value.device != device:
        raise OperandError(f"{name} on {value.device}", f"{device}, where x is", f"move it: {name}.to(x.device)")


def _describe(name: str, value) -> str:
    """What the caller passed: dtype and shape of a tensor, else the type."""
    if isinstance(value, torch.Tensor):
        return f"{name} of {value.dtype} and shape {tuple(value.shape)}"
    return f"{name} of type {type(value).__name__}"


def _check_random_state(recipe: QuantRecipe, seed, offset) -> None:
    if recipe.rounding != "stochastic":
        return
    if seed is None or offset is None:
        raise OperandError(
            f"seed={seed}, offset={offset} with rounding='stochastic'",
            "a seed and an offset, integers or int64 tensors of shape ()",
            "pass both; keep the seed and use another offset for every call",
        )
    for name, value in (("seed", seed), ("offset", offset)):
        tensor = isinstance(value, torch.Tensor) and value.dtype == torch.int64 and value.numel() == 1
        if not tensor and not (isinstance(value, int) and not isinstance(value, bool)):
            raise OperandError(
                f"{name}={value!r}", "an integer or an int64 tensor with one element", f"convert {name}: int({name})"
            )


def _random_state(seed, offset) -> dict:
    return {"seed": 0 if seed is None else seed, "offset": 0 if offset is None else offset}


def _check_offs(offs, device: torch.device) -> None:
    if not isinstance(offs, torch.Tensor) or offs.dtype != torch.int32 or offs.dim() != 1 or offs.numel() == 0:
        raise OperandError(
            _describe("offs", offs),
            "an int32 tensor (E,) of end offsets",
            "sizes.cumsum(0).to(torch.int32) makes them from group sizes",
        )
    if offs.device != device:
        raise OperandError(f"offs on {offs.device}", f"{device}, where x is", "move it: offs.to(x.device)")
