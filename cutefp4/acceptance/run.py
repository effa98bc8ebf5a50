"""Cases over worker processes. A case that kills or hangs its process costs itself alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import psutil
import torch

from cutefp4.acceptance.case import Case
from cutefp4.acceptance.machine import Machine

LIMIT_SECONDS = 600.0
"""After this a case counts as hung, and its process is ended."""
WORKER_BYTES = 1 << 30
MOST_ON_A_GPU = 8


@dataclass(frozen=True)
class Result:
    """What became of a case. failure: None if it passed, else what is wrong. seconds: wall time, compiling included."""

    case: Case
    machine: Machine
    failure: str | None
    seconds: float


def run_one(case: Case, machine: Machine) -> Result:
    """Run a case in this process."""
    begin = time.perf_counter()
    failure = None
    try:
        case.check(machine)
    except Exception as error:  # whatever a kernel or its compiler does is this case's result
        name = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        failure = name + (str(error) or "no message")
    return Result(case, machine, failure, time.perf_counter() - begin)


def default_jobs(native: bool) -> int:
    """Processes: one per core, as memory allows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = max(1, min(cores, psutil.virtual_memory().available // WORKER_BYTES))
    return min(jobs, MOST_ON_A_GPU) if native else jobs


def run(work: Iterable[tuple[Case, Machine]], jobs: int, limit: float = LIMIT_SECONDS) -> Iterator[Result]:
    """Results as they come.

    Args:
        work: cases and where they run.
        jobs: processes; 0 runs everything in this one.
        limit: seconds for one case, without the start of its process.
    """
    work = list(work)
    if jobs == 0:
        yield from (run_one(case, machine) for case, machine in work)
        return
    groups: dict[tuple, deque] = {}
    for case, machine in work:
        groups.setdefault((machine, case.kernel()), deque()).append((case, machine))
    # Long groups first: the last process to finish should not have begun with one.
    waiting = deque(sorted(groups.values(), key=len, reverse=True))
    workers = [_Worker(limit) for _ in range(min(jobs, len(waiting)))]
    try:
        while True:
            for worker in workers:
                if not worker.todo and waiting:
                    worker.todo = waiting.popleft()
                worker.feed()
            busy = [worker for worker in workers if worker.current is not None]
            if not busy:
                return
            wait([worker.connection for worker in busy], timeout=1.0)
            for worker in busy:
                result = worker.poll()
                if result is not None:
                    yield result
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """One process, started when there is something to do and again after it died. todo: cases that it gets in turn."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.todo: deque[tuple[Case, Machine]] = deque()
        self.current: tuple[Case, Machine] | None = None
        self.connection: Connection | None = None
        self._process = None
        self._ready = False
        self._since = 0.0

    def feed(self) -> None:
        """Give the process its next case, if it has none."""
        if self.current is None and self.todo:
            if self._process is None:
                context = multiprocessing.get_context("spawn")
                self.connection, theirs = context.Pipe()
                self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
                self._process.start()
                theirs.close()
                self._ready = False
            self.current = self.todo.popleft()
            self.connection.send(self.current)
            self._since = time.perf_counter()

    def poll(self) -> Result | None:
        """The result of the current case, if it has one by now."""
        seconds = time.perf_counter() - self._since
        try:
            if self.connection.poll():
                answer = self.connection.recv()
                if answer is None:  # the process has started
                    self._ready, self._since = True, time.perf_counter()
                    return None
                case, machine = self.current
                failure, seconds, broken = answer
                if broken:
                    self.end()
                self.current = None
                return Result(case, machine, failure, seconds)
        except (EOFError, ConnectionError):
            self._process.join(5)
            return self._lost(f"its process died with exit code {self._process.exitcode}", seconds)
        if self._ready and seconds > self.limit:
            return self._lost(f"no result after {self.limit:.0f} s: the process was ended", seconds)
        return None

    def _lost(self, why: str, seconds: float) -> Result:
        case, machine = self.current
        self.end()
        self.current = None
        return Result(case, machine, why, seconds)

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self.connection.close()
            self._process = None


def _serve(connection: Connection) -> None:
    """A worker: answers each case with (failure, seconds, whether this process must not be used again)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    torch.set_num_threads(1)
    connection.send(None)
    while True:
        try:
            case, machine = connection.recv()
        except (EOFError, ConnectionError):
            return
        result = run_one(case, machine)
        connection.send((result.failure, result.seconds, machine.native and not _gpu_works()))


def _gpu_works() -> bool:
    """False once a kernel has failed on the GPU: nothing runs in this process any more."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
