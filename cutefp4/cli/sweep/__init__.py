"""`cutefp4 sweep`: which configuration is fastest for a product, how far that is from the limit, and how to keep it."""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from cutefp4 import compile_pool, launch, tuned
from cutefp4.cli import output
from cutefp4.cli.roofline import require_plots
from cutefp4.cli.sweep import report, run
from cutefp4.cli.sweep.case import EPILOGUES, KINDS, LAYOUTS, Case
from cutefp4.cli.sweep.predict import check_emulated_size, predict_case
from cutefp4.cli.sweep.shapes import FIVE, MODELS, parse
from cutefp4.cli.sweep.space import Space, enumerate_space
from cutefp4.cli.sweep.store import Store
from cutefp4.cli.sweep.target import target_for
from cutefp4.errors import OperandError
from cutefp4.plan import ARCHS
from cutefp4.recipe import NAMED
from cutefp4.timing import environment, slug

RESULTS = Path("cutefp4-sweep.jsonl")
TIMING_SECONDS = 2.0
"""Of `--budget`, for a case: what compiling leaves, if it can."""
CHECKS = ("auto", "none", "emulator")

HELP = f"""Find the fastest configuration of the GEMM for your shapes, check it, and keep it.

Every configuration that the kernel's legality predicate accepts is a candidate; the most promising `--limit` of them
are compiled in parallel, compared with the oracle (one wrong bit and a configuration cannot win), and timed
interleaved with cuBLAS on the same values, the L2 cache overwritten before each call. Ctrl-C keeps what was measured.

**Examples**

- `cutefp4 sweep` : five shapes from one token to 16384, on this machine's GPU
- `cutefp4 sweep --shape 1,16,64x7168x16384 --save tuned.json` : keep the winners; `export CUTEFP4_TUNED=tuned.json`
- `cutefp4 sweep --shape llama-3-8b --tokens 16,4096 --layout TN,NN,NT` : all layers, forward and backward
- `cutefp4 sweep --shape 4096x4096x4096 --set tile_m=128,256 --set stream_k=false --limit 0` : all of a part
- `cutefp4 sweep --shape 4096x4096x4096 --explain` : what is legal, and why the rest is not
- `cutefp4 sweep --arch sm_100a` : no such GPU needed: registers, spills, budgets and a predicted time
- `cutefp4 sweep --arch sm_90a --shape 64x256x512 --check emulator` : also run each in the emulator

Layouts, kinds, recipes and epilogues may be lists: `--layout TN,NN --epilogue none,bias`.
Models: {", ".join(MODELS)}; one layer of a model: `deepseek-v3/o`.
Exit codes: 0 all right, 1 a configuration was wrong or did not compile, 2 a mistake in the arguments, 130 interrupted.
"""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(help=HELP)(sweep)


def sweep(
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="MxNxK of a linear layer; lists 1,16 and ranges 128:4096[:step]; or a model. Repeatable.",
            autocompletion=output.complete(*MODELS, *FIVE),
        ),
    ] = None,
    tokens: Annotated[str, typer.Option(help="M for models.")] = "1,16,4096",
    layout: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(LAYOUTS)}: forward, input gradient, weight gradient.",
            autocompletion=output.complete(*LAYOUTS),
        ),
    ] = "TN",
    kind: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(KINDS)}: both operands packed, or bf16 activations.",
            autocompletion=output.complete(*KINDS),
        ),
    ] = "w4a4",
    recipe: Annotated[
        str, typer.Option(help=f"Outer scales: {', '.join(NAMED)}.", autocompletion=output.complete(*NAMED))
    ] = "per_token",
    epilogue: Annotated[
        str,
        typer.Option(
            help=f"After the outer scales: {', '.join(EPILOGUES)}.", autocompletion=output.complete(*EPILOGUES)
        ),
    ] = "none",
    arch: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(ARCHS)}. Default: this GPU's. Another one: predictions.",
            autocompletion=output.complete(*ARCHS),
        ),
    ] = "",
    sms: Annotated[int, typer.Option(help="Multiprocessors, for predictions; 0: of the usual GPU.")] = 0,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=V,V", help="Values of a field. Repeatable.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Enumerate fields of little influence, too.")] = False,
    limit: Annotated[int, typer.Option(help="Configurations per case; 0: all that are legal.")] = 16,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; the final has three times as many.")] = 5,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what is legal and why the rest is not; stop.")
    ] = False,
    check: Annotated[
        str,
        typer.Option(help="Of predictions: none, or emulator (small shapes).", autocompletion=output.complete(*CHECKS)),
    ] = "auto",
    budget: Annotated[float, typer.Option(help="Seconds, shared by the cases; 0: no limit.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Also keep DEVICE/DATE-sweep.json and .csv there, for `cutefp4 bench report`."),
    ] = None,
    results: Annotated[Path, typer.Option(help="Where measured rows are kept, line by line.")] = RESULTS,
    resume: Annotated[bool, typer.Option("--resume", help="Do not repeat what --results holds.")] = False,
    save: Annotated[Path | None, typer.Option(help="Write the winners as a tuned table.")] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Load the saved table and prove that the operations use the winners.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Also write CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also write a roofline plot (PNG).")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page with the plot and every row.")] = None,
    workers: Annotated[int, typer.Option(help="Compile processes; 0 = as cores and free memory allow.")] = 0,
) -> None:
    begin = time.monotonic()
    if apply and save is None:
        raise OperandError("--apply without --save", "--save tuned.json --apply", "name the table to write and apply")
    if check not in CHECKS:
        raise OperandError(f"--check {check}", ", ".join(CHECKS), "choose one of these")
    arch, timed = _target(arch)
    if save is not None and not timed:
        raise OperandError(
            f"--save with predictions for {arch}", "a GPU of that kind", "only what was measured is kept in a table"
        )
    output.require_writable(save, csv, plot, html, None if out is None else out / "sweep")
    if plot is not None or html is not None:
        require_plots(plot or Path("plot.png"))
    shapes = parse(shape or list(FIVE), tokens)
    named = itertools.product(*(names.split(",") for names in (layout, kind, recipe, epilogue)))
    cases = [Case(name, *sizes, *rest) for sizes, (name, *rest) in itertools.product(shapes, list(named))]
    given = _axes(set_ or [])
    sms = sms if not timed else launch.sm_count(torch.device("cuda", torch.cuda.current_device()))
    pairs = [(target_for(arch, case, sms), case) for case in cases]
    if explain:
        _explain([enumerate_space(target, case, given, full) for target, case in pairs], as_json)
        return
    if check == "emulator" and not timed:
        for case in cases:
            check_emulated_size(case)
    store = Store(results, resume) if timed else None
    try:
        chosen, failed = _compile(pairs, given, full, limit, workers, begin, budget)
    except KeyboardInterrupt:
        output.note("cutefp4: interrupted before anything was measured; what was compiled stays in the cache")
        raise typer.Exit(output.INTERRUPTED) from None
    if timed:
        found = _measure(chosen, failed, store, rounds, begin + budget if budget else math.inf, out)
    else:
        found = _predict(chosen, failed, check == "emulator")
        _keep(found, out)
    _report(found, as_json, csv, plot, html)
    wrong = [f"{row['case']}: {row['check']}: {row['name']}" for r in found for row in r.rows if row["us"] is None]
    wrong += [
        f"{row['case']}: {row['check']}: {row['name']}" for r in found for row in r.rows if "WRONG" in row["check"]
    ]
    if save is not None:
        tuned.save(save, run.winners_table(found, environment()))
        output.note(
            f"wrote {save}; plans use it after `export CUTEFP4_TUNED={save}` or cutefp4.tuned.load({str(save)!r})"
        )
    if apply:
        tuned.load(save)
        wrong += run.not_applied(found)
    for line in dict.fromkeys(wrong):
        output.note(f"cutefp4: {line}")
    if any(result.interrupted for result in found):
        output.note("cutefp4: interrupted; --resume goes on" if timed else "cutefp4: interrupted")
        raise typer.Exit(output.INTERRUPTED)
    if wrong:
        raise typer.Exit(output.FAILED)


def _target(arch: str) -> tuple[str, bool]:
    """The architecture, and whether this machine can time it."""
    here = ""
    if torch.cuda.is_available():
        here = launch.arch_of(torch.device("cuda", torch.cuda.current_device()))
    if arch and arch not in ARCHS:
        raise OperandError(f"--arch {arch}", ", ".join(ARCHS), "choose one of these")
    if not arch and not here:
        raise OperandError(
            "a sweep without a GPU that PyTorch can see", f"--arch {' or --arch '.join(ARCHS)}",
            "add --arch sm_90a or --arch sm_100a to compile and predict",
        )  # fmt: skip
    return arch or here, (arch or here) == here


def _axes(texts: list[str]) -> dict[str, list[str]]:
    axes = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise OperandError(f"--set {text}", "FIELD=VALUE,VALUE", "for example --set tile_m=128,256")
        axes[name] = values.split(",")
    return axes


def _explain(spaces: list[Space], as_json: bool) -> None:
    if as_json:
        output.print_json([report.explain_json(space) for space in spaces])
        return
    for space in spaces:
        report.print_space(space, output.console())


def _compile(pairs, given: dict[str, list[str]], full: bool, limit: int, workers: int, begin: float, budget: float):
    """(space, configurations) of every case, and plans that did not compile. Processes load while this enumerates."""
    processes = workers or compile_pool.worker_count(limit * len(pairs) or None)
    with compile_pool.started_ahead(processes):
        spaces = [enumerate_space(target, case, given, full) for target, case in pairs]
        chosen = [(space, space.ranked(limit)) for space in spaces]
        until = math.inf
        if budget:
            now, end = time.monotonic(), begin + budget
            until = end - min(len(pairs) * TIMING_SECONDS, (end - now) / 2)
            output.note(f"{now - begin:.1f} s to enumerate {sum(space.tried for space in spaces)} configurations")
        return chosen, run.compile_ahead(chosen, workers=processes, deadline=until, say=output.note)


def _measure(chosen, failed, store: Store, rounds: int, end: float, out: Path | None) -> list[run.Result]:
    """Time case by case; each gets an equal share of what is left until `end`, and its results are kept at once."""
    found = []
    for index, (space, configs) in enumerate(chosen):
        now = time.monotonic()
        deadline = now + (end - now) / (len(chosen) - index)
        sweeper = run.CaseSweep(space, store, rounds=rounds, say=output.note, deadline=deadline)
        found.append(sweeper.run(configs, failed))
        _keep(found, out)
        if found[-1].interrupted:
            break
    return found


def _predict(chosen, failed, emulate: bool) -> list[run.Result]:
    found = []
    for space, configs in chosen:
        found.append(predict_case(space, configs, failed, emulate, output.note))
        if found[-1].interrupted:
            break
    return found


def _keep(found: list[run.Result], out: Path | None) -> None:
    """What `cutefp4 bench report` reads, and the same rows as CSV."""
    if out is not None:
        now = environment()
        path = out / slug(now["device"]) / f"{now['time'][:10]}-sweep.json"
        output.write_text(path, json.dumps(report.as_json(found, now), indent=1) + "\n")
        output.write_text(path.with_suffix(".csv"), report.as_csv(found))


def _report(found: list[run.Result], as_json: bool, csv, plot, html) -> None:
    now = environment()
    if as_json:
        output.print_json(report.as_json(found, now))
    else:
        report.print_results(found, output.console(), most=8)
    if csv is not None:
        output.write_text(csv, report.as_csv(found))
    if plot is not None:
        report.write_plot(found, plot)
    if html is not None:
        report.write_html(found, html, now)
