"""A composed epilogue in plain PyTorch: every node is one fp32 operation with one rounding.

Functions with an exponential or erf are evaluated in fp64 and rounded once, as `activation` does; a kernel that uses
the hardware's functions is compared with a tolerance there, and bit for bit everywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from cutefp4 import epilogue as trees
from cutefp4.epilogue import Epilogue, Node
from cutefp4.format import gemm_constant
from cutefp4.operand import Nvfp4Operand
from cutefp4.reference.accumulator import gemm_accumulator
from cutefp4.reference.activation import ACTIVATIONS, relu, silu
from cutefp4.reference.gemm import fma
from cutefp4.reference.quantize import quantize


def relu_grad(x: torch.Tensor) -> torch.Tensor:
    """1 where x > 0, else 0."""
    return (x > 0).float()


def relu2_grad(x: torch.Tensor) -> torch.Tensor:
    """2 * max(x, 0)."""
    return 2.0 * relu(x)


def gelu_grad(x: torch.Tensor) -> torch.Tensor:
    """Phi(x) + x * phi(x), rounded once."""
    wide = x.double()
    density = torch.exp(-0.5 * wide * wide) / math.sqrt(2.0 * math.pi)
    return (0.5 * torch.special.erfc(wide * -math.sqrt(0.5)) + wide * density).float()


def silu_grad(x: torch.Tensor) -> torch.Tensor:
    """s + x * s * (1 - s), s = sigmoid(x), rounded once."""
    wide = x.double()
    s = torch.sigmoid(wide)
    return (s + wide * s * (1 - s)).float()


def maximum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The larger one, NaN if one of them is; +0 is larger than -0."""
    return torch.where((x == 0) & (y == 0), x + y, torch.maximum(x, y))


def minimum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The smaller one, NaN if one of them is; -0 is smaller than +0."""
    return -maximum(-x, -y)


UNARY = {
    **ACTIVATIONS,
    "relu_grad": relu_grad,
    "relu2_grad": relu2_grad,
    "gelu_grad": gelu_grad,
    "silu_grad": silu_grad,
    "abs": torch.abs,
}
BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "max": maximum,
    "min": minimum,
}


def evaluate(node: Node, acc: torch.Tensor, tensors: Mapping[str, torch.Tensor], memo: dict) -> torch.Tensor:
    """The fp32 values (L, M, N) of a node; `memo` holds those of nodes that have been evaluated already."""
    if id(node) not in memo:
        memo[id(node)] = _evaluate(node, acc, tensors, memo)
    return memo[id(node)]


def _evaluate(node: Node, acc: torch.Tensor, tensors: Mapping[str, torch.Tensor], memo: dict) -> torch.Tensor:
    children = [evaluate(child, acc, tensors, memo) for child in node.children()]
    if isinstance(node, trees.Accumulator):
        return acc
    if isinstance(node, trees.Constant):
        return torch.full_like(acc, node.value)
    if isinstance(node, trees.Leaf):
        value = tensors[node.name].float()
        axes = {trees.Row: (-1,), trees.Column: (-2,), trees.Scalar: (-1, -1), trees.Tile: ()}[type(node)]
        for axis in axes:
            value = value.unsqueeze(axis)
        return value.expand_as(acc)
    if isinstance(node, trees.Binary):
        return BINARY[node.op](*children)
    if isinstance(node, trees.Unary):
        return UNARY[node.op](*children)
    if isinstance(node, trees.Fma):
        return fma(*children)
    if isinstance(node, trees.SwigluPair):
        return silu(children[0][..., 0::2]) * children[0][..., 1::2]
    raise TypeError(f"epilogue node {type(node).__name__} is no expression")


def gemm_tree(
    a: Nvfp4Operand,
    b: Nvfp4Operand,
    tree: Epilogue,
    tensors: Mapping[str, torch.Tensor],
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor | Nvfp4Operand:
    """D of a composed epilogue; writes its sinks into `tensors`.

    Args:
        tree: with z bound or not.
        tensors: all of the tree's, each with a batch axis, as `epilogue_arguments.epilogue_tensors` returns them.

    Returns:
        (..., M, N) or, with SwigluPair, (..., M, N / 2); with Nvfp4 an operand (..., M, N).
    """
    kinds = "row" if a.scaling == "token" else "scalar", "column" if b.scaling == "token" else "scalar"
    tree = tree.bind(gemm_constant(a.e4m3_max, b.e4m3_max), *kinds)
    acc = gemm_accumulator(a, b).float()
    acc = acc if a.batch_shape else acc[None]
    # Stores after all reads: a sink may be the memory of a tile.
    memo: dict = {}
    quantized = tree.out if tree.quantizes() else None
    d = evaluate(quantized.x if quantized is not None else tree.out, acc, tensors, memo)
    d = d.to(getattr(torch, quantized.dtype) if quantized is not None else out_dtype)
    values = [(sink, evaluate(sink.value, acc, tensors, memo)) for sink in tree.sinks]
    for sink, value in values:
        if isinstance(sink, trees.Store):
            tensors[sink.name].copy_(value)
        else:
            axis = -1 if isinstance(sink, trees.RowAmax) else -2
            # An amax does not see NaN.
            largest = torch.nan_to_num(value.abs(), nan=0.0, posinf=math.inf).amax(axis)
            tensors[sink.name].copy_(torch.maximum(tensors[sink.name], largest))
    d = d if a.batch_shape else d[0]
    if quantized is not None:
        amax = tensors[quantized.amax.name]
        return quantize(d, quantized.recipe, amax=amax if a.batch_shape else amax[0])[0]
    return d
