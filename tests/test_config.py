"""What the configurations of both architectures have in common."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cutefp4.budget_sm90 import sm90_budget_table
from cutefp4.config import Sm90Config, Sm90Operand
from cutefp4.config_sm100 import Sm100Config, budget_table, sm100_problems
from cutefp4.legality_sm90 import sm90_problems


def hopper(config: Sm90Config) -> list[str]:
    return sm90_problems(config, Sm90Operand(config.tile_m), Sm90Operand(config.tile_n))


@pytest.mark.parametrize(
    "config, problems", [(Sm90Config(), hopper), (Sm100Config(), sm100_problems)], ids=["sm_90a", "sm_100a"]
)
def test_defaults_run_and_reasons_name_the_field(config, problems):
    assert problems(config) == []
    for field in ("tile_m", "tile_n"):
        found = problems(replace(config, **{field: 1}))
        assert any(f"{field}=1" in reason for reason in found), found


def test_tables_name_every_budget():
    operands = Sm90Operand(Sm90Config().tile_m), Sm90Operand(Sm90Config().tile_n)
    for table in (sm90_budget_table(Sm90Config(), *operands), budget_table(Sm100Config())):
        assert "shared memory" in table and "registers" in table
