"""What tests of the Hopper GEMM share: operands whose sums are exact, launches of one configuration, where they run.

Operands have few significant bits, so that every sum is exact in fp32 in any order, and results are compared bit for
bit. They run on a Hopper GPU if there is one, and the smaller ones in the emulator everywhere.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import emulator, reference
from cutefp4 import ops_gemm_sm90 as ops
from cutefp4.budget_sm90 import with_most_stages
from cutefp4.config import Sm90Config
from cutefp4.epilogue import default_epilogue
from cutefp4.format import gemm_constant
from cutefp4.gemm_plan import Sm90GemmPlan
from cutefp4.gemm_request_sm90 import GemmRequest
from cutefp4.legality_sm90 import sm90_problems
from cutefp4.operand import Nvfp4Operand
from cutefp4.scale_layout import to_tiled
from tests.compare import assert_same_bits

GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.sm90])
DEVICES = ["cpu", GPU]
BACKEND = {"cpu": "emulator", "cuda": None}


@contextlib.contextmanager
def running_on(device: str, seed: int | None = None, sms: int = 4):
    """Kernels run on the GPU, or on an emulated Hopper with a few SMs."""
    if device == "cuda":
        yield
    else:
        with emulator.device("sm_90a", sms=sms, seed=seed):
            yield


def operand(rows: int, k: int, seed: int, scaling="token", layout="tiled", batch=(), device="cpu") -> Nvfp4Operand:
    """Random codes, and scales within a factor of 4: sums of products are exact in fp32 for every K used here."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (*batch, rows, k // 2), generator=g, dtype=torch.uint8)
    scales = torch.randint(0x38, 0x48, (*batch, rows, k // 16), generator=g, dtype=torch.uint8)
    scales = (to_tiled(scales) if layout == "tiled" else scales).view(torch.float8_e4m3fn)
    amax = torch.rand((*batch, *((rows,) if scaling == "token" else ())), generator=g) * 900 + 100
    return Nvfp4Operand(codes, scales, amax, scaling, 448, layout, rows, k).to(device)


def poisoned(*shape: int, dtype=torch.bfloat16, device="cpu") -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


def expect(a: Nvfp4Operand, b: Nvfp4Operand, **keywords) -> torch.Tensor:
    return reference.gemm(a.to("cpu"), b.to("cpu"), **keywords)


def weight_values(w: Nvfp4Operand) -> torch.Tensor:
    unit = replace(w.to("cpu"), amax=torch.full_like(w.amax.cpu(), 6.0 * w.e4m3_max))
    return reference.dequantize(unit, torch.float32).double()


def plan_of(config: Sm90Config, a: Nvfp4Operand, b: Nvfp4Operand) -> Sm90GemmPlan:
    """A plan with as many stages as fit, for operands without a batch."""
    tree = default_epilogue(gemm_constant(448, 448), "row", "column")
    plan = Sm90GemmPlan("sm_90a", config, tree, a_scales=a.scale_layout, b_scales=b.scale_layout)
    return replace(plan, config=with_most_stages(config, *plan.operands()))


def run_config(config: Sm90Config, a: Nvfp4Operand, b: Nvfp4Operand, ctas: int, times: int = 2) -> tuple:
    """D of several launches of one configuration, and its buffers after them, which were poisoned."""
    plan = plan_of(config, a, b)
    assert sm90_problems(plan.config, *plan.operands()) == []
    request = GemmRequest(a.rows, b.rows, a.k, 1, "bfloat16", "nvfp4", a.scale_layout, b.scale_layout, plan.epilogue)
    buffers = ops.buffers(plan, request, ctas, a.device)
    for buffer in buffers:
        if buffer.is_floating_point():
            buffer.fill_(float("nan"))
    scales = [ops._scales(x) for x in (a, b)]
    results = []
    for _ in range(times):
        d = poisoned(1, a.rows, b.rows, device=a.device)
        tensors = (d, a.amax[None], b.amax[None], *buffers)
        kernel_cache.get(plan)(a.codes[None], scales[0], b.codes[None], scales[1], tensors, ctas)
        results.append(d[0].cpu())
    return results, [buffer.cpu() for buffer in buffers]


def check_w4a16(device: str, dtype: torch.dtype, m: int, n: int, k: int) -> None:
    """`gemm_a16` with bias and relu against float64, bit for bit: whatever configuration is chosen."""
    w = operand(n, k, 12, layout="compact" if n == 300 else "tiled", device=device)
    g = torch.Generator().manual_seed(3)
    # Quarters up to 2: every product and sum is exact.
    x = (torch.randint(-8, 9, (m, k), generator=g) / 4).to(dtype)
    bias = torch.randn(n, generator=g).bfloat16()
    with running_on(device):
        y = ops.gemm_a16(x.to(device), w, bias=bias.to(device), activation="relu", out_dtype=torch.float32)
    acc = (x.double() @ weight_values(w).T).float()
    constant = torch.ones(()) / (6.0 * 448)
    assert_same_bits(y.cpu(), torch.relu(constant * (w.amax.cpu() * acc) + bias.float()))
