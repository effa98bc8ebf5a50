"""fp32 to E4M3 block scales and back, with the hardware's conversions (sm_89 and later)."""

from cutefp4.kernels.common import ptx
from cutlass import Float32, Uint32


def encode_scale(value: Float32) -> Uint32:
    """E4M3 byte of a value >= 0: nearest even, saturating at 448; not for NaN."""
    text = "{ .reg .b16 h; cvt.rn.satfinite.e4m3x2.f32 h, $2, $1; cvt.u32.u16 $0, h; }"
    return ptx.asm(text, Uint32, value, Float32(0.0))


def scale_value(byte: Uint32) -> Float32:
    """The fp32 value of an E4M3 byte, exact."""
    text = (
        "{ .reg .b16 h, lo, hi; .reg .b32 w; cvt.u16.u32 h, $1; cvt.rn.f16x2.e4m3x2 w, h; "
        "mov.b32 {lo, hi}, w; cvt.f32.f16 $0, lo; }"
    )
    return ptx.asm(text, Float32, byte)
