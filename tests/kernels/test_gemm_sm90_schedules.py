"""Configurations of the Hopper GEMM, forced: how tiles and K are shared out, and the staged operand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cutefp4.heuristics import sm90
from tests.compare import assert_same_bits
from tests.kernels.hopper import DEVICES, GPU, expect, operand, run_config, running_on, weight_values

SHARED_K = {
    "splits": replace(sm90.SMALL[1], splits=3),
    "stream": replace(sm90.SMALL[1], stream_k=True),
    "staged_splits": replace(sm90.SQUARE, swap_ab=True, staged=True, splits=3),
    "staged_stream": replace(sm90.SQUARE, swap_ab=True, staged=True, stream_k=True),
    "narrow_splits": replace(sm90.NARROW[1], swap_ab=True, staged=True, splits=2),
    "pair": replace(sm90.SMALL[4], splits=2, split_pair=True),
    "thin_pair": replace(sm90.SMALL[3], splits=2, split_pair=True),
    "staged_pair": replace(sm90.SQUARE, swap_ab=True, staged=True, splits=2, split_pair=True),
    "wide_pair": replace(sm90.WIDE, staged=True, splits=2, split_pair=True, store_passes=1),
    "four": replace(sm90.SQUARE, swap_ab=True, staged=True, splits=4, split_pair=True),
    "helped": replace(sm90.SMALL[4], splits=2, split_pair=True, helped=True),
    "odd_pair": replace(sm90.THREE, tile_n=160, swap_ab=True, staged=True, splits=2, split_pair=True),
    "staged_stream_pairs": replace(sm90.PAIRS[0], swap_ab=True, staged=True, stream_k=True),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SHARED_K)
@pytest.mark.parametrize("seed", [None, 11])
@pytest.mark.parametrize("ctas", [3, 4])
def test_shared_k_repeats_bit_for_bit_and_leaves_counters_at_zero(device, name, seed, ctas):
    # 5 tiles of 4 stages: shares of 3 and 4 CTAs begin and end inside tiles.
    a, b = operand(9, 1024, 8, device=device), operand(600, 1024, 9, device=device)
    with running_on(device, seed=seed, sms=ctas):
        (first, second), buffers = run_config(SHARED_K[name], a, b, ctas)
    assert_same_bits(first, expect(a, b))
    assert_same_bits(first, second)
    if SHARED_K[name].uses_workspace:
        assert not buffers[1].any()


HELPED = replace(sm90.NARROW[0], swap_ab=True, staged=True, splits=2, split_pair=True, helped=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", [None, 11])
@pytest.mark.parametrize(("rows", "k", "ctas"), [(304, 2816, 8), (200, 2000, 7)])
def test_helpers_take_the_end_of_k_of_every_tile(device, seed, rows, k, ctas):
    # Three tiles by pairs and two helpers, one of which has two tiles; two tiles, two helpers, K that ends in a stage.
    k = k // 64 * 64
    tiles, stages = -(-rows // 128), -(-k // 128)
    assert sm90.helped_stages(replace(HELPED, k_blocks=2), tiles, stages, ctas) == {304: 1, 200: 2}[rows]
    a, b = operand(9, k, 8, device=device), operand(rows, k, 9, device=device)
    with running_on(device, seed=seed, sms=ctas):
        (first, second), buffers = run_config(HELPED, a, b, ctas)
    assert_same_bits(first, expect(a, b))
    assert_same_bits(first, second)
    assert not buffers[1].any() and not buffers[0][:tiles].isnan().any()


LARGE = {
    "wide": replace(sm90.WIDE, staged=True),
    "wide_pairs": replace(sm90.PAIRS[0], staged=True),
    "wide_swapped": replace(sm90.PAIRS[0], staged=True, swap_ab=True),
    "wide_bf16": replace(sm90.WIDE, staged=True, decode_to="bfloat16", k_blocks=1),
    "wide_long": replace(sm90.WIDE, staged=True, k_blocks=4, store_passes=4),
    "square_pairs": replace(sm90.SQUARE, staged=True, cluster=2, steps_per_group=1),
    "three": replace(sm90.THREE, staged=True, swap_ab=True),
    "odd": replace(sm90.THREE, tile_n=208, staged=True, swap_ab=True),
    "three_pairs": replace(sm90.THREE, staged=True, cluster=2),
    "wide_split_pair": replace(sm90.WIDE, staged=True, swap_ab=True, splits=2, split_pair=True, store_passes=1),
    "four": replace(sm90.SQUARE, staged=True, swap_ab=True, splits=4, split_pair=True),
    "narrow": replace(sm90.NARROW[1], staged=True, swap_ab=True),
    "tall": replace(sm90.WIDE, staged=True, tile_m=256, tile_n=128, fragment_registers=32),
    "decoded": sm90.DECODED,
    "decoded_bf16": replace(sm90.DECODED, decode_to="bfloat16", store_passes=1, mma_stages=2),
}


@pytest.mark.parametrize(("device", "seed"), [("cpu", None), ("cpu", 5), pytest.param("cuda", None, marks=GPU.marks)])
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("layout", ["tiled", "compact"])
def test_large_tiles_whatever_the_heuristic_would_choose(device, name, layout, seed):
    # The emulator's K: half a stage is behind the end.
    m, n, k = (300, 264, 320) if device == "cpu" else (1100, 1032, 2112)
    a, b = operand(m, k, 8, layout=layout, device=device), operand(n, k, 9, layout=layout, device=device)
    ctas = 4 if device == "cpu" else 132
    with running_on(device, seed=seed, sms=4):
        (d,), _ = run_config(LARGE[name], a, b, ctas, times=1)
    assert_same_bits(d, expect(a, b))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["tiled", "compact"])
@pytest.mark.parametrize("k_blocks", [1, 2, 4])
@pytest.mark.parametrize("decode_to", ["float16", "bfloat16"])
def test_the_staged_operand_is_the_decoded_one_in_the_kernels_order(device, layout, k_blocks, decode_to):
    rows, k = 152, 320
    a, b = operand(64, k, 1, device=device), operand(rows, k, 2, layout=layout, device=device)
    passes = 4 if k_blocks == 4 else 2
    config = replace(sm90.WIDE, staged=True, k_blocks=k_blocks, decode_to=decode_to, store_passes=passes)
    with running_on(device):
        _, buffers = run_config(config, a, b, 4, times=1)
    # Slot 8 p + 2 t + e of sub-tile q of a stage is element pairs[p % 4][e] of word p // 4 of the quad's block t.
    pairs, exponent = {
        "float16": (((0, 2), (4, 6), (1, 3), (5, 7)), -6),
        "bfloat16": (((0, 4), (1, 5), (2, 6), (3, 7)), -7),
    }[decode_to]
    values = torch.nn.functional.pad(weight_values(b), (0, -k % (64 * k_blocks)))
    blocks = values.view(rows, -1, 4 * k_blocks, 16)
    order = [
        [
            (2 * k_blocks * (t // 2) + 2 * q + t % 2) * 16 + 8 * (p // 4) + pairs[p % 4][e]
            for p in range(8) for t in range(4) for e in range(2)
        ]
        for q in range(k_blocks)
    ]  # fmt: skip
    expected = blocks.reshape(rows, -1, 64 * k_blocks)[..., torch.tensor(order)].reshape(rows, -1) * 2.0**exponent
    assert_same_bits(buffers[-1][0], expected.to(getattr(torch, decode_to)))
