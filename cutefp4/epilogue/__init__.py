"""The epilogue tree as the host sees it: what a GEMM does with its accumulators before they reach memory.

A tree is made of frozen nodes: leaves (the accumulator, vectors, scalars, a tile of C), elementwise operations, and
sinks that store or reduce. It is written as a Python function of its leaves,

    from cutefp4.epilogue import Column, RowAmax, Store, relu

    @cutefp4.epilogue
    def relu_and_amax(z, bias: Column("bfloat16")):
        y = relu(z + bias)
        return y, RowAmax(y, "amax")

    d = cutefp4.gemm(a, b, epilogue=relu_and_amax, tensors={"bias": bias, "amax": torch.zeros(rows)})

and the decorated object is an `Epilogue`. The first argument names what the function starts from:

    z      the product with its outer scales, c * (alpha_b[j] * (alpha_a[i] * acc)): D as a plain `gemm` gives it
    acc    the bare sum of (e2m1 * e4m3)_a * (e2m1 * e4m3)_b. Arguments named alpha_a and alpha_b then receive the raw
           amaxes of A and B, unless the caller passes others; the constant c is the function's business

The others are declared by their annotation. The result is an expression (stored as D), or a tuple of an expression and
further sinks: `Store`, `RowAmax`, `ColumnAmax`.

Every operation is one fp32 operation with one rounding, in the order that is written; nothing is contracted or
reassociated, except `fma`, which is one rounding by name. The tree is part of a GEMM's plan: two trees are the same
kernel exactly if they are equal.

What a leaf reads, for element (i, j) of D (M, N):

    Row      value[i]       one per row of D (alpha_a)          Scalar   value[0], on the device
    Column   value[j]       one per column of D (alpha_b, bias) Tile     value[i, j], a matrix like D (C, a saved
    pre-activation)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

from cutefp4.epilogue.nodes import (
    DTYPES,
    SINKS,
    UNARY,
    Accumulator,
    Binary,
    Column,
    ColumnAmax,
    Constant,
    Fma,
    Leaf,
    Node,
    Nvfp4,
    Row,
    RowAmax,
    Scalar,
    Scaled,
    Store,
    SwigluPair,
    Tile,
    Unary,
    fma,
    gelu,
    maximum,
    minimum,
    relu,
    relu2,
    silu,
    unary,
)
from cutefp4.epilogue.trace import epilogue, named
from cutefp4.epilogue.tree import Epilogue, default_epilogue

__all__ = [
    "Accumulator",
    "Binary",
    "Column",
    "ColumnAmax",
    "Constant",
    "DTYPES",
    "Epilogue",
    "Fma",
    "Leaf",
    "Node",
    "Nvfp4",
    "Row",
    "RowAmax",
    "SINKS",
    "Scalar",
    "Scaled",
    "Store",
    "SwigluPair",
    "Tile",
    "UNARY",
    "Unary",
    "default_epilogue",
    "epilogue",
    "fma",
    "gelu",
    "maximum",
    "minimum",
    "named",
    "relu",
    "relu2",
    "silu",
    "unary",
]


class _Decorator(ModuleType):
    """This module, callable: `cutefp4.epilogue` is the decorator and the place of its vocabulary."""

    def __call__(self, function: Callable) -> Epilogue:
        return epilogue(function)


sys.modules[__name__].__class__ = _Decorator
