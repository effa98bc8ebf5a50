"""Cold compiles in parallel: worker processes that never see the GPU, bounded by free memory.

The DSL is not thread-safe, so parallel means processes. A worker is `python -m cutefp4.compile_worker`: it reads plans
as JSON lines, stores what it compiles in the disk cache, and answers one line each. It is a plain program rather than a
`multiprocessing` child, so that a caller's script needs no `if __name__ == "__main__"` guard, and so that its
environment is set before anything is imported: CUDA_VISIBLE_DEVICES is empty there.
"""

from __future__ import annotations

import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from cutefp4 import env
from cutefp4.plan import Plan, to_json

NO_TIME = "not compiled: the time for compiling was over"
WORKER_BYTES = 1 << 30
"""Memory that one worker needs: about 0.5 GB for the DSL, the rest for a large kernel's modules."""


@dataclass(frozen=True)
class Outcome:
    """What became of one plan.

    Attributes:
        plan: as given.
        compiled: False if it was on disk already (or another process compiled it meanwhile).
        seconds: wall time in the worker.
        error: text of the failure, None if the kernel is on disk now.
    """

    plan: Plan
    compiled: bool
    seconds: float
    error: str | None = None


def worker_count(plans: int | None = None) -> int:
    """How many workers to start: CUTEFP4_COMPILE_WORKERS, or what cores and free memory allow; at most one a plan.

    plans: None while nobody knows how many there are.
    """
    wanted = env.read_int("CUTEFP4_COMPILE_WORKERS")
    if not wanted:
        cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1
        wanted = min(cores, psutil.virtual_memory().available // WORKER_BYTES)
    return max(1, wanted if plans is None else min(wanted, plans))


class _Worker:
    """One worker process, started on first use and again after it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    @classmethod
    def started(cls) -> _Worker:
        """With its process running, which loads the compiler."""
        worker = cls()
        worker._process = worker._start()
        return worker

    def _start(self) -> subprocess.Popen:
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "CUTEFP4_JIT": "allow",
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "cutefp4.compile_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            # Ctrl-C reaches a terminal's whole process group, and a process that still loads would print a traceback.
            start_new_session=True,
        )

    def compile(self, plan: Plan) -> Outcome:
        if self._process is None:
            self._process = self._start()
        try:
            self._process.stdin.write(json.dumps(to_json(plan)) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self._process.wait()
            self._process = None
            return Outcome(plan, False, 0.0, f"the compile process died with exit code {code} (-9: out of memory?)")
        return Outcome(plan, **json.loads(answer))

    def kill(self) -> None:
        """End the process in the middle of what it does; `compile` then returns. An entry of the cache is whole or not
        there."""
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()


_spare: list[_Worker] = []


@contextmanager
def started_ahead(workers: int) -> Iterator[None]:
    """Start processes now. They load PyTorch and the compiler, which takes 3 to 10 s, while the caller finds out what
    to compile; compiles inside the block take them."""
    mine = [_Worker.started() for _ in range(workers)]
    _spare.extend(mine)
    try:
        yield
    finally:
        for worker in mine:
            if worker in _spare:
                _spare.remove(worker)
                worker.kill()
                worker.close()


def compile_in_processes(
    plans: Sequence[Plan], workers: int, done: Callable[[Outcome], None], deadline: float = math.inf
) -> list[Outcome]:
    """Bring every plan into the disk cache.

    Args:
        plans: distinct plans; they are started in this order.
        workers: number of processes.
        done: called with each outcome as it arrives, from one of the caller's threads.
        deadline: time.monotonic() at which the processes are killed (one plan takes 2 s, another 10 s); what is missing
            then has the error NO_TIME.

    Returns:
        One outcome per plan, in the order of `plans`; a failure is an outcome with an error.
    """
    pending: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(plans)):
        pending.put(index)
    outcomes: list[Outcome | None] = [None] * len(plans)

    started: list[_Worker] = []

    def serve() -> None:
        try:
            worker = _spare.pop()
        except IndexError:
            worker = _Worker()
        started.append(worker)
        try:
            while time.monotonic() < deadline:
                index = pending.get_nowait()
                outcome = worker.compile(plans[index])
                if outcome.error is None or time.monotonic() < deadline:
                    outcomes[index] = outcome
                    done(outcome)
        except queue.Empty:
            pass
        finally:
            worker.close()

    threads = [threading.Thread(target=serve, name=f"cutefp4-compile-{i}", daemon=True) for i in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join(None if deadline == math.inf else max(0.0, deadline - time.monotonic()))
    finally:  # the deadline, or Ctrl-C, which the workers themselves ignore
        for worker in started if any(thread.is_alive() for thread in threads) else ():
            worker.kill()
    for thread in threads:
        thread.join()
    return [outcome or Outcome(plan, False, 0.0, NO_TIME) for plan, outcome in zip(plans, outcomes, strict=True)]
