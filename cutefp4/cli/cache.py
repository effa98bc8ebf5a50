"""`cutefp4 cache ls | clear | path`: the compiled kernels on disk."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cutefp4 import disk_cache, env
from cutefp4.errors import CacheError

commands = typer.Typer(no_args_is_help=True, help="Look at the compiled kernels on disk, or delete them.")


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.add_typer(commands, name="cache")


@commands.command()
def path() -> None:
    """Print the directory of compiled kernels (CUTEFP4_CACHE_DIR chooses another)."""
    print(env.cache_dir())


@commands.command()
def ls(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of plans, which `cutefp4 warmup FILE` reads.")
    ] = False,
) -> None:
    """List the compiled kernels: architecture, plan, registers, bytes, when they were made."""
    found = disk_cache.entries(env.cache_dir())
    if as_json:
        print(json.dumps([info["plan"] for _, info, _ in found], indent=1))
        return
    table = Table("arch", "fingerprint", "plan", "registers", "KiB", "created")
    for directory, info, size in found:
        registers = ", ".join(str(kernel["registers"]) for kernel in info["resources"])
        fingerprint = directory.parent.name.partition("-")[2]
        kib = f"{size / 1024:.0f}"
        table.add_row(info["arch"], fingerprint, _describe(info["plan"]), registers, kib, info["created"])
    console = Console()
    console.print(table)
    total = sum(size for _, _, size in found)
    console.print(f"{len(found)} kernels, {total / 2**20:.1f} MiB in {env.cache_dir()}", highlight=False)


def _describe(plan: dict) -> str:
    fields = ", ".join(f"{name}={_value(value)}" for name, value in plan.items() if name not in ("class", "arch"))
    return f"{plan['class'].rpartition(':')[2]}({fields})"


def _value(value) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(_value(v) for name, v in value.items() if name != "class") + ")"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)


@commands.command()
def clear(yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Delete all compiled kernels and everything that was moved aside. They are compiled again when needed."""
    directory = env.cache_dir()
    if not yes:
        typer.confirm(f"Delete the compiled kernels in {directory}?", abort=True)
    try:
        count = disk_cache.clear(directory)
    except OSError as error:
        raise CacheError(f"{directory}: {error}", "a directory that can be written", "delete it by hand") from error
    print(f"deleted {count} entries in {directory}")
