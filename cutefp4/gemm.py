"""The products: gemm, gemm_a16, grouped_gemm, and gemm_plan, which says what one would run.

    layout   training use           A             B               D
    TN       fprop  Y = X W^T       X.rowwise     W.rowwise       (M, N)
    NN       dgrad  dX = dY W       dY.rowwise    W.columnwise    (M, K)
    NT       wgrad  dW = dY^T X     dY.columnwise X.columnwise    (N, K)

Every product contracts the stored last axis, and

    z[i, j] = c * (amax_b[j] * (amax_a[i] * acc[i, j])),      c = 1 / (6 * e4m3_max_a * 6 * e4m3_max_b)
    D = cast(activation(z + bias[j]) + beta * C[i, j])

with acc the fp32 sum of (e2m1 * e4m3)_a * (e2m1 * e4m3)_b and each product of z rounded to fp32, innermost first. With
16-bit activations acc is the sum of x * (e2m1 * e4m3)_b, and z = (1 / (6 * e4m3_max)) * (amax_b[j] * acc).

`gemm` and `gemm_plan` take the same arguments: both go through `_request`, which checks them and names the operation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cutefp4 import backend as backends
from cutefp4.epilogue import Epilogue
from cutefp4.epilogue_arguments import epilogue_tensors
from cutefp4.errors import OperandError
from cutefp4.gemm_arguments import (
    check_dense_pair,
    check_epilogue,
    check_groups,
    check_output,
    check_pair,
    pick,
    pick_weight,
)
from cutefp4.operand import Nvfp4GroupedOperand, Nvfp4Operand
from cutefp4.tensor import NVFP4GroupedTensor, NVFP4Tensor, wrap


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
    epilogue: Epilogue | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
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
        epilogue: a function decorated with `cutefp4.epilogue`, instead of bias, activation and accumulate.
        tensors: its arguments and sinks by name: Row (rows of D,), Column (columns of D,), Scalar (), Tile and Store
            (rows, columns), RowAmax (rows,) and ColumnAmax (columns,) float32 that hold 0 or a running maximum; with
            the batch in front if there is one. Sinks are written. Amaxes of A and B are passed by themselves.
        backend: a name of `cutefp4.backend.BACKENDS`; None follows the device.

    Returns:
        D (rows, columns); with a `SwigluPair` epilogue (rows, columns / 2); with an `Nvfp4` epilogue an NVFP4Tensor
        with a rowwise copy.

    Raises:
        OperandError: operands that do not fit, a missing copy, a wrong shape, dtype, device or argument.
        UnsupportedError: the backend does not have this operation.
    """
    picked, options, composed = _request(
        a, b, layout, bias, activation, out, accumulate, out_dtype, batch_invariant, epilogue, tensors
    )
    d = backends.run(
        "gemm_tree" if composed else "gemm", backends.choose(picked[0].device, backend), *picked, **options
    )
    if composed and epilogue.quantizes():
        return wrap((d, None), getattr(torch, epilogue.out.dtype), epilogue.out.recipe)
    return d


def gemm_plan(
    a: NVFP4Tensor | Nvfp4Operand | torch.Tensor,
    b: NVFP4Tensor | Nvfp4Operand,
    *,
    layout: str = "TN",
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    out: torch.Tensor | None = None,
    accumulate: bool = False,
    out_dtype: torch.dtype | None = None,
    batch_invariant: bool = False,
    epilogue: Epilogue | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    backend: str | None = None,
):
    """What `gemm` would run for these arguments, or `gemm_a16` if `a` is a bfloat16 or float16 tensor; runs nothing.

    Args:
        As in `gemm`.

    Returns:
        An object whose `explain()` is a text: the kernel's tiles, how D is stored, how K is shared, waves, padding,
        and its budgets of shared memory and registers; on `reference`, how the oracle computes the product.

    Raises:
        OperandError, UnsupportedError: as the call itself.
    """
    if type(a) is torch.Tensor:
        w, options = _a16_request(a, b, bias, activation, out, out_dtype, batch_invariant)
        options["out_dtype"] = options["out_dtype"] or a.dtype
        x = a.view(-1, a.shape[-1])
        return backends.run("gemm_plan", backends.choose(w.device, backend), x, w, **options)
    picked, options, composed = _request(
        a, b, layout, bias, activation, out, accumulate, out_dtype, batch_invariant, epilogue, tensors
    )
    if composed:
        options = {"tree": picked[2], **options}
    return backends.run("gemm_plan", backends.choose(picked[0].device, backend), *picked[:2], **options)


def _request(
    a, b, layout, bias, activation, out, accumulate, out_dtype, batch_invariant, epilogue, tensors
) -> tuple[tuple, dict, bool]:  # fmt: skip
    """(positional arguments, keywords, whether the epilogue is composed) of the backends' operation; all checked."""
    operand_a, operand_b = pick(a, b, layout, Nvfp4Operand, "gemm")
    check_dense_pair(operand_a, operand_b, layout)
    rows, columns, device = operand_a.rows, operand_b.rows, operand_a.device
    if epilogue is None:
        if tensors is not None:
            raise OperandError("tensors without epilogue", "both, or neither", "pass bias= and out=, or an epilogue")
        dtype = check_output(out, (*operand_a.batch_shape, rows, columns), accumulate, out_dtype, device)
        check_epilogue(bias, activation, columns, device)
        c, beta = (out, 1.0) if accumulate else (None, 0.0)
        options = {"bias": bias, "activation": activation, "c": c, "beta": beta}
        options |= {"out_dtype": dtype, "out": out, "batch_invariant": batch_invariant}
        return (operand_a, operand_b), options, False
    if bias is not None or activation is not None or accumulate:
        raise OperandError(
            "an epilogue together with bias, activation or accumulate",
            "one of the two",
            "write them into the function: relu(z + bias), fma(1.0, c, z)",
        )
    named = epilogue_tensors(epilogue, tensors or {}, operand_a, operand_b)
    if epilogue.halves_columns():
        if columns % 2:
            raise OperandError(f"SwigluPair with {columns} columns", "an even number", "interleave gate and up")
        columns //= 2
    if epilogue.quantizes() and (out is not None or out_dtype is not None):
        raise OperandError("out or out_dtype with an Nvfp4 epilogue", "neither: D is an NVFP4Tensor", "leave them out")
    dtype = check_output(out, (*operand_a.batch_shape, rows, columns), False, out_dtype, device)
    options = {"out_dtype": dtype, "out": out, "batch_invariant": batch_invariant}
    return (operand_a, operand_b, epilogue, named), options, True


def gemm_a16(
    x: torch.Tensor,
    w: NVFP4Tensor | Nvfp4Operand,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    batch_invariant: bool = False,
    backend: str | None = None,
) -> torch.Tensor:
    """Y = activation(x W^T + bias): 16-bit activations and an NVFP4 weight, as for inference (W4A16).

        z[i, j] = (1 / (6 * e4m3_max)) * (amax_w[j] * sum_k x[i, k] * (e2m1 * e4m3)[j, k])

    with the sum in fp32 and each product rounded to fp32, the inner one first.

    Args:
        x: (..., K) bfloat16 or float16, contiguous.
        w: (N, K) NVFP4Tensor with a rowwise copy, or an operand; amax per tensor or per row; no Hadamard transform.
        bias: (N,) bfloat16, float16 or float32, added before the activation.
        activation: None, "relu", "relu2", "gelu" or "silu".
        out: (..., N), contiguous; receives Y.
        out_dtype: bfloat16, float16 or float32; by default out's, and x's without out.
        batch_invariant: a row's result is the same bits alone and in any batch.
        backend: a name of `cutefp4.backend.BACKENDS`; None follows the device. Blackwell has no kernel
            for it. On `sm90` x starts at a multiple of 16 bytes, and a K that is no multiple of 64 may cost a copy.

    Raises:
        OperandError: x, w or an argument that does not fit.
        UnsupportedError: the backend does not have this operation, or not for these tensors.
    """
    operand, options = _a16_request(x, w, bias, activation, out, out_dtype, batch_invariant)
    chosen = backends.choose(operand.device, backend)
    y = backends.run("gemm_a16", chosen, x.view(-1, x.shape[-1]), operand, **options)
    return y.view(*x.shape[:-1], operand.rows) if out is None else out


def _a16_request(x, w, bias, activation, out, out_dtype, batch_invariant) -> tuple[Nvfp4Operand, dict]:
    """(the weight, keywords) of the backends' gemm_a16; all checked."""
    operand = pick_weight(w, x)
    dtype = check_output(out, (*x.shape[:-1], operand.rows), False, out_dtype, operand.device, default=x.dtype)
    check_epilogue(bias, activation, operand.rows, operand.device)
    options = {"bias": bias, "activation": activation, "out_dtype": dtype, "batch_invariant": batch_invariant}
    return operand, {**options, "out": None if out is None else out.view(-1, operand.rows)}


def _kind(offs) -> str:
    """Of a tensor of offsets, all that is compared."""
    if not isinstance(offs, torch.Tensor):
        return type(offs).__name__
    return f"{offs.dtype} {tuple(offs.shape)} on {offs.device}"


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
    operand_a, operand_b = pick(a, b, layout, kinds, "grouped_gemm")
    check_pair(operand_a, operand_b)
    check_groups(operand_a, operand_b, layout)
    if offs is not None and _kind(offs) != _kind(operand_a.offs):
        raise OperandError(
            f"offs: {_kind(offs)}",
            f"those of A: {_kind(operand_a.offs)}",
            "leave offs out: the grouped operand carries them",
        )
    lead = (operand_a.groups,) if layout == "NT" else ()
    dtype = check_output(out, (*lead, operand_a.rows, operand_b.rows), accumulate, out_dtype, operand_a.device)
    if bias is not None and layout == "NT":
        raise OperandError("bias with layout='NT'", "no bias: NT gives weight gradients", "leave bias out")
    check_epilogue(bias, activation, operand_b.rows, operand_a.device, groups=operand_a.groups)
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
