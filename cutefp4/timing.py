"""The one timer. Every number of perf, `cutefp4 sweep` and `cutefp4 bench` is from here, so that they can be compared.

    variants = [Variant("ours", ours), Variant("copy", copy)]           # ours(i) runs on input set i
    timings = measure(variants, sets=rotation_sets(nbytes), clock=GraphClock())
    table.add(case, timings["ours"], bytes=nbytes); table.write("perf/results/quantize")

Rules that it enforces:

* Variants are interleaved: every round times each of them once, in a rotated order, so that drifting clocks and
  temperature hit all alike. What is reported is the median over rounds, with the 10th and 90th percentile.
* Inputs do not come from the cache: calls rotate over input sets that together exceed the L2 cache (`rotation_sets`),
  or the cache is overwritten before each call (`EventClock(flush=True)`).
* Device time is measured on the device: `GraphClock` replays a captured graph of many calls between two events, which
  leaves no launch gaps; `EventClock` puts events around single calls behind a kernel that hides their launch.
  `HostClock` measures what the Python caller pays.
* Data have a named distribution (`fill`): power draw, and with it the clock, depends on the bits. Outputs are poisoned
  before a check (`poison`), so that unwritten elements are seen.
* A row holds what is needed to doubt it: device, clocks before and after, versions, the program and its commit.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Variant:
    """One of several ways to do the same work.

    Attributes:
        name: unique among the variants of a measurement.
        run: `run(i)` does the work on input set i. It must launch on torch's current stream and not synchronise.
    """

    name: str
    run: Callable[[int], object]


@dataclass(frozen=True)
class Timing:
    """Seconds per call.

    Attributes:
        name: of the variant.
        median, low, high: median, 10th and 90th percentile over rounds.
        rounds: how many; each is `calls` calls.
        calls: per round.
    """

    name: str
    median: float
    low: float
    high: float
    rounds: int
    calls: int

    @property
    def us(self) -> float:
        """Median in microseconds."""
        return self.median * 1e6

    @property
    def spread(self) -> float:
        """(high - low) / median: what a difference between variants must exceed."""
        return (self.high - self.low) / self.median

    def bandwidth(self, nbytes: int) -> float:
        """GB/s (1e9) for `nbytes` moved per call."""
        return nbytes / self.median / 1e9

    def tflops(self, flop: int) -> float:
        """TFLOP/s for `flop` operations per call."""
        return flop / self.median / 1e12

    def __str__(self) -> str:
        return f"{self.name}: {self.us:.2f} us ({self.low * 1e6:.2f} .. {self.high * 1e6:.2f})"


class Clock(Protocol):
    """How one round of one variant is timed."""

    def prepare(self, variants: Sequence[Variant], sets: int) -> None:
        """Called once, before the first round: warm up, capture."""

    def round(self, variant: Variant) -> float:
        """Seconds per call of one round."""

    calls: int


@dataclass
class GraphClock:
    """Device time of calls in a CUDA graph, replayed between two events.

    Attributes:
        calls: per graph, at least; rounded up to whole rotations over the input sets.
        warmup: eager rotations before the capture.
    """

    calls: int = 20
    warmup: int = 2
    _graphs: dict[str, torch.cuda.CUDAGraph] = field(default_factory=dict, repr=False)

    def prepare(self, variants: Sequence[Variant], sets: int) -> None:
        self.calls = math.ceil(self.calls / sets) * sets
        for variant in variants:
            for i in range(self.warmup * sets):
                variant.run(i % sets)
            torch.cuda.synchronize()
            graph = self._graphs[variant.name] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for i in range(self.calls):
                    variant.run(i % sets)
            graph.replay()
        torch.cuda.synchronize()

    def round(self, variant: Variant) -> float:
        graph = self._graphs[variant.name]
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / self.calls


@dataclass
class EventClock:
    """Device time of single calls, events around each: for what a graph cannot hold.

    Attributes:
        calls: per round.
        flush: overwrite the L2 cache before each call; otherwise only the rotation keeps inputs out of it.
        warmup: rotations before the first round.
    """

    calls: int = 5
    flush: bool = True
    warmup: int = 3
    _sets: int = 1
    _next: int = 0
    _cache: torch.Tensor | None = field(default=None, repr=False)

    def prepare(self, variants: Sequence[Variant], sets: int) -> None:
        self._sets = sets
        if self.flush:
            self._cache = torch.empty(3 * l2_bytes(), dtype=torch.uint8, device="cuda")
        for variant in variants:
            for i in range(self.warmup * sets):
                variant.run(i % sets)
        torch.cuda.synchronize()

    def round(self, variant: Variant) -> float:
        pairs = []
        for _ in range(self.calls):
            if self._cache is not None:
                self._cache.fill_(self._next % 251)
            # About 50 us of waiting on the device: the host has queued the call before the device gets to it.
            torch.cuda._sleep(100_000)
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            variant.run(self._next % self._sets)
            end.record()
            pairs.append((begin, end))
            self._next += 1
        torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) / 1e3 for begin, end in pairs)


@dataclass
class HostClock:
    """What the caller pays: wall time of `calls` calls in a row, without waiting for the device inside.

    Attributes:
        calls: per round; few enough that the device's launch queue (1024) does not fill and block the host.
        warmup: calls before the first round.
        synchronize: wait for the device before and after a round (outside the measured time).
    """

    calls: int = 200
    warmup: int = 50
    synchronize: bool = field(default_factory=torch.cuda.is_available)
    _sets: int = 1

    def prepare(self, variants: Sequence[Variant], sets: int) -> None:
        self._sets = sets
        for variant in variants:
            for i in range(self.warmup):
                variant.run(i % sets)
        self._wait()

    def round(self, variant: Variant) -> float:
        self._wait()
        run, sets = variant.run, self._sets
        start = time.perf_counter()
        for i in range(self.calls):
            run(i % sets)
        seconds = time.perf_counter() - start
        self._wait()
        return seconds / self.calls

    def _wait(self) -> None:
        if self.synchronize:
            torch.cuda.synchronize()


def measure(variants: Sequence[Variant], *, sets: int = 1, rounds: int = 30, clock: Clock) -> dict[str, Timing]:
    """Time variants against each other.

    Args:
        variants: with distinct names.
        sets: number of input sets; `run` is called with 0 .. sets-1 in turn.
        rounds: each times every variant once; the order rotates from round to round.
        clock: what is timed, and how.

    Returns:
        One Timing per variant, by name.
    """
    names = [variant.name for variant in variants]
    if len(set(names)) != len(names):
        raise ValueError(f"variants need distinct names, not {names}")
    clock.prepare(variants, sets)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        shift = index % len(variants)
        for variant in (*variants[shift:], *variants[:shift]):
            seconds[variant.name].append(clock.round(variant))
    return {name: _summary(name, values, clock.calls) for name, values in seconds.items()}


def _summary(name: str, values: list[float], calls: int) -> Timing:
    ordered = sorted(values)

    def quantile(q: float) -> float:
        return ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]

    return Timing(name, statistics.median(ordered), quantile(0.1), quantile(0.9), len(values), calls)


def l2_bytes() -> int:
    """Size of the current device's L2 cache."""
    return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size


def rotation_sets(bytes_per_set: int, cache_bytes: int | None = None, most: int = 64) -> int:
    """How many input sets together are three times the L2 cache: what is read next has been evicted.

    Args:
        bytes_per_set: inputs and outputs of one call.
        cache_bytes: None: the current device's L2.
        most: a bound; tiny sets need more calls than a graph should hold, and then stay in the cache in part.
    """
    cache_bytes = l2_bytes() if cache_bytes is None else cache_bytes
    return max(1, min(most, math.ceil(3 * cache_bytes / max(1, bytes_per_set))))


DISTRIBUTIONS = ("normal", "uniform", "heavy_tailed", "outliers", "zeros")


def fill(shape: Sequence[int], distribution: str, *, dtype: torch.dtype, device: str | torch.device, seed: int = 0):
    """A tensor of a named distribution, the same bytes for the same seed and device type.

    "normal": N(0, 1). "uniform": [-1, 1). "heavy_tailed": normal / |normal + 0.1|-like tails as of gradients.
    "outliers": normal with every 512th column 50 times larger, as of activations. "zeros": hides errors and draws less
    power; for comparison alone.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32)

    if distribution == "normal":
        x = normal()
    elif distribution == "uniform":
        x = torch.rand(*shape, generator=generator, device=device, dtype=torch.float32) * 2 - 1
    elif distribution == "heavy_tailed":
        x = normal() / normal().abs().clamp(min=0.1)
    elif distribution == "outliers":
        x = normal()
        x[..., ::512] *= 50
    elif distribution == "zeros":
        x = torch.zeros(*shape, device=device)
    else:
        raise ValueError(f"distribution {distribution!r}: choose one of {', '.join(DISTRIBUTIONS)}")
    return x.to(dtype)


def poison(*tensors: torch.Tensor) -> None:
    """Fill with 0xA5 bytes: a value that no output has everywhere, so that unwritten elements show in a comparison."""
    for tensor in tensors:
        tensor.view(torch.uint8).fill_(0xA5) if tensor.dim() else tensor.fill_(-1.5e-16)


def _smi(*names: str) -> dict[str, str]:
    """Values of `nvidia-smi --query-gpu`; {} if the tool is missing. It reads the card's state and changes nothing."""
    index = torch.cuda.current_device()
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits", f"--id={index}"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(names, (value.strip() for value in text.strip().split(",")), strict=False))


def clocks() -> dict[str, str]:
    """Clocks (MHz), power (W) and temperature (C) of the current device now; {} without a GPU."""
    if not torch.cuda.is_available():
        return {}
    return _smi("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "clocks_throttle_reasons.active")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip()

    if not (ROOT / ".git").exists():
        return ""
    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except OSError:
        return ""


def _sources() -> str:
    """Digest of host, device and benchmark code: ties a result to a tree where there is no git."""
    digest = hashlib.sha256()
    for name in ("cutefp4", "kernels", "perf"):
        for path in sorted((ROOT / name).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _arguments() -> list[str]:
    """The program's arguments, without the place that the results go to; of other absolute paths, only the name."""
    kept = list(sys.argv[1:])
    if "--out" in kept:
        at = kept.index("--out")
        del kept[at : at + 2]
    kept = [argument for argument in kept if not argument.startswith("--out=")]
    return [Path(argument).name if argument.startswith("/") else argument for argument in kept]


def environment() -> dict[str, str]:
    """What a number depends on besides the code: device, driver, versions, program and its commit."""
    found = {
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "dsl": _version("nvidia-cutlass-dsl"),
        "tvm_ffi": _version("apache-tvm-ffi"),
        "python": platform.python_version(),
        "program": Path(sys.argv[0]).name,
        "arguments": " ".join(_arguments()),
        "commit": _commit(),
        "sources": _sources(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        found["device"] = properties.name
        found["sms"] = str(properties.multi_processor_count)
        found["driver"] = _smi("driver_version").get("driver_version", "")
    return found


def slug(device: str) -> str:
    """ "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


class Table:
    """Rows of results, each with the environment and the clocks at the moment it was added."""

    def __init__(self) -> None:
        self.environment = environment()
        self.rows: list[dict[str, Any]] = []
        self._clocks = self._now = clocks()
        self._asked = time.monotonic()

    def add(self, case: dict[str, Any], timing: Timing | None = None, **values: Any) -> dict[str, Any]:
        """Append a row: what was run, its timing, further values (bandwidth, baseline, error)."""
        # Rows of one measurement come together, and asking takes a good part of a second.
        if time.monotonic() - self._asked > 1.0:
            self._now, self._asked = clocks(), time.monotonic()
        now = self._now
        row = {**case, **({} if timing is None else _timing_columns(timing)), **values}
        row.update({f"{name}_before": self._clocks.get(name, "") for name in now})
        row.update({f"{name}_after": value for name, value in now.items()})
        self._clocks = now
        self.rows.append(row)
        return row

    def write(self, stem: str | Path) -> tuple[Path, Path]:
        """Write `<stem>.json` (environment once, then rows) and `<stem>.csv` (everything in each row)."""
        stem = Path(stem)
        stem.parent.mkdir(parents=True, exist_ok=True)
        as_json, as_csv = stem.with_suffix(".json"), stem.with_suffix(".csv")
        as_json.write_text(json.dumps({"environment": self.environment, "rows": self.rows}, indent=1) + "\n")
        rows = [{**row, **self.environment} for row in self.rows]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with open(as_csv, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        return as_json, as_csv


def _timing_columns(timing: Timing) -> dict[str, Any]:
    values = asdict(timing)
    return {
        "variant": values["name"],
        "median_us": round(timing.us, 4),
        "low_us": round(timing.low * 1e6, 4),
        "high_us": round(timing.high * 1e6, 4),
        "rounds": timing.rounds,
        "calls": timing.calls,
    }
