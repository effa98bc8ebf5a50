"""Operands validate themselves, convert their scales, and take groups apart."""

import dataclasses

import pytest
import torch

from cutefp4.errors import OperandError
from cutefp4.format import decode_e2m1, decode_e4m3, numerator, unpack_codes
from cutefp4.operand import Nvfp4GroupedOperand, Nvfp4Operand
from cutefp4.reference import dequantize
from cutefp4.scale_layout import grouped_k_bound, grouped_rows_bound, padded_starts
from tests.cases import end_offsets
from tests.compare import assert_same_bits, assert_same_operand

F8 = torch.float8_e4m3fn


def operand(rows=40, k=48, batch=(), scaling="tensor", layout="compact", **fields) -> Nvfp4Operand:
    generator = torch.Generator().manual_seed(rows * 1000 + k)
    codes = torch.randint(0, 256, (*batch, rows, k // 2), generator=generator).to(torch.uint8)
    scales = torch.randint(0, 127, (*batch, rows, k // 16), generator=generator).to(torch.uint8).view(F8)
    amax = torch.rand((*batch, rows) if scaling == "token" else batch, generator=generator) + 0.5
    made = Nvfp4Operand(codes, scales, amax, scaling, 448, "compact", **fields)
    return made.with_scale_layout(layout)


def bad(**changes):
    """Arguments of a valid operand with some replaced."""
    good = operand()
    fields = {f.name: getattr(good, f.name) for f in dataclasses.fields(good)}
    return {**fields, **changes}


REFUSED = [
    ({"codes": torch.zeros(40, 24)}, ["codes of torch.float32", "uint8", "quantise"]),
    ({"codes": [1, 2]}, ["codes of list"]),
    ({"codes": torch.zeros(24, dtype=torch.uint8)}, ["codes of shape (24,)", "(rows, k/2) or (L, rows, k/2)"]),
    ({"k": 40}, ["K = 40", "multiple of 16", "pad the contraction axis with zeros to 48"]),
    ({"k": 0}, ["K = 0", "positive multiple of 16"]),
    ({"rows": 41}, ["codes of shape (40, 24)", "shape (41, 24)"]),
    ({"codes": torch.zeros(24, 40, dtype=torch.uint8).t()}, ["strides", "contiguous()"]),
    ({"block_scales": torch.zeros(40, 3)}, ["block_scales of dtype torch.float32", "float8_e4m3fn"]),
    ({"block_scales": torch.zeros(40, 4).to(F8)}, ["block_scales of shape (40, 4)", "shape (40, 3)"]),
    ({"scale_layout": "tiled"}, ["block_scales of shape (40, 3)", "shape (128, 4)"]),
    ({"scale_layout": "rowmajor"}, ["scale_layout='rowmajor'", "'tiled', 'compact'"]),
    ({"amax": torch.zeros((), dtype=torch.float64)}, ["amax of dtype torch.float64", "float32"]),
    ({"amax": torch.zeros(40)}, ["amax of shape (40,)", "shape ()"]),
    ({"amax": torch.zeros(1)}, ["amax of shape (1,)", "shape ()"]),
    ({"amax": 1.5}, ["amax of type float", "torch.Tensor"]),
    ({"scaling": "token"}, ["amax of shape ()", "shape (40,)"]),
    ({"scaling": "row"}, ["scaling='row'", "'tensor', 'token'"]),
    ({"e4m3_max": 240}, ["e4m3_max=240", "448, 256"]),
    ({"rht": 0x12345}, ["rht=74565", "16 bits"]),
    ({"amax": torch.zeros((), device="meta")}, ["amax on meta", "cpu", "move amax there"]),
]


@pytest.mark.parametrize("changes, words", REFUSED)
def test_inconsistent_operands_are_refused(changes, words):
    with pytest.raises(OperandError) as error:
        Nvfp4Operand(**bad(**changes))
    for word in (*words, "accepted:", "to fix:"):
        assert word in str(error.value), str(error.value)


def test_sizes_are_taken_from_the_codes():
    made = operand(40, 48)
    assert (made.rows, made.k, made.batch_shape) == (40, 48, ())
    batched = operand(40, 48, (3,), "token")
    assert (batched.rows, batched.k, batched.batch_shape) == (40, 48, (3,))


def test_operand_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        operand().amax = torch.ones(())


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("scaling", ["tensor", "token"])
def test_scale_layouts_hold_the_same_scales(batch, scaling):
    compact = operand(130, 80, batch, scaling)
    tiled = compact.with_scale_layout("tiled")
    assert tiled.scale_layout == "tiled" and tiled.block_scales.shape[-2:] == (256, 8)
    assert tiled.with_scale_layout("tiled") is tiled
    assert_same_bits(tiled.compact_scales().view(torch.uint8), compact.block_scales.view(torch.uint8))
    assert_same_operand(tiled.with_scale_layout("compact"), compact)
    with pytest.raises(OperandError, match="scale_layout='x'"):
        compact.with_scale_layout("x")


def test_row_amax_expands():
    scalar, vector = operand(8, 16), operand(8, 16, (2,), "token")
    assert scalar.row_amax().tolist() == [float(scalar.amax)] * 8
    assert vector.row_amax() is vector.amax
    batched = operand(8, 16, (2,))
    assert batched.row_amax().shape == (2, 8) and torch.equal(batched.row_amax()[:, 3], batched.amax)


def test_repr_metadata_bytes_and_map():
    made = operand(40, 48, rht=0xD7E8)
    assert made.nbytes == 40 * 24 + 40 * 3 + 4
    text = repr(made)
    for word in ("40x48", "scaling=tensor", "e4m3_max=448", "scales=compact", "rht=0xd7e8", "1084 bytes", "cpu"):
        assert word in text
    assert made.metadata() == {
        "scaling": "tensor",
        "e4m3_max": 448,
        "scale_layout": "compact",
        "rows": 40,
        "k": 48,
        "rht": 0xD7E8,
    }
    copy = made.map(torch.clone)
    assert_same_operand(copy, made)
    assert copy.codes.data_ptr() != made.codes.data_ptr()
    assert made.to("meta").device.type == "meta"


# ---------------------------------------------------------------- grouped

OFFS = end_offsets((37, 0, 130, 5))


def row_grouped(layout="compact", scaling="tensor", **changes) -> Nvfp4GroupedOperand:
    base = operand(180, 64)
    shape = (180, 4) if layout == "compact" else (grouped_rows_bound(180, 4), 4)
    scales = (torch.arange(shape[0] * shape[1]) % 127).to(torch.uint8).view(shape).view(F8)
    fields = {"codes": base.codes, "block_scales": scales, "amax": torch.ones(4 if scaling == "tensor" else 180)}
    fields |= {"offs": OFFS, "ragged": "rows", "rows": 180, "k": 64, "scaling": scaling, "scale_layout": layout}
    return Nvfp4GroupedOperand(**fields | changes)


def k_grouped(layout="compact", scaling="tensor", **changes) -> Nvfp4GroupedOperand:
    kp = grouped_k_bound(172, 4)
    base = operand(40, kp)
    shape = (40, kp // 16) if layout == "compact" else (128 * kp // 16,)
    count = shape[0] * (shape[1] if layout == "compact" else 1)
    scales = (torch.arange(count) % 127).to(torch.uint8).view(shape).view(F8)
    fields = {"codes": base.codes, "block_scales": scales, "amax": torch.ones((4,) if scaling == "tensor" else (4, 40))}
    fields |= {"offs": OFFS, "ragged": "k", "rows": 40, "k": 172, "scaling": scaling, "scale_layout": layout}
    return Nvfp4GroupedOperand(**fields | changes)


@pytest.mark.parametrize("layout", ["compact", "tiled"])
@pytest.mark.parametrize("scaling", ["tensor", "token"])
def test_row_groups(layout, scaling):
    whole = row_grouped(layout, scaling)
    assert whole.groups == 4 and whole.padded_k == 64 and whole.group(1) is None
    third = whole.group(2)
    assert (third.rows, third.k, third.scaling, third.scale_layout) == (130, 64, scaling, layout)
    assert_same_bits(third.codes, whole.codes[37:167])
    start = int(padded_starts(OFFS, 128)[2]) if layout == "tiled" else 37
    assert_same_bits(
        third.block_scales.view(torch.uint8),
        whole.block_scales.view(torch.uint8)[start : start + third.block_scales.shape[0]],
    )


@pytest.mark.parametrize("layout", ["compact", "tiled"])
@pytest.mark.parametrize("scaling", ["tensor", "token"])
def test_k_groups(layout, scaling):
    whole = k_grouped(layout, scaling)
    third = whole.group(2)  # groups of 37, 0, 130, 5 are padded to 64, 0, 192, 64
    assert (third.rows, third.k) == (40, 192) and whole.group(1) is None
    assert_same_bits(third.codes, whole.codes[:, 32:128])
    scales = whole.block_scales.view(torch.uint8)
    expected = scales[:, 4:16] if layout == "compact" else scales[128 * 4 : 128 * 16].view(128, 12)
    assert_same_bits(third.block_scales.view(torch.uint8), expected.contiguous())
    assert third.amax.shape == (() if scaling == "tensor" else (40,))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"ragged": "cols"}, ["ragged='cols'", "'rows', 'k'"]),
        ({"offs": OFFS.long()}, ["offs of dtype torch.int64", "torch.int32"]),
        ({"offs": [37, 37]}, ["offs of type list", "int32 tensor (E,)"]),
        ({"offs": OFFS.view(2, 2)}, ["offs of shape (2, 2)", "shape (4,)"]),
        ({"offs": OFFS[:0]}, ["E > 0"]),
        ({"amax": torch.ones(5)}, ["amax of shape (5,)", "shape (4,)"]),
        ({"scaling": "token", "amax": torch.ones(4)}, ["amax of shape (4,)", "shape (180,)"]),
        ({"k": 60}, ["K = 60", "to 64"]),
        ({"scale_layout": "tiled"}, ["block_scales of shape (180, 4)", "shape (640, 4)"]),
        ({"rows": 181}, ["codes of shape (180, 32)", "shape (181, 32)"]),
    ],
)
def test_inconsistent_grouped_operands_are_refused(changes, words):
    with pytest.raises(OperandError) as error:
        row_grouped(**changes)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_grouped_k_sizes_are_checked():
    with pytest.raises(OperandError, match="codes of shape"):
        k_grouped(k=300)
    assert "40x172, 4 groups along k" in repr(k_grouped())
    assert k_grouped().nbytes == 40 * 192 + 40 * 24 + 16 + 16


def test_value_formula_in_the_docstring():
    made = operand(5, 32, scaling="token")
    q, s = decode_e2m1(unpack_codes(made.codes)), decode_e4m3(made.block_scales)
    expected = q[3, 17] * s[3, 1] * made.amax[3] / numerator(448)
    assert torch.isclose(dequantize(made)[3, 17], expected, rtol=1e-6)
