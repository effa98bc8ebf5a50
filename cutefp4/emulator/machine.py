"""The interpreter as a Python object: allocations, launches, reports."""

from __future__ import annotations

import ctypes
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .errors import EmulatorError, KernelFault
from .native_build import library
from .program import INSTR, CProgram, Program
from .report import Finding, LaunchReport, counter_names, finding_kinds

SMEM_MAX = {90: 232448, 100: 232448, 101: 232448, 103: 232448, 110: 232448, 120: 101376, 121: 101376}


class _CLaunch(ctypes.Structure):
    """struct Launch of native/emu.h."""

    _fields_ = [
        ("program", ctypes.c_void_p),
        ("params", ctypes.c_void_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("cluster", ctypes.c_uint32 * 3),
        ("smem_dynamic", ctypes.c_uint32),
        ("sms", ctypes.c_uint32),
        ("ctas_per_sm", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("max_steps", ctypes.c_uint64),
        ("pc_count", ctypes.c_void_p),
        ("pc_lanes", ctypes.c_void_p),
        ("strict", ctypes.c_uint32),
        ("poison", ctypes.c_uint32),
    ]


class _CFinding(ctypes.Structure):
    """struct Finding of native/emu.h."""

    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("line", ctypes.c_uint32),
        ("pc", ctypes.c_uint32),
        ("warp", ctypes.c_uint32),
        ("lane", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("cta", ctypes.c_uint32 * 3),
        ("severity", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
        ("text", ctypes.c_char * 480),
    ]


_RESOLVE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64)
_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)


def _bind(lib: ctypes.CDLL) -> ctypes.CDLL:
    lib.emu_create.restype = ctypes.c_void_p
    lib.emu_create.argtypes = [_RESOLVE, _PRINT]
    lib.emu_destroy.argtypes = [ctypes.c_void_p]
    lib.emu_register.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]
    lib.emu_forget_allocations.argtypes = [ctypes.c_void_p]
    lib.emu_run.argtypes = [ctypes.c_void_p, ctypes.POINTER(_CLaunch)]
    lib.emu_findings.restype = ctypes.POINTER(_CFinding)
    lib.emu_findings.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)]
    lib.emu_counters.restype = ctypes.POINTER(ctypes.c_uint64)
    lib.emu_counters.argtypes = [ctypes.c_void_p]
    lib.emu_place.restype = ctypes.c_char_p
    lib.emu_place.argtypes = [ctypes.c_void_p]
    sizes = (ctypes.c_uint32 * 5)()
    lib.emu_sizes(sizes)
    expected = [
        INSTR.itemsize,
        ctypes.sizeof(CProgram),
        ctypes.sizeof(_CLaunch),
        ctypes.sizeof(_CFinding),
        len(counter_names()),
    ]
    if list(sizes) != expected:
        raise EmulatorError(f"the interpreter's structures have sizes {list(sizes)}, the host expects {expected}")
    return lib


@dataclass(frozen=True)
class LaunchShape:
    """Grid, block and cluster in CTAs or threads, and dynamic shared memory in bytes."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int] = (1, 1, 1)
    smem: int = 0

    def for_program(self, program: Program) -> LaunchShape:
        """With the cluster that the kernel itself prescribes (.reqnctapercluster) where the launch names none."""
        required = program.directives.get("reqnctapercluster")
        if not required or self.cluster != (1, 1, 1):
            return self
        return replace(self, cluster=tuple(required + [1] * (3 - len(required))))

    def check(self, program: Program, sms: int) -> None:
        """Raises EmulatorError for a launch that the hardware would refuse."""
        threads = self.block[0] * self.block[1] * self.block[2]
        if not 1 <= threads <= 1024:
            raise EmulatorError(f"block {self.block} has {threads} threads", "1 to 1024")
        size = math.prod(self.cluster)
        if min(self.grid) < 1 or size < 1:
            given = f"grid {tuple(self.grid)}, cluster {tuple(self.cluster)} of {program.name}"
            if size <= sms:
                raise EmulatorError(given, "positive dimensions")
            given += f" on device(sms={sms}), where no cluster of {size} CTAs has a multiprocessor for each"
            raise EmulatorError(given, f"sms={size} or more", f"give the device sms={size}, or use smaller clusters")
        if any(g % c for g, c in zip(self.grid, self.cluster, strict=True)):
            raise EmulatorError(
                f"grid {self.grid} with cluster {self.cluster}", "a grid that is a multiple of the cluster"
            )
        if size > 16:
            raise EmulatorError(f"cluster {self.cluster}", "at most 16 CTAs")
        required = program.directives.get("reqntid")
        if required and tuple(required + [1] * (3 - len(required))) != tuple(self.block):
            raise EmulatorError(f"block {self.block} for a kernel with .reqntid {required}")
        limit = SMEM_MAX.get(program.native.arch, 232448)
        if self.smem + program.native.smem_static > limit:
            raise EmulatorError(f"{self.smem + program.native.smem_static} bytes of shared memory", f"at most {limit}")


class Machine:
    """One interpreter. Not thread-safe; launches run to their end before `launch` returns."""

    def __init__(self, resolve: Callable[[int, int], bool] | None = None):
        self._lib = _bind(library())
        self._error: BaseException | None = None
        self._resolve = _RESOLVE(lambda address, size: self._call(resolve, address, size) if resolve else 0)
        self._print = _PRINT(lambda text: print(text.decode(errors="replace"), end="") or 0)
        self._handle = self._lib.emu_create(self._resolve, self._print)

    def _call(self, function: Callable[[int, int], bool], address: int, size: int) -> int:
        try:
            return int(bool(function(address, size)))
        except BaseException as error:  # must not cross the C frame: raised after the launch
            self._error = error
            return 0

    def close(self) -> None:
        if self._handle:
            self._lib.emu_destroy(self._handle)
            self._handle = None

    def __del__(self):
        self.close()

    # -- memory

    def register(self, start: int, size: int, initialised: np.ndarray | None = None) -> None:
        """Makes [start, start + size) accessible to kernels.

        `initialised`: uint8 per byte, kept alive by the caller; reading a byte whose entry is 0 is a finding, and a
        write sets it.
        """
        flags = initialised.ctypes.data if initialised is not None else None
        self._lib.emu_register(self._handle, start, size, flags)

    def forget(self) -> None:
        """Drops all registered allocations."""
        self._lib.emu_forget_allocations(self._handle)

    # -- launches

    def launch(
        self,
        program: Program,
        shape: LaunchShape,
        parameters: Sequence[bytes],
        *,
        seed: int = 0,
        sms: int = 8,
        strict: bool = True,
        poison: bool = True,
        max_steps: int = 20_000_000,
    ) -> LaunchReport:
        """Runs one grid.

        Args:
            parameters: one byte string per kernel parameter, of exactly its size.
            seed: 0 runs everything asynchronous at once; others pick an adversarial schedule.
            sms: multiprocessors; CTAs beyond them start when earlier ones have exited.
        Returns:
            The report; it may hold findings of any severity (`raise_for_findings` turns errors into an exception).
        """
        shape = shape.for_program(program)
        shape.check(program, sms)
        block = self._parameter_block(program, parameters)
        for variable, view in program.globals.values():
            self.register(view.ctypes.data, max(variable.size, 1))
        counts, lanes = np.zeros(len(program.code), np.uint64), np.zeros(len(program.code), np.uint64)
        request = _CLaunch(
            ctypes.addressof(program.native),
            block.ctypes.data,
            tuple(shape.grid),
            tuple(shape.block),
            tuple(shape.cluster),
            shape.smem,
            sms,
            self._occupancy(program, shape),
            seed,
            max_steps,
            counts.ctypes.data,
            lanes.ctypes.data,
            int(strict),
            int(poison),
        )
        started = time.perf_counter()
        self._lib.emu_run(self._handle, ctypes.byref(request))
        seconds = time.perf_counter() - started
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._report(program, shape, seed, counts, seconds)

    def _parameter_block(self, program: Program, parameters: Sequence[bytes]) -> np.ndarray:
        if len(parameters) != len(program.parameters):
            raise EmulatorError(f"{len(parameters)} arguments for {program.name}", f"{len(program.parameters)}")
        raw = np.zeros(program.native.param_bytes + 128, np.uint8)
        block = raw[-raw.ctypes.data % 128 :][: max(program.native.param_bytes, 1)]
        for parameter, data in zip(program.parameters, parameters, strict=True):
            if len(data) != parameter.size:
                raise EmulatorError(f"parameter {parameter.name} gets {len(data)} bytes", f"{parameter.size}")
            block[parameter.offset : parameter.offset + parameter.size] = np.frombuffer(data, np.uint8)
        return block

    def _occupancy(self, program: Program, shape: LaunchShape) -> int:
        """CTAs per multiprocessor by threads and shared memory (registers are unknown to PTX)."""
        threads = shape.block[0] * shape.block[1] * shape.block[2]
        by_smem = 233472 // (shape.smem + program.native.smem_static + 1024)
        return max(1, min(2048 // threads, by_smem, 32))

    def _report(
        self, program: Program, shape: LaunchShape, seed: int, counts: np.ndarray, seconds: float
    ) -> LaunchReport:
        report = LaunchReport(
            program.name, program.native.arch, shape.grid, shape.block, shape.cluster, seed, seconds=seconds
        )
        n = ctypes.c_uint32()
        found = self._lib.emu_findings(self._handle, ctypes.byref(n))
        report.findings = [self._finding(program, found[i]) for i in range(n.value)]
        values = self._lib.emu_counters(self._handle)
        report.counters = {name: int(values[i]) for i, (name, _) in enumerate(counter_names())}
        lines: Counter = Counter()
        for pc in np.nonzero(counts)[0]:
            report.instructions[program.opcodes[pc]] += int(counts[pc])
            lines[int(program.code[pc]["line"])] += int(counts[pc])
        report.lines = dict(lines)
        report.deadlock = self._lib.emu_place(self._handle).decode()
        return report

    def _finding(self, program: Program, raw: _CFinding) -> Finding:
        kind = finding_kinds()[raw.kind]
        text = program.module.lines[raw.line - 1].strip() if raw.line else ""
        return Finding(
            kind.name,
            raw.severity,
            raw.text.decode(errors="replace"),
            program.name,
            raw.line,
            text,
            program.python_line(raw.line),
            tuple(raw.cta),
            raw.warp,
            raw.lane,
            raw.count,
            raw.address,
        )


def raise_for_findings(report: LaunchReport) -> None:
    """Raises KernelFault if the report has a finding of severity 1 or 2."""
    if report.errors:
        raise KernelFault(report.describe(), report)
