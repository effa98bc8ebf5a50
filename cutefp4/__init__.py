"""cutefp4: NVFP4 quantisation and GEMM for PyTorch, in the CUTLASS Python DSL."""

from cutefp4.operand import Nvfp4GroupedOperand, Nvfp4Operand
from cutefp4.recipe import QuantRecipe, TrainingRecipe, named_recipe

__version__ = "0.1.0"

__all__ = [
    "Nvfp4GroupedOperand",
    "Nvfp4Operand",
    "QuantRecipe",
    "TrainingRecipe",
    "named_recipe",
]
