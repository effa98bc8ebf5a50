"""The compile report against NVIDIA's own tool, and its errors."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cutefp4 import compile as kernel_cache
from cutefp4 import compile_report, cubin, dsl, fingerprint, sass
from cutefp4.errors import UnsupportedError
from tests.tiny_kernel import TinyPlan


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CUTEFP4_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "changed_source", lambda plan: None)
    kernel_cache.reset()


class LocalPlan(TinyPlan):
    builder = "tests.spilling_kernel:build"


@pytest.mark.parametrize(
    "plan", [TinyPlan("sm_90a"), TinyPlan("sm_100a"), LocalPlan("sm_90a", unused=1), LocalPlan("sm_100a", unused=1)]
)
def test_report_agrees_with_cuobjdump(plan, tmp_path):
    report = compile_report.compile_report(plan)
    (kernel,) = report.kernels
    path = tmp_path / "kernel.cubin"
    path.write_bytes(report.cubin)
    tool = str(Path(sass.find_nvdisasm()).with_name("cuobjdump"))
    text = subprocess.run([tool, "--dump-resource-usage", str(path)], capture_output=True, text=True).stdout
    name, registers, stack, shared = re.search(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", text).groups()
    assert (kernel.name, kernel.registers) == (name, int(registers))
    assert (kernel.stack_bytes, kernel.resources.static_shared_bytes) == (int(stack), int(shared))


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_instruction_mix(arch):
    report = compile_report.compile_report(TinyPlan(arch))
    (kernel,) = report.kernels
    assert kernel.instructions["FMUL"] == 1 and kernel.instructions["LDG"] == 1 and kernel.instructions["STG"] == 1
    assert 16 * sum(kernel.instructions.values()) == kernel.resources.code_bytes, "every instruction is counted once"
    assert report.spills == 0
    assert f".target {arch}" in report.ptx and "FMUL" in report.sass
    text = str(report)
    assert f"TinyPlan(arch='{arch}')" in text and f"{kernel.registers} registers" in text and "FMUL 1" in text


def test_local_memory_is_seen():
    """An array that is indexed at run time goes through local memory, as spilled registers do."""
    clean, local = (compile_report.compile_report(LocalPlan("sm_90a", unused=n)) for n in (0, 1))
    assert clean.spills == 0 and clean.kernels[0].stack_bytes == 0
    assert local.kernels[0].spill_loads > 0 and local.kernels[0].spill_stores > 0
    assert local.kernels[0].stack_bytes >= 200 * 4
    assert clean.dynamic_shared_bytes == local.dynamic_shared_bytes == (4096,)


def test_dynamic_shared_memory_that_is_computed_at_run_time_is_none():
    config = "!llvm.struct<(array<3 x i32>, array<3 x i32>, i64, ptr, ptr, i32)>"
    address = f"    %2 = llvm.getelementptr %1[0, 2] : (!llvm.ptr) -> !llvm.ptr, {config}\n"
    launch = f"{address}    llvm.store %8, %2 : i64, !llvm.ptr\n"
    fixed = f"  llvm.func @a() {{\n    %8 = llvm.mlir.constant(49380 : i64) : i64\n{launch}  }}\n"
    dynamic = f"  llvm.func @b(%8: i64) {{\n{launch}  }}\n"
    assert dsl._dynamic_shared_bytes(fixed + dynamic) == (49380, None)


def test_no_disassembler(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(sass.sys, "path", ["/nonexistent"])
    with pytest.raises(UnsupportedError, match=r"pip install 'cutefp4\[disasm\]'"):
        sass.find_nvdisasm()


def test_a_cubin_that_nvdisasm_does_not_know():
    with pytest.raises(UnsupportedError, match="nvdisasm failed"):
        sass.disassemble(b"\x7fELF not a cubin")


@pytest.mark.parametrize("data", [b"", b"MZ" * 100, b"\x7fELF\x01" + bytes(100)])
def test_not_an_elf_image(data):
    with pytest.raises(ValueError, match="ELF"):
        cubin.kernels(data)
