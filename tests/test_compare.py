"""The comparisons and the guarded buffers that the other tests rely on do notice differences, and say where."""

from dataclasses import replace

import pytest
import torch

from cutefp4.recipe import QuantRecipe
from cutefp4.reference import quantize, quantize_grouped
from tests.cases import end_offsets, guarded, matrix, poison, ragged_sizes, strided
from tests.compare import assert_close, assert_same_bits, assert_same_operand, assert_ulps, ulps


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x: x.index_put((torch.tensor(2), torch.tensor(3)), torch.tensor(9.0)), ["(2, 3)", "9.0", "1 of 20"]),
        (lambda x: torch.where(x == 0, -0.0, x), ["(0, 0)", "-0.0"]),
        (lambda x: x.double(), ["dtype torch.float64, expected torch.float32"]),
        (lambda x: x[:3], ["shape (3, 5), expected (4, 5)"]),
    ],
)
def test_same_bits(change, words):
    x = torch.arange(20.0).view(4, 5)
    assert_same_bits(x.clone(), x)
    with pytest.raises(AssertionError) as error:
        assert_same_bits(change(x.clone()), x, "D")
    for word in (*words, "D: "):
        assert word in str(error.value)


def test_nan_equals_nan_of_the_same_bits():
    x = torch.tensor([torch.nan])
    assert_same_bits(x, x.clone())
    with pytest.raises(AssertionError, match="special"):
        assert_same_bits(x, -x)


@pytest.mark.parametrize("name", ["codes", "block_scales", "amax"])
@pytest.mark.parametrize("grouped", [False, True])
def test_same_operand_sees_each_tensor(name, grouped):
    x = matrix(140, 64, seed=1)
    recipe = QuantRecipe(scaling="token")
    operand = quantize_grouped(x, end_offsets((40, 100)), recipe)[0] if grouped else quantize(x, recipe)[0]
    assert_same_operand(operand, operand)
    changed = getattr(operand, name).clone()
    changed.view(torch.uint8).flatten()[3] ^= 0x10
    with pytest.raises(AssertionError, match="first difference at"):
        assert_same_operand(replace(operand, **{name: changed}), operand)


def test_same_operand_sees_padding_and_metadata():
    operand = quantize(matrix(40, 64, seed=1), QuantRecipe())[0]
    scales = operand.block_scales.clone()
    scales.view(torch.uint8).flatten()[-1] = 1  # row 127 of the tile: padding
    with pytest.raises(AssertionError, match="block_scales bytes: first difference at .127, 3."):
        assert_same_operand(replace(operand, block_scales=scales), operand)
    with pytest.raises(AssertionError, match="e4m3_max: 256, expected 448"):
        assert_same_operand(replace(operand, e4m3_max=256), operand)


def test_close():
    x = torch.ones(10, 10)
    y = x.clone()
    y[3, 4], y[5, 6] = 1.5, torch.nan
    with pytest.raises(AssertionError, match=r"\(3, 4\): 1.5, expected 1.0; 2 of 100 beyond"):
        assert_close(y, x, rtol=0.1)
    assert_close(y, x, rtol=0.1, budget=0.02)
    with pytest.raises(AssertionError):
        assert_close(x * 1.2, x, atol=torch.full((10, 10), 0.1))
    assert_close(x * 1.05, x, atol=torch.full((10, 10), 0.1))


def test_ulps():
    x = torch.tensor([1.0, -1.0, 0.0, -0.0], dtype=torch.bfloat16)
    y = torch.tensor([1 + 2.0**-7, -1 - 2.0**-6, -0.0, 0.0], dtype=torch.bfloat16)
    assert ulps(y, x).tolist() == [1, 2, 0, 0]
    assert_ulps(y, x, 2)
    with pytest.raises(AssertionError, match=r"first beyond 1 ulps at \(1,\)"):
        assert_ulps(y, x, 1)
    assert int(ulps(torch.tensor([2.0**-149]), torch.tensor([-(2.0**-149)]))) == 2


@pytest.mark.parametrize("place, words", [(-1, "byte -1 before"), (24, "byte 24 behind")])
def test_guarded_buffers_notice_writes_outside(place, words):
    buffer = guarded((2, 3), torch.float32)
    assert buffer.untouched() and buffer.tensor.data_ptr() % 16 == 0
    buffer.tensor.fill_(1)
    buffer.check()
    assert not buffer.untouched()
    buffer.memory[buffer.margin + place] = 0
    with pytest.raises(AssertionError, match=words):
        buffer.check()


def test_strided_and_poisoned_inputs():
    x = matrix(4, 16)
    view = strided(x)
    assert torch.equal(view, x) and not view.is_contiguous() and view.stride(1) == 1
    assert set(poison(x.clone()).view(torch.uint8).flatten().tolist()) == {0xA5}


def test_ragged_sizes_sum_up():
    for seed in range(20):
        sizes = ragged_sizes(7, 300, seed)
        assert sum(sizes) == 300 and min(sizes) >= 0 and len(sizes) == 7
    assert any(0 in ragged_sizes(7, 300, seed) for seed in range(20))
