"""The dotted modifiers of an opcode, consumed one by one so that an unknown one cannot pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

TYPE_BYTES = {
    "b8": 1,
    "u8": 1,
    "s8": 1,
    "b16": 2,
    "u16": 2,
    "s16": 2,
    "f16": 2,
    "bf16": 2,
    "f16x2": 4,
    "bf16x2": 4,
    "b32": 4,
    "u32": 4,
    "s32": 4,
    "f32": 4,
    "b64": 8,
    "u64": 8,
    "s64": 8,
    "f64": 8,
    "f32x2": 8,
    "b128": 16,
    "pred": 4,
}

# Bits of the arithmetic handlers (native/lanes.h).
ROUND = {"rn": 0, "rz": 1, "rm": 2, "rp": 3, "rna": 4, "rs": 5}
FTZ, SAT, RELU, NAN, XORSIGN, ABS, SATFINITE = (1 << bit for bit in range(3, 10))


class Modifiers:
    """What is left of an opcode after the prefix that chose its lowering."""

    def __init__(self, parts: Sequence[str], fail: Callable[[str], Exception]):
        self.parts, self.fail = list(parts), fail

    def flag(self, name: str) -> bool:
        """Takes one modifier if it is there."""
        if name in self.parts:
            self.parts.remove(name)
            return True
        return False

    def one_of(self, *names: str, default: str | None = None) -> str | None:
        """Takes the first modifier that is one of `names`."""
        for part in self.parts:
            if part in names:
                self.parts.remove(part)
                return part
        return default

    def need(self, *names: str) -> str:
        found = self.one_of(*names)
        if found is None:
            raise self.fail(f"needs one of .{', .'.join(names)}")
        return found

    def match(self, pattern: str) -> re.Match | None:
        """Takes the first modifier that matches the whole regular expression."""
        for part in self.parts:
            found = re.fullmatch(pattern, part)
            if found:
                self.parts.remove(part)
                return found
        return None

    def types(self) -> list[str]:
        """Takes all type modifiers, in order."""
        found = [p for p in self.parts if p in TYPE_BYTES]
        self.parts = [p for p in self.parts if p not in TYPE_BYTES]
        return found

    def type(self) -> str:
        """Takes the only type modifier."""
        found = self.types()
        if len(found) != 1:
            raise self.fail(f"has {len(found)} types where one is expected")
        return found[0]

    def ignore(self, *names: str) -> None:
        """Takes modifiers that do not change what the emulator does."""
        self.parts = [p for p in self.parts if p not in names]

    def arithmetic(self, *allowed: str) -> int:
        """Takes rounding, ftz, sat and relu; their bits. Rounding .rs is not one of them."""
        bits = 0
        rounding = self.one_of("rn", "rz", "rm", "rp")
        if rounding:
            bits |= ROUND[rounding]
        for name, bit in (("ftz", FTZ), ("sat", SAT), ("relu", RELU)):
            if self.flag(name):
                bits |= bit
        return bits

    def done(self) -> None:
        """Raises if a modifier is left."""
        if self.parts:
            raise self.fail(f"modifier .{' .'.join(self.parts)} is not implemented")
