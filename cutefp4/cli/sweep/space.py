"""Which configurations a sweep looks at: every combination of the axes that the legality predicate accepts.

The predicate of the kernel (`config_problems` of its operations) is the only judge. `AXES` says which values each field
takes; a field without an entry takes both values if it is a bool and otherwise its default, so that a new field of a
configuration appears here by itself. `--set field=value,value` replaces an axis.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from typing import Any

from cutefp4 import gemm_choice_sm90, gemm_choice_sm100, ops_gemm_small_m
from cutefp4.budget_sm90 import with_most_stages
from cutefp4.cli.sweep.case import EPILOGUES, Case
from cutefp4.config import Sm90Config
from cutefp4.config_sm100 import Sm100Config, sm100_problems
from cutefp4.config_small_m import SmallMConfig
from cutefp4.errors import OperandError, UnsupportedError
from cutefp4.heuristics import sm90, sm100, small_m
from cutefp4.layer_plans import SMS
from cutefp4.plan import Plan
from cutefp4.schedule_model_sm90 import estimate as estimate_sm90
from cutefp4.schedule_model_sm100 import estimate as estimate_sm100
from cutefp4.schedule_model_sm100 import with_sms

MOST = "most"
"""As a number of stages: as many as fit."""

AXES: dict[type, dict[str, tuple]] = {
    Sm90Config: {
        "tile_m": (64, 128, 256),
        "tile_n": (16, 32, 64, 128, 256),
        "k_blocks": (1, 2, 4),
        "consumer_groups": (1, 2),
        "load_stages": (MOST,),
        "mma_stages": (2, 3, 4),
        "store_passes": (1, 2),
        "steps_per_group": (2, 4),
        "decode_groups": (0, 1),
        "cluster": (1, 2),
        "fragment_registers": (16, 32),
    },
    SmallMConfig: {
        "row_tiles": (1, 2),
        "depth": (2, 4, 8),
        "row_warps": (4, 8, 16),
        "k_warps": (1, 2, 4),
        "cluster": (1, 2, 4),
        "ctas_per_sm": (1, 2),
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
        "tile_m": (64, 128, 256, 512),
        "consumer_groups": (1, 2, 3, 4),
        "mma_stages": (2, 3, 4, 6),
        "store_passes": (1, 2, 4, 8),
        "steps_per_group": (1, 2, 4),
        "raster_group": (1, 4, 8, 16),
        "splits": (1, 2, 4, 8),
        "decode_groups": (0, 1, 2),
        "decode_to": ("float16", "bfloat16"),
    },
    SmallMConfig: {
        "depth": (2, 3, 4, 6, 8),
        "row_warps": (2, 4, 7, 8, 14, 16),
        "k_warps": (1, 2, 4, 8),
        "cluster": (1, 2, 4, 8),
        "ctas_per_sm": (1, 2, 3),
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
class Target:
    """An architecture with its number of multiprocessors, and the kernels that serve a product there.

    Attributes:
        arch: of `plan.ARCHS`. sms: multiprocessors that configurations are chosen for.
    """

    arch: str
    sms: int

    def kinds(self, case: Case) -> list[type]:
        """The classes of configurations, one for each kernel that may serve the case."""
        if self.arch != "sm_90a":
            return [Sm100Config]
        few = case.m <= small_m.MAX_M and ops_gemm_small_m.serves(self.request(case))
        return [Sm90Config, *([SmallMConfig] if few else [])]

    def request(self, case: Case):
        return case.request(self.arch)

    def problems(self, config: Any, case: Case) -> list[str]:
        """The predicate: why a configuration cannot serve the case."""
        if isinstance(config, SmallMConfig):
            return ops_gemm_small_m.problems(config, self.request(case), self.sms)
        return self._ops().config_problems(config, self.request(case))

    def plan(self, config: Any, case: Case) -> Plan:
        return self._ops().plan_with(config, self.request(case), self.arch)

    def choice(self, case: Case) -> Any:
        """What the heuristic takes."""
        request = self.request(case)
        if self.arch == "sm_90a":
            return gemm_choice_sm90.choose(request, self.sms)
        return sm100.choose(request.shape(), self.sms, request.batch_invariant, request.swappable())

    def base(self, kind: type, case: Case) -> Any:
        """The best configuration of a kernel by its own heuristic: where a search among its configurations starts."""
        r = self.request(case)
        if kind is SmallMConfig:
            return small_m.best(r.m, r.n, r.k, r.batch, r.activations, self.sms) or SmallMConfig()
        if kind is Sm90Config:
            return sm90.choose(r.shape(), self.sms, r.batch_invariant)
        return self.choice(case)

    def fitted(self, config: Any, case: Case) -> Any:
        """With as many load stages as fit."""
        request = self.request(case)
        if isinstance(config, Sm100Config):
            vectors = request.shape().column_vectors
            return sm100.with_most_stages(config, vectors) if not sm100_problems(config, vectors) else config
        return with_most_stages(config, *request.shape().operands(config), request.staged_store())

    def candidates(self, case: Case) -> list[Any]:
        """What the heuristic chooses from."""
        if self.arch != "sm_90a":
            return []
        r = self.request(case)
        found = list(sm90.candidates(r.shape(), r.batch_invariant))
        if SmallMConfig in self.kinds(case):
            found += small_m.candidates(r.m, r.n, r.k, r.batch, r.activations, self.sms)
        return found

    def shared_bytes(self, config: Any, case: Case) -> int:
        """Shared memory of a kernel that gets it at launch; 0 of the others."""
        if isinstance(config, SmallMConfig):
            return ops_gemm_small_m.shared_bytes(config, self.request(case), self.sms)
        return 0

    def predict(self, config: Any, case: Case) -> Prediction:
        """The schedule model's time."""
        request = self.request(case)
        shape = request.shape()
        if isinstance(config, SmallMConfig):
            return Prediction(small_m.estimate(config, request.n, request.k, request.batch, self.sms), "memory")
        if isinstance(config, Sm100Config):
            found = estimate_sm100(config, shape, with_sms(self.sms))
            return Prediction(found.us, found.limiter)
        c_bytes = {"bfloat16": 2, "float32": 4}.get(EPILOGUES[case.epilogue].get("c"), 0)
        found = estimate_sm90(config, shape, case.out_dtype.itemsize, c_bytes)
        return Prediction(found.us, found.limiter)

    def _ops(self):
        return gemm_choice_sm90 if self.arch == "sm_90a" else gemm_choice_sm100


def target_for(arch: str, case: Case, sms: int = 0) -> Target:
    """The target, after a look whether it serves the case at all.

    Raises:
        UnsupportedError: it does not.
    """
    if arch != "sm_90a" and case.kind == "w4a16":
        raise UnsupportedError(f"--kind w4a16 for {arch}", "sm_90a", "sweep w4a4")
    return Target(arch, sms or SMS[arch])


def describe(config: Any) -> str:
    """The fields that differ from the defaults."""
    changed = [f"{f.name}={getattr(config, f.name)}" for f in fields(config) if getattr(config, f.name) != f.default]
    return " ".join(changed) or "defaults"


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

    def ranked(self, limit: int) -> list[Any]:
        """The heuristic's choice, then the most promising others, at most `limit` in all (0: every legal one).

        Up to half of them are what the heuristic chooses from, if `legal` holds them. Promising: a short predicted
        time, 2 % longer per field that differs from what the heuristic would take. The model knows nothing of some
        fields, and what it calls equal is closer to the truth near a measured choice.
        """

        def promise(config: Any) -> float:
            return self.target.predict(config, self.case).us * 1.02 ** self.changes(config)

        legal = sorted(self.legal, key=promise)
        known = set(self.target.candidates(self.case))
        first = [config for config in legal if config in known][: limit // 2]
        ranked = list(dict.fromkeys([self.choice, *first, *legal]))
        return ranked if limit == 0 else ranked[:limit]


def axes_of(kind: type, given: dict[str, list[str]], full: bool, base: Any) -> dict[str, tuple]:
    """The values of every field of a class of configurations.

    Args:
        given: by `--set`: a field and its values as text.
        base: the value of fields that are no axis.

    Raises:
        OperandError: a value that the field cannot have.
    """
    known = AXES[kind] | (FULL_AXES[kind] if full else {})
    axes = {}
    for f in fields(kind):
        default = getattr(base, f.name)
        values = known.get(f.name, (False, True) if isinstance(default, bool) else (default,))
        axes[f.name] = tuple(dict.fromkeys(values))
    for name, texts in given.items():
        axes[name] = tuple(_value(name, text, getattr(base, name)) for text in texts)
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


def _combinations(target: Target, case: Case, kind: type, axes: dict[str, tuple]) -> Iterator[Any]:
    stage = STAGE_FIELD.get(kind)
    for values in itertools.product(*axes.values()):
        named = dict(zip(axes, values, strict=True))
        if stage is None or named[stage] != MOST:
            yield kind(**named)
            continue
        # What does not run with the fewest stages does not run with more, and finding the most takes long.
        fewest = kind(**{**named, stage: 2})
        yield fewest if target.problems(fewest, case) else target.fitted(fewest, case)


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
        space.legal += judged.legal
        space.refused += judged.refused
        space.examples |= judged.examples
        space.tried += judged.tried
    return space


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
    request = target.request(case)
    shape = request.shape() if kind is SmallMConfig else replace(request.shape(), m=0, n=0, k=0)
    key = (target, kind, tuple(axes.items()), request.store(), shape)
    if key in _judged:
        return _judged[key]
    found = _judged[key] = _Judged()
    for config in dict.fromkeys(_combinations(target, case, kind, axes)):
        found.tried += 1
        problems = target.problems(config, case)
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
