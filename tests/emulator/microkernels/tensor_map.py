"""Our own encoder of tiled tensor maps, for machines whose driver is not at hand; checked against the driver's.

Bit positions: word 0 the address; word 1 rank, element type, swizzle, fill and the first stride; words 2-3 the other
strides in units of 16 bytes; words 4-6 the dimensions less one; then the box less one. The engine needs no more than
these 64 bytes; words 8 and 9 (the box's bytes and the alignment of its start in shared memory) are the driver's own.
(The DSL's host code sets bits 1 and 18 of word 1 as well, and bit 21 for large tensors.)
"""

from __future__ import annotations

import math

from .kernel import ELEMENT_BITS, SWIZZLES, TensorMap

TYPE_CODES = {
    "u8": 0, "u16": 1, "u32": 2, "s32": 3, "u64": 4, "s64": 5, "f16": 6, "f32": 7, "f64": 9, "bf16": 10,
    "f32_ftz": 8, "tf32": 7, "tf32_ftz": 8, "u4_align8": 11, "u4_align16": 12,
}  # fmt: skip


def encode(m: TensorMap, address: int) -> bytes:
    """The 128 bytes of a tensor map over memory at ``address``."""
    rank = len(m.dims)
    strides = [s >> 4 for s in m.strides] + [0] * (4 - len(m.strides))
    dims = [d - 1 for d in m.dims] + [0] * (5 - rank)
    box = [b - 1 for b in m.box] + [0] * (5 - rank)
    words = [0] * 16
    words[0] = address + m.offset
    flags = rank - 1 << 4 | TYPE_CODES[m.element] << 7 | SWIZZLES.index(m.swizzle) << 13
    flags |= int(m.nan_fill) << 15 | int(m.element.startswith("tf32")) << 16
    words[1] = flags | (strides[0] & 0xFFFFFFFF) << 32
    words[2] = (strides[1] & 0xFFFFFFFF) | (strides[2] & 0xFFFFFFFF) << 32
    words[3] = (strides[3] & 0xFFFFFFFF) | sum((s >> 32 & 15) << 32 + 4 * i for i, s in enumerate(strides))
    words[4] = dims[0] | dims[1] << 32
    words[5] = dims[2] | dims[3] << 32
    words[6] = dims[4] | box[0] << 56
    words[7] = sum(b << 8 * i for i, b in enumerate(box[1:]))
    words[8] = math.prod(m.box) * ELEMENT_BITS[m.element] // 8
    words[9] = {"none": 16, "32B": 256, "64B": 512, "128B": 1024}[m.swizzle]
    return b"".join(w.to_bytes(8, "little") for w in words)
