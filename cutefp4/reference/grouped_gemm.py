"""Grouped GEMMs (MoE): one GEMM per group, groups split at device-resident offsets.

    TN, NN   A ragged along the rows (total, K), B a batch (E, N, K):   D (total, N), rows of group g = A_g @ B_g^T
    NT       A and B ragged along K, (M, total) and (N, total):         D (E, M, N), D_g = A_g @ B_g^T

TN and NN differ only in which copy of the weight B is. Where nothing is contracted (an empty group of NT) or no group
covers a row (behind offs[-1]), acc and z are 0 without bias or activation: D is 0, or cast(fl(beta * C)) with a C.
"""

from __future__ import annotations

import torch

from cutefp4.errors import OperandError
from cutefp4.operand import Nvfp4GroupedOperand, Nvfp4Operand
from cutefp4.reference.gemm import check_epilogue, gemm
from cutefp4.reference.grouped import group_ranges

LAYOUTS = ("TN", "NN", "NT")


def _untouched(shape, c: torch.Tensor | None, beta: float, out_dtype: torch.dtype, device) -> torch.Tensor:
    """D before any group is written."""
    if c is None or beta == 0:
        return torch.zeros(shape, dtype=out_dtype, device=device)
    return (torch.full((), beta, dtype=torch.float32, device=device) * c.float()).to(out_dtype)


def _check_kinds(a, b, offs: torch.Tensor | None, layout: str) -> None:
    if layout not in LAYOUTS:
        raise OperandError(f"layout={layout!r}", ", ".join(map(repr, LAYOUTS)), "choose one of these")
    wanted = ("rows", None) if layout != "NT" else ("k", "k")
    for name, operand, ragged in (("a", a, wanted[0]), ("b", b, wanted[1])):
        kind = operand.ragged if isinstance(operand, Nvfp4GroupedOperand) else None
        if kind != ragged or (ragged is None and len(operand.batch_shape) != 1):
            accepted = f"a grouped operand with ragged={ragged!r}" if ragged else "a batched operand (E, N, K)"
            fix = "quantize_grouped makes the rowwise (ragged rows) and columnwise (ragged K) copies"
            raise OperandError(f"{name} = {operand!r} for layout {layout}", accepted, fix)
    if offs is not None and not torch.equal(offs, a.offs):
        raise OperandError(
            f"offs = {offs.tolist()}", f"the offsets that a was quantised with, {a.offs.tolist()}", "pass a.offs"
        )
    if layout == "NT" and not torch.equal(a.offs, b.offs):
        raise OperandError(f"offs {a.offs.tolist()} of a, {b.offs.tolist()} of b", "equal offs", "quantise both alike")
    if layout != "NT" and b.batch_shape[0] != a.groups:
        raise OperandError(f"{a.groups} groups of a, batch of {b.batch_shape[0]} in b", "equal numbers", "check offs")


def batch_item(operand: Nvfp4Operand, i: int) -> Nvfp4Operand:
    """Matrix i of a batched operand."""
    return operand.map(lambda t: t[i])


def grouped_gemm(
    a: Nvfp4GroupedOperand,
    b: Nvfp4Operand | Nvfp4GroupedOperand,
    offs: torch.Tensor | None = None,
    *,
    layout: str,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    c: torch.Tensor | None = None,
    beta: float = 1.0,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """One GEMM per group; see the module's text for the shapes, `gemm` for the arithmetic.

    Args:
        a, b: operands as the layout demands.
        offs: int32 (E,), must be those of the operands; None takes them from `a`. Read on the host.
        layout: "TN", "NN" or "NT".
        bias: (E, N), one row per group, or (N,) for all.
        Others as in `gemm`; c has the shape of D.

    Raises:
        OperandError: operands or arguments that do not fit together.
    """
    _check_kinds(a, b, offs, layout)
    rows = layout != "NT"
    shape = (a.rows, b.rows) if rows else (a.groups, a.rows, b.rows)
    check_epilogue(None, c, out_dtype, shape)
    if bias is not None and tuple(bias.shape) not in ((b.rows,), (a.groups, b.rows)):
        accepted = f"({b.rows},) or ({a.groups}, {b.rows})"
        raise OperandError(f"bias of shape {tuple(bias.shape)}", accepted, "pass one bias, or one per group")
    out = _untouched(shape, c, beta, out_dtype, a.device)
    for g, (begin, end) in enumerate(group_ranges(a.offs, a.rows if rows else a.k, a.device)):
        if begin == end:
            continue
        where = slice(begin, end) if rows else g
        out[where] = gemm(
            a.group(g),
            batch_item(b, g) if rows else b.group(g),
            bias=bias[g] if bias is not None and bias.dim() == 2 else bias,
            activation=activation,
            c=None if c is None else c[where],
            beta=beta,
            out_dtype=out_dtype,
        )
    return out
