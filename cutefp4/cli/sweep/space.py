"""Which configurations a sweep looks at: every combination of the axes that the legality predicate accepts.

The predicate of the kernel (`config_problems` of its operations) is the only judge.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from typing import Any

from cutefp4.cli.sweep.axes import MOST, STAGE_FIELD, axes_of
from cutefp4.cli.sweep.case import Case
from cutefp4.cli.sweep.target import Target
from cutefp4.config_few_rows import FewRowsConfig
from cutefp4.config_small_m import SmallMConfig
from cutefp4.errors import OperandError


@dataclass
class Space:
    """The configurations for one case.

    Attributes:
        axes: values of every field, by class of configuration.
        legal: every configuration that the predicate accepts.
        refused: how many combinations each reason refuses; a combination may have several.
        examples: one configuration and its reason, by kind of reason.
        tried: combinations in all.
    """

    target: Target
    case: Case
    axes: dict[type, dict[str, tuple]] = field(default_factory=dict)
    legal: list[Any] = field(default_factory=list)
    refused: Counter = field(default_factory=Counter)
    examples: dict[str, tuple[Any, str]] = field(default_factory=dict)
    tried: int = 0

    @cached_property
    def choice(self) -> Any:
        return self.target.choice(self.case)

    @cached_property
    def bases(self) -> dict[type, Any]:
        return {kind: self.target.base(kind, self.case) for kind in self.axes}

    def changes(self, config: Any) -> int:
        """Fields in which a configuration differs from its kernel's own best."""
        base = self.bases[type(config)]
        return sum(getattr(config, f.name) != getattr(base, f.name) for f in fields(config))

    def add_candidates(self, given: dict) -> None:
        """What the heuristic chooses from, also beside the axes (splits, odd tiles), if it has the given values."""
        there = set(self.legal)
        for config in self.target.candidates(self.case):
            axes = self.axes.get(type(config))
            if axes is None or config in there or any(getattr(config, name) not in axes[name] for name in given):
                continue
            self.tried += 1
            if not self.target.problems(config, self.case):
                self.legal.append(config)

    def ranked(self, limit: int) -> list[Any]:
        """The heuristic's choice, then the most promising others, at most `limit` in all (0: every legal one).

        Up to half of them are what the heuristic chooses from, if `legal` holds them; then comes the best of each
        `family` that is not there yet, so that a short list does not hold one tile shape in eight variants; then the
        rest. Promising: a short predicted time, 2 % longer per field that differs from what the heuristic would take.
        The model knows nothing of some fields, and what it calls equal is closer to the truth near a measured choice.
        """

        def promise(config: Any) -> float:
            return self.target.predict(config, self.case).us * 1.02 ** self.changes(config)

        legal = sorted(self.legal, key=promise)
        known = set(self.target.candidates(self.case))
        first = [self.choice, *[config for config in legal if config in known][: limit // 2]]
        families = {family(config) for config in first}
        others = {family(config): config for config in reversed(legal) if family(config) not in families}
        ranked = list(dict.fromkeys([*first, *sorted(others.values(), key=legal.index), *legal]))
        return ranked if limit == 0 else ranked[:limit]


def family(config: Any) -> tuple:
    """What a configuration is at first glance: the kernel, its tile, and who decodes, stages and shares K."""
    names = ("tile_m", "tile_n", "swap_ab", "staged", "decode_groups", "row_tiles", "cluster_m", "cluster_n")
    return (type(config), getattr(config, "shares_k", None), *(getattr(config, name, None) for name in names))


def _combinations(target: Target, case: Case, kind: type, axes: dict[str, tuple]) -> Iterator[tuple[Any, list[str]]]:
    """Every configuration, with what the predicate has against it."""
    stage, judge = STAGE_FIELD.get(kind), target.judge(kind, case)
    for values in itertools.product(*axes.values()):
        named = dict(zip(axes, values, strict=True))
        most = stage is not None and named[stage] == MOST
        config = kind(**{**named, stage: 2} if most else named)
        problems = judge(config)
        if most and not problems:
            # What does not run with the fewest stages does not run with more, and finding the most takes long.
            config = target.fitted(config, case)
            problems = judge(config)
        yield config, problems


def enumerate_space(target: Target, case: Case, given: dict[str, list[str]], full: bool) -> Space:
    """Every combination of the axes, judged by the predicate. Kernels without a field of `given` are left out.

    Raises:
        OperandError: no kernel has the fields of `given`, or a value that the field cannot have.
    """
    space = Space(target, case)
    kinds = [kind for kind in target.kinds(case) if set(given) <= {f.name for f in fields(kind)}]
    if not kinds:
        names = dict.fromkeys(f.name for kind in target.kinds(case) for f in fields(kind))
        raise OperandError(f"--set {', '.join(given)}", ", ".join(names), "name fields of one configuration")
    for kind in kinds:
        axes = space.axes[kind] = axes_of(kind, given, full, target.base(kind, case))
        judged = _judge(target, case, kind, axes)
        fixed = {name: values[0] for name, values in axes.items() if name in NEVER_ILLEGAL and len(values) == 1}
        space.legal += [replace(config, **fixed) for config in judged.legal] if fixed else judged.legal
        space.refused += judged.refused
        space.examples |= judged.examples
        space.tried += judged.tried
    space.add_candidates(given)
    return space


NEVER_ILLEGAL = ("raster_group",)
"""Fields whose positive values are all legal, whatever the others are; a heuristic sets them by the shape. Cases that
differ in them share what was judged."""


@dataclass
class _Judged:
    """What the predicate says of the combinations of one kernel; the fields are those of `Space`."""

    legal: list[Any] = field(default_factory=list)
    refused: Counter = field(default_factory=Counter)
    examples: dict[str, tuple[Any, str]] = field(default_factory=dict)
    tried: int = 0


_judged: dict[tuple, _Judged] = {}


def _judge(target: Target, case: Case, kind: type, axes: dict[str, tuple]) -> _Judged:
    # M, N and K decide nothing about legality beyond how D can be stored, except with few rows: cases share what was
    # judged.
    fixed = {f.name: (f.default,) for f in fields(kind) if f.name in NEVER_ILLEGAL and len(axes[f.name]) == 1}
    axes = axes | fixed
    request = target.request(case)
    shape = request.shape() if kind in (SmallMConfig, FewRowsConfig) else replace(request.shape(), m=0, n=0, k=0)
    key = (target, kind, tuple(axes.items()), request.store(), shape)
    if key in _judged:
        return _judged[key]
    found = _judged[key] = _Judged()
    seen = set()
    for config, problems in _combinations(target, case, kind, axes):
        if config in seen:
            continue
        seen.add(config)
        found.tried += 1
        if not problems:
            found.legal.append(config)
        for reason in problems:
            name = reason_kind(reason)
            found.refused[name] += 1
            found.examples.setdefault(name, (config, reason))
    return found


@cache
def reason_kind(reason: str) -> str:
    """A reason without its numbers: what groups combinations that fail alike."""
    return "".join("#" if c.isdigit() else c for c in reason).replace("##", "#").replace("##", "#").replace("##", "#")
