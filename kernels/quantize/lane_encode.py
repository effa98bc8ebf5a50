"""Blocks of packed bf16 words to scale bytes and codes, rounded two elements at a time (common/e2m1_lanes.py), or on a
grid (grid_encode.py) where a block of the warp is unusual: a product is 7 or more, Inf or NaN, or the outer amax is
astronomic. NaNs may have either sign. All lanes of a warp must encode together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutefp4.kernels.common.e2m1_lanes import TO_FP16, encode_in_pairs
from cutefp4.kernels.quantize.block_encode import Encoded
from cutefp4.kernels.quantize.block_scale import Outer, scale_byte, usual_multiplier
from cutefp4.kernels.quantize.grid_encode import encode_columns_on_grid, encode_row_on_grid
from cutefp4.kernels.quantize.input_block import (
    nan_amax,
    nan_amaxes,
    positive_nans,
    signed_to_float,
    zero_below_negative,
)
from cutlass import Float32, Int32, Uint32


@dataclass(frozen=True)
class LaneBlock:
    """A block to encode.

    Attributes:
        top: its amax, NaN if there is one.
        outer: what its outer amax gives.
        halves: the 16 elements as (word, half).
    """

    top: Float32
    outer: Outer
    halves: list[tuple[Uint32, int]]


def _codes(block: LaneBlock, factor: Float32, zeros: Uint32) -> list[Uint32]:
    """Two words of codes."""
    x = [signed_to_float(word, half, zeros) for word, half in block.halves]
    return [encode_in_pairs(x[i : i + 8], factor) for i in (0, 8)]


@cute.jit
def _encode(blocks: cutlass.Constexpr, arithmetic: cutlass.Constexpr, carefully: cutlass.Constexpr, count: Int32):
    scales = [scale_byte(block.top, block.outer.block_factor) for block in blocks]
    made = [usual_multiplier(s, b.top, b.outer, arithmetic, TO_FP16) for s, b in zip(scales, blocks, strict=True)]
    usual = made[0][1]
    for i in cutlass.range_constexpr(1, len(blocks)):
        usual = usual & made[i][1]
    low = [Uint32(0) for _ in blocks]
    high = [Uint32(0) for _ in blocks]
    if cute.arch.vote_all_sync(usual):
        zeros = zero_below_negative(count)
        codes = [_codes(block, factor, zeros) for block, (factor, _) in zip(blocks, made, strict=True)]
        low, high = [c[0] for c in codes], [c[1] for c in codes]
    else:
        done = carefully()
        scales, low, high = [e.scale for e in done], [e.low for e in done], [e.high for e in done]
    return scales, low, high


def encode_in_lanes(
    blocks: list[LaneBlock], arithmetic: str, carefully: Callable[[], list[Encoded]], count: Int32
) -> list[Encoded]:
    """Encode some blocks together; `carefully` does so for any. count: an argument of the kernel, not negative."""
    return [Encoded(*done) for done in zip(*_encode(blocks, arithmetic, carefully, count), strict=True)]


def encode_rows_in_lanes(rows: list[list[Uint32]], outers, arithmetic: str, count: Int32) -> list[Encoded]:
    """Blocks of 16 consecutive elements in 8 words."""
    blocks = [
        LaneBlock(nan_amax(words), outer, [(word, half) for word in words for half in (0, 1)])
        for words, outer in zip(rows, outers, strict=True)
    ]

    def carefully() -> list[Encoded]:
        return [
            encode_row_on_grid(positive_nans(words, "bfloat16"), None, outer, arithmetic, "bfloat16")
            for words, outer in zip(rows, outers, strict=True)
        ]

    return encode_in_lanes(blocks, arithmetic, carefully, count)


def encode_columns_in_lanes(
    words: list[Uint32], outers, arithmetic: str, registers: bool, count: Int32
) -> list[Encoded]:
    """Two blocks, one in each half of 16 words. `registers`: more than 64 a thread may be used."""
    blocks = [
        LaneBlock(top, outer, [(word, half) for word in words])
        for half, (top, outer) in enumerate(zip(nan_amaxes(words), outers, strict=True))
    ]

    def carefully() -> list[Encoded]:
        cleared = positive_nans(words, "bfloat16")
        return encode_columns_on_grid(cleared, None, outers, arithmetic, "bfloat16", registers)

    return encode_in_lanes(blocks, arithmetic, carefully, count)
