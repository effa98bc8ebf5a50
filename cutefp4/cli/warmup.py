"""`cutefp4 warmup`: compile kernels ahead of time, in parallel, with or without a GPU."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import torch
import typer

from cutefp4 import env, launch
from cutefp4.errors import CompileError, OperandError
from cutefp4.layer_plans import linear_layer
from cutefp4.plan import ARCHS, Plan, from_json
from cutefp4.recipe import NAMED, named_recipe
from cutefp4.warmup import warmup as compile_all

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(warmup)


def warmup(
    file: Annotated[
        Path | None, typer.Argument(help="JSON list of plans, as `cutefp4 cache ls --json` prints it.")
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help=f"Training recipe, with --shape; may be repeated: {', '.join(NAMED)}.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="MxNxK of a linear layer: X (M, K), W (N, K); may be repeated.")
    ] = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(help=f"Compile for: {', '.join(ARCHS)}. Default: this machine's GPU, else the first two."),
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"Of activations: {', '.join(DTYPES)}.")] = "bf16",
    workers: Annotated[int, typer.Option(help="Compile processes; 0 = as cores and free memory allow.")] = 0,
) -> None:
    """Compile kernels before they are needed: from a list of plans, or for the layers of a model.

    The kernels go into the cache directory, so that no process on this machine waits for the compiler later. With
    CUTEFP4_JIT=error a server then proves that it never compiles.
    """
    if (file is None) == (not recipe):
        raise OperandError(
            "neither FILE nor --recipe" if file is None else "both FILE and --recipe",
            "one of them",
            "cutefp4 warmup plans.json, or cutefp4 warmup --recipe te --shape 8192x4096x4096",
        )
    plans = _read(file) if file is not None else _layers(recipe, shape or [], arch or _default_archs(), dtype)
    result = compile_all(plans, workers=workers or None, load=False, progress=True)
    print(
        f"{result.compiled} compiled, {len(result.outcomes) - result.compiled} were there, "
        f"{result.seconds:.1f} s with {result.workers} processes, in {env.cache_dir()}"
    )


def _read(file: Path) -> list[Plan]:
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        fix = "write one with `cutefp4 cache ls --json`"
        raise CompileError(f"{file}: {error}", "a JSON list of plans", fix) from error
    plans = from_json(data)
    if not isinstance(plans, tuple) or not all(isinstance(plan, Plan) for plan in plans):
        raise CompileError(f"{file} holds something else", "a JSON list of plans", "see `cutefp4 cache ls --json`")
    return list(plans)


def _default_archs() -> list[str]:
    if torch.cuda.is_available():
        return [launch.arch_of(torch.device("cuda", torch.cuda.current_device()))]
    return list(ARCHS[:2])


def _layers(recipes: list[str], shapes: list[str], archs: list[str], dtype: str) -> list[Plan]:
    if not shapes:
        raise OperandError("--recipe without --shape", "--shape MxNxK", "add one --shape for each linear layer")
    unknown = [name for name in archs if name not in ARCHS]
    if unknown:
        raise OperandError(f"--arch {unknown[0]}", ", ".join(ARCHS), "choose one of these")
    if dtype not in DTYPES:
        raise OperandError(f"--dtype {dtype}", ", ".join(DTYPES), "choose one of these")
    plans: dict[Plan, None] = {}
    missing: dict[str, None] = {}
    for name in recipes:
        for text in shapes:
            for arch in archs:
                found = linear_layer(named_recipe(name), *_shape(text), DTYPES[dtype], arch)
                plans.update(dict.fromkeys(found.plans))
                missing.update(dict.fromkeys(f"{arch} {name}: {line}" for line in found.missing))
    for line in missing:
        typer.echo(f"cutefp4: no kernel: {line}", err=True)
    return list(plans)


def _shape(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None:
        raise OperandError(f"--shape {text}", "MxNxK, for example 8192x4096x4096", "write three sizes with x between")
    return tuple(map(int, match.groups()))
