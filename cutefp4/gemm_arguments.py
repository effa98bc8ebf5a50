"""The checks of the products' arguments: which copies a layout contracts, and whether everything fits together."""

from __future__ import annotations

import torch

from cutefp4 import reference
from cutefp4.errors import OperandError
from cutefp4.operand import Nvfp4GroupedOperand, Nvfp4Operand
from cutefp4.tensor import NVFP4Copies, NVFP4GroupedTensor, NVFP4Tensor

LAYOUT_COPIES = {"TN": ("rowwise", "rowwise"), "NN": ("rowwise", "columnwise"), "NT": ("columnwise", "columnwise")}
OUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
A16_DTYPES = (torch.bfloat16, torch.float16)
ACTIVATIONS = (None, *reference.ACTIVATIONS)


def pick(a, b, layout: str, kinds, caller: str) -> tuple:
    """The operands that the layout contracts."""
    if not isinstance(layout, str) or layout not in LAYOUT_COPIES:
        raise OperandError(
            f"layout={layout!r}", "'TN', 'NN' or 'NT'", "TN is the forward product, NN and NT are its two gradients"
        )
    kinds = kinds if isinstance(kinds, tuple) else (kinds, kinds)
    picked = zip("AB", (a, b), LAYOUT_COPIES[layout], kinds, strict=True)
    return tuple(_pick_one(name, t, copy, kind, layout, caller) for name, t, copy, kind in picked)


def _pick_one(name: str, t, copy: str, kind: type, layout: str, caller: str):
    operand = t
    if isinstance(t, (NVFP4Tensor, NVFP4Copies, NVFP4GroupedTensor)):
        operand = getattr(t, copy)
        if operand is None:
            raise OperandError(
                f"{name} without a {copy} copy: {t!r}",
                f"a {copy} copy, which layout {layout} contracts",
                f"quantise it with {copy}=True",
            )
    if not isinstance(operand, kind):
        wanted = "a grouped tensor" if kind is Nvfp4GroupedOperand else "an NVFP4Tensor or Nvfp4Operand"
        maker = "quantize_grouped" if kind is Nvfp4GroupedOperand else "quantize"
        raise OperandError(
            f"{name} of type {type(t).__name__} in {caller}, layout {layout}", wanted, f"make it with cutefp4.{maker}"
        )
    return operand


def check_dense_pair(a: Nvfp4Operand, b: Nvfp4Operand, layout: str) -> None:
    """Batch and K of the two sides agree too."""
    check_pair(a, b)
    if a.batch_shape != b.batch_shape:
        raise OperandError(
            f"A of batch {a.batch_shape} and B of batch {b.batch_shape}",
            "the same batch on both sides",
            "stack the smaller one, or multiply matrix by matrix",
        )
    if a.k != b.k:
        raise OperandError(
            f"A {a.rows}x{a.k} and B {b.rows}x{b.k} in layout {layout}: K = {a.k} and {b.k}",
            "the same K, the stored last axis of both",
            "check the layout: TN contracts columns with columns, NN columns with rows, NT rows with rows",
        )


def pick_weight(w, x: torch.Tensor) -> Nvfp4Operand:
    """The operand of a weight (N, K) that 16-bit activations x (..., K) are multiplied with; checks both."""
    operand = _pick_one("w", w, "rowwise", Nvfp4Operand, "TN", "gemm_a16")
    if not isinstance(x, torch.Tensor) or x.dtype not in A16_DTYPES or x.dim() < 2 or not x.is_contiguous():
        what = f"{x.dtype} {tuple(x.shape)}, strides {x.stride()}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise OperandError(
            f"activations {what}", "a contiguous (..., K) tensor of bfloat16 or float16", "convert or copy it"
        )
    if operand.batch_shape or x.shape[-1] != operand.k:
        raise OperandError(
            f"activations {tuple(x.shape)} and a weight of batch {operand.batch_shape}, {operand.rows}x{operand.k}",
            "the same K, the last axis of both, and a weight without a batch",
            "multiply a batch of weights matrix by matrix",
        )
    if x.device != operand.device:
        raise OperandError(
            f"activations on {x.device} and the weight on {operand.device}", "both on one device", "move one with .to()"
        )
    if operand.rht is not None:
        raise OperandError(
            f"a weight with a Hadamard transform (rht={operand.rht:#06x}) and activations without",
            "a weight without one",
            "quantise the weight with rht=None",
        )
    return operand


def check_pair(a, b) -> None:
    """Device and Hadamard transform of the two sides agree."""
    if a.device != b.device:
        raise OperandError(f"A on {a.device} and B on {b.device}", "both on one device", "move one with .to(device)")
    if a.rht != b.rht:
        given = " and ".join(
            f"{name} {'without a Hadamard transform' if op.rht is None else f'with rht={op.rht:#06x}'}"
            for name, op in (("A", a), ("B", b))
        )
        raise OperandError(
            given, "both without, or both with the same sign mask", "quantise both with the same rht and rht_sign_mask"
        )


def check_groups(a: Nvfp4GroupedOperand, b, layout: str) -> None:
    ragged = "k" if layout == "NT" else "rows"
    for name, op in (("A", a), ("B", b)):
        if isinstance(op, Nvfp4GroupedOperand) and op.ragged != ragged:
            raise OperandError(
                f"{name} grouped along {op.ragged} in layout {layout}",
                f"groups along {ragged}",
                "pass the NVFP4GroupedTensor and let the layout choose the copy",
            )
    groups_b = b.groups if layout == "NT" else (b.batch_shape[0] if b.batch_shape else None)
    if groups_b != a.groups:
        given = "no batch axis" if groups_b is None else f"{groups_b} groups"
        raise OperandError(
            f"A with {a.groups} groups and B with {given}",
            f"{a.groups} groups on both sides",
            "quantise the weights as one (E, N, K) tensor, E as in offs",
        )
    if a.k != b.k:
        raise OperandError(
            f"A with K = {a.k} and B with K = {b.k} in layout {layout}",
            "the same K, the stored last axis of both",
            "check the layout: TN contracts columns with columns, NN columns with rows, NT tokens with tokens",
        )


def check_output(
    out,
    shape: tuple[int, ...],
    accumulate: bool,
    out_dtype,
    device: torch.device,
    default: torch.dtype = torch.bfloat16,
) -> torch.dtype:
    """Check `out` and return the dtype of D."""
    if out_dtype not in (None, *OUT_DTYPES):
        raise OperandError(
            f"out_dtype={out_dtype}", "bfloat16, float16 or float32", "choose one of these and convert D"
        )
    if out is None:
        if accumulate:
            raise OperandError("accumulate=True without out", "out, the tensor to add to", "pass out=")
        return out_dtype or default
    if not isinstance(out, torch.Tensor) or out.dtype not in OUT_DTYPES or out_dtype not in (None, out.dtype):
        raise OperandError(
            f"out of {getattr(out, 'dtype', type(out).__name__)} with out_dtype={out_dtype}",
            "out of bfloat16, float16 or float32, and out_dtype the same or left out",
            "leave out_dtype out, or allocate out with it",
        )
    if tuple(out.shape) != shape or out.device != device or not out.is_contiguous():
        raise OperandError(
            f"out of shape {tuple(out.shape)}, strides {out.stride()} on {out.device}",
            f"a contiguous tensor of shape {shape} on {device}",
            f"allocate it with torch.empty{shape}, or leave it out",
        )
    if out.requires_grad and torch.is_grad_enabled():
        raise OperandError(
            "out that requires grad", "a tensor without a gradient of its own", "pass out.data, or call under no_grad()"
        )
    return out.dtype


def check_epilogue(bias, activation, columns: int, device: torch.device, groups: int | None = None) -> None:
    if activation not in ACTIVATIONS:
        accepted = ", ".join(map(repr, ACTIVATIONS))
        raise OperandError(f"activation={activation!r}", accepted, "apply another activation to D")
    if bias is None:
        return
    shapes = [(columns,)] if groups is None else [(columns,), (groups, columns)]
    if not isinstance(bias, torch.Tensor) or tuple(bias.shape) not in shapes or bias.dtype not in OUT_DTYPES:
        what = f"{bias.dtype} {tuple(bias.shape)}" if isinstance(bias, torch.Tensor) else type(bias).__name__
        accepted = f"bfloat16, float16 or float32 of shape {' or '.join(map(str, shapes))}"
        raise OperandError(f"bias: {what}", accepted, "pass one value per column of D")
    if bias.device != device:
        raise OperandError(f"bias on {bias.device}", f"{device}, where the operands are", "move it there")
