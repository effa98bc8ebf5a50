"""One case of the acceptance matrix."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

from cutefp4.acceptance.machine import Machine


@dataclass(frozen=True)
class Case(ABC):
    """Base of all cases: frozen, picklable data. A subclass names its area, itself and what it shares a compile with.

    quick: whether it belongs to the quick matrix.
    """

    quick: bool = True

    area = ""

    @abstractmethod
    def name(self) -> str:
        """Unique within the area; no spaces."""

    def kernel(self) -> str:
        """Cases with equal kernels run in one process, so that it compiles once."""
        return self.name()

    @abstractmethod
    def check(self, machine: Machine) -> None:
        """Run and compare.

        Raises:
            Difference: the result is wrong. Any other exception is a failure, too.
        """

    @property
    def id(self) -> str:
        return f"{self.area}/{self.name()}"

    @property
    def seed(self) -> int:
        """Of data and of the emulator's schedule: the same wherever and whenever the case runs."""
        return 1 + zlib.crc32(self.id.encode()) % 9973
