"""Columns about the kernels behind a benchmark's row: registers, spills, SASS instructions, and those per element."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cutefp4 import quant_plan as plans
from cutefp4.cli import output
from cutefp4.cli.bench.session import plans_of
from cutefp4.cli.resources import resources
from cutefp4.format import BLOCK
from cutefp4.plan import Plan

THREADS = 256
"""Of the quantisation kernels that work in tiles."""
_known: dict[Plan, dict[str, Any]] = {}


def elements_per_pass(plan: Plan) -> float | None:
    """Elements of the input that a thread handles in one pass over a quantisation kernel's code; None: not known.

    An element of both copies counts once; of SwiGLU's input, a pair of gate and up counts once.
    """
    match plan:
        case plans.CastRowsPlan() | plans.RmsnormPlan():
            return BLOCK * plan.blocks_per_thread
        case plans.CastTilesPlan():
            return 128 * plan.tile_columns // THREADS
        case plans.AmaxPlan():
            return 4 * BLOCK
        case plans.AmaxPartialsPlan():
            return 2 * BLOCK
        case plans.HadamardAmaxPlan():
            return BLOCK * (2 if plan.paired and plan.dtype != "float32" else 1)
        case plans.DequantizePlan() | plans.SwigluPlan():
            return BLOCK
        case plans.GroupMapPlan():  # a warp for each tile of 128 rows
            return math.inf
    return None


def of_plans(found: Iterable[Plan]) -> list[dict[str, Any]]:
    """`resources` of every plan; the disassembler runs for several at once."""
    found = list(found)
    missing = [plan for plan in dict.fromkeys(found) if plan not in _known]
    with ThreadPoolExecutor() as pool:
        _known.update(zip(missing, pool.map(_resources, missing), strict=True))
    return [_known[plan] for plan in found]


def _resources(plan: Plan) -> dict[str, Any]:
    """`resources`, or empty columns: what cannot be read about a kernel must not cost its times."""
    try:
        return resources(plan)
    except Exception as error:
        output.note(f"{plan.describe()}: no registers and instructions: {type(error).__name__}: {error}")
        return {"registers": None, "spills": None, "instructions": None}


def columns(found: Iterable[Plan]) -> dict[str, Any]:
    """Of the kernels that one call launches: most registers, all spills, all SASS instructions and, for quantisers,
    those per element: the kernel's code, its prologue included, over the elements that a thread handles with it."""
    found = list(found)
    made = of_plans(found)
    row: dict[str, Any] = {}
    for name, of, total in (("registers", "registers", max), ("spills", "spills", sum),
                            ("sass_instructions", "instructions", sum)):  # fmt: skip
        values = [m[of] for m in made]
        row[name] = None if None in values or not values else total(values)
    shares = [(m["instructions"], elements_per_pass(plan)) for m, plan in zip(made, found, strict=True)]
    if shares and all(None not in share for share in shares):
        row["sass_per_element"] = round(sum(instructions / elements for instructions, elements in shares), 1)
    return row


def of_calls(calls: dict[str, Callable[[], object]]) -> dict[str, dict[str, Any]]:
    """The columns of what each call launches; nothing is launched."""
    found = {name: plans_of(call) for name, call in calls.items()}
    of_plans(plan for one in found.values() for plan in one)
    return {name: columns(one) for name, one in found.items()}
