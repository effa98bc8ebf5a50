"""Checks of the arguments that the quantising functions share: before any backend sees them, without reading values."""

from __future__ import annotations

import torch

from cutefp4.errors import NonFiniteError, OperandError
from cutefp4.format import BLOCK
from cutefp4.recipe import QuantRecipe
from cutefp4.scale_layout import round_up
from cutefp4.tensor import NVFP4Tensor

INPUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


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


def quantizer_options(
    x,
    recipe: QuantRecipe,
    copies: tuple[bool, bool],
    amaxes: tuple[torch.Tensor | None, torch.Tensor | None],
    state: tuple,
    check_finite: bool,
    shape: tuple[int, ...] | None = None,
) -> dict:
    """Keywords of a backend's quantising function, checked.

    Args:
        copies: rowwise, columnwise. amaxes: theirs. state: seed, offset.
        shape: of the matrix that is quantised, if it is not x itself.
    """
    check_recipe(recipe)
    check_input(x, recipe, *copies, columns=shape[-1] if shape else None)
    check_amaxes(shape or tuple(x.shape), x.device, recipe, *amaxes)
    check_random_state(recipe, *state)
    if check_finite:
        require_finite(x)
    amaxes = tuple(None if amax is None else amax.contiguous() for amax in amaxes)
    names = ("rowwise", "columnwise", "amax", "columnwise_amax")
    return {**dict(zip(names, (*copies, *amaxes), strict=True)), **random_state(*state)}


def check_recipe(recipe: QuantRecipe) -> None:
    if not isinstance(recipe, QuantRecipe):
        raise OperandError(
            f"recipe of type {type(recipe).__name__}",
            "a QuantRecipe",
            "pass QuantRecipe(...), or one of the three of a TrainingRecipe: named_recipe('te').x, .w or .dy",
        )


def check_input(x, recipe: QuantRecipe, rowwise: bool, columnwise: bool | None, columns: int | None = None) -> None:
    if not isinstance(x, torch.Tensor) or isinstance(x, NVFP4Tensor):
        raise OperandError(f"x of type {type(x).__name__}", "a dense torch.Tensor", "pass the unquantised matrix")
    # A graph of torch.compile holds dense tensors, and inside an autograd.Function it may not ask for the layout.
    if not torch.compiler.is_compiling() and x.layout is not torch.strided:
        raise OperandError(f"x of layout {x.layout}", "a dense torch.Tensor", "convert x: x.to_dense()")
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


def check_amaxes(shape: tuple[int, ...], device: torch.device, recipe: QuantRecipe, amax, columnwise_amax) -> None:
    *batch, rows, columns = shape
    batch = tuple(batch)
    for name, value, length in (("amax", amax, rows), ("columnwise_amax", columnwise_amax, columns)):
        shapes = [batch] if recipe.scaling == "tensor" or recipe.block == "2d" else []
        if recipe.scaling == "token":
            shapes.append((*batch, length))
        check_amax(name, value, shapes, recipe, device)


def check_amax(name: str, value, shapes: list[tuple[int, ...]], recipe: QuantRecipe, device: torch.device) -> None:
    if value is None:
        return
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32 or tuple(value.shape) not in shapes:
        raise OperandError(
            f"{describe(name, value)} with scaling={recipe.scaling!r}, block={recipe.block!r}",
            f"a float32 tensor of shape {' or '.join(map(str, shapes))}",
            f"pass the raw maximum of |x| in that shape, or leave {name} out to have it measured",
        )
    if value.device != device:
        raise OperandError(f"{name} on {value.device}", f"{device}, where x is", f"move it: {name}.to(x.device)")


def describe(name: str, value) -> str:
    """What the caller passed: dtype and shape of a tensor, else the type."""
    if isinstance(value, torch.Tensor):
        return f"{name} of {value.dtype} and shape {tuple(value.shape)}"
    return f"{name} of type {type(value).__name__}"


def check_random_state(recipe: QuantRecipe, seed, offset) -> None:
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


def random_state(seed, offset) -> dict:
    return {"seed": 0 if seed is None else seed, "offset": 0 if offset is None else offset}


def check_offs(offs, device: torch.device) -> None:
    if not isinstance(offs, torch.Tensor) or offs.dtype != torch.int32 or offs.dim() != 1 or offs.numel() == 0:
        raise OperandError(
            describe("offs", offs),
            "an int32 tensor (E,) of end offsets",
            "sizes.cumsum(0).to(torch.int32) makes them from group sizes",
        )
    if offs.device != device:
        raise OperandError(f"offs on {offs.device}", f"{device}, where x is", "move it: offs.to(x.device)")
