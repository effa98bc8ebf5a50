"""`cutefp4 cache` and `cutefp4 warmup`, with the real compiler on a tiny kernel."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cutefp4 import compile as kernel_cache
from cutefp4 import disk_cache, fingerprint, layer_plans
from cutefp4.cli import app
from cutefp4.errors import CacheError, CompileError, OperandError, RecipeError
from cutefp4.plan import from_json, to_json
from tests.tiny_kernel import TinyPlan

PLANS = [TinyPlan(arch, unused=7) for arch in ("sm_90a", "sm_100a")]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CUTEFP4_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CUTEFP4_COMPILE_WORKERS", "1")
    monkeypatch.setattr(fingerprint, "changed_source", lambda plan: None)
    kernel_cache.reset()
    yield tmp_path / "cache"
    kernel_cache.reset()


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_path(own_cache):
    assert run("cache", "path").strip() == str(own_cache)


def test_warm_up_list_and_clear(own_cache, tmp_path):
    file = tmp_path / "plans.json"
    file.write_text(json.dumps([to_json(plan) for plan in PLANS]))
    text = run("warmup", str(file))
    assert "2 compiled, 0 were there" in text and "1 processes" in text
    assert all(kernel_cache.is_stored(plan) for plan in PLANS)
    assert "0 compiled, 2 were there" in run("warmup", str(file))
    table = run("cache", "ls")
    assert "2 kernels" in table and "TinyPlan(threads=128, unused=7)" in table and "sm_100a" in table
    listed = json.loads(run("cache", "ls", "--json"))
    assert {from_json(plan) for plan in listed} == set(PLANS), "what ls prints is what warmup reads"
    assert "deleted 2 entries" in run("cache", "clear", "--yes")
    assert "0 kernels" in run("cache", "ls") and disk_cache.entries(own_cache) == []


def test_clear_asks(own_cache):
    kernel_cache.load(PLANS[0])
    result = CliRunner().invoke(app, ["cache", "clear"], input="n\n")
    assert result.exit_code == 1 and len(disk_cache.entries(own_cache)) == 1


def test_clear_of_a_directory_that_cannot_be_changed(monkeypatch):
    def fail(path):
        raise PermissionError("read-only")

    monkeypatch.setattr(disk_cache, "clear", fail)
    with pytest.raises(CacheError, match="read-only.*by hand"):
        run("cache", "clear", "-y")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ([], OperandError, "neither FILE nor --recipe"),
        (["plans.json", "--recipe", "te"], OperandError, "both FILE and --recipe"),
        (["missing.json"], CompileError, "missing.json.*cache ls --json"),
        (["--recipe", "te"], OperandError, "without --shape"),
        (["--recipe", "te", "--shape", "10x20"], OperandError, "MxNxK"),
        (["--recipe", "ten", "--shape", "16x16x16"], RecipeError, "'ten'"),
        (["--recipe", "te", "--shape", "16x16x16", "--dtype", "int8"], OperandError, "bf16, fp16, fp32"),
        (["--recipe", "te", "--shape", "16x16x16", "--arch", "sm_80"], OperandError, "sm_80.*sm_90a"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        run("warmup", *arguments)


@pytest.mark.parametrize("text", ["{", "{}", "[1, 2]", '[{"class": "cutefp4.recipe:QuantRecipe"}]', '"plan"'])
def test_a_file_without_plans(tmp_path, text):
    (tmp_path / "plans.json").write_text(text)
    with pytest.raises(CompileError, match="plan"):
        run("warmup", str(tmp_path / "plans.json"))


def test_layers_are_turned_into_plans_without_a_compiler(monkeypatch):
    asked = []
    monkeypatch.setattr("cutefp4.cli.warmup.compile_all", lambda plans, **options: asked.extend(plans) or EMPTY)
    run("warmup", "--recipe", "per_token", "--shape", "256x512x1024", "--arch", "sm_90a", "--arch", "sm_100a")
    assert {plan.arch for plan in asked} == {"sm_90a", "sm_100a"} and len(set(asked)) == len(asked)
    assert any(type(plan).__name__ == "CastRowsPlan" for plan in asked)
    assert kernel_cache.stats().misses == 0


class EMPTY:
    compiled, outcomes, seconds, workers = 0, (), 0.0, 0


def test_recorded_plans_are_those_of_the_real_call():
    import torch

    from cutefp4 import launch, ops
    from cutefp4.recipe import PER_TOKEN

    found = layer_plans.linear_layer(PER_TOKEN, 64, 128, 256, torch.bfloat16, "sm_90a")
    launched = []

    def loader(plan, compiled):
        launched.append(plan)
        return lambda *arguments: None

    with kernel_cache.use_loader(loader), launch.cpu_target("sm_90a", 132):
        ops.OPERATIONS["quantize"](torch.empty(64, 256, dtype=torch.bfloat16), PER_TOKEN.x)
    assert launched and set(launched) <= set(found.plans)
