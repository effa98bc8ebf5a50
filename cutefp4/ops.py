"""The operations of the kernel backends, by backend and name: what `cutefp4.backend` runs.

Each function takes the arguments of the oracle's function of the same name and returns the same kind of result. CUDA
tensors are served by the kernels of their device. CPU tensors are served by the emulator: by the device that is active
(`with cutefp4.emulator.device("sm_100a"):`), else by one that lives for the call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from cutefp4 import emulator, ops_gemm_sm90, ops_gemm_sm100, ops_quantize
from cutefp4.errors import UnsupportedError
from cutefp4.launch import arch_of

EMULATED_ARCH = "sm_90a"
"""Architecture of the emulated device of a call that brings none: the one that has all operations."""

GEMM = {"sm_90a": ops_gemm_sm90.gemm, "sm_100a": ops_gemm_sm100.gemm, "sm_103a": ops_gemm_sm100.gemm}
"""The dense GEMM of each architecture."""


def gemm(a, b, **kwargs):
    """The dense GEMM of the architecture that serves A's device."""
    arch = arch_of(a.device)
    if arch not in GEMM:
        raise UnsupportedError(f"gemm for {arch}", ", ".join(GEMM), "pass backend='reference' (plain PyTorch, slow)")
    return GEMM[arch](a, b, **kwargs)


OPERATIONS = {**ops_quantize.OPERATIONS, "gemm": gemm}


def _emulated(operation: Callable) -> Callable:
    @functools.wraps(operation)
    def run(*args, **kwargs):
        if emulator.current() is not None:
            return operation(*args, **kwargs)
        with emulator.device(EMULATED_ARCH):
            return operation(*args, **kwargs)

    return run


OPS = {
    "sm90": OPERATIONS,
    "sm100": OPERATIONS,
    "emulator": {name: _emulated(operation) for name, operation in OPERATIONS.items()},
}
