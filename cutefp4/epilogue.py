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

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from types import ModuleType

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

    def __neg__(self) -> Binary:
        return Binary("mul", Constant(-1.0), self)

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
    """add, sub, mul, div, max, min: one fp32 operation."""

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


@dataclass(frozen=True)
class Epilogue:
    """A complete tree: D and further sinks.

    Attributes:
        out: the expression stored as D; its dtype comes from the GEMM.
        sinks: further `Store`, `RowAmax`, `ColumnAmax`.
        name: of a tree that `epilogue` made: a digest of its text, by which `named` finds it. Not part of its value.
        arguments: of such a tree: (name, node) of every tensor, leaves by name and then sinks, z's amaxes left out.
        of_z: whether it is a function of z.
    """

    out: Node
    sinks: tuple[Node, ...] = ()

    name = ""
    arguments = ()
    of_z = False

    def nodes(self) -> Iterator[Node]:
        """Every node once, children first."""
        seen: set[int] = set()

        def walk(node: Node) -> Iterator[Node]:
            if id(node) in seen:
                return
            seen.add(id(node))
            for child in node.children():
                yield from walk(child)
            yield node

        for root in (self.out, *self.sinks):
            yield from walk(root)

    def leaves(self) -> tuple[Leaf, ...]:
        """The tensor arguments, in order of their names; the same argument used twice appears once."""
        found = {node.name: node for node in self.nodes() if isinstance(node, Leaf)}
        return tuple(found[name] for name in sorted(found))

    def bind(self, constant: float, alpha_a: str, alpha_b: str) -> Epilogue:
        """The tree with z spelled out; arguments as in `default_epilogue`."""
        product = default_epilogue(constant, alpha_a, alpha_b).out
        made: dict[int, Node] = {}

        def rebuild(node: Node) -> Node:
            if isinstance(node, Scaled):
                return product
            if id(node) not in made:
                inner = {f.name: getattr(node, f.name) for f in fields(node)}
                inner = {name: rebuild(value) for name, value in inner.items() if isinstance(value, Node)}
                made[id(node)] = replace(node, **inner) if inner else node
            return made[id(node)]

        return Epilogue(rebuild(self.out), tuple(rebuild(sink) for sink in self.sinks))

    def text(self) -> str:
        """The tree in one line, the same for equal trees: what files that outlive the process call it."""

        def write(node: Node) -> str:
            values = [getattr(node, f.name) for f in fields(node)]
            return f"{type(node).__name__}({','.join(write(v) if isinstance(v, Node) else str(v) for v in values)})"

        return ";".join(map(write, (self.out, *self.sinks)))

    def quantizes(self) -> bool:
        """Whether D is NVFP4."""
        return isinstance(self.out, Nvfp4)

    def halves_columns(self) -> bool:
        """Whether D has half as many columns as the product (SwiGLU)."""
        return self._halves_columns

    @cached_property
    def _halves_columns(self) -> bool:
        return any(isinstance(node, SwigluPair) for node in self.nodes())

    def without_addition_to(self, name: str) -> Epilogue | None:
        """The tree of z if this one stores exactly C + z, C being the float32 tile `name` and used nowhere else; or
        None.

        A store that adds in memory then gives the same bits: 1 * C + z in one fma is one rounded sum.
        """
        out = self.out
        if not (isinstance(out, Fma) and out.a == Constant(1.0) and out.b == Tile("float32", name)):
            return None
        rest = Epilogue(out.c, self.sinks)
        return None if any(leaf.name == name for leaf in rest.leaves()) else rest


SINKS = (Store, RowAmax, ColumnAmax)


def epilogue(function: Callable) -> Epilogue:
    """Trace a function of the accumulator and declared leaves into an `Epilogue`.

    Raises:
        OperandError: an argument without a declared kind, or a result that is not an expression (and sinks).
    """
    first, *parameters = inspect.signature(function, eval_str=True).parameters.values()
    if first.name not in _FIRST:
        raise OperandError(
            f"epilogue {function.__name__} with first argument {first.name!r}",
            "z (the product with its outer scales) or acc (the bare sum)",
            "name what the function starts from",
        )
    arguments: list[Node] = [_FIRST[first.name]()]
    for p in parameters:
        kind = p.annotation() if inspect.isclass(p.annotation) and issubclass(p.annotation, Leaf) else p.annotation
        if not isinstance(kind, Leaf) or type(kind) is Leaf:
            raise OperandError(
                f"epilogue argument {p.name!r} with annotation {p.annotation!r}",
                "Row(), Column(), Scalar() or Tile(), each with an optional dtype",
                f"declare it, for example {p.name}: Column('bfloat16')",
            )
        arguments.append(replace(kind, name=p.name))
    result = function(*arguments)
    out, *sinks = result if isinstance(result, tuple) else (result,)
    bad = [s for s in sinks if not isinstance(s, SINKS)]
    if not isinstance(out, Node) or isinstance(out, SINKS) or bad:
        raise OperandError(
            f"epilogue {function.__name__} returned {result!r}",
            "an expression, or (expression, Store | RowAmax | ColumnAmax, ...)",
            "return D's expression first",
        )
    return _registered(Epilogue(out, tuple(sinks)), first.name == "z")


_FIRST = {"z": Scaled, "acc": Accumulator}
_REGISTERED: dict[str, Epilogue] = {}


def _registered(tree: Epilogue, of_z: bool) -> Epilogue:
    arguments = tuple((node.name, node) for node in (*tree.leaves(), *tree.sinks))
    names = [name for name, _ in arguments] + (["alpha_a", "alpha_b"] if of_z else [])
    if len(set(names)) != len(names):
        fix = "rename one; alpha_a and alpha_b are part of z" if of_z else "rename a sink"
        raise OperandError(f"epilogue names {names}", "a different name for every tensor", fix)
    for outer, inner in ((node, child) for node in tree.nodes() for child in node.children()):
        # An NVFP4 D may be made of pairs, and have their amax measured.
        of_pairs = isinstance(inner, SwigluPair) and tree.quantizes() and isinstance(outer, (Nvfp4, RowAmax))
        if isinstance(inner, (SwigluPair, Nvfp4)) and not of_pairs:
            kind = type(inner).__name__
            raise OperandError(f"a {kind} inside an expression", "D itself", f"return {kind}(...) as D's expression")
    name = hashlib.sha256(tree.text().encode()).hexdigest()[:32]
    # Attributes beside the fields: a plan's key is made of fields, and these follow from them.
    for attribute, value in (("name", name), ("arguments", arguments), ("of_z", of_z)):
        object.__setattr__(tree, attribute, value)
    return _REGISTERED.setdefault(name, tree)


@cache
def named(name: str) -> Epilogue:
    """The tree that `epilogue` made under this name, in this process.

    Raises:
        OperandError: there is none.
    """
    if name not in _REGISTERED:
        raise OperandError(f"epilogue {name!r}", "the name of a decorated function", "decorate it in this process")
    return _REGISTERED[name]


def default_epilogue(
    constant: float,
    alpha_a: str = "row",
    alpha_b: str = "column",
    bias: str | None = None,
    activation: str | None = None,
    c: str | None = None,
    beta: float = 1.0,
) -> Epilogue:
    """D = activation(z + bias[j]) + beta * C[i, j],  z = constant * (alpha_b[j] * (alpha_a[i] * acc)).

    Each product is rounded to fp32, innermost first; z + bias is one rounding; beta * C is added by one fma.

    Args:
        alpha_a, alpha_b: "row" / "column" for a value per row / column of D, "scalar" for one on the device, "none" for
            none at all.
        bias: dtype of the bias vector, None for none.
        activation: a name of `UNARY` or None.
        c: dtype of C, None for none (C is then never read).
        beta: compiled in.
    """
    z: Node = Accumulator()
    if alpha_a != "none":
        z = (Scalar if alpha_a == "scalar" else Row)(name="alpha_a") * z
    if alpha_b != "none":
        z = (Scalar if alpha_b == "scalar" else Column)(name="alpha_b") * z
    z = Constant(constant) * z
    if bias is not None:
        z = z + Column(bias, name="bias")
    if activation is not None:
        z = unary(activation, z)
    if c is not None:
        z = Fma(Constant(beta), Tile(c, name="c"), z)
    return Epilogue(z)


class _Decorator(ModuleType):
    """This module, callable: `cutefp4.epilogue` is the decorator and the place of its vocabulary."""

    def __call__(self, function: Callable) -> Epilogue:
        return epilogue(function)


sys.modules[__name__].__class__ = _Decorator
