"""The oracle: every mode of cutefp4 in plain PyTorch, bit for bit, on any device.

It is written independently of the kernels and is the reference that they are tested against.
"""

from cutefp4.reference.accumulator import gemm_accumulator, in_exact_regime
from cutefp4.reference.activation import ACTIVATIONS, activate
from cutefp4.reference.dequantize import decoded, dequantize
from cutefp4.reference.epilogue_tree import gemm_tree
from cutefp4.reference.gemm import epilogue, gemm, gemm_a16
from cutefp4.reference.grouped import quantize_grouped
from cutefp4.reference.grouped_gemm import grouped_gemm
from cutefp4.reference.metrics import rel_l2, sqnr_db
from cutefp4.reference.quantize import RSR_OFFSETS_PER_CALL, quantize, quantize_weight_dim0, stack
from cutefp4.reference.rmsnorm import add_residual, rmsnorm, rmsnorm_quantize
from cutefp4.reference.swiglu import deinterleave, deinterleave_quantize, interleave, swiglu, swiglu_quantize

__all__ = [
    "ACTIVATIONS",
    "RSR_OFFSETS_PER_CALL",
    "activate",
    "add_residual",
    "decoded",
    "deinterleave",
    "deinterleave_quantize",
    "dequantize",
    "epilogue",
    "gemm",
    "gemm_a16",
    "gemm_accumulator",
    "gemm_tree",
    "grouped_gemm",
    "in_exact_regime",
    "interleave",
    "quantize",
    "quantize_grouped",
    "quantize_weight_dim0",
    "rel_l2",
    "rmsnorm",
    "rmsnorm_quantize",
    "sqnr_db",
    "stack",
    "swiglu",
    "swiglu_quantize",
]
