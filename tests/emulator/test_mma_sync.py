"""mma.sync with block scales, and small formats: layouts in the words of the PTX figures, sums in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cutefp4 import emulator

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def run_warp(instruction: str, a_regs, b_regs, c_regs, scales=None) -> np.ndarray:
    """Registers (32, count) of one warp through `instruction` with %a*, %b*, %c*, %sa, %sb; returns D (32, 4)."""
    scales = np.zeros((32, 2), np.uint32) if scales is None else scales
    words = np.concatenate([np.ascontiguousarray(x).view(np.uint32) for x in (a_regs, b_regs, c_regs, scales)], axis=1)
    names = [f"%a{i}" for i in range(a_regs.shape[1])] + [f"%b{i}" for i in range(b_regs.shape[1])]
    names += [f"%c{i}" for i in range(4)] + ["%sa", "%sb"]
    loads = "".join(f"  ld.global.b32 {name}, [%in+{4 * i}];\n" for i, name in enumerate(names))
    text = f""".version 8.8
.target sm_120a
.address_size 64
.visible .entry k(.param .u64 IN, .param .u64 OUT)
{{
  .reg .b64 %in, %out, %off;
  .reg .b32 %i, %a<4>, %b<2>, %c<4>, %d<4>, %sa, %sb;
  ld.param.u64 %in, [IN]; ld.param.u64 %out, [OUT]; mov.u32 %i, %tid.x;
  mul.wide.u32 %off, %i, {4 * words.shape[1]}; add.s64 %in, %in, %off;
  mul.wide.u32 %off, %i, 16; add.s64 %out, %out, %off;
{loads}  {instruction}
  st.global.v4.b32 [%out], {{%d0, %d1, %d2, %d3}};
  ret;
}}
"""
    out = torch.zeros(32, 4, dtype=torch.int32)
    with emulator.device("sm_100a") as dev:
        dev.launch_ptx(text, "k", (1, 1, 1), (32, 1, 1), [torch.from_numpy(words.view(np.int32).copy()), out])
    return out.numpy().view(np.float32)


def a_registers(rows: np.ndarray) -> np.ndarray:
    """rows (16, bytes along K) to (32, registers)."""
    return np.stack([np.stack([rows[t // 4 + 8 * (i % 2), 4 * (t % 4) + 16 * (i // 2) :][:4] for i in range(rows.shape[1] // 8)])
                     for t in range(32)]).reshape(32, -1).view(np.uint32)  # fmt: skip


def b_registers(rows: np.ndarray) -> np.ndarray:
    return np.stack([np.stack([rows[t // 4, 4 * (t % 4) + 16 * i :][:4] for i in range(rows.shape[1] // 16)])
                     for t in range(32)]).reshape(32, -1).view(np.uint32)  # fmt: skip


def accumulator(registers: np.ndarray) -> np.ndarray:
    d = np.zeros((16, 8))
    for t in range(32):
        for i in range(4):
            d[t // 4 + 8 * (i // 2), 2 * (t % 4) + i % 2] = registers[t, i]
    return d


def scatter(c: np.ndarray) -> np.ndarray:
    return np.array([[c[t // 4 + 8 * (i // 2), 2 * (t % 4) + i % 2] for i in range(4)] for t in range(32)], np.float32)


def scale_values(codes, sf):
    return (
        torch.from_numpy(codes).view(torch.float8_e4m3fn).double().numpy()
        if sf == "ue4m3"
        else 2.0 ** (codes.astype(float) - 127)
    )


@pytest.mark.parametrize("kind, vector, sf, count", [
    ("mxf4", ".scale_vec::2X", "ue8m0", 2), ("mxf4nvf4", ".scale_vec::2X", "ue8m0", 2),
    ("mxf4nvf4", ".scale_vec::4X", "ue4m3", 4), ("mxf8f6f4", ".scale_vec::1X", "ue8m0", 1),
])  # fmt: skip
@pytest.mark.parametrize("threads", [(0, 0), (1, 3), (0, 2)])
def test_block_scaled(kind, vector, sf, count, threads):
    rng = np.random.default_rng(count)
    k = 32 if kind == "mxf8f6f4" else 64
    codes = rng.integers(0, 16, (24, k)).astype(np.uint8)
    values = E2M1[codes]
    rows = codes << 2 if k == 32 else codes[:, 0::2] | codes[:, 1::2] << 4
    byte = {1: 3, 2: 2, 4: 0}[count]
    scale_codes = (rng.integers(0x30, 0x40, (24, 4)) if sf == "ue4m3" else rng.integers(124, 131, (24, 4))).astype(
        np.uint8
    )
    factors = np.repeat(scale_values(scale_codes, sf)[:, byte : byte + count], k // count, axis=1)
    words = rng.integers(0, 2**32, (32, 2), dtype=np.uint32)  # threads that are not selected hold anything
    packed = np.ascontiguousarray(scale_codes).view(np.uint32)[:, 0]
    for g in range(8):
        for h in range(2):
            words[4 * g + 2 * threads[0] + h, 0] = packed[g + 8 * h]
        words[4 * g + threads[1], 1] = packed[16 + g]
    c = rng.integers(-20, 20, (16, 8)).astype(np.float64)
    shape = f"m16n8k{k}"
    text = (f"mma.sync.aligned.{shape}.row.col.kind::{kind}.block_scale{vector}.f32.e2m1.e2m1.f32.{sf} {{%d0, %d1, %d2, %d3}}, "
            f"{{%a0, %a1, %a2, %a3}}, {{%b0, %b1}}, {{%c0, %c1, %c2, %c3}}, {{%sa}}, {{{byte}, {threads[0]}}}, {{%sb}}, {{{byte}, {threads[1]}}};")  # fmt: skip
    out = run_warp(text, a_registers(rows[:16]), b_registers(rows[16:]), scatter(c), words)
    expected = (values * factors)[:16] @ (values * factors)[16:].T + c
    assert np.array_equal(accumulator(out), expected)


@pytest.mark.parametrize("types", [("e4m3", "e5m2"), ("e2m1", "e4m3"), ("e3m2", "e2m3")])
def test_f8f6f4(types):
    rng = np.random.default_rng(9)
    rows, values = [], []
    for dtype, count in zip(types, (16, 8), strict=True):
        if dtype == "e2m1":
            codes = rng.integers(0, 16, (count, 32)).astype(np.uint8)
            rows.append(codes << 2)
            values.append(E2M1[codes])
        elif dtype in ("e4m3", "e5m2"):
            v = rng.integers(-7, 8, (count, 32)) * 0.5
            values.append(v)
            rows.append(
                torch.from_numpy(v)
                .to(torch.float8_e4m3fn if dtype == "e4m3" else torch.float8_e5m2)
                .view(torch.uint8)
                .numpy()
            )
        else:  # integers 1, 2, 3 exist in both 6-bit formats
            v = rng.integers(1, 4, (count, 32)).astype(float)
            table = {"e2m3": {1: 0b001000, 2: 0b010000, 3: 0b010100}, "e3m2": {1: 0b001100, 2: 0b010000, 3: 0b010010}}[
                dtype
            ]
            values.append(v)
            rows.append(np.vectorize(table.get)(v).astype(np.uint8))
    text = (f"mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.{types[0]}.{types[1]}.f32 {{%d0, %d1, %d2, %d3}}, "
            "{%a0, %a1, %a2, %a3}, {%b0, %b1}, {%c0, %c1, %c2, %c3};")  # fmt: skip
    out = run_warp(text, a_registers(rows[0]), b_registers(rows[1]), np.zeros((32, 4), np.float32))
    assert np.array_equal(accumulator(out), values[0] @ values[1].T)


def test_bad_byte_id_is_an_error():
    zero = np.zeros((32, 4), np.uint32)
    text = ("mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0 {%d0, %d1, %d2, %d3}, "
            "{%a0, %a1, %a2, %a3}, {%b0, %b1}, {%c0, %c1, %c2, %c3}, {%sa}, {1, 0}, {%sb}, {0, 0};")  # fmt: skip
    with pytest.raises(emulator.EmulatorError) as caught:
        run_warp(text, zero, zero[:, :2], zero)
    assert caught.value.report.findings[0].kind == "MMA_OPERAND"


@pytest.mark.parametrize("instruction, words", [
    ("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64", "m16n8kK"),
    ("mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32", "dense"),
    ("mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue8m0", "scales per row"),
])  # fmt: skip
def test_unknown_forms_are_named(instruction, words):
    zero = np.zeros((32, 4), np.uint32)
    operands = " {%d0, %d1, %d2, %d3}, {%a0, %a1, %a2, %a3}, {%b0, %b1}, {%c0, %c1, %c2, %c3};"
    with pytest.raises(emulator.EmulatorError, match=words):
        run_warp(instruction + operands, zero, zero[:, :2], zero)
