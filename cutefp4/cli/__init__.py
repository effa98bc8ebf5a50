"""The command line: `cutefp4 COMMAND`.

Each command lives in a module of its own with a function `register(app)` that adds it, so a new command is one file and
one entry in `_COMMANDS`. Errors that cutefp4 raises on purpose end in one line and exit code 2, without a traceback.
"""

from __future__ import annotations

import sys

import typer

from cutefp4.cli import bench, cache, demo, doctor, sweep, verify, warmup
from cutefp4.cli.output import USER_ERROR
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
        app()
    except CuteFP4Error as error:
        print(f"cutefp4: error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        print("cutefp4: interrupted", file=sys.stderr)
        sys.exit(130)
