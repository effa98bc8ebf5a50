"""What a cubin says about its kernels, read from its ELF sections: registers, stack, shared memory. Needs no tool."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_SHT_SYMTAB = 2
# Attributes of the .nv.info sections.
_REGCOUNT = 0x2F
_FRAME_SIZE = 0x11
_FORMAT_WITH_SIZE = 0x04  # format byte: a 16-bit size and that many bytes follow; every other format is 4 bytes in all


@dataclass(frozen=True)
class KernelResources:
    """Resources of one kernel.

    Attributes:
        name: symbol of the kernel.
        registers: per thread.
        stack_bytes: per thread of local memory (arrays that are indexed at run time, and spills).
        static_shared_bytes: per CTA, without what the launch adds.
        code_bytes: of instructions.
    """

    name: str
    registers: int
    stack_bytes: int
    static_shared_bytes: int
    code_bytes: int


@dataclass(frozen=True)
class _Section:
    name: str
    type: int
    offset: int
    size: int
    link: int


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()


def _sections(data: bytes) -> list[_Section]:
    if data[:5] != b"\x7fELF\x02":
        raise ValueError("not a 64-bit ELF image")
    table, entry_size, count, names_index = (
        *struct.unpack_from("<Q", data, 0x28),
        *struct.unpack_from("<HHH", data, 0x3A),
    )
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * entry_size) for i in range(count)]
    names = headers[names_index][4]
    return [_Section(_text(data, names + h[0]), h[1], h[4], h[5], h[6]) for h in headers]


def _symbol_names(data: bytes, sections: list[_Section]) -> list[str]:
    table = next(s for s in sections if s.type == _SHT_SYMTAB)
    strings = sections[table.link].offset
    return [
        _text(data, strings + struct.unpack_from("<I", data, table.offset + i)[0]) for i in range(0, table.size, 24)
    ]


def _attributes(data: bytes, section: _Section) -> Iterator[tuple[int, bytes]]:
    position, end = section.offset, section.offset + section.size
    while position + 4 <= end:
        form, attribute, value = struct.unpack_from("<BBH", data, position)
        position += 4
        if form == _FORMAT_WITH_SIZE:
            yield attribute, data[position : position + value]
            position += value


def kernels(data: bytes) -> tuple[KernelResources, ...]:
    """Resources of every kernel of a cubin, by name.

    Raises:
        ValueError: the bytes are no cubin.
    """
    sections = _sections(data)
    symbols = _symbol_names(data, sections)
    by_name = {s.name: s for s in sections}
    values: dict[tuple[int, str], int] = {}
    for attribute, payload in _attributes(data, by_name[".nv.info"]):
        if attribute in (_REGCOUNT, _FRAME_SIZE):
            symbol, value = struct.unpack("<II", payload)
            values[attribute, symbols[symbol]] = value
    found = []
    for section in sections:
        if not section.name.startswith(".text."):
            continue
        name = section.name.removeprefix(".text.")
        if f".nv.info.{name}" not in by_name:
            continue  # a device function, not a kernel
        shared = by_name.get(f".nv.shared.{name}")
        found.append(
            KernelResources(
                name,
                values.get((_REGCOUNT, name), 0),
                values.get((_FRAME_SIZE, name), 0),
                shared.size if shared else 0,
                section.size,
            )
        )
    return tuple(sorted(found, key=lambda k: k.name))
