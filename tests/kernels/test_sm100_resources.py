"""Cubins of every Blackwell configuration that the heuristic ships: no spills, budgets kept, bytes counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cutefp4.compile_report import compile_report
from cutefp4.config_sm100 import ROLES, SCHEDULERS, SM100_SMEM_BYTES, Sm100Config, stage_bytes
from cutefp4.epilogue import default_epilogue
from cutefp4.gemm_plan_sm100 import Sm100GemmPlan
from cutefp4.heuristics.sm100 import CANDIDATES, SMALL, with_most_stages
from tests.kernels.blackwell import CONSTANT, Problem, guarded, launch, operand

PLAIN = default_epilogue(CONSTANT)
RICH = default_epilogue(CONSTANT, bias="bfloat16", activation="gelu", c="float32")


def report(arch: str, config: Sm100Config, tree, out_dtype: str):
    return compile_report(Sm100GemmPlan(arch, config, tree, out_dtype, "elements" if config.swap_ab else "tma"))


@pytest.mark.parametrize("arch", ["sm_100a", "sm_103a"])
@pytest.mark.parametrize(
    "config", [CANDIDATES[0], CANDIDATES[4], CANDIDATES[6]], ids=lambda c: f"{c.tile_m}x{c.tile_n}"
)
def test_c_through_shared_memory_and_vector_stores(config, arch):
    config = with_most_stages(config, 2, 1)
    assert_within_budget(compile_report(Sm100GemmPlan(arch, config, RICH, "float32", "tma", tile_load="tma")))
    assert_within_budget(compile_report(Sm100GemmPlan(arch, config, RICH, "bfloat16", "vectors", tile_load="tma")))


def assert_within_budget(found) -> None:
    assert found.spills == 0, found
    assert found.kernels[0].registers <= min(role.registers for role in ROLES), found
    assert found.kernels[0].stack_bytes == 0, found


@pytest.mark.parametrize("arch", ["sm_100a", "sm_103a"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("config", CANDIDATES, ids=lambda c: f"{c.tile_m}x{c.tile_n}")
def test_large_configurations(config, scheduler, arch):
    assert_within_budget(report(arch, replace(config, scheduler=scheduler), PLAIN, "bfloat16"))


@pytest.mark.parametrize("arch", ["sm_100a", "sm_103a"])
@pytest.mark.parametrize("config", SMALL, ids=lambda c: f"{c.tile_m}x{c.tile_n}s{c.splits}")
def test_small_configurations(config, arch):
    """Without the disassembler, which these many need not wait for: no stack, hence no spills."""
    found = report(arch, config, PLAIN, "bfloat16").resources
    assert [kernel.stack_bytes for kernel in found] == [0]
    assert found[0].registers <= min(role.registers for role in ROLES)


@pytest.mark.parametrize("config", [CANDIDATES[0], SMALL[1]], ids=["256x256", "swapped split"])
def test_the_richest_epilogue(config):
    assert_within_budget(report("sm_100a", config, RICH, "float32"))


def test_instructions_that_the_code_is_written_for():
    """Two columns per multiplication, 32 bytes per store, and the hardware's work queue."""
    config = replace(CANDIDATES[0], scheduler="clc")
    found = compile_report(Sm100GemmPlan("sm_100a", config, PLAIN, "float32", "vectors"))
    assert found.sass.count("FMUL2") == 3 * 64 // 2 and "FMUL " not in found.sass
    assert "UGETNEXTWORKID.BROADCAST" in found.sass
    assert found.sass.count(".256 ") == 64 // 8


def test_bytes_moved_are_those_of_the_budget():
    """TMA brings each stage once and stores D once; each product is computed once; tensor memory is read once."""
    m, n, k = 256, 512, 1024
    config = Sm100Config(tile_n=256, stages=3)
    problem = Problem(m, n, k, config=config, sms=1)
    a, b = operand(m, k, 1), operand(n, k, 2)
    d, _ = guarded((1, m, n), problem.plan_dtype())
    plan = problem.plan()
    counters = launch(plan, a, b, {"alpha_a": a.amax, "alpha_b": b.amax, "d": d}, "sm_100a", 1, None).counters
    tiles, stages = (m // 128) * (n // 256), k // 256
    assert counters["async_load_bytes"] == tiles * stages * stage_bytes(config).total
    assert counters["async_store_bytes"] == m * n * 2
    assert counters["mma_macs"] == m * n * k
    assert counters["local_bytes"] == 0 and counters["bank_conflicts"] == 0
    assert SM100_SMEM_BYTES == 232448
