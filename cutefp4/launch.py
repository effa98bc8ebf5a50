"""From tensors to a launch: the architecture that serves a device, device facts, and operators for torch.compile.

Eager calls go straight to `compile.get(plan)(*tensors)`: TVM-FFI reads torch's tensors and its current stream itself,
so that a launch passes neither DLPack capsules nor streams, and synchronises nothing. Under torch.compile the same
function runs behind a custom operator that writes into preallocated tensors (`Operator`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from cutefp4.errors import UnsupportedError

LIBRARY = torch.library.Library("cutefp4", "DEF")
_ARCH_OF_CAPABILITY = {(9, 0): "sm_90a", (10, 0): "sm_100a", (10, 3): "sm_103a"}

_cpu_target: tuple[str, int] | None = None


@contextmanager
def cpu_target(arch: str, sms: int) -> Iterator[None]:
    """While active, CPU tensors are served by kernels for `arch` on `sms` multiprocessors: the emulator's doing."""
    global _cpu_target
    before, _cpu_target = _cpu_target, (arch, sms)
    try:
        yield
    finally:
        _cpu_target = before


def arch_of(device: torch.device) -> str:
    """The architecture whose kernels run on a device: "sm_90a", "sm_100a" or "sm_103a".

    Raises:
        UnsupportedError: there are no kernels for it.
    """
    if device.type == "cuda":
        return _cuda_arch(device.index)
    return _target_of_cpu(device)[0]


def sm_count(device: torch.device) -> int:
    """Multiprocessors of a device."""
    if device.type == "cuda":
        return _cuda_sms(device.index)
    return _target_of_cpu(device)[1]


def target(device: torch.device) -> tuple[str, int] | None:
    """What a key that caches plans by device must hold besides the device: the emulator's target, which may change."""
    return None if device.type == "cuda" else _cpu_target


def _target_of_cpu(device: torch.device) -> tuple[str, int]:
    if device.type != "cpu" or _cpu_target is None:
        raise UnsupportedError(
            f"kernels for tensors on {device}",
            "CUDA tensors, or CPU tensors inside the emulator",
            "move the tensors to a GPU, pass backend='reference', or use backend='emulator'",
        )
    return _cpu_target


@cache
def _cuda_arch(index: int) -> str:
    capability = torch.cuda.get_device_capability(index)
    if capability not in _ARCH_OF_CAPABILITY:
        raise UnsupportedError(
            f"{torch.cuda.get_device_name(index)} with compute capability {capability[0]}.{capability[1]}",
            "9.0 (H100, H200), 10.0 (B200) and 10.3 (B300)",
            "use one of these GPUs, or pass backend='reference'",
        )
    return _ARCH_OF_CAPABILITY[capability]


@cache
def _cuda_sms(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


class Operator:
    """A function that writes into tensors it is given, callable eagerly and from torch.compile(fullgraph=True).

    Args:
        schema: in torch's schema language, returning nothing; written arguments are marked, e.g.
            "quantize_into(Tensor x, str recipe, Tensor(a!) codes, Tensor(b!) scales) -> ()".
        function: takes the arguments in this order. It launches on the current stream of the tensors' device.

    Calling the object runs the function directly: the dispatcher would cost more than the launch. While torch.compile
    traces, the call goes to torch.ops.cutefp4.<name>, whose fake implementation does nothing: there is no output to
    describe, and the schema says what changes.
    """

    def __init__(self, schema: str, function: Callable[..., None]) -> None:
        self.function = function
        name = schema.partition("(")[0]
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        for key in ("CUDA", "CPU"):
            LIBRARY.impl(name, function, key)
        torch.library.register_fake(f"cutefp4::{name}", lambda *args: None, lib=LIBRARY)
        self.operator = getattr(torch.ops.cutefp4, name).default

    def __call__(self, *args) -> None:
        if torch.compiler.is_compiling():
            self.operator(*args)
        else:
            self.function(*args)
