"""Deterministic inputs: integers hashed into bit patterns, and the values at which arithmetic goes wrong.

Everything is made from integer arithmetic on counters, never from a library's random generator, so that the bytes are
the same on every machine.
"""

from __future__ import annotations

import numpy as np


def hash64(count: int, seed: int) -> np.ndarray:
    """``count`` well-mixed 64-bit words (the splitmix64 finaliser over a counter)."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(seed) * np.uint64(0xD1342543DE82EF95)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def hash32(count: int, seed: int) -> np.ndarray:
    """``count`` well-mixed 32-bit words."""
    return (hash64(count, seed) >> np.uint64(32)).astype(np.uint32)


def bytes_(count: int, seed: int) -> np.ndarray:
    """``count`` well-mixed bytes."""
    return hash64((count + 7) // 8, seed).view(np.uint8)[:count].copy()


def _f32(*values: float) -> list[int]:
    return [int(np.float32(v).view(np.uint32)) for v in values]


F32_SPECIALS = np.array(
    [
        0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x00000003, 0x007FFFFF, 0x807FFFFF, 0x00800000, 0x80800000,
        0x00800001, 0x00FFFFFF, 0x01000000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001,
        0xFFC12345, 0xFF912345, 0x3F800000, 0xBF800000, 0x3F800001, 0x3F7FFFFF, 0x33800000, 0x34000000, 0x33FFFFFF,
        *_f32(0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 3.1415927, -0.1, 448.0, 464.0, 465.0, -57344.0, 61440.0, 65504.0,
              65520.0, 8388608.5, 16777217.0, 2147483648.0, -2147483648.0, 4294967296.0, 9.2233720e18, 1.8446744e19,
              1e-20, -1e20, 5.9604645e-08, 2.9802322e-08, 6.1035156e-05, 0.001953125, 127.5, 255.5, -128.5, 32767.5),
    ],
    dtype=np.uint32,
)  # fmt: skip

F16_SPECIALS = np.array(
    [
        0x0000, 0x8000, 0x0001, 0x8001, 0x0002, 0x03FF, 0x83FF, 0x0400, 0x0401, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00,
        0x7C01, 0xFE34, 0xFD55, 0x3C00, 0xBC00, 0x3C01, 0x3BFF, 0x3800, 0xB800, 0x3E00, 0x4100, 0x5F00, 0x5F40, 0x5F41,
        0x7B00, 0x6400, 0x6401, 0x1400,
    ],
    dtype=np.uint16,
)  # fmt: skip

BF16_SPECIALS = np.array(
    [
        0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x807F, 0x0080, 0x0081, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0x7F81,
        0xFFC5, 0xFF91, 0x3F80, 0xBF80, 0x3F81, 0x3F7F, 0x3F00, 0xBF00, 0x3FC0, 0x4020, 0x43E0, 0x43E8, 0x4780, 0x477F,
        0x0100, 0x2B80, 0x5380, 0x7F00,
    ],
    dtype=np.uint16,
)  # fmt: skip

I32_SPECIALS = np.array(
    [
        0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 33, 63, 64, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000,
        0x00FFFFFF, 0x01000000, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFF80, 0xFFFFFF00,
        0xFFFF8000, 0xFFFF0000, 0x55555555, 0xAAAAAAAA, 0x12345678, 0xDEADBEEF, 0x0F0F0F0F, 0x00010001, 0x3F800000,
    ],
    dtype=np.uint32,
)  # fmt: skip

COUNT = 4096
"""Elements of a lane-wise family: half of them pairs of special values, half hashed."""


def _cross(specials: np.ndarray, seed: int) -> list[np.ndarray]:
    """(a, b, c) of COUNT/2 elements: all pairs (as many as fit), and a hashed third."""
    n, half = len(specials), COUNT // 2
    pick = hash32(2 * half, seed)
    index = np.arange(half)
    full = index < n * n
    a = np.where(full, specials[(index // n) % n], specials[pick[:half] % n])
    b = np.where(full, specials[index % n], specials[pick[half:] % n])
    c = specials[(pick[:half] >> 8) % n]
    return [a, b, c]


def f32_triples(seed: int = 1) -> list[np.ndarray]:
    """a, b, c as float32 bits: specials, any bits, and values near each other so that fma(a, b, c) cancels."""
    a, b, c = _cross(F32_SPECIALS, seed)
    quarter = COUNT // 4
    wild = [hash32(quarter, seed + 10 + i) for i in range(3)]
    bits = [hash32(quarter, seed + 20 + i) for i in range(3)]
    near = [(0x3F000000 + (w & np.uint32(0x01FFFFFF))) | (w & np.uint32(0x80000000)) for w in bits[:2]]
    product = near[0].view(np.float32) * near[1].view(np.float32)
    third = (-product).view(np.uint32) + (bits[2] % np.uint32(5)) - np.uint32(2)
    near.append(third.astype(np.uint32))
    return [np.concatenate(p).astype(np.uint32) for p in zip([a, b, c], wild, near, strict=True)]


def i32_triples(seed: int = 2) -> list[np.ndarray]:
    """a, b, c as 32-bit integers: all pairs of specials, then any bits."""
    tail = [hash32(COUNT // 2, seed + 30 + i) for i in range(3)]
    return [np.concatenate(p).astype(np.uint32) for p in zip(_cross(I32_SPECIALS, seed), tail, strict=True)]


def half_triples(kind: str, seed: int = 3) -> list[np.ndarray]:
    """a, b, c as two packed f16 or bf16: specials in both halves, any bits, and values of moderate size."""
    specials = F16_SPECIALS if kind == "f16" else BF16_SPECIALS
    base = 0x3400 if kind == "f16" else 0x3E80
    span = 0x0FFF if kind == "f16" else 0x01FF
    quarter, parts = COUNT // 4, []
    for i, low in enumerate(_cross(specials, seed)):
        high = specials[(hash32(COUNT // 2, seed + i) >> 7) % len(specials)].astype(np.uint32)
        packed = low.astype(np.uint32) | (high << np.uint32(16))
        wild = hash32(quarter, seed + 40 + i)
        bits = hash32(quarter, seed + 50 + i)
        lanes = [(base + ((bits >> s) & span)) | ((bits >> (s + 13)) & 1) << 15 for s in (0, 2)]
        near = (lanes[0] | (lanes[1] << 16)).astype(np.uint32)
        parts.append(np.concatenate([packed, wild, near]).astype(np.uint32))
    return parts


def wide_triples(kind: str, seed: int = 4) -> list[np.ndarray]:
    """a, b, c as 64-bit words: float64 (kind "f64") or integer ("i64") specials and hashed bits."""
    if kind == "f64":
        values = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, -2.5, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308,
                  3.4028236e38, 1e-46, 2147483647.5, 4294967295.5, 9.3e18, -9.3e18, 65520.0, 0.1,
                  16777217.0]  # fmt: skip
        special = np.array(values, dtype=np.float64).view(np.uint64)
        odd = [0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000, 0x7FF0000000000001, 0xFFF8123456789ABC]
        special = np.concatenate([special, np.array(odd, dtype=np.uint64)])
    else:
        low = I32_SPECIALS.astype(np.uint64)
        special = np.concatenate([low[:24], (low << np.uint64(32))[20:], ~low[:8], low[30:] * np.uint64(0x100000001)])
    parts = []
    for i, part in enumerate(_cross(special, seed)):
        tail = hash64(COUNT // 2, seed + 60 + i)
        if kind == "f64":  # exponents near 1, so that sums and products of two of them interact
            mask = np.uint64(0x800FFFFFFFFFFFFF)
            tail = (tail & mask) | ((np.uint64(0x3F0) + (tail >> np.uint64(52)) % np.uint64(32)) << np.uint64(52))
        parts.append(np.concatenate([part, tail]).astype(np.uint64))
    return parts


def small_floats(count: int, kind: str, seed: int, limit: int = 3) -> np.ndarray:
    """Integers in -limit..limit as float bits of ``kind`` (f16, bf16, f32): sums of products are exact in float32."""
    values = (hash32(count, seed) % np.uint32(2 * limit + 1)).astype(np.int32) - limit
    single = values.astype(np.float32)
    if kind == "f32":
        return single.view(np.uint32)
    if kind == "bf16":
        return (single.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return single.astype(np.float16).view(np.uint16)
