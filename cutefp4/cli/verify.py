"""`cutefp4 verify`: run the acceptance matrix on what is here, and say what failed and how to run it again."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cutefp4.acceptance.case import Case
from cutefp4.acceptance.machine import ARCHS, Machine, here, machine_for
from cutefp4.acceptance.matrix import cases_of
from cutefp4.acceptance.run import Result, default_jobs, run
from cutefp4.cli import output
from cutefp4.errors import OperandError

NEWS_SECONDS = 30.0
"""How often a run that has no terminal says how far it is."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(verify)


def verify(
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes on two cores (the default).")] = False,
    full: Annotated[bool, typer.Option("--full", help="Everything: tens of minutes on two cores, per arch.")] = False,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(ARCHS)}; may be repeated. Default: this machine's GPU, else the first two.",
            autocompletion=output.complete(*ARCHS),
        ),
    ] = None,
    area: Annotated[list[str] | None, typer.Option(help="Only this area of the table; may be repeated.")] = None,
    case: Annotated[
        list[str] | None, typer.Option(help="Only the case with this id, or a pattern with *; may be repeated.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Print the ids of the cases and run nothing.")] = False,
    jobs: Annotated[int, typer.Option(help="Processes; 0 = all in this one. Default: as cores and memory allow.")] = -1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Prove on this machine that kernels do what they must: the acceptance matrix.

    Every case compares a kernel with the oracle: codes, scales and amaxes byte for byte; products bit for bit where
    sums are exact in fp32, else within the bound. On a GPU that cutefp4 has kernels for they run there; otherwise, and
    for another --arch, their PTX runs in the emulator, which must report no race, no deadlock and no missing fence.

    Exit code 0 if all passed, 1 if any failed, 2 for a mistake on the command line, 130 after Ctrl-C.

    Examples: `cutefp4 verify`, `cutefp4 verify --full --arch sm_100a`, `cutefp4 verify --area gemm`,
    `cutefp4 verify --arch sm_90a --case 'gemm/*gelu*'`.
    """
    if quick and full:
        raise OperandError("--quick and --full", "one of them", "leave one out; --quick is the default")
    machines = _machines(arch or [])
    chosen = _chosen(machines, full, area or [], case or [])
    if not chosen:
        raise OperandError(
            f"no case for --area {area or 'any'} --case {case or 'any'}",
            "an id or a pattern that `cutefp4 verify --full --list` prints",
            "cases outside the quick matrix need --full, or their exact id",
        )
    if listing:
        for one, machine in chosen:
            print(f"{machine.arch} {one.id}")
        return
    for machine in machines:
        machine.require()
    native = any(machine.native for machine in machines)
    report = Report([machine.name for machine in machines], len(chosen))
    begin = time.perf_counter()
    try:
        report.take(run(chosen, jobs if jobs >= 0 else default_jobs(native)), quiet=as_json)
    except KeyboardInterrupt:
        report.interrupted = True
    report.seconds = time.perf_counter() - begin
    if as_json:
        output.print_json(report.as_dict())
    else:
        report.show()
    raise typer.Exit(output.INTERRUPTED if report.interrupted else output.FAILED if report.failures else 0)


def _machines(archs: list[str]) -> list[Machine]:
    unknown = [name for name in archs if name not in ARCHS]
    if unknown:
        raise OperandError(f"--arch {unknown[0]}", ", ".join(ARCHS), "choose one of these")
    return [machine_for(name) for name in dict.fromkeys(archs)] or here()


def _chosen(machines: list[Machine], full: bool, areas: list[str], patterns: list[str]) -> list[tuple[Case, Machine]]:
    """What to run. An exact id, or a pattern, is looked for in the full matrix."""
    everything = [(one, machine) for machine in machines for one in cases_of(machine.arch)]
    known = list(dict.fromkeys(one.area for one, _ in everything))
    unknown = [name for name in areas if name not in known]
    if unknown:
        raise OperandError(f"--area {unknown[0]}", ", ".join(known), "choose one of these")
    found = [(one, machine) for one, machine in everything if full or one.quick or patterns]
    if patterns:
        found = [pair for pair in found if any(fnmatch.fnmatchcase(pair[0].id, p) or pair[0].id == p for p in patterns)]
    return [pair for pair in found if not areas or pair[0].area in areas]


@dataclass
class Report:
    """Results so far. machines: their names; planned: cases to run."""

    machines: list[str]
    planned: int
    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def failures(self) -> list[Result]:
        return [result for result in self.results if result.failure is not None]

    def take(self, results: Iterable[Result], quiet: bool) -> None:
        """Collect results, with a progress bar on a terminal, and failures as they come."""
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
            task, told = bar.add_task("verifying", total=self.planned), time.perf_counter()
            for result in results:
                self.results.append(result)
                bar.advance(task)
                if bar.disable and not quiet and time.perf_counter() - told > NEWS_SECONDS:
                    told = time.perf_counter()
                    output.note(f"{len(self.results)} of {self.planned}, {len(self.failures)} failed")
                if result.failure is not None and not quiet:
                    bar.console.print(f"FAILED {result.machine.arch} {escape(result.case.id)}", soft_wrap=True)

    def rows(self) -> list[dict]:
        """One per machine and area: cases, passed, failed, seconds of all processes together."""
        found: dict[tuple[str, str], dict] = {}
        for result in self.results:
            key = result.machine.name, result.case.area
            row = found.setdefault(
                key, {"machine": key[0], "area": key[1], "cases": 0, "passed": 0, "failed": 0, "seconds": 0.0}
            )
            row["cases"] += 1
            row["failed" if result.failure is not None else "passed"] += 1
            row["seconds"] = round(row["seconds"] + result.seconds, 3)
        return sorted(found.values(), key=lambda row: (self.machines.index(row["machine"]), row["area"]))

    def as_dict(self) -> dict:
        failures = [
            {"case": r.case.id, "machine": r.machine.name, "failure": r.failure, "rerun": rerun(r)}
            for r in self.failures
        ]
        return {
            "machines": self.machines,
            "planned": self.planned,
            "passed": len(self.results) - len(failures),
            "failed": len(failures),
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 1),
            "areas": self.rows(),
            "failures": failures,
        }

    def show(self) -> None:
        """Failures, then the table, then one line."""
        console = output.console()
        for result in self.failures:
            console.print(f"\n[red]FAILED[/red] {escape(result.case.id)} on {escape(result.machine.name)}")
            console.print("  " + escape(result.failure.strip().replace("\n", "\n  ")))
            console.print(f"  again, alone: {escape(rerun(result))}", soft_wrap=True)
        table = Table("machine", "area", title="Acceptance matrix", title_justify="left")
        for name in ("cases", "passed", "failed", "time"):
            table.add_column(name, justify="right")
        for row in self.rows():
            failed = f"[red]{row['failed']}[/red]" if row["failed"] else "0"
            counts = str(row["cases"]), str(row["passed"]), failed, f"{row['seconds']:.1f} s"
            table.add_row(escape(row["machine"]), row["area"], *counts)
        console.print(table)
        passed = len(self.results) - len(self.failures)
        verdict = f"{passed} passed, {len(self.failures)} failed in {self.seconds:.0f} s"
        if self.interrupted:
            verdict += f"; interrupted: {self.planned - len(self.results)} of {self.planned} did not run"
        console.print(verdict)


def rerun(result: Result) -> str:
    """The command that runs a case alone."""
    return f"cutefp4 verify --arch {result.machine.arch} --jobs 0 --case '{result.case.id}'"
