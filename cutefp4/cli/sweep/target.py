"""An architecture as a sweep sees it: which kernels serve a product there, with what, and how long it may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from cutefp4 import gemm_choice_sm90, gemm_choice_sm100, ops_gemm_few_rows, ops_gemm_small_m
from cutefp4.budget_sm90 import with_most_stages
from cutefp4.cli.sweep.case import EPILOGUES, Case
from cutefp4.config import Sm90Config
from cutefp4.config_few_rows import FewRowsConfig
from cutefp4.config_few_rows import with_most_stages as most_stages_of_few_rows
from cutefp4.config_sm100 import Sm100Config, sm100_problems
from cutefp4.config_small_m import SmallMConfig
from cutefp4.errors import UnsupportedError
from cutefp4.heuristics import few_rows, sm90, sm100, small_m
from cutefp4.layer_plans import SMS
from cutefp4.legality_sm90 import sm90_problems
from cutefp4.plan import Plan
from cutefp4.schedule_model_sm90 import estimate as estimate_sm90
from cutefp4.schedule_model_sm100 import estimate as estimate_sm100
from cutefp4.schedule_model_sm100 import with_sms


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
        small = case.m <= small_m.MAX_M and ops_gemm_small_m.serves(self.request(case))
        few = case.m <= few_rows.MAX_M and ops_gemm_few_rows.serves(self.request(case))
        return [Sm90Config, *([SmallMConfig] if small else []), *([FewRowsConfig] if few else [])]

    def request(self, case: Case):
        return case.request(self.arch)

    def problems(self, config: Any, case: Case) -> list[str]:
        """The predicate: why a configuration cannot serve the case."""
        return self.judge(type(config), case)(config)

    def judge(self, kind: type, case: Case) -> Callable[[Any], list[str]]:
        """The predicate for configurations of one class; what it derives from the case is derived once.

        `config_problems` of the operations asks the same functions, and derives the shape again at each call: half
        of the 4.3 s that 64 000 combinations took.
        """
        request = self.request(case)
        if kind is SmallMConfig:
            return lambda config: ops_gemm_small_m.problems(config, request, self.sms)
        if kind is FewRowsConfig:
            return lambda config: ops_gemm_few_rows.problems(config, request)
        shape = request.shape()
        if kind is Sm100Config:
            return lambda config: gemm_choice_sm100.config_problems(config, request)
        store = request.staged_store()
        return lambda config: sm90_problems(config, *shape.operands(config), store)

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
        if kind is FewRowsConfig:
            return few_rows.best(r.m, r.n, r.k, r.batch, r.activations, self.sms)
        if kind is Sm90Config:
            return sm90.choose(r.shape(), self.sms, r.batch_invariant)
        return self.choice(case)

    def fitted(self, config: Any, case: Case) -> Any:
        """With as many load stages as fit."""
        request = self.request(case)
        if isinstance(config, Sm100Config):
            vectors = request.shape().column_vectors
            return sm100.with_most_stages(config, vectors) if not sm100_problems(config, vectors) else config
        if isinstance(config, FewRowsConfig):
            return most_stages_of_few_rows(config)
        return with_most_stages(config, *request.shape().operands(config), request.staged_store())

    def candidates(self, case: Case) -> list[Any]:
        """What the heuristic chooses from."""
        if self.arch != "sm_90a":
            return []
        r = self.request(case)
        found = list(sm90.candidates(r.shape(), r.batch_invariant))
        if SmallMConfig in self.kinds(case):
            found += small_m.candidates(r.m, r.n, r.k, r.batch, r.activations, self.sms)
        if FewRowsConfig in self.kinds(case):
            found += few_rows.candidates(r.m, r.activations)
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
        if isinstance(config, FewRowsConfig):
            return Prediction(few_rows.estimate(config, request.n, request.k, request.batch, self.sms))
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
