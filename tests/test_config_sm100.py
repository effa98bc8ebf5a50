"""Budgets and legality of the Blackwell configurations, and the choice between them."""

from __future__ import annotations

import itertools

import pytest

from cutefp4.config_sm100 import (
    ROLES,
    SM100_REGISTERS,
    SM100_SMEM_BYTES,
    THREADS,
    TILE_NS,
    TMEM_COLUMNS,
    Sm100Config,
    budget_table,
    legal_configs,
    most_stages,
    sm100_problems,
    sm100_smem,
    tmem_layout,
)
from cutefp4.heuristics.sm100 import CANDIDATES, SMALL, choose, with_most_stages
from cutefp4.schedule_model_sm100 import GemmShape, estimate

EVERY = [
    Sm100Config(128 * group, tile_n, m, n)
    for group, tile_n, m, n in itertools.product((1, 2), TILE_NS, (1, 2, 4), (1, 2, 4))
]


@pytest.mark.parametrize("config", EVERY, ids=str)
def test_tensor_memory(config):
    """Accumulators, then scales, within 512 columns; two accumulators share at most one panel."""
    layout = tmem_layout(config)
    assert layout.used <= TMEM_COLUMNS
    second_end = layout.acc_step + config.tile_n
    assert config.tile_n - layout.acc_step == (64 if layout.overlapped else 0)
    assert second_end <= layout.sfa and layout.sfa + 16 == layout.sfb
    assert layout.overlapped == (config.tile_n == 256)


@pytest.mark.parametrize("config", EVERY, ids=str)
def test_shared_memory(config):
    full = with_most_stages(config)
    if config.cluster_m % config.cta_group:
        assert any("even cluster_m" in p for p in sm100_problems(full))
        return
    assert not sm100_problems(full) and sm100_smem(full).total <= SM100_SMEM_BYTES
    assert full.stages >= 3
    over = Sm100Config(config.tile_m, config.tile_n, config.cluster_m, config.cluster_n, most_stages(config) + 1)
    assert any(str(most_stages(config)) in p for p in sm100_problems(over))


def test_registers_of_the_roles():
    assert sum(role.warps for role in ROLES) * 32 == THREADS
    assert THREADS * max(role.registers for role in ROLES) <= SM100_REGISTERS


def test_reasons():
    for config, reason in (
        (Sm100Config(tile_m=64), "tile_m=64"),
        (Sm100Config(tile_n=96), "tile_n=96"),
        (Sm100Config(cluster_m=3), "cluster_m=3"),
        (Sm100Config(cluster_n=8), "cluster_n=8"),
        (Sm100Config(stages=1), "stages=1"),
        (Sm100Config(splits=0), "splits=0"),
        (Sm100Config(raster_group=0), "raster_group=0"),
    ):
        assert [p for p in sm100_problems(config) if reason in p], config


def test_every_legal_configuration_is_listed_once():
    listed = list(legal_configs())
    assert len(set(listed)) == len(listed)
    for config in EVERY:
        full = with_most_stages(config)
        assert (full in listed) == (not sm100_problems(full))
    assert {c.stages for c in legal_configs(splits=(1,), stages=(2, 3))} == {2, 3}


def test_table():
    text = budget_table(Sm100Config(256, 256, 2, 1, stages=4))
    assert "512 of 512 columns" in text or "496 of 512 columns" in text
    assert "overlapped" in text and "epilogue" in text


def test_every_candidate_is_legal():
    for config in (*CANDIDATES, *SMALL):
        assert not sm100_problems(config), config


@pytest.mark.parametrize("m", [1, 16, 64, 128, 300, 4096, 16384])
@pytest.mark.parametrize("nk", [(7168, 16384), (4096, 4096), (300, 256), (8, 32)], ids=str)
def test_choice_fits_the_problem(m, nk):
    n, k = nk
    for sms in (1, 2, 8, 148):
        config = choose(GemmShape(m, n, k), sms)
        assert not sm100_problems(config)
        assert config.cluster_size <= sms and config.splits <= -(-k // 256)


def test_launch_control_where_a_cluster_gets_several_tiles():
    assert choose(GemmShape(8192, 8192, 8192), 148).scheduler == "clc"
    assert choose(GemmShape(1, 7168, 16384), 148).scheduler == "static"
    assert choose(GemmShape(1, 7168, 16384), 8).scheduler == "clc"


def test_predicted_targets():
    """Large products at 80 % of the peak, small M at 75 % of the memory's rate, epilogue hidden: predicted."""
    large = GemmShape(8192, 8192, 8192)
    config = choose(large, 148)
    assert estimate(config, large).mma_share >= 0.8
    assert config.tile_m == config.tile_n == 256 and config.stages >= 3
    for m in (1, 16):
        small = GemmShape(m, 7168, 16384)
        assert estimate(choose(small, 148), small).hbm_share >= 0.75
    short = estimate(config, GemmShape(16384, 7168, 2048))
    assert short.epilogue <= 0.6 * 8 * short.stage["mma"]
