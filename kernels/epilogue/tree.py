"""Device code of the expression nodes: one element of the tree at a time, at trace time.

`evaluate` walks the tree, asks its caller what a leaf is for the current element, and remembers what it has computed,
so that a node that is used twice is computed once.
"""

from cutlass import Float32

from cutefp4 import epilogue as nodes

from . import math


def evaluate(node: nodes.Node, leaf_value, memo: dict) -> Float32:
    """The fp32 value of `node` for one element.

    Args:
        leaf_value: function from a leaf or the accumulator to its value for this element.
        memo: values of nodes that this element has computed already; pass {} for a new element.
    """
    if id(node) not in memo:
        memo[id(node)] = _compute(node, leaf_value, memo)
    return memo[id(node)]


def _compute(node: nodes.Node, leaf_value, memo: dict) -> Float32:
    if isinstance(node, (nodes.Accumulator, nodes.Leaf)):
        return leaf_value(node)
    if isinstance(node, nodes.Constant):
        return Float32(node.value)
    if isinstance(node, nodes.Binary):
        return math.BINARY[node.op](evaluate(node.left, leaf_value, memo), evaluate(node.right, leaf_value, memo))
    if isinstance(node, nodes.Unary):
        return math.UNARY[node.op](evaluate(node.x, leaf_value, memo))
    if isinstance(node, nodes.Fma):
        return math.fma(*(evaluate(x, leaf_value, memo) for x in (node.a, node.b, node.c)))
    raise TypeError(f"epilogue node {type(node).__name__} has no device code for one element")
