"""How commands speak: tables and messages on a terminal, plain text in a pipe, JSON when asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from cutefp4.errors import UnsupportedError

FAILED, USER_ERROR, INTERRUPTED, CLOSED_PIPE = 1, 2, 130, 141
"""Exit codes: a check failed, the user made a mistake, Ctrl-C, nobody reads the output any more (128 + a signal)."""

PIPE_WIDTH = 400
"""Of what goes into a pipe or a file: a line of a table stays one line, so that grep finds whole rows."""


def console() -> Console:
    """Standard output: colours on a terminal only, and lines that do not wrap at 80 in a pipe."""
    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH, color_system=None, highlight=False)


def note(text: str) -> None:
    """A line of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=1))


def require_writable(*paths: Path | None) -> None:
    """Refuse now what could not be written after minutes of work. What is there stays as it is.

    Raises:
        UnsupportedError: one of the paths that are not None cannot be written.
    """
    for path in paths:
        if path is None:
            continue
        there = path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
            if not there:
                path.unlink()
        except OSError as error:
            raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UnsupportedError:
    return UnsupportedError(f"{path}: {error}", "a file that can be written", "choose another place")


def complete(*words: str) -> Callable[[str], list[str]]:
    """For the completion of an option: the words that begin with what was typed, or with its part behind a comma."""

    def found(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + word for word in words if word.startswith(last)]

    return found


def write_text(path: Path, text: str) -> Path:
    """Write a file that the user named.

    Raises:
        UnsupportedError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path
