"""cutefp4: NVFP4 quantisation and GEMM for PyTorch, in the CUTLASS Python DSL."""

from cutefp4 import epilogue
from cutefp4.checkpoint import load_safetensors, save_safetensors
from cutefp4.gemm import gemm, gemm_a16, gemm_plan, grouped_gemm
from cutefp4.operand import Nvfp4GroupedOperand, Nvfp4Operand
from cutefp4.producers import NormedTensor, deinterleave_quantize, rmsnorm_quantize, swiglu_quantize
from cutefp4.quantize import dequantize, quantize, quantize_grouped
from cutefp4.recipe import QuantRecipe, TrainingRecipe, named_recipe
from cutefp4.tensor import NVFP4GroupedTensor, NVFP4Tensor

__version__ = "0.1.0"

__all__ = [
    "NVFP4GroupedTensor",
    "NVFP4Tensor",
    "NormedTensor",
    "Nvfp4GroupedOperand",
    "Nvfp4Operand",
    "QuantRecipe",
    "TrainingRecipe",
    "deinterleave_quantize",
    "dequantize",
    "epilogue",
    "gemm",
    "gemm_a16",
    "gemm_plan",
    "grouped_gemm",
    "load_safetensors",
    "named_recipe",
    "quantize",
    "quantize_grouped",
    "rmsnorm_quantize",
    "save_safetensors",
    "swiglu_quantize",
]
