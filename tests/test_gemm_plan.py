"""Limits that hold for the GEMM of every architecture."""

import pytest

from cutefp4 import gemm_choice_sm90, gemm_choice_sm100
from cutefp4.epilogue import default_epilogue
from cutefp4.epilogue_text import default_text
from cutefp4.errors import UnsupportedError
from cutefp4.gemm_plan import check_index_range
from cutefp4.gemm_request_sm90 import GemmRequest

LARGEST = [(46340, 46340, 64, 1), (65536, 64, 65472, 1), (1024, 1024, 64, 2047)]
TOO_LARGE = [(65536, 32768, 64, 1), (64, 65536, 65536, 1), (65536, 64, 65536, 1), (1024, 1024, 64, 2048)]


@pytest.mark.parametrize("m, n, k, batch", LARGEST)
def test_offsets_that_fit_are_served(m, n, k, batch):
    check_index_range(m, n, k, batch)


@pytest.mark.parametrize("m, n, k, batch", TOO_LARGE)
def test_offsets_beyond_32_bits_are_refused(m, n, k, batch):
    tree = default_epilogue(1.0, "row", "column")
    hopper = GemmRequest(m, n, k, batch, "bfloat16", "nvfp4", "tiled", "tiled", tree)
    blackwell = gemm_choice_sm100.GemmRequest(m, n, k, batch, "bfloat16", default_text((448, 448), ("row", "column")))
    with pytest.raises(UnsupportedError, match=f"M = {m}.*accepted: .*2\\^31.*to fix: split"):
        gemm_choice_sm90.make_plan(hopper, "sm_90a", 132)
    with pytest.raises(UnsupportedError, match=f"M = {m}"):
        gemm_choice_sm100.make_plan(blackwell, "sm_100a", 148)
