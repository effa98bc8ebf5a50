"""Element formats, matrix descriptors, swizzled operand addresses and tensor-memory maps, without a machine."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from cutefp4.emulator.native_build import library

lib = library()
lib.decode_scale.restype = ctypes.c_double
lib.round_f16.restype = ctypes.c_uint16
lib.round_f16.argtypes = [ctypes.c_double]
lib.acc_round.argtypes = [ctypes.c_int, ctypes.c_double, ctypes.c_int]
lib.acc_round.restype = ctypes.c_uint32
for name in ("smem_desc_decode_wgmma", "smem_desc_decode_tcgen05", "instr_desc_decode"):
    getattr(lib, name).restype = ctypes.c_char_p

F16, BF16, TF32, E4M3, E5M2, E2M3, E3M2, E2M1, U8, S8, UE8M0, UE4M3 = range(12)
DENSE, ALIGN16, BYTE = range(3)
KIND_F16, KIND_TF32, KIND_I8, KIND_F8F6F4, KIND_MXF8F6F4, KIND_MXF4, KIND_MXF4NVF4 = range(7)


def pointer(array: np.ndarray):
    return array.ctypes.data_as(ctypes.c_void_p)


def decode(dtype: int, raw: np.ndarray, n: int, packing: int = DENSE) -> np.ndarray:
    out = np.zeros(n)
    raw = np.ascontiguousarray(raw)
    lib.decode_elems(dtype, packing, pointer(raw), n, pointer(out), ctypes.c_ssize_t(1))
    return out


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=True) and np.array_equal(np.signbit(a[a == 0]), np.signbit(b[b == 0]))


@pytest.mark.parametrize(
    "dtype, torch_dtype", [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2), (U8, torch.uint8), (S8, torch.int8)]
)
def test_byte_formats_equal_torch(dtype, torch_dtype):
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes.copy()).view(torch_dtype).to(torch.float64).numpy()
    assert same(decode(dtype, codes, 256), expected)


@pytest.mark.parametrize("dtype, torch_dtype", [(F16, torch.float16), (BF16, torch.bfloat16)])
def test_half_formats_equal_torch(dtype, torch_dtype):
    codes = np.arange(65536, dtype=np.uint16)
    expected = torch.from_numpy(codes.view(np.int16).copy()).view(torch_dtype).to(torch.float64).numpy()
    assert same(decode(dtype, codes.view(np.uint8), 65536), expected)


def test_small_formats():
    e2m1 = [0.0, 0.5, 1, 1.5, 2, 3, 4, 6]
    e2m1 += [-v for v in e2m1]
    packed = np.array([i | (15 - i) << 4 for i in range(16)], dtype=np.uint8)
    got = decode(E2M1, packed, 32)
    assert same(got[0::2], np.array(e2m1)) and same(got[1::2], np.array(e2m1[::-1]))
    assert decode(E2M1, np.array([i << 2 for i in range(16)], np.uint8), 16, BYTE).tolist() == e2m1
    six = np.arange(64, dtype=np.uint8)
    for dtype, mantissa, bias, top in ((E2M3, 3, 1, 7.5), (E3M2, 2, 3, 28.0)):
        values = decode(dtype, six, 64, BYTE)
        exponent, fraction = (six & 31) >> mantissa, (six & ((1 << mantissa) - 1)) / 2.0**mantissa
        magnitude = np.where(
            exponent > 0, (1 + fraction) * 2.0 ** (exponent.astype(float) - bias), fraction * 2.0 ** (1 - bias)
        )
        assert same(values, np.where(six & 32, -magnitude, magnitude)) and values.max() == top
        bits = "".join(format(v, "06b")[::-1] for v in six[:16])
        dense = np.array([int(bits[i : i + 8][::-1], 2) for i in range(0, 96, 8)], np.uint8)
        assert same(decode(dtype, np.concatenate([dense, np.full(4, 0xAA, np.uint8)]), 16, ALIGN16), values[:16])


def test_scales():
    assert (
        lib.decode_scale(UE8M0, 127) == 1.0
        and lib.decode_scale(UE8M0, 0) == 2.0**-127
        and np.isnan(lib.decode_scale(UE8M0, 255))
    )
    assert (
        lib.decode_scale(UE4M3, 0x7E) == 448.0
        and lib.decode_scale(UE4M3, 0xFE) == 448.0
        and np.isnan(lib.decode_scale(UE4M3, 0x7F))
    )


def test_rounding_to_f16_equals_numpy():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(3000) * 2.0 ** rng.integers(-28, 18, 3000), np.arange(4096) * 2.0**-26,
                             [65504, 65519.99, 65520, -65520, np.inf, 0.0, -0.0, 2.0**-24, 2.0**-25, 3 * 2.0**-25]])  # fmt: skip
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    assert [lib.round_f16(v) for v in values] == expected.tolist()
    assert lib.round_f16(float("nan")) == 0x7FFF


def test_integer_accumulators_wrap_or_saturate():
    assert lib.acc_round(2, 2.0**31, 0) == 0x80000000 and lib.acc_round(2, 2.0**31, 1) == 0x7FFFFFFF
    assert lib.acc_round(2, -(2.0**31) - 1, 0) == 0x7FFFFFFF and lib.acc_round(2, -(2.0**31) - 1, 1) == 0x80000000


@pytest.mark.parametrize("m, n, k", [(16, 8, 8), (64, 40, 16), (128, 256, 64)])
def test_product(m, n, k):
    rng = np.random.default_rng(m)
    a, b, c = (
        rng.integers(-50, 50, (m, k)) * 1.0,
        rng.integers(-50, 50, (n, k)) * 1.0,
        rng.integers(-50, 50, (m, n)) * 1.0,
    )
    panels = np.ascontiguousarray(b.reshape(n // 8, 8, k).transpose(0, 2, 1))
    out = c.copy()
    lib.matmul_panels(m, n, k, pointer(a), pointer(panels), pointer(out), n)
    assert (out == c + a @ b.T).all()


class SmemDesc(ctypes.Structure):
    _fields_ = [
        ("start", ctypes.c_uint32),
        ("lbo", ctypes.c_uint32),
        ("sbo", ctypes.c_uint32),
        ("swizzle", ctypes.c_int),
    ]


class OperandShape(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int) for n in ("type", "packing", "mn_major")] + [
        (n, ctypes.c_uint32) for n in ("rows", "k", "first")
    ]


def descriptor(start, lbo, sbo, swizzle, tcgen05):
    bits = start >> 4 | (lbo >> 4) << 16 | (sbo >> 4) << 32
    if tcgen05:
        bits |= 1 << 46 | {0: 0, 32: 6, 64: 4, 128: 2, "128/32": 1}[swizzle] << 61
    else:
        bits |= {0: 0, 128: 1, 64: 2, 32: 3}[swizzle] << 62
    out = SmemDesc()
    decoder = lib.smem_desc_decode_tcgen05 if tcgen05 else lib.smem_desc_decode_wgmma
    assert decoder(ctypes.c_uint64(bits), ctypes.byref(out)) is None
    return out


def operand(desc: SmemDesc, shape: OperandShape, smem: np.ndarray) -> np.ndarray:
    chunks = np.zeros(1024, np.uint32)
    n = lib.operand_chunks(ctypes.byref(desc), ctypes.byref(shape), pointer(chunks))
    data = np.concatenate([smem[c : c + 16] for c in chunks[:n]])
    out = np.zeros((shape.rows, shape.k))
    lib.operand_decode(ctypes.byref(shape), pointer(data), 0, pointer(out))
    panels = np.zeros((shape.rows // 8, shape.k, 8))
    lib.operand_decode(ctypes.byref(shape), pointer(data), 1, pointer(panels))
    assert (panels.transpose(0, 2, 1).reshape(shape.rows, shape.k) == out).all()
    return out


def swizzled(address: int, swizzle) -> int:
    if swizzle == "128/32":
        return address ^ (address >> 7 & 3) << 5
    return address ^ (address >> 7 & {0: 0, 32: 1, 64: 3, 128: 7}[swizzle]) << 4


@pytest.mark.parametrize("tcgen05", [False, True])
@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_k_major_tile(swizzle, tcgen05):
    """A (64 rows, 128 bytes of K) tile stored as TMA stores it: boxes of the swizzle's width, one beside the other."""
    rows, k_bytes, width = 64, 128, swizzle or 16
    rng = np.random.default_rng(swizzle)
    tile = rng.integers(0, 256, (rows, k_bytes), dtype=np.uint8)
    smem = np.zeros(65536, np.uint8)
    base = 4096
    for r in range(rows):
        for b in range(k_bytes):
            smem[swizzled(base + b // width * rows * width + r * width + b % width, swizzle)] = tile[r, b]
    for step in range(k_bytes // 32):
        byte = 32 * step
        start = base + byte // width * rows * width + byte % width
        desc = descriptor(start, rows * 16, 8 * width, swizzle, tcgen05)
        got = operand(desc, OperandShape(U8, DENSE, 0, rows, 32, 0), smem)
        assert (got == tile[:, byte : byte + 32]).all()
        part = operand(desc, OperandShape(U8, DENSE, 0, 16, 32, 48), smem)
        assert (part == tile[48:, byte : byte + 32]).all()


@pytest.mark.parametrize("dtype, size", [(F16, 2), (U8, 1), (TF32, 4)])
@pytest.mark.parametrize("swizzle", [0, 32, 64, 128, "128/32"])
def test_mn_major_tile(swizzle, dtype, size):
    """A (K, M) tile with M contiguous: boxes of the swizzle's width along M, K rows each."""
    m, k, width = 128, 32 // size, 128 if swizzle == "128/32" else swizzle or 16
    atom = 4 if swizzle == "128/32" else 8
    rng = np.random.default_rng(size)
    tile = rng.integers(0, 200, (k, m)).astype({1: np.uint8, 2: np.float16, 4: np.float32}[size])
    raw = tile.view(np.uint8).reshape(k, m * size)
    smem = np.zeros(65536, np.uint8)
    base = 8192
    for kk in range(k):
        for b in range(m * size):
            smem[swizzled(base + b // width * k * width + kk * width + b % width, swizzle)] = raw[kk, b]
    box = k * width
    lbo, sbo = (8 * width, box) if swizzle == 0 else (box, atom * width)
    got = operand(descriptor(base, lbo, sbo, swizzle, True), OperandShape(dtype, DENSE, 1, m, k, 0), smem)
    assert (got == tile.T.astype(np.float64)).all()


@pytest.mark.parametrize(
    "bits, words",
    [
        (0, b"0b001"),
        (1 << 46 | 1 << 49, b"base offset"),
        (1 << 46 | 1 << 52, b"absolute"),
        (1 << 46 | 3 << 61, b"swizzle"),
    ],
)
def test_tcgen05_descriptor_refusals(bits, words):
    assert words in lib.smem_desc_decode_tcgen05(ctypes.c_uint64(bits), ctypes.byref(SmemDesc()))


class InstrDesc(ctypes.Structure):
    _fields_ = [
        (n, ctypes.c_int)
        for n in ("acc_type", "a_type", "b_type", "packing", "a_mn_major", "b_mn_major", "negate_a", "negate_b", "saturate",
                  "m", "n", "k", "scale_type", "sfa_id", "sfb_id")
    ]  # fmt: skip


def instr_desc(kind, group, bits):
    out = InstrDesc()
    error = lib.instr_desc_decode(kind, group, ctypes.c_uint32(bits), ctypes.byref(out))
    return error.decode() if error else out


def test_instruction_descriptors():
    d = instr_desc(KIND_MXF4NVF4, 1, 0x08400480)  # what CuTe builds for nvfp4, M = 128, N = 256
    assert (d.m, d.n, d.k, d.a_type, d.b_type, d.scale_type, d.sfa_id, d.sfb_id) == (
        128,
        256,
        64,
        E2M1,
        E2M1,
        UE4M3,
        0,
        0,
    )
    d = instr_desc(KIND_F16, 2, 1 << 4 | 1 << 7 | 1 << 16 | (256 // 8) << 17 | (256 // 16) << 24)
    assert (d.m, d.n, d.k, d.a_type, d.b_type, d.b_mn_major, d.acc_type) == (256, 256, 16, BF16, F16, 1, 1)
    d = instr_desc(KIND_MXF8F6F4, 1, 5 << 10 | 2 << 4 | 1 << 23 | (64 // 8) << 17 | (128 // 16) << 24 | 3 << 29)
    assert (d.a_type, d.b_type, d.packing, d.sfa_id, d.sfb_id, d.scale_type, d.k) == (
        E4M3,
        E2M1,
        ALIGN16,
        3,
        2,
        UE8M0,
        32,
    )


@pytest.mark.parametrize(
    "kind, group, bits, words",
    [
        (KIND_F16, 1, 1 << 4 | 2 << 7 | 8 << 17 | 8 << 24, "f16 (0) or bf16 (1)"),
        (KIND_F16, 1, 1 << 4 | 8 << 17 | 16 << 24, "M must be"),
        (KIND_F16, 1, 1 << 4 | 1 << 17 | 8 << 24, "N is outside"),
        (KIND_TF32, 1, 2 << 7 | 2 << 10 | 8 << 17 | 8 << 24, "accumulates in f32"),
        (KIND_MXF4, 1, 1 << 7 | 1 << 10 | 8 << 17 | 8 << 24, "ue8m0"),
        (KIND_F8F6F4, 1, 1 << 4 | 5 << 7 | 1 << 15 | 8 << 17 | 8 << 24, "must be K-major"),
        (KIND_I8, 1, 1 << 4 | 8 << 17 | 8 << 24, "accumulator type"),
        (KIND_F16, 1, 1 << 2 | 1 << 4 | 8 << 17 | 8 << 24, "sparse"),
    ],
)
def test_instruction_descriptor_refusals(kind, group, bits, words):
    assert words in instr_desc(kind, group, bits)


@pytest.mark.parametrize("shape, lanes, width", [(0, 32, 1), (1, 16, 2), (2, 16, 4), (3, 16, 8)])
@pytest.mark.parametrize("repeat", [1, 2, 16])
def test_load_shapes_cover_their_cells_once(shape, lanes, width, repeat):
    lane, column = ctypes.c_uint32(), ctypes.c_uint32()
    cells = set()
    for t in range(32):
        for r in range(lib.ldst_registers(shape, repeat)):
            lib.ldst_cell(shape, 0, t, r, ctypes.byref(lane), ctypes.byref(column))
            cells.add((lane.value, column.value))
    assert cells == {(l, c) for l in range(lanes) for c in range(width * repeat)}
    assert lib.ldst_columns(shape, repeat) == width * repeat


def test_load_shape_values():
    """Spot values of the PTX fragment figures."""
    lane, column = ctypes.c_uint32(), ctypes.c_uint32()

    def cell(shape, t, r, split=0):
        lib.ldst_cell(shape, split, t, r, ctypes.byref(lane), ctypes.byref(column))
        return lane.value, column.value

    assert cell(0, 9, 3) == (9, 3)
    assert [cell(1, t, 0) for t in (0, 1, 2, 3, 4)] == [(0, 0), (8, 0), (0, 1), (8, 1), (1, 0)] and cell(1, 0, 1) == (
        0,
        2,
    )
    assert [cell(2, 5, r) for r in range(3)] == [(1, 1), (9, 1), (1, 5)]
    assert [cell(3, 5, r) for r in range(5)] == [(1, 2), (1, 3), (9, 2), (9, 3), (1, 10)]
    assert cell(4, 17, 2, split=8) == (1, 10)


def test_copy_shapes():
    rows, width = ctypes.c_int(), ctypes.c_int()
    lanes = (ctypes.c_uint32 * 4)()
    cover = {}
    for shape in range(6):
        lib.cp_extent(shape, ctypes.byref(rows), ctypes.byref(width))
        written = []
        for r in range(rows.value):
            written += [(lanes[i], r) for i in range(lib.cp_lanes(shape, r, lanes))]
        assert len({lane for lane, _ in written}) == len(written)
        cover[shape] = (rows.value, width.value, dict(written))
    assert cover[0] == (128, 32, {i: i for i in range(128)})
    assert cover[1] == (4, 32, {32 * i: i for i in range(4)})
    assert cover[3] == (64, 16, {i: i % 64 for i in range(128)})
    assert cover[4] == (64, 16, {i: i % 32 + 32 * (i // 64) for i in range(128)})
    assert cover[5] == (32, 16, {i: i % 32 for i in range(128)})
