"""The GEMM: exact accumulators and the epilogue, one fp32 rounding per operation in the order written.

acc = fl(sum_k (q*s)_a[i,k] * (q*s)_b[j,k])                the exact sum, rounded once
z   = fl(const * fl(alpha_b[j] * fl(alpha_a[i] * acc)))    alpha = outer amaxes, const = fl(1 / (NUM_a * NUM_b))
z   = fl(z + bias[j])                                      if there is a bias
z   = activation(z)                                        see `activation`
z   = fma(beta, C[i,j], z)                                 if there is a C and beta is not 0; one rounding
D   = cast(z)
"""

from __future__ import annotations

import torch

from cutefp4.errors import OperandError
from cutefp4.format import gemm_constant, weight_constant
from cutefp4.operand import Nvfp4Operand
from cutefp4.reference.accumulator import gemm_accumulator
from cutefp4.reference.activation import activate
from cutefp4.reference.dequantize import decoded

OUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def fma(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """fl(x * y + z) of fp32 tensors with a single rounding.

    The product is exact in fp64; the fp64 sum is rounded to odd, which makes the second rounding, to fp32, right.
    """
    product, addend = torch.broadcast_tensors(x.double() * y.double(), z.double())
    total = product + addend
    shadow = total - product
    lost = (product - (total - shadow)) + (addend - shadow)
    bits = total.view(torch.int64)
    inexact_even = torch.isfinite(total) & (lost != 0) & (bits & 1 == 0)
    away = (lost > 0) == (total > 0)
    odd = torch.where(away, bits + 1, bits - 1).view(torch.float64)
    return torch.where(inexact_even, odd, total).float()


def check_epilogue(bias, c, out_dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Raise `OperandError` unless bias, C and out_dtype fit a D of this shape."""
    if out_dtype not in OUT_DTYPES:
        raise OperandError(f"out_dtype={out_dtype}", ", ".join(map(str, OUT_DTYPES)), "choose one of these")
    *batch, _, n = shape
    if bias is not None and tuple(bias.shape) not in ((n,), (*batch, n)):
        raise OperandError(f"bias of shape {tuple(bias.shape)}", f"({n},), one per column of D", "reshape the bias")
    if c is not None and tuple(c.shape) != tuple(shape):
        raise OperandError(f"C of shape {tuple(c.shape)}", f"{tuple(shape)}, the shape of D", "reshape C")


def epilogue(
    acc: torch.Tensor,
    alpha_a: torch.Tensor,
    alpha_b: torch.Tensor,
    constant: float,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    c: torch.Tensor | None = None,
    beta: float = 1.0,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """Everything behind the accumulator; see the module's text for the order.

    Args:
        acc: (..., M, N), fp32 or wider; rounded to fp32 first.
        alpha_a, alpha_b: fp32 (..., M) and (..., N).
        constant: an fp32 number.
        bias: (N,) or (..., N), any floating dtype.
        activation: "relu", "relu2", "gelu", "silu" or None.
        c: (..., M, N), any floating dtype; not read if beta is 0.
        beta: rounded to fp32.
        out_dtype: bfloat16, float16 or float32.

    Raises:
        OperandError: a wrong shape, dtype or name.
    """
    check_epilogue(bias, c, out_dtype, tuple(acc.shape))
    z = alpha_a.unsqueeze(-1) * acc.float()
    z = alpha_b.unsqueeze(-2) * z
    z = torch.full_like(z, constant) * z
    if bias is not None:
        z = z + bias.float().unsqueeze(-2)
    z = activate(z, activation)
    if c is not None and beta != 0:
        z = fma(torch.full_like(z, beta), c.float(), z)
    return z.to(out_dtype)


def gemm(
    a: Nvfp4Operand,
    b: Nvfp4Operand,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    c: torch.Tensor | None = None,
    beta: float = 1.0,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """D = cast(activation(A @ B^T + bias) + beta * C) of two operands, both with the contraction axis last.

    Args:
        a, b: (..., M, K) and (..., N, K); any scaling, e4m3_max and scale layout each.
        Others as in `epilogue`.

    Returns:
        (..., M, N) in `out_dtype`.

    Raises:
        OperandError: operands or arguments that do not fit together.
    """
    acc = gemm_accumulator(a, b)
    constant = gemm_constant(a.e4m3_max, b.e4m3_max)
    options = {"bias": bias, "activation": activation, "c": c, "beta": beta, "out_dtype": out_dtype}
    return epilogue(acc, a.row_amax(), b.row_amax(), constant, **options)


def gemm_a16(
    x: torch.Tensor,
    w: Nvfp4Operand,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """Y = cast(activation(x W^T + bias)) of 16-bit activations and a quantised weight.

    acc = fl(sum_k x[i,k] * (q*s)_w[j,k]), summed in fp64; z = fl(c * fl(amax_w[j] * acc)), c = fl(1 / (6 * e4m3_max)).

    Args:
        x: (M, K) bfloat16 or float16. w: (N, K), without a Hadamard transform. Others as in `epilogue`.

    Raises:
        OperandError: arguments that do not fit together.
    """
    if x.shape[-1] != w.k:
        raise OperandError(
            f"activations with K = {x.shape[-1]} and a weight with K = {w.k}", "the same K", "check both"
        )
    acc = x.double() @ decoded(w).double().mT
    constant = weight_constant(w.e4m3_max)
    one = torch.ones(acc.shape[:-1], device=acc.device)
    return epilogue(acc, one, w.row_amax(), constant, bias=bias, activation=activation, out_dtype=out_dtype)
