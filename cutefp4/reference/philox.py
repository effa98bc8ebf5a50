"""Philox4x32-10: the counter-based generator behind stochastic rounding.

One call turns a 128-bit counter and a 64-bit key into four 32-bit words; nothing is carried from call to call, so the
bytes depend on coordinates alone and every device and schedule agrees.
"""

from __future__ import annotations

import torch

ROUNDS = 10
MASK32 = 0xFFFFFFFF
_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _mul_hi_lo(multiplier: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of the 64-bit product; the wrap-around of int64 leaves its bits right."""
    product = word * multiplier
    return (product >> 32) & MASK32, product & MASK32


def philox4x32(counter: tuple, key: tuple[int, int], rounds: int = ROUNDS) -> tuple[torch.Tensor, ...]:
    """Four words of random bits.

    Args:
        counter: (c0, c1, c2, c3), int64 tensors (broadcastable) or integers, each in [0, 2**32).
        key: (k0, k1), integers in [0, 2**32).
        rounds: 10 is the standard strength.

    Returns:
        Four int64 tensors of values in [0, 2**32).
    """
    c0, c1, c2, c3 = (torch.as_tensor(c, dtype=torch.int64) for c in counter)
    k0, k1 = key
    for _ in range(rounds):
        hi0, lo0 = _mul_hi_lo(_MULTIPLIER[0], c0)
        hi1, lo1 = _mul_hi_lo(_MULTIPLIER[1], c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _WEYL[0]) & MASK32, (k1 + _WEYL[1]) & MASK32
    return c0, c1, c2, c3
