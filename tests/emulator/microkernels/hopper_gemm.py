"""A small persistent sm_90a GEMM in plain PTX: D (M, N) = A (M, K) B (N, K)^T in f16, float32 sums.

Clusters of two CTAs share one 64-column strip of D: CTA r of a cluster computes rows (2 p + r) 64 .. + 63, each loads
its own A tile and half of the common B tile, which it multicasts to both. Warp 4 is the producer (TMA), warps 0-3 are
the consumer warpgroup (wgmma from a three-stage ring, stores by stmatrix and TMA).

    full[s]   1 arrival (the own producer, with 16384 bytes expected: A 8192 and two halves of B)
    empty[s]  8 arrivals (four consumer warps of both CTAs: the stage is overwritten in both)

It is written to be read, and to be broken: the mutation tests change one line of it at a time.
"""

from __future__ import annotations

import numpy as np

from .inputs import small_floats
from .kernel import Buffer, Microkernel, TensorMap
from .lanewise import HEADER

STAGES = 3
TILE_M, TILE_N, TILE_K = 64, 64, 64
A_BYTES, B_BYTES = TILE_M * TILE_K * 2, TILE_N * TILE_K * 2
B_AT = STAGES * A_BYTES
D_AT = B_AT + STAGES * B_BYTES
SMEM = D_AT + TILE_M * TILE_N * 2
DESCRIPTOR = (1 << 16) | (1024 >> 4) << 32 | 1 << 62
"""K-major, 128-byte swizzle, 1024 bytes from one group of eight rows to the next; the address is added at run time."""


def _advance(label: str) -> str:
    """Next stage of the ring; the parity flips when it wraps."""
    return f"""  add.u32 %stage, %stage, 1; setp.lt.u32 %q, %stage, {STAGES};
  @%q bra {label};
  mov.b32 %stage, 0; xor.b32 %parity, %parity, 1;
{label}:"""


def ptx() -> str:
    acc = ", ".join(f"%d{i}" for i in range(32))
    mmas = "\n".join(
        f"""  add.s64 %da, %da0, {2 * step}; add.s64 %db, %db0, {2 * step};
  wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {{{acc}}}, %da, %db, %acc, 1, 1, 0, 0;
  setp.eq.u32 %acc, 0, 0;"""
        for step in range(TILE_K // 16)
    )
    stores = "\n".join(
        f"""  cvt.rn.f16x2.f32 %h0, %d{4 * j + 1}, %d{4 * j}; cvt.rn.f16x2.f32 %h1, %d{4 * j + 3}, %d{4 * j + 2};
  cvt.rn.f16x2.f32 %h2, %d{4 * j + 5}, %d{4 * j + 4}; cvt.rn.f16x2.f32 %h3, %d{4 * j + 7}, %d{4 * j + 6};
  xor.b32 %t, %chunk, {16 * j}; add.u32 %t, %t, %drow;
  stmatrix.sync.aligned.m8n8.x4.shared.b16 [%t], {{%h0, %h1, %h2, %h3}};"""
        for j in range(0, 8, 2)
    )
    inits = "\n".join(
        f"  @%p mbarrier.init.shared::cta.b64 [%full+{8 * s}], 1;\n"
        f"  @%p mbarrier.init.shared::cta.b64 [%empty+{8 * s}], 8;"
        for s in range(STAGES)
    )
    return f"""{HEADER}
.extern .shared .align 1024 .b8 dyn[];
.visible .entry k(.param .align 64 .b8 MAPA[128], .param .align 64 .b8 MAPB[128], .param .align 64 .b8 MAPD[128],
                  .param .u32 TILES_M, .param .u32 TILES, .param .u32 K_BLOCKS,
                  .param .u64 A, .param .u64 B, .param .u64 D)
{{
  .shared .align 8 .b64 full_bar[{STAGES}];
  .shared .align 8 .b64 empty_bar[{STAGES}];
  .reg .b64 %mapa, %mapb, %mapd, %da, %db, %da0, %db0, %wide;
  .reg .b32 %i, %warp, %lane, %rank, %peer, %cluster, %clusters, %s, %full, %empty, %rempty, %tile, %tiles, %tilesm,
  %kblocks;
  .reg .b32 %stage, %parity, %kb, %crow, %ccol, %ck, %t, %u, %bar, %drow, %chunk, %last, %d<32>, %h<4>;
  .reg .b16 %both;
  .reg .pred %p, %q, %acc, %lead;
  mov.b64 %mapa, MAPA; cvta.param.u64 %mapa, %mapa;
  mov.b64 %mapb, MAPB; cvta.param.u64 %mapb, %mapb;
  mov.b64 %mapd, MAPD; cvta.param.u64 %mapd, %mapd;
  ld.param.u32 %tilesm, [TILES_M]; ld.param.u32 %tiles, [TILES]; ld.param.u32 %kblocks, [K_BLOCKS];
  mov.u32 %i, %tid.x; shr.u32 %warp, %i, 5; and.b32 %lane, %i, 31; mov.u32 %rank, %cluster_ctarank;
  xor.b32 %peer, %rank, 1; mov.u32 %cluster, %clusterid.x; mov.u32 %clusters, %nclusterid.x;
  mov.u32 %s, dyn; mov.u32 %full, full_bar; mov.u32 %empty, empty_bar;
  setp.eq.u32 %p, %i, 0;
{inits}
  fence.mbarrier_init.release.cluster;
  barrier.cluster.arrive.release.aligned;
  barrier.cluster.wait.acquire.aligned;
  mov.b32 %stage, 0; mov.b32 %parity, 0; mov.u32 %tile, %cluster;
  setp.eq.u32 %p, %warp, 4;
  @!%p bra CONSUMER;

  // producer: one lane of warp 4
  setp.eq.u32 %lead, %lane, 0;
  @!%lead bra FINISH;
  mov.b16 %both, 3;
P_TILE:
  setp.ge.u32 %p, %tile, %tiles;
  @%p bra FINISH;
  rem.u32 %crow, %tile, %tilesm; shl.b32 %crow, %crow, 1; add.u32 %crow, %crow, %rank; shl.b32 %crow, %crow, 6;
  div.u32 %ccol, %tile, %tilesm; shl.b32 %ccol, %ccol, 6; mad.lo.u32 %ccol, %rank, 32, %ccol;
  mov.b32 %kb, 0;
P_K:
  mad.lo.u32 %bar, %stage, 8, %empty; xor.b32 %t, %parity, 1;
P_WAIT:
  mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %q, [%bar], %t;
  @!%q bra P_WAIT;
  mad.lo.u32 %bar, %stage, 8, %full; shl.b32 %ck, %kb, 6;
  mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%bar], 16384;
  mad.lo.u32 %t, %stage, {A_BYTES}, %s;
  cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%t], [%mapa, {{%ck,
  %crow}}], [%bar];
  mad.lo.u32 %t, %stage, {B_BYTES}, %s; mad.lo.u32 %t, %rank, {B_BYTES // 2}, %t; add.u32 %t, %t, {B_AT};
  cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster
      [%t], [%mapb, {{%ck, %ccol}}], [%bar], %both;
{_advance("P_NEXT")}
  add.u32 %kb, %kb, 1; setp.lt.u32 %q, %kb, %kblocks;
  @%q bra P_K;
  add.u32 %tile, %tile, %clusters;
  bra P_TILE;

  // consumer: warps 0-3
CONSUMER:
  setp.eq.u32 %lead, %lane, 0;
  mapa.shared::cluster.u32 %rempty, %empty, %peer;
  // where this lane's rows of an 8x8 matrix go in the 128-byte-swizzled D tile
  shl.b32 %t, %warp, 4; and.b32 %u, %lane, 15; add.u32 %t, %t, %u; mad.lo.u32 %drow, %t, 128, %s;
  add.u32 %drow, %drow, {D_AT};
  and.b32 %u, %lane, 7; shl.b32 %chunk, %u, 4; and.b32 %u, %lane, 16; xor.b32 %chunk, %chunk, %u;
C_TILE:
  setp.ge.u32 %p, %tile, %tiles;
  @%p bra C_DONE;
  mov.b32 %kb, 0; setp.ne.u32 %acc, 0, 0; mov.b32 %last, {STAGES};
C_K:
  mad.lo.u32 %bar, %stage, 8, %full;
C_WAIT:
  mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %q, [%bar], %parity;
  @!%q bra C_WAIT;
  mad.lo.u32 %t, %stage, {A_BYTES}, %s; shr.u32 %t, %t, 4; cvt.u64.u32 %da0, %t; add.s64 %da0, %da0, {DESCRIPTOR};
  mad.lo.u32 %t, %stage, {B_BYTES}, %s; add.u32 %t, %t, {B_AT}; shr.u32 %t, %t, 4; cvt.u64.u32 %db0, %t;
  add.s64 %db0, %db0, {DESCRIPTOR};
  wgmma.fence.sync.aligned;
{mmas}
  wgmma.commit_group.sync.aligned;
  wgmma.wait_group.sync.aligned 1;
  // the wgmmas of the stage before this one have read their operands: release it in both CTAs
  setp.lt.u32 %q, %last, {STAGES}; and.pred %q, %q, %lead;
  mad.lo.u32 %t, %last, 8, %empty; mad.lo.u32 %u, %last, 8, %rempty;
  @%q mbarrier.arrive.release.cta.shared::cta.b64 _, [%t];
  @%q mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%u];
  mov.b32 %last, %stage;
{_advance("C_NEXT")}
  add.u32 %kb, %kb, 1; setp.lt.u32 %q, %kb, %kblocks;
  @%q bra C_K;
  wgmma.wait_group.sync.aligned 0;
  mad.lo.u32 %t, %last, 8, %empty; mad.lo.u32 %u, %last, 8, %rempty;
  @%lead mbarrier.arrive.release.cta.shared::cta.b64 _, [%t];
  @%lead mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%u];
  // epilogue: the last tile's TMA store must have read the D tile before it is written again
  setp.eq.u32 %p, %i, 0;
  @%p cp.async.bulk.wait_group.read 0;
  bar.sync 1, 128;
{stores}
  fence.proxy.async.shared::cta;
  bar.sync 1, 128;
  rem.u32 %crow, %tile, %tilesm; shl.b32 %crow, %crow, 1; add.u32 %crow, %crow, %rank; shl.b32 %crow, %crow, 6;
  div.u32 %ccol, %tile, %tilesm; shl.b32 %ccol, %ccol, 6; add.u32 %t, %s, {D_AT};
  @%p cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%mapd, {{%ccol, %crow}}], [%t];
  @%p cp.async.bulk.commit_group;
  add.u32 %tile, %tile, %clusters;
  bra C_TILE;
C_DONE:
  setp.eq.u32 %p, %i, 0;
  @%p cp.async.bulk.wait_group 0;
FINISH:
  bar.warp.sync 0xffffffff;
  barrier.cluster.arrive.release.aligned;
  barrier.cluster.wait.acquire.aligned;
  ret;
}}
"""


def operands(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """A (M, K) and B (N, K) in f16, integers in -2..2: every partial sum is exact in float32 and in f16."""
    a = small_floats(m * k, "f16", 150, limit=2).reshape(m, k)
    b = small_floats(n * k, "f16", 151, limit=2).reshape(n, k)
    return a, b


def expected(m: int, n: int, k: int) -> np.ndarray:
    a, b = (x.view(np.float16).astype(np.float64) for x in operands(m, n, k))
    return (a @ b.T).astype(np.float16)


def kernel(m: int = 200, n: int = 136, k: int = 264, clusters: int = 2) -> Microkernel:
    """The launch; M, N and K need not be multiples of the tile (rows of 16 bytes at least)."""
    a, b = operands(m, n, k)
    tiles_m = -(-m // (2 * TILE_M))
    tiles = tiles_m * -(-n // TILE_N)
    maps = (
        TensorMap("a", "f16", (k, m), (2 * k,), (TILE_K, TILE_M), "128B"),
        TensorMap("b", "f16", (k, n), (2 * k,), (TILE_K, TILE_N // 2), "128B"),
        TensorMap("d", "f16", (n, m), (2 * n,), (TILE_N, TILE_M), "128B"),
    )
    out = Buffer("d", np.full((m, n), 0xCDCD, dtype=np.uint16), result=True)
    args = (*maps, tiles_m, tiles, -(-k // TILE_K), Buffer("a", a), Buffer("b", b), out)
    return Microkernel("hopper_gemm", ptx(), args, grid=(2 * clusters, 1, 1), block=(160, 1, 1), cluster=(2, 1, 1),
                       smem=SMEM)  # fmt: skip


def kernels() -> list[Microkernel]:
    return [kernel()]
