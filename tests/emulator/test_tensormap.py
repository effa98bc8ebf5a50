"""Tensor maps: decoding, patching and the geometry of boxes, against formulas written here."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
from tensor_maps import BITS, F16, F32, U4, U4_PADDED, U6_PADDED, U8, BoxRow, DecodedMap, Map

from cutefp4.emulator.native_build import library

lib = library()
lib.tensormap_decode.restype = ctypes.c_char_p
lib.tensormap_replace.restype = ctypes.c_char_p
lib.tensormap_replace.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_uint64]


def decode(data: bytes) -> DecodedMap:
    out = DecodedMap()
    error = lib.tensormap_decode(data, ctypes.byref(out))
    assert error is None, error
    return out


def decode_error(data: bytes) -> str:
    error = lib.tensormap_decode(data, ctypes.byref(DecodedMap()))
    assert error is not None
    return error.decode()


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_fields(rank):
    m = Map(
        tuple(100 + 7 * i for i in range(rank)),
        tuple(4096 * (i + 1) for i in range(rank - 1)),
        (32, 3, 5, 7, 2)[:rank],
        F16,
        2,
    )
    got = decode(m.encode(0x7F0012345670))
    assert got.base == 0x7F0012345670 and got.rank == rank and got.type == F16 and got.swizzle == 2 and got.bits == 16
    assert tuple(got.dim)[:rank] == m.dims and tuple(got.box)[:rank] == m.box
    assert tuple(got.stride)[1:rank] == m.strides
    assert tuple(got.dim)[rank:] == (1,) * (5 - rank) and tuple(got.box)[rank:] == (1,) * (5 - rank)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda q: q.__setitem__(1, q[1] | 1), "not a tiled tensor map"),
        (lambda q: q.__setitem__(0, q[0] | 8), "multiple of 16"),
        (lambda q: q.__setitem__(1, q[1] | 15 << 7), "element type"),
        (lambda q: q.__setitem__(1, q[1] | 1 << 11), "interleaved"),
        (lambda q: q.__setitem__(6, q[6] | 1 << 32), "element strides"),
        (lambda q: q.__setitem__(1, q[1] | 1 << 13), "wider than the swizzle span"),
    ],
)
def test_refusals(change, words):
    data = Map((256, 64), (512,), (64, 8), F16).encode(0x1000)
    q = [int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(16)]
    change(q)
    assert words in decode_error(b"".join(w.to_bytes(8, "little") for w in q))


def rows_of(data: bytes, coord):
    """(global address, first element, element count) of every row, from the library."""
    m = decode(data)
    out = []
    for row in range(lib.box_rows(ctypes.byref(m))):
        r = BoxRow()
        lib.box_row(ctypes.byref(m), (ctypes.c_int32 * 5)(*coord), row, ctypes.byref(r))
        out.append((r.gaddr, r.first, r.count))
    return out


@pytest.mark.parametrize(
    "coord", [(0, 0, 0, 0, 0), (-16, -1, 0, 1, -1), (48, 5, 2, 0, 1), (64, 0, 0, 0, 0), (32, 6, 3, 1, 1)]
)
def test_box_rows(coord):
    m = Map((64, 7, 3, 2, 2), (128, 1024, 4096, 8192), (32, 4, 2, 2, 2), U8)
    rows = rows_of(m.encode(0x10000), coord)
    expected = []
    for c4, c3, c2, c1 in itertools.product(*(range(b) for b in reversed(m.box[1:]))):
        at = [coord[1] + c1, coord[2] + c2, coord[3] + c3, coord[4] + c4]
        inside = all(0 <= a < d for a, d in zip(at, m.dims[1:], strict=True))
        lo, hi = max(coord[0], 0), min(coord[0] + m.box[0], m.dims[0])
        if not inside or lo >= hi:
            expected.append((0, 0, 0))
            continue
        address = 0x10000 + lo + sum(a * s for a, s in zip(at, m.strides, strict=True))
        expected.append((address, lo - coord[0], hi - lo))
    assert rows == expected


@pytest.mark.parametrize("dtype, box", [(U8, 32), (F16, 64), (U4, 128), (U4_PADDED, 128), (U6_PADDED, 128), (F32, 32)])
def test_expand_and_pack(dtype, box):
    m = decode(Map((4096,), (), (box,), dtype).encode(0x1000))
    rng = np.random.default_rng(dtype)
    packed = rng.integers(0, 256, box * BITS[dtype] // 8, dtype=np.uint8)
    row = BoxRow(0, 0, box)
    smem = np.full(lib.box_row_bytes(ctypes.byref(m)), 0xAA, np.uint8)
    lib.box_row_expand(
        ctypes.byref(m), ctypes.byref(row), packed.ctypes.data_as(ctypes.c_void_p), smem.ctypes.data_as(ctypes.c_void_p)
    )
    if dtype in (U4_PADDED, U6_PADDED):
        data = 2 * BITS[dtype]
        groups = smem.reshape(-1, 16)
        assert (groups[:, :data] == packed.reshape(-1, data)).all() and (groups[:, data:] == 0).all()
    else:
        assert (smem == packed).all()
    again = np.zeros_like(packed)
    lib.box_row_pack(
        ctypes.byref(m), ctypes.byref(row), smem.ctypes.data_as(ctypes.c_void_p), again.ctypes.data_as(ctypes.c_void_p)
    )
    assert (again == packed).all()


def test_transaction_bytes_count_packed_elements():
    for dtype, box, expected in (
        (U4, (128, 8), 512),
        (U4_PADDED, (128, 8), 512),
        (U6_PADDED, (128, 8), 768),
        (F16, (64, 8), 1024),
    ):
        m = decode(Map((1024, 64), (4096,), box, dtype).encode(0x1000))
        assert lib.box_transaction_bytes(ctypes.byref(m)) == expected


@pytest.mark.parametrize(
    "swizzle, atom32, pitch", [(0, False, 16), (1, False, 32), (2, False, 64), (3, False, 128), (3, True, 128)]
)
def test_narrow_box_keeps_the_pitch_of_its_swizzle(swizzle, atom32, pitch):
    m = decode(Map((1024, 64), (1024,), (16, 8), U8, swizzle, atom32).encode(0x1000))
    assert lib.box_row_pitch(ctypes.byref(m)) == pitch and lib.box_row_bytes(ctypes.byref(m)) == 16


FIELDS = ["global_address", "rank", "box_dim", "global_dim", "global_stride", "element_stride", "elemtype", "interleave", "swizzle", "fill", "swizzle_atom"]  # fmt: skip


def test_replace_gives_what_encoding_gives():
    start = Map((64, 32, 16), (128, 4096), (32, 4, 2), F16, 1)
    goal = Map((640, 320, 160), (1280, 40960), (64, 8, 4), F32, 3)
    goal = Map(goal.dims, goal.strides, (32, 8, 4), F32, 3)
    data = ctypes.create_string_buffer(start.encode(0x1000), 128)
    patches = [("global_address", 0, 0x2000), ("elemtype", 0, 7), ("swizzle", 0, 3)]
    patches += [("box_dim", i, b) for i, b in enumerate(goal.box)] + [
        ("global_dim", i, d) for i, d in enumerate(goal.dims)
    ]
    patches += [("global_stride", i, s) for i, s in enumerate(goal.strides)]
    for field, ordinal, value in patches:
        assert lib.tensormap_replace(data, FIELDS.index(field), ordinal, value) is None
    assert data.raw == goal.encode(0x2000)


def test_replace_refuses():
    data = ctypes.create_string_buffer(Map((64, 32), (128,), (32, 4), F16).encode(0x1000), 128)
    assert b"multiple of 16" in lib.tensormap_replace(data, FIELDS.index("global_stride"), 0, 100)
    assert b"outside 1..256" in lib.tensormap_replace(data, FIELDS.index("box_dim"), 0, 257)
    assert b"ordinal" in lib.tensormap_replace(data, FIELDS.index("global_stride"), 4, 128)
