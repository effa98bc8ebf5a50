"""Composed epilogues on an emulated Blackwell GPU, through the public functions: D, sinks, and D as NVFP4."""

import pytest
import torch

import cutefp4
from cutefp4 import QuantRecipe, backend, emulator, ops
from cutefp4.epilogue import Column, Nvfp4, Row, RowAmax, Scalar, Store, SwigluPair, Tile, fma, relu
from cutefp4.errors import OperandError, UnsupportedError
from tests.cases import matrix
from tests.compare import assert_same_bits, assert_same_operand

TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")
TENSOR = QuantRecipe()
N, K = 144, 272


@cutefp4.epilogue
def affine(z, bias: Column("bfloat16"), shift: Scalar(), c: Tile()):
    y = relu(z + bias) - shift
    return fma(0.5, c, y), Store(y, "float16", "pre"), RowAmax(y, "amax")


@cutefp4.epilogue
def gated(z):
    return SwigluPair(z)


@cutefp4.epilogue
def quantized_tokens(z, amax: Row(), bias: Column("bfloat16")):
    y = relu(z + bias)
    return Nvfp4(y, amax, TOKEN, "bfloat16"), RowAmax(y, "next"), Store(y, "bfloat16", "plain")


@cutefp4.epilogue
def quantized(z, amax: Scalar()):
    return Nvfp4(z, amax, TENSOR)


@cutefp4.epilogue
def gated_tokens(z, amax: Row()):
    y = SwigluPair(z)
    return Nvfp4(y, amax, TOKEN), RowAmax(y, "next")


def pair(m: int, recipe=TOKEN, n: int = N):
    return tuple(cutefp4.quantize(matrix(*s, seed=i), recipe) for i, s in enumerate(((m, K), (n, K))))


@pytest.mark.parametrize("m", [20, 150])
def test_kernels_equal_the_reference(m):
    """With few rows, D is computed transposed and K is shared."""
    a, b = pair(m)
    g = torch.Generator().manual_seed(7)
    tensors = {
        "bias": torch.randn(N, generator=g).bfloat16(),
        "shift": torch.rand((), generator=g),
        "c": torch.randn(m, N, generator=g),
        "pre": torch.full((m, N), torch.nan, dtype=torch.float16),
        "amax": torch.zeros(m),
    }
    mine = {name: t.clone() for name, t in tensors.items()}
    want = cutefp4.gemm(a, b, epilogue=affine, tensors=tensors, out_dtype=torch.float32)
    with emulator.device("sm_100a", sms=2, seed=5):
        got = cutefp4.gemm(a, b, epilogue=affine, tensors=mine, out_dtype=torch.float32, backend="emulator")
    assert_same_bits(got, want)
    for name in tensors:
        assert_same_bits(mine[name], tensors[name])


def test_swiglu():
    a, b = pair(20)
    with emulator.device("sm_100a", sms=2):
        got = cutefp4.gemm(a, b, epilogue=gated, out_dtype=torch.float32, backend="emulator")
    want = cutefp4.gemm(a, b, epilogue=gated, out_dtype=torch.float32)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("m", [20, 150])
def test_d_is_what_quantize_makes_of_it(m):
    """A linear layer that hands NVFP4 to the next one: amax of this step's rows measured for the step after."""
    a, b = pair(m)
    bias = torch.linspace(-1, 1, N).bfloat16()
    y = cutefp4.gemm(a, b, bias=bias, activation="relu")
    amax = y.float().amax(1) * 1.25
    expected = cutefp4.quantize(y, TOKEN, amax=amax)

    def tensors():
        plain = torch.full((m, N), torch.nan, dtype=torch.bfloat16)
        return {"amax": amax.clone(), "bias": bias, "next": torch.zeros(m), "plain": plain}

    reference, mine = tensors(), tensors()
    want = cutefp4.gemm(a, b, epilogue=quantized_tokens, tensors=reference)
    with emulator.device("sm_100a", sms=2, seed=3):
        got = cutefp4.gemm(a, b, epilogue=quantized_tokens, tensors=mine, backend="emulator")
        following = cutefp4.gemm(got, b=cutefp4.quantize(matrix(64, N), TOKEN, backend="reference"), backend="emulator")
    for d, sinks in ((want, reference), (got, mine)):
        assert_same_operand(d.rowwise, expected.rowwise, "D")
        assert_same_bits(sinks["plain"], y)
        assert_same_bits(sinks["next"].bfloat16(), y.amax(1))
    assert following.shape == (m, 64)


@pytest.mark.parametrize(("m", "n"), [(20, 96), (150, 192), (130, 320), (33, 32)])
def test_gate_and_up_to_nvfp4(m, n):
    """SwiGLU and the cast of its result in the epilogue; n ends within a scale tile or a panel of one."""
    a, b = pair(m, n=n)
    with emulator.device("sm_100a", sms=2, seed=m):
        y = cutefp4.gemm(a, b, epilogue=gated, out_dtype=torch.float32, backend="emulator")
        tensors = {"amax": 0.8 * y.abs().amax(1), "next": torch.zeros(m)}
        got = cutefp4.gemm(a, b, epilogue=gated_tokens, tensors=tensors, backend="emulator")
    assert_same_operand(got.rowwise, cutefp4.quantize(y, TOKEN, amax=tensors["amax"]).rowwise, f"{m}x{n}")
    assert_same_bits(tensors["next"], y.abs().amax(1))
    reference = cutefp4.gemm(a, b, epilogue=gated_tokens, tensors={**tensors, "next": torch.zeros(m)})
    assert reference.shape == got.shape == (m, n // 2)


def test_tensor_scaling_and_fp32_values():
    a, b = pair(33, TENSOR)
    y = cutefp4.gemm(a, b, out_dtype=torch.float32)
    amax = y.abs().amax()
    with emulator.device("sm_103a", sms=2):
        got = cutefp4.gemm(a, b, epilogue=quantized, tensors={"amax": amax}, backend="emulator")
    assert_same_operand(got.rowwise, cutefp4.quantize(y, TENSOR, amax=amax).rowwise, "D")


def test_refusals():
    a, b = pair(20, TENSOR)
    tensors = {"amax": torch.ones(())}
    with pytest.raises(OperandError, match="leave them out"):
        cutefp4.gemm(a, b, epilogue=quantized, tensors=tensors, out=torch.empty(20, N))
    with pytest.raises(OperandError, match="inside an expression"):

        @cutefp4.epilogue
        def inner(z, amax: Scalar()):
            return relu(Nvfp4(z, amax, TENSOR))

    odd = cutefp4.quantize(matrix(24, K), TENSOR)
    with emulator.device("sm_100a"), pytest.raises(OperandError, match="whole blocks"):
        cutefp4.gemm(a, odd, epilogue=quantized, tensors=tensors, backend="emulator")
    with emulator.device("sm_90a"), pytest.raises(UnsupportedError, match="Hopper"):
        cutefp4.gemm(a, b, epilogue=quantized, tensors=tensors, backend="emulator")


def test_one_graph_of_torch_compile(monkeypatch):
    """The product, its sinks and its NVFP4 result are one operator; the emulator itself cannot be traced."""
    monkeypatch.setenv("CUTEFP4_BACKEND", "emulator")
    operations = {"gemm_tree": ops.GEMM["sm_100a"]["gemm_tree"]}
    a, b = (cutefp4.quantize(matrix(*shape), TOKEN, backend="reference") for shape in ((20, K), (N, K)))
    monkeypatch.setattr(backend, "kernel_operations", lambda _: operations)

    def layer(a, b, amax, plain):
        tensors = {"amax": amax, "bias": torch.ones(N).bfloat16(), "next": torch.zeros(20), "plain": plain}
        d = cutefp4.gemm(a, b, epilogue=quantized_tokens, tensors=tensors).rowwise
        return d.codes, d.block_scales.view(torch.uint8), tensors["next"], plain

    with emulator.device("sm_100a", sms=2):
        arguments = torch.full((20,), 3.0), torch.zeros(20, N, dtype=torch.bfloat16)
        want = layer(a, b, arguments[0], arguments[1].clone())
        got = torch.compile(layer, backend="aot_eager", fullgraph=True)(a, b, *arguments)
    for mine, eager in zip(got, want, strict=True):
        assert torch.equal(mine, eager)


def test_16_bit_activations_are_refused_before_launch():
    _, w = pair(20)
    x = torch.zeros(4, K, dtype=torch.bfloat16)
    with emulator.device("sm_100a") as device:
        with pytest.raises(UnsupportedError, match="gemm_a16 for sm_100a"):
            cutefp4.gemm_a16(x, w, backend="emulator")
        with pytest.raises(UnsupportedError, match="gemm_a16 on Blackwell"):
            cutefp4.gemm_plan(x, w, backend="emulator")
        assert not device.report().reports
    assert "gemm_a16" not in ops.GEMM["sm_103a"]


def test_explain_says_what_runs():
    a, b = pair(150)
    with emulator.device("sm_100a", sms=148):
        text = cutefp4.gemm_plan(a, b, backend="emulator").explain()
    for words in ("CTA(s) per MMA", "cluster", "scheduler", "acc 0", "SFB", "stages of", "registers", "not measured"):
        assert words in text, (words, text)
