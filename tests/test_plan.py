"""Plans: the fields are the key, one spelling per value, and nothing else decides."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import cutefp4.kernels
import pytest

from cutefp4.errors import CompileError
from cutefp4.plan import Plan, from_json, to_json
from cutefp4.quant_plan import DequantizePlan
from tests.tiny_kernel import TinyPlan


@dataclass(frozen=True)
class Node:
    op: str = "add"
    value: float = 1.0


@dataclass(frozen=True)
class RichPlan(Plan):
    builder: ClassVar[str] = "somewhere:build"
    dtype: str = "bf16"
    rows: int = 128
    flag: bool = False
    factor: float = 0.5
    clamp: float | None = None
    tile: tuple[int, int] = (128, 256)
    nodes: tuple[Node, ...] = (Node(), Node("mul"))
    root: Node = Node()


CHANGED: dict[str, Any] = {
    "arch": "sm_100a",
    "dtype": "fp16",
    "rows": 129,
    "flag": True,
    "factor": -0.0,
    "clamp": 0.0,
    "tile": (256, 128),
    "nodes": (Node("mul"), Node()),
    "root": Node(value=2.0),
}


def test_every_field_changes_the_key():
    plan = RichPlan("sm_90a")
    assert {f.name for f in fields(plan)} == CHANGED.keys(), "a new field needs a changed value here"
    keys = {plan.key}
    for name, value in CHANGED.items():
        other = replace(plan, **{name: value})
        assert other != plan and hash(other) != hash(plan), name
        assert other.key_text != plan.key_text and other.symbol != plan.symbol, name
        keys.add(other.key)
    assert len(keys) == len(CHANGED) + 1


@pytest.mark.parametrize("value, twin", [(1, True), (1, 1.0), (0, False), (0.0, -0.0), ((1,), (True,)), (None, "None")])
def test_values_that_python_calls_equal_are_different_keys(value, twin):
    a, b = RichPlan("sm_90a", clamp=value), RichPlan("sm_90a", clamp=twin)
    assert a != b and a.key != b.key and len({a: 0, b: 1}) == 2


def test_equal_fields_are_the_same_key_in_every_process():
    plan = RichPlan("sm_90a", tile=(64, 64))
    assert plan == RichPlan("sm_90a", tile=(64, 64))
    assert {plan: "found"}[RichPlan("sm_90a", tile=(64, 64))] == "found"
    ours = DequantizePlan("sm_90a", "bfloat16", "tensor", "tiled", 448)
    script = "from cutefp4.quant_plan import DequantizePlan as P; p = P('sm_90a', 'bfloat16', 'tensor', 'tiled', 448)"
    answer = subprocess.run([sys.executable, "-c", f"{script}; print(p.key, hash(p))"], capture_output=True, text=True)
    assert answer.stdout.split() == [ours.key, str(hash(ours))], answer.stderr
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_class_and_builder_are_part_of_the_key():
    @dataclass(frozen=True)
    class Other(RichPlan):
        pass

    @dataclass(frozen=True)
    class Rebuilt(RichPlan):
        builder: ClassVar[str] = "elsewhere:build"

    assert len({RichPlan("sm_90a").key, Other("sm_90a").key, Rebuilt("sm_90a").key}) == 3


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1}, object(), bytes(2), 1 + 2j, (1, [2])])
def test_values_without_a_stable_spelling_are_refused(value):
    with pytest.raises(CompileError, match="RichPlan.clamp"):
        RichPlan("sm_90a", clamp=value)


def test_unknown_arch_is_refused():
    with pytest.raises(CompileError, match="sm_80.*accepted: sm_90a, sm_100a, sm_103a"):
        RichPlan("sm_80")


def test_json_round_trip():
    plan = RichPlan("sm_103a", clamp=0.1, nodes=())
    assert from_json(to_json(plan)) == plan
    assert from_json(to_json(TinyPlan("sm_90a"))) == TinyPlan("sm_90a")


@pytest.mark.parametrize(
    "data",
    [
        {"class": "tests.test_plan:Missing"},
        {"class": "no_such_module:Plan"},
        {"class": "os:getcwd"},
        {"class": "tests.test_plan:RichPlan", "arch": "sm_90a", "colour": "red"},
        {"arch": "sm_90a"},
        {"class": ""},
    ],
)
def test_json_of_something_else_is_refused(data):
    with pytest.raises(CompileError, match="to fix"):
        from_json(data)


def test_builder_that_does_not_exist():
    with pytest.raises(CompileError, match="somewhere:build"):
        RichPlan("sm_90a").load_builder()


def test_describe_names_what_differs():
    assert RichPlan("sm_90a", rows=64).describe() == "RichPlan(arch='sm_90a', rows=64)"


def test_device_code_reads_nothing_but_its_plan():
    """No module under kernels/ looks at the environment or at the machine's GPU: that would be code outside the key."""
    forbidden = re.compile(r"\b(os\.environ|getenv|torch\.cuda|HardwareInfo|cuda_helpers|get_device_properties)\b")
    root = Path(cutefp4.kernels.__file__).parent
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in root.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if forbidden.search(line)
    ]
    assert not found, "\n".join(found)
