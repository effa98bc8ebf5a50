"""The accumulator of a GEMM without rounding errors, and the predicate that says when fp32 makes none either.

q * s is an integer in units of 2**-10 of at most 22 bits, so a product of two is one in units of 2**-20, and a sum of
K of them stays below 2**63 up to K = 2**20.

The sum is a single fp64 matrix product where K * max|a| * max|b| < 2**53 units of the operands' lowest set bits (true
for almost every real pair); otherwise one operand is split into two integers of 11 bits, both products are exact in
fp64, and their sum in int64 is exact. So the result is the exact sum, rounded to fp64 only beyond 2**53 units.
"""

from __future__ import annotations

import torch

from cutefp4.errors import OperandError
from cutefp4.operand import Nvfp4Operand
from cutefp4.reference.dequantize import decoded

_UNITS_PER_OPERAND = 1024
"""q * s is a multiple of 2**-10."""

_SPLIT = 1 << 11
_MAX_K = 1 << 20


def check_pair(a: Nvfp4Operand, b: Nvfp4Operand) -> None:
    """Raise `OperandError` unless `a` (M, K) and `b` (N, K) can be multiplied."""
    facts = (
        ("K", a.k, b.k, "quantise both along the same contraction axis (check the layout: TN, NN or NT)"),
        ("batch", a.batch_shape, b.batch_shape, "expand the operand that has no batch"),
        ("Hadamard mask", a.rht, b.rht, "quantise both with the same transform, or both without"),
        ("device", a.device, b.device, "move both operands to one device"),
    )
    for name, of_a, of_b, fix in facts:
        if of_a != of_b:
            raise OperandError(f"{name} {of_a} of a and {of_b} of b", f"equal {name}", fix)
    if a.k > _MAX_K:
        raise OperandError(f"K = {a.k}", f"at most {_MAX_K} in the reference", "split the contraction axis")


def _lowest_bit(units: torch.Tensor) -> torch.Tensor:
    """Largest power of two that divides every element of the last axis; 2**30 if all are zero."""
    bits = units & -units
    return torch.where(bits == 0, 1 << 30, bits).amin(dim=-1)


def _as_units(operand: Nvfp4Operand) -> torch.Tensor:
    """q * s in units of 2**-10, int64 (..., rows, k)."""
    return (decoded(operand) * _UNITS_PER_OPERAND).to(torch.int64)


def _single_product_is_exact(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.numel() == 0 or b.numel() == 0:
        return True
    largest = (
        float(a.abs().amax()) / float(_lowest_bit(a).amin()) * float(b.abs().amax()) / float(_lowest_bit(b).amin())
    )
    return a.shape[-1] * largest < 2.0**53


def gemm_accumulator(a: Nvfp4Operand, b: Nvfp4Operand) -> torch.Tensor:
    """acc[i, j] = sum over k of (q * s)_a[i, k] * (q * s)_b[j, k], exact; outer scales left out.

    Args:
        a, b: operands (..., M, K) and (..., N, K) of equal batch, with finite scales.

    Returns:
        fp64 (..., M, N).

    Raises:
        OperandError: the operands do not fit together.
    """
    check_pair(a, b)
    units_a, units_b = _as_units(a), _as_units(b)
    wide_b = units_b.double().mT
    if _single_product_is_exact(units_a, units_b):
        total = units_a.double() @ wide_b
    else:
        high = units_a >> 11  # floor: units_a = high * 2048 + low with 0 <= low < 2048
        low = units_a - high * _SPLIT
        total = ((high.double() @ wide_b).to(torch.int64) * _SPLIT + (low.double() @ wide_b).to(torch.int64)).double()
    return total / _UNITS_PER_OPERAND**2


def in_exact_regime(a: Nvfp4Operand, b: Nvfp4Operand) -> torch.Tensor:
    """Where an fp32 accumulator is exact in every order of summation.

    Every term of acc[i, j] is a multiple of u = (lowest set bit in row i of a) * (lowest set bit in row j of b), so no
    partial sum rounds if the sum of the terms' magnitudes is at most 2**24 * u. Sufficient, not necessary.

    Returns:
        bool (..., M, N).
    """
    check_pair(a, b)
    units_a, units_b = _as_units(a), _as_units(b)
    magnitudes = units_a.abs().double() @ units_b.abs().double().mT
    unit = _lowest_bit(units_a).double().unsqueeze(-1) * _lowest_bit(units_b).double().unsqueeze(-2)
    return magnitudes <= 2.0**24 * unit
