"""tcgen05 through whole kernels: every mma kind, operand layout and CTA pair against float64; copies, loads, faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tcgen05_kernels import Image, kernel, load_descriptor

from cutefp4 import emulator

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
F8F6F4 = {"e4m3": 0, "e5m2": 1, "e2m3": 3, "e3m2": 4, "e2m1": 5}
SEEDS = (None, 1, 2, 3)


def run(ptx: str, images: list[np.ndarray], tmem: np.ndarray, group: int, seed=None, strict=True) -> np.ndarray:
    image = torch.from_numpy(np.concatenate(images).copy())
    memory = torch.from_numpy(tmem.astype(np.uint32).view(np.int32).copy())
    with emulator.device("sm_100a", seed=seed, strict=strict) as dev:
        dev.launch_ptx(
            ptx, "k", (group, 1, 1), (128, 1, 1), [image, memory], cluster=(group, 1, 1), smem=len(images[0]) + 1024
        )
    return memory.numpy().view(np.uint32)


def small_codes(dtype: str, shape, rng) -> tuple[np.ndarray, np.ndarray]:
    """(one code per element, its value), small enough that sums are exact."""
    if dtype in ("f16", "bf16", "tf32"):
        values = rng.integers(-8, 9, shape) * 0.25
        torch_type = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}[dtype]
        raw = torch.from_numpy(values).to(torch_type)
        return raw.view(torch.int32 if dtype == "tf32" else torch.int16).numpy(), values
    if dtype in ("u8", "s8"):
        codes = rng.integers(0, 256, shape).astype(np.uint8)
        return codes, (codes if dtype == "u8" else codes.view(np.int8)).astype(np.float64)
    if dtype in ("e4m3", "e5m2"):
        torch_type = torch.float8_e4m3fn if dtype == "e4m3" else torch.float8_e5m2
        values = rng.integers(-7, 8, shape) * 0.5
        return torch.from_numpy(values).to(torch_type).view(torch.uint8).numpy(), values
    if dtype == "e2m1":
        codes = rng.integers(0, 16, shape).astype(np.uint8)
        return codes, E2M1[codes]
    codes = rng.integers(0, 64, shape).astype(np.uint8)
    mantissa, bias = (3, 1) if dtype == "e2m3" else (2, 3)
    exponent, fraction = (codes & 31) >> mantissa, (codes & ((1 << mantissa) - 1)) / 2.0**mantissa
    magnitude = np.where(
        exponent > 0, (1 + fraction) * 2.0 ** (exponent.astype(float) - bias), fraction * 2.0 ** (1 - bias)
    )
    return codes, np.where(codes & 32, -magnitude, magnitude)


def pack_rows(codes: np.ndarray, dtype: str, aligned: bool) -> np.ndarray:
    """Codes (R, K) to bytes along K: packed, or with 16 elements per 16 bytes for the f8f6f4 kinds."""
    rows, k = codes.shape
    if dtype in ("e2m3", "e3m2"):
        bits = (codes[..., None] >> np.arange(6) & 1).reshape(rows, k // 16, 96)
        data = np.packbits(bits, axis=-1, bitorder="little")
        return np.concatenate([data, np.zeros((rows, k // 16, 4), np.uint8)], -1).reshape(rows, k)
    if dtype == "e2m1":
        data = codes[:, 0::2] | codes[:, 1::2] << 4
        if not aligned:
            return data
        groups = data.reshape(rows, k // 16, 8)
        return np.concatenate([groups, np.zeros_like(groups)], -1).reshape(rows, k)
    return np.ascontiguousarray(codes).view(np.uint8).reshape(rows, -1)


def accumulator_cells(m: int, n: int, group: int):
    """(cta, lane, column) of D[row, col], as the PTX data-path figures show it."""
    row, col = np.meshgrid(np.arange(m), np.arange(n), indexing="ij")
    if group == 1:
        return np.zeros_like(row), row if m == 128 else row % 16 + 32 * (row // 16), col
    per = m // 2
    if m == 256:
        return row // per, row % per, col
    return row // per, row % per + 64 * (col >= n // 2), col % (n // 2)


def half_partitions(image: Image, scales: np.ndarray) -> int:
    """Scale factors of B for the 2x2 data path (64 rows of D per CTA, N = 64): columns 0-31 in the first two lane
    partitions, 32-63 in the last two."""
    rows = np.zeros((64, 16), np.uint8)
    rows[:, :4] = scales
    return image.k_major(rows, 0)


def check_mma(kind, types, m, n, group, ptx_kind, idesc, a_mn=False, b_mn=False, swizzle=128, accumulate=True, block=0, sf="ue4m3",
              ids=(0, 0), acc="f32", a_in_tmem=False, seed=None):  # fmt: skip
    rng = np.random.default_rng(m * 1000 + n)
    k = {"f16": 16, "tf32": 8, "i8": 32, "f8f6f4": 32, "mxf8f6f4": 32, "mxf4": 64, "mxf4nvf4": 64}[kind]
    aligned = kind in ("f8f6f4", "mxf8f6f4")
    (a_codes, a), (b_codes, b) = small_codes(types[0], (m, k), rng), small_codes(types[1], (n, k), rng)
    images = [Image(65536) for _ in range(group)]
    columns = 512
    tmem = np.zeros((group, 128, columns), np.uint32)
    body = []

    def operand(codes, dtype, per, mn_major, register):
        for cta, image in enumerate(images):
            part = codes[cta * per : (cta + 1) * per]
            if mn_major:
                value = image.mn_major(np.ascontiguousarray(part.T).view(np.uint8).reshape(k, -1), swizzle)
            else:
                value = image.k_major(pack_rows(part, dtype, aligned), swizzle)
        body.append(load_descriptor(register, value))

    if a_in_tmem:
        raw = pack_rows(a_codes, types[0], aligned).view(np.uint32)
        cta, lane, _ = accumulator_cells(m, n, group)
        for r in range(m):
            tmem[cta[r, 0], lane[r, 0], 256:264] = raw[r]
            if group == 2 and m == 128:
                tmem[cta[r, 0], lane[r, 0] + 64, 256:264] = raw[r]
    else:
        operand(a_codes, types[0], m // group, a_mn, "%a")
    operand(b_codes, types[1], n // group, b_mn, "%b")
    scale_operands = ""
    if block:
        a, b = a.copy(), b.copy()
        count = k // block
        for which, (values, rows, column) in enumerate(((a, m, 480), (b, n, 496))):
            codes = (
                rng.integers(0x30, 0x40, (rows, 4)).astype(np.uint8)
                if sf == "ue4m3"
                else rng.integers(124, 131, (rows, 4)).astype(np.uint8)
            )
            factor = (
                torch.from_numpy(codes).view(torch.float8_e4m3fn).double().numpy()
                if sf == "ue4m3"
                else 2.0 ** (codes.astype(float) - 127)
            )
            values *= np.repeat(factor[:, ids[which] : ids[which] + count], block, axis=1)
            halves = which == 1 and group == 2 and m == 128
            for cta, image in enumerate(images):
                part = codes[cta * rows // group : (cta + 1) * rows // group] if which == 0 else codes
                atoms = [half_partitions(image, part)] if halves else image.scale_atoms(part)
            shape = "64x128b.warpx2::01_23" if halves else "32x128b.warpx4"
            for i, atom in enumerate(atoms):
                body += [load_descriptor("%c", atom), f"  add.u32 %t, %tmem, {column + 4 * i};",
                         f"  tcgen05.cp.cta_group::{group}.{shape} [%t], %c;"]  # fmt: skip
        body.append("  add.u32 %u, %tmem, 480; add.u32 %v, %tmem, 496;")
        scale_operands = " [%u], [%v],"
    cells = accumulator_cells(m, n, group)
    start = rng.integers(-50, 50, (m, n)).astype(np.float64)
    bits = {"f32": lambda x: x.astype(np.float32).view(np.uint32), "s32": lambda x: x.astype(np.int64).astype(np.int32).view(np.uint32),
            "f16": lambda x: x.astype(np.float16).view(np.uint16).astype(np.uint32)}[acc]  # fmt: skip
    tmem[cells] = bits(start)
    a_operand = "[%j]" if a_in_tmem else "%a"
    body += ["  add.u32 %j, %tmem, 256;", f"  mov.b32 %idesc, {idesc};", f"  setp.eq.u32 %p0, 0, {0 if accumulate else 1};",
             f"  tcgen05.mma.cta_group::{group}.kind::{ptx_kind} [%tmem], {a_operand}, %b, %idesc,{scale_operands} %p0;"]  # fmt: skip
    out = run(kernel("\n".join(body), 65536, columns, group), [i.data for i in images], tmem, group, seed)
    expected = a @ b.T + (start if accumulate else 0)
    got = out.reshape(group, 128, columns)[cells]
    assert np.array_equal(got & (0xFFFF if acc == "f16" else 0xFFFFFFFF), bits(expected))


def dense_idesc(acc, a, b, m, n, a_mn=0, b_mn=0):
    return acc << 4 | a << 7 | b << 10 | a_mn << 15 | b_mn << 16 | n // 8 << 17 | m // 16 << 24


def scaled_idesc(a, b, m, n, ue8m0, ids=(0, 0)):
    return ids[1] << 4 | a << 7 | b << 10 | n // 8 << 17 | ue8m0 << 23 | m // 16 << 24 | ids[0] << 29


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("m, n, group", [(128, 256, 1), (64, 40, 1), (256, 256, 2), (128, 64, 2)])
def test_f16(m, n, group, seed):
    check_mma("f16", ("f16", "f16"), m, n, group, "f16", dense_idesc(1, 0, 0, m, n), seed=seed)


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize("a_mn, b_mn", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_bf16_majors(swizzle, a_mn, b_mn):
    check_mma(
        "f16", ("bf16", "bf16"), 128, 128, 1, "f16", dense_idesc(1, 1, 1, 128, 128, a_mn, b_mn), a_mn, b_mn, swizzle
    )


def test_f16_accumulator():
    check_mma("f16", ("f16", "f16"), 128, 64, 1, "f16", dense_idesc(0, 0, 0, 128, 64), acc="f16")


def test_no_accumulation():
    check_mma("f16", ("f16", "bf16"), 128, 64, 1, "f16", dense_idesc(1, 0, 1, 128, 64), accumulate=False)


@pytest.mark.parametrize("m, n, group", [(128, 128, 1), (64, 64, 1), (256, 128, 2), (128, 128, 2)])
def test_a_in_tensor_memory(m, n, group):
    check_mma("f16", ("f16", "f16"), m, n, group, "f16", dense_idesc(1, 0, 0, m, n), a_in_tmem=True)


def test_tf32():
    check_mma("tf32", ("tf32", "tf32"), 128, 64, 1, "tf32", dense_idesc(1, 2, 2, 128, 64))


@pytest.mark.parametrize("types", [("u8", "s8"), ("s8", "s8")])
def test_i8(types):
    codes = {"u8": 0, "s8": 1}
    check_mma("i8", types, 128, 64, 1, "i8", dense_idesc(2, codes[types[0]], codes[types[1]], 128, 64), acc="s32")


@pytest.mark.parametrize("types", [("e4m3", "e4m3"), ("e5m2", "e2m1"), ("e2m3", "e3m2"), ("e2m1", "e4m3")])
@pytest.mark.parametrize("swizzle", [32, 128])
def test_f8f6f4(types, swizzle):
    idesc = dense_idesc(1, F8F6F4[types[0]], F8F6F4[types[1]], 128, 64)
    check_mma("f8f6f4", types, 128, 64, 1, "f8f6f4", idesc, swizzle=swizzle)


@pytest.mark.parametrize("ids", [(0, 0), (1, 3), (2, 1)])
def test_mxf8f6f4(ids):
    idesc = scaled_idesc(0, 5, 128, 64, 1, ids)
    check_mma("mxf8f6f4", ("e4m3", "e2m1"), 128, 64, 1, "mxf8f6f4.block_scale", idesc, block=32, sf="ue8m0", ids=ids)


@pytest.mark.parametrize("ids", [(0, 0), (2, 0), (0, 2)])
def test_mxf4(ids):
    idesc = scaled_idesc(1, 1, 128, 128, 1, ids)
    check_mma(
        "mxf4", ("e2m1", "e2m1"), 128, 128, 1, "mxf4.block_scale.scale_vec::2X", idesc, block=32, sf="ue8m0", ids=ids
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("m, n, group", [(128, 256, 1), (128, 8, 1), (256, 256, 2), (256, 64, 2), (128, 192, 1)])
def test_nvfp4(m, n, group, seed):
    idesc = scaled_idesc(1, 1, m, n, 0)
    check_mma("mxf4nvf4", ("e2m1", "e2m1"), m, n, group, "mxf4nvf4.block_scale.block16", idesc, block=16, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_nvfp4_of_64_rows_per_cta(seed):
    idesc = scaled_idesc(1, 1, 128, 64, 0)
    check_mma("mxf4nvf4", ("e2m1", "e2m1"), 128, 64, 2, "mxf4nvf4.block_scale.block16", idesc, block=16, seed=seed)


def test_mxf8f6f4_pair():
    idesc = scaled_idesc(0, 5, 256, 64, 1, (2, 3))
    check_mma("mxf8f6f4", ("e4m3", "e2m1"), 256, 64, 2, "mxf8f6f4.block_scale", idesc, block=32, sf="ue8m0", ids=(2, 3))


# ---- loads and copies


def pattern(columns=512):
    lane, column = np.meshgrid(np.arange(128), np.arange(columns), indexing="ij")
    return (lane << 16 | column).astype(np.uint32)[None]


# CuTe's copy traits give the destination of thread t, register value v as bit offsets of a (rows, row bits) box: the
# strides of the thread modes and of the value modes for one repetition, rows of `width` columns.
LOAD_TRAITS = {
    "16x64b": ((2, 8, 0), (2, 0, 1), (8, 1, 0)), "16x128b": ((4, 0, 1), (8, 1, 0)), "16x256b": ((4, 0, 2), (8, 1, 0)),
}  # fmt: skip


@pytest.mark.parametrize("shape, repeat, pack", [
    ("32x32b", 1, False), ("32x32b", 64, False), ("32x32b", 8, True), ("16x64b", 1, False), ("16x64b", 16, False), ("16x64b", 4, True),
    ("16x128b", 2, False), ("16x256b", 1, False), ("16x256b", 8, False), ("16x256b", 2, True), ("16x32bx2", 4, False),
])  # fmt: skip
def test_load_shapes(shape, repeat, pack):
    """Every thread's registers, written to columns 256.. of its own lane, against CuTe's thread-value layouts."""
    per = {"32x32b": 1, "16x64b": 1, "16x128b": 2, "16x256b": 4, "16x32bx2": 1}[shape] * repeat
    regs = ", ".join(f"%r{i}" for i in range(per))
    half = "" if shape == "32x32b" else ", 1048576"  # every second half partition: lane + 16
    split = ", 32" if shape == "16x32bx2" else ""
    body = f"""  add.u32 %t, %tmem, %warplane; {"add.u32 %t, %t" + half + ";" if half else ""}
  tcgen05.ld.sync.aligned.{shape}.x{repeat}{".pack::16b" if pack else ""}.b32 {{{regs}}}, [%t]{split};
  tcgen05.wait::ld.sync.aligned;
  add.u32 %t, %tmem, %warplane; add.u32 %t, %t, 256;
  tcgen05.st.sync.aligned.32x32b.x{per if per & (per - 1) == 0 else 128}.b32 [%t], {{{regs}}};
  tcgen05.wait::st.sync.aligned;"""
    text = (
        kernel("", 2048, 512, commit=False)
        .replace("@!%leader bra ISSUED;", "")
        .replace("\nISSUED:", body + "\nISSUED:")
    )
    out = run(text, [np.zeros(2048, np.uint8)], pattern(), 1).reshape(128, 512)[:, 256 : 256 + per].astype(np.int64)
    for warp in range(4):
        for t in range(32):
            for r in range(per):
                if shape == "32x32b":
                    lane, column = t, r
                elif shape == "16x64b":
                    lane, column = 8 * (t % 2) + t // 4, t // 2 % 2 + 2 * r
                elif shape == "16x128b":
                    lane, column = t // 4 + 8 * (r % 2), t % 4 + 4 * (r // 2)
                elif shape == "16x256b":
                    lane, column = t // 4 + 8 * (r // 2 % 2), 2 * (t % 4) + r % 2 + 8 * (r // 4)
                else:
                    lane, column = t % 16, r + 32 * (t // 16)
                lane += 32 * warp + (16 if half else 0)
                expected = (2 * column & 0xFFFF) | (2 * column + 1) << 16 if pack else lane << 16 | column
                assert out[32 * warp + t, r] == expected, (shape, warp, t, r)


@pytest.mark.parametrize("name, lanes_of", [
    ("128x256b", lambda r: [r]), ("128x128b", lambda r: [r]), ("4x256b", lambda r: [32 * r]),
    ("64x128b.warpx2::02_13", lambda r: [r, r + 64]),
    ("64x128b.warpx2::01_23", lambda r: [r % 32 + 64 * (r // 32), r % 32 + 64 * (r // 32) + 32]),
    ("32x128b.warpx4", lambda r: [r, r + 32, r + 64, r + 96]),
])  # fmt: skip
def test_copies(name, lanes_of):
    rows = int(name.split("x")[0])
    length = 32 if "256b" in name else 16
    data = np.random.default_rng(rows).integers(0, 256, (max(rows, 8), length), dtype=np.uint8)
    image = Image(16384)
    body = (
        load_descriptor("%a", image.k_major(data, 0))
        + f"\n  add.u32 %t, %tmem, 64;\n  tcgen05.cp.cta_group::1.{name} [%t], %a;"
    )
    start = pattern(128)
    out = run(kernel(body, 16384, 128), [image.data], start, 1).reshape(128, 128)
    expected = start[0].copy()
    for r in range(rows):
        for lane in lanes_of(r):
            expected[lane, 64 : 64 + length // 4] = data[r].view(np.uint32)
    assert np.array_equal(out, expected)


def test_copy_unpacks_fp4_to_bytes():
    codes = np.random.default_rng(5).integers(0, 16, (128, 16)).astype(np.uint8)
    image = Image(16384)
    body = load_descriptor("%a", image.k_major(pack_rows(codes, "e2m1", True), 0))
    body += "\n  add.u32 %t, %tmem, 64;\n  tcgen05.cp.cta_group::1.128x128b.b8x16.b4x16_p64 [%t], %a;"
    out = run(kernel(body, 16384, 128), [image.data], pattern(128), 1).reshape(128, 128)[:, 64:68]
    assert np.array_equal(np.ascontiguousarray(out).view(np.uint8), codes << 2)


# ---- findings


def finding_kinds(ptx, images, tmem, group=1, seed=None):
    with pytest.raises(emulator.EmulatorError) as caught:
        run(ptx, images, tmem, group, seed)
    return {f.kind for f in caught.value.report.findings}


def simple_mma(extra_before="", extra_after=""):
    idesc = dense_idesc(1, 0, 0, 128, 64)
    image = Image(65536)
    rng = np.random.default_rng(0)
    a, b = small_codes("f16", (128, 16), rng)[0], small_codes("f16", (64, 16), rng)[0]
    body = [load_descriptor("%a", image.k_major(pack_rows(a, "f16", False), 128)),
            load_descriptor("%b", image.k_major(pack_rows(b, "f16", False), 128)), extra_before, f"  mov.b32 %idesc, {idesc};",
            "  setp.eq.u32 %p0, 0, 0;", "  tcgen05.mma.cta_group::1.kind::f16 [%tmem], %a, %b, %idesc, %p0;", extra_after]  # fmt: skip
    return "\n".join(body), image.data


def test_the_simple_kernel_is_right():
    body, image = simple_mma()
    for seed in SEEDS:
        run(kernel(body, 65536, 128), [image], np.zeros((1, 128, 128), np.uint32), 1, seed)


@pytest.mark.parametrize("change, kind", [
    (("fence.proxy.async.shared::cta;", ""), "MISSING_PROXY_FENCE"),
    (("  tcgen05.dealloc.cta_group::1.sync.aligned.b32 %tmem, 512;", ""), "TMEM_NOT_FREED"),
    (("sync.aligned.shared::cta.b32 [%slot], 512;", "sync.aligned.shared::cta.b32 [%slot], 32;"), "TMEM_UNALLOCATED"),
    (("sync.aligned.shared::cta.b32 [%slot], 512;", "sync.aligned.shared::cta.b32 [%slot], 48;"), "TCGEN05_OPERAND"),
    (("  tcgen05.wait::st.sync.aligned;", ""), "TMEM_RACE"),
    (("  mbarrier.try_wait.parity.shared::cta.b64 %q, [%bar], 0;", "  setp.eq.u32 %q, 0, 0;"), "TMEM_RACE"),
    (("%idesc, %p0", "%tmem, %p0"), "TCGEN05_OPERAND"),
    (("cta_group::1.kind", "cta_group::2.kind"), "TCGEN05_OPERAND"),
])  # fmt: skip
def test_faults_are_reported(change, kind):
    body, image = simple_mma()
    text = kernel(body, 65536, 128)
    assert change[0] in text
    text = text.replace(*change)
    tmem = np.zeros((1, 128, 128), np.uint32)
    found = set()
    for seed in (3, 4, 5, 6):
        try:
            run(text, [image], tmem, 1, seed)
        except emulator.EmulatorError as error:
            found |= {f.kind for f in error.report.findings}
    assert kind in found


def test_accumulating_into_fresh_columns_is_reported():
    body, image = simple_mma("  add.u32 %tmem, %tmem, 256;", "  sub.u32 %tmem, %tmem, 256;")
    assert "TMEM_UNINITIALISED" in finding_kinds(kernel(body, 65536, 128), [image], np.zeros((1, 128, 128), np.uint32))


def test_scale_factors_must_be_replicated():
    image = Image(65536)
    rng = np.random.default_rng(0)
    codes = [pack_rows(small_codes("e2m1", (rows, 64), rng)[0], "e2m1", False) for rows in (128, 64)]
    body = [load_descriptor(register, image.k_major(c, 128)) for register, c in zip(("%a", "%b"), codes, strict=True)]
    body += ["  add.u32 %u, %tmem, 64; add.u32 %v, %tmem, 68;", f"  mov.b32 %idesc, {scaled_idesc(1, 1, 128, 64, 0)};",
             "  setp.eq.u32 %p0, 0, 1;",
             "  tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16 [%tmem], %a, %b, %idesc, [%u], [%v], %p0;"]  # fmt: skip
    tmem = np.full((1, 128, 128), 0x38383838, np.uint32)
    run(kernel("\n".join(body), 65536, 128), [image.data], tmem, 1)
    tmem[0, 70, 65] = 0x38383839  # row 38 + 32 of SFA as partition 2 sees it
    assert "SCALE_FACTOR_REPLICATION" in finding_kinds(kernel("\n".join(body), 65536, 128), [image.data], tmem)
