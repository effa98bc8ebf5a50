"""The schedule model: counts in the emulator, B200 predictions, and the test of its rules on an H200.

    python -m perf.schedule_model            print everything
    python -m perf.schedule_model --write    and write perf/SCHEDULE_MODEL.md and its numbers as JSON
    python -m perf.schedule_model --validate only the comparison with measurements

1. Counts. The kernel runs in the emulator (one and two tiles); bytes by TMA, products, and instructions per column of
   the epilogue warps are compared with what the model assumes.
2. PREDICTIONS for the shapes below, with the configuration that `cutefp4.heuristics.sm100` chooses, what each resource
   alone would take, the limiter, and published figures where there are some (published, not by us).
3. Validation: `cutefp4.schedule_model` with what `schedule_model_sm90` says the Hopper kernels need, against every
   measured time in perf/results whose configuration it models. Constants of the Hopper kernels are fitted, those of the
   B200 are not: expect more error there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import statistics
from collections import Counter
from dataclasses import fields
from pathlib import Path

import torch

from cutefp4 import emulator, schedule_model_sm90
from cutefp4.config import Sm90Config
from cutefp4.config_sm100 import Sm100Config, budget_table, stage_bytes
from cutefp4.epilogue import default_epilogue
from cutefp4.format import gemm_constant
from cutefp4.gemm_plan_sm100 import Sm100GemmPlan
from cutefp4.heuristics import sm90, sm100
from cutefp4.schedule_model_sm100 import B200, EPILOGUE_SLOTS, GemmShape, estimate

SHAPES = (
    (1, 7168, 16384), (16, 7168, 16384), (1, 8192, 8192), (128, 4096, 4096), (512, 7168, 2048),
    (4096, 4096, 4096), (8192, 8192, 8192), (16384, 7168, 2048),
)  # fmt: skip
PUBLISHED = {(8192, 8192, 8192): "6.1 PFLOP/s, best public"}
EPILOGUE_FILES = ("epilogue.py", "epilogue_load.py", "store.py", "packed.py", "math.py", "staged_store.py", "sinks.py")
RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parent / "SCHEDULE_MODEL.md"
NUMBERS = RESULTS / "b200-predicted" / "schedule_model.json"


def run_tiles(plan: Sm100GemmPlan, tiles: int, k: int):
    """The report of `tiles` tiles of one CTA."""
    compiled = importlib.import_module("cutefp4.compile")
    m, n = 128, plan.config.tile_n * tiles
    codes = [torch.zeros(1, rows, k // 2, dtype=torch.uint8) for rows in (m, n)]
    scales = [torch.zeros(-(-rows // 128) * 128 * k // 16, dtype=torch.uint8) for rows in (m, n)]
    tensors = torch.empty(1, m, n, dtype=torch.bfloat16), torch.ones(1, m), torch.ones(1, n)
    with emulator.device(plan.arch, sms=1) as device:
        compiled.get(plan)(codes[0], scales[0], codes[1], scales[1], tensors, 1)
        return device.report().reports[0], compiled.artifacts(plan).ptx


def instructions_by_file(report, ptx: str) -> Counter:
    """Warp instructions executed, by the source file that they come from."""
    names, place, count = {}, "", Counter()
    lines = ptx.split("\n")
    for line in lines:
        if found := re.match(r'\s*\.file\s+(\d+)\s+"(.*?)"', line):
            names[found[1]] = found[2].rsplit("/", 1)[-1]
    for number, line in enumerate(lines, 1):
        if found := re.match(r"\s*\.loc\s+(\d+)\s", line):
            place = names[found[1]]
        executed = report.lines.get(number, 0)
        if "f32x2" in line:
            # In one line, without a source line, with the moves that pair its registers; ptxas needs none of these.
            count["packed.py"] += executed // (line.count(";") - 1)
        else:
            count[place] += executed
    return count


def count() -> None:
    """Part 1."""
    config = sm100.with_most_stages(Sm100Config(tile_n=256))
    plan = Sm100GemmPlan("sm_100a", config, default_epilogue(gemm_constant(448, 448)))
    k = 1024
    (one, ptx), (two, _) = run_tiles(plan, 1, k), run_tiles(plan, 2, k)
    print("1. Counts of one more tile of 128 x 256 x 1024 in the emulator, and what the model assumes")
    rows = [
        ("bytes by TMA loads", "async_load_bytes", stage_bytes(config).total * k // 256),
        ("bytes by TMA stores", "async_store_bytes", 128 * 256 * 2),
        ("products", "mma_macs", 128 * 256 * k),
    ]
    for name, counter, expected in rows:
        found = two.counters[counter] - one.counters[counter]
        print(f"   {name:<34} {found:>10} {expected:>10}")
    more = instructions_by_file(two, ptx) - instructions_by_file(one, ptx)
    slots = sum(more[name] for name in EPILOGUE_FILES) / (4 * 256)
    print(f"   {'epilogue instructions per column':<34} {slots:>10.2f} {EPILOGUE_SLOTS + 0.5:>10.2f}\n")


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


def validations() -> tuple[list[dict], int]:
    """(one row per measured product, how many could not be modelled)."""
    rows, others = [], 0
    for path in sorted(RESULTS.glob("*h200*/*gemm*.json")):
        for row in json.loads(path.read_text())["rows"]:
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


def document() -> str:
    """perf/SCHEDULE_MODEL.md."""
    rows, (measured, others) = predictions(), validations()
    lines = [
        "# Schedule model: B200 predictions, and how good its rules are on an H200",
        "",
        "Generated by `python -m perf.schedule_model --write`; a test compares. Do not edit.",
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


def write() -> None:
    """The document and its numbers."""
    DOCUMENT.write_text(document())
    measured, _ = validations()
    errors = [
        {"class": name, "products": number, "median_error": round(middle, 4), "largest_error": round(most, 4)}
        for name, number, middle, most in errors_by_class(measured)
    ]
    numbers = {"what": "predictions of a model; nothing ran on a B200", "predictions": predictions(), "h200": errors}
    NUMBERS.parent.mkdir(parents=True, exist_ok=True)
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validate", action="store_true", help="only the comparison with measurements")
    parser.add_argument("--write", action="store_true", help="write the document and its numbers")
    arguments = parser.parse_args()
    if arguments.validate:
        for row in validations()[0]:
            print(f"{row['case']:<34} {row['modelled_us']:>8.1f} {row['measured_us']:>8.1f} {row['error']:>+7.1%}")
        for name, number, middle, most in errors_by_class(validations()[0]):
            print(f"{name:<24} {number:>3}  median {middle:.1%}, largest {most:.1%}")
        return
    count()
    print(document())
    best = sm100.choose(GemmShape(8192, 8192, 8192), B200.sms)
    print("Budgets of the configuration for large products\n" + budget_table(best))
    if arguments.write:
        write()


if __name__ == "__main__":
    main()
