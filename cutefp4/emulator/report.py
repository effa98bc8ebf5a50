"""What a launch reports: findings, counters, the instruction mix."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

from .native_build import SOURCES


@dataclass(frozen=True)
class FindingKind:
    """One entry of native/findings.def: severity 2 stops the launch, 1 fails it at its end, 0 is a warning."""

    name: str
    severity: int
    meaning: str


@lru_cache(maxsize=1)
def finding_kinds() -> tuple[FindingKind, ...]:
    """Every kind of finding there is, in the order of the interpreter's enum."""
    text = (SOURCES / "findings.def").read_text()
    return tuple(FindingKind(n, int(s), t) for n, s, t in re.findall(r'^FINDING\((\w+), (\d), "(.*)"\)', text, re.M))


@lru_cache(maxsize=1)
def counter_names() -> tuple[tuple[str, str], ...]:
    """(name, meaning) of every counter, in the order of the interpreter's enum."""
    text = (SOURCES / "counters.def").read_text()
    return tuple((n.lower(), t) for n, t in re.findall(r'^COUNTER\((\w+), "(.*)"\)', text, re.M))


@dataclass(frozen=True)
class Finding:
    """Something wrong in a kernel.

    Attributes:
        kind: name of a `FindingKind`.
        severity: 2 stopped the launch, 1 fails it at its end, 0 warning.
        message: what happened and what to do.
        kernel: entry name.
        line, ptx: line number in the PTX text, and that line.
        python: ``file:line`` of the DSL source where line information exists.
        cta, warp, lane: where it happened first; count: how often.
        address: what it was about (global address, shared offset, barrier number).
    """

    kind: str
    severity: int
    message: str
    kernel: str
    line: int
    ptx: str
    python: str | None
    cta: tuple[int, int, int]
    warp: int
    lane: int
    count: int
    address: int

    def __str__(self) -> str:
        where = f"PTX line {self.line}" + (f" ({self.python})" if self.python else "")
        times = f", {self.count} times" if self.count > 1 else ""
        what = ("warning", "error", "fatal")[self.severity]
        return (
            f"{what} {self.kind}: {self.message}\n    in {self.kernel} at {where}, "
            f"CTA {self.cta} warp {self.warp} lane {self.lane}{times}\n    {self.ptx}"
        )


@dataclass
class LaunchReport:
    """One kernel launch: shape, findings, counters.

    Attributes:
        counters: name -> value; the names and meanings are `counter_names()`.
        instructions: PTX opcode -> warp instructions executed.
        lines: PTX line -> warp instructions executed.
        deadlock: every warp's place and every barrier's state, when the launch could not go on.
        seconds: host time of the interpreter.
    """

    kernel: str
    arch: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    seed: int
    findings: list[Finding] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    instructions: Counter = field(default_factory=Counter)
    lines: dict[int, int] = field(default_factory=dict)
    deadlock: str = ""
    seconds: float = 0.0

    @property
    def errors(self) -> list[Finding]:
        return [f for f in self.findings if f.severity]

    @property
    def warnings(self) -> list[Finding]:
        return [f for f in self.findings if not f.severity]

    def kinds(self) -> set[str]:
        """Names of all findings, warnings included."""
        return {f.kind for f in self.findings}

    def describe(self) -> str:
        """The findings and the deadlock report as text."""
        head = f"kernel {self.kernel}, grid {self.grid}, block {self.block}, cluster {self.cluster}, seed {self.seed}"
        parts = [head, *(str(f) for f in self.findings)]
        if self.deadlock:
            parts.append("where everything stands:\n" + self.deadlock)
        return "\n".join(parts)


@dataclass
class DeviceReport:
    """All launches of a device since it was made or `clear()`ed: sums of the counters, findings in order."""

    reports: list[LaunchReport] = field(default_factory=list)

    @property
    def launches(self) -> int:
        return len(self.reports)

    @property
    def seconds(self) -> float:
        return sum(r.seconds for r in self.reports)

    @property
    def findings(self) -> list[Finding]:
        return [f for r in self.reports for f in r.findings]

    @property
    def counters(self) -> dict[str, int]:
        return {name: sum(r.counters[name] for r in self.reports) for name, _ in counter_names()}

    @property
    def instructions(self) -> Counter:
        return sum((r.instructions for r in self.reports), Counter())

    def kinds(self) -> set[str]:
        """Names of all findings, warnings included."""
        return {f.kind for f in self.findings}

    def describe(self) -> str:
        return "\n".join(r.describe() for r in self.reports)
