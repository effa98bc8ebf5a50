"""Plain-PTX kernels for sm_90a that pin down one instruction family each; see :mod:`microkernels.kernel`."""

from . import alu_float, alu_half, alu_int, barriers, convert, hopper_gemm, memory, tensor_core, tma, warp
from .kernel import Microkernel

FAMILIES = {
    "alu_float": alu_float.kernels, "alu_int": alu_int.kernels, "alu_half": alu_half.kernels,
    "convert": convert.kernels, "warp": warp.kernels, "memory": memory.kernels, "barriers": barriers.kernels,
    "tma": tma.kernels, "tensor_core": tensor_core.kernels, "hopper_gemm": hopper_gemm.kernels,
}  # fmt: skip


def every_kernel() -> dict[str, Microkernel]:
    """All microkernels by name."""
    found = [k for make in FAMILIES.values() for k in make()]
    names = [k.name for k in found]
    assert len(set(names)) == len(names), "two microkernels share a name"
    return dict(zip(names, found, strict=True))
