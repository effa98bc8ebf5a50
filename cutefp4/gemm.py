"""gemm and grouped_gemm: pick the copies that the layout contracts, check them, choose a backend, run.

    layout   training use           A             B               D
    TN       fprop  Y = X W^T       X.rowwise     W.rowwise       (M, N)
    NN       dgrad  dX = dY W       dY.rowwise    W.columnwise    (M, K)
    NT       wgrad  dW = dY^T X     dY.columnwise X.columnwise    (N, K)

Every product contracts the stored last axis, and

    z[i, j] = c * (amax_b[j] * (amax_a[i] * acc[i, j])),      c = 1 / (6 * e4m3_max_a * 6 * e4m3_max_b)
    D = cast(activation(z + bias[j]) + beta * C[i, j])

with acc the fp32 sum of (e2m1 * e4m3)_a * (e2m1 * e4m3)_b and each product of z rounded to fp32, innermost first.
"""

from __future__ import annotations

import torch

from cutefp4 import backend as backends
from cutefp4 import reference
from cutefp4.errors import OperandError
from cutefp4.operand import Nvfp4GroupedOperand, Nvfp4Operand
from cutefp4.tensor import NVFP4Copies, NVFP4GroupedTensor, NVFP4Tensor

LAYOUT_COPIES = {"TN": ("rowwise", "rowwise"), "NN": ("rowwise", "columnwise"), "NT": ("columnwise", "columnwise")}
OUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ACTIVATIONS = (None, *reference.ACTIVATIONS)


def gemm(
    a: NVFP4Tensor | Nvfp4Operand,
    b: NVFP4Tensor | Nvfp4Operand,
    *,
    layout: str = "TN",
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    out: torch.Tensor | None = None,
    accumulate: bool = False,
    out_dtype: torch.dtype | None = None,
    batch_invariant: bool = False,
    backend: str | None = None,
) -> torch.Tensor:
    """Multiply two quantised matrices: D[i, j] = sum_k A[i, k] * B[j, k] over the copies that `layout` names.

    Args:
        a, b: NVFP4Tensor, from which the layout picks the copy, or an Nvfp4Operand, which is taken as it is
            (contraction axis last). Batches (L, ., .) multiply matrix by matrix.
        layout: "TN", "NN" or "NT"; see the module's table.
        bias: (columns of D,) bfloat16, float16 or float32, added before the activation.
        activation: None, "relu", "relu2" (squared), "gelu" (exact, with erf) or "silu".
        out: (rows, columns of D), contiguous; receives D.
        accumulate: add D to what `out` holds (in fp32, one rounding into its dtype), as for gradients.
        out_dtype: bfloat16, float16 or float32; by default out's, and bfloat16 without out.
        batch_invariant: choose a schedule that does not depend on the rows of A, so that a row's result is the same
            bits alone and in any batch.
        backend: a name of `cutefp4.backend.BACKENDS`; None follows the device.

    Raises:
        OperandError: operands that do not fit, a missing copy, a wrong shape, dtype, device or argument.
        UnsupportedError: the backend does not have this operation.
    """
    operand_a, operand_b = _pick(a, b, layout, Nvfp4Operand, "gemm")
    _check_pair(operand_a, operand_b)
    if operand_a.batch_shape != operand_b.batch_shape:
        raise OperandError(
            f"A of batch {operand_a.batch_shape} and B of batch {operand_b.batch_shape}",
            "the same batch on both sides",
            "stack the smaller one, or multiply matrix by matrix",
        )
    if operand_a.k != operand_b.k:
        raise OperandError(
            f"A {operand_a.rows}x{operand_a.k} and B {operand_b.rows}x{operand_b.k} in layout {layout}: "
            f"K = {operand_a.k} and {operand_b.k}",
            "the same K, the stored last axis of both",
            "check the layout: TN contracts columns with columns, NN columns with rows, NT rows with rows",
        )
    shape = (*operand_a.batch_shape, operand_a.rows, operand_b.rows)
    dtype = _check_output(out, shape, accumulate, out_dtype, operand_a.device)
    _check_epilogue(bias, activation, operand_b.rows, operand_a.device)
    return backends.run(
        "gemm",
        backends.choose(operand_a.device, backend),
        operand_a,
        operand_b,
        bias=bias,
        activation=activation,
        c=out if accumulate else None,
        beta=1.0 if accumulate else 0.0,
        out_dtype=dtype,
        out=out,
        batch_invariant=batch_invariant,
    )


def grouped_gemm(
    a: NVFP4GroupedTensor | Nvfp4GroupedOperand,
    b: NVFP4Tensor | NVFP4GroupedTensor | Nvfp4Operand | Nvfp4GroupedOperand,
    *,
    layout: str = "TN",
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    out: torch.Tensor | None = None,
    accumulate: bool = False,
    out_dtype: torch.dtype | None = None,
    batch_invariant: bool = False,
    backend: str | None = None,
) -> torch.Tensor:
    """One GEMM per group (expert), in one call, with group sizes that only the device knows.

    Args:
        a: grouped along its rows (the tokens of each expert).
        b: TN and NN: one weight per group, a batch (E, ., .). NT: grouped like a.
        layout: "TN": D (T, N) = rows of a times their expert's weight; "NN": D (T, K), the gradient of a; "NT": D
            (E, N, K), the gradient of the weights; a group without rows gives zeros, or leaves `out` as it is when
            accumulating.
        offs: the groups' end offsets. The grouped operands carry them; pass them only to assert that you mean the same
            tensor (shape, dtype and device are compared, not values).
        bias: (columns of D,) for all groups, or (E, columns of D); TN and NN only.
        activation, out, accumulate, out_dtype, batch_invariant, backend: as in `gemm`.

    Raises:
        OperandError, UnsupportedError: as `gemm`.
    """
    kinds = Nvfp4GroupedOperand if layout == "NT" else (Nvfp4GroupedOperand, Nvfp4Operand)
    operand_a, operand_b = _pick(a, b, layout, kinds, "grouped_gemm")
    _check_pair(operand_a, operand_b)
    _check_groups(operand_a, operand_b, layout)
    if offs is not None and (offs.shape, offs.dtype, offs.device) != (
        operand_a.offs.shape,
        operand_a.offs.dtype,
        operand_a.offs.device,
    ):
        raise OperandError(
            f"offs of {offs.dtype} {tuple(offs.shape)} on {offs.device}",
            f"those of A: {operand_a.offs.dtype} {tuple(operand_a.offs.shape)} on {operand_a.device}",
            "leave offs out: the grouped operand carries them",
        )
    lead = (operand_a.groups,) if layout == "NT" else ()
    dtype = _check_output(out, (*lead, operand_a.rows, operand_b.rows), accumulate, out_dtype, operand_a.device)
    if bias is not None and layout == "NT":
        raise OperandError("bias with layout='NT'", "no bias: NT gives weight gradients", "leave bias out")
    _check_epilogue(bias, activation, operand_b.rows, operand_a.device, groups=operand_a.groups)
    return backends.run(
        "grouped_gemm",
        backends.choose(operand_a.device, backend),
        operand_a,
        operand_b,
        layout=layout,
        bias=bias,
        activation=activation,
        c=out if accumulate else None,
        beta=1.0 if accumulate else 0.0,
        out_dtype=dtype,
        out=out,
        batch_invariant=batch_invariant,
    )


def _pick(a, b, layout: str, kinds, caller: str) -> tuple:
    """The operands that the layout contracts."""
    if layout not in LAYOUT_COPIES:
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


def _check_pair(a, b) -> None:
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


def _check_groups(a: Nvfp4GroupedOperand, b, layout: str) -> None:
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


def _check_output(out, shape: tuple[int, ...], accumulate: bool, out_dtype, device: torch.device) -> torch.dtype:
    """Check `out` and return the dtype of D."""
    if out_dtype not in (None, *OUT_DTYPES):
        raise OperandError(
            f"out_dtype={out_dtype}", "bfloat16, float16 or float32", "choose one of these and convert D"
        )
    if out is None:
        if accumulate:
            raise OperandError("accumulate=True without out", "out, the tensor to add to", "pass out=")
        return out_dtype or torch.bfloat16
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
    return out.dtype


def _check_epilogue(bias, activation, columns: int, device: torch.device, groups: int | None = None) -> None:
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
