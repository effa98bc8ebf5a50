"""Lets a script that was written for a CUDA machine run on one without: torch's side of it.

The emulator executes the kernels; this module makes ``device="cuda"`` mean CPU memory that is aligned like device
memory, and answers for streams, events and device properties. Only for running other people's examples; cutefp4 itself
takes CPU tensors as they are.
"""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

ALIGNMENT = 512
CAPABILITY = {"sm_90a": (9, 0), "sm_100a": (10, 0), "sm_103a": (10, 3)}


def aligned_copy(t: torch.Tensor) -> torch.Tensor:
    """The same values, sizes and strides, in storage that starts at a multiple of ``ALIGNMENT`` bytes."""
    if t.numel() == 0 or t.data_ptr() % ALIGNMENT == 0 and t.storage_offset() == 0:
        return t
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    room = torch.zeros(span * t.element_size() + ALIGNMENT, dtype=torch.uint8)
    start = -room.data_ptr() % ALIGNMENT
    flat = room[start : start + span * t.element_size()].view(t.dtype)
    out = flat.as_strided(t.shape, t.stride())
    raw = torch.as_strided(t, (span,), (1,), t.storage_offset())
    flat.view(torch.uint8).copy_(raw.view(torch.uint8))
    return out


def _is_cuda(device: object) -> bool:
    return device is not None and str(device).startswith("cuda")


class CudaIsCpu(TorchFunctionMode):
    """Turns every request for a CUDA device into one for aligned CPU memory."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        moved = False
        if _is_cuda(kwargs.get("device")):
            kwargs["device"], moved = "cpu", True
        if name in ("to", "type") and any(_is_cuda(a) for a in args[1:] if isinstance(a, str | torch.device)):
            args = (args[0], *("cpu" if isinstance(a, str | torch.device) and _is_cuda(a) else a for a in args[1:]))
            moved = True
        if name == "cuda":
            return aligned_copy(args[0].clone(memory_format=torch.preserve_format))
        if name == "_scaled_mm" and args[2].dim() == 1:
            return block_scaled_mm(*args[:4], kwargs["out_dtype"])
        out = func(*args, **kwargs)
        return aligned_copy(out) if moved and isinstance(out, torch.Tensor) else out


def block_scaled_mm(a, b, scale_a, scale_b, out_dtype: torch.dtype) -> torch.Tensor:
    """torch._scaled_mm of block-scaled operands, which torch has on CUDA only, summed in float64.

    ``a`` is (M, K) and ``b`` (K, N), column-major, in float8 or packed float4; the scales are e4m3 per 16 or e8m0 per
    32 elements of K in the 128x4 tiled layout, flattened.
    """
    return (_dequantised(a, scale_a) @ _dequantised(b.transpose(0, 1), scale_b).transpose(0, 1)).to(out_dtype)


def _dequantised(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(rows, K) float64 values."""
    if codes.dtype == torch.float4_e2m1fn_x2:
        table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
        table = torch.cat([table, -table])
        raw = codes.contiguous().view(torch.uint8).long()
        values = table[torch.stack([raw & 15, raw >> 4], dim=-1)].flatten(1)
    else:
        values = codes.to(torch.float64)
    rows, k = values.shape
    block = 16 if scale.dtype == torch.float8_e4m3fn else 32
    tiles_m, tiles_k = -(-rows // 128), -(-(k // block) // 4)
    factors = scale.to(torch.float64).reshape(tiles_m, tiles_k, 32, 4, 4).permute(0, 3, 2, 1, 4)
    factors = factors.reshape(tiles_m * 128, tiles_k * 4)[:rows, : k // block]
    return values * factors.repeat_interleave(block, dim=1)


DRIVER_ANSWERS = {
    "cuInit": (),
    "cuDeviceGetCount": (1,),
    "cuDeviceGet": (0,),
    "cuCtxGetCurrent": (0,),
    "cuCtxSynchronize": (),
    "cuDriverGetVersion": (13000,),
}


class _Stream:
    """A stream, event or graph of which only the handle and the order of calls matter."""

    cuda_stream = 0

    def __init__(self, *args, **kwargs):
        self.at = 0.0

    def record(self, stream=None):
        self.at = time.perf_counter()

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3

    def synchronize(self):
        return None

    wait_stream = wait_event = replay = synchronize

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False


def _run_once(callable, *, workspace_generator=None, workspace_count=1, kernel_arguments=None, **_ignored) -> float:
    """Stands in for the DSL's benchmark function: nothing is timed; a kernel given with its arguments runs once."""
    if kernel_arguments is not None:
        callable(*kernel_arguments.args, **kernel_arguments.kwargs)
    return 1.0


@contextlib.contextmanager
def cuda_on_cpu(arch: str, sms: int):
    """Inside, torch believes in one CUDA device of architecture ``arch``, and benchmark loops do not run."""
    import cutlass.cute.testing
    import cutlass.testing
    from cuda.bindings import driver

    properties = SimpleNamespace(name=f"emulated {arch}", multi_processor_count=sms, major=CAPABILITY[arch][0],
                                 minor=CAPABILITY[arch][1], total_memory=1 << 34, L2_cache_size=1 << 26,
                                 shared_memory_per_block_optin=232448, warp_size=32)  # fmt: skip
    answers = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "set_device": lambda d: None,
        "synchronize": lambda *a: None, "current_stream": lambda *a: _Stream(), "default_stream": lambda *a: _Stream(),
        "get_device_capability": lambda *a: CAPABILITY[arch], "get_device_properties": lambda *a: properties,
        "get_device_name": lambda *a: properties.name, "empty_cache": lambda: None, "init": lambda: None,
        "Stream": _Stream, "Event": _Stream, "stream": lambda s: contextlib.nullcontext(),
        # what is captured runs at once; replaying it again would only repeat it
        "CUDAGraph": _Stream, "graph": lambda *a, **k: contextlib.nullcontext(),
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, value in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name, values in DRIVER_ANSWERS.items():
            answer = (driver.CUresult.CUDA_SUCCESS, *values)
            stack.enter_context(mock.patch.object(driver, name, lambda *a, answer=answer: answer))
        for module in (cutlass.testing, cutlass.cute.testing):
            stack.enter_context(mock.patch.object(module, "benchmark", _run_once))
        stack.enter_context(CudaIsCpu())
        yield
