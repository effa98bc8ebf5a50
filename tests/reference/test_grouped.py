"""Grouped quantisation equals a loop of single calls."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutefp4.errors import OperandError
from cutefp4.recipe import QuantRecipe
from cutefp4.reference import quantize, quantize_grouped
from cutefp4.scale_layout import grouped_k_bound, padded_starts, round_up
from tests.cases import PROFILES, end_offsets, matrix, ragged_sizes, strided
from tests.compare import assert_same_bits, assert_same_operand

SPLITS = [(64,), (0,), (5, 0, 130, 1), (0, 0, 33), (128, 64, 0), (100, 28), (1, 1, 1)]


def pad64(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, -x.shape[0] % 64))


def check_groups(x, sizes, recipe, **state) -> None:
    rows, columns = quantize_grouped(x, end_offsets(sizes), recipe, columnwise=True, **state)
    begin = 0
    for g, size in enumerate(sizes):
        part = x[begin : begin + size]
        begin += size
        if size == 0:
            assert rows.group(g) is None and columns.group(g) is None
            continue
        assert_same_operand(rows.group(g), quantize(part, recipe, **state)[0], f"rows of group {g}")
        single = quantize(pad64(part), recipe, rowwise=False, columnwise=True, **state)[1]
        assert_same_operand(columns.group(g), single, f"columns of group {g}")


@pytest.mark.parametrize("profile", PROFILES)
def test_groups_equal_single_calls(profile):
    for sizes in ((37, 0, 130, 64), (5, 70)):
        x = matrix(sum(sizes) + 9, 48, "row_scaled", seed=1)
        for layout in ("tiled", "compact"):
            check_groups(x, sizes, PROFILES[profile].replace(scale_layout=layout), seed=3, offset=8)


@pytest.mark.parametrize("sizes", SPLITS)
@pytest.mark.parametrize("layout", ["tiled", "compact"])
def test_splits(sizes, layout):
    x = matrix(sum(sizes) + 3, 32, seed=2)
    for profile in ("te1d", "pt_rht", "rsr_rht", "4o6-mae-256-2d"):
        check_groups(x, sizes, PROFILES[profile].replace(scale_layout=layout), seed=1)


@given(st.integers(1, 9), st.integers(0, 300), st.integers(0, 10_000))
def test_random_splits(groups, total, seed):
    x = matrix(total, 32, seed=seed)
    check_groups(x, ragged_sizes(groups, total, seed), PROFILES["rsr"], seed=seed)


@pytest.mark.parametrize("layout", ["tiled", "compact"])
@pytest.mark.parametrize("profile", ["te1d", "pt", "te2d"])
def test_bytes_of_no_group_are_zero(profile, layout):
    sizes, total = (37, 0, 70), 160
    x, recipe = matrix(total, 48, seed=4), PROFILES[profile].replace(scale_layout=layout)
    offs = end_offsets(sizes)
    rows, columns = quantize_grouped(x, offs, recipe, columnwise=True)
    assert not rows.codes[107:].any()
    scales = rows.block_scales.view(torch.uint8)
    last = int(padded_starts(offs, 128)[-1]) if layout == "tiled" else 107
    assert not scales[last:].any() and bool(scales[:last].any())
    if recipe.scaling == "token":
        assert not rows.amax[107:].any() and bool((rows.amax[:107] > 0).all())
        assert not columns.amax[1].any()
    else:
        assert float(rows.amax[1]) == 0 and float(columns.amax[1]) == 0
    used = int(padded_starts(offs, 64)[-1])
    assert used == 64 + 128 and grouped_k_bound(total, 3) > used
    assert not columns.codes[:, used // 2 :].any()
    flat = columns.block_scales.view(torch.uint8)
    behind = flat[round_up(48, 128) * used // 16 :] if layout == "tiled" else flat[:, used // 16 :]
    assert not behind.any()


def test_zero_padding_of_a_group_encodes_to_zero():
    columns = quantize_grouped(matrix(37, 32, seed=1), end_offsets((37,)), QuantRecipe(), columnwise=True)[1]
    group = columns.group(0)
    assert group.k == 64 and not group.codes[:, 19:].any() and not group.compact_scales().view(torch.uint8)[:, 3:].any()


def test_tiled_scales_of_k_groups_restart_in_each_group():
    sizes, x = (64, 192, 128), matrix(384, 40, seed=1)
    offs = end_offsets(sizes)
    tiled, compact = (
        quantize_grouped(x, offs, QuantRecipe(scale_layout=v), rowwise=False, columnwise=True)[1]
        for v in ("tiled", "compact")
    )
    begin = 0
    for g, size in enumerate(sizes):
        start, end = 128 * begin // 16, 128 * (begin + size) // 16
        alone = tiled.group(g).with_scale_layout("compact").with_scale_layout("tiled")
        assert_same_bits(
            tiled.block_scales.view(torch.uint8)[start:end], alone.block_scales.view(torch.uint8).flatten()
        )
        assert_same_operand(tiled.group(g).with_scale_layout("compact"), compact.group(g))
        begin += size


@pytest.mark.parametrize("profile", ["te1d", "pt", "pt_2d", "4o6-mae-256-2d", "te_rht"])
def test_given_amax(profile):
    recipe, sizes = PROFILES[profile], (37, 0, 70)
    x, offs = matrix(120, 48, "row_scaled", seed=6), end_offsets(sizes)
    rows, columns = quantize_grouped(x, offs, recipe, columnwise=True)
    again = quantize_grouped(x, offs, recipe, columnwise=True, amax=rows.amax)
    assert_same_operand(again[0], rows)
    assert_same_operand(again[1], columns)
    doubled = quantize_grouped(x, offs, recipe, amax=rows.amax * 2)[0]
    assert_same_bits(doubled.amax, rows.amax * 2)
    assert not torch.equal(doubled.block_scales.view(torch.uint8), rows.block_scales.view(torch.uint8))


def test_one_copy_alone_and_strided_input():
    x, offs = matrix(140, 48, seed=6), end_offsets((37, 0, 70))
    both = quantize_grouped(x, offs, PROFILES["rsr"], columnwise=True)
    rows, none = quantize_grouped(strided(x), offs, PROFILES["rsr"])
    assert none is None
    assert_same_operand(rows, both[0])
    none, columns = quantize_grouped(strided(x), offs, PROFILES["rsr"], rowwise=False, columnwise=True)
    assert none is None
    assert_same_operand(columns, both[1])


def test_no_rows_at_all():
    rows, columns = quantize_grouped(torch.zeros(0, 48), end_offsets((0, 0)), QuantRecipe(), columnwise=True)
    assert rows.rows == 0 and rows.amax.tolist() == [0, 0]
    assert columns.k == 0 and columns.rows == 48


X = matrix(100, 48)


@pytest.mark.parametrize(
    "x, offs, options, words",
    [
        (X, torch.tensor([50, 100]), {}, ["offs = torch.int64 (2,)", "int32 tensor (E,)"]),
        (X, [50, 100], {}, ["offs = list"]),
        (X, torch.zeros(0, dtype=torch.int32), {}, ["(0,)"]),
        (X, torch.zeros(2, 2, dtype=torch.int32), {}, ["(2, 2)"]),
        (X, torch.tensor([50, 40], dtype=torch.int32), {}, ["offs = [50, 40] over 100", "non-decreasing"]),
        (X, torch.tensor([50, 101], dtype=torch.int32), {}, ["[50, 101] over 100", "cumulative sizes"]),
        (X, torch.tensor([-1, 100], dtype=torch.int32), {}, ["[-1, 100]", "none below 0"]),
        (X, torch.zeros(2, dtype=torch.int32, device="meta"), {}, ["offs on meta", "cpu"]),
        (X[:, :40], end_offsets((100,)), {}, ["contraction axis 40", "to 48"]),
        (X[None], end_offsets((100,)), {}, ["shape (1, 100, 48)", "2-D"]),
        (X, end_offsets((100,)), {"rowwise": False}, ["at least one copy"]),
        (X, end_offsets((50, 50)), {"amax": torch.ones(100)}, ["float32 (100,)", "(2,)", "one amax per group"]),
        (X, end_offsets((50, 50)), {"amax": 1.0}, ["amax = float"]),
    ],
)
def test_refused(x, offs, options, words):
    with pytest.raises(OperandError) as error:
        quantize_grouped(x, offs, QuantRecipe(), **options)
    for word in (*words, "accepted:", "to fix:"):
        assert word in str(error.value), str(error.value)
