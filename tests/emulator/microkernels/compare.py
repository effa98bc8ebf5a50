"""Runs a microkernel in the emulator and says how its result differs from the hardware's fixture."""

from __future__ import annotations

import re

import numpy as np
import torch

from cutefp4 import emulator

from .kernel import CHUNK, Buffer, Microkernel, TensorMap, digests, where
from .tensor_map import encode


def fill(encoded: np.ndarray, address: int) -> bytes:
    """A driver-encoded tensor map of the fixture, with this machine's address put in."""
    raw = bytearray(encoded.tobytes())
    raw[:8] = address.to_bytes(8, "little")
    return bytes(raw)


def run_in_emulator(kernel: Microkernel, fixture=None, **device) -> tuple[dict[str, np.ndarray], object]:
    """The contents of the result buffers after an emulated launch, and the report.

    With a ``fixture`` the tensor maps are the hardware driver's own bytes, else our encoder's.
    """
    memory = {b.name: _aligned(b.data) for b in kernel.buffers}
    args, maps = [], 0
    for a in kernel.args:
        if isinstance(a, TensorMap):
            address = memory[a.buffer].data_ptr()
            args.append(encode(a, address) if fixture is None else
                        fill(fixture[f"{kernel.name}/map{maps}"], address + a.offset))  # fmt: skip
            maps += 1
        else:
            args.append(memory[a.name] if isinstance(a, Buffer) else a)
    arch = re.search(r"\.target (\w+)", kernel.ptx)[1]
    with emulator.device(arch, **device) as dev:
        dev.launch_ptx(
            kernel.ptx, kernel.entry, kernel.grid, kernel.block, args, cluster=kernel.cluster, smem=kernel.smem
        )
        report = dev.report()
    return {b.name: memory[b.name].numpy().copy() for b in kernel.results}, report


def _aligned(data: np.ndarray) -> torch.Tensor:
    """The bytes of ``data`` at an address that is a multiple of 256, as the driver's allocator gives them."""
    raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    room = torch.empty(raw.size + 256, dtype=torch.uint8)
    start = -room.data_ptr() % 256
    room[start : start + raw.size] = torch.from_numpy(raw.copy())
    return room[start : start + raw.size]


def differences(kernel: Microkernel, results: dict[str, np.ndarray], fixture) -> list[str]:
    """What differs from the fixture, in words; nothing if all is equal (or, for approximations, near enough)."""
    out = []
    for b in kernel.results:
        want, got = fixture[f"{kernel.name}/{b.name}"], results[b.name].view(np.uint8).reshape(-1)
        if kernel.max_ulp:
            out += _too_far(kernel, want.view(np.float32), got.view(np.float32))
        elif want.dtype == np.uint8:
            bad = np.flatnonzero(want != got)
            chunks = np.unique(bad // CHUNK) if not kernel.rows else np.unique(bad // 4)
            out += [_whole(kernel, want, got, int(c)) for c in chunks]
        else:
            out += [where(kernel, got.size, int(c)) for c in np.flatnonzero(want != digests(got))]
    return out


def _whole(kernel: Microkernel, want: np.ndarray, got: np.ndarray, chunk: int) -> str:
    if kernel.rows and want.size == 4 * len(kernel.rows):
        a, b = (int(x.view(np.uint32)[chunk]) for x in (want, got))
        return f"`{kernel.rows[chunk]}` hardware {a:#x} emulator {b:#x}"
    size = 4 if kernel.rows else CHUNK
    first = int(np.flatnonzero(want[chunk * size : (chunk + 1) * size] != got[chunk * size : (chunk + 1) * size])[0])
    at = chunk * size + first & ~3
    a, b = (int.from_bytes(x[at : at + 4].tobytes(), "little") for x in (want, got))
    return f"from byte {at}: hardware {a:#010x} emulator {b:#010x}"


RELATIVE = {"tanh": 2.0**-10.98}
"""Documented relative errors of approximations that are coarser than a few units in the last place."""

ABSOLUTE = {"lg2": 2.0**-22}
"""Documented absolute errors where a result near zero has lost its digits."""


def _too_far(kernel: Microkernel, want: np.ndarray, got: np.ndarray) -> list[str]:
    """Rows of an approximate kernel whose values lie further from the hardware's than its bound allows."""
    out = []
    for label, a, b in zip(kernel.rows, *(x.reshape(len(kernel.rows), -1) for x in (want, got)), strict=True):
        name = label.partition(".")[0]
        with np.errstate(invalid="ignore"):
            near = np.abs(a - b) <= np.maximum(RELATIVE.get(name, 0) * np.abs(a), ABSOLUTE.get(name, 0))
        distance = np.where(near, 0, ulp_distance(a, b))
        if distance.max() > kernel.max_ulp:
            i = int(distance.argmax())
            out.append(
                f"`{label}` element {i}: hardware {a[i]!r} emulator {b[i]!r}, {distance[i]} ulp > {kernel.max_ulp}"
            )
    return out


def ulp_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many float32 values lie between a and b; 0 for two NaNs, huge for one."""

    def ordered(x: np.ndarray) -> np.ndarray:
        bits = x.view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    nan = np.isnan(a) | np.isnan(b)
    same = np.isnan(a) & np.isnan(b)
    return np.where(same, 0, np.where(nan, 1 << 40, np.abs(ordered(a) - ordered(b))))
