"""Runs kernels of the CUTLASS Python DSL, and plain PTX, for sm_90a and sm_100a on a CPU, and finds their bugs."""

from .device import Device, current, device
from .dsl_host import register_ptx
from .errors import EmulatorError, KernelFault, PtxError
from .report import DeviceReport, Finding, LaunchReport, counter_names, finding_kinds

__all__ = [
    "Device",
    "DeviceReport",
    "EmulatorError",
    "Finding",
    "KernelFault",
    "LaunchReport",
    "PtxError",
    "counter_names",
    "current",
    "device",
    "finding_kinds",
    "register_ptx",
]
