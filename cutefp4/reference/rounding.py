"""Rounding scaled elements to E2M1 codes: to nearest, or stochastically with 8 random bits an element (R-SR).

R-SR for |y| < 6: with g the largest E2M1 magnitude <= |y| and step the distance to the next one (0.5 below 2, 1 below
4, else 2),

    D = floor(256 * (|y| - g) / step);   away from zero iff D + r8 >= 256, else g

so P(away) = D/256 exactly. The sign is kept (-0 gives 0x8), |y| >= 6 saturates, NaN gives 0x7.

The random bytes of the 16 elements of one block come from one Philox4x32-10 output:

    counter = (offset lo, offset hi, block index in the row, row index);   key = (seed lo, seed hi)
    word w, byte j (bits 8j+7 .. 8j) -> element 4w + j

where row and block are those of the copy that is written (for a columnwise copy: row of the transpose).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cutefp4.format import BLOCK, E2M1_MAX, encode_e2m1
from cutefp4.reference.philox import MASK32, philox4x32


@dataclass(frozen=True)
class RandomState:
    """Seed and offset of one copy; 64-bit each, taken modulo 2**64."""

    seed: int
    offset: int

    def advanced(self, count: int) -> RandomState:
        """The state `count` offsets later."""
        return RandomState(self.seed, self.offset + count)


def random_bytes(state: RandomState, rows: torch.Tensor, blocks: int) -> torch.Tensor:
    """R-SR bytes of the blocks 0..blocks-1 of the given rows.

    Args:
        state: seed and offset of the copy.
        rows: int64 (R,), row indices of the copy being written.
        blocks: blocks per row.

    Returns:
        int32 (R, blocks, 16), values 0..255.
    """
    block = torch.arange(blocks, dtype=torch.int64, device=rows.device)
    counter = (state.offset & MASK32, (state.offset >> 32) & MASK32, block[None, :], rows[:, None])
    words = philox4x32(counter, (state.seed & MASK32, (state.seed >> 32) & MASK32))
    words = torch.stack([w.expand(rows.numel(), blocks) for w in words], dim=-1)
    little_endian = words.to(torch.int32).view(torch.uint8)  # 4 bytes a word, lowest first, on every supported host
    return little_endian.view(rows.numel(), blocks, BLOCK).to(torch.int32)


def encode_e2m1_stochastic(y: torch.Tensor, r8: torch.Tensor) -> torch.Tensor:
    """Round fp32 `y` to E2M1 codes with random bytes `r8` (0..255, same shape); see the module's text.

    Every step is exact in fp32: |y| - g loses no bits, and the other factors are powers of two.
    """
    magnitude = y.abs()
    low = magnitude < 2
    middle = magnitude < 4
    # Position in units of the grid, counted from the first grid value of the interval: code = first + floor(position).
    position = torch.where(low, magnitude * 2, torch.where(middle, magnitude - 2, (magnitude - 4) * 0.5))
    floor = position.floor()
    first = torch.where(low, 0, torch.where(middle, 4, 6))
    dither = ((position - floor) * 256).floor()
    code = first + floor + (dither + r8 >= 256)
    code = torch.where(magnitude >= E2M1_MAX, torch.full_like(code, 7), code).to(torch.uint8)
    code |= torch.signbit(y).to(torch.uint8) << 3
    return torch.where(torch.isnan(y), torch.full_like(code, 7), code)


def encode_blocks(y: torch.Tensor, state: RandomState | None, first_row: int) -> torch.Tensor:
    """Codes of scaled blocks: nearest if `state` is None, else R-SR.

    Args:
        y: fp32 (R, blocks, 16), elements times their block's multiplier.
        state: seed and offset, None for round-to-nearest-even.
        first_row: index of y[0] in the copy being written.

    Returns:
        uint8 codes of the same shape.
    """
    if state is None:
        return encode_e2m1(y)
    rows = torch.arange(first_row, first_row + y.shape[0], dtype=torch.int64, device=y.device)
    return encode_e2m1_stochastic(y, random_bytes(state, rows, y.shape[1]))
