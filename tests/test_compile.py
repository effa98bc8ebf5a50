"""The real compiler behind the cache: both architectures in one process and without a GPU, pinned settings, loading."""

from __future__ import annotations

import re
import time

import pytest

from cutefp4 import compile as kernel_cache
from cutefp4 import compile_pool, dsl, fingerprint
from cutefp4.errors import CompileError
from cutefp4.plan import ARCHS
from cutefp4.sass import disassemble
from cutefp4.warmup import warmup
from tests.tiny_kernel import BrokenPlan, EndlessPlan, FatalPlan, GpuBlindPlan, TinyPlan


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CUTEFP4_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CUTEFP4_JIT", raising=False)
    monkeypatch.setattr(fingerprint, "changed_source", lambda plan: None)
    kernel_cache.reset()
    yield tmp_path / "cache"
    kernel_cache.reset()


@pytest.mark.parametrize("arch", ARCHS)
def test_every_arch_compiles_in_one_process(arch):
    compiled = kernel_cache.artifacts(TinyPlan(arch))
    assert f".target {arch}\n" in compiled.ptx
    assert compiled.cubin in compiled.object, "the emulator finds a kernel's PTX by the cubin inside the object"
    assert compiled.dynamic_shared_bytes == (0,)
    assert len(compiled.kernels) == 1 and f".entry {compiled.kernels[0]}(" in compiled.ptx


def test_the_target_at_trace_time_is_the_plans():
    from cutlass.cutlass_dsl import CuTeDSL

    seen = []

    class TracedPlan(TinyPlan):
        def load_builder(self):
            build = super().load_builder()
            return lambda plan: (seen.append(CuTeDSL._get_dsl().envar.arch), build(plan))[1]

    for arch in ("sm_90a", "sm_100a", "sm_90a"):
        dsl.compile_plan(TracedPlan(arch))
    assert seen == ["sm_90a", "sm_100a", "sm_90a"]


@pytest.mark.parametrize(
    "setting, value",
    [("enable_assertions", True), ("debug", True), ("loc_tracebacks", 3), ("_arch", "sm_80"), ("enable_pyir", True)],
)
def test_settings_of_the_environment_change_no_code(setting, value):
    from cutlass.cutlass_dsl import CuTeDSL

    settings = CuTeDSL._get_dsl().envar
    plain = dsl.compile_plan(TinyPlan("sm_90a"))
    before = getattr(settings, setting)
    try:
        setattr(settings, setting, value)
        other = dsl.compile_plan(TinyPlan("sm_90a"))
        assert getattr(settings, setting) == value, "the setting is back after the compile"
    finally:
        setattr(settings, setting, before)
    assert other.ptx == plain.ptx and other.cubin == plain.cubin


def test_line_information_changes_no_instruction(monkeypatch):
    """It is on in every compile: profilers and the emulator name Python lines, and the code is the same."""
    code = re.compile(r"/\*[0-9a-f]{4,}\*/.*")
    with_lines = dsl.compile_plan(TinyPlan("sm_90a"))
    assert ".loc" in with_lines.ptx and "tests/tiny_kernel.py" in with_lines.ptx
    options = tuple(option for option in dsl._DEFAULT_OPTIONS if "line-info" not in option)
    monkeypatch.setattr(dsl, "_DEFAULT_OPTIONS", options)
    without = dsl.compile_plan(TinyPlan("sm_90a"))
    assert ".loc" not in without.ptx
    assert code.findall(disassemble(with_lines.cubin)) == code.findall(disassemble(without.cubin))


@pytest.mark.parametrize("anonymous", [True, False])
def test_loading_with_and_without_anonymous_files(monkeypatch, anonymous):
    compiled = kernel_cache.artifacts(TinyPlan("sm_90a"))
    if not anonymous:
        monkeypatch.delattr(dsl.os, "memfd_create")
    assert callable(dsl.load_object(compiled.object, TinyPlan("sm_90a").symbol))


def test_every_setting_that_changes_code_is_pinned():
    """The DSL says which of its settings change code; an upgrade that adds one is covered without a change here."""
    from cutlass.cutlass_dsl import CuTeDSL

    settings = CuTeDSL._get_dsl().envar
    declared = [e.attribute for e in settings._ENV_VAR_SPEC if e.affects_compile and isinstance(e.source, str)]
    assert {"debug", "lineinfo", "enable_assertions", "compiler_opt", "_arch"} <= set(declared)
    before = {name: getattr(settings, name) for name in declared}
    with dsl._default_settings("sm_90a"):
        assert settings._arch == "sm_90a" and not settings.enable_assertions and settings.compiler_opt == ""
    assert {name: getattr(settings, name) for name in declared} == before


def test_a_dsl_without_declared_settings_is_refused(monkeypatch):
    from cutlass.cutlass_dsl import CuTeDSL

    monkeypatch.setattr(CuTeDSL._get_dsl(), "envar", object())
    with pytest.raises(CompileError, match="nvidia-cutlass-dsl >= 4.8"):
        dsl.compile_plan(TinyPlan("sm_90a"))


def test_loaded_from_disk_as_from_the_compiler():
    plan = TinyPlan("sm_90a", threads=64)
    first = kernel_cache.get(plan)
    kernel_cache.reset()
    second = kernel_cache.get(plan)
    assert kernel_cache.stats().disk_hits == 1 and kernel_cache.stats().compiles == 0
    import torch

    x = torch.ones(5)
    for kernel in (first, second):
        with pytest.raises(ValueError, match="expected device_type=cuda"):
            kernel(x, x, 2.0)
        with pytest.raises(TypeError):
            kernel(x)


def test_disk_hit_is_fast():
    """CPU time, which other processes on the machine do not lengthen; perf/bench_launch.py measures wall time."""
    plans = [TinyPlan("sm_90a", unused=i) for i in range(5)]
    for plan in plans:
        kernel_cache.load(plan)
    kernel_cache.reset()
    seconds = []
    for plan in plans:
        start = time.process_time()
        kernel_cache.get(plan)
        seconds.append(time.process_time() - start)
    assert sorted(seconds)[2] < 0.030


def test_an_object_that_does_not_load():
    with pytest.raises(CompileError, match="cutefp4 cache clear"):
        dsl.load_object(b"\x7fELF" + bytes(100), "cutefp4_nothing")
    compiled = kernel_cache.artifacts(TinyPlan("sm_90a"))
    with pytest.raises(CompileError, match="symbol cutefp4_another"):
        dsl.load_object(compiled.object, "cutefp4_another")


def test_failure_names_the_plan_and_the_cause():
    with pytest.raises(CompileError, match="BrokenPlan.*sm_90a did not compile: ZeroDivisionError: a bug") as error:
        kernel_cache.get(BrokenPlan("sm_90a"))
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    with pytest.raises(CompileError, match="TinyPlan.*threads=-3") as error:
        kernel_cache.get(TinyPlan("sm_90a", threads=-3))
    assert "\x1b" not in str(error.value)


def test_warmup_in_processes_that_see_no_gpu(monkeypatch, own_cache):
    """One run of the pool: GPU-blind workers, a worker that dies, a builder that fails, and good plans between them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    good = [GpuBlindPlan(arch, threads=64) for arch in ("sm_90a", "sm_100a")]
    with pytest.raises(CompileError) as error:
        warmup([good[0], FatalPlan("sm_90a"), BrokenPlan("sm_90a"), good[1], good[0]], workers=1)
    text = str(error.value)
    assert text.startswith("2 of 4 plans") and "exit code 9" in text and "a bug in a builder" in text
    assert all(kernel_cache.is_stored(plan) for plan in good)
    result = warmup(good)
    assert (result.compiled, result.workers) == (0, 0)
    assert kernel_cache.stats().compiles == 0 and kernel_cache.stats().disk_hits == 2
    kernel_cache.get(good[0])
    assert kernel_cache.stats().memory_hits == 1


def test_warmup_stops_at_its_deadline():
    """What was compiled before is kept, a plan that takes an hour is killed, one behind it is not started."""
    good, endless, behind = TinyPlan("sm_90a", threads=32), EndlessPlan("sm_90a"), TinyPlan("sm_90a", threads=96)
    warmup([good], load=False)
    begin = time.monotonic()
    result = warmup([good, endless, behind], workers=1, load=False, strict=False, deadline=begin + 5)
    assert time.monotonic() - begin < 60
    assert [outcome.error for outcome in result.outcomes] == [None, compile_pool.NO_TIME, compile_pool.NO_TIME]
    assert kernel_cache.is_stored(good) and not kernel_cache.is_stored(behind)


def test_processes_started_ahead_are_used_and_ended():
    with compile_pool.started_ahead(2):
        processes = [worker._process for worker in compile_pool._spare]
        result = warmup([TinyPlan("sm_90a", threads=32)], workers=1, load=False)
        assert result.compiled == 1 and len(compile_pool._spare) == 1
    assert not compile_pool._spare and len(processes) == 2
    assert sorted(process.poll() for process in processes) == [-9, 0]


def test_warmup_without_a_disk_compiles_here(monkeypatch):
    monkeypatch.setenv("CUTEFP4_CACHE_DIR", "/proc/cutefp4")
    plans = [TinyPlan("sm_90a", unused=i) for i in range(2)]
    with pytest.warns(UserWarning, match="in memory only"):
        result = warmup(plans)
    assert (result.compiled, result.workers) == (2, 0)
    kernel_cache.get(plans[1])
    assert kernel_cache.stats().memory_hits == 1


def test_worker_count_follows_memory_and_the_variable(monkeypatch):
    class Memory:
        available = int(2.5 * compile_pool.WORKER_BYTES)

    monkeypatch.setattr(compile_pool.psutil, "virtual_memory", lambda: Memory)
    monkeypatch.setattr(compile_pool.psutil.Process, "cpu_affinity", lambda self: list(range(64)))
    assert compile_pool.worker_count(100) == 2
    assert compile_pool.worker_count(1) == 1
    Memory.available = 0
    assert compile_pool.worker_count(100) == 1
    monkeypatch.setenv("CUTEFP4_COMPILE_WORKERS", "5")
    assert compile_pool.worker_count(100) == 5
    assert compile_pool.worker_count(3) == 3
