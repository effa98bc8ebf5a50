"""Compact and tiled scales: offsets, padding, round trips, groups."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutefp4 import scale_layout as sl
from tests.cases import end_offsets, ragged_sizes
from tests.compare import assert_same_bits

sizes = st.integers(1, 300)


@pytest.mark.parametrize(
    "place, offset",
    [
        ((0, 0), 0),
        ((1, 0), 16),
        ((31, 3), 499),
        ((32, 0), 4),
        ((127, 3), 511),
        ((0, 4), 512),
        ((128, 0), 1536),
        ((200, 7), 2187),
    ],
)
def test_known_offsets_for_twelve_columns(place, offset):
    assert sl.tiled_offset(*place, 12) == offset


def distinct(rows: int, cols: int) -> torch.Tensor:
    return (torch.arange(rows * cols) * 37 % 251 + 1).to(torch.uint8).view(rows, cols)


@given(sizes, st.integers(1, 30))
def test_tiled_bytes_lie_at_the_formula_and_padding_is_zero(rows, cols):
    scales = distinct(rows, cols)
    tiled = sl.to_tiled(scales)
    assert tuple(tiled.shape) == sl.scale_shape(rows, 16 * cols, "tiled")
    place = sl.tiled_offset(torch.arange(rows)[:, None], torch.arange(cols)[None, :], cols)
    expected = torch.zeros(tiled.numel(), dtype=torch.uint8)
    expected[place.flatten()] = scales.flatten()
    assert_same_bits(tiled.flatten(), expected)
    assert_same_bits(sl.from_tiled(tiled, rows, 16 * cols), scales)


def test_tiled_is_a_view_and_permutation_of_whole_tiles():
    scales = distinct(256, 12)
    assert_same_bits(sl.to_tiled(scales), scales.view(2, 4, 32, 3, 4).permute(0, 3, 2, 1, 4).reshape(256, 12))


def test_batches_and_dtypes():
    scales = distinct(3 * 130, 5).view(3, 130, 5).view(torch.float8_e4m3fn)
    tiled = sl.to_tiled(scales)
    assert tiled.dtype == torch.float8_e4m3fn and tuple(tiled.shape) == (3, 256, 8)
    for i in range(3):
        assert_same_bits(tiled[i].view(torch.uint8), sl.to_tiled(scales[i]).view(torch.uint8))
    assert_same_bits(sl.from_tiled(tiled, 130, 80).view(torch.uint8), scales.view(torch.uint8))


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 3)])
def test_no_rows(shape):
    tiled = sl.to_tiled(torch.zeros(shape, dtype=torch.uint8))
    assert tiled.shape[-2:] == (0, 4)
    assert tuple(sl.from_tiled(tiled, 0, 16 * shape[-1]).shape) == shape


@given(st.integers(1, 12), st.integers(0, 2000), st.integers(0, 1000))
def test_bounds_hold_any_split(groups, total, seed):
    sizes = ragged_sizes(groups, total, seed)
    offs = end_offsets(sizes)
    for multiple, bound in ((128, sl.grouped_rows_bound(total, groups)), (64, sl.grouped_k_bound(total, groups))):
        starts = sl.padded_starts(offs, multiple).tolist()
        assert starts[0] == 0 and starts[-1] <= bound and bound % multiple == 0
        for g, size in enumerate(sizes):
            assert starts[g + 1] - starts[g] == sl.round_up(size, multiple)


def test_padded_starts_keep_dtype_and_need_no_zero_first():
    starts = sl.padded_starts(torch.tensor([0, 5, 5, 134], dtype=torch.int32), 128)
    assert starts.dtype == torch.int32 and starts.tolist() == [0, 0, 128, 128, 384]


def test_groups_of_whole_tiles_concatenate():
    first, second = distinct(128, 8), distinct(256, 8)
    together = sl.to_tiled(torch.cat((first, second)))
    assert_same_bits(together, torch.cat((sl.to_tiled(first), sl.to_tiled(second))))
