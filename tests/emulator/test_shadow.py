"""The race detector of shared memory: each fault is reported under seeds that delay copies, the right kernel never."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensor_maps import F16, Map

from cutefp4 import emulator

SEEDS = tuple(range(1, 9))
HEADER = ".version 8.6\n.target sm_90a\n.address_size 64\n"

# One CTA loads a 64 x 64 f16 tile, adds 1 to every element with ordinary loads and stores, and stores the tile.
COPY = (
    HEADER
    + """
.visible .entry k(.param .align 64 .b8 MAPIN[128], .param .align 64 .b8 MAPOUT[128], .param .u64 IN, .param .u64 OUT)
{
  .shared .align 1024 .b8 tile[8192];
  .shared .align 8 .b64 bar;
  .reg .b64 %in, %out;
  .reg .b32 %i, %s, %b, %at, %v, %one;
  .reg .pred %p, %q;
  mov.b64 %in, MAPIN; cvta.param.u64 %in, %in; mov.b64 %out, MAPOUT; cvta.param.u64 %out, %out;
  mov.u32 %i, %tid.x; mov.u32 %s, tile; mov.u32 %b, bar; setp.eq.u32 %p, %i, 0; mov.b32 %one, 0x3c003c00;
  @%p mbarrier.init.shared::cta.b64 [%b], 1;
  fence.mbarrier_init.release.cluster;
  bar.sync 0;
  @!%p bra WAIT;
  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%b], 8192;
  cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%s], [%in, {0, 0}], [%b];
WAIT:
  mbarrier.try_wait.parity.shared::cta.b64 %q, [%b], 0; @!%q bra WAIT;
  shl.b32 %at, %i, 2; add.u32 %at, %at, %s; mov.b32 %i, 0;
ADD:
  ld.shared.b32 %v, [%at]; add.rn.f16x2 %v, %v, %one; st.shared.b32 [%at], %v;
  add.u32 %at, %at, 512; add.u32 %i, %i, 1; setp.lt.u32 %q, %i, 16; @%q bra ADD;
  fence.proxy.async.shared::cta;
  bar.sync 0;
  @!%p bra DONE;
  cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%out, {0, 0}], [%s];
  cp.async.bulk.commit_group;
  cp.async.bulk.wait_group.read 0;
DONE:
  bar.sync 0;
  add.u32 %at, %at, -8192;
  st.shared.b32 [%at], %v;
  ret;
}
"""
)


def launch(text: str, seed: int | None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    data = torch.from_numpy(rng.integers(-8, 8, (64, 64)).astype(np.float16))
    out = torch.zeros(64, 64, dtype=torch.float16)
    maps = [
        np.frombuffer(Map((64, 64), (128,), (64, 64), F16, 3).encode(t.data_ptr()), np.uint8).copy()
        for t in (data, out)
    ]
    with emulator.device("sm_90a", seed=seed) as dev:
        dev.launch_ptx(text, "k", (1, 1, 1), (128, 1, 1), [*maps, data, out])
    return data.numpy(), out.numpy()


def kinds(text: str) -> set[str]:
    found: set[str] = set()
    for seed in SEEDS:
        try:
            launch(text, seed)
        except emulator.EmulatorError as error:
            found |= {f.kind for f in error.report.findings}
    return found


@pytest.mark.parametrize("seed", [None, *SEEDS])
def test_right_kernel(seed):
    data, out = launch(COPY, seed)
    assert np.array_equal(out, data + 1)


WAIT = "  mbarrier.try_wait.parity.shared::cta.b64 %q, [%b], 0; @!%q bra WAIT;\n"


@pytest.mark.parametrize("old, new, kind", [
    (WAIT, "", "RACE_ASYNC_WRITE"),
    ("  cp.async.bulk.wait_group.read 0;\n", "", "RACE_ASYNC_READ"),
    ("  fence.proxy.async.shared::cta;\n", "", "MISSING_PROXY_FENCE"),
    ("  fence.proxy.async.shared::cta;\n  bar.sync 0;\n", "  bar.sync 0;\n", "MISSING_PROXY_FENCE"),
    ("[%in, {0, 0}], [%b];", "[%in, {0, 0}], [%b];\n  cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%s], [%in, {0, 0}], [%b];",
     "RACE_ASYNC_WRITE"),
    ("[%in, {0, 0}]", "[%in, {1, 0}]", "TENSORMAP"),
    ("[%out, {0, 0}]", "[%out, {0, -1}]", "TMA_OPERAND"),
    ("mov.u32 %s, tile;", "mov.u32 %s, tile; add.u32 %s, %s, 16;", "TMA_OPERAND"),
    ("  fence.mbarrier_init.release.cluster;\n  bar.sync 0;", "", "MBARRIER_NOT_FENCED"),
])  # fmt: skip
def test_fault_is_reported(old, new, kind):
    assert old in COPY
    assert kind in kinds(COPY.replace(old, new, 1))


@pytest.mark.parametrize("fence_after_barrier", [False, True])
def test_fence_may_stand_on_either_side_of_the_barrier(fence_after_barrier):
    text = COPY
    if fence_after_barrier:
        text = text.replace(
            "  fence.proxy.async.shared::cta;\n  bar.sync 0;", "  bar.sync 0;\n  fence.proxy.async.shared::cta;"
        )
    assert kinds(text) == set()


def test_uninitialised_read():
    text = COPY.replace(
        "  bar.sync 0;\n  @!%p bra WAIT;", "  ld.shared.b32 %v, [%s];\n  bar.sync 0;\n  @!%p bra WAIT;", 1
    )
    assert "UNINITIALISED_SHARED" in kinds(text)


def test_report_names_both_instructions():
    with pytest.raises(emulator.EmulatorError) as caught:
        for seed in SEEDS:
            launch(COPY.replace(WAIT, ""), seed)
    lines = COPY.replace(WAIT, "").split("\n")
    found = next(f for f in caught.value.report.findings if f.kind == "RACE_ASYNC_WRITE")
    load = next(i for i, line in enumerate(lines, 1) if "global.tile.mbarrier" in line)
    assert f"PTX line {load}" in found.message and "mbarrier" in found.message
    assert "ld.shared" in lines[found.line - 1]
