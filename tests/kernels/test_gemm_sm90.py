"""W4A4 products on Hopper as users ask for them, against the oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import cutefp4
from cutefp4 import ops_gemm_sm90 as ops
from cutefp4.operand import Nvfp4Operand
from tests.compare import assert_same_bits
from tests.kernels.hopper import BACKEND, DEVICES, expect, operand, poisoned, running_on

TAILS = [
    (1, 1, 16, "tensor", "tensor", "tiled", "tiled"),
    (7, 63, 48, "token", "tensor", "tiled", "compact"),
    (129, 300, 208, "token", "token", "compact", "tiled"),
    (300, 129, 64, "tensor", "token", "compact", "compact"),
    (63, 7, 192, "token", "token", "tiled", "tiled"),
    (300, 264, 128, "token", "token", "tiled", "tiled"),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", TAILS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_tails_scalings_and_scale_layouts(device, case, dtype):
    m, n, k, scaling_a, scaling_b, layout_a, layout_b = case
    a = operand(m, k, 1, scaling_a, layout_a, device=device)
    b = operand(n, k, 2, scaling_b, layout_b, device=device)
    d = poisoned(m, n, dtype=dtype, device=device)
    with running_on(device):
        ops.gemm(a, b, out=d, out_dtype=dtype)
    assert_same_bits(d.cpu(), expect(a, b, out_dtype=dtype))


@pytest.mark.gpu
@pytest.mark.sm90
@pytest.mark.parametrize("m", [1, 7, 16, 63, 129, 300])
@pytest.mark.parametrize("n", [1, 7, 63, 129, 300, 1024])
@pytest.mark.parametrize("k", [16, 48, 208, 4096])
def test_all_tails_on_the_gpu(m, n, k):
    for layout, dtype in (("tiled", torch.bfloat16), ("compact", torch.float16), ("tiled", torch.float32)):
        a, b = (operand(rows, k, i, layout=layout, device="cuda") for i, rows in enumerate((m, n)))
        d = poisoned(m, n, dtype=dtype, device="cuda")
        ops.gemm(a, b, out=d, out_dtype=dtype)
        assert_same_bits(d.cpu(), expect(a, b, out_dtype=dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
def test_bias_activation_and_accumulation(device, activation):
    a, b = operand(70, 128, 3, device=device), operand(72, 128, 4, device=device)
    g = torch.Generator().manual_seed(5)
    bias, c = torch.randn(72, generator=g).bfloat16(), torch.randn(70, 72, generator=g)
    expected = expect(a, b, bias=bias, activation=activation, c=c, beta=1.0, out_dtype=torch.float32)
    d = c.clone().to(device)
    with running_on(device):
        ops.gemm(a, b, bias=bias.to(device), activation=activation, c=d, beta=1.0, out=d, out_dtype=torch.float32)
    if activation in (None, "relu"):
        assert_same_bits(d.cpu(), expected)
    else:
        torch.testing.assert_close(d.cpu(), expected, rtol=2e-6, atol=2e-5)


SUMS = {
    # rows, columns, K, dtype, elements that D's base is off by: how C + z reaches memory
    "mixed": (140, 136, 96, torch.float32, 0, ("tma_add", "tma")),
    "long": (140, 136, 1088, torch.float32, 0, ("tma", "tma")),
    "odd columns": (70, 135, 96, torch.float32, 0, ("elements", "elements")),
    "pairs": (70, 134, 96, torch.float32, 0, ("elements", "pairs")),
    "misaligned": (70, 136, 96, torch.float32, 1, ("elements", "elements")),
    "bf16": (140, 136, 96, torch.bfloat16, 0, ("tma", "tma")),
    "bf16 pairs": (70, 134, 96, torch.bfloat16, 0, ("elements", "pairs")),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("case", SUMS)
def test_gradients_accumulate_in_place(device, seed, case):
    rows, columns, k, dtype, offset, (store, load) = SUMS[case]
    a, b = operand(rows, k, 1, device=device), operand(columns, k, 2, device=device)
    held = torch.randn(rows * columns + offset, generator=torch.Generator().manual_seed(1)).to(dtype).to(device)
    # Subnormal sums: the addition in memory must not flush them.
    held[offset : offset + 8] = torch.tensor([1e-40, -1e-40, 0.0, -0.0, 1e-38, -2e-38, 1e30, -1e30], dtype=dtype)
    a = replace(a, amax=torch.where(torch.arange(rows, device=device) == 0, 2e-38, a.amax))
    out = held.clone()[offset:].view(rows, columns)
    c = out.clone()
    with running_on(device, seed):
        plan = cutefp4.gemm_plan(a, b, out=out, accumulate=True, backend=BACKEND[device]).plan
        cutefp4.gemm(a, b, out=out, accumulate=True, backend=BACKEND[device])
    assert plan.load == load and (plan.store == store or (store == "elements" and plan.store == "pairs"))
    assert_same_bits(out.cpu(), expect(a, b, c=c.cpu(), beta=1.0, out_dtype=dtype))


@pytest.mark.parametrize("device", DEVICES)
def test_beta_zero_never_reads_c(device):
    a, b = operand(20, 64, 3, device=device), operand(40, 64, 4, device=device)
    c = poisoned(20, 40, dtype=torch.float32, device=device)
    with running_on(device):
        d = ops.gemm(a, b, c=c, beta=0.0)
    assert_same_bits(d.cpu(), expect(a, b))


@pytest.mark.parametrize("device", DEVICES)
def test_batches(device):
    a = operand(33, 64, 6, "token", batch=(3,), device=device)
    b = operand(48, 64, 7, "tensor", layout="compact", batch=(3,), device=device)
    with running_on(device):
        d = ops.gemm(a, b, out=poisoned(3, 33, 48, device=device))
    assert_same_bits(d.cpu(), expect(a, b))


@pytest.mark.parametrize("device", DEVICES)
def test_explain_says_what_runs(device):
    with running_on(device):
        a, b = operand(90, 208, 1, device=device), operand(48, 208, 2, device=device)
        text = cutefp4.gemm_plan(a, b, backend=BACKEND[device]).explain()
    assert "decoded in registers" in text
    assert "W4A4 90x48x208" in text and "K = 208 is padded to 256" in text and "shared memory" in text


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_alone_equals_the_row_in_a_batch(device):
    g = torch.Generator().manual_seed(1)
    a = operand(140, 256, 8, device=device)
    # Scales over the whole range: sums are rounded, so that another order would show.
    wide = torch.randint(0x10, 0x7E, (140, 16), generator=g, dtype=torch.uint8).view(torch.float8_e4m3fn)
    a = replace(a, block_scales=wide.to(device), scale_layout="compact")
    b = operand(72, 256, 9, device=device)
    with running_on(device):
        whole = ops.gemm(a, b, batch_invariant=True, out_dtype=torch.float32)
        for row in (0, 77, 139):
            alone = Nvfp4Operand(
                a.codes[row : row + 1], a.block_scales[row : row + 1], a.amax[row : row + 1], "token", 448, "compact"
            )
            one = ops.gemm(alone, b, batch_invariant=True, out_dtype=torch.float32)
            assert_same_bits(one.cpu(), whole[row : row + 1].cpu())


@pytest.mark.gpu
@pytest.mark.sm90
@pytest.mark.parametrize(("m", "n", "k"), [(1, 7168, 2048), (300, 1024, 1024), (2048, 4096, 2048)])
def test_cuda_graph_and_side_stream(m, n, k):
    a, b = operand(m, k, 1, device="cuda"), operand(n, k, 2, device="cuda")
    d = poisoned(m, n, device="cuda")
    ops.gemm(a, b, out=d)
    expected, graph = d.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.gemm(a, b, out=d)
    for _ in range(3):
        d.fill_(float("nan"))
        graph.replay()
        assert_same_bits(d, expected)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        again = ops.gemm(a, b)
    side.synchronize()
    assert_same_bits(again, expected)


@pytest.mark.gpu
@pytest.mark.sm90
@pytest.mark.parametrize(("m", "n", "k"), [(64, 128, 256), (2048, 4096, 2048)])
def test_torch_compile_keeps_one_graph(m, n, k):
    a, b = operand(m, k, 1, device="cuda"), operand(n, k, 2, device="cuda")
    compiled = torch.compile(lambda: ops.gemm(a, b) + 1, fullgraph=True)
    assert_same_bits(compiled(), ops.gemm(a, b) + 1)
