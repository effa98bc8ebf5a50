"""NVFP4Tensor as a torch.Tensor: moves, copies, parameters, pickling, torch.compile."""

import copy
import io
import subprocess
import sys

import pytest
import torch

import cutefp4
from cutefp4 import NVFP4Tensor, QuantRecipe
from cutefp4.tensor import COPIES
from tests.cases import end_offsets, matrix
from tests.compare import assert_same_bits, assert_same_operand

RECIPE = QuantRecipe(scaling="token", arithmetic="per_token", rht="fp32", four_over_six="mae", e4m3_max=256)


@pytest.fixture
def tensor():
    return cutefp4.quantize(matrix(48, 80), RECIPE, columnwise=True)


def assert_same_tensor(actual, expected):
    assert type(actual) is NVFP4Tensor
    assert (actual.shape, actual.dtype, actual.recipe) == (expected.shape, expected.dtype, expected.recipe)
    assert actual.copies == expected.copies
    for name in expected.copies:
        assert_same_operand(getattr(actual, name), getattr(expected, name))


def assert_no_shared_memory(a, b):
    for name in COPIES:
        for field in ("codes", "block_scales", "amax"):
            assert getattr(getattr(a, name), field).data_ptr() != getattr(getattr(b, name), field).data_ptr()


def test_it_looks_like_the_matrix(tensor):
    assert isinstance(tensor, torch.Tensor)
    assert tensor.shape == (48, 80) and tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu"
    assert tensor.copies == COPIES
    assert tensor.quantized_nbytes == tensor.rowwise.nbytes + tensor.columnwise.nbytes
    text = repr(tensor)
    for word in ("48x80 of bfloat16", "rowwise + columnwise", "scaling=token", "e4m3_max=256", "rht=0xd7e8"):
        assert word in text
    assert f"{tensor.quantized_nbytes} bytes (dense 7680)" in text and "four_over_six='mae'" in text
    assert "recipe: unknown" in repr(NVFP4Tensor(tensor.rowwise))


def test_dequantize_uses_the_matrix_dtype():
    q = cutefp4.quantize(matrix(32, 64, dtype=torch.float16))
    assert q.dequantize().dtype == torch.float16
    assert q.dequantize(torch.float32).dtype == torch.float32


def test_clone_deepcopy_and_detach(tensor):
    for made in (tensor.clone(), copy.deepcopy(tensor)):
        assert_same_tensor(made, tensor)
        assert_no_shared_memory(made, tensor)
    detached = tensor.detach()
    assert_same_tensor(detached, tensor)
    assert detached.rowwise.codes.data_ptr() == tensor.rowwise.codes.data_ptr()


def test_moves_every_inner_tensor(tensor):
    moved = tensor.to("meta")
    assert moved.device.type == "meta" and moved.columnwise.amax.device.type == "meta"
    assert moved.rowwise.metadata() == tensor.rowwise.metadata()
    assert_same_tensor(tensor.to("cpu"), tensor)
    copied = tensor.to("cpu", copy=True)
    assert_same_tensor(copied, tensor)
    assert_no_shared_memory(copied, tensor)
    groups = cutefp4.quantize_grouped(matrix(48, 64), end_offsets([20, 28]), columnwise=True).to("meta")
    assert groups.device.type == groups.columnwise.codes.device.type == groups.rowwise.offs.device.type == "meta"


def test_copy_writes_in_place(tensor):
    other = cutefp4.quantize(matrix(48, 80, seed=9), RECIPE, columnwise=True)
    pointer = tensor.rowwise.codes.data_ptr()
    tensor.copy_(other)
    assert_same_tensor(tensor, other)
    assert tensor.rowwise.codes.data_ptr() == pointer


def test_parameter_and_state_dict(tensor):
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(tensor, requires_grad=False)
    other = torch.nn.Module()
    other.weight = torch.nn.Parameter(
        cutefp4.quantize(matrix(48, 80, seed=3), RECIPE, columnwise=True), requires_grad=False
    )
    other.load_state_dict(module.state_dict())
    assert_same_tensor(other.weight, tensor)
    assert dict(module.named_parameters())["weight"].shape == (48, 80)


@pytest.mark.parametrize("copies", [(True, False), (False, True), (True, True)])
def test_torch_save_and_load_weights_only(copies):
    rowwise, columnwise = copies
    tensor = cutefp4.quantize(matrix(32, 64), RECIPE, rowwise=rowwise, columnwise=columnwise)
    file = io.BytesIO()
    torch.save({"w": tensor}, file)
    file.seek(0)
    assert_same_tensor(torch.load(file, weights_only=True)["w"], tensor)


def test_torch_load_in_a_process_that_imports_cutefp4_alone(tensor, tmp_path):
    torch.save(tensor, tmp_path / "w.pt")
    script = f"import torch, cutefp4; print(repr(torch.load({str(tmp_path / 'w.pt')!r}, weights_only=True)))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == repr(tensor)


def test_load_validates(tensor):
    """A pickle whose parts do not fit is refused by the operand's own checks."""
    function, (inner, metadata, dtype, recipe) = tensor.__reduce_ex__(2)
    with pytest.raises(cutefp4.errors.OperandError, match="codes"):
        function({**inner, "rowwise_codes": inner["rowwise_codes"][:-1]}, metadata, dtype, recipe)


def test_flatten_and_unflatten(tensor):
    names, context = tensor.__tensor_flatten__()
    assert len(names) == 6
    inner = {name: getattr(tensor, name) for name in names}
    assert_same_tensor(NVFP4Tensor.__tensor_unflatten__(inner, context, None, None), tensor)


def test_torch_compile_takes_it_as_an_argument(tensor):
    """fullgraph: no graph break at the tensor; aot_eager runs the real tensors through the traced graph."""

    @torch.compile(backend="aot_eager", fullgraph=True)
    def double(t, x):
        return t.clone(), x * 2

    x = matrix(4, 4)
    cloned, doubled = double(tensor, x)
    assert_same_tensor(cloned, tensor)
    assert_same_bits(doubled, x * 2)
