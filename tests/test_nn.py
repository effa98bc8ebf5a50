"""Layers that train in NVFP4: their passes are the API's products, and they learn."""

import copy

import pytest
import torch
from torch import nn

import cutefp4
from cutefp4 import named_recipe
from cutefp4.errors import OperandError
from cutefp4.nn import FrozenLinear, GroupedLinear, Linear, convert
from cutefp4.reference import rel_l2
from tests.cases import end_offsets, matrix
from tests.compare import assert_same_bits

RECIPES = ["te", "per_token", "te_4over6"]


@pytest.fixture(autouse=True)
def same_weights_every_time():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("recipe", RECIPES)
def test_linear_is_the_three_products(recipe, dtype):
    layer = Linear(64, 48, recipe=recipe, seed=3, dtype=dtype)
    x, dy = matrix(32, 64, dtype=dtype).requires_grad_(), matrix(32, 48, seed=1, dtype=dtype)
    y = layer(x)
    y.backward(dy)
    parts = named_recipe(recipe)
    qx = cutefp4.quantize(x, parts.x, columnwise=True)
    qw = cutefp4.quantize(layer.weight, parts.w, columnwise=True)
    qdy = cutefp4.quantize(dy, parts.dy, columnwise=True, seed=3, offset=0)
    assert_same_bits(y.detach(), cutefp4.gemm(qx, qw, bias=layer.bias.detach(), out_dtype=dtype))
    assert_same_bits(x.grad, cutefp4.gemm(qdy, qw, layout="NN", out_dtype=dtype))
    assert_same_bits(layer.weight.grad, cutefp4.gemm(qdy, qx, layout="NT", out_dtype=dtype))
    assert_same_bits(layer.bias.grad, dy.float().sum(dim=0).to(dtype))


@pytest.mark.parametrize("recipe", RECIPES)
def test_linear_is_near_the_dense_layer_for_any_number_of_tokens(recipe):
    dense = nn.Linear(128, 96)
    layer = Linear.from_dense(dense, recipe=recipe)
    assert layer.weight is dense.weight
    for shape in ((3, 7, 128), (1, 128), (2, 40, 128)):
        x = torch.randn(shape, requires_grad=True)
        dy = torch.randn(*shape[:-1], 96)
        grads = []
        for f in (layer, dense):
            y = f(x)
            assert y.shape == dy.shape
            grads.append((y.detach(), *torch.autograd.grad(y, (x, dense.weight, dense.bias), dy)))
        for got, want in zip(*grads, strict=True):
            assert rel_l2(got, want) < 0.25


def test_stochastic_bits_differ_from_call_to_call_and_repeat_from_the_same_offset():
    layer = Linear(64, 48, recipe="te", bias=False)
    x, dy = torch.randn(32, 64), torch.randn(32, 48)

    def gradient():
        layer.weight.grad = None
        layer(x).backward(dy)
        return layer.weight.grad.clone()

    first, second = gradient(), gradient()
    assert not torch.equal(first, second) and int(layer.sr_offset) == 4
    layer.sr_offset.zero_()
    assert_same_bits(gradient(), first)
    other = copy.deepcopy(layer)
    assert int(other.sr_offset) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_main_grad_accumulates_in_the_gemm(dtype):
    layer = Linear(64, 48, bias=False)
    x, dy = torch.randn(32, 64), torch.randn(32, 48)
    layer(x).backward(dy)
    gradient, layer.weight.grad = layer.weight.grad, None
    layer.weight.main_grad = torch.ones(48, 64, dtype=dtype)
    layer(x).backward(dy)
    assert layer.weight.grad is None
    assert_same_bits(layer.weight.main_grad, (1 + gradient).to(dtype))


def test_only_the_wanted_copies_are_made(monkeypatch):
    made = []
    real = cutefp4.nn.quantize

    def spy(x, recipe, **options):
        made.append(options["columnwise"])
        return real(x, recipe, **options)

    monkeypatch.setattr(cutefp4.nn, "quantize", spy)
    layer, x = Linear(64, 48), torch.randn(16, 64)
    with torch.no_grad():
        layer(x)
    assert made == [False, False]
    layer(x).sum().backward()
    assert made[2:] == [True, True, True]
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)
    assert not layer(x).requires_grad


@pytest.mark.parametrize("recipe", RECIPES)
def test_grouped_linear_is_a_loop_of_linears(recipe):
    sizes, offs = [17, 0, 30], end_offsets([17, 0, 30])
    layer = GroupedLinear(3, 64, 48, bias=True, recipe=recipe)
    x, dy = torch.randn(50, 64, requires_grad=True), torch.randn(50, 48)  # 3 tokens without an expert
    layer(x, offs).backward(dy)
    begin = 0
    for g, size in enumerate(sizes):
        rows = slice(begin, begin + size)
        begin += size
        if size == 0:
            assert not layer.weight.grad[g].any() and not layer.bias.grad[g].any()
            continue
        assert rel_l2(layer.bias.grad[g], dy[rows].sum(dim=0)) < 1e-6
        single = Linear(64, 48, recipe=recipe)
        single.weight, single.bias = nn.Parameter(layer.weight[g].detach()), nn.Parameter(layer.bias[g].detach())
        part = x[rows].detach().requires_grad_()
        y = single(part)
        y.backward(dy[rows])
        with torch.no_grad():
            assert_same_bits(layer(x, offs)[rows], y.detach())
        assert_same_bits(x.grad[rows], part.grad)
        assert_same_bits(layer.weight.grad[g], single.weight.grad)
    assert not x.grad[47:].any()
    with torch.no_grad():
        assert not layer(x, offs)[47:].any()


def test_freeze_can_leave_activations_in_16_bits():
    layer = Linear(64, 48)
    frozen = layer.freeze(a16=True)
    x = matrix(6, 64).view(2, 3, 64)
    assert_same_bits(frozen(x), cutefp4.gemm_a16(x, frozen.weight, bias=frozen.bias))
    assert_same_bits(frozen(x.mT.contiguous().mT), frozen(x))
    with pytest.raises(OperandError, match="bfloat16 or float16"):
        frozen(x.float())


def test_freeze_serves_from_four_bits():
    layer = Linear(64, 48, recipe="te")
    frozen = layer.freeze()
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        assert_same_bits(frozen(x), layer(x))
    assert isinstance(frozen, FrozenLinear) and isinstance(frozen.weight, cutefp4.NVFP4Tensor)
    assert frozen.weight.copies == ("rowwise",) and not list(frozen.buffers())
    other = Linear(64, 48, recipe="te").freeze()
    other.load_state_dict(frozen.state_dict())
    assert_same_bits(other(x), frozen(x))


def test_convert_replaces_what_fits_and_what_is_wanted():
    model = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 10)), nn.Linear(32, 32)
    )
    weights = list(model.parameters())
    before = set(model.state_dict())
    assert convert(model, "te", keep=lambda name, _: name == "3", seed=5) == ["0", "2.0"]
    assert type(model[0]) is type(model[2][0]) is Linear and model[0].seed == 5
    assert type(model[2][1]) is type(model[3]) is nn.Linear
    assert all(a is b for a, b in zip(weights, model.parameters(), strict=True))
    assert set(model.state_dict()) == before
    assert "rounding='stochastic'" in repr(model)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_converted_network_learns_as_the_dense_one_does(recipe):
    """A two-layer network fits a teacher: its loss falls more than tenfold in NVFP4."""

    def train(model):
        x = torch.randn(256, 64, generator=torch.Generator().manual_seed(1))
        target = torch.sin(x @ torch.randn(64, 16, generator=torch.Generator().manual_seed(2)) / 4)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(150):
            loss = (model(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses[0] / losses[-1]

    dense = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 16))
    quantized = copy.deepcopy(dense)
    convert(quantized, recipe)
    gains = train(dense), train(quantized)
    assert gains[0] > 100 and gains[1] > 10, gains


def test_wrong_sizes_are_refused():
    with pytest.raises(OperandError, match="out_features=10.*multiple of 16.*bfloat16, or pad it to 16"):
        Linear(64, 10)
    with pytest.raises(OperandError, match=r"\(3, 32\).*\(..., 64\)"):
        Linear(64, 48)(torch.randn(3, 32))
    with pytest.raises(OperandError, match="GroupedLinear"):
        GroupedLinear(2, 40, 48)
