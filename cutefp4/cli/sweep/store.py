"""What a sweep measured, line by line, so that nothing is lost and nothing is measured twice.

A JSON line per measured configuration, appended as it comes. Its key holds everything that the number depends on: case,
configuration, device, versions and the digest of the sources. `--resume` takes the lines whose keys still fit.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cutefp4.errors import CacheError, OperandError
from cutefp4.plan import to_json

DEPENDS_ON = ("device", "driver", "torch", "cuda", "dsl", "sources")


def row_key(case: str, config: Any, phase: str, environment: dict[str, str]) -> str:
    """Names one measurement."""
    machine = [environment.get(name, "") for name in DEPENDS_ON]
    text = json.dumps([case, to_json(config), phase, machine], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Store:
    """Lines of one results file.

    Args:
        path: None keeps rows in memory only.
        resume: use what the file holds.
    """

    def __init__(self, path: Path | None, resume: bool) -> None:
        self.path = path
        self.rows: dict[str, dict] = {}
        if path is None:
            return
        if resume and not path.exists():
            raise OperandError(f"--resume without {path}", "a results file of a sweep", "leave --resume out to start")
        if resume:
            self.rows = dict(_read(path))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
        except OSError as error:
            raise CacheError(f"{path}: {error}", "a file that can be written", "choose another --results") from error

    def get(self, key: str) -> dict | None:
        return self.rows.get(key)

    def add(self, key: str, row: dict) -> None:
        """Remember a row, on disk at once."""
        self.rows[key] = row
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({"key": key, **row}) + "\n")


def _read(path: Path):
    """(key, row) of every whole line; a line that a crash cut off is no result."""
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            key = row.pop("key")
        except (ValueError, KeyError, AttributeError):
            continue
        yield key, row
