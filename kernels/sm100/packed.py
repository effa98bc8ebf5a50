"""The epilogue tree on two elements at a time: fp32x2 arithmetic, one instruction for two columns.

Each half of add, sub, mul and fma in .f32x2 form rounds once to nearest, as the scalar instruction does: same bits.
Everything else is evaluated element by element with `epilogue.math`.
"""

from cutlass import Float32

from cutefp4 import epilogue as nodes

from ..common.ptx import asm
from ..epilogue import math

PACKED = ("add", "sub", "mul")


def _pairs(operation: str, *operands: tuple[Float32, Float32]) -> tuple[Float32, Float32]:
    names = "abc"[: len(operands)]
    registers = ", ".join(names)
    packs = " ".join(f"mov.b64 {name}, {{${2 * i + 2}, ${2 * i + 3}}};" for i, name in enumerate(names))
    work = f"{operation}.rn.f32x2 d, {registers}; mov.b64 {{$0, $1}}, d;"
    text = f"{{ .reg .b64 {registers}, d; {packs} {work} }}"
    return asm(text, (Float32, Float32), *(half for operand in operands for half in operand))


def evaluate_pair(node: nodes.Node, leaf_value, memo: dict) -> tuple[Float32, Float32]:
    """The fp32 values of `node` for two neighbouring columns.

    Args:
        leaf_value: function from a leaf or the accumulator to its two values.
        memo: values of nodes that these elements have computed already; pass {} for new ones.
    """
    if id(node) not in memo:
        memo[id(node)] = _compute(node, leaf_value, memo)
    return memo[id(node)]


def _compute(node: nodes.Node, leaf_value, memo: dict) -> tuple[Float32, Float32]:
    if isinstance(node, (nodes.Accumulator, nodes.Leaf)):
        return leaf_value(node)
    if isinstance(node, nodes.Constant):
        return Float32(node.value), Float32(node.value)
    if isinstance(node, nodes.SwigluPair):
        gate, up = evaluate_pair(node.x, leaf_value, memo)
        value = math.mul(math.silu(gate), up)
        return value, value  # of both columns: an amax may see it twice
    operands = [evaluate_pair(child, leaf_value, memo) for child in node.children()]
    if isinstance(node, nodes.Fma):
        return _pairs("fma", *operands)
    if isinstance(node, nodes.Binary) and node.op in PACKED:
        return _pairs(node.op, *operands)
    table = {nodes.Binary: math.BINARY, nodes.Unary: math.UNARY}.get(type(node))
    if table is None:
        raise TypeError(f"epilogue node {type(node).__name__} has no device code for one element")
    low, high = zip(*operands, strict=True)
    return table[node.op](*low), table[node.op](*high)
