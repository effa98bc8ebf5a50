"""From codes back to values.

`dequantize` uses one order of fp32 operations: fl(q * fl(s * fl(A / NUM))), with NUM = 6 * e4m3_max. `decoded` leaves
the outer scale out: q * s has at most 6 significant bits and lies between 2**-10 and 6*448, so it is exact even in fp16
and bf16; that is what a GEMM on decoded operands multiplies.
"""

from __future__ import annotations

import torch

from cutefp4.format import BLOCK, decode_e2m1, decode_e4m3, divide, numerator, unpack_codes
from cutefp4.operand import Nvfp4GroupedOperand, Nvfp4Operand


def decoded(operand: Nvfp4Operand, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """q * s of every element, exact in every floating dtype from fp16 up: (..., rows, k), without the outer scale."""
    q = decode_e2m1(unpack_codes(operand.codes)).unflatten(-1, (-1, BLOCK))
    return (q * decode_e4m3(operand.compact_scales()).unsqueeze(-1)).flatten(-2).to(dtype)


def _dequantize_one(operand: Nvfp4Operand) -> torch.Tensor:
    outer = divide(operand.row_amax().contiguous(), numerator(operand.e4m3_max))
    factor = decode_e4m3(operand.compact_scales()) * outer.unsqueeze(-1)
    q = decode_e2m1(unpack_codes(operand.codes)).unflatten(-1, (-1, BLOCK))
    return (q * factor.unsqueeze(-1)).flatten(-2)


def dequantize(operand: Nvfp4Operand | Nvfp4GroupedOperand, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The values of an operand.

    Args:
        operand: a matrix, a batch, or a grouped operand.
        dtype: of the result; one rounding from fp32.

    Returns:
        (..., rows, k). A columnwise copy gives the (C, R) transpose of what was quantised, still in the Hadamard domain
        if the recipe had a transform. Grouped operands give (rows, k) without the padding between groups, and zeros
        behind offs[-1].
    """
    if isinstance(operand, Nvfp4Operand):
        return _dequantize_one(operand).to(dtype)
    out = torch.zeros(operand.rows, operand.k, dtype=dtype, device=operand.device)
    begin = 0
    for g, end in enumerate(operand.offs.tolist()):
        group = operand.group(g)
        if group is not None:
            values = _dequantize_one(group).to(dtype)
            if operand.ragged == "rows":
                out[begin:end] = values
            else:
                out[:, begin:end] = values[:, : end - begin]
        begin = end
    return out
