"""perf/SCHEDULE_MODEL.md: B200 predictions with what each resource takes, and the model's rules against Hopper's times.

Both are functions of the schedule model, of the heuristic, and of the newest results under perf/results.
"""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import fields
from pathlib import Path

from cutefp4 import schedule_model_sm90
from cutefp4.cli.bench.predict import SHAPES
from cutefp4.cli.bench.session import PREDICTED, newest
from cutefp4.config import Sm90Config
from cutefp4.heuristics import sm90, sm100
from cutefp4.schedule_model_sm100 import B200, GemmShape, estimate

PUBLISHED = {(8192, 8192, 8192): "6.1 PFLOP/s, best public"}
"""Speeds of others, as published; not measured by us."""
DOCUMENT, NUMBERS = "SCHEDULE_MODEL.md", "schedule_model.json"


def describe(config: object) -> str:
    """The fields that differ from the defaults."""
    changed = [f"{f.name}={getattr(config, f.name)}" for f in fields(config) if getattr(config, f.name) != f.default]
    return " ".join(changed) or "defaults"


def predictions() -> list[dict]:
    """One row per shape: time, shares of the machine, terms in microseconds."""
    rows = []
    for m, n, k in SHAPES:
        shape = GemmShape(m, n, k)
        config = sm100.choose(shape, B200.sms)
        e = estimate(config, shape)
        stages = -(-k // (256 * config.splits))
        rows.append(
            {
                "m": m,
                "n": n,
                "k": k,
                "predicted_us": round(e.us, 2),
                "predicted_pflops": round(2e-9 * m * n * k / e.us, 3),
                "share_of_peak": round(e.mma_share, 4),
                "share_of_hbm": round(e.hbm_share, 4),
                "limiter": e.limiter,
                "waves": e.waves,
                "epilogue_over_mma": round(e.epilogue / (stages * e.stage["mma"]), 3),
                "terms_us": {name: round(value, 2) for name, value in e.terms.items()},
                "config": describe(config),
                "published": PUBLISHED.get((m, n, k), ""),
            }
        )
    return rows


_OLD_TEXT = re.compile(
    r"(?P<side>ab|ba) (?P<tile_m>\d+)x(?P<tile_n>\d+)x(?P<tile_k>\d+) (?P<share>s\d+|stream)"
    r" l(?P<load_stages>\d+)m(?P<mma_stages>\d+)p(?P<store_passes>\d+)g(?P<steps_per_group>\d+)"
    r"r(?P<raster_group>\d+)c(?P<consumer_groups>\d+) (?P<decode_to>\w+)"
)


def config_of(text: str) -> Sm90Config | None:
    """The configuration that a result names, in either form (`field=value ...`, or short); None: of another kernel."""
    if old := _OLD_TEXT.fullmatch(text):
        words = old.groupdict()
        side, share, tile_k = words.pop("side"), words.pop("share"), int(words.pop("tile_k"))
        stream = share == "stream"
        decode_to = words.pop("decode_to")
        sizes = {name: int(value) for name, value in words.items()} | {"k_blocks": tile_k // 64}
        splits = 1 if stream else int(share[1:])
        return Sm90Config(**sizes, swap_ab=side == "ba", stream_k=stream, splits=splits, decode_to=decode_to)
    known, values = {f.name: f.default for f in fields(Sm90Config)}, {}
    if text == "defaults":
        return Sm90Config()
    for word in text.split(";")[0].split():
        name, _, value = word.partition("=")
        if name not in known:
            return None
        default = known[name]
        values[name] = value == "True" if isinstance(default, bool) else type(default)(value)
    return Sm90Config(**values)


OUT_BYTES = {"wgrad": (4, 4), "full": (2, 2)}
"""Bytes of an element of D and of C by epilogue; (2, 0) otherwise."""


def _class_of(row: dict, a16: bool, epilogue: str) -> str:
    if epilogue in OUT_BYTES:
        return f"{epilogue} (C is read)"
    rows = "M <= 64" if row["m"] <= 64 else "M 128 to 256" if row["m"] <= 256 else "larger M"
    return f"{'W4A16' if a16 else 'W4A4'}, {rows}"


def validations(results: Path) -> tuple[list[dict], int]:
    """(one row per measured product of the newest results, how many could not be modelled)."""
    rows, others = [], 0
    for device, found in newest(results).items():
        for row in found["gemm"]["rows"] if "h200" in device and "gemm" in found else ():
            if row.get("variant") != "cutefp4" or "median_us" not in row:
                continue
            config = config_of(row["config"])
            if config is None:
                others += 1
                continue
            kind, _, epilogue = row["case"].split()
            a16 = kind == "w4a16"
            shape = sm90.GemmShape(row["m"], row["n"], row["k"], activations="bfloat16" if a16 else "nvfp4")
            found = schedule_model_sm90.estimate(config, shape, *OUT_BYTES.get(epilogue, (2, 0)))
            rows.append(
                {
                    "case": row["case"],
                    "class": _class_of(row, a16, epilogue),
                    "modelled_us": round(found.us, 1),
                    "measured_us": row["median_us"],
                    "error": round(found.us / row["median_us"] - 1, 4),
                    "limiter": found.limiter,
                }
            )
    return rows, others


def errors_by_class(rows: list[dict]) -> list[tuple[str, int, float, float]]:
    """(class, products, median, largest size of the error), and all of them together."""
    classes: dict[str, list[float]] = {}
    for row in rows:
        classes.setdefault(row["class"], []).append(abs(row["error"]))
    table = [(name, len(e), statistics.median(e), max(e)) for name, e in sorted(classes.items())]
    every = [abs(row["error"]) for row in rows]
    return [*table, ("all", len(every), statistics.median(every), max(every))] if every else []


def document(results: Path) -> str:
    """The text. results: the folder of results."""
    rows, (measured, others) = predictions(), validations(results)
    lines = [
        "# Schedule model: B200 predictions, and how good its rules are on an H200",
        "",
        "Generated by `cutefp4 bench report`; a test compares. Do not edit.",
        "",
        "## Predictions",
        "",
        f"**No B200 has run this kernel: every time here is a prediction.** {B200.sms} SMs, 9.0 PFLOP/s at "
        f"{B200.clock} GHz, HBM taken as {B200.hbm:.0f} GB/s; launch included. Power limits are not modelled.",
        "",
        "| M, N, K | us | PFLOP/s | of peak | of HBM | limiter | waves | epilogue / MMA | configuration | published |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['m']}, {r['n']}, {r['k']} | {r['predicted_us']:.1f} | {r['predicted_pflops']:.3f} | "
        f"{r['share_of_peak']:.1%} | {r['share_of_hbm']:.1%} | {r['limiter']} | {r['waves']} | "
        f"{r['epilogue_over_mma']:.2f} | {r['config']} | {r['published']} |"
        for r in rows
    ]
    names = list(dict.fromkeys(name for r in rows for name in r["terms_us"]))
    classes = errors_by_class(measured)
    lines += [
        "",
        "What each resource alone would take, in predicted microseconds (`ends`: the latency of the first load; "
        "`mma` holds tcgen05.cp):",
        "",
        f"| M, N, K | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    lines += [
        f"| {r['m']}, {r['n']}, {r['k']} | " + " | ".join(f"{r['terms_us'][name]:.2f}" for name in names) + " |"
        for r in rows
    ]
    lines += [
        "",
        "## The same rules on an H200",
        "",
        "Modelled against measured times of the Hopper kernels (perf/results). Clocks per decoded row and fixed times "
        "are fitted constants of `cutefp4/schedule_model_sm90.py`; the rules are those of the predictions."
        + (f" {others} measured products ran on a kernel that is not modelled." if others else ""),
        "",
        "| class | products | median error | largest |",
        "|---|---|---|---|",
    ]
    lines += [f"| {name} | {number} | {middle:.1%} | {most:.1%} |" for name, number, middle, most in classes]
    lines += ["", "| product | modelled us | measured us | error | limiter |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['case']} | {r['modelled_us']:.1f} | {r['measured_us']:.1f} | {r['error']:+.1%} | {r['limiter']} |"
        for r in measured
    ]
    return "\n".join(lines) + "\n"


def write(results: Path) -> list[Path]:
    """The document beside the folder of results, and its numbers inside."""
    errors = [
        {"class": name, "products": number, "median_error": round(middle, 4), "largest_error": round(most, 4)}
        for name, number, middle, most in errors_by_class(validations(results)[0])
    ]
    numbers = {"what": "predictions of a model; nothing ran on a B200", "predictions": predictions(), "h200": errors}
    paths = results.parent / DOCUMENT, results / PREDICTED / NUMBERS
    paths[1].parent.mkdir(parents=True, exist_ok=True)
    paths[0].write_text(document(results))
    paths[1].write_text(json.dumps(numbers, indent=1) + "\n")
    return list(paths)
