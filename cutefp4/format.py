"""NVFP4 facts: the E2M1 element, the E4M3 block scale, the outer scale and the constant of the GEMM.

A quantised value is `e2m1 * e4m3 * amax / (6 * e4m3_max)`: a 4-bit element (sign, 2 exponent bits, 1 mantissa bit), one
E4M3 scale per block of 16 elements along the contraction axis, and an outer amax per tensor or per row.

All arithmetic here is IEEE fp32, one rounding per operation, in the order that is written. `divide` exists because
PyTorch turns the division of a CUDA tensor by a Python number into a multiplication by the reciprocal, which rounds
differently.
"""

from __future__ import annotations

import torch

BLOCK = 16
"""Elements that share one E4M3 scale."""

E2M1_MAX = 6.0
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitude of the codes 0..7; bit 3 of a code is the sign, so code 8 is -0."""

E4M3_MAX = 448
"""The largest finite E4M3 value (byte 0x7E)."""

E4M3_MAX_CHOICES = (448, 256)
"""The block scale that the outer scale aims at: the format's maximum, or 256 (used with 4over6)."""

FLT_MAX = float(torch.finfo(torch.float32).max)

# A magnitude's code is the number of thresholds that it passes. Ties go to the even code, hence "greater than" where
# the upper neighbour is odd and "at least" where it is even.
_GREATER_THAN = (0.25, 1.25, 2.5, 5.0)
_AT_LEAST = (0.75, 1.75, 3.5)


def numerator(e4m3_max: int) -> float:
    """`6 * e4m3_max`: the magnitude that an amax is mapped to (an integer, exact in fp32)."""
    return E2M1_MAX * e4m3_max


def gemm_constant(e4m3_max_a: int, e4m3_max_b: int) -> float:
    """fl32(1 / (6*e4m3_max_a * 6*e4m3_max_b)), the factor that the outer amaxes leave behind in a GEMM.

    The product of the two integers is exact in fp32, so every spelling of the constant agrees.
    """
    product = torch.tensor(numerator(e4m3_max_a) * numerator(e4m3_max_b), dtype=torch.float32)
    return float(torch.div(torch.ones_like(product), product))


def weight_constant(e4m3_max: int) -> float:
    """fl32(1 / (6 * e4m3_max)): what one operand's outer amax leaves behind in a GEMM with 16-bit activations."""
    return float(torch.ones(()) / numerator(e4m3_max))


def divide(x: torch.Tensor, y: float | torch.Tensor) -> torch.Tensor:
    """fl32(x / y): a true IEEE division on every device."""
    if not isinstance(y, torch.Tensor):
        y = torch.full((), y, dtype=torch.float32, device=x.device).expand_as(x)
    return torch.div(x, y)


def encode_e2m1(y: torch.Tensor) -> torch.Tensor:
    """Round fp32 `y` (any shape) to E2M1 codes 0..15 (uint8, same shape).

    Round to nearest, ties to even, saturating at +-6; NaN of any sign gives 0x7 (+6); the sign survives rounding to
    zero, so -0.0 and tiny negatives give 0x8.
    """
    magnitude = y.abs()
    code = torch.zeros(y.shape, dtype=torch.uint8, device=y.device)
    for threshold in _GREATER_THAN:
        code += magnitude > threshold
    for threshold in _AT_LEAST:
        code += magnitude >= threshold
    code |= torch.signbit(y).to(torch.uint8) << 3
    return torch.where(torch.isnan(y), torch.full_like(code, 7), code)


def decode_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Codes 0..15 (uint8, any shape) to fp32 values; code 8 gives -0.0."""
    table = torch.tensor(E2M1_VALUES + tuple(-v for v in E2M1_VALUES), dtype=torch.float32, device=codes.device)
    return table[codes.long()]


def pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """(..., K) codes to (..., K/2) bytes: even k in the low nibble, odd k in the high nibble. K must be even."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_codes(packed: torch.Tensor) -> torch.Tensor:
    """(..., K/2) bytes to (..., K) codes, the inverse of `pack_codes`."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


def encode_e4m3(s: torch.Tensor) -> torch.Tensor:
    """Round fp32 `s` to float8_e4m3fn: nearest, ties to even, saturating at +-448; NaN stays NaN (0x7F).

    The clamp comes first because older PyTorch releases turn overflow into NaN.
    """
    return s.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def decode_e4m3(s: torch.Tensor) -> torch.Tensor:
    """float8_e4m3fn (or its bytes as uint8) to fp32, exact."""
    return (s.view(torch.float8_e4m3fn) if s.dtype == torch.uint8 else s).float()


def encode_scale(amax: torch.Tensor, e4m3_max: int = E4M3_MAX) -> torch.Tensor:
    """The outer encode scale S_enc of an fp32 amax of any shape.

    s = min(fl(6*e4m3_max / amax), FLT_MAX);  S_enc = 1 where amax == 0 or s == 0 (amax = Inf), else s.
    """
    top = torch.full_like(amax, numerator(e4m3_max))
    s = torch.div(top, amax).clamp(max=FLT_MAX)
    return torch.where((amax == 0) | (s == 0), torch.ones_like(s), s)


def decode_scale(s_enc: torch.Tensor) -> torch.Tensor:
    """S_dec = fl(1 / S_enc); it differs from amax / (6*e4m3_max) by one ulp in about 28 % of cases."""
    return torch.div(torch.ones_like(s_enc), s_enc)


def amax(x: torch.Tensor, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> torch.Tensor:
    """max |x| as fp32 over `dim` (None: all), ignoring NaN; 0 for an empty or all-NaN set."""
    magnitude = torch.nan_to_num(x.float().abs(), nan=0.0, posinf=torch.inf)
    if magnitude.numel() == 0:
        shape = magnitude.sum(dim=dim, keepdim=keepdim).shape if dim is not None else ()
        return magnitude.new_zeros(shape)
    return magnitude.amax() if dim is None else magnitude.amax(dim=dim, keepdim=keepdim)
