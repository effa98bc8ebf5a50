"""The Hopper GEMM for few rows: how work is shared, what its code looks like, and results against the oracle.

Operands have few significant bits (tests/kernels/hopper.py), so that sums are exact in any order. Configurations are
forced here, so that small problems go through every path; which one a shape gets is the heuristic's business.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest
import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import gemm_choice_sm90 as choice
from cutefp4 import ops_gemm_sm90 as ops
from cutefp4 import ops_gemm_small_m as small
from cutefp4.config_small_m import (
    SMEM_BYTES,
    UNIT,
    SmallMConfig,
    activation_bytes,
    clusters_at_once,
    partial_bytes,
    ring_bytes,
    row_tile_count,
    small_m_problems,
    split_of,
)
from cutefp4.epilogue import default_epilogue
from cutefp4.format import gemm_constant
from cutefp4.gemm_plan_small_m import Sm90SmallMPlan
from cutefp4.gemm_request_sm90 import GemmRequest
from cutefp4.heuristics import small_m
from cutefp4.sass import disassemble
from tests.compare import assert_same_bits
from tests.kernels.hopper import DEVICES, check_w4a16, expect, operand, poisoned, running_on, weight_values

# ---------------------------------------------------------------- sharing the work


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_tiles": 3}, "n_tiles=3 is not one of 1, 2, 4, 8"),
        ({"cluster": 16}, "cluster=16 is not one of"),
        ({"n_tiles": 2, "columns": 4}, "only a single n tile may be narrower"),
        ({"separate": True}, "separate with columns=8: it takes one row of A"),
        ({"row_warps": 32, "k_warps": 2}, "2048 threads"),
        ({"row_warps": 32}, "registers"),
        ({"depth": 16, "k_warps": 1, "row_tiles": 4}, "bytes of shared memory"),
    ],
)
def test_each_illegal_configuration_says_why(change, reason):
    config = replace(SmallMConfig(), **change)
    found = small_m_problems(config, 8, split_of(config, 7168, 16384, 1, 132))
    assert any(re.search(reason, problem) for problem in found), found


def test_more_rows_than_tiles_are_refused():
    config = SmallMConfig(n_tiles=2)
    assert "M = 17 rows do not fit" in small_m_problems(config, 17, split_of(config, 256, 256, 1, 132))[0]


SHAPES = [(1, 16), (7, 48), (300, 208), (2048, 7168), (7168, 2048), (7168, 16384), (8192, 8192), (28672, 8192)]


@pytest.mark.parametrize("m", [1, 8, 9, 16, 17, 32, 33, 64])
@pytest.mark.parametrize("activations", ["nvfp4", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_candidate_is_legal_and_shares_everything_once(m, activations, batch):
    for n, k in SHAPES:
        for config in small_m.candidates(m, n, k, batch, activations, 132):
            s = split_of(config, n, k, batch, 132)
            assert small_m_problems(config, m, s) == []
            assert activation_bytes(config, s) + partial_bytes(config, s) + ring_bytes(config) <= SMEM_BYTES
            assert s.tiles == row_tile_count(n)
            # Every row tile is in one cluster, every cluster has one, and every K unit is in one CTA.
            assert (s.groups - 1) * s.group_tiles < s.tiles <= s.groups * s.group_tiles
            assert s.cta_units * config.cluster * UNIT >= k
            assert s.pass_units % config.round_units == 0 and s.passes * s.pass_units >= s.cta_units


def test_row_tiles_hold_every_row_once():
    for rows in (1, 3, 31, 32, 33, 127, 128, 129, 300):
        seen = sorted(
            i // 8 * 128 + 4 * (i % 8) + 32 * q + r
            for i in range(row_tile_count(rows))
            for q in range(4)
            for r in range(4)
        )
        assert [row for row in seen if row < rows] == list(range(rows))


def test_small_m_reads_the_weight_on_every_sm():
    for n, k in ((7168, 16384), (8192, 8192)):
        config = small_m.choose(1, n, k, 1, "nvfp4", 132)
        s = split_of(config, n, k, 1, 132)
        assert s.groups * config.cluster >= 112
    assert small_m.best(65, 8192, 8192, 1, "nvfp4", 132) is None


def test_what_was_not_measured_to_be_faster_is_not_dispatched():
    assert small_m.choose(17, 8192, 8192, 1, "nvfp4", 132) is None
    assert small_m.choose(16, 8192, 131072, 1, "nvfp4", 132) is None  # four passes over the activations
    assert small_m.best(17, 8192, 8192, 1, "nvfp4", 132) is not None


def test_clusters_at_once_are_those_that_an_h200_reported():
    measured = {(2, 1): 66, (2, 2): 132, (4, 1): 30, (8, 1): 15, (8, 2): 30}
    assert {key: clusters_at_once(*key, 132) for key in measured} == measured
    for config in small_m.candidates(1, 7168, 16384, 1, "nvfp4", 132):
        assert split_of(config, 7168, 16384, 1, 132).groups <= clusters_at_once(config.cluster, 1, 132)


def test_every_field_of_a_plan_is_part_of_the_key():
    plan = Sm90SmallMPlan("sm_90a", SmallMConfig(), default_epilogue(1.0))
    for f in fields(SmallMConfig):
        value = {"decode_to": "bfloat16", "separate": True, "early": 3, "chunks": 3}.get(f.name, 2)
        assert replace(plan, config=replace(plan.config, **{f.name: value})).key != plan.key, f.name
    for change in ({"out_dtype": "float32"}, {"activations": "float16"}, {"b_scales": "compact"}, {"vector": 8}):
        assert replace(plan, **change).key != plan.key


# ---------------------------------------------------------------- generated code


@pytest.mark.parametrize(("m", "activations"), [(1, "nvfp4"), (16, "bfloat16"), (16, "nvfp4")])
def test_code_has_no_spills_and_loads_run_under_arithmetic(m, activations):
    config = small_m.choose(m, 7168, 16384, 1, activations, 132)
    tree = default_epilogue(1.0, "row" if activations == "nvfp4" else "none")
    plan = Sm90SmallMPlan("sm_90a", config, tree, activations=activations)
    code = disassemble(kernel_cache.artifacts(plan).cubin)
    assert not re.findall(r"\b(LDL|STL)\b", code)
    multiplication = "IMMA" if config.separate else "HMMA"
    kinds = re.findall(rf"\b(LDGSTS|{multiplication})\b", code)
    assert kinds.count(multiplication) == config.depth * config.row_tiles * config.n_tiles * 8
    # Loads of the mainloop lie between its multiplications, not behind them.
    runs = re.findall(r"(?:LDGSTS )+", " ".join(kinds) + " ")
    assert len(runs) >= config.depth


# ---------------------------------------------------------------- results


def force(monkeypatch, config: SmallMConfig, pass_units: int | None = None) -> None:
    """Every product that the kernel takes gets this configuration."""
    monkeypatch.setattr(small_m, "choose", lambda *_: config)
    monkeypatch.setattr(ops, "_plans", {})
    if pass_units:
        monkeypatch.setattr(small, "_split", lambda *args: replace(split_of(*args), pass_units=pass_units))


CASES = {
    "one_cta": (SmallMConfig(1, 8, 1, 2, 4, 1, 1), (1, 128, 256)),
    "cluster": (SmallMConfig(1, 8, 1, 4, 4, 1, 2), (8, 128, 2048)),
    "one_column": (SmallMConfig(1, 1, 1, 2, 4, 1, 2), (1, 100, 1040)),
    "two_columns": (SmallMConfig(1, 2, 1, 2, 2, 2, 1), (2, 40, 528)),
    "four_columns": (SmallMConfig(1, 4, 1, 2, 2, 2, 1), (3, 40, 1296)),
    "k_warps": (SmallMConfig(1, 8, 1, 2, 2, 2, 4), (3, 300, 1040)),
    "one_block": (SmallMConfig(1, 8, 1, 1, 1, 1, 1), (7, 1, 16)),
    "two_n_tiles": (SmallMConfig(2, 8, 2, 3, 2, 1, 2), (9, 63, 208)),
    "four_n_tiles": (SmallMConfig(4, 8, 2, 2, 2, 2, 4), (32, 264, 1024)),
    "eight_n_tiles": (SmallMConfig(8, 8, 2, 2, 2, 1, 2), (63, 136, 352)),
    "ragged_k": (SmallMConfig(1, 8, 1, 3, 3, 1, 2), (5, 200, 1216)),
    "separate": (SmallMConfig(1, 1, 1, 2, 4, 1, 2, separate=True, early=1), (1, 100, 1040)),
    "separate_k_warps": (SmallMConfig(1, 1, 1, 3, 2, 2, 4, separate=True, early=0), (1, 300, 1216)),
    "separate_row_tiles": (SmallMConfig(1, 1, 2, 2, 2, 1, 1, separate=True, early=4), (1, 72, 592)),
    "separate_one_block": (SmallMConfig(1, 1, 1, 1, 1, 1, 1, separate=True), (1, 1, 16)),
    "late_weight": (SmallMConfig(2, 8, 1, 3, 2, 1, 2, early=0), (9, 63, 1136)),
    "early_weight": (SmallMConfig(1, 8, 1, 4, 2, 1, 2, early=16), (3, 63, 1136)),
    "whole_lines": (SmallMConfig(2, 8, 2, 4, 2, 2, 2, chunks=1), (9, 200, 1216)),
    "whole_lines_separate": (SmallMConfig(1, 1, 2, 2, 2, 2, 2, separate=True, early=1, chunks=3), (1, 300, 3136)),
    "half_words": (SmallMConfig(1, 8, 1, 3, 3, 1, 2), (5, 36, 1184)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["tiled", "compact"])
@pytest.mark.parametrize("name", CASES)
def test_tails_and_scale_layouts(monkeypatch, device, name, layout):
    config, (m, n, k) = CASES[name]
    force(monkeypatch, config)
    a, b = operand(m, k, 1, layout=layout, device=device), operand(n, k, 2, "tensor", layout=layout, device=device)
    for seed in (None, 3) if device == "cpu" else (None,):
        d = poisoned(m, n, dtype=torch.float32, device=device)
        with running_on(device, seed=seed):
            ops.gemm(a, b, out=d, out_dtype=torch.float32)
        assert_same_bits(d.cpu(), expect(a, b, out_dtype=torch.float32))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize(("m", "columns", "cluster"), [(7, 8, 1), (7, 8, 2), (1, 1, 2)])
def test_activations_that_need_several_passes(monkeypatch, device, seed, m, columns, cluster):
    force(monkeypatch, SmallMConfig(1, columns, 1, 2, 2, 2, cluster, separate=m == 1), pass_units=4)
    a, b = operand(m, 3072, 1, device=device), operand(200, 3072, 2, device=device)
    with running_on(device, seed=seed):
        d = ops.gemm(a, b, out=poisoned(m, 200, device=device))
    assert_same_bits(d.cpu(), expect(a, b))


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch(monkeypatch, device):
    force(monkeypatch, SmallMConfig(1, 8, 1, 2, 2, 1, 2))
    a = operand(5, 256, 6, "token", batch=(3,), device=device)
    b = operand(72, 256, 7, "tensor", layout="compact", batch=(3,), device=device)
    with running_on(device):
        d = ops.gemm(a, b, out=poisoned(3, 5, 72, device=device))
    assert_same_bits(d.cpu(), expect(a, b))


@pytest.mark.parametrize("device", DEVICES)
def test_one_row_with_every_pair_of_codes_and_every_pair_of_scales(monkeypatch, device):
    """Products of two E4M3 scales are fp16 numbers times 2^2, products of two codes are integers / 4."""
    force(monkeypatch, SmallMConfig(1, 1, 1, 2, 2, 1, 1, separate=True))
    n, k = 256, 16 * 127
    a, b = operand(1, k, 1, layout="compact", device="cpu"), operand(n, k, 2, layout="compact", device="cpu")
    every = torch.arange(127, dtype=torch.uint8)
    scales = every.roll(5).view(1, -1), torch.stack([every.roll(i) for i in range(n)])
    # One element of a block is not zero, so that a row of D is the sum of one product per block, all of one sign.
    codes = torch.zeros(1, k // 2, dtype=torch.uint8), torch.zeros(n, k // 2, dtype=torch.uint8)
    where = torch.arange(127) * 8 + torch.arange(127) % 8
    codes[0][0, where] = (torch.arange(127) % 8 + 8).to(torch.uint8)
    codes[1][:, where] = (torch.arange(n)[:, None] // 8 % 16).to(torch.uint8)
    a, b = (
        replace(x, codes=c, block_scales=s.view(torch.float8_e4m3fn).contiguous()).to(device)
        for x, c, s in zip((a, b), codes, scales, strict=True)
    )
    with running_on(device):
        d = ops.gemm(a, b, out_dtype=torch.float32).cpu().double()
    x, y = weight_values(a), weight_values(b)
    scale = gemm_constant(448, 448) * a.amax.cpu().double() * b.amax.cpu().double()
    assert ((d - (x @ y.T) * scale).abs() <= (x.abs() @ y.abs().T) * scale * 2.0**-20).all()


def wide(rows: int, k: int, seed: int, device: str):
    """Scales over the whole range: sums are rounded, so that another order would show."""
    g = torch.Generator().manual_seed(seed)
    scales = torch.randint(0x10, 0x7E, (rows, k // 16), generator=g, dtype=torch.uint8).view(torch.float8_e4m3fn)
    return replace(operand(rows, k, seed, layout="compact"), block_scales=scales).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("m", "columns"), [(3, 8), (1, 1)])
def test_results_repeat_bit_for_bit_and_lie_within_the_bound(monkeypatch, device, m, columns):
    force(monkeypatch, SmallMConfig(1, columns, 1, 2, 2, 2, 4, separate=m == 1))
    a, b = wide(m, 2048, 1, device), wide(100, 2048, 2, device)
    results = []
    for seed in (None, 1, 2):
        with running_on(device, seed=seed):
            results.append(ops.gemm(a, b, out_dtype=torch.float32).cpu())
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])
    x, y = weight_values(a), weight_values(b)
    scale = gemm_constant(448, 448) * a.amax.cpu().double()[:, None] * b.amax.cpu().double()
    error = (results[0].double() - (x @ y.T) * scale).abs()
    assert (error <= (x.abs() @ y.abs().T) * scale * 2.0**-20).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 300, 256), (20, 264, 48)])
def test_w4a16(monkeypatch, device, dtype, m, n, k):
    name = str(dtype).removeprefix("torch.")
    force(monkeypatch, SmallMConfig(4, 8, 2, 1, 2, 1, 2, decode_to=name))
    check_w4a16(device, dtype, m, n, k)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("m", [1, 2])
def test_zero_codes_with_any_scale_and_the_largest_values(monkeypatch, device, m):
    """Padding is multiplied as well: a tail must add nothing; and 6 * 448 must not overflow fp16 on either side."""
    force(monkeypatch, SmallMConfig(1, 1 if m == 1 else 8, 1, 2, 2, 1, 1, separate=m == 1))
    a, b = operand(m, 80, 1, device=device), operand(20, 80, 2, device=device)
    full = torch.full_like(a.codes, 0x77)  # two times 6
    largest = torch.full_like(a.block_scales.view(torch.uint8), 0x7E).view(torch.float8_e4m3fn)
    a = replace(a, codes=full, block_scales=largest)
    b = replace(b, codes=torch.full_like(b.codes, 0xF7))  # 6, -6
    with running_on(device):
        d = ops.gemm(a, b, out_dtype=torch.float32)
    assert_same_bits(d.cpu(), expect(a, b, out_dtype=torch.float32))


@pytest.mark.parametrize("device", DEVICES)
def test_dispatch_and_explain(device):
    with running_on(device):
        a, b = operand(9, 208, 1, device=device), operand(48, 208, 2, device=device)
        planned = ops.gemm_plan(a, b)
        assert isinstance(planned.plan, Sm90SmallMPlan)
        assert "W4A4 9x48x208" in planned.explain() and "small M" in planned.explain()
        invariant = choice.make_plan(replace(planned.request, batch_invariant=True), "sm_90a", 132)
        assert not isinstance(invariant, Sm90SmallMPlan)


def test_what_the_kernel_does_not_take_is_said():
    request = GemmRequest(8, 64, 64, 1, "bfloat16", "nvfp4", "tiled", "tiled", default_epilogue(1.0))
    found = choice.config_problems(SmallMConfig(), replace(request, batch_invariant=True))
    assert any("batch_invariant" in problem for problem in found)
    single = SmallMConfig(columns=1, separate=True)
    assert any("multiplies codes" in p for p in choice.config_problems(single, replace(request, activations="float16")))
    assert any("K = 56" in problem for problem in choice.config_problems(SmallMConfig(), replace(request, k=56)))
    other = replace(request, activations="bfloat16")
    assert any("decode_to" in problem for problem in choice.config_problems(SmallMConfig(), other))
