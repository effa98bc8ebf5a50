"""Blocks of packed bf16 words to scale bytes and codes, rounded on a grid (common/e2m1_grid.py).

Magnitudes are clamped while packed, to a number that the multiplier sends near 5.5: everything above is code 7, and so
is NaN, which loses the comparison.
"""

from cutefp4.kernels.common import ptx
from cutefp4.kernels.common.e2m1_encode import with_signs
from cutefp4.kernels.common.e2m1_grid import encode_magnitudes, grid_factor
from cutefp4.kernels.common.e4m3_encode import scale_value
from cutefp4.kernels.quantize.block_encode import Encoded
from cutefp4.kernels.quantize.block_scale import Outer, block_scale, inverse_of, nonzero
from cutefp4.kernels.quantize.input_block import (
    clamp_magnitudes,
    column_signs,
    finite_to_float,
    pack,
    row_signs,
    to_float,
)
from cutlass import Float32, Uint32

_CODE_SEVEN = 5.5


def _scale(top: Float32, outer: Outer, arithmetic: str) -> tuple[Uint32, Float32, Float32]:
    """(byte, multiplier, where to clamp) of a block."""
    byte, multiplier = block_scale(top, outer, arithmetic)
    scale = scale_value(byte)
    clamp = ptx.mul(inverse_of(scale, outer, arithmetic), Float32(_CODE_SEVEN))
    return byte, nonzero(multiplier, scale, arithmetic), clamp


def _codes(magnitudes: list[Float32], multiplier: Float32, signs: Uint32) -> Uint32:
    """Eight codes."""
    return with_signs(encode_magnitudes(magnitudes, multiplier, grid_factor(multiplier)), signs)


def encode_row_on_grid(words: list[Uint32], top: Float32, outer: Outer, arithmetic: str, dtype: str) -> Encoded:
    """A block of 16 consecutive elements in 8 words, with no negative NaN; `top`: its amax."""
    signs = row_signs(words)
    byte, multiplier, clamp = _scale(top, outer, arithmetic)
    small = clamp_magnitudes(words, pack([clamp, clamp], dtype)[0], dtype)
    magnitudes = [finite_to_float(word, half) for word in small for half in (0, 1)]
    low, high = (_codes(magnitudes[i : i + 8], multiplier, signs[i // 8]) for i in (0, 8))
    return Encoded(byte, low, high)


def encode_columns_on_grid(
    words: list[Uint32], tops, outers, arithmetic: str, dtype: str, registers: bool
) -> list[Encoded]:
    """Two blocks, one in each half of 16 words. `registers`: more than 64 a thread may be used."""
    signs = column_signs(words)
    scales = [_scale(top, outer, arithmetic) for top, outer in zip(tops, outers, strict=True)]
    small = clamp_magnitudes(words, pack([clamp for _, _, clamp in scales], dtype)[0], dtype)
    done = []
    for half, (byte, multiplier, _) in enumerate(scales):
        # The results of finite_to_float live longer, and spill where four CTAs share an SM; with token scaling it takes
        # 109.2 us instead of 114.3, on (16384, 6144).
        magnitudes = [finite_to_float(word, half) if registers else to_float(word, half, dtype) for word in small]
        low, high = (_codes(magnitudes[i : i + 8], multiplier, signs[half][i // 8]) for i in (0, 8))
        done.append(Encoded(byte, low, high))
    return done
