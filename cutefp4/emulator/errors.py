"""What the emulator raises besides `cutefp4.errors.EmulatorError`."""

from __future__ import annotations

from cutefp4.errors import EmulatorError

__all__ = ["EmulatorError", "KernelFault", "PtxError"]


class PtxError(EmulatorError):
    """PTX that the emulator does not understand: names the line, and the kernel where it is known."""


class KernelFault(EmulatorError):
    """A kernel did something wrong. ``report`` is the launch's `LaunchReport` with all findings."""

    def __init__(self, message: str, report: object):
        super().__init__(message)
        self.report = report
