"""One run of a benchmark: its rows, its time budget, and the file that it leaves.

    <out>/<device>/<date>-<what>.json      {"what", "environment", "rows", "skipped"}

A later run of the same day replaces the file. Of several days the newest counts (`newest`). Predictions have no day.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cutefp4 import compile as kernel_cache
from cutefp4.errors import UnsupportedError
from cutefp4.plan import Plan
from cutefp4.timing import Table
from cutefp4.warmup import warmup

WHATS = ("gemm", "quantize", "linear-step", "launch", "compile")
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
    """

    what: str
    quick: bool = False
    deadline: float = float("inf")
    say: Callable[[str], None] = print
    table: Table = field(default_factory=Table)
    skipped: list[str] = field(default_factory=list)

    def rounds(self, usual: int) -> int:
        return max(3, usual // 3) if self.quick else usual

    def may_start(self, case: str) -> bool:
        """Whether there is time for a case; notes it as skipped if not."""
        if time.monotonic() < self.deadline:
            return True
        self.skipped.append(case)
        self.say(f"{case}: left out, the time budget is spent")
        return False

    def compile_ahead(self, call: Callable[[], object]) -> None:
        """Compile in parallel what a function will launch; it is called once without launching anything."""
        with kernel_cache.record() as plans:
            call()
        self.warm(list(plans))

    def warm(self, plans: Sequence[Plan]) -> None:
        """Compile plans in parallel; one that does not compile stops its case, not the others."""
        warmup(plans, progress=True, strict=False)

    def save(self, out: Path) -> Path:
        """Write the file."""
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


def slug(device: str) -> str:
    """ "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


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
