"""Points an object file's calls of the CUDA runtime at the emulator's (see native/runtime_names.h).

An undefined symbol of the runtime gets a name with an E in place of its first letter: `_cudaLaunchKernelEx` becomes
`EcudaLaunchKernelEx`. Names may share bytes in the file (one can be the end of another), so the new ones go into a copy
of the string table at the end of the file, and only undefined symbols are pointed there.
"""

from __future__ import annotations

import re
import struct
from functools import cache
from pathlib import Path

from .errors import EmulatorError

_NAMES = Path(__file__).parent / "native" / "runtime_names.h"
_SYMTAB = 2
_SECTION = struct.Struct("<IIQQQQIIQQ")


@cache
def runtime_names() -> dict[str, str]:
    """The CUDA runtime's functions that host code calls, and what the emulator calls its own."""
    return dict(re.findall(r"^#define (\w+) (\w+)$", _NAMES.read_text(), re.M))


def relink(data: bytes) -> bytes:
    """A copy of an ELF relocatable whose undefined runtime symbols have the emulator's names.

    Raises:
        EmulatorError: the bytes are no 64-bit ELF file.
    """
    if data[:5] != b"\x7fELF\x02":
        raise EmulatorError("the object of a kernel is no 64-bit ELF file", "an object that cutefp4.compile made")
    changed = bytearray(data)
    table = struct.unpack_from("<Q", data, 0x28)[0]
    entry_size, count = struct.unpack_from("<HH", data, 0x3A)
    headers = [table + i * entry_size for i in range(count)]
    for header in headers:
        _, kind, _, _, offset, size, link, *_ = _SECTION.unpack_from(data, header)
        if kind == _SYMTAB:
            _rename_undefined(changed, range(offset, offset + size, 24), headers[link])
    return bytes(changed)


def _rename_undefined(data: bytearray, symbols: range, strings_header: int) -> None:
    """Rename the undefined runtime symbols of one table; its string table moves to the end of the file."""
    *_, at, size, _, _, _, _ = _SECTION.unpack_from(data, strings_header)
    strings = bytearray(data[at : at + size])
    for symbol in symbols:
        name, _, _, section = struct.unpack_from("<IBBH", data, symbol)
        ours = runtime_names().get(strings[name : strings.index(b"\0", name)].decode())
        if section == 0 and ours is not None:
            struct.pack_into("<I", data, symbol, len(strings))
            strings += ours.encode() + b"\0"
    struct.pack_into("<QQ", data, strings_header + 24, len(data), len(strings))
    data += strings
