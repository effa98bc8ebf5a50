"""Blocks of packed bf16 words to scale bytes and codes, rounded on a grid (common/e2m1_grid.py).

Magnitudes are clamped while packed, to a number that the multiplier sends near 5.5: everything above is code 7, and so
is NaN, which loses the comparison.
"""

from dataclasses import dataclass

from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.e2m1_encode import with_signs
from cutefp4.kernels.common.e2m1_grid import encode_magnitudes, grid_factor
from cutefp4.kernels.quantize.block_encode import Encoded
from cutefp4.kernels.quantize.block_scale import Outer, multiplier_and_inverse, scale_byte
from cutefp4.kernels.quantize.input_block import (
    clamp,
    column_signs,
    finite_to_float,
    largest,
    magnitudes_of,
    pack,
    row_signs,
    to_float,
    values_amax,
)
from cutlass import Float32, Uint32

_CODE_SEVEN = 5.5


@dataclass(frozen=True)
class GridScale:
    """What a block is encoded with.

    Attributes:
        byte: its E4M3 scale.
        multiplier: of its elements, not 0.
        factor: `grid_factor(multiplier)`.
        limit: where to clamp.
    """

    byte: Uint32
    multiplier: Float32
    factor: Float32
    limit: Float32


def _scale(top: Float32, outer: Outer, arithmetic: str) -> GridScale:
    """Of a block with amax `top`; not for "torchao"."""
    byte = scale_byte(top, outer.block_factor)
    multiplier, inverse = multiplier_and_inverse(byte, outer, arithmetic)
    return GridScale(byte, multiplier, grid_factor(multiplier), ptx.mul(inverse, Float32(_CODE_SEVEN)))


def _codes(magnitudes: list[Float32], scale: GridScale, signs: Uint32) -> Uint32:
    """Eight codes."""
    return with_signs(encode_magnitudes(magnitudes, scale.multiplier, scale.factor), signs)


def encode_row_on_grid(words: list[Uint32], top: Float32 | None, outer: Outer, arithmetic: str, dtype: str) -> Encoded:
    """A block of 16 consecutive elements in 8 words, with no negative NaN; `top`: its amax, None to find it."""
    signs = row_signs(words)
    words = magnitudes_of(words, dtype)
    if top is None:
        lanes = largest(words, dtype)
        top = values_amax([to_float(lanes, 0, dtype), to_float(lanes, 1, dtype)])
    scale = _scale(top, outer, arithmetic)
    small = clamp(words, pack([scale.limit, scale.limit], dtype)[0], dtype)
    magnitudes = [finite_to_float(word, half) for word in small for half in (0, 1)]
    low, high = (_codes(magnitudes[i : i + 8], scale, signs[i // 8]) for i in (0, 8))
    return Encoded(scale.byte, low, high)


def encode_columns_on_grid(
    words: list[Uint32], tops, outers, arithmetic: str, dtype: str, registers: bool
) -> list[Encoded]:
    """Two blocks, one in each half of 16 words; `tops`: their amaxes, unless they are to be found.

    `registers`: more than 64 a thread may be used.
    """
    signs = column_signs(words)
    words = magnitudes_of(words, dtype)
    if tops is None:
        lanes = largest(words, dtype)
        tops = [values_amax([to_float(lanes, half, dtype)]) for half in (0, 1)]
    pair = [_scale(top, outer, arithmetic) for top, outer in zip(tops, outers, strict=True)]
    small = clamp(words, pack([scale.limit for scale in pair], dtype)[0], dtype)
    done = []
    for half, scale in enumerate(pair):
        # The results of finite_to_float live longer, and spill where four CTAs share an SM; with token scaling it takes
        # 109.2 us instead of 114.3, on (16384, 6144).
        magnitudes = [finite_to_float(word, half) if registers else to_float(word, half, dtype) for word in small]
        low, high = (_codes(magnitudes[i : i + 8], scale, signs[half][i // 8]) for i in (0, 8))
        done.append(Encoded(scale.byte, low, high))
    return done
