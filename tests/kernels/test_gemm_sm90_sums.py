"""C of the Hopper GEMM, forced configurations: how it comes under the mainloop, and sums next to the largest number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import gemm_choice_sm90 as choice
from cutefp4 import ops_gemm_sm90 as ops
from cutefp4.budget_sm90 import with_most_stages
from cutefp4.config import Sm90Config
from cutefp4.epilogue import default_epilogue
from cutefp4.format import gemm_constant
from cutefp4.heuristics import sm90
from cutefp4.legality_sm90 import sm90_problems
from cutefp4.operand import Nvfp4Operand
from tests.compare import assert_same_bits
from tests.kernels.hopper import DEVICES, expect, operand, poisoned, running_on

SUMS = {
    # configuration, dtype of C and D
    "wide": (replace(sm90.PAIRS[0], staged=True, store_passes=1), "bfloat16"),
    "wide_passes": (replace(sm90.WIDE, staged=True, store_passes=2), "bfloat16"),
    "wide_fp32": (replace(sm90.WIDE, staged=True, store_passes=2), "float32"),
    "three": (replace(sm90.THREE, staged=True), "bfloat16"),
    "three_fp32": (replace(sm90.THREE, staged=True), "float32"),
    "three_fp32_pairs": (replace(sm90.THREE, staged=True, cluster=2), "float32"),
    "square_swapped": (replace(sm90.SQUARE, staged=True, swap_ab=True), "bfloat16"),
    "square_swapped_fp32": (replace(sm90.SQUARE, staged=True, swap_ab=True), "float32"),
    "split": (replace(sm90.SQUARE, staged=True, splits=2), "bfloat16"),
    "pair": (replace(sm90.WIDE, staged=True, splits=2, split_pair=True, store_passes=1), "bfloat16"),
    "decoded": (replace(sm90.DECODED, store_passes=1, mma_stages=2), "bfloat16"),
}


def run_sum(config: Sm90Config, a: Nvfp4Operand, b: Nvfp4Operand, c: torch.Tensor, in_place: bool, ctas: int):
    """D = z + C of one configuration, into C or into a poisoned D."""
    name = str(c.dtype).removeprefix("torch.")
    tree = default_epilogue(gemm_constant(448, 448), "row", "column", c=name)
    request = choice.GemmRequest(
        a.rows, b.rows, a.k, 1, name, "nvfp4", a.scale_layout, b.scale_layout, tree, in_place=in_place
    )
    operands = request.shape().operands(config)
    config = with_most_stages(config, *operands, request.staged_store())
    assert sm90_problems(config, *operands, request.staged_store()) == []
    plan = choice.plan_with(config, request, "sm_90a")
    assert plan.load == "tma" and plan.store in ("tma", "tma_add")
    buffers = ops.buffers(plan, request, ctas, a.device)
    for buffer in buffers:
        if buffer.is_floating_point():
            buffer.fill_(float("nan"))
    d = c.clone() if in_place else poisoned(*c.shape, dtype=c.dtype, device=c.device)
    source = d if in_place else c
    tensors = (d[None], a.amax[None], b.amax[None], source[None], *buffers)
    kernel_cache.get(plan)(a.codes[None], ops._scales(a), b.codes[None], ops._scales(b), tensors, ctas)
    return d


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize(("seed", "k"), [(None, 64), (5, 896)])  # one stage; more stages of K than boxes of C
def test_c_comes_under_the_mainloop(device, name, seed, k):
    config, dtype = SUMS[name]
    # Six or more tiles on four CTAs: most take several, and some are tails.
    m, n = 264, 520
    a, b = operand(m, k, 1, device=device), operand(n, k, 2, device=device)
    c = torch.randn(m, n, generator=torch.Generator().manual_seed(k)).to(getattr(torch, dtype)).to(device)
    with running_on(device, seed, sms=4):
        for in_place in (False, True):
            d = run_sum(config, a, b, c, in_place, 4)
            assert_same_bits(d.cpu(), expect(a, b, c=c.cpu(), beta=1.0, out_dtype=c.dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scaling", ["token", "tensor"])
def test_factors_next_to_the_largest_and_the_smallest_number(device, scaling):
    m, n, k = 140, 72, 64
    a, b = operand(m, k, 1, scaling, device=device), operand(n, k, 2, device=device)
    a, b = replace(a, codes=a.codes & 0x11), replace(b, codes=b.codes & 0x99, amax=b.amax * 2.0**-110)
    values = torch.tensor([2.0**116, 8.3e34, 2.0**115, 3e38, 2.0**127, float("inf"), 1e-45, 2e-38, 0.0, 1.0])
    for start in range(len(values) if scaling == "tensor" else 1):
        amax = values[start] if scaling == "tensor" else values[torch.arange(m) % len(values)]
        row = replace(a, amax=amax.to(device))
        d = poisoned(m, n, dtype=torch.float32, device=device)
        with running_on(device):
            ops.gemm(row, b, out=d, out_dtype=torch.float32)
        expected = expect(row, b, out_dtype=torch.float32)
        assert (expected.isfinite() & (expected != 0)).any() or scaling == "tensor"
        torch.testing.assert_close(d.cpu(), expected, rtol=0, atol=0, equal_nan=True)
