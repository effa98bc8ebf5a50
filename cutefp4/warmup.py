"""Compile kernels before they are needed: in parallel, with a progress bar, into disk and memory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cutefp4 import compile as kernel_cache
from cutefp4 import compile_pool
from cutefp4.compile_pool import Outcome
from cutefp4.errors import CompileError, CuteFP4Error
from cutefp4.plan import Plan


@dataclass(frozen=True)
class WarmupResult:
    """What a warm-up did.

    Attributes:
        outcomes: one per distinct plan, in order.
        workers: processes that compiled; 0 if this process compiled (no usable disk).
        seconds: wall time.
    """

    outcomes: tuple[Outcome, ...]
    workers: int
    seconds: float

    @property
    def compiled(self) -> int:
        """Plans that were compiled now."""
        return sum(outcome.compiled for outcome in self.outcomes)


def warmup(
    plans: Iterable[Plan],
    *,
    workers: int | None = None,
    load: bool = True,
    progress: bool = False,
    strict: bool = True,
    deadline: float = math.inf,
) -> WarmupResult:
    """Compile what is in no cache, in parallel processes, and load everything into this process.

    Args:
        plans: any plans; duplicates are dropped.
        workers: processes; None follows CUTEFP4_COMPILE_WORKERS, cores and free memory.
        load: False leaves the kernels on disk (for another process to use).
        progress: show a bar, on a terminal.
        strict: raise for plans that do not compile; otherwise the outcomes say so.
        deadline: time.monotonic() at which workers are stopped; what is missing then has not compiled (NO_TIME).

    Raises:
        CompileError: some plans did not compile; the message names each. The others are in the cache.
        CacheError: the cache directory belongs to another user.
    """
    distinct = list(dict.fromkeys(plans))
    start = time.perf_counter()
    with _bar(progress) as bar:
        task = bar.add_task("compiling", total=len(distinct))

        def done(outcome: Outcome) -> None:
            bar.update(task, advance=1, description=f"{type(outcome.plan).__name__} {outcome.plan.arch}")

        missing = [plan for plan in distinct if not kernel_cache.is_stored(plan)]
        for plan in set(distinct).difference(missing):
            done(Outcome(plan, False, 0.0))
        count = 0
        if missing and kernel_cache.can_store(missing[0]):
            count = workers or compile_pool.worker_count(len(missing))
            outcomes = compile_pool.compile_in_processes(missing, count, done, deadline)
        else:
            outcomes = [_compile_here(plan, done) for plan in missing]
    by_plan = {outcome.plan: outcome for outcome in outcomes}
    result = WarmupResult(
        tuple(by_plan.get(plan) or Outcome(plan, False, 0.0) for plan in distinct), count, time.perf_counter() - start
    )
    if strict:
        _raise_failures(result)
    if load:
        for outcome in result.outcomes:
            if outcome.error is None:
                kernel_cache.load(outcome.plan)
    return result


def _bar(visible: bool) -> Progress:
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not (visible and console.is_terminal), transient=True)


def _compile_here(plan: Plan, done) -> Outcome:
    """Without a disk, workers could not hand their kernels over: compile one after the other, into memory."""
    start, error = time.perf_counter(), None
    try:
        kernel_cache.load(plan)
    except CuteFP4Error as failure:
        error = str(failure)
    outcome = Outcome(plan, error is None, time.perf_counter() - start, error)
    done(outcome)
    return outcome


def _raise_failures(result: WarmupResult) -> None:
    failed = [outcome for outcome in result.outcomes if outcome.error]
    if failed:
        lines = "\n".join(f"  {outcome.plan.describe()} for {outcome.plan.arch}: {outcome.error}" for outcome in failed)
        raise CompileError(f"{len(failed)} of {len(result.outcomes)} plans did not compile:\n{lines}")
