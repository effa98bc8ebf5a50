"""What the compiler made of a plan, as columns of a table: registers, spills, shared memory, instructions."""

from __future__ import annotations

from typing import Any

from cutefp4.compile_report import CompileReport, compile_report
from cutefp4.errors import UnsupportedError
from cutefp4.plan import Plan

TENSOR_CORE = ("HMMA", "HGMMA", "UTCOMMA", "UTCQMMA", "UTCHMMA", "UTCIMMA")
"""SASS mnemonics of mma.sync, wgmma and tcgen05.mma."""


def resources(plan: Plan) -> dict[str, Any]:
    """Registers per thread, accesses of spilled registers, shared memory, SASS instructions.

    What needs nvdisasm is None without it; a kernel without a stack has no spills in any case.
    """
    report = compile_report(plan)
    known = [size for size in report.dynamic_shared_bytes if size is not None]
    return {"smem_bytes": max(known, default=0), "registers": max(k.registers for k in report.resources)} | _sass(
        report
    )


def _sass(report: CompileReport) -> dict[str, int | None]:
    spills = None if any(kernel.stack_bytes for kernel in report.resources) else 0
    try:
        kernels = report.kernels
    except UnsupportedError:
        return {"spills": spills, "instructions": None, "mma_instructions": None}
    return {
        "spills": report.spills,
        "instructions": sum(sum(kernel.instructions.values()) for kernel in kernels),
        "mma_instructions": sum(kernel.instructions[name] for kernel in kernels for name in TENSOR_CORE),
    }
