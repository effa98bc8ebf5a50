"""Timing on the GPU: compile ahead, check, time interleaved, and time the best again.

The configurations of a case are timed in groups, each together with cuBLAS and the heuristic's choice, so that every
ratio comes from one interleaved run. The best few then meet in a longer final.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from types import MappingProxyType
from typing import Any

import torch

from cutefp4 import tuned
from cutefp4.cli.resources import cubin_resources
from cutefp4.cli.roofline import ROOFS
from cutefp4.cli.sweep.case import Case, Operands
from cutefp4.cli.sweep.check import Checker
from cutefp4.cli.sweep.operations import entry_of, launcher, operation_plans
from cutefp4.cli.sweep.space import Space
from cutefp4.cli.sweep.store import Store, row_key
from cutefp4.cli.sweep.target import Target, describe
from cutefp4.compile_pool import NO_TIME
from cutefp4.plan import Plan, to_json
from cutefp4.timing import Clock, EventClock, Timing, Variant, environment, measure
from cutefp4.tuned import TunedEntry
from cutefp4.warmup import warmup

GROUP = 8
FINALISTS = 4
SIGNIFICANT = 0.01
"""A configuration must be this much faster than the heuristic's choice to replace it."""


@dataclass
class Result:
    """What a sweep found for one case.

    Attributes:
        rows: one per configuration, fastest first.
        winner: of the rows, None if nothing was right.
        config: the winner's configuration.
        left_out: configurations for which there was no time.
    """

    case: Case
    target: Target
    rows: list[dict] = field(default_factory=list)
    winner: dict | None = None
    config: Any = None
    interrupted: bool = False
    left_out: int = 0


def compile_ahead(
    chosen: list[tuple[Space, list[Any]]],
    *,
    workers: int | None = None,
    deadline: float = math.inf,
    say: Callable[[str], None] = lambda _: None,
) -> dict[Plan, str]:
    """Compile every plan in parallel, with a progress bar; returns the plans that did not compile, with the reason.

    The first configuration of every case comes first, then the second ones: what the deadline leaves is missing alike
    from all cases.
    """
    turns = [
        space.target.plan(config, space.case)
        for turn in zip_longest(*(configs for _, configs in chosen))
        for (space, _), config in zip(chosen, turn, strict=True)
        if config is not None
    ]
    result = warmup(turns, workers=workers, load=False, progress=True, strict=False, deadline=deadline)
    say(f"{result.compiled} kernels compiled in {result.seconds:.1f} s by {result.workers} processes")
    return {outcome.plan: _first_line(outcome.error) for outcome in result.outcomes if outcome.error is not None}


def _first_line(error: str) -> str:
    """What the compiler says, without the plan before it and the listing behind it."""
    line = error.partition("did not compile: ")[2].partition("\n")[0] or error.partition("\n")[0]
    return line if len(line) < 300 else line[:300] + "..."


def figures(case: Case, arch: str, us: float) -> dict[str, float]:
    """Speeds that follow from a time."""
    return {
        "us": round(us, 3),
        "tflops": round(case.flop / us / 1e6, 2),
        "gb_per_s": round(case.nbytes / us / 1e3, 1),
        "percent_of_roofline": round(100 * ROOFS[arch].us(case.flop, case.nbytes) / us, 1),
    }


def base_row(case: Case, target: Target, config: Any, source: str) -> dict:
    """Columns that every row has."""
    return {
        "case": case.name,
        "kind": case.kind,
        "layout": case.layout,
        "m": case.m,
        "n": case.n,
        "k": case.k,
        "recipe": case.recipe,
        "epilogue": case.epilogue,
        "arch": target.arch,
        "source": source,
        "name": describe(config),
        "config": to_json(config),
    }


def cublas(operands: Operands) -> Callable[[int], object]:
    """bf16 on the decoded operands: what the product costs without NVFP4."""
    a, b = operands.decoded()
    if operands.case.epilogue == "accumulate":
        d = operands.c.clone()
        return lambda _: d.add_(torch.mm(a, b.T, out_dtype=torch.float32))
    d = torch.empty(operands.case.m, operands.case.n, dtype=torch.bfloat16, device=a.device)
    addend = operands.c if operands.c is not None else operands.bias
    if addend is not None:
        return lambda _: torch.addmm(addend, a, b.T, out=d)
    return lambda _: torch.matmul(a, b.T, out=d)


class CaseSweep:
    """One case on the GPU. `clock` makes a clock for each measurement; tests pass one that needs no device."""

    def __init__(self, space: Space, store: Store, *, rounds: int, clock: Callable[[], Clock] | None = None,
                 device: str = "cuda", say: Callable[[str], None] = lambda _: None,
                 deadline: float = math.inf) -> None:  # fmt: skip
        self.space, self.target, self.case = space, space.target, space.case
        self.store, self.rounds, self.clock, self.device, self.say = store, rounds, clock or EventClock, device, say
        self.deadline = deadline
        self.environment = environment()
        self.checker: Checker | None = None
        self.rows: dict[Any, dict] = {}
        self.beside = [space.choice]
        """What every group is timed beside, if it compiles."""

    def run(self, configs: list[Any], failed: Mapping[Plan, str] = MappingProxyType({})) -> Result:
        """Measure configurations, the heuristic's choice among them, and pick the winner; Ctrl-C keeps all.

        Past the deadline nothing further is started; the first group is measured in any case.

        Args:
            failed: plans that were not compiled, with the reason: rows without a time.
        """
        interrupted = False
        reasons = {config: failed.get(self.target.plan(config, self.case)) for config in configs}
        self.beside = [self.space.choice] if reasons.get(self.space.choice) is None else []
        ready = [config for config in configs if reasons[config] is None]
        left = [config for config in ready if not self._take(config, "first")]
        try:
            for start in range(0, len(left), GROUP):
                if start and time.monotonic() > self.deadline:
                    break
                self._measure(left[start : start + GROUP], "first", self.rounds)
            best = self._fastest()[:FINALISTS]
            finalists = list(dict.fromkeys([*self.beside, *best]))
            if len(finalists) > 1 and not self._take_all(finalists, "final") and time.monotonic() < self.deadline:
                self._measure(finalists, "final", 3 * self.rounds)
        except KeyboardInterrupt:
            interrupted = True
        broken = [config for config, reason in reasons.items() if reason not in (None, NO_TIME)]
        for config in broken:
            row = base_row(self.case, self.target, config, "measured")
            row |= {"phase": "first", "heuristic": config == self.space.choice, "percent_of_cublas": 0.0}
            self.rows[config] = {**row, "us": None, "check": f"does not compile: {reasons[config]}"}
        result = Result(self.case, self.target, interrupted=interrupted, left_out=len(configs) - len(self.rows))
        order = self._fastest()
        result.rows = [self.rows[config] for config in order]
        result.rows += [row for row in self.rows.values() if row["us"] is None]
        result.config = self._winner(order)
        result.winner = self.rows.get(result.config)
        return result

    def _take(self, config: Any, phase: str) -> bool:
        """Use the stored row, if there is one."""
        row = self.store.get(row_key(self.case.name, config, phase, self.environment))
        if row is not None:
            self.rows[config] = row
        return row is not None

    def _take_all(self, configs: list[Any], phase: str) -> bool:
        """Use the stored rows, if all are there: a final is one run."""
        keys = [row_key(self.case.name, config, phase, self.environment) for config in configs]
        return all(self.store.get(key) for key in keys) and all(self._take(config, phase) for config in configs)

    def _fastest(self) -> list[Any]:
        """Right configurations, fastest first: finals first, then by the ratio to cuBLAS of their own run."""
        right = [config for config, row in self.rows.items() if row["us"] is not None]
        finals = [config for config in right if self.rows[config]["phase"] == "final"]
        others = [config for config in right if config not in finals]
        by_ratio = sorted(others, key=lambda config: -self.rows[config]["percent_of_cublas"])
        return sorted(finals, key=lambda config: self.rows[config]["us"]) + by_ratio

    def _winner(self, order: list[Any]) -> Any:
        """The fastest; the heuristic's choice where the difference is noise."""
        if not order:
            return None
        best, choice = self.rows[order[0]], self.rows.get(self.space.choice)
        if choice is not None and choice["us"] is not None:
            if best["percent_of_cublas"] < choice["percent_of_cublas"] * (1 + SIGNIFICANT):
                return self.space.choice
        return order[0]

    def _measure(self, configs: list[Any], phase: str, rounds: int) -> None:
        if self.checker is None:
            self.checker = Checker(self.case, self.device)
        operands = self.checker.normal
        d = operands.fresh_d()
        variants = {"cublas": Variant("cublas", cublas(operands))}
        verdicts = {}
        for index, config in enumerate(dict.fromkeys([*self.beside, *configs])):
            entry = entry_of(self.target, self.case, config)
            verdicts[config] = self._verdict(config, entry)
            if not verdicts[config].startswith("WRONG"):
                variants[config] = Variant(str(index), launcher(entry, operands, d))
        self.say(f"{self.case.name}: {len(variants) - 1} configurations, {phase}")
        timings = measure(list(variants.values()), rounds=rounds, clock=self.clock())
        for config in configs:
            variant = variants.get(config)
            timing = timings[variant.name] if variant is not None else None
            self._record(config, phase, timing, timings["cublas"], verdicts[config])

    def _verdict(self, config: Any, entry: TunedEntry) -> str:
        def run(operands: Operands, d: torch.Tensor) -> None:
            with tuned.use([entry]):
                operands.run(d)

        before = self.rows.get(config)
        return before["check"] if before is not None else self.checker.verdict(run)

    def _record(self, config: Any, phase: str, timing: Timing | None, baseline: Timing, verdict: str) -> None:
        row = base_row(self.case, self.target, config, "measured")
        row |= {"phase": phase, "heuristic": config == self.space.choice, "check": verdict}
        if timing is None:
            row |= {"us": None, "percent_of_cublas": 0.0}
        else:
            row |= figures(self.case, self.target.arch, timing.us)
            row |= {
                "low_us": round(timing.low * 1e6, 3),
                "high_us": round(timing.high * 1e6, 3),
                "cublas_us": round(baseline.us, 3),
                "percent_of_cublas": round(100 * baseline.median / timing.median, 2),
                "predicted_us": round(self.target.predict(config, self.case).us, 2),
            }
        made = cubin_resources(self.target.plan(config, self.case))
        row |= {"registers": made["registers"], "spills": made["spills"]}
        self.rows[config] = row
        self.store.add(row_key(self.case.name, config, phase, self.environment), row)


def winners_table(results: list[Result], environment_now: dict[str, str]) -> list[TunedEntry]:
    """What `--save` writes: one entry per case with a right winner."""
    kept = ("device", "torch", "dsl", "commit", "sources", "time")
    entries = []
    for result in results:
        if result.winner is None or result.winner["us"] is None:
            continue
        choice = next((row for row in result.rows if row.get("heuristic")), None)
        measured = {"case": result.case.name, "median_us": result.winner["us"]}
        measured |= {"heuristic_us": choice["us"] if choice else None, "check": result.winner["check"]}
        measured |= {name: environment_now[name] for name in kept if name in environment_now}
        entries.append(entry_of(result.target, result.case, result.config, measured=measured))
    return entries


def not_applied(results: list[Result]) -> list[str]:
    """Cases whose operation does not use the winner although the tuned table is loaded; [] if all is well."""
    wrong = []
    for result in results:
        if result.config is not None:
            used = [getattr(plan, "config", None) for plan in operation_plans(result.case, result.target)]
            if result.config not in used:
                wrong.append(f"{result.case.name}: {used} instead of {result.config}")
    return wrong
