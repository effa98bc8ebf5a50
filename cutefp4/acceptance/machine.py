"""Where a case runs: the GPU of this machine, or an emulated one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from cutefp4 import backend, emulator, launch
from cutefp4.acceptance.compare import Difference
from cutefp4.emulator.native_build import library_path

ARCHS = ("sm_90a", "sm_100a", "sm_103a")
EMULATED_SMS = 4
"""Few multiprocessors, so that small problems have more tiles than CTAs."""


@dataclass(frozen=True)
class Machine:
    """arch: that kernels are compiled for. native: on this machine's GPU, else in the emulator."""

    arch: str
    native: bool = False

    @property
    def name(self) -> str:
        return f"{torch.cuda.get_device_name()} ({self.arch})" if self.native else f"emulated {self.arch}"

    @property
    def backend(self) -> str | None:
        """What calls of cutefp4 are told."""
        return None if self.native else "emulator"

    @property
    def sms(self) -> int:
        """Multiprocessors that a launch may use."""
        return launch.sm_count(torch.device("cuda", torch.cuda.current_device())) if self.native else EMULATED_SMS

    def require(self) -> None:
        """Make sure that kernels can run here at all.

        Raises:
            EmulatorError: the emulator cannot be built.
        """
        if not self.native:
            library_path()

    @contextmanager
    def running(self, seed: int | None = None, sms: int = EMULATED_SMS) -> Iterator[torch.device]:
        """The torch device whose tensors kernels take, while they run here.

        Args:
            seed: of the emulator's schedule; None runs asynchronous work at once.
            sms: of the emulated GPU.

        Raises:
            Difference: the emulator reported anything, warnings included.
        """
        if self.native:
            _poison_free_memory()
            device = torch.device("cuda", torch.cuda.current_device())
            yield device
            torch.cuda.synchronize(device)
            return
        with emulator.device(self.arch, seed=seed, sms=sms) as device:
            yield torch.device("cpu")
            findings = device.report().findings
        if findings:
            raise Difference(f"the emulator reports {len(findings)} finding(s), the first: {findings[0]}")


def _poison_free_memory() -> None:
    """Fill the allocator's free blocks with a pattern, so that outputs that nobody wrote show."""
    blocks = [
        torch.full((size,), 0xA5, dtype=torch.uint8, device="cuda") for size in (1 << 12, 1 << 16, 1 << 20, 1 << 24)
    ]
    del blocks


def here() -> list[Machine]:
    """The machines to prove on without being told: the GPU if cutefp4 has kernels for it, else both in the emulator."""
    native = native_machine()
    return [native] if native else [Machine(arch) for arch in ARCHS[:2]]


def native_machine() -> Machine | None:
    """This machine's GPU, None if there is none that cutefp4 has kernels for."""
    if not torch.cuda.is_available():
        return None
    device = torch.device("cuda", torch.cuda.current_device())
    if torch.cuda.get_device_capability(device)[0] not in backend.CAPABILITY_MAJOR:
        return None
    arch = launch.arch_of(device)
    return Machine(arch, native=True) if arch in ARCHS else None


def machine_for(arch: str) -> Machine:
    """The GPU of this machine if it is of this architecture, else an emulated one."""
    native = native_machine()
    return native if native is not None and native.arch == arch else Machine(arch)
