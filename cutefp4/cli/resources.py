"""What the compiler made of a plan, as columns of a table: registers, spills, shared memory, instructions."""

from __future__ import annotations

from typing import Any

from cutefp4.compile_report import compile_report
from cutefp4.errors import UnsupportedError
from cutefp4.plan import Plan

TENSOR_CORE = ("HMMA", "HGMMA", "UTCOMMA", "UTCQMMA", "UTCHMMA", "UTCIMMA")
"""SASS mnemonics of mma.sync, wgmma and tcgen05.mma."""


def cubin_resources(plan: Plan) -> dict[str, Any]:
    """What the cubin itself says: registers per thread, shared memory, and 0 spills where there is no stack (None where
    a stack leaves it open). Takes no time."""
    report = compile_report(plan)
    known = [size for size in report.dynamic_shared_bytes if size is not None]
    return {
        "smem_bytes": max(known, default=0),
        "registers": max(kernel.registers for kernel in report.resources),
        "spills": None if any(kernel.stack_bytes for kernel in report.resources) else 0,
    }


def resources(plan: Plan) -> dict[str, Any]:
    """Registers, accesses of spilled registers, shared memory, SASS instructions; without nvdisasm the latter are None.

    Disassembling takes a quarter of a second a kernel.
    """
    row = cubin_resources(plan) | {"instructions": None, "mma_instructions": None}
    report = compile_report(plan)
    try:
        kernels = report.kernels
    except UnsupportedError:
        return row
    return row | {
        "spills": report.spills,
        "instructions": sum(sum(kernel.instructions.values()) for kernel in kernels),
        "mma_instructions": sum(kernel.instructions[name] for kernel in kernels for name in TENSOR_CORE),
    }
