"""The Hopper GEMM for some dozens of rows: what its code looks like, and results against the oracle.

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
from cutefp4.config_few_rows import SMEM_BYTES, FewRowsConfig, few_rows_problems, shared_bytes
from cutefp4.epilogue import default_epilogue
from cutefp4.format import gemm_constant
from cutefp4.gemm_plan_few_rows import Sm90FewRowsPlan
from cutefp4.heuristics import few_rows, small_m
from cutefp4.sass import disassemble
from tests.compare import assert_same_bits
from tests.kernels.hopper import DEVICES, check_w4a16, expect, operand, poisoned, running_on, weight_values


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tile_n": 20}, "tile_n=20 is not one of"),
        ({"cluster": 16}, "cluster=16 is not one of"),
        ({"tile_n": 32}, "M = 40 rows do not fit"),
        ({"atoms": 4, "k_groups": 2}, "1152 threads"),
        ({"tile_n": 128}, "registers"),
        ({"k_groups": 4, "atoms": 1, "stages": 4}, "nothing to overlap"),
        ({"stages": 9}, "bytes of shared memory"),
    ],
)
def test_each_illegal_configuration_says_why(change, reason):
    found = few_rows_problems(replace(FewRowsConfig(), **change), 40)
    assert any(re.search(reason, problem) for problem in found), found


@pytest.mark.parametrize("activations", ["nvfp4", "bfloat16"])
def test_every_candidate_is_legal(activations):
    for m in range(few_rows.MIN_M, few_rows.MAX_M + 1):
        found = few_rows.candidates(m, activations)
        assert found
        for config in found:
            assert few_rows_problems(config, m) == []
            assert shared_bytes(config) <= SMEM_BYTES


def test_every_field_of_a_plan_is_part_of_the_key():
    plan = Sm90FewRowsPlan("sm_90a", FewRowsConfig(), default_epilogue(1.0))
    for f in fields(FewRowsConfig):
        value = {"decode_to": "bfloat16", "atoms": 1, "k_groups": 1, "cluster": 1, "overlay": True, "steps": 2}.get(
            f.name, 8
        )
        assert replace(plan, config=replace(plan.config, **{f.name: value})).key != plan.key, f.name
    for change in ({"out_dtype": "float32"}, {"activations": "float16"}, {"a_scales": "compact"}):
        assert replace(plan, **change).key != plan.key


@pytest.mark.parametrize("m", [24, 64, 96])
@pytest.mark.parametrize("activations", ["nvfp4", "bfloat16"])
def test_code_has_no_spills_and_wgmma_is_not_serialised(m, activations):
    config = few_rows.candidates(m, activations)[0]
    tree = default_epilogue(1.0, "row" if activations == "nvfp4" else "none", "column")
    code = disassemble(kernel_cache.artifacts(Sm90FewRowsPlan("sm_90a", config, tree, activations=activations)).cubin)
    assert not re.findall(r"\b(LDL|STL)\b", code)
    assert re.findall(r"HGMMA\.64x(\d+)x16\.F32\S* R\d+, R\d+,", code) == [str(m)] * 8
    # ptxas waits for each wgmma in turn (DEPBAR to 0) where it cannot prove that none of their registers is touched.
    assert len(re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x0", code)) == 1


# ---------------------------------------------------------------- results


def force(monkeypatch, config: FewRowsConfig) -> None:
    """Every product that the kernel takes gets this configuration."""
    monkeypatch.setattr(small_m, "choose", lambda *_: None)
    monkeypatch.setattr(few_rows, "choose", lambda *_: config)
    monkeypatch.setattr(ops, "_plans", {})


CASES = {
    # tile_n, atoms, k_groups, stages, cluster, overlay, steps
    "one_stage": (FewRowsConfig(8, 1, 1, 2, 1), (1, 1, 64)),
    "ring": (FewRowsConfig(16, 1, 1, 3, 1, steps=2), (9, 63, 1216)),
    "k_groups": (FewRowsConfig(24, 1, 2, 3, 1, True), (17, 65, 960)),
    "four_k_groups": (FewRowsConfig(24, 1, 4, 5, 2), (24, 130, 2112)),
    "atoms": (FewRowsConfig(32, 2, 1, 2, 1, True), (31, 129, 448)),
    "as_shipped": (FewRowsConfig(64, 2, 2, 6, 2), (63, 200, 2240)),
    "four_atoms": (FewRowsConfig(40, 4, 1, 3, 2, True, 2), (33, 300, 1088)),
    "cluster": (FewRowsConfig(48, 1, 2, 4, 8), (41, 72, 2112)),
    "many_rows": (FewRowsConfig(96, 2, 2, 5, 2, True), (95, 130, 704)),
    "three": (FewRowsConfig(32, 1, 3, 4, 3), (25, 200, 1216)),
    "more_ctas_than_stages": (FewRowsConfig(8, 1, 2, 3, 8), (5, 64, 192)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["tiled", "compact"])
@pytest.mark.parametrize("name", CASES)
def test_tails_and_scale_layouts_of_a(monkeypatch, device, name, layout):
    config, (m, n, k) = CASES[name]
    force(monkeypatch, config)
    a, b = operand(m, k, 1, layout=layout, device=device), operand(n, k, 2, "tensor", device=device)
    for seed in (None, 3) if device == "cpu" else (None,):
        d = poisoned(m, n, dtype=torch.float32, device=device)
        with running_on(device, seed=seed, sms=8):
            assert isinstance(ops.gemm_plan(a, b, out=d, out_dtype=torch.float32).plan, Sm90FewRowsPlan)
            ops.gemm(a, b, out=d, out_dtype=torch.float32)
        assert_same_bits(d.cpu(), expect(a, b, out_dtype=torch.float32))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_w4a16(monkeypatch, device, dtype, name):
    config, (m, n, k) = CASES[name]
    force(monkeypatch, replace(config, decode_to=str(dtype).removeprefix("torch.")))
    check_w4a16(device, dtype, m, n + (n == 300), k)


@pytest.mark.parametrize("device", DEVICES)
def test_a_batch(monkeypatch, device):
    force(monkeypatch, FewRowsConfig(24, 1, 2, 3, 2))
    a = operand(21, 320, 6, "token", batch=(3,), layout="compact", device=device)
    b = operand(72, 320, 7, "tensor", batch=(3,), device=device)
    with running_on(device):
        d = ops.gemm(a, b, out=poisoned(3, 21, 72, device=device))
    assert_same_bits(d.cpu(), expect(a, b))


@pytest.mark.parametrize("device", DEVICES)
def test_what_lies_behind_the_end_adds_nothing(monkeypatch, device):
    """The first element of each row is infinite; the tail of the last stage must not read it as its own."""
    force(monkeypatch, FewRowsConfig(24, 1, 1, 2, 1, decode_to="bfloat16"))
    w = operand(64, 192, 4, "tensor", device=device)
    x = torch.ones(24, 192, dtype=torch.bfloat16)
    x[:, 0] = torch.inf
    with running_on(device):
        y = ops.gemm_a16(x.to(device), w, out_dtype=torch.float32).cpu()
    first = weight_values(w)[:, 0]
    expected = torch.where(first == 0, torch.nan, first.sign() * torch.inf).expand(24, 64)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y[~y.isnan()].double(), expected[~expected.isnan()])


def wide(rows: int, k: int, seed: int, device: str):
    """Scales over the whole range: sums are rounded, so that another order would show."""
    g = torch.Generator().manual_seed(seed)
    scales = torch.randint(0x10, 0x7E, (rows, k // 16), generator=g, dtype=torch.uint8).view(torch.float8_e4m3fn)
    made = operand(rows, k, seed, layout="compact")
    return replace(made, block_scales=scales).to(device)


@pytest.mark.parametrize("device", DEVICES)
def test_results_repeat_bit_for_bit_and_lie_within_the_bound(monkeypatch, device):
    force(monkeypatch, FewRowsConfig(24, 1, 2, 3, 4))
    a = wide(20, 2048, 1, device)
    b = operand(100, 2048, 2, device=device)
    results = []
    for seed in (None, 1, 2):
        with running_on(device, seed=seed, sms=8):
            results.append(ops.gemm(a, b, out_dtype=torch.float32).cpu())
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])
    x, y = weight_values(a), weight_values(b)
    scale = gemm_constant(448, 448) * a.amax.cpu().double()[:, None] * b.amax.cpu().double()
    error = (results[0].double() - (x @ y.T) * scale).abs()
    assert (error <= (x.abs() @ y.abs().T) * scale * 2.0**-20).all()


def test_dispatch_and_explain():
    x, w = torch.empty(64, 8192, dtype=torch.bfloat16), operand(1024, 8192, 2)
    with running_on("cpu", sms=132):
        planned = ops.gemm_plan(x, w)
        request = replace(planned.request, n=8192)
        plan = choice.make_plan(request, "sm_90a", 132)
        assert isinstance(plan, Sm90FewRowsPlan)
        text = choice.PlannedGemm(request, plan, 132).explain()
        assert "W4A16 (bfloat16) 64x8192x8192" in text and "few rows" in text
        for change in ({"batch_invariant": True}, {"b_scales": "compact"}, {"m": 128}):
            assert not isinstance(choice.make_plan(replace(request, **change), "sm_90a", 132), Sm90FewRowsPlan)


def test_every_sm_has_work_and_no_cluster_waits_for_another():
    for m, n, k in ((64, 7168, 16384), (64, 8192, 8192), (24, 8192, 8192), (96, 7168, 16384)):
        config = few_rows.best(m, n, k, 1, "bfloat16", 132)
        assert 112 <= -(-n // config.tile_m) * config.cluster <= 128


def test_what_the_kernel_does_not_take_is_said():
    request = choice.GemmRequest(24, 64, 64, 1, "bfloat16", "nvfp4", "tiled", "tiled", default_epilogue(1.0))
    assert choice.config_problems(FewRowsConfig(24), request) == []
    for change in ({"batch_invariant": True}, {"k": 80}, {"b_scales": "compact"}):
        assert any("few rows" in p for p in choice.config_problems(FewRowsConfig(24), replace(request, **change)))
    other = replace(request, activations="bfloat16")
    assert any("decode_to" in problem for problem in choice.config_problems(FewRowsConfig(24), other))
