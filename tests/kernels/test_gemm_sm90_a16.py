"""16-bit activations times an NVFP4 weight on Hopper, against the oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import gemm_choice_sm90 as choice
from cutefp4 import ops_gemm_sm90 as ops
from cutefp4.budget_sm90 import with_most_stages
from cutefp4.epilogue_text import default_text, tree_of
from cutefp4.errors import UnsupportedError
from cutefp4.gemm_request_sm90 import GemmRequest
from cutefp4.heuristics import sm90
from tests.compare import assert_same_bits
from tests.kernels.hopper import DEVICES, check_w4a16, operand, poisoned, running_on, weight_values


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 300, 256), (20, 264, 128), (150, 136, 192)])
def test_w4a16(device, dtype, m, n, k):
    check_w4a16(device, dtype, m, n, k)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["wide", "pairs", "long", "pairs_stream", "square", "small"])
def test_w4a16_in_the_order_of_memory(device, seed, dtype, name):
    config = {
        "wide": sm90.WIDE,
        "pairs": sm90.PAIRS[0],
        "long": sm90.LONG,
        "pairs_stream": replace(sm90.PAIRS[0], stream_k=True),
        "square": replace(sm90.SQUARE, k_blocks=1, stream_k=True),
        "small": replace(sm90.direct(sm90.SMALL[4]), stream_k=True),
    }[name]
    m, n, k = 270, 300, 320
    w = operand(n, k, 12, layout="tiled" if seed else "compact", device=device)
    x = torch.randint(-8, 9, (m, k), generator=torch.Generator().manual_seed(3)).to(getattr(torch, dtype)) / 4
    tree = tree_of(default_text((448,), ("none", "column")))
    request = GemmRequest(m, n, k, 1, "bfloat16", dtype, "tiled", w.scale_layout, tree)
    config = replace(config, swap_ab=True, decode_to=dtype)
    config = with_most_stages(config, *request.shape().operands(config), request.staged_store())
    plan = choice.plan_with(config, request, "sm_90a")
    ctas = 4 if device == "cpu" else 132
    d = poisoned(1, m, n, device=device)
    unused = torch.zeros(16, dtype=torch.uint8, device=device)
    with running_on(device, seed=seed, sms=4):
        tensors = (d, w.amax[None], *ops.buffers(plan, request, ctas, w.device))
        kernel_cache.get(plan)(x[None].to(device), unused, w.codes[None], ops._scales(w), tensors, ctas)
    acc = (x.double() @ weight_values(w).T).float()
    constant = torch.ones(()) / (6.0 * 448)
    assert_same_bits(d[0].cpu(), (constant * (w.amax.cpu() * acc)).bfloat16())


def test_w4a16_names_what_is_wrong():
    x = torch.zeros(4 * 64 + 1, dtype=torch.bfloat16)[1:].view(4, 64)
    with running_on("cpu"), pytest.raises(UnsupportedError, match="16-byte aligned"):
        ops.gemm_a16(x, operand(64, 64, 1))
