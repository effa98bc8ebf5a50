"""Decoding is exact, and the dequantised values follow one order of operations."""

import pytest
import torch

from cutefp4.format import E2M1_VALUES, decode_e2m1, decode_e4m3, divide, numerator, pack_codes, unpack_codes
from cutefp4.operand import Nvfp4Operand
from cutefp4.recipe import QuantRecipe
from cutefp4.reference import decoded, dequantize, quantize, quantize_grouped
from tests.cases import PROFILES, batch, end_offsets, matrix, normal
from tests.compare import assert_same_bits


def every_product() -> Nvfp4Operand:
    """127 rows, one per finite scale byte, with all 16 codes."""
    codes = torch.arange(16, dtype=torch.uint8).expand(127, 16).contiguous()
    scales = torch.arange(127, dtype=torch.uint8).view(127, 1).view(torch.float8_e4m3fn)
    return Nvfp4Operand(pack_codes(codes), scales, torch.ones(()), scale_layout="compact")


def test_every_product_is_exact_in_every_dtype():
    operand = every_product()
    scale = decode_e4m3(operand.block_scales).double()
    exact = scale * torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)], dtype=torch.float64)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        values = decoded(operand, dtype)
        assert values.dtype == dtype and torch.equal(values.double(), exact)
    nonzero = exact[exact != 0].abs()
    assert float(nonzero.min()) == 2.0**-10 and float(nonzero.max()) == numerator(448)


def test_two_decoded_operands_multiply_exactly_in_fp32():
    values = decoded(every_product())[:, :8].flatten().unique()
    exact = values.double()[:, None] * values.double()[None, :]
    assert torch.equal((values[:, None] * values[None, :]).double(), exact)


@pytest.mark.parametrize("profile", ["te1d", "pt", "te_256", "te2d"])
def test_order_of_operations(profile):
    operand = quantize(matrix(40, 64, "row_scaled", seed=1), PROFILES[profile])[0]
    q, s = decode_e2m1(unpack_codes(operand.codes)), decode_e4m3(operand.compact_scales()).repeat_interleave(16, dim=1)
    outer = divide(operand.row_amax().contiguous(), numerator(operand.e4m3_max)).unsqueeze(1)
    assert_same_bits(dequantize(operand), q * (s * outer))
    assert_same_bits(dequantize(operand, torch.bfloat16), (q * (s * outer)).to(torch.bfloat16))


def test_another_order_differs_in_last_bits_and_hardly_in_bf16():
    operand = quantize(normal(101, (512, 512)), PROFILES["pt"])[0]
    q, s = decode_e2m1(unpack_codes(operand.codes)), decode_e4m3(operand.compact_scales()).repeat_interleave(16, dim=1)
    other = q * ((s * operand.amax.unsqueeze(1)) * divide(torch.ones(()), numerator(448)))
    ours = dequantize(operand)
    assert 0.01 < float((other != ours).float().mean()) < 0.5
    assert float((other.bfloat16() != ours.bfloat16()).float().mean()) < 1e-3


def test_layout_and_batch():
    x = batch(3, 40, 64)
    for recipe in (QuantRecipe(), PROFILES["pt"]):
        tiled, compact = (quantize(x, recipe.replace(scale_layout=v))[0] for v in ("tiled", "compact"))
        assert_same_bits(dequantize(tiled), dequantize(compact))
        for i in range(3):
            assert_same_bits(dequantize(tiled)[i], dequantize(quantize(x[i], recipe)[0]))


def test_columnwise_gives_the_transpose():
    x = matrix(48, 40, seed=1)
    column = quantize(x, QuantRecipe(), rowwise=False, columnwise=True)[1]
    assert dequantize(column).shape == (40, 48)
    assert float((dequantize(column) - x.t().float()).norm() / x.float().norm()) < 0.11


@pytest.mark.parametrize("layout", ["tiled", "compact"])
def test_grouped(layout):
    sizes, x = (37, 0, 64, 20), matrix(140, 48, "row_scaled", seed=2)
    rows, columns = quantize_grouped(x, end_offsets(sizes), QuantRecipe(scale_layout=layout), columnwise=True)
    values, transposed = dequantize(rows), dequantize(columns)
    assert values.shape == (140, 48) and transposed.shape == (48, 140)
    begin = 0
    for size in sizes:
        part = x[begin : begin + size]
        if size:
            assert_same_bits(values[begin : begin + size], dequantize(quantize(part, QuantRecipe())[0]))
            padded = torch.nn.functional.pad(part, (0, 0, 0, -size % 64))
            alone = dequantize(quantize(padded, QuantRecipe(), rowwise=False, columnwise=True)[1])
            assert_same_bits(transposed[:, begin : begin + size].contiguous(), alone[:, :size].contiguous())
        begin += size
    assert not values[121:].any() and not transposed[:, 121:].any()


def test_zero_amax_gives_zeros():
    operand = every_product()
    zero = Nvfp4Operand(operand.codes, operand.block_scales, torch.zeros(()), scale_layout="compact")
    assert not dequantize(zero).any()
