"""The timer: interleaving, statistics, rotation, data, rows. Device clocks are tested on a device."""

from __future__ import annotations

import csv
import json
import re
import time
from pathlib import Path

import pytest
import torch

from perf.timing import (
    DISTRIBUTIONS,
    EventClock,
    GraphClock,
    HostClock,
    Table,
    Timing,
    Variant,
    environment,
    fill,
    measure,
    poison,
    rotation_sets,
)

ROOT = Path(__file__).parent.parent


class ScriptedClock:
    """Returns prepared seconds and records who was timed when."""

    calls = 1

    def __init__(self, seconds: dict[str, list[float]]) -> None:
        self.seconds = {name: list(values) for name, values in seconds.items()}
        self.order: list[str] = []
        self.sets = 0

    def prepare(self, variants, sets):
        self.sets = sets

    def round(self, variant):
        self.order.append(variant.name)
        return self.seconds[variant.name].pop(0)


def variant(name: str, run=lambda i: None) -> Variant:
    return Variant(name, run)


def test_rounds_interleave_in_a_rotated_order():
    clock = ScriptedClock({name: [1.0] * 3 for name in "abc"})
    measure([variant(name) for name in "abc"], rounds=3, sets=5, clock=clock)
    assert clock.order == [*"abc", *"bca", *"cab"] and clock.sets == 5


def test_median_and_spread():
    clock = ScriptedClock({"a": [float(v) for v in (5, 1, 2, 3, 4, 6, 7, 8, 9, 100, 10)]})
    timing = measure([variant("a")], rounds=11, clock=clock)["a"]
    assert (timing.median, timing.low, timing.high, timing.rounds) == (6.0, 2.0, 10.0, 11)
    assert timing.spread == pytest.approx(8 / 6)


def test_units():
    timing = Timing("a", 2e-6, 1e-6, 3e-6, 10, 5)
    assert (timing.us, timing.bandwidth(4_000_000), timing.tflops(8_000_000)) == (2.0, 2000.0, 4.0)
    assert str(timing) == "a: 2.00 us (1.00 .. 3.00)"


def test_names_must_differ():
    with pytest.raises(ValueError, match="distinct"):
        measure([variant("a"), variant("a")], clock=ScriptedClock({}))


def test_host_clock_measures_the_caller_and_rotates_sets():
    seen = []
    clock = HostClock(calls=6, warmup=3, synchronize=False)
    slow = measure([variant("slow", lambda i: (seen.append(i), time.sleep(0.002)))], sets=3, rounds=3, clock=clock)[
        "slow"
    ]
    assert 0.002 <= slow.low and slow.median < 1.0 and slow.calls == 6
    assert seen == [0, 1, 2] + [0, 1, 2, 0, 1, 2] * 3


@pytest.mark.parametrize("nbytes, sets", [(1 << 30, 1), (50 << 20, 3), (1 << 20, 64), (0, 64), (149 << 20, 2)])
def test_rotation_exceeds_the_cache(nbytes, sets):
    assert rotation_sets(nbytes, cache_bytes=50 << 20) == sets


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_distributions_are_reproducible(distribution):
    first, second = (fill((64, 1024), distribution, dtype=torch.bfloat16, device="cpu", seed=3) for _ in range(2))
    assert torch.equal(first, second) and first.dtype == torch.bfloat16 and first.isfinite().all()
    other = fill((64, 1024), distribution, dtype=torch.bfloat16, device="cpu", seed=4)
    assert torch.equal(first, other) == (distribution == "zeros")


def test_distributions_differ_in_their_tails():
    def ratio(name):
        x = fill((256, 1024), name, dtype=torch.float32, device="cpu")
        return float(x.abs().max() / x.std())

    assert ratio("uniform") < 2 < ratio("normal") < 7 < ratio("heavy_tailed")
    assert ratio("outliers") > 10
    with pytest.raises(ValueError, match="choose one of normal"):
        fill((1,), "cauchy", dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float8_e4m3fn])
def test_poison_is_seen(dtype):
    x = torch.zeros(8, 16).to(dtype)
    poison(x)
    assert (x.view(torch.uint8) == 0xA5).all()


def test_poison_of_a_scalar():
    x = torch.zeros(())
    poison(x)
    assert float(x) != 0


def test_rows_tell_where_they_come_from(tmp_path):
    table = Table()
    table.add({"m": 128, "k": 64}, Timing("ours", 2e-6, 1e-6, 3e-6, 10, 5), gbs=12.5)
    table.add({"m": 256, "k": 64}, error="none")
    as_json, as_csv = table.write(tmp_path / "results" / "run")
    data = json.loads(as_json.read_text())
    assert {"device", "torch", "dsl", "program", "commit", "time"} <= data["environment"].keys()
    assert data["rows"][0] | {"m": 128, "variant": "ours", "median_us": 2.0, "gbs": 12.5} == data["rows"][0]
    rows = list(csv.DictReader(as_csv.open()))
    assert [row["m"] for row in rows] == ["128", "256"] and rows[1]["variant"] == "" and rows[1]["error"] == "none"
    assert rows[0]["torch"] == torch.__version__


def test_results_name_no_place_of_the_machine(monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench.py", "--small", "--out", "/somewhere/x", "--only", "a"])
    assert environment()["arguments"] == "--small --only a"
    monkeypatch.setattr("sys.argv", ["bench.py", "--out=/somewhere/x", "--small"])
    assert environment()["arguments"] == "--small" and len(environment()["sources"]) == 12


def test_nobody_else_makes_timing_events():
    """perf/timing.py is the one timer; cuda_on_cpu.py only replaces the class on machines without a GPU."""
    stray = re.compile(r"\b(torch\.cuda\.Event|cudaEventElapsedTime|elapsed_time)\b")
    files = [path for name in ("cutefp4", "kernels", "perf") for path in (ROOT / name).rglob("*.py")]
    files = [path for path in files if path.name not in ("timing.py", "cuda_on_cpu.py")]
    found = [str(path.relative_to(ROOT)) for path in files if stray.search(path.read_text())]
    assert not found, f"use perf/timing.py: {found}"


@pytest.mark.gpu
@pytest.mark.parametrize(
    "clock", [GraphClock(), EventClock(), EventClock(flush=False)], ids=["graph", "events", "warm"]
)
def test_device_clocks_agree_with_bandwidth(clock):
    """A copy of 256 MiB takes a time that this device can have: 0.3 to 20 TB/s; twice the bytes take longer."""
    a, b = torch.empty(2, 1 << 28, dtype=torch.uint8, device="cuda")
    half = (a[: 1 << 27], b[: 1 << 27])
    variants = [variant("copy", lambda i: a.copy_(b)), variant("half", lambda i: half[0].copy_(half[1]))]
    timings = measure(variants, rounds=10, clock=clock)
    assert 300 < timings["copy"].bandwidth(2 << 28) < 20_000
    assert 1.6 < timings["copy"].median / timings["half"].median < 2.5
