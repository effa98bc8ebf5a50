"""The nodes of an epilogue: leaves, operations, sinks. Each is frozen; its fields are its children and its options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from cutefp4.errors import OperandError, UnsupportedError
from cutefp4.recipe import QuantRecipe

DTYPES = ("float32", "bfloat16", "float16")


class Node:
    """Base of all nodes; arithmetic operators build expressions."""

    def __add__(self, other) -> Binary:
        return Binary("add", self, _node(other))

    def __radd__(self, other) -> Binary:
        return Binary("add", _node(other), self)

    def __sub__(self, other) -> Binary:
        return Binary("sub", self, _node(other))

    def __rsub__(self, other) -> Binary:
        return Binary("sub", _node(other), self)

    def __mul__(self, other) -> Binary:
        return Binary("mul", self, _node(other))

    def __rmul__(self, other) -> Binary:
        return Binary("mul", _node(other), self)

    def __truediv__(self, other) -> Binary:
        return Binary("div", self, _node(other))

    def __rtruediv__(self, other) -> Binary:
        return Binary("div", _node(other), self)

    def __neg__(self) -> Binary:
        return Binary("mul", Constant(-1.0), self)

    def _has_no_value(self, *_):
        raise OperandError(
            f"a comparison, a power or a conversion of {type(self).__name__} in an epilogue",
            "+, -, *, / and the functions of cutefp4.epilogue: the function runs once, on nodes instead of numbers",
            "use maximum, minimum, relu or unary(...), and z * z for a square",
        )

    __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __float__ = __int__ = __pow__ = __rpow__ = __abs__ = _has_no_value

    def children(self) -> Iterator[Node]:
        """Nodes that this one reads."""
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Node):
                yield value


def _node(value) -> Node:
    if isinstance(value, Node):
        return value
    if isinstance(value, (int, float)):
        return Constant(float(value))
    raise OperandError(
        f"{value!r} of type {type(value).__name__} in an epilogue",
        "a node or a Python number",
        "declare tensors as arguments: Row(), Column(), Scalar(), Tile()",
    )


@dataclass(frozen=True)
class Accumulator(Node):
    """The fp32 sum over K of (e2m1 * e4m3)_a * (e2m1 * e4m3)_b."""


@dataclass(frozen=True)
class Scaled(Node):
    """z, the product with its outer scales; a GEMM puts its constant and amaxes in (`Epilogue.bind`)."""


@dataclass(frozen=True)
class Constant(Node):
    """A number that is compiled in, rounded to fp32."""

    value: float


@dataclass(frozen=True)
class Leaf(Node):
    """A tensor argument."""

    dtype: str = "float32"
    name: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise OperandError(f"{type(self).__name__}({self.dtype!r})", ", ".join(DTYPES), "name one of these dtypes")


@dataclass(frozen=True)
class Row(Leaf):
    """One value per row of D: shape (M,), or (L, M) in a batch."""


@dataclass(frozen=True)
class Column(Leaf):
    """One value per column of D: shape (N,), or (L, N) in a batch."""


@dataclass(frozen=True)
class Scalar(Leaf):
    """One value on the device: shape (1,), or (L,) in a batch."""


@dataclass(frozen=True)
class Tile(Leaf):
    """A matrix of D's shape; may be the same memory as D."""


@dataclass(frozen=True)
class Binary(Node):
    """add, sub, mul, div, max, min: one fp32 operation. max and min: NaN if one side is NaN; -0 is less than +0."""

    op: str
    left: Node
    right: Node


@dataclass(frozen=True)
class Fma(Node):
    """fl(a * b + c), one rounding."""

    a: Node
    b: Node
    c: Node


@dataclass(frozen=True)
class Unary(Node):
    """A function of one value, by name: see `UNARY`."""

    op: str
    x: Node


@dataclass(frozen=True)
class SwigluPair(Node):
    """silu(x[2j]) * x[2j + 1]: D has half as many columns as the product, gate and up columns alternating."""

    x: Node


@dataclass(frozen=True)
class Nvfp4(Node):
    """D in NVFP4 instead of 16 or 32 bits: codes and tiled block scales as `quantize(x, recipe, amax=amax)` makes them.

    For D itself: return Nvfp4(x, ...) as D's expression. The outer amax is given, not found: a block is encoded before
    the rest of its row is known. `RowAmax` of the same x finds what the next product of this kind may use. x may be a
    `SwigluPair`.

    Attributes:
        x: the values; rounded to `dtype` first: D equals quantize(gemm(..., out_dtype=dtype), recipe, amax=amax).
        amax: float32 outer amax, `Scalar` for scaling="tensor", `Row` for scaling="token".
        recipe: how to quantise; of its rowwise copy. 1x16 blocks, nearest rounding, tiled scales.
        dtype: "float32", "bfloat16" or "float16".

    Raises:
        OperandError: an amax that does not fit the recipe, or an unknown dtype.
        UnsupportedError: a recipe that the epilogue cannot serve.
    """

    x: Node
    amax: Leaf
    recipe: QuantRecipe = QuantRecipe()
    dtype: str = "float32"

    def __post_init__(self) -> None:
        kind = Row if self.recipe.scaling == "token" else Scalar
        if not isinstance(self.amax, kind) or self.amax.dtype != "float32" or self.dtype not in DTYPES:
            raise OperandError(
                f"Nvfp4(amax={self.amax!r}, dtype={self.dtype!r}) with scaling={self.recipe.scaling!r}",
                f"amax: {kind.__name__}() of float32; dtype: {', '.join(DTYPES)}",
                "declare the amax as Scalar() for a tensor's, Row() for one per row",
            )
        wanted = {"block": "1d", "rounding": "nearest", "scale_layout": "tiled"}
        given = {name: getattr(self.recipe, name) for name in wanted}
        if given != wanted:
            other = (f"{name}={value!r}" for name, value in given.items() if value != wanted[name])
            raise UnsupportedError(
                f"Nvfp4 with {', '.join(other)}",
                ", ".join(f"{name}={value!r}" for name, value in wanted.items()),
                "store D in bfloat16 and call cutefp4.quantize",
            )


@dataclass(frozen=True)
class Store(Node):
    """Write an expression to a matrix of D's shape, rounded once to `dtype`."""

    value: Node
    dtype: str = "bfloat16"
    name: str = "out"


@dataclass(frozen=True)
class RowAmax(Node):
    """max |x| over each row of D into a float32 (M,) that the caller has set to 0 (or to a running maximum)."""

    value: Node
    name: str


@dataclass(frozen=True)
class ColumnAmax(Node):
    """max |x| over each column of D into a float32 (N,), as `RowAmax`."""

    value: Node
    name: str


UNARY = ("relu", "relu2", "gelu", "silu", "relu_grad", "relu2_grad", "gelu_grad", "silu_grad", "abs")
"""x_grad is the derivative at x: multiply it with the incoming gradient, x being the saved pre-activation."""


def unary(op: str, x) -> Unary:
    """A function of `UNARY` by name.

    Raises:
        OperandError: no function has this name.
    """
    if op not in UNARY:
        raise OperandError(f"activation {op!r}", ", ".join(UNARY), "use one of these, or arithmetic nodes")
    return Unary(op, _node(x))


def relu(x) -> Unary:
    return unary("relu", x)


def relu2(x) -> Unary:
    return unary("relu2", x)


def gelu(x) -> Unary:
    return unary("gelu", x)


def silu(x) -> Unary:
    return unary("silu", x)


def maximum(a, b) -> Binary:
    return Binary("max", _node(a), _node(b))


def minimum(a, b) -> Binary:
    return Binary("min", _node(a), _node(b))


def fma(a, b, c) -> Fma:
    return Fma(_node(a), _node(b), _node(c))


SINKS = (Store, RowAmax, ColumnAmax)
