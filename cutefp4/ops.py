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

_SM100 = {
    "gemm": ops_gemm_sm100.gemm,
    "gemm_tree": ops_gemm_sm100.gemm_tree,
    "gemm_plan": ops_gemm_sm100.gemm_plan,
}
GEMM = {
    "sm_90a": {
        "gemm": ops_gemm_sm90.gemm,
        "gemm_tree": ops_gemm_sm90.gemm_tree,
        "gemm_a16": ops_gemm_sm90.gemm_a16,
        "gemm_plan": ops_gemm_sm90.gemm_plan,
    },
    "sm_100a": _SM100,
    "sm_103a": _SM100,
}
"""The dense products of each architecture."""

_INSTEAD = {
    "gemm_a16": "quantise the activations and call cutefp4.gemm, dequantise the weight and call torch.matmul, or pass "
    "backend='reference' (plain PyTorch, slow)",
    "gemm_tree": "use the arguments of cutefp4.gemm (bias, activation, accumulate), apply the rest to D, or pass "
    "backend='reference' (plain PyTorch, slow)",
}


def _product(operation: str) -> Callable:
    """A dense product, run by the code of the architecture that serves B's device."""

    def run(a, b, *args, **kwargs):
        arch = arch_of(b.device)
        if operation not in GEMM.get(arch, {}):
            have = [name for name, operations in GEMM.items() if operation in operations]
            raise UnsupportedError(
                f"{operation} for {arch}",
                ", ".join(have),
                _INSTEAD.get(operation, "pass backend='reference' (plain PyTorch, slow)"),
            )
        return GEMM[arch][operation](a, b, *args, **kwargs)

    return run


OPERATIONS = {
    **ops_quantize.OPERATIONS,
    **{name: _product(name) for name in ("gemm", "gemm_tree", "gemm_a16", "gemm_plan")},
}


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
