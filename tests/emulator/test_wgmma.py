"""wgmma register and group rules (results bit for bit against the H200 are in the fixtures)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cutefp4 import emulator

N = 64
ACC = ", ".join(f"%d{i}" for i in range(N // 2))
KERNEL = f""".version 8.6
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 A, .param .u64 B, .param .u64 D)
{{
  .shared .align 1024 .b8 sa[2048];
  .shared .align 1024 .b8 sb[2048];
  .reg .b64 %a, %b, %d, %da, %db, %off;
  .reg .b32 %i, %t, %u, %v, %d<{N // 2}>, %r<4>;
  .reg .pred %p;
  ld.param.u64 %a, [A]; ld.param.u64 %b, [B]; ld.param.u64 %d, [D];
  mov.u32 %i, %tid.x;
  mul.wide.u32 %off, %i, 16; add.s64 %a, %a, %off; add.s64 %b, %b, %off; shl.b32 %v, %i, 4;
  mov.u32 %t, sa; add.u32 %u, %t, %v; ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%a]; st.shared.v4.b32 [%u], {{%r0, %r1, %r2, %r3}};
  shr.u32 %t, %t, 4; cvt.u64.u32 %da, %t; or.b64 %da, %da, {(1024 >> 4) << 16 | (128 >> 4) << 32};
  mov.u32 %t, sb; add.u32 %u, %t, %v; ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%b]; st.shared.v4.b32 [%u], {{%r0, %r1, %r2, %r3}};
  shr.u32 %t, %t, 4; cvt.u64.u32 %db, %t; or.b64 %db, %db, {(1024 >> 4) << 16 | (128 >> 4) << 32};
  fence.proxy.async.shared::cta;
  bar.sync 0;
  {"".join(f"mov.b32 %d{i}, 0; " for i in range(N // 2))}
  setp.eq.u32 %p, 0, 0;
  wgmma.fence.sync.aligned;
  wgmma.mma_async.sync.aligned.m64n{N}k16.f32.f16.f16 {{{ACC}}}, %da, %db, %p, 1, 1, 0, 0;
  wgmma.mma_async.sync.aligned.m64n{N}k16.f32.f16.f16 {{{ACC}}}, %da, %db, %p, 1, 1, 0, 0;
  wgmma.commit_group.sync.aligned;
  wgmma.wait_group.sync.aligned 0;
  mul.wide.u32 %off, %i, {N * 2}; add.s64 %d, %d, %off;
  {"".join(f"st.global.b32 [%d+{4 * i}], %d{i}; " for i in range(N // 2))}
  ret;
}}
"""
SEEDS = (None, 1, 2, 3, 4)


def launch(text: str, seed: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Both operands without swizzle: core matrices of 8 rows x 16 bytes, rows of K = 16 in two of them 1024 bytes apart."""
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-8, 9, (64, 16)).astype(np.float16) for _ in range(2))
    images = [torch.from_numpy(x.reshape(64, 2, 8).transpose(1, 0, 2).copy()) for x in (a, b)]
    out = torch.zeros(128, N // 2, dtype=torch.float32)
    with emulator.device("sm_90a", seed=seed) as dev:
        dev.launch_ptx(text, "k", (1, 1, 1), (128, 1, 1), [*images, out])
    t, i = np.meshgrid(np.arange(128), np.arange(N // 2), indexing="ij")
    d = np.zeros((64, N))
    d[16 * (t // 32) + t % 32 // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (t % 4) + i % 2] = out.numpy()
    return d, 2 * a.astype(np.float64) @ b.T.astype(np.float64)


@pytest.mark.parametrize("seed", SEEDS)
def test_right_kernel(seed):
    got, expected = launch(KERNEL, seed)
    assert np.array_equal(got, expected)


def kinds(text: str) -> set[str]:
    found: set[str] = set()
    for seed in SEEDS:
        try:
            launch(text, seed)
        except emulator.EmulatorError as error:
            found |= {f.kind for f in error.report.findings}
    return found


COMMIT = "  wgmma.commit_group.sync.aligned;\n"


@pytest.mark.parametrize("old, new, kind", [
    ("  wgmma.fence.sync.aligned;\n", "", "WGMMA_FENCE"),
    ("  wgmma.fence.sync.aligned;\n", "  wgmma.fence.sync.aligned;\n  add.f32 %d3, %d3, %d3;\n", "WGMMA_FENCE"),
    ("  wgmma.wait_group.sync.aligned 0;\n", "", "WGMMA_IN_FLIGHT"),
    ("  wgmma.wait_group.sync.aligned 0;\n", "  wgmma.wait_group.sync.aligned 1;\n", "WGMMA_IN_FLIGHT"),
    (COMMIT, COMMIT + "  mov.b32 %d0, 0;\n", "WGMMA_IN_FLIGHT"),
    (COMMIT, COMMIT + "  st.shared.b32 [%u], %r0;\n", "RACE_ASYNC_READ"),
    ("  fence.proxy.async.shared::cta;\n", "", "MISSING_PROXY_FENCE"),
    ("or.b64 %da, %da, ", f"or.b64 %da, %da, {1 << 49}; or.b64 %da, %da, ", "WGMMA_DESCRIPTOR"),
])  # fmt: skip
def test_fault_is_reported(old, new, kind):
    assert old in KERNEL
    assert kind in kinds(KERNEL.replace(old, new, 1))


def test_zeroing_below_the_fence_is_accepted():
    """Compilers move it there; the assembler takes care of the order."""
    assert (
        kinds(KERNEL.replace("  wgmma.fence.sync.aligned;\n", "  wgmma.fence.sync.aligned;\n  mov.b32 %d3, 0;\n"))
        == set()
    )


A_REGISTERS = KERNEL.replace("%da, %db, %p, 1, 1, 0, 0;", "{%r0, %r1, %r2, %r3}, %db, %p, 1, 1, 0;")


def test_a_from_registers():
    """Registers hold the last 16 bytes that each thread loaded (of B): finite numbers, and the same ones under every seed."""
    results = [launch(A_REGISTERS, seed)[0] for seed in SEEDS]
    assert all(np.array_equal(r, results[0]) for r in results[1:]) and np.abs(results[0]).max() > 0


def test_a_registers_overwritten_in_flight():
    assert "WGMMA_IN_FLIGHT" in kinds(A_REGISTERS.replace(COMMIT, COMMIT + "  mov.b32 %r2, 0;\n"))


def test_a_product_needs_all_four_warps():
    """One warp waits at a barrier for the others, which wait for the product that this warp has not issued."""
    fence = "  wgmma.fence.sync.aligned;\n"
    text = KERNEL.replace(
        fence, "  shr.u32 %t, %i, 5; setp.eq.u32 %p, %t, 3;\n  @%p bar.sync 1, 128;\n  setp.eq.u32 %p, 0, 0;\n" + fence
    )
    text = text.replace(
        "  wgmma.wait_group.sync.aligned 0;\n",
        "  wgmma.wait_group.sync.aligned 0;\n  @!%p bar.sync 1, 128;\n  bar.arrive 1, 128;\n",
    )
    assert kinds(text) == {"DEADLOCK"}
