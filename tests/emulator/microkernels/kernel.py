"""What a microkernel is: one PTX entry, its launch shape, and the bytes that go in and must come out.

A microkernel is plain PTX text, so that the hardware runs it through the driver and the emulator runs the very same
text; no compiler stands between the instruction under test and its result. Inputs are made from integers alone
(:mod:`microkernels.inputs`), so that both sides, on any machine and numpy version, start from the same bytes.

A result is kept either whole or as one 32-bit digest per ``CHUNK`` bytes: enough to name the operation and the
elements that differ, small enough for a repository.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

CHUNK = 1024
"""Bytes per digest of a result."""

SWIZZLES = ("none", "32B", "64B", "128B")
"""Tensor-map swizzles in the order of the driver's enum."""

ELEMENT_BITS = {
    "u8": 8, "u16": 16, "u32": 32, "s32": 32, "u64": 64, "s64": 64, "f16": 16, "f32": 32, "f64": 64, "bf16": 16,
    "f32_ftz": 32, "tf32": 32, "tf32_ftz": 32, "u4_align8": 4, "u4_align16": 4,
}  # fmt: skip
"""Tensor-map element types in the order of the driver's enum, and their bits in global memory."""


@dataclass(frozen=True, eq=False)
class Buffer:
    """Device memory of a launch: its first contents, and whether its contents afterwards are part of the result."""

    name: str
    data: np.ndarray
    result: bool = False


@dataclass(frozen=True, eq=False)
class TensorMap:
    """A tiled tensor map over ``buffer``; dimension 0 is the contiguous one.

    ``strides`` are in bytes, for dimensions 1 and up. ``offset`` bytes are added to the buffer's address.
    """

    buffer: str
    element: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: str = "none"
    offset: int = 0
    nan_fill: bool = False
    element_strides: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Microkernel:
    """One launch with its expected kind of agreement.

    ``args`` are in the order of the entry's parameters: a ``Buffer`` is its address, an int is packed to the
    parameter's size, a ``TensorMap`` is a 128-byte by-value parameter. ``rows`` label equal slices of each result
    (one per operation under test). ``max_ulp`` > 0 marks approximate instructions: results are float32 and may differ
    from the hardware's by that many units in the last place. ``whole`` keeps the result itself in the fixture instead
    of digests; ``lanewise`` marks kernels whose threads do not touch each other.
    """

    name: str
    ptx: str
    args: tuple
    grid: tuple[int, int, int] = (1, 1, 1)
    block: tuple[int, int, int] = (128, 1, 1)
    cluster: tuple[int, int, int] = (1, 1, 1)
    smem: int = 0
    entry: str = "k"
    rows: tuple[str, ...] = ()
    max_ulp: int = 0
    whole: bool = False
    lanewise: bool = False

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        return tuple(a for a in self.args if isinstance(a, Buffer))

    @property
    def tensor_maps(self) -> tuple[TensorMap, ...]:
        return tuple(a for a in self.args if isinstance(a, TensorMap))

    @property
    def results(self) -> tuple[Buffer, ...]:
        return tuple(b for b in self.buffers if b.result)


ENCODE_ONLY = (
    TensorMap("x", "f64", (64, 64), (512,), (8, 32), "64B"),
    TensorMap("x", "s32", (64, 64, 5), (256, 1 << 20), (8, 16, 3)),
    TensorMap("x", "s64", (1 << 20, 3000, 40, 9, 11), (1 << 23, 1 << 34, 1 << 36, 1 << 39), (4, 3, 2, 5, 7)),
    TensorMap("x", "u8", (1 << 31, 5), (1 << 31,), (128, 5), "128B"),
)
"""Maps that are only encoded, to check our own encoder. (A Hopper driver refuses the packed 4-bit types.)"""


def digests(data: np.ndarray) -> np.ndarray:
    """One uint32 per ``CHUNK`` bytes of ``data`` (the last chunk may be shorter)."""
    raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    parts = [raw[i : i + CHUNK].tobytes() for i in range(0, raw.size, CHUNK)]
    words = [int.from_bytes(hashlib.blake2s(p, digest_size=4).digest(), "little") for p in parts]
    return np.array(words, dtype=np.uint32)


def where(kernel: Microkernel, size: int, chunk: int) -> str:
    """Which operation and which elements chunk number ``chunk`` of a result of ``size`` bytes covers."""
    if not kernel.rows:
        return f"bytes {chunk * CHUNK}..{min(size, (chunk + 1) * CHUNK) - 1}"
    per_row = size // len(kernel.rows)
    first, last = chunk * CHUNK, min(size, (chunk + 1) * CHUNK) - 1
    row = first // per_row
    names = "; ".join(kernel.rows[row : last // per_row + 1])
    return f"`{names}` bytes {first - row * per_row}..{last - row * per_row}"


def identity(kernel: Microkernel) -> np.ndarray:
    """A digest of the kernel's text (however spaced) and inputs: a fixture made from other ones is out of date."""
    h = hashlib.blake2s(" ".join(kernel.ptx.split()).encode(), digest_size=8)
    for b in kernel.buffers:
        h.update(np.ascontiguousarray(b.data).view(np.uint8).tobytes())
    for part in (kernel.grid, kernel.block, kernel.cluster, [a for a in kernel.args if isinstance(a, int | bytes)]):
        h.update(repr(part).encode())
    h.update(repr([(m.element, m.dims, m.strides, m.box, m.swizzle, m.offset) for m in kernel.tensor_maps]).encode())
    return np.frombuffer(h.digest(), dtype=np.uint8)
