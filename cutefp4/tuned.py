"""Measured configurations: which one a sweep found fastest for a problem. Explicit and deterministic.

Nothing is tuned at run time, and nothing is loaded unless somebody asks: `load(file)` for the process, `use(file)` for
a block, CUTEFP4_TUNED=file for everything. The same table and the same problem give the same kernel in every run; a
problem that is not in the table goes to the heuristic.

    {"format": "cutefp4-tuned-1",
     "entries": [{"operation": "gemm", "arch": "sm_90a",
                  "problem": {"m": 8192, "n": 4096, "k": 4096, "out_dtype": "bfloat16", "sms": 132, ...},
                  "config": {"class": "cutefp4.config:Sm90Config", "tile_m": 256, ...},
                  "measured": {"device": "NVIDIA H200", "median_us": 612.4, "heuristic_us": 640.1, "commit": "..."}}]}

A problem is a dictionary of numbers and strings; which names it has is the operation's business (`problem` of its
request). It matches exactly or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutefp4 import env
from cutefp4.errors import CompileError
from cutefp4.plan import ARCHS, from_json, to_json

FORMAT = "cutefp4-tuned-1"

Scalar = str | int | float | bool


@dataclass(frozen=True)
class TunedEntry:
    """One measured choice.

    Attributes:
        operation: "gemm", "grouped_gemm", "quantize".
        arch: that the configuration was measured on.
        problem: what identifies the case.
        config: a frozen dataclass of configuration fields.
        measured: times, device, versions: for people; it decides nothing.
    """

    operation: str
    arch: str
    problem: dict[str, Scalar]
    config: Any
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple:
        return key_of(self.operation, self.arch, self.problem)


def key_of(operation: str, arch: str, problem: dict[str, Scalar]) -> tuple:
    """What a lookup compares: types count, the order of names does not."""
    return operation, arch, tuple(sorted((name, type(value).__name__, value) for name, value in problem.items()))


_table: dict[tuple, TunedEntry] = {}
_generation = 0
_environment_file = ""
"""The file of CUTEFP4_TUNED that was loaded; "" before."""


def generation() -> int:
    """Changes with every change of the table: part of the key of whoever remembers choices."""
    return _generation


def lookup(operation: str, arch: str, problem: dict[str, Scalar]) -> Any | None:
    """The measured configuration for exactly this problem, None if there is none.

    Raises:
        CompileError: the file of CUTEFP4_TUNED, which the first lookup loads, is no tuned table.
    """
    global _environment_file
    if (named := env.read("CUTEFP4_TUNED")) != _environment_file:
        if named:
            load(named)
        _environment_file = named
    if not _table:
        return None
    entry = _table.get(key_of(operation, arch, problem))
    return None if entry is None else entry.config


def require_legal(config: Any, problems: list[str]) -> None:
    """Refuse a configuration that came from a table and cannot run.

    Raises:
        CompileError: `problems` is not empty.
    """
    if problems:
        raise CompileError(
            f"{config} from a tuned table: {'; '.join(problems)}",
            "a configuration that this version can run",
            "run `cutefp4 sweep --save` again, or clear the table (tuned.clear, CUTEFP4_TUNED)",
        )


def read(path: str | Path) -> list[TunedEntry]:
    """The entries of a file; nothing is applied.

    Raises:
        CompileError: it is no tuned table of this format, or names a configuration that this version does not have.
    """
    fix = "write it with `cutefp4 sweep --save`"
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise CompileError(f"{path}: {error}", "a JSON file of tuned configurations", fix) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CompileError(f"{path} is no tuned table", f'a JSON object with "format": "{FORMAT}"', fix)
    return [_entry(path, number, entry) for number, entry in enumerate(data.get("entries", []))]


def _entry(path: str | Path, number: int, data: dict[str, Any]) -> TunedEntry:
    try:
        entry = TunedEntry(
            data["operation"], data["arch"], dict(data["problem"]), from_json(data["config"]), data.get("measured", {})
        )
        if entry.arch not in ARCHS:
            raise ValueError(f"arch {entry.arch!r} is none of {', '.join(ARCHS)}")
        if not all(isinstance(value, (str, int, float, bool)) for value in entry.problem.values()):
            raise ValueError("the problem holds something else than numbers and strings")
    except (KeyError, TypeError, ValueError, CompileError) as error:
        raise CompileError(
            f"entry {number} of {path}: {type(error).__name__}: {error}",
            "operation, arch, problem and a config of this version",
            "run the sweep again with this version",
        ) from error
    return entry


def load(path: str | Path) -> int:
    """Apply a table to this process; later tables win over earlier ones. Returns the number of entries.

    Raises:
        CompileError: as `read`; the process's table is unchanged then.
    """
    return _apply(read(path))


def _apply(entries: list[TunedEntry]) -> int:
    global _generation
    _table.update((entry.key, entry) for entry in entries)
    _generation += 1
    return len(entries)


def clear() -> None:
    """Forget everything that was loaded."""
    global _generation
    _table.clear()
    _generation += 1


@contextmanager
def use(source: str | Path | Iterable[TunedEntry]) -> Iterator[int]:
    """Apply a file or entries inside a block, on top of what was loaded; afterwards everything is as before."""
    global _generation
    before = dict(_table)
    entries = read(source) if isinstance(source, (str, Path)) else list(source)
    try:
        yield _apply(entries)
    finally:
        _table.clear()
        _table.update(before)
        _generation += 1


def save(path: str | Path, entries: Iterable[TunedEntry]) -> Path:
    """Write a table; of several entries for one problem the last one counts. The order in the file is fixed.

    The file is replaced in one step, so that a sweep that is interrupted leaves the former table whole.
    """
    by_key = {entry.key: entry for entry in entries}
    data = {
        "format": FORMAT,
        "entries": [
            {
                "operation": entry.operation,
                "arch": entry.arch,
                "problem": dict(sorted(entry.problem.items())),
                "config": to_json(entry.config),
                "measured": entry.measured,
            }
            for _, entry in sorted(by_key.items(), key=lambda item: repr(item[0]))
        ],
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(scratch, path)
    return path
