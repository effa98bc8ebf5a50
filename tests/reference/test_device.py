"""The oracle gives the same bytes on a CUDA device as on the CPU."""

import pytest
import torch

from cutefp4.reference import dequantize, gemm, grouped_gemm, in_exact_regime, quantize, quantize_grouped, swiglu
from tests.cases import PROFILES, batch, end_offsets, matrix, specials
from tests.compare import assert_same_bits, assert_same_operand, ulps

pytestmark = pytest.mark.gpu
SIZES = (37, 0, 130, 5)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kind", ["row_scaled", "heavy", "specials"])
def test_quantize(profile, kind):
    x = specials(64, 96, inf=False) if kind == "specials" else matrix(64, 96, kind, seed=1)
    recipe = PROFILES[profile].replace(rht="none") if kind == "specials" else PROFILES[profile]
    on_cpu = quantize(x, recipe, columnwise=True, seed=5, offset=9)
    on_gpu = quantize(x.cuda(), recipe, columnwise=True, seed=torch.tensor(5).cuda(), offset=torch.tensor(9).cuda())
    for got, want in zip(on_gpu, on_cpu, strict=True):
        assert got.device.type == "cuda"
        assert_same_operand(got, want, profile)
        assert_same_bits(dequantize(got), dequantize(want))


@pytest.mark.parametrize("profile", ["te1d", "pt_rht", "rsr_rht", "4o6-mae-256-2d"])
def test_grouped(profile):
    x, offs, recipe = matrix(180, 48, "row_scaled", seed=2), end_offsets(SIZES), PROFILES[profile]
    on_cpu = quantize_grouped(x, offs, recipe, columnwise=True, seed=1)
    on_gpu = quantize_grouped(x.cuda(), offs.cuda(), recipe, columnwise=True, seed=1)
    for got, want in zip(on_gpu, on_cpu, strict=True):
        assert_same_operand(got, want, profile)


def test_gemms():
    recipe, offs = PROFILES["pt"], end_offsets(SIZES)
    a, w = matrix(180, 64, "row_scaled", seed=3), batch(4, 48, 64, seed=4)
    grouped, experts = quantize_grouped(a, offs, recipe)[0], quantize(w, recipe)[0]
    here = grouped_gemm(grouped, experts, layout="TN", out_dtype=torch.float32)
    there = quantize_grouped(a.cuda(), offs.cuda(), recipe)[0]
    assert_same_bits(grouped_gemm(there, experts.to("cuda"), layout="TN", out_dtype=torch.float32), here)
    one, two = quantize(a, recipe)[0], quantize(w[0], recipe)[0]
    bias, c = matrix(1, 48, seed=5)[0], matrix(180, 48, seed=6)
    options = {"beta": 0.7, "activation": "relu2", "out_dtype": torch.float32}
    on_cpu = gemm(one, two, bias=bias, c=c, **options)
    on_gpu = gemm(one.to("cuda"), two.to("cuda"), bias=bias.cuda(), c=c.cuda(), **options)
    assert_same_bits(on_gpu, on_cpu)
    assert torch.equal(in_exact_regime(one.to("cuda"), two.to("cuda")).cpu(), in_exact_regime(one, two))


def test_swiglu():
    """fp64 exp may differ in its last bit, which all but never reaches a bf16."""
    x = matrix(64, 512, seed=7)
    distance = ulps(swiglu(x.cuda(), 32), swiglu(x, 32))
    assert int(distance.max()) <= 1 and float((distance > 0).float().mean()) < 1e-4
