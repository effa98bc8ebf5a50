"""`cutefp4 doctor`: versions, devices, the compiler, cache, workspaces, and which backends work here and why not."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Table

import cutefp4
from cutefp4 import backend, disk_cache, dsl, env, fingerprint, tuned, workspace
from cutefp4.cli import output
from cutefp4.cli.sweep.case import Case
from cutefp4.cli.sweep.operations import operation_plans
from cutefp4.cli.sweep.target import target_for
from cutefp4.errors import CompileError, CuteFP4Error
from cutefp4.plan import from_json
from cutefp4.quant_plan import BYTES, BlockMath, CastRowsPlan, row_shape
from cutefp4.recipe import QuantRecipe

ARCHS = ("sm_90a", "sm_100a")
PACKAGES = (
    "torch",
    "nvidia-cutlass-dsl",
    "nvidia-cutlass-dsl-libs-cu12",
    "nvidia-cutlass-dsl-libs-cu13",
    "apache-tvm-ffi",
    "torch-c-dlpack-ext",
    "cuda-python",
    "nvidia-cuda-nvdisasm",
    "safetensors",
    "matplotlib",
    "quack-kernels",
)


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(doctor)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """Say what this machine can run: versions, GPUs, the CuTe DSL, the cache, and every backend with a reason.

    It compiles one small kernel for each architecture, which takes seconds and no GPU. Exit code 0 if at least one
    backend works (the reference backend needs PyTorch alone).
    """
    report = collect()
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)


def collect() -> dict:
    """Everything that the command shows, as plain data."""
    return {
        "cutefp4": cutefp4.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "gpus": [_gpu(i) for i in range(torch.cuda.device_count())],
        "dsl": _dsl(),
        "cache": _cache(),
        "workspaces": _workspaces(),
        "tuned": _tuned(),
        "environment": {name: os.environ[name] for name in env.VARIABLES if name in os.environ},
        "backends": {name: vars(backend.status(name)) for name in backend.BACKENDS},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu(index: int) -> dict:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "sms": properties.multi_processor_count,
    }


def _dsl() -> dict:
    """Whether the CuTe DSL imports, and compiles a kernel of this package for each architecture; takes seconds."""
    try:
        loaded = dsl.versions()[1]
    except (ImportError, OSError) as error:
        reason = f"cannot be imported ({error}): pip install --force-reinstall 'nvidia-cutlass-dsl[cu13]'"
        return {"usable": False, "reason": reason, "compiles": {}}
    return {"usable": True, "reason": f"loaded {loaded}", "compiles": {arch: _compiles(arch) for arch in ARCHS}}


def _compiles(arch: str) -> str:
    """ "1.2 s", or why the per-token rowwise quantiser does not compile for `arch`."""
    recipe = QuantRecipe(scaling="token", arithmetic="per_token")
    shape = row_shape(4096, BYTES["bfloat16"])
    plan = CastRowsPlan(arch, "bfloat16", BlockMath.of(recipe), "token", False, "tiled", vector_bytes=16, **shape)
    begin = time.perf_counter()
    try:
        dsl.compile_plan(plan)
    except CompileError as error:
        return f"no: {error}"
    return f"in {time.perf_counter() - begin:.1f} s"


def _cache() -> dict:
    path = env.cache_dir()
    existing = next(p for p in (path, *path.parents) if p.exists())
    return {
        "path": str(path),
        "exists": path.exists(),
        "writable": os.access(existing, os.W_OK),
        "free_gib": round(shutil.disk_usage(existing).free / 2**30, 1),
        **_entries(path),
    }


def _entries(path: Path) -> dict:
    """How many kernels are on disk, how many of them this version still uses, and what lies in quarantine."""
    found = disk_cache.entries(path)
    current = 0
    for directory, info, _ in found:
        with contextlib.suppress(CuteFP4Error, OSError):
            current += directory.parent.name == fingerprint.of(from_json(info["plan"]))
    corrupt = path / disk_cache.CORRUPT
    return {
        "kernels": len(found),
        "of_this_version": current,
        "mib": round(sum(size for _, _, size in found) / 2**20, 1),
        "quarantined": sum(1 for _ in corrupt.iterdir()) if corrupt.is_dir() else 0,
    }


def _workspaces() -> dict[str, dict[str, int]]:
    """Bytes that a stream keeps for partial sums after a product, by architecture; with those prepared for captures."""
    device, sizes = torch.device("cpu"), {}
    for arch in ARCHS:
        sizes[arch] = {}
        for case in (Case("TN", 64, 7168, 16384), Case("TN", 4096, 4096, 4096)):
            workspace.release(device)
            operation_plans(case, target_for(arch, case))
            sizes[arch][f"{case.m}x{case.n}x{case.k}"] = workspace.allocated_bytes(device)
    workspace.release(device)
    return sizes


def _tuned() -> str:
    """What CUTEFP4_TUNED names, and whether it can be read."""
    path = env.read("CUTEFP4_TUNED")
    if not path:
        return "none: the heuristics choose (cutefp4 sweep --save, CUTEFP4_TUNED)"
    try:
        return f"{path}, {len(tuned.read(path))} entries"
    except CuteFP4Error as error:
        return f"{path} cannot be used: {error}"


def _print(report: dict) -> None:
    console = output.console()
    console.print(f"[bold]cutefp4 {report['cutefp4']}[/bold], Python {report['python']}, {report['platform']}")
    versions = Table("package", "version", title="Versions", title_justify="left")
    for name, version in report["packages"].items():
        versions.add_row(name, version or "[dim]not installed[/dim]")
    console.print(versions)
    for gpu in report["gpus"]:
        console.print(f"GPU: {gpu['name']}, capability {gpu['capability']}, {gpu['memory_gib']} GiB, {gpu['sms']} SMs")
    if not report["gpus"]:
        built = f"CUDA {report['cuda']}" if report["cuda"] else "CPU only"
        console.print(f"GPU: none that PyTorch can see (this PyTorch is built for {built})")
    console.print(f"CuTe DSL: {escape(report['dsl']['reason'])}")
    for arch, answer in report["dsl"]["compiles"].items():
        console.print(f"  compiles for {arch}: {escape(answer)}")
    cache = report["cache"]
    state = "exists" if cache["exists"] else "will be made on first use"
    access = "writable" if cache["writable"] else "[red]not writable: kernels are kept in memory only[/red]"
    console.print(f"Cache: {cache['path']} ({state}, {access}, {cache['free_gib']} GiB free)")
    console.print(
        f"  {cache['kernels']} kernels, {cache['mib']} MiB, {cache['of_this_version']} of them of this version; "
        f"{cache['quarantined']} damaged entries set aside"
    )
    for arch, sizes in report["workspaces"].items():
        listed = ", ".join(f"{shape} {size / 2**20:.1f} MiB" for shape, size in sizes.items())
        console.print(f"Workspace of a stream on {arch}, after a product of {listed}")
    console.print(f"Tuned configurations: {escape(report['tuned'])}")
    for name, value in report["environment"].items():
        console.print(f"{name}={value}")
    table = Table("backend", "works here", "reason", "operations", title="Backends", title_justify="left")
    for name, status in report["backends"].items():
        verdict = "[green]yes[/green]" if status["usable"] else "[yellow]no[/yellow]"
        table.add_row(name, verdict, escape(status["reason"]), ", ".join(status["operations"]) or "-")
    console.print(table)
