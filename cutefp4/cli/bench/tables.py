"""Markdown tables of benchmark results: functions of the rows of a result file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cutefp4.cli.bench.gemm import CASES


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    lines += [f"| {' | '.join('-' if cell in (None, '') else str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _us(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def by_case(rows: Iterable[dict]) -> dict[str, dict[str, dict]]:
    """Timed rows by case and variant."""
    found: dict[str, dict[str, dict]] = {}
    order = {name: position for position, name in enumerate(CASES)}
    for row in sorted(rows, key=lambda row: order.get(row.get("case"), len(order))):
        if row.get("median_us") is not None and "case" in row:
            found.setdefault(row["case"], {})[row["variant"]] = row
    return found


def _times(case: dict[str, dict], name: str) -> float | None:
    return case[name]["median_us"] if name in case else None


def _sizes(row: dict) -> str:
    return f"{row['m']}, {row['n']}, {row['k']}"


def gemm_tables(data: dict) -> str:
    """A table per kind of product."""
    titles = {
        "w4a4": "Both operands packed (W4A4)",
        "w4a16": "bf16 activations, packed weight (W4A16)",
    }
    parts = []
    cases = by_case(data["rows"])
    for kind, title in titles.items():
        rows = []
        for name, case in cases.items():
            if not name.startswith(f"{kind} ") or "cutefp4" not in case:
                continue
            ours = case["cutefp4"]
            roofline = ours.get("percent_of_roofline")
            rows.append(
                [
                    _sizes(ours),
                    name.split()[-1],
                    _us(ours["median_us"]),
                    f"{ours['tflops']:.0f}",
                    f"{ours['gb_per_s']:.0f}",
                    f"{roofline:.0f} %" if roofline else "-",
                    _us(_times(case, "cublas")),
                    f"{ours['over_cublas']:.2f}x",
                    _us(_times(case, "quack")),
                    _us(_times(case, "two-step")),
                ]  # fmt: skip
            )
        if rows:
            heads = ("M, N, K", "epilogue", "cutefp4 us", "TFLOP/s", "GB/s", "of roofline")
            heads += ("cuBLAS bf16 us", "vs cuBLAS", "quack W4A16 us", "decode + cuBLAS us")
            parts.append(f"{title}:\n\n{table(heads, rows)}")
    return "\n\n".join(parts)


KERNEL_COLUMNS = {"registers": "registers", "spills": "spills", "sass_per_element": "SASS / element"}


def quantize_table(data: dict, shapes: Sequence[str] | None = None, kernels: bool = True) -> str:
    """Modes and shapes. kernels: with columns about the kernels, if they were recorded."""
    rows = []
    kernels = kernels and any("registers" in row for row in data["rows"])
    for row in data["rows"]:
        if row.get("median_us") is None or row["variant"].startswith("copy"):
            continue
        if shapes is None or row["shape"] in shapes:
            share, ratio = row.get("percent_of_copy"), row.get("ratio")
            faster = row.get("times_faster")
            rows.append(
                [
                    row["shape"],
                    row["variant"],
                    _us(row["median_us"]),
                    row.get("gb_per_s"),
                    f"{share:.0f} %" if share else "-",
                    f"{ratio:.2f}x" if ratio else "-",
                    f"{faster:.1f}x faster" if faster else "-",
                    *([row.get(name) for name in KERNEL_COLUMNS] if kernels else []),
                ]  # fmt: skip
            )
    heads = ("shape", "mode", "us", "GB/s", "of a copy's speed", "time / plain mode (or copy)", "than torch.compile")
    return table((*heads, *(KERNEL_COLUMNS.values() if kernels else ())), rows)


def linear_step_table(data: dict) -> str:
    """A row per layer and recipe."""
    rows = []
    for name, case in by_case(data["rows"]).items():
        for variant, row in case.items():
            if variant == "bf16" or "quantise" in variant:
                continue
            cast = _times(case, f"{variant}, quantise only")
            error = row.get("error_y")
            rows.append(
                [
                    name.replace("x", ", "),
                    variant,
                    _us(row["median_us"]),
                    _us(_times(case, "bf16")),
                    f"{row['over_bf16']:.2f}x",
                    f"{100 * cast / row['median_us']:.0f} %" if cast else "-",
                    f"{100 * error:.1f} %" if error else "-",
                ]  # fmt: skip
            )
    heads = ("tokens, outputs, inputs", "recipe", "us", "bf16 cuBLAS us", "vs bf16", "of it quantising", "error of Y")
    return table(heads, rows)


def launch_table(data: dict) -> str:
    """Costs of a call."""
    rows = [(row["case"], row.get("shape"), _us(row["median_us"])) for row in data["rows"]]
    return table(("what", "shape", "us"), rows)


def compile_table(data: dict) -> str:
    """Costs of a kernel before its first launch."""
    rows = [(row["arch"], row["case"], _ms(row["median_us"] / 1e3)) for row in data["rows"]]
    return table(("architecture", "what", "ms"), rows)


def prediction_table(data: dict) -> str:
    """Predicted times; no column of this table was measured."""
    rows = [
        [_sizes(row), _us(row["predicted_us"]), f"{row['tflops'] / 1e3:.2f}", f"{row['percent_of_roofline']:.0f} %",
         row["limiter"], row["config"]] for row in data["rows"]
    ]  # fmt: skip
    heads = ("M, N, K", "predicted us", "predicted PFLOP/s", "predicted share of roofline", "limiter", "configuration")
    return table(heads, rows)


def sweep_table(data: dict) -> str:
    """The best configuration of each swept product, and how far the heuristic's choice is behind.

    A configuration within 1 % of the heuristic's does not replace it.
    """
    rows = []
    for case in data["cases"]:
        timed = [row for row in case["rows"] if row["us"] is not None]
        choice = next((row for row in timed if row["heuristic"]), None)
        best = next((row for row in timed if row["name"] == case["winner"]), None)
        if best is None:
            continue
        rows.append(
            [
                _sizes(best),
                f"{best['kind']} {best['layout']} {best['recipe']} {best['epilogue']}",
                len(case["rows"]),
                _us(best["us"]),
                _us(choice["us"] if choice else None),
                "-" if choice is None else f"{100 * (choice['us'] / best['us'] - 1):.1f} %",
                f"{best['percent_of_cublas']:.0f} %",
                f"{best['percent_of_roofline']:.0f} %",
                best.get("registers"),
                "the heuristic's" if best["heuristic"] else best["name"],
                choice["name"] if choice else None,
            ]  # fmt: skip
        )
    heads = ("M, N, K", "product", "tried", "best us", "heuristic us", "heuristic behind", "of cuBLAS speed")
    return table((*heads, "of roofline", "registers", "best", "the heuristic's"), rows)


def gemm_kernels_table(data: dict) -> str:
    """What runs behind each product: configuration, share of the wgmma peak, registers, spills, instructions."""
    rows = [
        [name, f"{row['percent_of_wgmma']:.0f} %" if row.get("percent_of_wgmma") else None, row.get("registers"),
         row.get("spills"), row.get("sass_instructions"), row.get("config")]
        for name, case in by_case(data["rows"]).items() if (row := case.get("cutefp4"))
    ]  # fmt: skip
    return table(("product", "of tensor-core peak", "registers", "spills", "SASS instructions", "configuration"), rows)
