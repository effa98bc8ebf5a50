"""Philox4x32-10, the counter-based generator of stochastic rounding.

round: (c0, c1, c2, c3) <- (hi(M1*c2) ^ c1 ^ k0, lo(M1*c2), hi(M0*c0) ^ c3 ^ k1, lo(M0*c0)),  then k += Weyl
"""

from cutefp4.kernels.common import ptx
from cutlass import Uint32

ROUNDS = 10
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_WEYL = (0x9E3779B9, 0xBB67AE85)
_XOR3 = 0x96


def key_schedule(seed_low: Uint32, seed_high: Uint32) -> list[tuple[Uint32, Uint32]]:
    """The ten round keys of a 64-bit seed; the same for all counters, so made once per thread."""
    keys = []
    for i in range(ROUNDS):
        low, high = (i * w & 0xFFFFFFFF for w in _WEYL)
        keys.append((seed_low + Uint32(low), seed_high + Uint32(high)))
    return keys


def philox(counter: tuple[Uint32, Uint32, Uint32, Uint32], keys) -> tuple[Uint32, Uint32, Uint32, Uint32]:
    """Four random words of a 128-bit counter."""
    c0, c1, c2, c3 = counter
    for k0, k1 in keys:
        low0, high0 = ptx.mul_wide(c0, Uint32(_M0))
        low1, high1 = ptx.mul_wide(c2, Uint32(_M1))
        c0, c1, c2, c3 = ptx.lop3(high1, c1, k0, _XOR3), low1, ptx.lop3(high0, c3, k1, _XOR3), low0
    return c0, c1, c2, c3
