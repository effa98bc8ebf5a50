"""dequantize: codes back to values."""

from __future__ import annotations

import torch

from cutefp4 import compile as kernel_cache
from cutefp4.launch import Operator, arch_of
from cutefp4.operand import Nvfp4Operand
from cutefp4.ops_quantize.launches import DTYPES, remembered
from cutefp4.quant_plan import DequantizePlan


def _dequantize_plan(dtype, scaling: str, layout: str, e4m3_max: int, device):
    return (DequantizePlan(arch_of(device), DTYPES[dtype], scaling, layout, e4m3_max),)


def _decode(codes, scales, amax, out, scaling: str, layout: str, e4m3_max: int) -> None:
    (plan,) = remembered(_dequantize_plan, out.dtype, scaling, layout, e4m3_max, codes.device)
    rows, k = out.shape
    kernel_cache.get(plan)(codes.view(-1), scales.view(-1), amax.view(-1), out.view(-1), rows, k)


decode = Operator(
    "decode(Tensor codes, Tensor scales, Tensor amax, Tensor(a!) out, str scaling, str layout, int e4m3_max) -> ()",
    _decode,
)


def dequantize(operand: Nvfp4Operand, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The values of an operand; arguments and results are those of `cutefp4.reference.dequantize.dequantize`."""
    out = torch.empty((*operand.batch_shape, operand.rows, operand.k), dtype=dtype, device=operand.device)
    fields = (operand.scaling, operand.scale_layout, operand.e4m3_max)
    scales = operand.block_scales.view(torch.uint8)
    if not operand.batch_shape:
        decode(operand.codes, scales, operand.amax, out, *fields)
        return out
    for i in range(out.shape[0]):
        decode(operand.codes[i], scales[i], operand.amax[i], out[i], *fields)
    return out
