"""One run of a benchmark: its rows, its time budget, and the file that it leaves.

    <out>/<device>/<date>-<what>.json      {"what", "environment", "rows", "skipped"}

A later run of the same day replaces the file. Of several days the newest counts (`newest`). Predictions have no day.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cutefp4 import compile as kernel_cache
from cutefp4.errors import UnsupportedError
from cutefp4.plan import Plan
from cutefp4.timing import Table, slug

WHATS = ("gemm", "quantize", "linear-step", "launch", "compile", "torch-compile")
PREDICTED = "b200-predicted"
"""In place of a device: what no GPU has run."""


@dataclass
class Session:
    """What a benchmark gets.

    Attributes:
        what: its name.
        quick: few cases and rounds, to see that everything runs.
        deadline: time.monotonic() after which no further case starts.
        say: prints a line of progress.
        table: collects the rows.
        skipped: cases that the deadline left out.
        out: results folder; the file is rewritten before every case, so that a run that is killed leaves what it had.
    """

    what: str
    quick: bool = False
    deadline: float = float("inf")
    say: Callable[[str], None] = print
    table: Table = field(default_factory=Table)
    skipped: list[str] = field(default_factory=list)
    out: Path | None = None

    def rounds(self, usual: int) -> int:
        return max(3, usual // 3) if self.quick else usual

    def may_start(self, case: str, seconds: float = 0.0) -> bool:
        """Whether there is time for a case that takes about `seconds`; notes it as skipped if not."""
        if self.out is not None and self.table.rows:
            self.save()
        if time.monotonic() + seconds < self.deadline:
            return True
        self.skipped.append(case)
        self.say(f"{case}: left out, the time budget is spent")
        return False

    def save(self) -> Path | None:
        """Write the file; without a row there is none, and what an earlier run left stays."""
        if not self.table.rows:
            return None
        out = self.out
        environment = self.table.environment
        path = out / slug(environment["device"]) / f"{environment['time'][:10]}-{self.what}.json"
        data = {"what": self.what, "environment": environment, "rows": self.table.rows, "skipped": self.skipped}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(data, indent=1) + "\n")
        except OSError as error:
            raise UnsupportedError(f"{path}: {error}", "a directory that can be written", "choose another --out") from (
                error
            )
        return path


def plans_of(call: Callable[[], object]) -> list[Plan]:
    """The plans that a call would launch; it runs without launching anything."""
    with kernel_cache.record() as plans:
        call()
    return list(plans)


def newest(out: Path) -> dict[str, dict[str, dict]]:
    """The newest results by device and benchmark."""
    found: dict[str, dict[str, dict]] = {}
    for path in sorted(out.glob("*/*.json")):
        name = re.fullmatch(r"(?:\d{4}-\d\d-\d\d-)?([a-z-]+)", path.stem)
        if name is not None:
            found.setdefault(path.parent.name, {})[name[1]] = json.loads(path.read_text())
    return found


def replay(call: Callable[[], object]) -> Callable[[], None]:
    """The launches of cutefp4's kernels that a call makes, without the operations around them."""
    with kernel_cache.trace() as launches:
        call()

    def run() -> None:
        for _, kernel, arguments in launches:
            kernel(*arguments)

    return run
