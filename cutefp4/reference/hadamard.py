"""The random Hadamard transform (RHT) of 16 consecutive elements along the contraction axis.

    out[c] = 0.25 * sum_r x[r] * sign[r] * (-1)**popcount(r & c),     sign[r] = -1 where bit r of the mask is set

The matrix is orthogonal, so a GEMM whose two operands were transformed with the same mask needs no inverse.

Two arithmetics, which are different specifications:

* "bf16": the sum as if exact (fp64 butterflies: exact unless a group's magnitudes span more than about 40 binades),
  then one rounding to fp32 and one to bf16. A sum of 0 is +0, as tensor cores add; butterflies would make some -0.
* "fp32": sign flips, then butterflies of stride 1, 2, 4, 8 in fp32, (a, b) -> (fl(a+b), fl(a-b)) with a the element
  whose index lacks the stride bit, then times 0.25. A kernel may fold the 0.25 into amaxes and multipliers: a power of
  two changes no bit (for fp32 input below 2**-124 it may, and then the product here is the definition).
"""

from __future__ import annotations

import torch

from cutefp4.format import BLOCK


def signs(mask: int, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> torch.Tensor:
    """(16,) of +1 and -1: -1 where the bit of `mask` is set."""
    return torch.tensor([-1.0 if mask >> i & 1 else 1.0 for i in range(BLOCK)], dtype=dtype, device=device)


def _butterflies(groups: torch.Tensor) -> torch.Tensor:
    """Unscaled Walsh-Hadamard transform of the last axis (16), one rounding per addition in the dtype of the input."""
    shape = groups.shape
    for stride in (1, 2, 4, 8):
        pairs = groups.reshape(*shape[:-1], BLOCK // (2 * stride), 2, stride)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        groups = torch.stack((a + b, a - b), dim=-2)
    return groups.reshape(shape)


def transform(x: torch.Tensor, kind: str, mask: int) -> torch.Tensor:
    """The transform of every 16 elements of the last axis.

    Args:
        x: (..., K) of any floating dtype, K a multiple of 16.
        kind: "none", "bf16" or "fp32".
        mask: sign mask, 16 bits.

    Returns:
        fp32 (..., K); for kind "bf16" the values are bf16 numbers.
    """
    if kind == "none":
        return x.float()
    dtype = torch.float64 if kind == "bf16" else torch.float32
    groups = x.to(dtype).reshape(*x.shape[:-1], -1, BLOCK) * signs(mask, dtype, x.device)
    out = (_butterflies(groups) * 0.25).reshape(x.shape).float()
    return (out + 0.0).to(torch.bfloat16).float() if kind == "bf16" else out


def inverse_transform(y: torch.Tensor, mask: int) -> torch.Tensor:
    """Undo `transform` (up to its roundings): (..., K) to fp64 (..., K). For measuring errors; no GEMM needs it."""
    groups = y.double().reshape(*y.shape[:-1], -1, BLOCK)
    return (_butterflies(groups) * 0.25 * signs(mask, torch.float64, y.device)).reshape(y.shape)
