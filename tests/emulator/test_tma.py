"""Tensor copies that the H200 fixtures do not have: packed and padded 4-bit types, gather4 and scatter4, patched tensor
maps, CTA pairs, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensor_maps import F16, F32, U4, U4_PADDED, U6_PADDED, U8, Map

from cutefp4 import emulator

SEEDS = (None, 1, 2, 3)
HEADER = ".version 8.8\n.target sm_100a\n.address_size 64\n"


def params(tensors: list) -> str:
    return ", ".join(f".param .u64 P{i}" for i in range(len(tensors)))


def load(m: Map, data: torch.Tensor, coords: tuple[int, ...], tx: int, tile: int, mode="tile", seed=None) -> np.ndarray:
    """Shared memory (tile bytes, first filled with 0xA5) after one load of the box at coords."""
    rank = len(m.dims)
    out = torch.zeros(tile, dtype=torch.uint8)
    text = (
        HEADER
        + f"""
.visible .entry k(.param .align 64 .b8 MAP[128], .param .u64 OUT, .param .u64 DATA)
{{
  .shared .align 1024 .b8 tile[{tile}];
  .shared .align 8 .b64 bar;
  .reg .b64 %map, %out, %off;
  .reg .b32 %i, %s, %b, %j, %v, %at;
  .reg .pred %p, %q;
  mov.b64 %map, MAP; cvta.param.u64 %map, %map; ld.param.u64 %out, [OUT];
  mov.u32 %i, %tid.x; mov.u32 %s, tile; mov.u32 %b, bar; setp.eq.u32 %p, %i, 0;
  @%p mbarrier.init.shared::cta.b64 [%b], 1;
  shl.b32 %j, %i, 2; mov.b32 %v, 0xa5a5a5a5;
FILL: setp.lt.u32 %q, %j, {tile}; @!%q bra FILLED;
  add.u32 %at, %s, %j; st.shared.b32 [%at], %v; add.u32 %j, %j, 512; bra FILL;
FILLED:
  fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;
  bar.sync 0;
  @!%p bra WAIT;
  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%b], {tx};
  cp.async.bulk.tensor.{rank}d.shared::cta.global.{mode}.mbarrier::complete_tx::bytes [%s], [%map, {{{", ".join(map(str, coords))}}}], [%b];
WAIT:
  mbarrier.try_wait.parity.shared::cta.b64 %q, [%b], 0; @!%q bra WAIT;
  shl.b32 %j, %i, 2;
OUT_: setp.lt.u32 %q, %j, {tile}; @!%q bra DONE;
  add.u32 %at, %s, %j; ld.shared.b32 %v, [%at]; cvt.u64.u32 %off, %j; add.s64 %off, %off, %out;
  st.global.b32 [%off], %v; add.u32 %j, %j, 512; bra OUT_;
DONE:
  ret;
}}
"""
    )
    with emulator.device("sm_100a", seed=seed) as dev:
        dev.launch_ptx(
            text, "k", (1, 1, 1), (128, 1, 1), [np.frombuffer(m.encode(data.data_ptr()), np.uint8), out, data]
        )
    return out.numpy()


def bytes_like(shape, seed=0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def swizzled(image: np.ndarray, row_bytes: int, kind: int) -> np.ndarray:
    """Rows of a box, one pitch apart, as they lie in shared memory."""
    out = np.zeros(image.size, np.uint8)
    flat = image.reshape(-1)
    for at in range(0, flat.size, 16):
        to = at ^ (at >> 7 & {0: 0, 1: 1, 2: 3, 3: 7}[kind]) << 4
        out[to : to + 16] = flat[at : at + 16]
    return out


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("swizzle", [0, 2, 3])
def test_packed_fp4(swizzle, seed):
    """Two elements to a byte, in global and shared memory; 96 bytes of a row lie outside and read as zero."""
    data = bytes_like((40, 160))
    inner = 128 if swizzle == 2 else 256
    got = load(
        Map((320, 40), (160,), (inner, 8), U4, swizzle), data, (256, 36), 8 * inner // 2, 8 * inner // 2, seed=seed
    )
    box = np.zeros((8, inner // 2), np.uint8)
    box[:4, :32] = data.numpy()[36:, 128:]
    assert np.array_equal(got, swizzled(box, inner // 2, swizzle))


@pytest.mark.parametrize("dtype, data_bytes", [(U4_PADDED, 8), (U6_PADDED, 12)])
def test_padded_groups(dtype, data_bytes):
    """16 elements take 16 bytes of shared memory; the barrier counts the packed bytes."""
    data = bytes_like((16, 16 * data_bytes))
    got = load(Map((256, 16), (16 * data_bytes,), (128, 8), dtype, 3), data, (128, 4), 8 * 8 * data_bytes, 1024)
    groups = data.numpy()[4:12, 8 * data_bytes :].reshape(8, 8, data_bytes)
    expected = np.concatenate([groups, np.zeros((8, 8, 16 - data_bytes), np.uint8)], -1)
    assert np.array_equal(got, swizzled(expected.reshape(8, 128), 128, 3))


@pytest.mark.parametrize("seed", SEEDS)
def test_gather4(seed):
    data = bytes_like((50, 128))
    rows = (7, 49, 0, 60)  # the last one is outside
    got = load(Map((128, 50), (128,), (64, 1), U8, 2), data, (64, *rows), 256, 256, "tile::gather4", seed=seed)
    expected = np.zeros((4, 64), np.uint8)
    for i, r in enumerate(rows[:3]):
        expected[i] = data.numpy()[r, 64:]
    assert np.array_equal(got, swizzled(expected, 64, 2))


STORE = (
    HEADER
    + """
.visible .entry k(.param .align 64 .b8 MAP[128], .param .u64 IN, .param .u64 OUT)
{{
  .shared .align 1024 .b8 tile[{size}];
  .reg .b64 %map, %in, %off;
  .reg .b32 %i, %s, %at, %v;
  .reg .pred %p;
  mov.b64 %map, MAP; cvta.param.u64 %map, %map; ld.param.u64 %in, [IN];
  mov.u32 %i, %tid.x; mov.u32 %s, tile; setp.eq.u32 %p, %i, 0;
  mul.wide.u32 %off, %i, 4; add.s64 %in, %in, %off; shl.b32 %at, %i, 2; add.u32 %at, %at, %s;
  ld.global.b32 %v, [%in]; st.shared.b32 [%at], %v;
  fence.proxy.async.shared::cta;
  bar.sync 0;
  @!%p bra DONE;
  {store}
  cp.async.bulk.commit_group;
  cp.async.bulk.wait_group 0;
DONE:
  ret;
}}
"""
)


@pytest.mark.parametrize("seed", SEEDS)
def test_scatter4(seed):
    data, out = bytes_like((256,)), torch.zeros(50, 64, dtype=torch.uint8)
    m = Map((64, 50), (64,), (64, 1), U8, 0)
    text = STORE.format(
        size=256,
        store="cp.async.bulk.tensor.2d.global.shared::cta.tile::scatter4.bulk_group [%map, {0, 3, 49, 70, 8}], [%s];",
    )
    with emulator.device("sm_100a", seed=seed) as dev:
        dev.launch_ptx(text, "k", (1, 1, 1), (64, 1, 1), [np.frombuffer(m.encode(out.data_ptr()), np.uint8), data, out])
    expected = np.zeros((50, 64), np.uint8)
    for i, row in enumerate((3, 49, None, 8)):
        if row is not None:
            expected[row] = data.numpy().reshape(4, 64)[i]
    assert np.array_equal(out.numpy(), expected)


REPLACE = (
    HEADER
    + """
.visible .entry k(.param .align 64 .b8 MAP[128], .param .u64 IN, .param .u64 OUT, .param .u64 SPACE)
{
  .shared .align 1024 .b8 tile[256];
  .shared .align 128 .b8 map_[128];
  .reg .b64 %map, %in, %off, %out, %space, %stride;
  .reg .b32 %i, %s, %at, %v, %m, %w;
  .reg .pred %p;
  mov.b64 %map, MAP; cvta.param.u64 %map, %map; ld.param.u64 %in, [IN]; ld.param.u64 %out, [OUT]; ld.param.u64 %space, [SPACE];
  mov.u32 %i, %tid.x; mov.u32 %s, tile; mov.u32 %m, map_; setp.eq.u32 %p, %i, 0;
  mul.wide.u32 %off, %i, 4; add.s64 %in, %in, %off; shl.b32 %at, %i, 2; add.u32 %at, %at, %s;
  ld.global.b32 %v, [%in]; st.shared.b32 [%at], %v;
  add.s64 %off, %off, %map; setp.lt.u32 %p, %i, 32; shl.b32 %at, %i, 2; add.u32 %at, %at, %m;
  @%p ld.b32 %w, [%off];
  @%p st.shared.b32 [%at], %w;
  fence.proxy.async.shared::cta;
  bar.sync 0;
  setp.eq.u32 %p, %i, 0; mov.b64 %stride, 128;
  @%p tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%m], %out;
  @%p tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%m], 0, 32;
  @%p tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%m], 1, 3;
  @%p tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%m], 0, %stride;
  bar.sync 0;
  setp.lt.u32 %p, %i, 32;
  @!%p bra DONE;
  tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%space], [%m], 128;
  fence.proxy.tensormap::generic.acquire.gpu [%space], 128;
  setp.eq.u32 %p, %i, 0;
  @!%p bra DONE;
  cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%space, {16, 1}], [%s];
  cp.async.bulk.commit_group;
  cp.async.bulk.wait_group 0;
DONE:
  ret;
}
"""
)


def test_patched_tensor_map():
    """A map patched in shared memory and copied to global memory stores to the tensor that it now describes."""
    data, out = bytes_like((256,)), torch.zeros(4, 128, dtype=torch.uint8)
    space = torch.zeros(256, dtype=torch.uint8)
    at = (-space.data_ptr()) % 128
    start = Map((4096, 4096), (4096,), (32, 8), U8)
    with emulator.device("sm_100a") as dev:
        dev.launch_ptx(
            REPLACE, "k", (1, 1, 1), (64, 1, 1), [np.frombuffer(start.encode(0x1000), np.uint8), data, out, space[at:]]
        )
    expected = np.zeros((4, 128), np.uint8)
    expected[1:3, 16:32] = data.numpy().reshape(8, 32)[:2, :16]  # dims are now 32 x 3
    assert np.array_equal(out.numpy(), expected)


PAIR = (
    HEADER
    + """
.visible .entry k(.param .align 64 .b8 MAP[128], .param .u64 OUT, .param .u64 DATA)
{
  .shared .align 1024 .b8 tile[512];
  .shared .align 8 .b64 bar;
  .reg .b64 %map, %out, %off;
  .reg .b32 %i, %s, %b, %at, %v, %rank, %row, %leader;
  .reg .pred %p, %q, %first;
  mov.b64 %map, MAP; cvta.param.u64 %map, %map; ld.param.u64 %out, [OUT];
  mov.u32 %i, %tid.x; mov.u32 %rank, %cluster_ctarank; mov.u32 %s, tile; mov.u32 %b, bar; setp.eq.u32 %p, %i, 0;
  @%p mbarrier.init.shared::cta.b64 [%b], 1;
  fence.mbarrier_init.release.cluster;
  barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
  setp.eq.and.u32 %first, %rank, 0, %p;
  @%first mbarrier.arrive.expect_tx.shared::cta.b64 _, [%b], 1024;
  and.b32 %leader, %b, 0xFEFFFFFF; shl.b32 %row, %rank, 3;
  @%p cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.cta_group::2 [%s], [%map, {0, %row}], [%leader];
  setp.ne.u32 %q, %rank, 0;
  @%q bra MEET;
WAIT:
  mbarrier.try_wait.parity.shared::cta.b64 %q, [%b], 0; @!%q bra WAIT;
MEET:
  barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
  shl.b32 %at, %i, 2; add.u32 %at, %at, %s; ld.shared.b32 %v, [%at];
  mad.lo.u32 %row, %rank, 128, %i; mul.wide.u32 %off, %row, 4; add.s64 %off, %off, %out; st.global.b32 [%off], %v;
  ret;
}
"""
)


@pytest.mark.parametrize("seed", SEEDS)
def test_pair_signals_the_even_cta(seed):
    data, out = bytes_like((16, 64)), torch.zeros(16, 64, dtype=torch.uint8)
    m = Map((64, 16), (64,), (64, 8), U8, 0)
    with emulator.device("sm_100a", seed=seed) as dev:
        dev.launch_ptx(
            PAIR,
            "k",
            (2, 1, 1),
            (128, 1, 1),
            [np.frombuffer(m.encode(data.data_ptr()), np.uint8), out, data],
            cluster=(2, 1, 1),
        )
    assert torch.equal(out, data)


def finding(run) -> emulator.report.Finding:
    with pytest.raises(emulator.EmulatorError) as caught:
        run()
    return caught.value.report.findings[0]


def test_load_beyond_the_allocation():
    data = bytes_like((16, 64))
    found = finding(lambda: load(Map((64, 160000), (64,), (64, 8), U8), data, (0, 159000), 512, 512))
    assert found.kind == "OUT_OF_BOUNDS_GLOBAL"


def test_wrong_transaction_count_hangs_with_a_report():
    data = bytes_like((16, 64))
    found = finding(lambda: load(Map((64, 16), (64,), (64, 8), U8), data, (0, 0), 528, 512))
    assert found.kind == "DEADLOCK"


@pytest.mark.parametrize("m, words", [
    (Map((64, 16), (64,), (64, 8), F16), "wider"), (Map((64,), (), (64,), U8), "dimensionality"),
])  # fmt: skip
def test_refused_maps(m, words):
    data = bytes_like((16, 128))
    if words == "wider":
        m = Map((64, 16), (128,), (64, 8), F32, 1)
    else:
        m = Map((64, 16, 1), (64, 1024), (64, 8, 1), U8)
    rank_two = Map(m.dims[:2], m.strides[:1], m.box[:2], m.dtype, m.swizzle)
    encode = m.encode(data.data_ptr())

    class Fixed:
        dims = rank_two.dims

        @staticmethod
        def encode(address):
            return encode

    found = finding(lambda: load(Fixed, data, (0, 0), 512, 2048))
    assert found.kind == "TENSORMAP" and words in found.message


def test_im2col_is_named():
    data = bytes_like((16, 64))
    with pytest.raises(emulator.EmulatorError, match="im2col"):
        load(Map((64, 16), (64,), (64, 8), U8), data, (0, 0), 512, 512, "im2col")


LATE = (
    HEADER
    + """
.visible .entry k(.param .align 64 .b8 MAP[128], .param .u64 DATA)
{
  .shared .align 1024 .b8 tile[512];
  .shared .align 8 .b64 bar;
  .reg .b64 %map;
  .reg .b32 %i, %s, %b, %rank;
  .reg .b16 %both;
  .reg .pred %p, %q;
  mov.b64 %map, MAP; cvta.param.u64 %map, %map; mov.b16 %both, 3;
  mov.u32 %i, %tid.x; mov.u32 %rank, %cluster_ctarank; mov.u32 %s, tile; mov.u32 %b, bar; setp.eq.u32 %p, %i, 0;
  @%p mbarrier.init.shared::cta.b64 [%b], 1;
  fence.mbarrier_init.release.cluster;
  @%p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%b], 512;
  barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
  setp.ne.u32 %q, %rank, 0;
  @%q bra DONE;
  @%p cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%s], [%map, {0, 0}], [%b], %both;
WAIT:
  mbarrier.try_wait.parity.shared::cta.b64 %q, [%b], 0; @!%q bra WAIT;
DONE:
  ret;
}
"""
)


def test_multicast_to_a_cta_that_left():
    data = bytes_like((16, 64))
    m = np.frombuffer(Map((64, 16), (64,), (64, 8), U8).encode(data.data_ptr()), np.uint8)

    def run(text, seed):
        with emulator.device("sm_100a", seed=seed) as dev:
            dev.launch_ptx(text, "k", (2, 1, 1), (32, 1, 1), [m, data], cluster=(2, 1, 1))

    right = LATE.replace("  @%q bra DONE;\n", "  @%q bra WAIT;\n")
    for seed in SEEDS:
        run(right, seed)
    kinds = set()
    for seed in range(1, 9):
        try:
            run(LATE, seed)
        except emulator.EmulatorError as error:
            kinds |= {f.kind for f in error.report.findings}
    assert "REMOTE_EXITED" in kinds
