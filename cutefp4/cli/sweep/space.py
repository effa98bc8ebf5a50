"""Which configurations a sweep looks at: every combination of the axes that the legality predicate accepts.

The predicate of the kernel (`config_problems` of its operations) is the only judge. `AXES` says which values each field
takes; a field without an entry takes both values if it is a bool and otherwise its default, so that a new field of a
configuration appears here by itself. `--set field=value,value` replaces an axis.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from cutefp4 import ops_gemm_sm90, ops_gemm_sm100
from cutefp4.cli.sweep.case import Case
from cutefp4.config import Sm90Config, with_most_stages
from cutefp4.config_sm100 import Sm100Config, sm100_problems
from cutefp4.errors import OperandError, UnsupportedError
from cutefp4.heuristics import sm90, sm100
from cutefp4.layer_plans import SMS
from cutefp4.plan import Plan
from cutefp4.schedule_model_sm100 import estimate as estimate_sm100
from cutefp4.schedule_model_sm100 import with_sms

H200_CLOCK = 1.75
"""GHz under load: from the heuristic's clocks to microseconds."""
LAUNCH_US = 2.0
MOST = "most"
"""As a number of stages: as many as fit."""

AXES: dict[type, dict[str, tuple]] = {
    Sm90Config: {
        "tile_m": (64, 128, 256, 512),
        "tile_n": (16, 32, 64, 128, 256),
        "k_blocks": (1, 2, 4),
        "consumer_groups": (1, 2, 3, 4),
        "load_stages": (MOST,),
        "mma_stages": (2, 3, 4, 6),
        "store_passes": (1, 2),
        "steps_per_group": (1, 2, 4),
    },
    Sm100Config: {
        "tile_m": (128, 256),
        "tile_n": (64, 128, 192, 256),
        "cluster_m": (1, 2, 4),
        "cluster_n": (1, 2, 4),
        "stages": (MOST,),
        "splits": (1, 2, 4, 8, 16),
    },
}
FULL_AXES: dict[type, dict[str, tuple]] = {
    Sm90Config: {
        "raster_group": (1, 4, 8, 16),
        "splits": (1, 2, 4, 8),
        "decode_groups": (1, 2),
        "fragment_registers": (16, 32),
        "decode_to": ("float16", "bfloat16"),
    },
    Sm100Config: {"raster_group": (1, 4, 8, 16), "stages": (2, 3, 4, 5, 6, 7, 8)},
}
"""Further values with `--full`: what matters less, or is fixed by the shape."""
STAGE_FIELD = {Sm90Config: "load_stages", Sm100Config: "stages"}


@dataclass(frozen=True)
class Prediction:
    """What a model says of a configuration; never a measurement."""

    us: float
    limiter: str = ""


@dataclass(frozen=True)
class Family:
    """A kernel that can serve a case on an architecture: its configurations and how to judge them.

    Attributes:
        arch, sms: the machine.
        config: the class of its configurations.
    """

    arch: str
    sms: int
    config: type

    def request(self, case: Case):
        return case.request(self.arch)

    def problems(self, config: Any, case: Case) -> list[str]:
        """The predicate: why a configuration cannot serve the case."""
        return self._ops().config_problems(config, self.request(case))

    def plan(self, config: Any, case: Case) -> Plan:
        return self._ops().plan_with(config, self.request(case), self.arch)

    def choice(self, case: Case) -> Any:
        """What the heuristic takes."""
        request = self.request(case)
        chooser = sm90 if self.arch == "sm_90a" else sm100
        return chooser.choose(request.shape(), self.sms, request.batch_invariant)

    def fitted(self, config: Any, case: Case) -> Any:
        """With as many load stages as fit."""
        if self.config is Sm100Config:
            vectors = self.request(case).shape().column_vectors
            return sm100.with_most_stages(config, vectors) if not sm100_problems(config, vectors) else config
        request = self.request(case)
        return with_most_stages(config, *request.shape().operands(config), request.staged_store())

    def predict(self, config: Any, case: Case) -> Prediction:
        """The schedule model's time."""
        shape = self.request(case).shape()
        if self.config is Sm100Config:
            found = estimate_sm100(config, shape, with_sms(self.sms))
            return Prediction(found.us, found.limiter)
        return Prediction(sm90.estimate(config, shape, self.sms) / (H200_CLOCK * 1e3) + LAUNCH_US)

    def _ops(self):
        return ops_gemm_sm90 if self.arch == "sm_90a" else ops_gemm_sm100


def families(arch: str, case: Case, sms: int = 0) -> list[Family]:
    """The kernels that serve a case.

    Raises:
        UnsupportedError: there is none.
    """
    if arch == "sm_90a":
        return [Family(arch, sms or SMS[arch], Sm90Config)]
    if case.kind == "w4a16":
        raise UnsupportedError(f"--kind w4a16 for {arch}", "sm_90a", "sweep w4a4")
    return [Family(arch, sms or SMS[arch], Sm100Config)]


def describe(config: Any) -> str:
    """The fields that differ from the defaults."""
    changed = [f"{f.name}={getattr(config, f.name)}" for f in fields(config) if getattr(config, f.name) != f.default]
    return " ".join(changed) or "defaults"


@dataclass
class Space:
    """The configurations of one family for one case.

    Attributes:
        legal: every configuration that the predicate accepts.
        refused: how many combinations each reason refuses; a combination may have several.
        examples: one configuration per reason.
        tried: combinations in all.
    """

    family: Family
    case: Case
    axes: dict[str, tuple]
    legal: list[Any] = field(default_factory=list)
    refused: Counter = field(default_factory=Counter)
    examples: dict[str, Any] = field(default_factory=dict)
    tried: int = 0

    @cached_property
    def choice(self) -> Any:
        return self.family.choice(self.case)

    def changes(self, config: Any) -> int:
        """Fields in which a configuration differs from the heuristic's choice."""
        return sum(getattr(config, f.name) != getattr(self.choice, f.name) for f in fields(config))

    def ranked(self, limit: int) -> list[Any]:
        """The heuristic's choice, then the most promising others, at most `limit` in all (0: every legal one).

        Promising: a short predicted time, 2 % longer per field that differs from the choice. The model knows nothing
        of some fields, and what it calls equal is closer to the truth near a choice that was measured.
        """
        others = [config for config in self.legal if config != self.choice]
        others.sort(key=lambda c: self.family.predict(c, self.case).us * 1.02 ** self.changes(c))
        return [self.choice, *(others if limit == 0 else others[: limit - 1])]


def axes_of(family: Family, given: dict[str, list[str]], full: bool, choice: Any) -> dict[str, tuple]:
    """The values of every field.

    Args:
        given: by `--set`: a field and its values as text.
        choice: the heuristic's: the value of fields that are no axis.

    Raises:
        OperandError: `given` names no field, or a value that the field cannot have.
    """
    known = AXES[family.config] | (FULL_AXES[family.config] if full else {})
    axes = {}
    for f in fields(family.config):
        default = getattr(choice, f.name)
        values = known.get(f.name, (False, True) if isinstance(default, bool) else (default,))
        axes[f.name] = tuple(dict.fromkeys(values))
    for name, texts in given.items():
        if name not in axes:
            raise OperandError(f"--set {name}=", ", ".join(axes), "name a field of the configuration")
        axes[name] = tuple(_value(name, text, getattr(choice, name)) for text in texts)
    return axes


def _value(name: str, text: str, like: Any) -> Any:
    if text == MOST:
        return MOST
    if isinstance(like, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if isinstance(like, int) and not isinstance(like, bool) and text.isdecimal():
        return int(text)
    if isinstance(like, str):
        return text
    raise OperandError(f"--set {name}={text}", f"a value like {like!r}", f"for example --set {name}={like}")


def _combinations(family: Family, case: Case, axes: dict[str, tuple]) -> Iterator[Any]:
    stage = STAGE_FIELD[family.config]
    for values in itertools.product(*axes.values()):
        named = dict(zip(axes, values, strict=True))
        if named[stage] != MOST:
            yield family.config(**named)
        else:
            yield family.fitted(family.config(**{**named, stage: 2}), case)


def enumerate_space(family: Family, case: Case, given: dict[str, list[str]], full: bool) -> Space:
    """Every combination of the axes, judged by the predicate."""
    choice = family.choice(case)
    space = Space(family, case, axes_of(family, given, full, choice))
    for config in _combinations(family, case, space.axes):
        space.tried += 1
        problems = family.problems(config, case)
        if not problems:
            space.legal.append(config)
        for reason in problems:
            kind = reason_kind(reason)
            space.refused[kind] += 1
            space.examples.setdefault(kind, (config, reason))
    return space


def reason_kind(reason: str) -> str:
    """A reason without its numbers: what groups combinations that fail alike."""
    return "".join("#" if c.isdigit() else c for c in reason).replace("##", "#").replace("##", "#").replace("##", "#")
