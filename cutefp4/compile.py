"""From a plan to a callable kernel."""

from __future__ import annotations

from collections.abc import Callable

from cutefp4.dsl import compile_plan, load_object
from cutefp4.plan import Plan

_loaded: dict[Plan, Callable] = {}


def get(plan: Plan) -> Callable:
    """The compiled kernel of a plan: call it with torch tensors and scalars, in the order of the builder's arguments
    without the stream; it launches on torch's current stream.
    """
    kernel = _loaded.get(plan)
    if kernel is None:
        compiled = compile_plan(plan)
        kernel = _loaded[plan] = load_object(compiled.object, plan.symbol)
    return kernel
