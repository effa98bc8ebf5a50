"""The quantiser: edge blocks, invariances, given amaxes, inputs that are refused."""

import importlib
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutefp4.errors import OperandError
from cutefp4.format import (
    E2M1_VALUES,
    decode_e2m1,
    decode_e4m3,
    numerator,
    unpack_codes,
)
from cutefp4.recipe import QuantRecipe
from cutefp4.reference import RSR_OFFSETS_PER_CALL, dequantize, quantize, quantize_weight_dim0, stack
from cutefp4.reference.block_scale import block_amax, block_scales
from cutefp4.reference.four_over_six import candidates
from tests.cases import PROFILES, batch, edge_row, matrix, normal, odd_shapes, specials, strided
from tests.compare import assert_same_bits, assert_same_operand

COMPACT = QuantRecipe(scale_layout="compact")
NEAREST_PROFILES = [n for n, r in PROFILES.items() if r.rounding == "nearest"]


# ---------------------------------------------------------------- edge blocks


@pytest.mark.parametrize(
    "arithmetic, scales, tiny, small",
    [
        ("te", [448, 0, 0, 2.0**-9], [7, 15], 6),
        ("per_token", [448, 0, 0, 2.0**-9], [0, 8], 6),
        ("torchao", [448, 2.0**-6, 2.0**-6, 2.0**-6], [0, 8], 1),
    ],
)
def test_edge_blocks(arithmetic, scales, tiny, small):
    operand = quantize(edge_row(), COMPACT.replace(arithmetic=arithmetic))[0]
    codes = unpack_codes(operand.codes)[0].tolist()
    assert decode_e4m3(operand.block_scales)[0].tolist() == scales
    assert codes[16:18] == tiny and codes[32:34] == [0, 8] and codes[48:64] == [small] * 16
    assert float(operand.amax) == numerator(448) and codes[3] == 7


@pytest.mark.parametrize("arithmetic, scale", [("te", 0), ("per_token", 0), ("torchao", 2.0**-6)])
@pytest.mark.parametrize("scaling", ["tensor", "token"])
def test_all_zero_matrix(arithmetic, scale, scaling):
    x = torch.zeros(32, 32).bfloat16()
    x[1] = -0.0
    operand = quantize(x, COMPACT.replace(arithmetic=arithmetic, scaling=scaling))[0]
    assert not operand.amax.any()
    assert set(decode_e4m3(operand.block_scales).flatten().tolist()) == {scale}
    codes = unpack_codes(operand.codes)
    assert set(codes[1].tolist()) == {8} and not codes[0].any() and not codes[2:].any()
    assert not dequantize(operand).any()


def test_per_token_floor_applies_to_the_scale_alone():
    x = torch.full((1, 16), 2e-14)
    operand = quantize(x, PROFILES["pt"])[0]
    assert float(operand.amax[0]) == float(x[0, 0])
    scale = float(decode_e4m3(operand.compact_scales())[0, 0])
    assert 0 < scale < 16
    ratio = float(dequantize(operand)[0, 0] / x[0, 0])
    assert ratio == pytest.approx(2e-14 / 1e-12, rel=0.1)


@pytest.mark.parametrize("profile", NEAREST_PROFILES)
def test_nan_and_inf_stay_in_their_rows_under_token_scaling(profile):
    recipe = PROFILES[profile].replace(scaling="token", rht="none")
    if recipe.block == "2d":
        recipe = recipe.replace(block="1d")
    x, clean = specials(), specials()
    clean[1], clean[2], clean[7] = 0, 0, 0
    a, b = quantize(x, recipe)[0], quantize(clean, recipe)[0]
    rows = [r for r in range(32) if r not in (1, 2, 7)]
    assert_same_bits(a.codes[rows], b.codes[rows])
    assert_same_bits(a.amax[rows], b.amax[rows])
    assert_same_bits(a.compact_scales().view(torch.uint8)[rows], b.compact_scales().view(torch.uint8)[rows])


@pytest.mark.parametrize("arithmetic", ["te", "per_token", "torchao"])
def test_nan_and_inf_elements(arithmetic):
    recipe = QuantRecipe(arithmetic=arithmetic, scaling="token")
    x = specials()
    operand = quantize(x, recipe)[0]
    codes, scales = unpack_codes(operand.codes), decode_e4m3(operand.compact_scales())
    assert int(codes[1, 5]) == 7 and float(operand.amax[1]) == float(x[1].nan_to_num(0).abs().max())
    assert math.isinf(operand.amax[2]) and int(codes[2, 7]) == 7 and int(codes[2, 61]) == 15
    assert float(scales[2, 0]) == 448 and set(codes[7].tolist()) == {7} and float(operand.amax[7]) == 0
    assert not scales.isnan().any()


@pytest.mark.parametrize("scale, expected", [(1e-35, 0.096), (1e-36, 0.45), (1e-37, 0.95)])
def test_accuracy_of_tiny_tensors(scale, expected):
    """The clamp of the outer scale at FLT_MAX costs accuracy below an amax of 8e-36."""
    x = matrix(256, 256, seed=1, dtype=torch.float32) * scale
    out = dequantize(quantize(x, QuantRecipe())[0]).double()
    error = float(torch.linalg.vector_norm(out - x.double()) / torch.linalg.vector_norm(x.double()))
    assert error == pytest.approx(expected, abs=0.03)


# ---------------------------------------------------------------- properties


@given(st.integers(0, 10_000))
def test_scaled_elements_round_to_the_nearest_grid_value(seed):
    x = matrix(32, 64, seed=seed)
    operand = quantize(x, COMPACT)[0]
    bamax = block_amax(x.float(), "1d")
    scale, multiplier = block_scales(bamax, operand.amax, "te", 448)
    y = x.float() * multiplier.repeat_interleave(16, dim=1)
    normal_scale = (scale.float() >= 2.0**-6).repeat_interleave(16, dim=1)
    assert float(y.abs()[normal_scale].max()) <= 6.375
    q = decode_e2m1(unpack_codes(operand.codes))
    step = torch.where(q.abs() < 2, 0.5, torch.where(q.abs() < 4, 1.0, 2.0))
    assert bool(((y.abs().clamp(max=6) - q.abs()).abs() <= step / 2).all())


@pytest.mark.parametrize("profile", [n for n, r in PROFILES.items() if r.block == "2d" and r.rounding == "nearest"])
@pytest.mark.parametrize("shape", [(64, 96), (160, 32)])
def test_tiles_commute_with_transposition(profile, shape):
    x, recipe = matrix(*shape, "row_scaled", seed=3), PROFILES[profile]
    row, column = quantize(x, recipe, columnwise=True)
    codes, columns = unpack_codes(row.codes), unpack_codes(column.codes)
    assert_same_bits(columns, codes.t().contiguous())
    per_tile = row.compact_scales().view(torch.uint8)[::16]
    assert_same_bits(column.compact_scales().view(torch.uint8)[::16], per_tile.t().contiguous())
    assert torch.equal(dequantize(column), dequantize(row).t())
    if recipe.four_over_six == "none":  # with 4over6 the transpose would sum its errors in another order
        assert_same_operand(quantize(x.t(), recipe)[0], column)


def test_rows_of_blocks_do_not_commute_with_transposition():
    row, column = quantize(matrix(64, 64, seed=3), QuantRecipe(), columnwise=True)
    assert not torch.equal(unpack_codes(column.codes), unpack_codes(row.codes).t())


@pytest.mark.parametrize("profile", ["te1d", "te2d", "pt", "ao", "te_rht", "4o6-mae-256", "4o6-mse-448-fast", "rsr"])
@given(st.integers(-60, 40), st.integers(0, 100))
def test_powers_of_two_change_no_byte(profile, exponent, seed):
    recipe = PROFILES[profile]
    if recipe.arithmetic == "per_token":
        exponent = max(exponent, -30)  # its floor of 1e-12
    x = matrix(32, 32, seed=seed)
    for a, b in zip(*(quantize(v, recipe, columnwise=True) for v in (x, x * 2.0**exponent)), strict=True):
        assert_same_bits(a.codes, b.codes)
        assert_same_bits(a.block_scales.view(torch.uint8), b.block_scales.view(torch.uint8))
        assert_same_bits(a.amax * 2.0**exponent, b.amax)


@pytest.mark.parametrize("profile", [n for n, r in PROFILES.items() if r.scaling == "token" and r.block == "1d"])
def test_a_row_alone_equals_the_row_in_the_matrix(profile):
    recipe = PROFILES[profile].replace(scale_layout="compact", rounding="nearest", rht="none")
    x = matrix(20, 64, "row_scaled", seed=9)
    whole = quantize(x, recipe)[0]
    for i in (0, 7, 19):
        alone = quantize(x[i : i + 1], recipe.replace(scaling="tensor"))[0]
        assert_same_bits(alone.codes[0], whole.codes[i])
        assert_same_bits(alone.block_scales.view(torch.uint8)[0], whole.block_scales.view(torch.uint8)[i])
        assert float(alone.amax) == float(whole.amax[i])


@given(st.permutations(range(16)))
def test_permuting_rows_permutes_the_token_scaled_operand(order):
    x = matrix(16, 48, "row_scaled", seed=2)
    a, b = (quantize(v, PROFILES["pt"].replace(scale_layout="compact"))[0] for v in (x, x[order]))
    assert_same_bits(b.codes, a.codes[order])
    assert_same_bits(b.amax, a.amax[order])


@pytest.mark.parametrize("profile", PROFILES)
def test_columnwise_equals_rowwise_of_the_transpose(profile):
    """For every recipe without a transform, and without a decision that is shared between the copies."""
    recipe = PROFILES[profile].replace(rht="none", rounding="nearest", four_over_six_columnwise="recomputed")
    x = matrix(48, 80, "row_scaled", seed=4)
    assert_same_operand(
        quantize(x, recipe, rowwise=False, columnwise=True)[1], quantize(x.t().contiguous(), recipe)[0], profile
    )


@pytest.mark.parametrize("profile", ["te1d", "te2d", "pt_rht", "4o6-mse-256-2d", "rsr"])
def test_odd_shapes_and_strides(profile):
    recipe = PROFILES[profile]
    for rows, cols in odd_shapes(4, seed=len(profile), largest=200):
        x = matrix(rows, cols, seed=rows)
        operand = quantize(x, recipe)[0]
        assert (operand.rows, operand.k) == (rows, cols)
        assert_same_operand(quantize(strided(x), recipe)[0], operand)
        y = x.t().contiguous()  # (cols, rows): columns of any number, rows a multiple of 16
        column = quantize(y, recipe, rowwise=False, columnwise=True)[1]
        assert (column.rows, column.k) == (rows, cols)
        assert_same_operand(quantize(strided(y), recipe, rowwise=False, columnwise=True)[1], column)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_input_dtype_is_quantised_from_its_exact_values(dtype):
    x = matrix(32, 64, seed=1, dtype=dtype)
    assert_same_operand(quantize(x, QuantRecipe())[0], quantize(x.float(), QuantRecipe())[0])


@pytest.mark.parametrize("profile", PROFILES)
def test_internal_steps_do_not_show(profile, monkeypatch):
    x = matrix(80, 96, "row_scaled", seed=1)
    whole = quantize(x, PROFILES[profile], columnwise=True, seed=4)
    monkeypatch.setattr(importlib.import_module("cutefp4.reference.quantize"), "_STEP", 1)
    for got, want in zip(quantize(x, PROFILES[profile], columnwise=True, seed=4), whole, strict=True):
        assert_same_operand(got, want, profile)


# ---------------------------------------------------------------- how the arithmetics differ


@pytest.mark.parametrize("arithmetic, scales, codes", [("per_token", 0.0, 2.74e-4), ("torchao", 2.0e-3, 7.6e-4)])
def test_share_of_bytes_that_differ_from_te(arithmetic, scales, codes):
    """Known rates on 48 Gaussian matrices of 256x1024; a sample of 16 here."""
    different_scales = different_codes = 0.0
    for seed in range(16):
        a, b = (quantize(normal(seed, (256, 1024)), COMPACT.replace(arithmetic=v))[0] for v in ("te", arithmetic))
        different_scales += float((a.block_scales.view(torch.uint8) != b.block_scales.view(torch.uint8)).float().mean())
        different_codes += float((unpack_codes(a.codes) != unpack_codes(b.codes)).float().mean())
    assert different_scales / 16 == pytest.approx(scales, rel=0.6)
    assert different_codes / 16 == pytest.approx(codes, rel=0.6)


def test_each_order_of_operations_rounds_some_scales_its_own_way():
    """The ratio of two bf16 amaxes is often an exact tie of E4M3, and then the last ulp decides."""
    bamax = matrix(1000, 64, seed=8).float().abs()
    outer = bamax.amax(dim=1, keepdim=True) * 1.25
    orders = {
        "te": block_scales(bamax, outer, "te", 448)[0],
        "torchao": block_scales(bamax, outer, "torchao", 448)[0],
        "4over6": candidates(bamax, outer, 448)[6][0],
    }
    for a, b in itertools.combinations(orders.values(), 2):
        share = float((a.view(torch.uint8) != b.view(torch.uint8)).float().mean())
        assert 1e-4 < share < 1e-2


# ---------------------------------------------------------------- amax


def test_given_amax_is_used_and_stored():
    x = matrix(32, 64, seed=1)
    twice = quantize(x, QuantRecipe())[0].amax * 2
    row, column = quantize(x, QuantRecipe(), columnwise=True, amax=twice)
    assert_same_bits(row.amax, twice)
    assert_same_bits(column.amax, twice)  # a scalar also serves the columnwise copy
    assert float(decode_e4m3(row.compact_scales()).max()) == 224
    own = quantize(x, QuantRecipe(), columnwise=True, amax=twice, columnwise_amax=twice * 2)[1]
    assert_same_bits(own.amax, twice * 2)


def test_given_row_amax():
    x, recipe = matrix(32, 64, seed=1), PROFILES["pt"]
    expected = quantize(x, recipe, columnwise=True)
    given_amaxes = {"amax": x.float().abs().amax(1), "columnwise_amax": x.float().abs().amax(0)}
    for got, want in zip(quantize(x, recipe, columnwise=True, **given_amaxes), expected, strict=True):
        assert_same_operand(got, want)


def test_columnwise_amax_is_taken_after_the_transform():
    x, recipe = matrix(32, 64, seed=1), QuantRecipe(rht="bf16")
    row, column = quantize(x, recipe, columnwise=True)
    assert float(row.amax) != float(column.amax)
    _, kept = quantize(x, recipe, columnwise=True, amax=row.amax * 4)
    assert_same_bits(kept.amax, column.amax)


@pytest.mark.parametrize("profile", ["pt_2d", "4o6-mae-256-2d"])
def test_tiles_with_token_scaling_use_one_amax(profile):
    x = matrix(32, 64, "row_scaled", seed=1)
    recipe = PROFILES[profile].replace(scaling="token")
    row, column = quantize(x, recipe, columnwise=True)
    scalar_row, scalar_column = quantize(x, recipe.replace(scaling="tensor"), columnwise=True)
    for vector, scalar, size in ((row, scalar_row, 32), (column, scalar_column, 64)):
        assert vector.amax.shape == (size,) and vector.amax.is_contiguous()
        assert_same_bits(vector.amax, scalar.amax.expand(size).contiguous())
        assert_same_bits(vector.codes, scalar.codes)
    assert_same_operand(quantize(x, recipe, amax=row.amax)[0], row)
    assert_same_operand(quantize(x, recipe, amax=scalar_row.amax)[0], row)


# ---------------------------------------------------------------- batches, weights, empty matrices


@pytest.mark.parametrize("profile", ["te1d", "pt", "4o6-mae-256-2d", "rsr_rht"])
def test_a_batch_equals_a_loop(profile):
    x, recipe = batch(3, 48, 64, "row_scaled"), PROFILES[profile]
    operands = quantize(x, recipe, columnwise=True, seed=2, offset=5)
    single = [quantize(m, recipe, columnwise=True, seed=2, offset=5) for m in x]
    for got, parts in zip(operands, zip(*single, strict=True), strict=True):
        assert got.batch_shape == (3,)
        assert_same_operand(got, stack(parts))
    only = quantize(x, recipe, rowwise=False, columnwise=True, seed=2, offset=5)
    assert only[0] is None
    assert_same_operand(only[1], operands[1])
    amax = operands[0].amax
    assert_same_operand(quantize(x, recipe, amax=amax, seed=2, offset=5)[0], operands[0])


def test_stack_needs_equal_kinds():
    a, b = quantize(matrix(16, 32), QuantRecipe())[0], quantize(matrix(16, 32), PROFILES["pt"])[0]
    with pytest.raises(OperandError, match="2 operands of 2 kinds"):
        stack([a, b])
    with pytest.raises(OperandError, match="0 operands"):
        stack([])


def test_weight_along_dim0():
    weight = matrix(64, 48, seed=3)  # (K, N)
    for profile in ("te1d", "te2d", "pt"):
        operand = quantize_weight_dim0(weight, PROFILES[profile])
        assert (operand.rows, operand.k) == (48, 64)
        assert_same_operand(operand, quantize(weight.t().contiguous(), PROFILES[profile])[0])


@pytest.mark.parametrize("profile", ["te1d", "te2d", "pt", "4o6-mae-256", "4o6-mae-256-2d", "rsr"])
def test_no_rows(profile):
    operand = quantize(torch.zeros(0, 64), PROFILES[profile])[0]
    assert (operand.rows, operand.k) == (0, 64) and dequantize(operand).shape == (0, 64)


def test_offsets_per_call():
    assert RSR_OFFSETS_PER_CALL == 2


# ---------------------------------------------------------------- refused inputs

X = matrix(32, 64)
VECTOR = torch.zeros(32)


@pytest.mark.parametrize(
    "x, options, words",
    [
        (X.double(), {}, ["torch.float64", "bfloat16, float16 or float32"]),
        ([[1.0]], {}, ["x = list"]),
        (X[0], {}, ["shape (64,)", "2-D or 3-D"]),
        (X[:, :40], {}, ["rowwise copy, contraction axis 40", "multiple of 16", "to 48"]),
        (X[:20], {"columnwise": True}, ["columnwise copy, contraction axis 20", "to 32"]),
        (X[:0], {"columnwise": True}, ["contraction axis 0", "to 16"]),
        (X[:, :0], {}, ["contraction axis 0"]),
        (X, {"rowwise": False}, ["at least one copy"]),
        (X, {"amax": VECTOR}, ["amax = torch.float32 (32,)", "shape ()"]),
        (X, {"amax": torch.zeros((), dtype=torch.float64)}, ["torch.float64 ()", "float32"]),
        (X, {"amax": 3.0}, ["amax = float"]),
        (X, {"amax": torch.zeros((), device="meta")}, ["amax on meta", "cpu"]),
        (X, {"scaling": "token", "amax": torch.zeros(())}, ["amax = torch.float32 ()", "shape (32,)"]),
        (X, {"scaling": "token", "block": "2d", "amax": torch.zeros(7)}, ["(7,)", "() or (32,)"]),
        (X, {"columnwise": True, "columnwise_amax": VECTOR}, ["columnwise_amax = torch.float32 (32,)"]),
    ],
)
def test_refused(x, options, words):
    fields = {k: options.pop(k) for k in ("scaling", "block") if k in options}
    with pytest.raises(OperandError) as error:
        quantize(x, QuantRecipe(**fields), **options)
    for word in (*words, "accepted:", "to fix:"):
        assert word in str(error.value), str(error.value)


def test_every_code_of_the_grid_occurs():
    values = torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)]).repeat(1, 1)
    operand = quantize(values * 1.0, COMPACT)[0]
    assert unpack_codes(operand.codes)[0].tolist() == list(range(16))
    assert torch.equal(dequantize(operand), values)
