"""Every environment variable that cutefp4 reads, in one table.

None of them may change generated code: what changes code is a field of a plan. README's table is compared with
`VARIABLES` by a test, and the package is searched for stray reads of `CUTEFP4_*`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from cutefp4.errors import OperandError


@dataclass(frozen=True)
class Variable:
    """One environment variable: its name, default, accepted values ('' = any) and meaning."""

    name: str
    default: str
    choices: tuple[str, ...]
    meaning: str


VARIABLES = {
    v.name: v
    for v in (
        Variable(
            "CUTEFP4_BACKEND",
            "auto",
            ("auto", "reference", "emulator"),
            "backend for calls that name none: auto follows the tensors' device",
        ),
        Variable(
            "CUTEFP4_CACHE_DIR",
            "",
            (),
            "directory of compiled kernels; default: cutefp4 under the user's cache directory (XDG_CACHE_HOME)",
        ),
        Variable(
            "CUTEFP4_JIT",
            "allow",
            ("allow", "warn", "error"),
            "what a kernel that is in no cache does at call time: compile, compile with a warning, or raise",
        ),
        Variable(
            "CUTEFP4_DUMP",
            "",
            (),
            "directory that receives plan, PTX and SASS of every kernel that this process compiles or reads from disk",
        ),
        Variable(
            "CUTEFP4_COMPILE_WORKERS",
            "0",
            (),
            "processes for parallel compiles; 0 = as many as cores and free memory allow",
        ),
        Variable(
            "CUTEFP4_TUNED",
            "",
            (),
            "file of measured configurations, as cutefp4 sweep --save writes it; plans for its problems use them",
        ),
    )
}


def read(name: str) -> str:
    """The value of a variable of `VARIABLES`, checked against its choices.

    Raises:
        OperandError: the value is not one of the accepted ones.
    """
    variable = VARIABLES[name]
    value = os.environ.get(name, "") or variable.default
    if variable.choices and value not in variable.choices:
        raise OperandError(
            f"environment variable {name}={value!r}",
            accepted=", ".join(variable.choices),
            fix=f"unset {name} or set it to one of these",
        )
    return value


def read_int(name: str) -> int:
    """The value of a variable as an integer >= 0.

    Raises:
        OperandError: the value is no such integer.
    """
    value = read(name)
    if not value.isdecimal():
        raise OperandError(f"environment variable {name}={value!r}", accepted="an integer >= 0", fix=f"unset {name}")
    return int(value)


def cache_dir() -> Path:
    """Root directory of compiled kernels and of the emulator's build (not created here)."""
    given = read("CUTEFP4_CACHE_DIR")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("cutefp4"))
