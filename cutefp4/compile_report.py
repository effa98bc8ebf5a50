"""What the compiler made of a plan: registers, stack, spills, shared memory, instruction mix, PTX and SASS text.

    report = compile_report(plan)          # compiles for plan.arch if needed; no GPU
    print(report)                          # a table
    assert report.spills == 0 and report.kernels[0].registers <= 168

Registers, stack and shared memory are read from the cubin. SASS needs NVIDIA's nvdisasm: the PyPI wheel
nvidia-cuda-nvdisasm (extra `disasm`), or a CUDA toolkit on PATH or under CUDA_HOME.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from cutefp4 import compile as kernel_cache
from cutefp4 import cubin
from cutefp4.dsl import CompiledObject
from cutefp4.plan import Plan
from cutefp4.sass import disassemble

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.M)
_FUNCTION = re.compile(r"^\.text\.([^:\s]+):", re.M)


@dataclass(frozen=True)
class KernelReport:
    """One kernel of a plan.

    Attributes:
        resources: registers, stack, static shared memory and code size.
        instructions: SASS mnemonics without modifiers ("FMUL", "LDG", "HGMMA"), and how often each occurs.
        spill_loads, spill_stores: accesses of local memory (LDL, STL). An array that is indexed at run time counts too:
            both are what a register budget must avoid.
    """

    resources: cubin.KernelResources
    instructions: Counter[str]

    @property
    def name(self) -> str:
        return self.resources.name

    @property
    def registers(self) -> int:
        return self.resources.registers

    @property
    def stack_bytes(self) -> int:
        return self.resources.stack_bytes

    @property
    def spill_loads(self) -> int:
        return self.instructions["LDL"]

    @property
    def spill_stores(self) -> int:
        return self.instructions["STL"]


@dataclass(frozen=True)
class CompileReport:
    """What the compiler made of a plan.

    Attributes:
        plan: what was compiled.
        ptx: PTX text of all kernels.
        cubin: ELF image of all kernels.
        dynamic_shared_bytes: per launch, in order; None where it is computed at run time.
    """

    plan: Plan
    ptx: str
    cubin: bytes
    dynamic_shared_bytes: tuple[int | None, ...]

    @cached_property
    def sass(self) -> str:
        """SASS text of all kernels. Raises UnsupportedError without nvdisasm."""
        return disassemble(self.cubin)

    @cached_property
    def resources(self) -> tuple[cubin.KernelResources, ...]:
        """Registers, stack and shared memory of every kernel; needs no disassembler."""
        return tuple(cubin.kernels(self.cubin))

    @cached_property
    def kernels(self) -> tuple[KernelReport, ...]:
        """One report per kernel, by name. Raises UnsupportedError without nvdisasm."""
        starts = list(_FUNCTION.finditer(self.sass))
        ends = [start.start() for start in starts[1:]] + [len(self.sass)]
        bodies = {start.group(1): self.sass[start.end() : end] for start, end in zip(starts, ends, strict=True)}
        return tuple(
            KernelReport(resources, Counter(m.split(".")[0] for m in _INSTRUCTION.findall(bodies[resources.name])))
            for resources in self.resources
        )

    @property
    def spills(self) -> int:
        """Accesses of local memory in all kernels."""
        return sum(kernel.spill_loads + kernel.spill_stores for kernel in self.kernels)

    def __str__(self) -> str:
        lines = [f"{self.plan.describe()} for {self.plan.arch}"]
        shared = ", ".join("computed at run time" if n is None else f"{n} B" for n in self.dynamic_shared_bytes)
        lines.append(f"  dynamic shared memory per launch: {shared or 'none'}")
        for kernel in self.kernels:
            r = kernel.resources
            mix = ", ".join(f"{name} {count}" for name, count in kernel.instructions.most_common(12) if name != "NOP")
            lines += [
                f"  {kernel.name}",
                f"    {r.registers} registers, {r.stack_bytes} B stack, {kernel.spill_loads} + {kernel.spill_stores} "
                f"local loads and stores, {r.static_shared_bytes} B static shared memory, {r.code_bytes} B code",
                f"    {mix}",
            ]
        return "\n".join(lines)


def compile_report(plan: Plan) -> CompileReport:
    """Compile a plan for its arch (or read it from the cache) and describe the result. Needs no GPU.

    Raises:
        CompileError: it does not compile.
    """
    compiled: CompiledObject = kernel_cache.artifacts(plan)
    return CompileReport(plan, compiled.ptx, compiled.cubin, compiled.dynamic_shared_bytes)
