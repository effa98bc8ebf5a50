"""Blackwell configurations: the legality predicate's list, each of them runnable, in the emulator, bit for bit.

Here a few in which every pair of choices occurs; `cutefp4 verify --full --arch sm_100a --area configurations` runs all.
"""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from cutefp4.acceptance.configurations import ConfigurationCase, every_case, legal_stores, paired_cases
from cutefp4.acceptance.machine import Machine
from cutefp4.config_sm100 import Sm100Config, legal_configs

PAIRS = paired_cases()


@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.name())
def test_pairs_of_choices(case):
    case.check(Machine("sm_100a"))


def test_the_pairs_hold_every_value_that_is_legal():
    legal = list(legal_configs(splits=(1, 2, 5), stages=(2, 3)))
    for field in fields(Sm100Config):
        values = {getattr(case.config, field.name) for case in PAIRS}
        assert values == {getattr(config, field.name) for config in legal}, field.name
    assert {case.store for case in PAIRS} == {store for config in legal for store in legal_stores(config)}


def test_the_full_matrix_holds_every_legal_configuration():
    """Of configurations that differ in the number of stages alone it holds one; every number of stages occurs."""
    cases, legal = every_case(), list(legal_configs())
    assert {replace(case.config, stages=0) for case in cases} == {replace(config, stages=0) for config in legal}
    assert {case.config.stages for case in cases} == {config.stages for config in legal}
    assert {case.store for case in cases} == {store for config in legal for store in legal_stores(config)}
    assert len({case.id for case in cases}) == len(cases)


def test_shapes_have_tails_and_more_tiles_than_ctas():
    for case in (*PAIRS, ConfigurationCase()):
        m, n, k = case.shape()
        rows, columns = (n, m) if case.config.swap_ab else (m, n)
        assert rows % 128 and columns % case.config.tile_n and k % 256
        assert rows > 128 * case.config.cluster_m and columns > case.config.tile_n * case.config.cluster_n
