"""The random Hadamard transform of 16 elements in registers.

    out[c] = 0.25 * sum_r x[r] * sign[r] * (-1)^popcount(r & c),    sign[r] = -1 where bit r of the mask is set

fp32 butterflies of stride 1, 2, 4, 8: (a, b) -> (fl(a + b), fl(a - b)). The signs and, for 16-bit input, the factor
0.25 ride on the first stage as multiplications (exact: every bf16 and fp16 number has a normal or exactly
representable quarter in fp32), which makes 8 FMUL + 16 FFMA + 48 FADD for 16 elements. fp32 input is multiplied by
0.25 at the end. "bf16" rounds the result once more.

The oracle's "fp32" form is this one bit for bit. Its "bf16" form sums exactly; fp32 sums give the same bf16 unless a
group spans more than about 2^12 in magnitude *and* the sum lies beside a tie of bf16.

Rejected: mma.sync, with H in registers and the tile transposed by ldmatrix. It costs a cast of both copies 7 % more
cycles than no transform, but with it the clock of an H200 falls from 1.9 to 1.7 GHz: on (16384, 6144) it took 124.8 us
where this took 119.8, and with stochastic rounding 137 where this took 134.
"""

from cutefp4.kernels.common import ptx
from cutlass import Float32, Uint32


def sign_factors(mask: Uint32, dtype: str) -> list[Float32]:
    """Factor of each of the 16 rows: +-0.25 for 16-bit input, +-1 for fp32."""
    one = 0x3F800000 if dtype == "float32" else 0x3E800000
    return [ptx.from_bits(((mask << Uint32(31 - row)) & Uint32(0x80000000)) | Uint32(one)) for row in range(16)]


def transform(x: list[Float32], factors: list[Float32], kind: str, dtype: str) -> list[Float32]:
    """The transform of 16 values; kind "fp32", "exact" or "bf16".

    "exact": what is to be rounded to bf16, where a sum of 0 is +0: a first operand that is never -0 sees to it.
    """
    y = []
    for i in range(0, 16, 2):
        first = ptx.mul(x[i], factors[i]) if kind == "fp32" else ptx.fma(x[i], factors[i], Float32(0.0))
        y += [ptx.fma(x[i + 1], factors[i + 1], first), ptx.fma(x[i + 1], -factors[i + 1], first)]
    for stride in (2, 4, 8):
        for i in range(16):
            if not i & stride:
                a, b = y[i], y[i + stride]
                y[i], y[i + stride] = ptx.add(a, b), ptx.sub(a, b)
    if dtype == "float32":
        y = [ptx.mul(v, Float32(0.25)) for v in y]
    return [round_to_bf16(v) for v in y] if kind == "bf16" else y


def round_to_bf16(value: Float32) -> Float32:
    """Nearest bf16 number, ties to even, as fp32."""
    text = "{ .reg .b16 h, z; cvt.rn.bf16.f32 h, $1; mov.b16 z, 0; mov.b32 $0, {z, h}; }"
    return ptx.asm(text, Float32, value)
