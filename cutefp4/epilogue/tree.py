"""`Epilogue`: a complete tree, and the one that a GEMM without an epilogue of the caller's has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property

from cutefp4.epilogue.nodes import (
    Accumulator,
    Column,
    Constant,
    Fma,
    Leaf,
    Node,
    Nvfp4,
    Row,
    Scalar,
    Scaled,
    SwigluPair,
    Tile,
    unary,
)


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

    def tensor_names(self) -> tuple[str, ...]:
        """Names of the tensors that it reads and writes besides D: leaves, then sinks."""
        return (*(leaf.name for leaf in self.leaves()), *(sink.name for sink in self.sinks))

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
