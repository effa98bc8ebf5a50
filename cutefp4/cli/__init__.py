"""The command line: `cutefp4 COMMAND`.

Each command lives in a module of its own with a function `register(app)` that adds it, so a new command is one file and
one entry in `_COMMANDS`. Errors that cutefp4 raises on purpose end in one line and exit code 2, without a traceback.
"""

from __future__ import annotations

import os
import sys

import typer

from cutefp4.cli import bench, cache, demo, doctor, sweep, verify, warmup
from cutefp4.cli.output import CLOSED_PIPE, INTERRUPTED, USER_ERROR
from cutefp4.errors import CuteFP4Error

_COMMANDS = (demo, doctor, sweep, bench, verify, warmup, cache)

app = typer.Typer(
    name="cutefp4",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="NVFP4 quantisation and GEMM for PyTorch. Start with **cutefp4 demo**: it quantises a real model on "
    "this machine and shows what 4 bits cost. **cutefp4 doctor** says which backends work here, and why not.",
)

for _command in _COMMANDS:
    _command.register(app)


def main() -> None:
    """Entry point of the `cutefp4` script."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, not when the interpreter exits: a closed pipe would be reported there
    except CuteFP4Error as error:
        print(f"cutefp4: error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        print("cutefp4: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (BrokenPipeError, SystemExit) as error:
        # click and rich turn a pipe that its reader closed (`cutefp4 ... | head`) into status 1
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered goes nowhere
        sys.exit(CLOSED_PIPE)
