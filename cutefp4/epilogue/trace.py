"""From a Python function to a tree: the decorator `cutefp4.epilogue`, and the trees that it made, by name."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from cutefp4.epilogue.nodes import SINKS, Accumulator, Leaf, Node, Nvfp4, RowAmax, Scaled, SwigluPair
from cutefp4.epilogue.tree import Epilogue
from cutefp4.errors import OperandError


def epilogue(function: Callable) -> Epilogue:
    """Trace a function of the accumulator and declared leaves into an `Epilogue`.

    Raises:
        OperandError: an argument without a declared kind, or a result that is not an expression (and sinks).
    """
    first, *parameters = inspect.signature(function, eval_str=True).parameters.values() or [None]
    if first is None or first.name not in _FIRST:
        raise OperandError(
            f"epilogue {function.__name__} with first argument {first and first.name!r}",
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
    try:
        result = function(*arguments)
    except TypeError as error:  # of a function that wants numbers or tensors
        raise OperandError(
            f"epilogue {function.__name__}: {error}",
            "arithmetic on its arguments, and functions of cutefp4.epilogue",
            "write it with these",
        ) from error
    out, *sinks = result if isinstance(result, tuple) else (result,)
    bad = [s for s in sinks if not isinstance(s, SINKS)]
    if not isinstance(out, Node) or isinstance(out, SINKS) or bad:
        raise OperandError(
            f"epilogue {function.__name__} returned {result!r}",
            "an expression, or (expression, Store | RowAmax | ColumnAmax, ...)",
            "return D's expression first",
        )
    return _registered(Epilogue(out, tuple(sinks)))


_FIRST = {"z": Scaled, "acc": Accumulator}
_REGISTERED: dict[str, Epilogue] = {}

RESERVED = ("d", "d_scales", "partials", "counters", "staged")
"""What plans call a kernel's own tensors."""


def _registered(tree: Epilogue) -> Epilogue:
    of_z = any(isinstance(node, Scaled) for node in tree.nodes())
    arguments = tuple((node.name, node) for node in (*tree.leaves(), *tree.sinks))
    names = [name for name, _ in arguments] + (["alpha_a", "alpha_b"] if of_z else [])
    if len(set(names)) != len(names):
        fix = "rename one; alpha_a and alpha_b are part of z" if of_z else "rename a sink"
        raise OperandError(f"epilogue names {names}", "a different name for every tensor", fix)
    taken = sorted(set(names) & set(RESERVED))
    if taken:
        other = f"names other than {', '.join(RESERVED)}, which the kernels use"
        raise OperandError(f"epilogue tensors named {', '.join(taken)}", other, "rename them")
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
