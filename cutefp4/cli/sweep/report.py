"""A sweep's results: table, JSON, CSV, plot, HTML, and why other configurations are not legal."""

from __future__ import annotations

import base64
import csv
import html
import io
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cutefp4.cli.output import write_text
from cutefp4.cli.roofline import ROOFS, Point, plot, pyplot
from cutefp4.cli.sweep.run import Result
from cutefp4.cli.sweep.space import Space
from cutefp4.cli.sweep.target import describe

FORMAT = "cutefp4-sweep-1"
MEASURED = {
    "us": "us",
    "tflops": "TFLOP/s",
    "gb_per_s": "GB/s",
    "percent_of_roofline": "% of roofline",
    "percent_of_cublas": "% of cuBLAS",
    "registers": "registers",
    "spills": "spills",
    "check": "check",
}
PREDICTED = {
    "us": "predicted us",
    "tflops": "predicted TFLOP/s",
    "percent_of_roofline": "predicted % of roofline",
    "limiter": "limiter",
    "registers": "regs",
    "spills": "spills",
    "smem_bytes": "smem B",
    "tmem_columns": "tmem",
    "instructions": "SASS",
    "mma_instructions": "MMA",
    "check": "check",
}


def columns(result: Result) -> dict[str, str]:
    """Shown columns: field and heading."""
    predicted = any(row["source"] == "prediction" for row in result.rows)
    return PREDICTED if predicted else MEASURED


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def mark(row: dict, result: Result) -> str:
    """What is special about a row."""
    marks = ["winner"] if row is result.winner else []
    return ", ".join(marks + (["heuristic"] if row.get("heuristic") else []))


def print_results(results: list[Result], console: Console, most: int) -> None:
    """A table per case: the best `most` rows, and the heuristic's."""
    for result in results:
        shown = columns(result)
        kind = "PREDICTION, nothing was timed" if shown is PREDICTED else "measured"
        title = f"{result.case.name} for {result.target.arch} ({kind})"
        table = Table(title=escape(title), title_justify="left")
        for heading in shown.values():
            table.add_column(escape(heading), justify="left" if heading == "check" else "right")
        table.add_column("")
        table.add_column("configuration", min_width=28)
        rows = result.rows[:most] + [row for row in result.rows[most:] if row.get("heuristic")]
        for row in rows:
            table.add_row(*(escape(_cell(row.get(name))) for name in shown), mark(row, result), escape(row["name"]))
        console.print(table)
        if len(result.rows) > len(rows):
            console.print(f"{len(result.rows) - len(rows)} more rows in --json and --csv")


def print_space(space: Space, console: Console) -> None:
    """`--explain`: what was tried, what is legal, and every reason with one example."""
    console.print(
        f"{space.case.name} for {space.target.arch}: {space.tried} combinations, {len(space.legal)} of them legal"
    )
    for kind, axes in space.axes.items():
        console.print(kind.__name__)
        for name, values in axes.items():
            console.print(f"  {name}: {', '.join(map(str, values))}")
    table = Table("refused", "reason, by an example", "configuration", title="Why others are not legal")
    for kind, count in space.refused.most_common():
        config, reason = space.examples[kind]
        table.add_row(str(count), escape(reason), escape(describe(config)))
    if space.refused:
        console.print(table)


def explain_json(space: Space) -> dict:
    """The same as data."""
    return {
        "case": space.case.name,
        "arch": space.target.arch,
        "combinations": space.tried,
        "legal": len(space.legal),
        "axes": {
            kind.__name__: {name: list(values) for name, values in axes.items()} for kind, axes in space.axes.items()
        },
        "refused": [
            {"count": count, "reason": space.examples[kind][1], "example": describe(space.examples[kind][0])}
            for kind, count in space.refused.most_common()
        ],
    }


def as_json(results: list[Result], environment: dict[str, str]) -> dict:
    """Everything, as one document."""
    return {
        "format": FORMAT,
        "environment": environment,
        "interrupted": any(result.interrupted for result in results),
        "cases": [
            {
                "case": result.case.name,
                "arch": result.target.arch,
                "sms": result.target.sms,
                "winner": None if result.winner is None else result.winner["name"],
                "left_out": result.left_out,
                "rows": result.rows,
            }
            for result in results
        ],
    }


def as_csv(results: list[Result]) -> str:
    """One line per row; the configuration's fields are columns of their own."""
    rows = []
    for result in results:
        for row in result.rows:
            config = {f"config.{name}": value for name, value in row["config"].items() if name != "class"}
            rest = {name: value for name, value in row.items() if name != "config"}
            rows.append({**rest, "winner": row is result.winner, **config})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def points(results: list[Result]) -> list[Point]:
    """For the roofline: the best row of each case, the heuristic's, and cuBLAS."""
    found = []
    for result in results:
        timed = [row for row in result.rows if row["us"] is not None]
        if not timed:
            continue
        case, best = result.case, result.winner or timed[0]
        series = "prediction" if best["source"] == "prediction" else "cutefp4, best"
        found.append(Point(series, case.name, case.flop, case.nbytes, best["us"]))
        for row in timed:
            if row.get("heuristic") and row is not best:
                found.append(Point("cutefp4, heuristic", case.name, case.flop, case.nbytes, row["us"]))
        if best.get("cublas_us"):
            found.append(Point("cuBLAS bf16", case.name, case.flop, case.nbytes, best["cublas_us"]))
    return found


def write_plot(results: list[Result], path: Path) -> None:
    """The roofline with every case."""
    arch = results[0].target.arch
    predicted = any(columns(result) is PREDICTED for result in results)
    plot(points(results), ROOFS[arch], path, f"cutefp4 sweep, {arch}" + (" (prediction)" if predicted else ""))


def write_html(results: list[Result], path: Path, environment: dict[str, str]) -> None:
    """One self-contained page: the plot if matplotlib is there, and every row."""
    parts = ["<!doctype html><meta charset=utf-8><title>cutefp4 sweep</title>", f"<style>{_STYLE}</style>"]
    parts.append(f"<h1>cutefp4 sweep</h1><p>{html.escape(environment['device'])}, {html.escape(environment['time'])}")
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch) / "plot.png"
        pyplot()
        write_plot(results, image)
        data = base64.b64encode(image.read_bytes()).decode()
    parts.append(f'<p><img alt="roofline" src="data:image/png;base64,{data}">')
    for result in results:
        shown = columns(result)
        kind = " (prediction)" if shown is PREDICTED else ""
        parts.append(f"<h2>{html.escape(result.case.name)} for {result.target.arch}{kind}</h2><table><tr>")
        parts += [f"<th>{html.escape(heading)}" for heading in (*shown.values(), "", "configuration")]
        for row in result.rows:
            cells = [*(_cell(row.get(name)) for name in shown), mark(row, result), row["name"]]
            parts.append("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells))
        parts.append("</table>")
    write_text(path, "\n".join(parts) + "\n")


_STYLE = "body{font-family:sans-serif}table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:2px 8px}"
