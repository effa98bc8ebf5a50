"""The Hopper GEMM's configurations: why one is illegal, what the heuristic takes, budgets, the compile key."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest

from cutefp4.budget_sm90 import SM90_REGISTERS, SM90_SMEM_BYTES, sm90_budget_table, sm90_registers, sm90_smem
from cutefp4.config import Sm90Config, Sm90Operand
from cutefp4.epilogue import default_epilogue
from cutefp4.gemm_plan import Sm90GemmPlan
from cutefp4.heuristics import sm90
from cutefp4.legality_sm90 import sm90_problems

W4A4 = (Sm90Operand(256), Sm90Operand(128))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tile_m": 192}, "not a multiple of 64 \\* consumer_groups"),
        ({"tile_m": 384, "consumer_groups": 3, "tile_n": 96}, "tile_n=96 neither divides 128"),
        ({"tile_n": 512}, "not a wgmma N"),
        ({"k_blocks": 3}, "k_blocks=3 is not one of 1, 2, 4"),
        ({"decode_to": "float32"}, "decode_to='float32' is not one of"),
        ({"mma_stages": 1}, "leaves nothing to overlap"),
        ({"splits": 0}, "splits=0 is below 1"),
        ({"tile_n": 16}, "16 rows cannot be shared"),
        ({"tile_n": 256, "fragment_registers": 32}, "a consumer needs about"),
        ({"load_stages": 12}, "bytes of shared memory"),
        ({"store_passes": 8}, "4 boxes of D per warpgroup cannot be stored in 8 passes"),
        ({"stream_k": True, "splits": 2}, "choose one of them"),
        ({"split_pair": True}, "needs splits=2 or 4 and cluster=1, not 1 and 1"),
        ({"split_pair": True, "splits": 2, "cluster": 2}, "needs splits=2 or 4 and cluster=1, not 2 and 2"),
        ({"split_pair": True, "splits": 2, "tile_n": 16, "swap_ab": True}, "into 2: not into multiples of 16 columns"),
        ({"split_pair": True, "splits": 4, "tile_n": 160, "decode_groups": 0, "swap_ab": True}, "tile_n=160 into 4"),
        ({"split_pair": True, "splits": 2, "tile_n": 64, "mma_stages": 3}, "32768 bytes .* the MMA ring's 24576"),
        ({"helped": True}, "helped needs split_pair"),
        ({"tile_n": 144, "decode_groups": 0, "cluster": 2, "swap_ab": True}, "slices multiples of 64 rows"),
        ({"tile_n": 144, "decode_groups": 0}, "tile_n=144 neither divides 128"),
        ({"tile_n": 192}, "tile_n=192 neither divides 128"),
        ({"tile_n": 32, "k_blocks": 2}, "does not fill the panels"),
        ({"decode_groups": 0}, "nobody decodes it"),
        ({"staged": True}, "a staged operand is decoded before the kernel"),
        ({"cluster": 2}, "only a shared operand of 16 bits is shared in a cluster"),
        (
            {"fragment_registers": 16, "mma_stages": 2, "decode_groups": 0, "steps_per_group": 1, "tile_m": 128},
            "nobody",
        ),
    ],
)
def test_each_illegal_configuration_says_why(change, reason):
    config = replace(Sm90Config(), **change)
    operands = Sm90Operand(config.tile_m), Sm90Operand(config.tile_n)
    assert any(re.search(reason, problem) for problem in sm90_problems(config, *operands))


def test_operands_must_fit_the_configuration():
    assert sm90_problems(Sm90Config(), *W4A4) == []
    assert (
        "16-bit activations must be the shared operand"
        in sm90_problems(Sm90Config(), Sm90Operand(256, 16, "none"), W4A4[1])[0]
    )
    assert "are not tile_m and tile_n" in sm90_problems(Sm90Config(), Sm90Operand(128), W4A4[1])[0]
    sixteen = Sm90Operand(128, 16, "none")
    assert "a shared operand of 16 bits needs no decoding" in sm90_problems(Sm90Config(), W4A4[0], sixteen)[0]
    shallow = replace(sm90.WIDE, staged=True, fragment_registers=32, mma_stages=2)
    operands = Sm90Operand(128), Sm90Operand(256, 16, "none")
    assert any("ptxas serialises" in p for p in sm90_problems(replace(shallow, mma_stages=4), *operands))
    assert sm90_problems(replace(shallow, mma_stages=4, fragment_registers=16), *operands) == []
    assert "2 stages are read by running wgmma; mma_stages=2" in sm90_problems(shallow, *operands)
    two = replace(Sm90Config(), decode_groups=2)
    assert any("compact" in p for p in sm90_problems(two, Sm90Operand(256, 4, "compact"), W4A4[1]))


SHAPES = [(m, n, k) for m in (1, 7, 16, 63, 129, 300, 1024, 8192) for n, k in ((1, 64), (2048, 7168), (7168, 16384))]


@pytest.mark.parametrize("activations", ["nvfp4", "bfloat16", "float16"])
@pytest.mark.parametrize("scales", ["tiled", "compact"])
@pytest.mark.parametrize("staged", [2, 4, 0])
def test_every_candidate_is_legal_and_within_budget(activations, scales, staged):
    for m, n, k in SHAPES:
        shape = sm90.GemmShape(m, n, k, 1, activations, scales, scales, staged)
        found = sm90.candidates(shape)
        assert found
        for config in found:
            operands = shape.operands(config)
            assert sm90_problems(config, *operands, staged) == []
            assert sm90_smem(config, *operands, staged).total <= SM90_SMEM_BYTES
            assert sm90_registers(config, scales == "compact").total(config) <= SM90_REGISTERS
            assert config.decode_to == (activations if activations != "nvfp4" else "float16")


def test_batch_invariant_choice_does_not_depend_on_m():
    chosen = {sm90.choose(sm90.GemmShape(m, 2048, 7168), batch_invariant=True) for m in (1, 16, 300, 8192)}
    assert len(chosen) == 1
    assert not chosen.pop().shares_k


def test_small_m_reads_the_weight_on_every_sm():
    config = sm90.choose(sm90.GemmShape(1, 7168, 16384))
    assert config.swap_ab and config.stream_k and config.tile_n == 16
    large = sm90.choose(sm90.GemmShape(8192, 8192, 8192))
    assert (large.tile_m, large.tile_n, large.staged, large.shares_k) == (128, 256, True, False)


def test_the_smaller_operand_is_staged():
    for m, n in ((16384, 2048), (2048, 16384)):
        config = sm90.choose(sm90.GemmShape(m, n, 4096))
        assert config.staged and config.swap_ab == (m < n)


def test_staging_is_not_worth_it_for_few_rows_of_the_other_operand():
    # SwiGLU needs the columns of D, the weight, on the shared operand: 470 MB of it for 16 rows.
    config = sm90.choose(sm90.GemmShape(16, 28672, 8192, staged_store=0, halves_columns=True))
    assert not config.staged and not config.swap_ab


def test_every_field_of_a_configuration_is_part_of_the_key():
    plan = Sm90GemmPlan("sm_90a", Sm90Config(), default_epilogue(1.0))
    changes = {
        "decode_to": "bfloat16",
        "swap_ab": True,
        "stream_k": True,
        "staged": True,
        "split_pair": True,
        "helped": True,
    }
    for f in fields(Sm90Config):
        value = changes.get(f.name, getattr(plan.config, f.name) + 1 if f.name not in changes else None)
        assert replace(plan, config=replace(plan.config, **{f.name: value})).key != plan.key, f.name
    for change in ({"out_dtype": "float32"}, {"store": "pairs"}, {"activations": "float16"}, {"b_scales": "compact"}):
        assert replace(plan, **change).key != plan.key
    assert replace(plan, epilogue=default_epilogue(2.0)).key != plan.key


def test_budget_table_names_every_part():
    table = sm90_budget_table(Sm90Config(), *W4A4)
    assert "register_operand" in table and f"of {SM90_SMEM_BYTES}" in table and "consumer registers" in table
