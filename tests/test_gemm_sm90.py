"""The Hopper GEMM: configurations and budgets, SASS of what the heuristic chooses, and results against the oracle.

Results are compared bit for bit: operands have few significant bits, so that every sum is exact in fp32 in any order.
They run on a Hopper GPU if there is one, and the smaller ones in the emulator everywhere.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import fields, replace

import pytest
import torch

import cutefp4
from cutefp4 import compile as kernel_cache
from cutefp4 import emulator, reference
from cutefp4 import gemm_choice_sm90 as choice
from cutefp4 import ops_gemm_sm90 as ops
from cutefp4.budget_sm90 import (
    SM90_REGISTERS,
    SM90_SMEM_BYTES,
    sm90_budget_table,
    sm90_registers,
    sm90_smem,
    with_most_stages,
)
from cutefp4.config import Sm90Config, Sm90Operand
from cutefp4.epilogue import (
    Column,
    ColumnAmax,
    Row,
    RowAmax,
    Store,
    SwigluPair,
    Tile,
    default_epilogue,
    epilogue,
    relu,
    silu,
    unary,
)
from cutefp4.epilogue_text import default_text, tree_of
from cutefp4.errors import OperandError, UnsupportedError
from cutefp4.format import gemm_constant
from cutefp4.gemm_plan import Sm90GemmPlan
from cutefp4.heuristics import sm90
from cutefp4.legality_sm90 import sm90_problems
from cutefp4.operand import Nvfp4Operand
from cutefp4.sass import disassemble
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


# ---------------------------------------------------------------- configurations

W4A4 = (Sm90Operand(256), Sm90Operand(128))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tile_m": 192}, "not a multiple of 64 \\* consumer_groups"),
        ({"tile_m": 384, "consumer_groups": 3, "tile_n": 96}, "tile_n=96 neither divides 128"),
        ({"tile_n": 512}, "not a wgmma N"),
        ({"k_blocks": 3}, "k_blocks=3 is not one of 1, 2, 4"),
        ({"decode_to": "float32"}, "decode_to='float32' is not one of"),
        ({"mma_stages": 1}, "leaves nothing to overlap"),
        ({"splits": 0}, "splits=0 is below 1"),
        ({"tile_n": 16}, "16 rows cannot be shared"),
        ({"tile_n": 256, "fragment_registers": 32}, "a consumer needs about"),
        ({"load_stages": 12}, "bytes of shared memory"),
        ({"store_passes": 8}, "4 boxes of D per warpgroup cannot be stored in 8 passes"),
        ({"stream_k": True, "splits": 2}, "choose one of them"),
        ({"tile_n": 32, "k_blocks": 2}, "does not fill the panels"),
        ({"decode_groups": 0}, "nobody decodes it"),
        ({"staged": True}, "a staged operand is decoded before the kernel"),
        ({"cluster": 2}, "only a shared operand of 16 bits is shared in a cluster"),
        (
            {"fragment_registers": 16, "mma_stages": 2, "decode_groups": 0, "steps_per_group": 1, "tile_m": 128},
            "nobody",
        ),
    ],
)
def test_each_illegal_configuration_says_why(change, reason):
    config = replace(Sm90Config(), **change)
    operands = Sm90Operand(config.tile_m), Sm90Operand(config.tile_n)
    assert any(re.search(reason, problem) for problem in sm90_problems(config, *operands))


def test_operands_must_fit_the_configuration():
    assert sm90_problems(Sm90Config(), *W4A4) == []
    assert (
        "16-bit activations must be the shared operand"
        in sm90_problems(Sm90Config(), Sm90Operand(256, 16, "none"), W4A4[1])[0]
    )
    assert "are not tile_m and tile_n" in sm90_problems(Sm90Config(), Sm90Operand(128), W4A4[1])[0]
    sixteen = Sm90Operand(128, 16, "none")
    assert "a shared operand of 16 bits needs no decoding" in sm90_problems(Sm90Config(), W4A4[0], sixteen)[0]
    shallow = replace(sm90.WIDE, staged=True, fragment_registers=32, mma_stages=2)
    operands = Sm90Operand(128), Sm90Operand(256, 16, "none")
    assert "2 stages are read by running wgmma; mma_stages=2" in sm90_problems(shallow, *operands)
    two = replace(Sm90Config(), decode_groups=2)
    assert any("compact" in p for p in sm90_problems(two, Sm90Operand(256, 4, "compact"), W4A4[1]))


SHAPES = [(m, n, k) for m in (1, 7, 16, 63, 129, 300, 1024, 8192) for n, k in ((1, 64), (2048, 7168), (7168, 16384))]


@pytest.mark.parametrize("activations", ["nvfp4", "bfloat16", "float16"])
@pytest.mark.parametrize("scales", ["tiled", "compact"])
@pytest.mark.parametrize("staged", [2, 4, 0])
def test_every_candidate_is_legal_and_within_budget(activations, scales, staged):
    for m, n, k in SHAPES:
        shape = sm90.GemmShape(m, n, k, 1, activations, scales, scales, staged)
        found = sm90.candidates(shape)
        assert found
        for config in found:
            operands = shape.operands(config)
            assert sm90_problems(config, *operands, staged) == []
            assert sm90_smem(config, *operands, staged).total <= SM90_SMEM_BYTES
            assert sm90_registers(config, scales == "compact").total(config) <= SM90_REGISTERS
            assert config.decode_to == (activations if activations != "nvfp4" else "float16")


def test_batch_invariant_choice_does_not_depend_on_m():
    chosen = {sm90.choose(sm90.GemmShape(m, 2048, 7168), batch_invariant=True) for m in (1, 16, 300, 8192)}
    assert len(chosen) == 1
    assert not chosen.pop().shares_k


def test_small_m_reads_the_weight_on_every_sm():
    config = sm90.choose(sm90.GemmShape(1, 7168, 16384))
    assert config.swap_ab and config.stream_k and config.tile_n == 16
    large = sm90.choose(sm90.GemmShape(8192, 8192, 8192))
    assert (large.tile_m, large.tile_n, large.staged, large.shares_k) == (128, 256, True, False)


def test_the_smaller_operand_is_staged():
    for m, n in ((16384, 2048), (2048, 16384)):
        config = sm90.choose(sm90.GemmShape(m, n, 4096))
        assert config.staged and config.swap_ab == (m < n)


def test_staging_is_not_worth_it_for_few_rows_of_the_other_operand():
    # SwiGLU needs the columns of D, the weight, on the shared operand: 470 MB of it for 16 rows.
    config = sm90.choose(sm90.GemmShape(16, 28672, 8192, staged_store=0, halves_columns=True))
    assert not config.staged and not config.swap_ab


def test_every_field_of_a_configuration_is_part_of_the_key():
    plan = Sm90GemmPlan("sm_90a", Sm90Config(), default_epilogue(1.0))
    changes = {"decode_to": "bfloat16", "swap_ab": True, "stream_k": True, "staged": True}
    for f in fields(Sm90Config):
        value = changes.get(f.name, getattr(plan.config, f.name) + 1 if f.name not in changes else None)
        assert replace(plan, config=replace(plan.config, **{f.name: value})).key != plan.key, f.name
    for change in ({"out_dtype": "float32"}, {"store": "pairs"}, {"activations": "float16"}, {"b_scales": "compact"}):
        assert replace(plan, **change).key != plan.key
    assert replace(plan, epilogue=default_epilogue(2.0)).key != plan.key


def test_budget_table_names_every_part():
    table = sm90_budget_table(Sm90Config(), *W4A4)
    assert "register_operand" in table and f"of {SM90_SMEM_BYTES}" in table and "consumer registers" in table


# ---------------------------------------------------------------- generated code

PLANS = {
    "wide": (replace(sm90.PAIRS[0], staged=True), "nvfp4"),
    "wide_stream": (replace(sm90.WIDE, staged=True, swap_ab=True, stream_k=True), "nvfp4"),
    "square": (replace(sm90.SQUARE, staged=True), "nvfp4"),
    "decoded": (sm90.DECODED, "nvfp4"),
    "wide_a16": (replace(sm90.PAIRS[0], swap_ab=True, decode_to="bfloat16"), "bfloat16"),
    "square_a16": (replace(sm90.SQUARE, swap_ab=True, stream_k=True), "float16"),
    "small": (replace(sm90.SMALL[0], stream_k=True), "nvfp4"),
    "small_square": (sm90.SMALL[-1], "nvfp4"),
    "small_a16": (replace(sm90.direct(sm90.SMALL[0]), stream_k=True), "float16"),
}


@pytest.mark.parametrize("name", PLANS)
def test_code_has_no_spills_and_wgmma_is_not_serialised(name):
    config, activations = PLANS[name]
    shape = sm90.GemmShape(8192, 8192, 8192, activations=activations)
    config = with_most_stages(config, *shape.operands(config))
    plan = Sm90GemmPlan("sm_90a", config, default_epilogue(1.0), activations=activations)
    code = disassemble(kernel_cache.artifacts(plan).cubin)
    assert not re.findall(r"\b(LDL|STL)\b", code)
    wgmma = re.findall(r"HGMMA\.64x(\d+)x16\.F32\S* R\d+, R\d+,", code)
    assert wgmma == [str(config.tile_n)] * (4 * config.k_blocks * config.m_atoms)
    # ptxas waits for each wgmma in turn (DEPBAR to 0) where it cannot prove that none of their registers is touched.
    assert len(re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x0", code)) == 1


EPILOGUES = {
    # alphas, bias, activation, C; dtype of D; K: with D in place where C is fp32
    "plain": (("scalar", "scalar"), "bfloat16", 4096),
    "column": (("scalar", "column"), "bfloat16", 4096),
    "full": (("row", "column", "bfloat16", "relu", "bfloat16"), "bfloat16", 4096),
    "fp32": (("row", "column"), "float32", 2048),
    "loaded": (("row", "column", None, None, "float32"), "float32", 2048),
    "mixed": (("row", "column", None, None, "float32"), "float32", 512),
}


@pytest.mark.parametrize("name", EPILOGUES)
def test_no_epilogue_takes_registers_from_the_mainloop(name):
    """The epilogue's registers count for ptxas: with 208 to a consumer, scalar alphas had serialised all wgmma."""
    arguments, dtype, k = EPILOGUES[name]
    tree = default_epilogue(gemm_constant(448, 448), *arguments)
    request = choice.GemmRequest(4096, 4096, k, 1, dtype, "nvfp4", "tiled", "tiled", tree, in_place=dtype == "float32")
    code = disassemble(kernel_cache.artifacts(choice.make_plan(request, "sm_90a", 132)).cubin)
    assert not re.findall(r"\b(LDL|STL)\b", code)
    assert len(re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x0", code)) == 1


# ---------------------------------------------------------------- results

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
    "long": (70, 136, 1088, torch.float32, 0, ("tma", "tma")),
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


def plan_of(config: Sm90Config, a: Nvfp4Operand, b: Nvfp4Operand) -> Sm90GemmPlan:
    """A plan with as many stages as fit, for operands without a batch."""
    tree = default_epilogue(gemm_constant(448, 448), "row", "column")
    plan = Sm90GemmPlan("sm_90a", config, tree, a_scales=a.scale_layout, b_scales=b.scale_layout)
    return replace(plan, config=with_most_stages(config, *plan.operands()))


def run_config(config: Sm90Config, a: Nvfp4Operand, b: Nvfp4Operand, ctas: int, times: int = 2) -> tuple:
    """D of several launches of one configuration, and its buffers after them, which were poisoned."""
    plan = plan_of(config, a, b)
    assert sm90_problems(plan.config, *plan.operands()) == []
    request = choice.GemmRequest(
        a.rows, b.rows, a.k, 1, "bfloat16", "nvfp4", a.scale_layout, b.scale_layout, plan.epilogue
    )
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


SHARED_K = {
    "splits": replace(sm90.SMALL[1], splits=3),
    "stream": replace(sm90.SMALL[1], stream_k=True),
    "staged_splits": replace(sm90.SQUARE, swap_ab=True, staged=True, splits=3),
    "staged_stream": replace(sm90.SQUARE, swap_ab=True, staged=True, stream_k=True),
    "staged_stream_pairs": replace(sm90.PAIRS[0], swap_ab=True, staged=True, stream_k=True),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SHARED_K)
@pytest.mark.parametrize("seed", [None, 11])
@pytest.mark.parametrize("ctas", [3, 4])
def test_shared_k_repeats_bit_for_bit_and_leaves_counters_at_zero(device, name, seed, ctas):
    # 5 tiles of 4 stages: shares of 3 and 4 CTAs begin and end inside tiles.
    a, b = operand(9, 1024, 8, device=device), operand(600, 1024, 9, device=device)
    with running_on(device, seed=seed, sms=ctas):
        (first, second), buffers = run_config(SHARED_K[name], a, b, ctas)
    assert_same_bits(first, expect(a, b))
    assert_same_bits(first, second)
    assert not buffers[1].any()


LARGE = {
    "wide": replace(sm90.WIDE, staged=True),
    "wide_pairs": replace(sm90.PAIRS[0], staged=True),
    "wide_swapped": replace(sm90.PAIRS[0], staged=True, swap_ab=True),
    "wide_bf16": replace(sm90.WIDE, staged=True, decode_to="bfloat16", k_blocks=1),
    "wide_long": replace(sm90.WIDE, staged=True, k_blocks=4, store_passes=4),
    "square_pairs": replace(sm90.SQUARE, staged=True, cluster=2, steps_per_group=1),
    "tall": replace(sm90.WIDE, staged=True, tile_m=256, tile_n=128, fragment_registers=32),
    "decoded": sm90.DECODED,
    "decoded_bf16": replace(sm90.DECODED, decode_to="bfloat16", store_passes=1, mma_stages=2),
}


@pytest.mark.parametrize(("device", "seed"), [("cpu", None), ("cpu", 5), pytest.param("cuda", None, marks=GPU.marks)])
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("layout", ["tiled", "compact"])
def test_large_tiles_whatever_the_heuristic_would_choose(device, name, layout, seed):
    # The emulator's K: half a stage is behind the end.
    m, n, k = (300, 264, 320) if device == "cpu" else (1100, 1032, 2112)
    a, b = operand(m, k, 8, layout=layout, device=device), operand(n, k, 9, layout=layout, device=device)
    ctas = 4 if device == "cpu" else 132
    with running_on(device, seed=seed, sms=4):
        (d,), _ = run_config(LARGE[name], a, b, ctas, times=1)
    assert_same_bits(d, expect(a, b))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["tiled", "compact"])
@pytest.mark.parametrize("k_blocks", [1, 2, 4])
@pytest.mark.parametrize("decode_to", ["float16", "bfloat16"])
def test_the_staged_operand_is_the_decoded_one_in_the_kernels_order(device, layout, k_blocks, decode_to):
    rows, k = 152, 320
    a, b = operand(64, k, 1, device=device), operand(rows, k, 2, layout=layout, device=device)
    passes = 4 if k_blocks == 4 else 2
    config = replace(sm90.WIDE, staged=True, k_blocks=k_blocks, decode_to=decode_to, store_passes=passes)
    with running_on(device):
        _, buffers = run_config(config, a, b, 4, times=1)
    # Slot 8 p + 2 t + e of sub-tile q of a stage is element pairs[p % 4][e] of word p // 4 of the quad's block t.
    pairs, exponent = {
        "float16": (((0, 2), (4, 6), (1, 3), (5, 7)), -6),
        "bfloat16": (((0, 4), (1, 5), (2, 6), (3, 7)), -7),
    }[decode_to]
    values = torch.nn.functional.pad(_weight_values(b), (0, -k % (64 * k_blocks)))
    blocks = values.view(rows, -1, 4 * k_blocks, 16)
    order = [
        [
            (2 * k_blocks * (t // 2) + 2 * q + t % 2) * 16 + 8 * (p // 4) + pairs[p % 4][e]
            for p in range(8) for t in range(4) for e in range(2)
        ]
        for q in range(k_blocks)
    ]  # fmt: skip
    expected = blocks.reshape(rows, -1, 64 * k_blocks)[..., torch.tensor(order)].reshape(rows, -1) * 2.0**exponent
    assert_same_bits(buffers[-1][0], expected.to(getattr(torch, decode_to)))


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


def _weight_values(w: Nvfp4Operand) -> torch.Tensor:
    unit = replace(w.to("cpu"), amax=torch.full_like(w.amax.cpu(), 6.0 * w.e4m3_max))
    return reference.dequantize(unit, torch.float32).double()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 300, 256), (20, 264, 128), (150, 136, 192)])
def test_w4a16(device, dtype, m, n, k):
    w = operand(n, k, 12, layout="compact" if n == 300 else "tiled", device=device)
    g = torch.Generator().manual_seed(3)
    # Quarters up to 2: every product and sum is exact.
    x = (torch.randint(-8, 9, (m, k), generator=g) / 4).to(dtype)
    bias = torch.randn(n, generator=g).bfloat16()
    with running_on(device):
        y = ops.gemm_a16(x.to(device), w, bias=bias.to(device), activation="relu", out_dtype=torch.float32)
    acc = (x.double() @ _weight_values(w).T).float()
    constant = torch.ones(()) / (6.0 * 448)
    assert_same_bits(y.cpu(), torch.relu(constant * (w.amax.cpu() * acc) + bias.float()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["wide", "pairs", "pairs_stream", "square", "small"])
def test_w4a16_in_the_order_of_memory(device, seed, dtype, name):
    config = {
        "wide": sm90.WIDE,
        "pairs": sm90.PAIRS[0],
        "pairs_stream": replace(sm90.PAIRS[0], stream_k=True),
        "square": replace(sm90.SQUARE, k_blocks=1, stream_k=True),
        "small": replace(sm90.direct(sm90.SMALL[4]), stream_k=True),
    }[name]
    m, n, k = 270, 300, 320
    w = operand(n, k, 12, layout="tiled" if seed else "compact", device=device)
    x = torch.randint(-8, 9, (m, k), generator=torch.Generator().manual_seed(3)).to(getattr(torch, dtype)) / 4
    tree = tree_of(default_text((448,), ("none", "column")))
    request = choice.GemmRequest(m, n, k, 1, "bfloat16", dtype, "tiled", w.scale_layout, tree)
    config = replace(config, swap_ab=True, decode_to=dtype)
    config = with_most_stages(config, *request.shape().operands(config), request.staged_store())
    plan = choice.plan_with(config, request, "sm_90a")
    ctas = 4 if device == "cpu" else 132
    d = poisoned(1, m, n, device=device)
    unused = torch.zeros(16, dtype=torch.uint8, device=device)
    with running_on(device, seed=seed, sms=4):
        tensors = (d, w.amax[None], *ops.buffers(plan, request, ctas, w.device))
        kernel_cache.get(plan)(x[None].to(device), unused, w.codes[None], ops._scales(w), tensors, ctas)
    acc = (x.double() @ _weight_values(w).T).float()
    constant = torch.ones(()) / (6.0 * 448)
    assert_same_bits(d[0].cpu(), (constant * (w.amax.cpu() * acc)).bfloat16())


def test_w4a16_names_what_is_wrong():
    x = torch.zeros(4 * 64 + 1, dtype=torch.bfloat16)[1:].view(4, 64)
    with running_on("cpu"), pytest.raises(UnsupportedError, match="16-byte aligned"):
        ops.gemm_a16(x, operand(64, 64, 1))


# ---------------------------------------------------------------- epilogue trees


@epilogue
def forward_tree(acc, alpha_a: Row(), alpha_b: Column(), bias: Column("bfloat16")):
    z = 2.0**-20 * (alpha_b * (alpha_a * acc)) + bias
    return relu(z), Store(z, "float32", "pre"), RowAmax(z, "rows"), ColumnAmax(z, "columns")


@epilogue
def backward_tree(acc, alpha_a: Row(), pre: Tile("bfloat16")):
    return (alpha_a * acc) * unary("silu_grad", pre)


@epilogue
def swiglu_tree(acc, alpha_a: Row()):
    return SwigluPair(2.0**-12 * (alpha_a * acc))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("m", [9, 131])
def test_a_composed_tree_with_every_sink(device, m):
    n, k = 136, 128
    a, b = operand(m, k, 1, device=device), operand(n, k, 2, device=device)
    bias = torch.randn(n, generator=torch.Generator().manual_seed(1)).bfloat16().to(device)
    sinks = {
        "pre": poisoned(m, n, dtype=torch.float32, device=device),
        "rows": torch.zeros(m, device=device),
        "columns": torch.zeros(n, device=device),
    }
    with running_on(device):
        tensors = {"bias": bias, **sinks}
        d = cutefp4.gemm(a, b, epilogue=forward_tree, tensors=tensors, backend=BACKEND[device])
    acc = (_weight_values(a) @ _weight_values(b).T).float()
    z = 2.0**-20 * (b.amax.cpu() * (a.amax.cpu()[:, None] * acc)) + bias.cpu().float()
    assert_same_bits(sinks["pre"].cpu(), z)
    assert_same_bits(d.cpu(), torch.relu(z).bfloat16())
    assert_same_bits(sinks["rows"].cpu(), z.abs().amax(1))
    assert_same_bits(sinks["columns"].cpu(), z.abs().amax(0))


@pytest.mark.parametrize("device", DEVICES)
def test_a_derivative_of_a_saved_pre_activation(device):
    a, b = operand(66, 64, 1, device=device), operand(40, 64, 2, device=device)
    pre = torch.randn(66, 40, generator=torch.Generator().manual_seed(1)).bfloat16()
    with running_on(device):
        tensors = {"pre": pre.to(device)}
        options = {"out_dtype": torch.float32, "backend": BACKEND[device]}
        d = cutefp4.gemm(a, b, epilogue=backward_tree, tensors=tensors, **options)
    x = pre.double().requires_grad_()
    torch.nn.functional.silu(x).sum().backward()
    acc = (_weight_values(a) @ _weight_values(b).T).float()
    expected = (a.amax.cpu()[:, None] * acc).double() * x.grad
    # The derivative passes through zero: what is left of its terms there is compared with their size.
    torch.testing.assert_close(d.cpu().double(), expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("device", DEVICES)
def test_swiglu_over_column_pairs(device):
    a, b = operand(70, 64, 1, device=device), operand(72, 64, 2, device=device)
    with running_on(device):
        d = cutefp4.gemm(a, b, epilogue=swiglu_tree, out_dtype=torch.float32, backend=BACKEND[device])
    z = 2.0**-12 * (a.amax.cpu()[:, None] * (_weight_values(a) @ _weight_values(b).T).float()).double()
    torch.testing.assert_close(
        d.cpu().double(), torch.nn.functional.silu(z[:, 0::2]) * z[:, 1::2], rtol=2e-6, atol=1e-5
    )


def test_trees_are_checked_and_compared():
    with pytest.raises(OperandError, match="declare it"):
        epilogue(lambda acc, alpha: acc * alpha)
    with pytest.raises(OperandError, match="D's expression first"):
        epilogue(lambda acc: Store(acc, "float32"))
    with pytest.raises(OperandError, match="activation 'tanh'"):
        unary("tanh", silu(1.0))
    assert default_epilogue(2.0) == default_epilogue(2.0) != default_epilogue(3.0)


# ---------------------------------------------------------------- on the GPU alone


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
