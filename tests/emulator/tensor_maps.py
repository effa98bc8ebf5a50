"""Tensor maps written bit by bit, for tests that launch plain PTX or call the engine functions directly."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

U8, U16, U32, S32, U64, S64, F16, F32, F64, BF16, U4, U4_PADDED, U6_PADDED = 0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13
BITS = {U8: 8, U16: 16, U32: 32, S32: 32, U64: 64, S64: 64, F16: 16, F32: 32, F64: 64, BF16: 16, U4: 4, U4_PADDED: 4, U6_PADDED: 6}  # fmt: skip


@dataclass(frozen=True)
class Map:
    """Geometry of a tiled tensor map: dims and box in elements (inner first), strides in bytes of dims 1.."""

    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    dtype: int = U8
    swizzle: int = 0  # 0, 1 (32 B), 2 (64 B), 3 (128 B)
    atom32: bool = False

    def encode(self, address: int) -> bytes:
        q = [0] * 16
        q[0] = address
        q[1] = 2 | (len(self.dims) - 1) << 4 | self.dtype << 7 | self.swizzle << 13 | 1 << 18 | int(self.atom32) << 19
        strides = [s >> 4 for s in self.strides] + [0] * (4 - len(self.strides))
        q[1] |= strides[0] << 32
        q[2] = strides[1] | strides[2] << 32
        q[3] = strides[3]
        dims = [d - 1 for d in self.dims] + [0] * (5 - len(self.dims))
        box = [b - 1 for b in self.box] + [0] * (5 - len(self.box))
        q[4] = dims[0] | dims[1] << 32
        q[5] = dims[2] | dims[3] << 32
        q[6] = dims[4] | box[0] << 56
        q[7] = box[1] | box[2] << 8 | box[3] << 16 | box[4] << 24
        return b"".join(word.to_bytes(8, "little") for word in q)


class DecodedMap(ctypes.Structure):
    """struct TensorMap of native/tensormap.h."""

    _fields_ = [
        ("base", ctypes.c_uint64), ("dim", ctypes.c_uint64 * 5), ("stride", ctypes.c_uint64 * 5), ("box", ctypes.c_uint32 * 5),
        ("rank", ctypes.c_int), ("type", ctypes.c_int), ("swizzle", ctypes.c_int), ("round_tf32", ctypes.c_int),
        ("nan_fill", ctypes.c_int), ("bits", ctypes.c_int), ("smem_bits", ctypes.c_int),
    ]  # fmt: skip


class BoxRow(ctypes.Structure):
    _fields_ = [("gaddr", ctypes.c_uint64), ("first", ctypes.c_uint32), ("count", ctypes.c_uint32)]
