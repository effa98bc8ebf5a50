"""Workspaces: split-K partials, semaphores, padded offsets. One per device and stream, reused.

    space = workspace.get(device, scratch_bytes=..., semaphores=...)     # sizes from the plan
    kernel(..., space.scratch, space.semaphores)

Kernels on one stream run in order, so they share the stream's workspace. Every kernel leaves the semaphores at zero.

CUDA graphs: the addresses in a graph are used again at every replay, beside whatever runs then. So each capture gets a
workspace of its own, which is kept until `release`, and which no stream and no other graph uses. It is made before the
capture: a call outside a capture (the warm-up that captures need anyway) also prepares what the next captures will
take. A capture that needs more than is prepared raises WorkspaceError; nothing is allocated, and nothing is shared.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch

from cutefp4.errors import WorkspaceError

PREPARED_CAPTURES = 4
"""Workspaces kept ready for captures, so that several graphs can be captured after one warm-up call."""

_GRANULE = 1 << 16


@dataclass(frozen=True)
class Workspace:
    """Memory for one call, at least as large as asked.

    Attributes:
        scratch: uint8, 256-byte aligned, undefined contents.
        partials: the same memory as float32.
        semaphores: int32, all zero when a kernel starts, and again when it ends.
    """

    scratch: torch.Tensor
    partials: torch.Tensor
    semaphores: torch.Tensor

    def holds(self, scratch_bytes: int, semaphores: int) -> bool:
        """Whether it is large enough."""
        return self.scratch.numel() >= scratch_bytes and self.semaphores.numel() >= semaphores

    @property
    def nbytes(self) -> int:
        """Bytes of both parts."""
        return self.scratch.numel() + 4 * self.semaphores.numel()


@dataclass
class _Pool:
    """The workspaces of one device, by stream (or thread, on the CPU) and by capture."""

    device: torch.device
    streams: dict[int, Workspace] = field(default_factory=dict)
    captures: dict[int, list[Workspace]] = field(default_factory=dict)
    prepared: list[Workspace] = field(default_factory=list)
    scratch_bytes: int = 0
    semaphores: int = 0

    def all(self) -> list[Workspace]:
        return [*self.streams.values(), *(w for kept in self.captures.values() for w in kept), *self.prepared]


_pools: dict[torch.device, _Pool] = {}
_lock = threading.Lock()


def _stream(device: torch.device) -> int:
    """What orders kernels on a device: the current stream, or on the CPU the calling thread."""
    if device.type == "cuda":
        return torch._C._cuda_getCurrentRawStream(device.index)
    return threading.get_ident()


def _capture(device: torch.device, stream: int) -> int | None:
    """Identifier of the capture that the stream is part of, None if it captures nothing."""
    if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
        return None
    from cuda.bindings import runtime

    error, status, identifier, *_ = runtime.cudaStreamGetCaptureInfo(stream)
    if error != runtime.cudaError_t.cudaSuccess:
        raise WorkspaceError(f"cudaStreamGetCaptureInfo failed: {error}", "a valid capture", "end the capture")
    return int(identifier)


def get(device: torch.device, scratch_bytes: int = 0, semaphores: int = 0) -> Workspace:
    """The workspace of the current stream of `device`, or of the capture that it is part of.

    Args:
        device: with an index, if it is a CUDA device ("tensor.device").
        scratch_bytes: of uninitialised memory.
        semaphores: int32 counters at zero.

    Raises:
        WorkspaceError: the stream is being captured and no prepared workspace is large enough.
    """
    pool = _pools.get(device)
    stream = _stream(device)
    capture = _capture(device, stream)
    if pool is not None and capture is None:
        found = pool.streams.get(stream)
        if found is not None and found.holds(scratch_bytes, semaphores) and len(pool.prepared) >= PREPARED_CAPTURES:
            return found
    with _lock:
        pool = _pools.setdefault(device, _Pool(device))
        if capture is not None:
            return _for_capture(pool, capture, scratch_bytes, semaphores)
        return _for_stream(pool, stream, scratch_bytes, semaphores)


def _for_stream(pool: _Pool, stream: int, scratch_bytes: int, semaphores: int) -> Workspace:
    pool.scratch_bytes = max(pool.scratch_bytes, scratch_bytes)
    pool.semaphores = max(pool.semaphores, semaphores)
    found = pool.streams.get(stream)
    if found is None or not found.holds(scratch_bytes, semaphores):
        # The old one goes back to the allocator on the stream that used it, so work in flight is safe.
        found = pool.streams[stream] = _allocate(pool)
    _prepare(pool, PREPARED_CAPTURES)
    return found


def _prepare(pool: _Pool, count: int) -> None:
    """Have `count` workspaces of the largest size seen ready for captures."""
    pool.prepared = [w for w in pool.prepared if w.holds(pool.scratch_bytes, pool.semaphores)]
    missing = count - len(pool.prepared)
    if missing <= 0:
        return
    pool.prepared += [_allocate(pool) for _ in range(missing)]
    if pool.device.type == "cuda":
        # Their semaphores were cleared on this stream, and a graph may use them on another.
        torch.cuda.current_stream(pool.device).synchronize()


def _for_capture(pool: _Pool, capture: int, scratch_bytes: int, semaphores: int) -> Workspace:
    kept = pool.captures.setdefault(capture, [])
    for found in reversed(kept):
        if found.holds(scratch_bytes, semaphores):
            return found
    for index, found in enumerate(pool.prepared):
        if found.holds(scratch_bytes, semaphores):
            kept.append(pool.prepared.pop(index))
            return found
    raise WorkspaceError(
        f"a CUDA graph capture on {pool.device} needs {scratch_bytes} bytes and {semaphores} semaphores; "
        f"{len(pool.prepared)} workspaces are prepared, of {pool.scratch_bytes} bytes and {pool.semaphores} semaphores",
        f"captures of calls that ran before, at most {PREPARED_CAPTURES} captures between two calls outside a capture",
        "run the same calls once before the capture, or call cutefp4.workspace.reserve(device, bytes, semaphores)",
    )


def _allocate(pool: _Pool) -> Workspace:
    scratch_bytes = max(_GRANULE, -(-pool.scratch_bytes // _GRANULE) * _GRANULE)
    semaphores = max(_GRANULE // 4, -(-pool.semaphores // 1024) * 1024)
    with torch.inference_mode(False):  # an inference tensor could not be used outside inference mode
        scratch = torch.empty(scratch_bytes, dtype=torch.uint8, device=pool.device)
        counters = torch.zeros(semaphores, dtype=torch.int32, device=pool.device)
        return Workspace(scratch, scratch.view(torch.float32), counters)


def reserve(
    device: torch.device, scratch_bytes: int = 0, semaphores: int = 0, captures: int = PREPARED_CAPTURES
) -> None:
    """Prepare workspaces of this size for the current stream and for `captures` captures; not inside a capture.

    Raises:
        WorkspaceError: the current stream is being captured.
    """
    stream = _stream(device)
    if _capture(device, stream) is not None:
        raise WorkspaceError("workspace.reserve inside a CUDA graph capture", "a call before it", "reserve first")
    with _lock:
        pool = _pools.setdefault(device, _Pool(device))
        _for_stream(pool, stream, scratch_bytes, semaphores)
        _prepare(pool, captures)


def allocated_bytes(device: torch.device | None = None) -> int:
    """Bytes held for one device, or for all."""
    pools = _pools.values() if device is None else filter(None, [_pools.get(device)])
    return sum(w.nbytes for pool in pools for w in pool.all())


def release(device: torch.device | None = None) -> None:
    """Give workspaces of one device, or of all, back to the allocator.

    Graphs that were captured with them must not be replayed afterwards; running kernels are waited for.
    """
    with _lock:
        for found in [device] if device is not None else list(_pools):
            if found in _pools and found.type == "cuda":
                torch.cuda.synchronize(found)
            _pools.pop(found, None)
