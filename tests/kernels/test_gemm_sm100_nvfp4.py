"""The Blackwell GEMM that stores D as NVFP4: byte for byte what `quantize` makes of the GEMM's result. Emulated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cutefp4 import compile, epilogue, reference
from cutefp4.compile_report import compile_report
from cutefp4.config import Sm90Config
from cutefp4.config_sm100 import Sm100Config
from cutefp4.errors import CompileError, OperandError, UnsupportedError
from cutefp4.gemm_plan import Sm90GemmPlan
from cutefp4.gemm_plan_sm100 import Sm100GemmPlan
from cutefp4.heuristics.sm100 import CANDIDATES
from cutefp4.operand import Nvfp4Operand
from cutefp4.recipe import QuantRecipe
from cutefp4.scale_layout import scale_shape
from tests.compare import assert_same_operand
from tests.kernels.blackwell import CONSTANT, guarded, launch, operand, workspace

PAIR = Sm100Config(tile_m=256, tile_n=192, cluster_m=2, stages=3)
CLUSTER = Sm100Config(tile_n=64, cluster_m=2, cluster_n=2, stages=2)
TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")


def tree_of(recipe: QuantRecipe, dtype: str):
    amax = (epilogue.Row if recipe.scaling == "token" else epilogue.Scalar)(name="amax")
    z = epilogue.default_epilogue(CONSTANT, bias="float32").out
    return epilogue.Epilogue(epilogue.Nvfp4(z, amax, recipe, dtype), (epilogue.RowAmax(z, "next"),))


def check(m, n, k, recipe, dtype, config, store="elements", batch=1, seeds=(None, 1, 2, 3), bias=None):
    plan = Sm100GemmPlan("sm_100a", config, tree_of(recipe, dtype), "nvfp4", store)
    a, b = operand(m, k, 1, batch), operand(n, k, 2, batch)
    if bias is None:
        bias = 3 * torch.randn(batch, n, generator=torch.Generator().manual_seed(5))
    wide = reference.gemm(a, b, bias=bias, out_dtype=torch.float32)
    x = wide.to(getattr(torch, dtype))
    finite = x.float().abs().nan_to_num(0.0, 0.0)
    # Amaxes of another step, a little too small: the largest blocks saturate.
    amax = 0.9 * (finite.amax(-1) if recipe.scaling == "token" else finite.amax((1, 2)))
    expected, _ = reference.quantize(x, recipe, amax=amax)
    for seed in seeds:
        codes, guards = guarded((batch, m, n // 2), torch.uint8)
        scales, more = guarded((batch, *scale_shape(m, n, "tiled")), torch.uint8)
        values = {"alpha_a": a.amax, "alpha_b": b.amax, "bias": bias, "amax": amax, "next": torch.zeros(batch, m)}
        values |= {"d": codes, "d_scales": scales.view(-1)} | workspace(config, m, n, batch)
        launch(plan, a, b, values, "sm_100a", config.cluster_size, seed)
        assert all((guard == 0xA5).all() for guard in (*guards, *more)), "bytes outside D were written"
        found = scales.view(torch.float8_e4m3fn)
        got = Nvfp4Operand(codes, found, amax, recipe.scaling, rows=m, k=n, e4m3_max=recipe.e4m3_max)
        assert_same_operand(got, expected, f"{m}x{n}x{k} {recipe.describe()} {config} seed {seed}")
        assert torch.equal(values["next"], wide.abs().nan_to_num(0.0, torch.inf).amax(-1))


@pytest.mark.parametrize(
    "dtype, recipe",
    [
        ("bfloat16", QuantRecipe()),
        ("float32", QuantRecipe()),
        ("float16", TOKEN),
        ("bfloat16", QuantRecipe(arithmetic="torchao")),
        ("bfloat16", QuantRecipe(four_over_six="mae", e4m3_max=256)),
        ("float32", TOKEN.replace(four_over_six="mse", four_over_six_error="fast")),
    ],
    ids=str,
)
def test_every_arithmetic(dtype, recipe):
    check(70, 112, 256, recipe, dtype, Sm100Config(tile_n=64))


@pytest.mark.parametrize(
    "config, m, n, store, batch",
    [
        (Sm100Config(tile_n=256, stages=2, scheduler="clc"), 300, 336, "elements", 1),
        (Sm100Config(tile_n=256, stages=2), 129, 320, "vectors", 1),
        (PAIR, 130, 208, "elements", 2),
        (replace(PAIR, scheduler="clc"), 300, 256, "vectors", 2),
        (CLUSTER, 40, 16, "elements", 1),
        (Sm100Config(tile_n=64, splits=3), 60, 176, "elements", 1),
    ],
    ids=str,
)
def test_tiles_tails_and_batches(config, m, n, store, batch):
    """Panels and row tiles that lie outside D, in part or whole; padding of the scales is zero."""
    check(m, n, 800, TOKEN, "bfloat16", config, store, batch)


def test_special_values():
    bias = torch.zeros(1, 96)
    bias[0, ::7], bias[0, 3], bias[0, 33], bias[0, 50] = torch.nan, torch.inf, -torch.inf, -0.0
    for dtype in ("bfloat16", "float32"):
        check(33, 96, 64, QuantRecipe(), dtype, Sm100Config(), seeds=(1,), bias=bias)


def test_256_bit_stores():
    plan = Sm100GemmPlan("sm_100a", Sm100Config(), tree_of(TOKEN, "bfloat16"), "nvfp4", "vectors")
    assert "st.global.v8.b32" in compile.artifacts(plan).ptx


@pytest.mark.parametrize(
    "arch, config, recipe",
    [
        ("sm_100a", CANDIDATES[0], TOKEN),
        ("sm_103a", CANDIDATES[0], QuantRecipe()),
        ("sm_100a", CANDIDATES[6], TOKEN.replace(four_over_six="mae")),
    ],
    ids=str,
)
def test_nothing_spills(arch, config, recipe):
    """All 8 tiles x sm_100a, sm_103a x (te, 4over6 per token) were compiled once: none spills. These stay, for time."""
    found = compile_report(Sm100GemmPlan(arch, config, tree_of(recipe, "bfloat16"), "nvfp4", "vectors"))
    assert found.spills == 0 and found.kernels[0].stack_bytes == 0, found


def test_refusals():
    z, scalar, row = epilogue.Accumulator(), epilogue.Scalar(name="amax"), epilogue.Row(name="amax")
    with pytest.raises(OperandError, match=r"Row\(\) of float32"):
        epilogue.Nvfp4(z, scalar, TOKEN)
    for change in ({"block": "2d"}, {"rounding": "stochastic"}, {"scale_layout": "compact"}):
        with pytest.raises(UnsupportedError, match=next(iter(change))):
            epilogue.Nvfp4(z, scalar, QuantRecipe(**change))
    tree = epilogue.Epilogue(epilogue.Nvfp4(z, row, TOKEN))
    with pytest.raises(UnsupportedError, match="Hopper"):
        Sm90GemmPlan("sm_90a", Sm90Config(), tree)
    for config, dtype, store, reason in (
        (Sm100Config(), "bfloat16", "elements", "quantises"),
        (Sm100Config(), "nvfp4", "tma", "codes leave the registers"),
        (Sm100Config(swap_ab=True), "nvfp4", "elements", "different threads"),
    ):
        with pytest.raises(CompileError, match=reason):
            Sm100GemmPlan("sm_100a", config, tree, dtype, store)
