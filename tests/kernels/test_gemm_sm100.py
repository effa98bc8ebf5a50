"""The Blackwell GEMM in the emulator, bit for bit against the oracle on operands whose sums are exact in fp32.

No Blackwell GPU has run this kernel: what these tests execute is the PTX of the shipped cubins.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import cutefp4
from cutefp4 import compile, emulator, epilogue, gemm_choice_sm100, reference
from cutefp4.config_sm100 import TILE_NS, Sm100Config
from cutefp4.epilogue_text import default_text
from cutefp4.errors import CompileError, UnsupportedError
from cutefp4.gemm_plan_sm100 import Sm100GemmPlan
from cutefp4.operand import Nvfp4Operand
from tests.kernels.blackwell import CONSTANT, TORCH, Problem, guarded, launch, operand, workspace

ROW_COLUMN = default_text((448, 448), ("row", "column"))
SWAPPED = Sm100Config(tile_n=64, swap_ab=True)
BASE = Problem(m=300, n=328, k=608, sms=2)


def ids(problem: Problem) -> str:
    return problem.name()


@pytest.mark.parametrize("tile_n", TILE_NS)
@pytest.mark.parametrize("cluster", [(1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2)], ids=str)
def test_every_tile_and_cluster(tile_n, cluster):
    """More tiles than CTAs, tails on all sides, an odd tile that starts within a scale tile."""
    group, m, n = cluster
    config = Sm100Config(128 * group, tile_n, m, n, stages=3)
    for seed in (None, 1 + tile_n):
        BASE.but(config=config, m=600, n=712 if n > 1 else 456, sms=max(2, m * n), seed=seed).check()


@pytest.mark.parametrize(
    "cluster", [(1, 2, 1), (1, 1, 2), (1, 4, 1), (1, 4, 4), (2, 2, 2), (2, 4, 1), (2, 4, 4)], ids=str
)
def test_every_cluster(cluster):
    group, m, n = cluster
    config = Sm100Config(128 * group, 64, m, n, stages=2)
    BASE.but(config=config, k=352, sms=m * n, seed=7).check()


TAILS = [
    (1, 8, 32),
    (7, 63, 32),
    (63, 300, 224),
    (129, 129, 48 * 2),
    (300, 7, 4096),
    (129, 1, 64),
]


@pytest.mark.parametrize("shape", TAILS, ids=str)
def test_tails(shape):
    m, n, k = shape
    for config in (Sm100Config(), replace(SWAPPED, splits=2 if k > 256 else 1)):
        store = "tma" if n % 8 == 0 and not config.swap_ab else "elements"
        BASE.but(m=m, n=n, k=k, config=config, store=store, seed=m).check()


EPILOGUES = [
    BASE.but(out_dtype="float32"),
    BASE.but(out_dtype="float16", bias="float16"),
    BASE.but(bias="bfloat16", activation="relu2", c="bfloat16"),
    BASE.but(bias="float32", c="float32", out_dtype="float32", beta=0.5, config=Sm100Config(tile_n=256, stages=3)),
    BASE.but(c="float32", out_dtype="bfloat16", store="elements", n=301),
    BASE.but(bias="bfloat16", c="bfloat16", store="elements", m=17, config=SWAPPED),
    BASE.but(batch=3, m=150, n=136, bias="float32"),
    BASE.but(batch=2, m=9, n=200, k=1536, c="float32", store="elements", config=replace(SWAPPED, splits=3)),
    BASE.but(k=1536, bias="float32", activation="relu", config=Sm100Config(splits=5)),
    BASE.but(arch="sm_103a", config=Sm100Config(tile_m=256, cluster_m=2)),
]


STAGED = Sm100Config(tile_n=256, stages=2, scheduler="clc")
PAIR = Sm100Config(tile_m=256, tile_n=192, cluster_m=2, stages=3)
C_BY_TMA = [
    BASE.but(c="float32", out_dtype="float32", beta=0.5, config=STAGED, batch=2, k=288),
    BASE.but(c="bfloat16", out_dtype="bfloat16", bias="float32", activation="relu", config=STAGED),
    BASE.but(c="float16", out_dtype="bfloat16", config=PAIR),
    BASE.but(c="float32", out_dtype="bfloat16", config=PAIR, pdl=True),
    BASE.but(c="bfloat16", out_dtype="float32", config=Sm100Config(tile_n=64, stages=2)),
    BASE.but(c="bfloat16", out_dtype="float32", store="vectors", m=17, config=Sm100Config(cluster_m=2, cluster_n=2)),
    BASE.but(c="bfloat16", store="elements", n=264, config=Sm100Config(tile_n=64)),
]


@pytest.mark.parametrize("problem", [p.but(tile_load="tma") for p in C_BY_TMA], ids=ids)
def test_c_through_shared_memory(problem):
    """Chunks of C under the mainloop, in the order in which overlapped accumulators are read; tails are zeros."""
    for seed in (None, 1, 2, 3):
        problem.but(seed=seed, sms=problem.config.cluster_size).check()


@pytest.mark.parametrize("problem", [BASE.but(out_dtype="float32"), BASE.but(n=336, m=129), BASE.but(n=16)], ids=ids)
def test_vector_stores(problem):
    problem = problem.but(store="vectors", seed=2)
    problem.check()
    assert "st.global.v8.b32" in compile.artifacts(problem.plan()).ptx


@pytest.mark.parametrize("problem", EPILOGUES, ids=ids)
def test_epilogues(problem):
    problem.but(seed=5).check()


@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize(
    "config",
    [
        Sm100Config(tile_n=256, stages=2),
        Sm100Config(tile_m=256, tile_n=256, cluster_m=2, stages=2),
        Sm100Config(tile_n=64, cluster_m=2, cluster_n=2, stages=2),
        Sm100Config(tile_n=64, stages=2, splits=2),
        Sm100Config(tile_m=256, tile_n=128, cluster_m=2, stages=2, splits=2),
    ],
    ids=lambda c: f"{c.tile_m}x{c.tile_n}c{c.cluster_m}{c.cluster_n}s{c.splits}",
)
def test_adversarial_schedules(config, seed):
    """Several tiles per CTA through a short ring; every race, deadlock and protocol error is a finding that raises."""
    BASE.but(config=config, m=260, n=520, k=800, sms=config.cluster_size, seed=seed).check()


LAUNCH_CONTROL = [
    Sm100Config(tile_n=256, stages=2, scheduler="clc"),
    Sm100Config(tile_n=64, stages=2, splits=3, scheduler="clc"),
    Sm100Config(tile_n=64, swap_ab=True, stages=2, scheduler="clc"),
    Sm100Config(tile_m=256, tile_n=64, cluster_m=2, swap_ab=True, splits=3, scheduler="clc"),
    Sm100Config(tile_m=256, tile_n=192, cluster_m=2, stages=2, scheduler="clc"),
    Sm100Config(tile_n=64, cluster_m=2, cluster_n=2, stages=2, scheduler="clc"),
    Sm100Config(tile_m=256, tile_n=64, cluster_m=4, cluster_n=2, stages=2, scheduler="clc"),
]


@pytest.mark.parametrize(
    "config", LAUNCH_CONTROL, ids=lambda c: f"{c.tile_m}x{c.tile_n}c{c.cluster_m}{c.cluster_n}s{c.splits}"
)
def test_cluster_launch_control(config):
    """Clusters of any kind take over what has not started: one at a time, two, and all that there are.

    Nine tiles or more, so that one cluster goes round the ring of answers three times: with fewer, a wrong count of its
    followers, or no wait for them, went unnoticed.
    """
    rows, columns = 270, config.tile_n * config.cluster_n * (8 if config.cluster_m == 4 else 4) + 72
    m, n = (columns, rows + 2) if config.swap_ab else (rows, columns)
    store = "elements" if config.swap_ab else "tma"
    problem = BASE.but(config=config, m=m, n=n, k=800, store=store, pdl=True)
    for seed, at_once in ((None, 1), (1, 2), (2, 1), (3, 3), (4, 64)):
        problem.but(sms=config.cluster_size * at_once, seed=seed).check()


def test_launch_control_serves_every_tile_from_one_cluster():
    """On one SM the first CTA takes over all others: it asks once per tile and stops at the first refusal."""
    problem = BASE.but(config=Sm100Config(scheduler="clc"), m=256, n=384, k=256, sms=1)
    a, b = operand(problem.m, problem.k, 1), operand(problem.n, problem.k, 2)
    d, _ = guarded((1, problem.m, problem.n), torch.bfloat16)
    values = {"alpha_a": a.amax, "alpha_b": b.amax, "d": d}
    report = launch(problem.plan(), a, b, values, "sm_100a", 1, None).reports[0]
    text = compile.artifacts(problem.plan()).ptx.split("\n")
    asked = [report.lines.get(i, 0) for i, line in enumerate(text, 1) if "clusterlaunchcontrol.try_cancel" in line]
    assert asked == [2 * 3]


def test_dependent_launch_waits_before_global_memory():
    """The waiting instruction is in the kernel exactly if the plan says so, before any load by TMA."""
    for pdl in (False, True):
        ptx = compile.artifacts(BASE.but(pdl=pdl).plan()).ptx
        assert ("griddepcontrol.launch_dependents" in ptx) == pdl
        assert ptx.count("griddepcontrol.wait") == (2 if pdl else 0), "load warp and epilogue warps"
        if pdl:
            assert ptx.index("griddepcontrol.wait") < ptx.index("cp.async.bulk.tensor")


def test_repeats_bit_for_bit():
    problem = BASE.but(m=40, n=128, k=1600, config=replace(SWAPPED, splits=3), store="elements", sms=4)
    first, _ = problem.but(seed=1).run()
    for seed in (2, 3):
        assert torch.equal(problem.but(seed=seed).run()[0], first)


# ---------------------------------------------------------------- trees


def run_tree(tree, values: dict, m: int, n: int, k: int, config: Sm100Config, store: str, out_dtype: str, columns: int):
    sinks = "vectors" if store == "vectors" else "elements"
    plan = Sm100GemmPlan("sm_100a", config, tree, out_dtype, store, sink_store=sinks)
    a, b = operand(m, k, 1), operand(n, k, 2)
    d, _ = guarded((1, m, columns), TORCH[out_dtype])
    launch(plan, a, b, values | {"d": d} | workspace(config, m, n, 1), "sm_100a", 2, 3)
    return d[0], reference.gemm_accumulator(a, b)[0].float()


@pytest.mark.parametrize(
    "config, store",
    [(Sm100Config(), "elements"), (Sm100Config(), "vectors"), (replace(SWAPPED, splits=2), "elements")],
    ids=["plain", "vectors", "swapped"],
)
def test_amax_sinks_and_extra_store(config, store):
    @epilogue.epilogue
    def tree(acc, factor: epilogue.Scalar()):
        z = CONSTANT * acc
        return (
            z * factor,
            epilogue.Store(z, "float32", "raw"),
            epilogue.RowAmax(z, "rows"),
            epilogue.ColumnAmax(z, "cols"),
        )

    m, n, k = 45, 208, 544
    values = {
        "factor": torch.tensor([3.0]),
        "raw": torch.full((1, m, n), torch.nan),
        "rows": torch.zeros(1, m),
        "cols": torch.zeros(1, n),
    }
    d, acc = run_tree(tree, values, m, n, k, config, store, "bfloat16", n)
    z = torch.tensor(CONSTANT) * acc
    assert torch.equal(values["raw"][0], z)
    assert torch.equal(d, (z * 3).bfloat16())
    assert torch.equal(values["rows"][0], z.abs().amax(1))
    assert torch.equal(values["cols"][0], z.abs().amax(0))


@pytest.mark.parametrize("store, n", [("elements", 152), ("vectors", 144)], ids=str)
def test_swiglu_pairs(store, n):
    @epilogue.epilogue
    def tree(acc):
        return epilogue.SwigluPair(CONSTANT * acc)

    m, k = 130, 256
    d, acc = run_tree(tree, {}, m, n, k, Sm100Config(), store, "float32", n // 2)
    z = torch.tensor(CONSTANT) * acc
    gate, up = z[:, 0::2], z[:, 1::2]
    torch.testing.assert_close(d, torch.nn.functional.silu(gate) * up, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------- the public call


def public(a, b, sms: int = 4, arch: str = "sm_100a", **options):
    with emulator.device(arch, seed=11, sms=sms):
        return cutefp4.gemm(a, b, backend="emulator", **options)


@pytest.mark.parametrize("m", [1, 40, 200])
def test_public_gemm_accumulates(m):
    """K is not a multiple of 32; per-tensor and per-token amaxes."""
    a, b = operand(m, 304, 1), operand(264, 304, 2)
    a = replace(a, codes=a.codes[0], block_scales=a.block_scales[0], amax=a.amax[0])
    b = replace(b, codes=b.codes[0], block_scales=b.block_scales[0], amax=b.amax[0, 0].clone(), scaling="tensor")
    bias = torch.linspace(-1, 1, 264)
    start = torch.randn(m, 264, generator=torch.Generator().manual_seed(4))
    out, expected = start.clone(), start.clone()
    public(a, b, bias=bias, out=out, accumulate=True)
    cutefp4.gemm(a, b, bias=bias, out=expected, accumulate=True, backend="reference")
    assert torch.equal(out, expected)


def test_batch_invariant_choice_does_not_see_m():
    requests = [
        gemm_choice_sm100.GemmRequest(m, 4096, 4096, 1, "bfloat16", ROW_COLUMN, True, True) for m in (1, 64, 5000)
    ]
    plans = {gemm_choice_sm100.make_plan(r, "sm_100a", 148).plan for r in requests}
    assert len(plans) == 1


def test_explain_names_time_and_budgets():
    r = gemm_choice_sm100.GemmRequest(4096, 4096, 4096, 1, "bfloat16", ROW_COLUMN)
    text = gemm_choice_sm100.make_plan(r, "sm_100a", 148).explain()
    assert "not measured" in text and "tensor memory" in text and "stages of" in text


def test_compact_scales_are_refused():
    a = operand(32, 64, 1)
    compact = Nvfp4Operand(
        a.codes, torch.ones(1, 32, 4).to(torch.float8_e4m3fn), a.amax, "token", scale_layout="compact"
    )
    with pytest.raises(UnsupportedError, match="tiled"):
        public(compact, a)


def test_illegal_plans_say_why():
    tree = epilogue.default_epilogue(CONSTANT)
    for config, store, reason in (
        (Sm100Config(stages=40), "tma", "at most"),
        (Sm100Config(tile_m=256), "tma", "pairs need an even cluster_m"),
        (SWAPPED, "tma", "transposed"),
        (Sm100Config(tile_n=96), "tma", "tile_n=96"),
        (Sm100Config(cluster_m=2, splits=2), "tma", "only single CTAs and pairs"),
    ):
        with pytest.raises(CompileError, match=reason):
            Sm100GemmPlan("sm_100a", config, tree, "bfloat16", store)
    with pytest.raises(CompileError, match="tcgen05"):
        Sm100GemmPlan("sm_90a", Sm100Config(), tree)


def test_same_bits_as_the_hopper_kernel():
    """Two machines, two kernels, one contract: equal wherever the sums are exact."""
    a, b = operand(72, 320, 5), operand(136, 320, 6)
    bias = torch.linspace(-2, 2, 136)
    blackwell, hopper = (public(a, b, arch=arch, bias=bias, activation="relu") for arch in ("sm_100a", "sm_90a"))
    assert torch.equal(blackwell, hopper)
    assert torch.equal(blackwell, cutefp4.gemm(a, b, bias=bias, activation="relu", backend="reference"))
