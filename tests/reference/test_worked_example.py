"""Two blocks with every intermediate known."""

import numpy as np
import torch

from cutefp4.format import divide, encode_scale, numerator
from cutefp4.recipe import QuantRecipe
from cutefp4.reference import quantize
from cutefp4.reference.block_scale import block_amax, block_scales
from cutefp4.reference.four_over_six import candidates, choose_four, line_errors
from cutefp4.reference.hadamard import transform
from tests.cases import PROFILES, normal

X = normal(7, (1, 32))
A = torch.tensor(2.28125)
BAMAX = block_amax(X.float(), "1d")
COMPACT = QuantRecipe(scale_layout="compact")
NEAREST = "b7300df8459ca3ea13e1167ae8faa55c"

X_BITS = """
3fd8 beef 3d06 3ed1 bf4a 3b07 ba69 bfe1 3f82 3f1a bf20 be30 3f01 be86 be79 bfba
3f0e 3dfe 3e8d bfc3 3fd3 3e1e bec6 4002 bd3a bfba becf c012 3f86 bed5 bf3e 3f89"""
RHT_BITS = """
3eca be82 bfb0 3f1c bf0e 3fdf 3f91 beb8 3f03 3e8f 3f65 3f3b 3efc 3f53 3f70 3f3b
3d22 3fbc 3f88 bfaf 3f81 bf9e 3d81 3e25 3f90 3e72 bd64 3ff3 3e9c bfa4 c00c 3f7c"""


def bf16_bits(x: torch.Tensor) -> list[str]:
    return [f"{v & 0xFFFF:04x}" for v in x.to(torch.bfloat16).view(torch.int16).flatten().tolist()]


def hexes(x: torch.Tensor) -> list[str]:
    """Hex floats with the trailing zeros of the fp64 form cut."""
    return [v.hex().replace("0000000p", "p") for v in x.flatten().tolist()]


def scale_bytes(operand) -> str:
    return bytes(operand.compact_scales().view(torch.uint8).flatten().tolist()).hex()


def code_bytes(operand) -> str:
    return bytes(operand.codes.flatten().tolist()).hex()


def test_input_and_amaxes():
    assert bf16_bits(X) == X_BITS.split()
    assert BAMAX.tolist() == [[1.7578125, 2.28125]]
    assert float(quantize(X, COMPACT)[0].amax) == float(A)


def test_outer_scale():
    s_enc = encode_scale(A)
    c6 = divide(torch.ones(()), 6.0)
    assert hexes(s_enc) == ["0x1.26934ap+10"]
    assert hexes(s_enc * c6) == ["0x1.88c464p+7"]
    assert hexes(torch.div(torch.ones(()), s_enc)) == ["0x1.bcf3cep-11"]
    assert hexes(divide(A, numerator(448))) == ["0x1.bcf3d0p-11"]
    assert hexes(BAMAX * (s_enc * c6)) == ["0x1.59349cp+8", "0x1.c00002p+8"]


def test_multipliers_of_the_arithmetics():
    scale, te = block_scales(BAMAX, A, "te", 448)
    assert scale.float().tolist() == [[352.0, 448.0]]
    assert hexes(te) == ["0x1.ac7926p+1", "0x1.50a856p+1"]
    scale, per_token = block_scales(BAMAX, A, "per_token", 448)
    assert scale.float().tolist() == [[352.0, 448.0]]
    assert hexes(per_token) == ["0x1.ac7926p+1", "0x1.50a854p+1"]


def test_codes_of_the_arithmetics():
    for name in ("te1d", "te_row", "pt", "ao", "4o6-mae-448", "4o6-mse-448", "4o6-mae-448-fast", "4o6-mse-448-row"):
        operand = quantize(X, PROFILES[name])[0]
        assert (scale_bytes(operand), code_bytes(operand)) == ("7b7e", NEAREST), name


def test_stochastic_codes():
    operand = quantize(X, PROFILES["rsr"], seed=7, offset=0)[0]
    assert (scale_bytes(operand), code_bytes(operand)) == ("7b7e", "b7300df8459ca3ea13e2166ae8fab55c")
    tensors = quantize(X, PROFILES["rsr"], seed=torch.tensor(7), offset=torch.tensor(0, dtype=torch.int64))[0]
    assert torch.equal(tensors.codes, operand.codes)


def test_four_over_six_256():
    for name in ("mae-256", "mse-256", "mae-256-fast", "mse-256-fast"):
        recipe = PROFILES[f"4o6-{name}"]
        pairs = candidates(BAMAX, A, 256)
        assert pairs[4][0].float().tolist() == [[288.0, 384.0]]
        assert pairs[6][0].float().tolist() == [[192.0, 256.0]]
        assert choose_four(X.float().view(1, 2, 16), pairs, A, recipe).tolist() == [[True, False]]
        operand = quantize(X, recipe)[0]
        assert (scale_bytes(operand), code_bytes(operand)) == ("7978", "a6200ce8349b92d913e1167ae8faa55c"), name


def test_error_sums():
    pairs, blocks = candidates(BAMAX, A, 256), X.float().view(1, 2, 16)
    strict, fast = PROFILES["4o6-mae-256"], PROFILES["4o6-mae-256-fast"]
    assert hexes(line_errors(blocks, *pairs[4], A, strict)) == ["0x1.a04280p-1", "0x1.b66000p+0"]
    assert hexes(line_errors(blocks, *pairs[6], A, strict)) == ["0x1.b8c280p-1", "0x1.e3bffep-1"]
    assert line_errors(blocks, *pairs[4], A, fast).tolist() == [[547.41015625, 1152.986328125]]
    assert line_errors(blocks, *pairs[6], A, fast).tolist() == [[579.62939453125, 636.1644287109375]]


def test_hadamard():
    assert bf16_bits(transform(X, "bf16", 0xD7E8)) == RHT_BITS.split()
    first = transform(X, "fp32", 0xD7E8).flatten()[:4].tolist()
    expected = ["0x1.94534p-2", "-0x1.049ecp-2", "-0x1.5f185p+0", "0x1.38566p-1"]
    assert first == [float.fromhex(v) for v in expected]
    assert np.float32(first[0]) == first[0]
