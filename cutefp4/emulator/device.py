"""`device("sm_100a")`: a GPU made of this machine's CPU, for kernels of the CUTLASS Python DSL and for plain PTX."""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import numpy as np
import torch

from cutefp4 import compile, launch

from .dsl_host import HostRuntime, dsl_on_emulator, load_object, register_ptx
from .errors import EmulatorError
from .machine import LaunchShape, Machine, raise_for_findings
from .memory_map import MemoryMap, extent
from .native_build import library_path
from .program import Parameter, load
from .report import DeviceReport, LaunchReport

ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_100a", "sm_103a", "sm_110a", "sm_120a")
_ATTRIBUTE_SHARED, _ATTRIBUTE_SMS, _ATTRIBUTE_MAJOR, _ATTRIBUTE_MINOR = 97, 16, 75, 76

_current: ContextVar[Device | None] = ContextVar("cutefp4_emulated_device", default=None)


class Device:
    """An emulated device. Made by `device`; `launch_ptx` and `report` are its interface.

    Attributes:
        arch, sms, strict: as given to `device`.
        seed: of the schedule; may be changed between launches. None or 0: eager.
    """

    def __init__(self, arch: str, seed: int | None, sms: int, strict: bool, max_steps: int):
        if arch not in ARCHITECTURES:
            raise EmulatorError(f"device({arch!r})", ", ".join(ARCHITECTURES))
        if sms < 1:
            raise EmulatorError(f"sms={sms}", "1 or more")
        self.arch, self.seed, self.sms, self.strict = arch, seed, sms, strict
        self._max_steps = max_steps
        self._machine = Machine(lambda address, size: self._memory.resolve(address, size))
        self._memory = MemoryMap(self._machine)
        self._reports: list[LaunchReport] = []
        number = int("".join(c for c in arch if c.isdigit()))
        attributes = {
            _ATTRIBUTE_SHARED: 232448,
            _ATTRIBUTE_SMS: sms,
            _ATTRIBUTE_MAJOR: number // 10,
            _ATTRIBUTE_MINOR: number % 10,
        }
        library = ctypes.CDLL(str(library_path()))
        self._host = HostRuntime(library, self._launch_from_host, lambda a: attributes.get(a, 0), self._memory.note)

    # -- what users call

    def launch_ptx(
        self,
        ptx: str,
        entry: str | None,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[object],
        *,
        cluster: Sequence[int] = (1, 1, 1),
        smem: int = 0,
    ) -> LaunchReport:
        """Runs a kernel of a PTX text and returns the launch's report.

        Args:
            entry: kernel name; None if the text has only one.
            args: one per parameter. A CPU tensor or numpy array is passed as its address, unless it has exactly the
                size of a parameter wider than 8 bytes (then by value, like bytes); an int or float takes the
                parameter's size.
            smem: dynamic shared memory in bytes.

        Raises:
            KernelFault: the kernel did something wrong; `.report` has everything.
            PtxError: the PTX is not understood.
        """
        program = load(ptx, entry)
        if len(args) != len(program.parameters):
            raise EmulatorError(f"{len(args)} arguments for {program.name}", f"{len(program.parameters)}")
        data = [self._argument(p, a) for p, a in zip(program.parameters, args, strict=True)]
        return self._run(program, LaunchShape(_triple(grid), _triple(block), _triple(cluster), smem), data)

    def report(self) -> DeviceReport:
        """Everything since the device was made or cleared, failed launches included."""
        return DeviceReport(list(self._reports))

    def clear(self) -> None:
        """Forgets the reports."""
        self._reports.clear()

    def uninitialised(self, *tensors: torch.Tensor) -> None:
        """Declares outputs: a kernel that reads a byte of them before one has written it gets a finding."""
        for tensor in tensors:
            self._memory.mark_uninitialised(tensor)

    # -- launches

    def _argument(self, parameter: Parameter, value: object) -> bytes:
        where = extent(value)
        if where is not None:
            array = value.numpy() if isinstance(value, torch.Tensor) and value.dtype is torch.uint8 else value
            if isinstance(array, np.ndarray) and array.nbytes == parameter.size > 8:
                return array.tobytes()
            self._memory.note(value)
            address = value.data_ptr() if isinstance(value, torch.Tensor) else value.ctypes.data
            return address.to_bytes(8, "little")
        if isinstance(value, bytes | bytearray):
            return bytes(value)
        if isinstance(value, float):
            return struct.pack("<f" if parameter.size == 4 else "<d", value)
        if isinstance(value, int):
            return (value & (1 << 8 * parameter.size) - 1).to_bytes(parameter.size, "little")
        raise EmulatorError(
            f"argument {value!r} for {parameter.name}", "CPU tensors, numpy arrays, bytes, int and float"
        )

    def _launch_from_host(self, ptx: str, kernel: str, grid, block, cluster, smem: int, args) -> None:
        program = load(ptx, kernel)
        data = [ctypes.string_at(args[i], p.size) for i, p in enumerate(program.parameters)]
        self._run(program, LaunchShape(grid, block, cluster, smem), data)

    def _run(self, program, shape: LaunchShape, data: list[bytes]) -> LaunchReport:
        self._memory.begin_launch()
        report = self._machine.launch(
            program, shape, data, seed=self.seed or 0, sms=self.sms, strict=self.strict, max_steps=self._max_steps
        )
        self._reports.append(report)
        raise_for_findings(report)
        return report

    def _load_plan(self, plan, compiled):
        """How `cutefp4.compile` gets a kernel for CPU tensors."""
        register_ptx(compiled.cubin, compiled.ptx)
        return load_object(self._host, compiled.object, plan.symbol, str(library_path()))


def _triple(dims: Sequence[int] | int) -> tuple[int, int, int]:
    dims = (dims,) if isinstance(dims, int) else tuple(int(d) for d in dims)
    return dims + (1,) * (3 - len(dims))


def current() -> Device | None:
    """The device that is active here, or None."""
    return _current.get()


@contextlib.contextmanager
def device(
    arch: str = "sm_100a",
    seed: int | None = None,
    sms: int = 8,
    strict: bool = True,
    max_steps: int = 20_000_000,
) -> Iterator[Device]:
    """While active, kernels that the DSL compiles run on the CPU and CPU tensors are their device memory.

    Args:
        arch: what the DSL compiles for when told nothing else: "sm_90a", "sm_100a", ...
        seed: None runs asynchronous work at once; a number picks an adversarial schedule (the same one every time).
        sms: multiprocessors that kernels see and that run CTAs side by side. A kernel that launches as many clusters
            as there are multiprocessors for needs at least the CTAs of one.
        strict: race and initialisation checks of shared and tensor memory.
        max_steps: warp instructions without any side effect after which a launch counts as hung.

    Inside, `cute.compile`, calls of compiled functions (with and without TVM-FFI) and cutefp4's own operations work
    as on a GPU. A function must be compiled inside: host code is linked to the runtime when it is compiled.
    Process-wide: no other thread may use the DSL meanwhile.
    """
    made = Device(arch, seed, sms, strict, max_steps)
    token = _current.set(made)
    try:
        with (
            dsl_on_emulator(made._host, str(library_path()), arch, sms),
            compile.use_loader(made._load_plan),
            launch.cpu_target(arch, sms),
        ):
            try:
                yield made
            finally:
                made._host.raise_pending()
    finally:
        _current.reset(token)
        made._machine.close()
