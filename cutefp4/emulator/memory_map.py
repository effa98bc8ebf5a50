"""Which host memory a kernel may touch: the storages of the tensors it was given, or of any tensor that is alive."""

from __future__ import annotations

import bisect
import gc
import weakref
from collections.abc import Iterator

import numpy as np
import torch

from .machine import Machine


def extent(array: object) -> tuple[int, int] | None:
    """(address, bytes) of the whole memory behind a CPU tensor or numpy array; None for anything else."""
    if isinstance(array, torch.Tensor):
        if array.device.type != "cpu" or array.layout is not torch.strided:
            return None
        try:
            storage = array.untyped_storage()
            return storage.data_ptr(), storage.nbytes()
        except (RuntimeError, NotImplementedError):  # fake and functional tensors have no memory
            return None
    if isinstance(array, np.ndarray):
        while isinstance(array.base, np.ndarray):
            array = array.base
        return array.__array_interface__["data"][0], array.nbytes
    return None


class MemoryMap:
    """Registers allocations with the interpreter.

    Tensors that pass through the emulator's hands are noted; an address that none of them holds starts one search of
    all live tensors per launch (a kernel may be given pointers that the host code read from elsewhere). Memory is
    forgotten between launches, so that a freed tensor's memory is out of bounds again.
    """

    def __init__(self, machine: Machine):
        self._machine = machine
        self._noted: dict[int, weakref.ref] = {}
        self._uninitialised: dict[int, tuple[np.ndarray, weakref.ref]] = {}
        self._searched = False

    def note(self, array: object) -> None:
        """Remembers a tensor for as long as it lives."""
        if isinstance(array, torch.Tensor | np.ndarray):
            self._noted[id(array)] = weakref.ref(array)

    def mark_uninitialised(self, tensor: torch.Tensor) -> None:
        """Reading a byte of the tensor's storage that no kernel has written is a finding, until the tensor dies."""
        address, size = extent(tensor)
        self._uninitialised[address] = (np.zeros(size, np.uint8), weakref.ref(tensor))
        self.note(tensor)

    def begin_launch(self) -> None:
        self._machine.forget()
        self._searched = False
        self._noted = {key: ref for key, ref in self._noted.items() if ref() is not None}
        self._uninitialised = {key: entry for key, entry in self._uninitialised.items() if entry[1]() is not None}
        for ref in self._noted.values():
            self._register(extent(ref()))

    def _register(self, where: tuple[int, int] | None) -> None:
        if where is not None and where[1]:
            marked = self._uninitialised.get(where[0])
            self._machine.register(*where, initialised=marked[0] if marked and len(marked[0]) == where[1] else None)

    def resolve(self, address: int, size: int) -> bool:
        """The interpreter met an address it does not know: looks for a live tensor that holds it."""
        if self._searched:
            return False
        self._searched = True
        extents = sorted(set(self._live()))
        for where in extents:
            self._register(where)
        at = bisect.bisect_right(extents, (address, 1 << 62)) - 1
        return at >= 0 and extents[at][0] <= address and address + size <= extents[at][0] + extents[at][1]

    @staticmethod
    def _live() -> Iterator[tuple[int, int]]:
        for item in gc.get_objects():
            kind = type(item)
            if issubclass(kind, torch.Tensor) or kind is np.ndarray:
                where = extent(item)
                if where is not None:
                    yield where
