"""The public functions and layers inside torch.compile.

Kernels are stood in for by custom operators over the oracle, plugged in as a kernel backend is; the oracle itself is
never compiled, since a code generator would reorder its roundings.
"""

import pytest
import torch

import cutefp4
from cutefp4 import NVFP4Tensor, QuantRecipe, backend, reference
from cutefp4.nn import Linear
from cutefp4.operand import Nvfp4Operand
from cutefp4.scale_layout import scale_shape
from cutefp4.tensor import NVFP4Copies
from tests.cases import matrix
from tests.compare import assert_same_bits, assert_same_operand

RECIPE = QuantRecipe(scaling="token", arithmetic="per_token")
LIBRARY = torch.library.Library("cutefp4_stand_in", "DEF")


def _quantize(x, columnwise):
    operand = reference.quantize(x, RECIPE, rowwise=not columnwise, columnwise=columnwise)[columnwise]
    return operand.codes, operand.block_scales.view(torch.uint8), operand.amax


def _fake_quantize(x, columnwise):
    rows, k = reversed(x.shape) if columnwise else x.shape
    codes, scales = (x.new_empty(s, dtype=torch.uint8) for s in ((rows, k // 2), scale_shape(rows, k, "tiled")))
    return codes, scales, x.new_empty(rows, dtype=torch.float32)


def _operand(codes, scales, amax):
    return Nvfp4Operand(codes, scales.view(torch.float8_e4m3fn), amax, "token")


def _gemm(*parts):
    return reference.gemm(_operand(*parts[:3]), _operand(*parts[3:]), out_dtype=torch.float32)


LIBRARY.define("quantize(Tensor x, bool columnwise) -> (Tensor, Tensor, Tensor)")
LIBRARY.define("gemm(Tensor ac, Tensor asf, Tensor aa, Tensor bc, Tensor bsf, Tensor ba) -> Tensor")
LIBRARY.impl("quantize", _quantize, "CPU")
LIBRARY.impl("quantize", _fake_quantize, "Meta")
LIBRARY.impl("gemm", _gemm, "CPU")
LIBRARY.impl("gemm", lambda *p: p[0].new_empty(p[0].shape[0], p[3].shape[0], dtype=torch.float32), "Meta")
OPS = torch.ops.cutefp4_stand_in


def stand_in_quantize(x, recipe, *, rowwise, columnwise, **_):
    wanted = ((False, rowwise), (True, columnwise))
    return tuple(_operand(*OPS.quantize(x, copy)) if want else None for copy, want in wanted)


def stand_in_gemm(a, b, *, bias, out_dtype, **_):
    parts = [t for op in (a, b) for t in (op.codes, op.block_scales.view(torch.uint8), op.amax)]
    d = OPS.gemm(*parts)
    return (d if bias is None else d + bias.float()).to(out_dtype)


@pytest.fixture
def kernels(monkeypatch):
    """CPU tensors are served by the stand-ins."""
    operations = {"quantize": stand_in_quantize, "gemm": stand_in_gemm}
    monkeypatch.setattr(backend, "kernel_operations", lambda _: operations)
    monkeypatch.setenv("CUTEFP4_BACKEND", "emulator")
    torch._dynamo.reset()


def compiled(function, fullgraph=True):
    return torch.compile(function, backend="aot_eager", fullgraph=fullgraph)


def test_quantize_and_gemm_in_one_graph(kernels):
    x = matrix(32, 64)
    w = cutefp4.quantize(matrix(48, 64, seed=1), RECIPE)

    def step(x, w):
        q = cutefp4.quantize(x, RECIPE, columnwise=True)
        return cutefp4.gemm(q, w), q

    y, q = compiled(step)(x, w)
    expected, eager = step(x, w)
    assert_same_bits(y, expected)
    # Tracing returns the copies without the torch.Tensor around them.
    assert type(q) is NVFP4Copies and type(eager) is NVFP4Tensor
    tensor = NVFP4Tensor(q.rowwise, q.columnwise, q.dtype, q.recipe)
    for copy in eager.copies:
        assert_same_operand(getattr(tensor, copy), getattr(eager, copy))
    assert_same_bits(cutefp4.dequantize(q, backend="reference"), eager.dequantize())


def test_a_layer_trains_in_one_graph(kernels):
    torch.manual_seed(0)
    layer, x, dy = Linear(64, 48), torch.randn(32, 64, requires_grad=True), torch.randn(32, 48)
    results = []
    for f in (layer, compiled(layer)):
        y = f(x)
        results.append((y.detach(), *torch.autograd.grad(y, (x, layer.weight, layer.bias), dy)))
    for got, want in zip(*results, strict=True):
        assert_same_bits(got, want)
    frozen = layer.freeze()
    with torch.no_grad():
        assert_same_bits(compiled(frozen)(x), frozen(x))


def test_the_oracle_is_not_compiled_but_works():
    """On the reference backend the graph breaks at the call, and results are the eager ones."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer, x = Linear(64, 48), torch.randn(32, 64)
    with torch.no_grad():
        assert_same_bits(compiled(layer, fullgraph=False)(x), layer(x))
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch._dynamo.reset()
            compiled(layer)(x)
