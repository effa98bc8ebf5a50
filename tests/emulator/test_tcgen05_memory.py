"""Tensor memory: allocation rules, shifts, reducing loads, and the lesser operands of tcgen05.mma."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tcgen05_kernels import Image, kernel, load_descriptor
from test_tcgen05 import dense_idesc, pack_rows, run, small_codes

from cutefp4 import emulator

HEADER = ".version 8.8\n.target sm_100a\n.address_size 64\n"


def mma(instruction: str, tmem: np.ndarray, setup: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Accumulator after one f16 mma of M = 128, N = 64 at column 0, and A B^T."""
    rng = np.random.default_rng(3)
    (a_codes, a), (b_codes, b) = small_codes("f16", (128, 16), rng), small_codes("f16", (64, 16), rng)
    image = Image(65536)
    body = [load_descriptor("%a", image.k_major(pack_rows(a_codes, "f16", False), 128)),
            load_descriptor("%b", image.k_major(pack_rows(b_codes, "f16", False), 64)),
            f"  mov.b32 %idesc, {dense_idesc(1, 0, 0, 128, 64)};", "  setp.eq.u32 %p0, 0, 0;", setup, instruction]  # fmt: skip
    out = run(kernel("\n".join(body), 65536, 128), [image.data], tmem, 1)
    return out.reshape(128, 128).view(np.float32)[:, :64], a @ b.T


def start() -> np.ndarray:
    return np.random.default_rng(4).integers(-64, 64, (1, 128, 128)).astype(np.float32).view(np.uint32)


LANES_OF_THE_WARP = "shl.b32 %warplane, %warp, 21;"


def test_a_warp_reads_its_own_lanes_if_the_address_names_none():
    """As DeepGEMM's epilogues do: the hardware ignores the bits of the address that say which 32 lanes."""
    text, before = kernel("", 2048, 128), start()
    stored = text.replace("ld.param.u64 %row, [TMEM];", "ld.param.u64 %row, [TMEM]; mov.b32 %warplane, 0;", 1)
    assert LANES_OF_THE_WARP in text
    out = run(stored.replace(LANES_OF_THE_WARP, ""), [np.zeros(2048, np.uint8)], before, 1)
    assert np.array_equal(out.reshape(128, 128), before[0])


def test_a_warp_may_not_name_the_lanes_of_another():
    text = kernel("", 2048, 128).replace(
        LANES_OF_THE_WARP, "xor.b32 %warplane, %warp, 1; shl.b32 %warplane, %warplane, 21;"
    )
    with pytest.raises(emulator.KernelFault, match="lane 64: warp 3 may only access lanes 96..127"):
        run(text, [np.zeros(2048, np.uint8)], start(), 1)


def test_disabled_lanes_keep_their_values():
    masks = [0x0000FFFF, 0, 0x80000001, 0xFFFFFFFF]
    setup = "".join(f"  mov.b32 %r{i}, {mask};\n" for i, mask in enumerate(masks))
    before = start()
    got, product = mma(
        "  tcgen05.mma.cta_group::1.kind::f16 [%tmem], %a, %b, %idesc, {%r0, %r1, %r2, %r3}, %p0;", before, setup
    )
    expected = before[0].view(np.float32)[:, :64] + product
    off = np.array([masks[lane // 32] >> lane % 32 & 1 for lane in range(128)], bool)
    expected[off] = before[0].view(np.float32)[off, :64]
    assert np.array_equal(got, expected)


def test_scaled_input_accumulator():
    before = start()
    got, product = mma("  tcgen05.mma.cta_group::1.kind::f16 [%tmem], %a, %b, %idesc, %p0, 3;", before)
    assert np.array_equal(got, before[0].view(np.float32)[:, :64] / 8 + product)


@pytest.mark.parametrize("negate, sign", [(1 << 13, -1), (1 << 14, -1), (3 << 13, 1)])
def test_negated_operands(negate, sign):
    got, product = mma(
        "  tcgen05.mma.cta_group::1.kind::f16 [%tmem], %a, %b, %idesc, %p0;",
        start(),
        f"  or.b32 %idesc, %idesc, {negate};",
    )
    assert np.array_equal(got, start()[0].view(np.float32)[:, :64] + sign * product)


def test_shift_moves_eight_columns_down_in_each_partition():
    before = np.arange(128 * 128, dtype=np.uint32).reshape(1, 128, 128)
    out = run(
        kernel("  add.u32 %t, %tmem, 16;\n  tcgen05.shift.cta_group::1.down [%t];", 2048, 128),
        [np.zeros(2048, np.uint8)],
        before,
        1,
    )
    expected = before[0].copy()
    for lane in range(128):
        if lane % 32 != 31:
            expected[lane, 16:24] = before[0][lane + 1, 16:24]
    assert np.array_equal(out.reshape(128, 128), expected)


@pytest.mark.parametrize("modifiers, function", [
    ("min.f32", lambda x: x.min(1)), ("max.f32", lambda x: x.max(1)), ("max.abs.f32", lambda x: np.abs(x).max(1)),
])  # fmt: skip
def test_reducing_load(modifiers, function):
    before = start()
    regs = ", ".join(f"%r{i}" for i in range(32))
    body = f"""  add.u32 %t, %tmem, %warplane;
  tcgen05.ld.red.sync.aligned.32x32b.x32.{modifiers} {{{regs}}}, %v, [%t];
  tcgen05.wait::ld.sync.aligned;
  add.u32 %t, %t, 127;
  tcgen05.st.sync.aligned.32x32b.x1.b32 [%t], {{%v}};
  tcgen05.wait::st.sync.aligned;"""
    text = (
        kernel("", 2048, 128, commit=False)
        .replace("@!%leader bra ISSUED;", "")
        .replace("\nISSUED:", body + "\nISSUED:")
    )
    out = run(text, [np.zeros(2048, np.uint8)], before, 1).reshape(128, 128)
    assert np.array_equal(out[:, 127].copy().view(np.float32), function(before[0].view(np.float32)[:, :32]))


def allocator(second: str, first_columns: int = 512, dealloc: str = "") -> str:
    """Two warps: the first allocates, waits at barrier 1 and frees; the second allocates in between."""
    return (
        HEADER
        + f"""
.visible .entry k(.param .u64 OUT)
{{
  .shared .align 4 .b32 slot[2];
  .reg .b64 %out;
  .reg .b32 %i, %warp, %s, %t, %u;
  .reg .pred %p;
  ld.param.u64 %out, [OUT]; mov.u32 %i, %tid.x; shr.u32 %warp, %i, 5; mov.u32 %s, slot;
  setp.ne.u32 %p, %warp, 0;
  @%p bra SECOND;
  tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%s], {first_columns};
  {dealloc}
  bar.sync 1, 64;
  ld.shared.b32 %t, [%s];
  tcgen05.dealloc.cta_group::1.sync.aligned.b32 %t, {first_columns};
  ret;
SECOND:
  {second}
  ret;
}}
"""
    )


WAITING = """bar.arrive 1, 64;
  tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%s+4], 256;
  ld.shared.b32 %u, [%s+4];
  st.global.b32 [%out], %u;
  tcgen05.dealloc.cta_group::1.sync.aligned.b32 %u, 256;"""


def launch(text: str, seed: int | None = None) -> torch.Tensor:
    out = torch.full((1,), -1, dtype=torch.int32)
    with emulator.device("sm_100a", seed=seed) as dev:
        dev.launch_ptx(text, "k", (1, 1, 1), (64, 1, 1), [out])
    return out


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_alloc_waits_for_columns(seed):
    assert launch(allocator(WAITING), seed).item() >= 0


@pytest.mark.parametrize("text, kind", [
    (allocator(WAITING.replace("bar.arrive 1, 64;", "").replace("[%s+4], 256;", "[%s+4], 256;\n  bar.arrive 1, 64;")), "DEADLOCK"),
    (allocator(WAITING, dealloc="tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;\n  "
               "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%s], 32;", first_columns=256), "TMEM_ALLOC_STARVED"),
    (allocator(WAITING, first_columns=384), "TCGEN05_OPERAND"),
    (allocator("bar.arrive 1, 64;", 256).replace("b32 %t, 256", "b32 %t, 128"), "TCGEN05_OPERAND"),
    (allocator("bar.arrive 1, 64; mov.b32 %u, 0; tcgen05.dealloc.cta_group::2.sync.aligned.b32 %u, 512;"), "TCGEN05_OPERAND"),
])  # fmt: skip
def test_allocation_faults(text, kind):
    with pytest.raises(emulator.EmulatorError) as caught:
        launch(text)
    assert kind in {f.kind for f in caught.value.report.findings}


def test_deadlock_names_the_allocation():
    text = allocator(
        WAITING.replace("bar.arrive 1, 64;", "").replace("[%s+4], 256;", "[%s+4], 256;\n  bar.arrive 1, 64;")
    )
    with pytest.raises(emulator.EmulatorError, match=r"tcgen05\.alloc"):
        launch(text)
