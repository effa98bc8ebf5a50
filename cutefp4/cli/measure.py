"""What 4 bits cost a linear layer: SQNR of its tensors and errors of its three products, under one training recipe."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import cutefp4
from cutefp4.recipe import TrainingRecipe
from cutefp4.reference import rel_l2, sqnr_db

SEED = 7


@dataclass(frozen=True)
class LayerData:
    """One linear layer at work, all bfloat16: weight (N, K), input x (T, K), gradient of the output dy (T, N).

    T, N and K are multiples of 16.
    """

    name: str
    weight: torch.Tensor
    x: torch.Tensor
    dy: torch.Tensor


@dataclass(frozen=True)
class LayerError:
    """Figures of one layer under one recipe; SQNR in dB, errors are ||D - D64|| / ||D64|| against float64."""

    layer: str
    recipe: str
    n: int
    k: int
    bytes_bf16: int
    bytes_nvfp4: int
    sqnr_weight_db: float
    sqnr_x_db: float
    error_tn: float
    error_nn: float
    error_nt: float


def measure_layer(layer: LayerData, recipe_name: str, recipe: TrainingRecipe, offset: int) -> LayerError:
    """Quantise weight, input and gradient of a layer, run fprop, dgrad and wgrad, compare with float64.

    Args:
        layer: the data.
        recipe_name: a label.
        recipe: what to quantise x, w and dy with.
        offset: of stochastic rounding; another one for every layer.
    """
    state = {"seed": SEED, "offset": offset}
    weight = cutefp4.quantize(layer.weight, recipe.w, columnwise=True, **state)
    x = cutefp4.quantize(layer.x, recipe.x, columnwise=True, **state)
    dy = cutefp4.quantize(layer.dy, recipe.dy, columnwise=True, **state)
    w64, x64, dy64 = layer.weight.double(), layer.x.double(), layer.dy.double()
    products = {
        "TN": (cutefp4.gemm(x, weight, layout="TN", out_dtype=torch.float32), x64 @ w64.T),
        "NN": (cutefp4.gemm(dy, weight, layout="NN", out_dtype=torch.float32), dy64 @ w64),
        "NT": (cutefp4.gemm(dy, x, layout="NT", out_dtype=torch.float32), dy64.T @ x64),
    }
    errors = {layout: float(rel_l2(d, exact)) for layout, (d, exact) in products.items()}
    n, k = layer.weight.shape
    return LayerError(
        layer=layer.name,
        recipe=recipe_name,
        n=n,
        k=k,
        bytes_bf16=layer.weight.numel() * 2,
        bytes_nvfp4=weight.rowwise.nbytes,
        sqnr_weight_db=float(sqnr_db(weight.dequantize(torch.float32), w64)),
        sqnr_x_db=float(sqnr_db(x.dequantize(torch.float32), x64)),
        error_tn=errors["TN"],
        error_nn=errors["NN"],
        error_nt=errors["NT"],
    )
