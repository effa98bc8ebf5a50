"""`cutefp4 bench`: measure against every peer that is installed, keep the numbers, make the tables from them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from cutefp4 import compile_pool
from cutefp4.cli import output
from cutefp4.cli.bench import compile, gemm, launch, linear_step, predict, quantize, report
from cutefp4.cli.bench.session import PREDICTED, WHATS, Session
from cutefp4.errors import OperandError, UnsupportedError
from cutefp4.plan import Plan
from cutefp4.warmup import warmup

OUT = Path("perf/results")
BENCHES: dict[str, Callable[[Session], None]] = {
    "gemm": gemm.bench,
    "quantize": quantize.bench,
    "linear-step": linear_step.bench,
    "launch": launch.bench,
    "compile": compile.bench,
    "torch-compile": quantize.bench_compiled,
}
assert tuple(BENCHES) == WHATS
PLANS: dict[str, Callable[[bool], list[Plan]]] = {
    "gemm": gemm.plans,
    "quantize": quantize.plans,
    "linear-step": linear_step.plans,
}
"""What is compiled before anything is timed, in parallel."""
SHARES = {"gemm": 0.55, "quantize": 0.72, "linear-step": 0.88, "launch": 0.9, "compile": 1.0, "torch-compile": 1.0}
"""Of what `--budget` leaves after compiling: when each benchmark of `all` starts no further case."""
NEEDS_NO_GPU = ("compile",)

HELP = """Measure on this machine's GPU, and make the tables and plots of the documentation from the measurements.

- `cutefp4 bench gemm` : products against cuBLAS, quack's W4A16 and decode + cuBLAS, on the same values
- `cutefp4 bench quantize` : every mode against a device copy of its bytes
- `cutefp4 bench torch-compile` : two modes against torch.compile of the oracle
- `cutefp4 bench linear-step` : quantise X, W, dY and the three products, against bf16
- `cutefp4 bench launch`, `cutefp4 bench compile` : what a call costs, and what a kernel costs before it (no GPU needed)
- `cutefp4 bench all --budget 450` : all of them, in about that many seconds; what does not fit is named
- `cutefp4 bench predict` : the model's times for a B200, marked as predictions (no GPU needed)
- `cutefp4 bench report` : only regenerate perf/README.md, README.md and the plots from the results (no GPU needed)

Results go to `--out`/DEVICE/DATE-WHAT.json. Peers that are not installed are left out, and the program says so.
Exit codes: 0 all right, 1 a product was wrong, 2 a mistake in the arguments or no GPU, 130 interrupted.
"""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(help=HELP)(bench)


def bench(
    what: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(WHATS)}, all, predict or report.",
            autocompletion=output.complete(*WHATS, "all", "predict", "report"),
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of results; tables go to README.md beside it.")] = OUT,
    quick: Annotated[bool, typer.Option("--quick", help="A few cases and rounds: does everything run?")] = False,
    budget: Annotated[float, typer.Option(help="Seconds after which no further case starts; 0: no limit.")] = 0,
    tables: Annotated[bool, typer.Option(help="Regenerate tables and plots afterwards.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as one JSON document.")] = False,
) -> None:
    if what not in (*WHATS, "all", "predict", "report"):
        raise OperandError(f"bench {what}", ", ".join((*WHATS, "all", "predict", "report")), "choose one of these")
    if what == "report" and not any(out.glob("*/*.json")):
        raise OperandError(f"bench report without results under {out}", "DEVICE/DATE-WHAT.json", "name them with --out")
    names = list(WHATS) if what == "all" else [what] if what in WHATS else []
    _require_gpu(names)
    if what in ("predict", "report", "all"):
        _write_predictions(out, only_if_missing=what != "predict")
    begin = time.monotonic()
    documents, wrong, interrupted = [], [], False
    if names:
        _compile_ahead(names, quick)
    left = budget - (time.monotonic() - begin)
    ready = time.monotonic()
    for name in names:
        deadline = ready + left * (SHARES[name] if what == "all" else 1) if budget else float("inf")
        session = Session(name, quick, deadline, output.note, out=out)
        output.note(f"== {name}, after {time.monotonic() - begin:.0f} s")
        try:
            BENCHES[name](session)
        except KeyboardInterrupt:
            interrupted = True
        except Exception as error:  # one benchmark that breaks must not cost the others their results
            wrong.append(f"{name}: {type(error).__name__}: {error}")
            output.note(f"cutefp4: {wrong[-1]}")
            session.skipped.append(f"the rest ({type(error).__name__})")
        path = session.save()
        output.note(f"== {name}: {len(session.table.rows)} rows, {path}")
        documents += [] if path is None else [json.loads(path.read_text())]
        wrong += [row["check"] for row in session.table.rows if "WRONG" in str(row.get("check", ""))]
        if interrupted:
            break
    if tables:
        for path in report.write(out, _root(out)):
            output.note(f"wrote {path}")
    if as_json:
        output.print_json(documents if what == "all" else documents[0] if documents else {})
    if interrupted:
        output.note("cutefp4: interrupted; what was measured is kept")
        raise typer.Exit(output.INTERRUPTED)
    if wrong:
        raise typer.Exit(output.FAILED)


def _compile_ahead(names: list[str], quick: bool) -> None:
    """Everything that will be launched, in parallel; a kernel that does not compile stops its case, not the others."""
    wanted = [PLANS[name] for name in names if name in PLANS]
    if not wanted:
        return
    begin = time.monotonic()
    with compile_pool.started_ahead(compile_pool.worker_count()):
        plans = [plan for found in wanted for plan in found(quick)]
        output.note(f"{len(set(plans))} kernels to compile, after {time.monotonic() - begin:.1f} s")
        result = warmup(plans, progress=True, strict=False)
    output.note(f"{result.compiled} kernels compiled in {result.seconds:.0f} s, {result.workers} processes")


def _require_gpu(names: list[str]) -> None:
    needing = [name for name in names if name not in NEEDS_NO_GPU]
    if needing and not torch.cuda.is_available():
        raise UnsupportedError(
            f"bench {needing[0]} without a GPU that PyTorch can see", "a Hopper or Blackwell GPU",
            "without one, `cutefp4 bench compile`, `bench predict` and `cutefp4 sweep --arch sm_90a` work",
        )  # fmt: skip


def _write_predictions(out: Path, only_if_missing: bool) -> None:
    path = out / PREDICTED / "predictions.json"
    if only_if_missing and path.exists():
        return
    output.write_text(path, json.dumps(predict.document(), indent=1) + "\n")
    output.note(f"wrote {path}")


def _root(out: Path) -> Path | None:
    """The source tree whose README has the markers, if `out` is its results folder."""
    root = out.resolve().parent.parent
    readme = root / "README.md"
    return root if readme.exists() and report.BEGIN in readme.read_text() else None
