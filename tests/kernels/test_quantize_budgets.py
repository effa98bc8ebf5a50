"""No quantisation kernel spills, and those that are meant to share an SM fit into its registers and shared memory."""

from dataclasses import replace

import pytest

from cutefp4.compile_report import compile_report
from cutefp4.quant_plan import (
    AmaxPlan,
    BlockMath,
    CastRowsPlan,
    CastTilesPlan,
    DequantizePlan,
    GroupMapPlan,
    HadamardAmaxPlan,
    RmsnormPlan,
    SwigluPlan,
    row_shape,
)

TOKEN, TE = BlockMath("per_token"), BlockMath()
SR = BlockMath(rounding="stochastic")
FAST = BlockMath("te", 256, "nearest", "mae", "fast")
STRICT = BlockMath("te", 256, "nearest", "mae", "strict")
STATIC_SHARED = 48 * 1024
REGISTERS = 65536


def plans(arch: str) -> list:
    rows = {"scaling": "token", "amax_given": False, "scale_layout": "tiled"}
    tiles = {"scaling": "tensor", "scale_layout": "tiled"}
    return [
        *(CastRowsPlan(arch, d, TOKEN, **rows, **row_shape(6144, s)) for d, s in (("bfloat16", 2), ("float32", 4))),
        CastRowsPlan(arch, "bfloat16", TOKEN, **rows, **row_shape(6144, 2), swiglu="8"),
        CastRowsPlan(arch, "bfloat16", FAST, **rows, **row_shape(6144, 2, 3)),
        CastRowsPlan(arch, "bfloat16", FAST, "tensor", True, "tiled", **row_shape(6144, 2, 3)),
        *(
            CastRowsPlan(arch, "bfloat16", m, "tensor", True, "tiled", **row_shape(6144, 2, 3), ahead=True)
            for m in (FAST, STRICT)
        ),
        CastRowsPlan(arch, "bfloat16", FAST, **rows, **row_shape(6144, 2, 3), ahead=True),
        CastRowsPlan(arch, "bfloat16", TOKEN, **rows, **row_shape(12288, 2, 3), deinterleave="8", ahead=True),
        CastRowsPlan(arch, "bfloat16", STRICT, **rows, **row_shape(6144, 2, 3)),
        CastRowsPlan(arch, "bfloat16", STRICT, **rows, **row_shape(6144, 2, 3), deinterleave="8"),
        CastRowsPlan(arch, "bfloat16", STRICT, **rows, **row_shape(6144, 2, 2), swiglu="8"),
        CastRowsPlan(arch, "bfloat16", STRICT, "tensor", True, "tiled", **row_shape(6144, 2)),
        CastRowsPlan(arch, "bfloat16", STRICT, "tensor", True, "tiled", **row_shape(6144, 2), partials=True),
        CastRowsPlan(arch, "bfloat16", STRICT, **rows, **row_shape(7168, 2, 3)),
        CastRowsPlan(arch, "bfloat16", SR, "tensor", True, "tiled", **row_shape(6144, 2)),
        CastTilesPlan(arch, "bfloat16", STRICT, **tiles, columnwise=False),
        CastTilesPlan(arch, "bfloat16", SR, **tiles, columnwise=False),
        CastTilesPlan(arch, "bfloat16", replace(STRICT, rounding="stochastic"), **tiles, rht="bf16"),
        *(CastTilesPlan(arch, d, TE, **tiles) for d in ("bfloat16", "float16", "float32")),
        CastTilesPlan(arch, "bfloat16", TE, **tiles, columnwise=False),
        CastTilesPlan(arch, "bfloat16", TOKEN, "token", "tiled"),
        CastTilesPlan(arch, "bfloat16", TOKEN, "token", "tiled", grouped=True),
        CastTilesPlan(arch, "bfloat16", TE, **tiles, block="2d"),
        CastTilesPlan(arch, "bfloat16", TE, **tiles, rht="bf16"),
        CastTilesPlan(arch, "bfloat16", SR, **tiles, rht="bf16"),
        CastTilesPlan(arch, "bfloat16", FAST, **tiles, block="2d"),
        AmaxPlan(arch, "bfloat16", rows=True, columns=True),
        AmaxPlan(arch, "bfloat16", rows=True, columns=True, grouped=True),
        GroupMapPlan(arch, clears=True),
        HadamardAmaxPlan(arch, "bfloat16", "bf16", "columns", "rows"),
        DequantizePlan(arch, "bfloat16", "token", "tiled", 448),
        SwigluPlan(arch, "bfloat16", "halves", measure=True),
        CastRowsPlan(arch, "bfloat16", TOKEN, **rows, **row_shape(6144, 2), deinterleave="8"),
        RmsnormPlan(arch, "bfloat16", "bfloat16", True, True, cast="token", math=TOKEN, **row_shape(6144, 2)),
        RmsnormPlan(arch, "float32", "float32", cast="token", math=TOKEN, **row_shape(40000, 4)),
        RmsnormPlan(arch, "bfloat16", "bfloat16", write_normed=True, measure=True, **row_shape(6144, 2)),
        RmsnormPlan(arch, "bfloat16", "float32", cast="given", scaling="tensor", math=FAST, **row_shape(6144, 2, 2)),
    ]


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_budgets(arch):
    for plan in plans(arch):
        report = compile_report(plan)
        kernel = report.kernels[0]
        assert report.spills == 0, f"{plan.describe()}: {kernel.spill_loads} + {kernel.spill_stores} spills"
        assert kernel.resources.static_shared_bytes <= STATIC_SHARED, plan.describe()
        if getattr(plan, "ctas_per_sm", 0):
            assert plan.ctas_per_sm * 256 * kernel.registers <= REGISTERS, plan.describe()


def test_hardware_conversions_on_blackwell():
    """sm_100a rounds with its own instruction, sm_90a without: the mix of instructions tells them apart."""
    mixes = [
        compile_report(CastTilesPlan(arch, "bfloat16", TE, "tensor", "tiled", columnwise=False)).kernels[0].instructions
        for arch in ("sm_90a", "sm_100a")
    ]
    assert mixes[0]["FFMA"] > 3 * 64 > mixes[1]["FFMA"]
    assert "e2m1x2" in compile_report(CastTilesPlan("sm_100a", "bfloat16", TE, "tensor", "tiled", columnwise=False)).ptx
