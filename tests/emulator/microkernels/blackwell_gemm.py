"""A small persistent sm_100a NVFP4 GEMM in plain PTX: D (M, N) = bf16(sum over K of (code*scale)_a (code*scale)_b).

A and B are e2m1 codes, two to a byte, K last; scales are e4m3, one for 16 codes, in the 128x4 tiled layout: 512 bytes
hold 128 rows x 4 scales, byte (r % 32) 16 + (r / 32) 4 + k; atoms of one row block follow each other along K.

Tile 128 x 128 x 256. Warp 4 produces (TMA for codes, plain bulk copies for scales), one lane of warp 5 issues
tcgen05.cp of the scales and tcgen05.mma into one of two accumulators, warps 0-3 drain the other one through shared
memory and TMA stores.

    full[s]       1 arrival and 36864 bytes      empty[s]      1 arrival (tcgen05.commit)
    acc_full[b]   1 arrival (tcgen05.commit)     acc_empty[b]  4 arrivals (the draining warps)

TMEM columns: 0..127 and 128..255 the accumulators, 256..271 scales of A (four per MMA of K = 64), 272..287 those of B.
"""

from __future__ import annotations

import numpy as np

from .inputs import bytes_, hash32
from .kernel import Buffer, Microkernel, TensorMap

STAGES, TILE, TILE_K = 3, 128, 256
CODE_BYTES, SCALE_BYTES = TILE * TILE_K // 2, 4 * 512
B_AT, SFA_AT = STAGES * CODE_BYTES, 2 * STAGES * CODE_BYTES
SFB_AT = SFA_AT + STAGES * SCALE_BYTES
D_AT = SFB_AT + STAGES * SCALE_BYTES
SMEM = D_AT + TILE * TILE * 2
STAGE_BYTES = 2 * (CODE_BYTES + SCALE_BYTES)
CODE_DESCRIPTOR = 1 << 16 | (1024 >> 4) << 32 | 1 << 46 | 2 << 61
"""K-major, 128-byte swizzle, 1024 bytes between groups of eight rows."""
SCALE_DESCRIPTOR = 1 << 16 | (128 >> 4) << 32 | 1 << 46
"""No swizzle: 8 rows of 16 bytes after each other."""
INSTRUCTION = 1 << 7 | 1 << 10 | (TILE // 8) << 17 | (TILE // 16) << 24
"""e2m1 times e2m1 with ue4m3 scales, M = N = 128."""
SFA_COLUMN, SFB_COLUMN = 256, 272

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float64)


def _advance(label: str) -> str:
    return f"""  add.u32 %stage, %stage, 1; setp.lt.u32 %q, %stage, {STAGES};
  @%q bra {label};
  mov.b32 %stage, 0; xor.b32 %parity, %parity, 1;
{label}:"""


def _wait(label: str, barrier: str, parity: str) -> str:
    return f"""{label}:
  mbarrier.try_wait.parity.shared::cta.b64 %q, [{barrier}], {parity};
  @!%q bra {label};"""


def _issue() -> str:
    """The copies of one stage's scales and its four MMAs."""
    lines = []
    for at, column in ((SFA_AT, SFA_COLUMN), (SFB_AT, SFB_COLUMN)):
        lines.append(f"  mad.lo.u32 %t, %stage, {SCALE_BYTES}, %s; add.u32 %t, %t, {at}; shr.u32 %t, %t, 4;")
        lines.append(f"  cvt.u64.u32 %db, %t; add.s64 %db, %db, {SCALE_DESCRIPTOR};")
        for k in range(4):
            lines.append(f"  add.s64 %da, %db, {32 * k}; add.u32 %u, %tmem, {column + 4 * k};")
            lines.append("  tcgen05.cp.cta_group::1.32x128b.warpx4 [%u], %da;")
    for reg, at in (("%da0", 0), ("%db0", B_AT)):
        lines.append(f"  mad.lo.u32 %t, %stage, {CODE_BYTES}, %s; add.u32 %t, %t, {at}; shr.u32 %t, %t, 4;")
        lines.append(f"  cvt.u64.u32 {reg}, %t; add.s64 {reg}, {reg}, {CODE_DESCRIPTOR};")
    for k in range(4):
        lines.append(f"  add.s64 %da, %da0, {2 * k}; add.s64 %db, %db0, {2 * k};")
        lines.append(f"  add.u32 %sfa, %tmem, {SFA_COLUMN + 4 * k}; add.u32 %sfb, %tmem, {SFB_COLUMN + 4 * k};")
        lines.append("  tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.scale_vec::4X "
                     "[%d], %da, %db, %idesc, [%sfa], [%sfb], %acc;")  # fmt: skip
        lines.append("  setp.eq.u32 %acc, 0, 0;")
    return "\n".join(lines)


def _drain() -> str:
    """This lane's row, 32 of 128 columns at a time: from TMEM, rounded to bf16, into the swizzled D tile."""
    regs = ", ".join(f"%r{i}" for i in range(32))
    lines = []
    for chunk in range(4):
        lines.append(f"  add.u32 %t, %d, {32 * chunk};")
        lines.append(f"  tcgen05.ld.sync.aligned.32x32b.x32.b32 {{{regs}}}, [%t];")
        lines.append("  tcgen05.wait::ld.sync.aligned;")
        for j in range(4):
            pack = " ".join(f"cvt.rn.bf16x2.f32 %h{i}, %r{8 * j + 2 * i + 1}, %r{8 * j + 2 * i};" for i in range(4))
            lines.append(f"  {pack}")
            lines.append(f"  xor.b32 %t, %chunk, {(chunk & 1) * 64 + 16 * j}; add.u32 %t, %t, %drow;")
            lines.append(f"  st.shared.v4.b32 [%t+{(chunk >> 1) * TILE * 128}], {{%h0, %h1, %h2, %h3}};")
    return "\n".join(lines)


def ptx() -> str:
    inits = "\n".join(
        f"  @%p mbarrier.init.shared::cta.b64 [%{barrier}+{8 * i}], {arrivals};"
        for barrier, count, arrivals in (("full", STAGES, 1), ("empty", STAGES, 1), ("afull", 2, 1), ("aempty", 2, 4))
        for i in range(count)
    )
    return f""".version 8.8
.target sm_100a
.address_size 64
.extern .shared .align 1024 .b8 dyn[];
.visible .entry k(.param .align 64 .b8 MAPA[128], .param .align 64 .b8 MAPB[128], .param .align 64 .b8 MAPD[128],
                  .param .u64 SFA, .param .u64 SFB, .param .u32 TILES_M, .param .u32 TILES, .param .u32 K_BLOCKS,
                  .param .u64 A, .param .u64 B, .param .u64 D)
{{
  .shared .align 8 .b64 full_bar[{STAGES}];
  .shared .align 8 .b64 empty_bar[{STAGES}];
  .shared .align 8 .b64 acc_full_bar[2];
  .shared .align 8 .b64 acc_empty_bar[2];
  .shared .align 4 .b32 tmem_slot;
  .reg .b64 %mapa, %mapb, %mapd, %psfa, %psfb, %ga, %gb, %da, %db, %da0, %db0;
  .reg .b32 %i, %warp, %lane, %s, %full, %empty, %afull, %aempty, %tile, %tiles, %tilesm, %kblocks, %grid, %tmem, %slot;
  .reg .b32 %stage, %parity, %buf, %abuf, %aparity, %kb, %row, %col, %ck, %t, %u, %bar, %d, %sfa, %sfb, %idesc;
  .reg .b32 %drow, %chunk, %r<32>, %h<4>;
  .reg .pred %p, %q, %acc, %lead;
  mov.b64 %mapa, MAPA; cvta.param.u64 %mapa, %mapa;
  mov.b64 %mapb, MAPB; cvta.param.u64 %mapb, %mapb;
  mov.b64 %mapd, MAPD; cvta.param.u64 %mapd, %mapd;
  ld.param.u64 %psfa, [SFA]; ld.param.u64 %psfb, [SFB];
  ld.param.u32 %tilesm, [TILES_M]; ld.param.u32 %tiles, [TILES]; ld.param.u32 %kblocks, [K_BLOCKS];
  mov.u32 %i, %tid.x; shr.u32 %warp, %i, 5; and.b32 %lane, %i, 31; mov.u32 %tile, %ctaid.x; mov.u32 %grid, %nctaid.x;
  mov.u32 %s, dyn; mov.u32 %full, full_bar; mov.u32 %empty, empty_bar;
  mov.u32 %afull, acc_full_bar; mov.u32 %aempty, acc_empty_bar; mov.u32 %slot, tmem_slot;
  setp.eq.u32 %p, %i, 0;
{inits}
  fence.mbarrier_init.release.cluster;
  setp.eq.u32 %p, %warp, 5;
  @!%p bra ALLOCATED;
  tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%slot], 512;
  tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;
ALLOCATED:
  tcgen05.fence::before_thread_sync;
  bar.sync 0;
  tcgen05.fence::after_thread_sync;
  ld.shared.b32 %tmem, [%slot];
  mov.b32 %stage, 0; mov.b32 %parity, 0; mov.b32 %abuf, 0; mov.b32 %aparity, 0; setp.eq.u32 %lead, %lane, 0;
  setp.lt.u32 %p, %warp, 4;
  @%p bra EPILOGUE;
  @!%lead bra FINISH;
  setp.eq.u32 %p, %warp, 5;
  @%p bra MMA;

  // producer: lane 0 of warp 4
P_TILE:
  setp.ge.u32 %p, %tile, %tiles;
  @%p bra FINISH;
  rem.u32 %row, %tile, %tilesm; div.u32 %col, %tile, %tilesm; mov.b32 %kb, 0;
  mul.lo.u32 %t, %row, %kblocks; mul.wide.u32 %ga, %t, {SCALE_BYTES}; add.s64 %ga, %ga, %psfa;
  mul.lo.u32 %t, %col, %kblocks; mul.wide.u32 %gb, %t, {SCALE_BYTES}; add.s64 %gb, %gb, %psfb;
  shl.b32 %row, %row, 7; shl.b32 %col, %col, 7;
P_K:
  mad.lo.u32 %bar, %stage, 8, %empty; xor.b32 %t, %parity, 1;
{_wait("P_WAIT", "%bar", "%t")}
  mad.lo.u32 %bar, %stage, 8, %full; shl.b32 %ck, %kb, 7;
  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], {STAGE_BYTES};
  mad.lo.u32 %t, %stage, {CODE_BYTES}, %s;
  cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%t], [%mapa, {{%ck, %row}}], [%bar];
  add.u32 %t, %t, {B_AT};
  cp.async.bulk.tensor.2d.shared::cta.global.tile.mbarrier::complete_tx::bytes [%t], [%mapb, {{%ck, %col}}], [%bar];
  mad.lo.u32 %t, %stage, {SCALE_BYTES}, %s; add.u32 %t, %t, {SFA_AT};
  cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%t], [%ga], {SCALE_BYTES}, [%bar];
  add.u32 %t, %t, {SFB_AT - SFA_AT};
  cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%t], [%gb], {SCALE_BYTES}, [%bar];
  add.s64 %ga, %ga, {SCALE_BYTES}; add.s64 %gb, %gb, {SCALE_BYTES};
{_advance("P_NEXT")}
  add.u32 %kb, %kb, 1; setp.lt.u32 %q, %kb, %kblocks;
  @%q bra P_K;
  add.u32 %tile, %tile, %grid;
  bra P_TILE;

  // tensor core: lane 0 of warp 5
MMA:
  mov.b32 %idesc, {INSTRUCTION};
M_TILE:
  setp.ge.u32 %p, %tile, %tiles;
  @%p bra FINISH;
  mad.lo.u32 %bar, %abuf, 8, %aempty; xor.b32 %t, %aparity, 1;
{_wait("M_ACC", "%bar", "%t")}
  tcgen05.fence::after_thread_sync;
  mad.lo.u32 %d, %abuf, {TILE}, %tmem; mov.b32 %kb, 0; setp.ne.u32 %acc, 0, 0;
M_K:
  mad.lo.u32 %bar, %stage, 8, %full;
{_wait("M_WAIT", "%bar", "%parity")}
  tcgen05.fence::after_thread_sync;
{_issue()}
  mad.lo.u32 %bar, %stage, 8, %empty;
  tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%bar];
{_advance("M_NEXT")}
  add.u32 %kb, %kb, 1; setp.lt.u32 %q, %kb, %kblocks;
  @%q bra M_K;
  mad.lo.u32 %bar, %abuf, 8, %afull;
  tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%bar];
  xor.b32 %abuf, %abuf, 1; setp.eq.u32 %q, %abuf, 0;
  @%q xor.b32 %aparity, %aparity, 1;
  add.u32 %tile, %tile, %grid;
  bra M_TILE;

  // epilogue: warps 0-3, one row of the tile per thread
EPILOGUE:
  mad.lo.u32 %drow, %i, 128, %s; add.u32 %drow, %drow, {D_AT}; and.b32 %t, %i, 7; shl.b32 %chunk, %t, 4;
E_TILE:
  setp.ge.u32 %p, %tile, %tiles;
  @%p bra E_DONE;
  setp.eq.u32 %p, %i, 0;
  @%p cp.async.bulk.wait_group.read 0;
  bar.sync 1, 128;
  mad.lo.u32 %bar, %abuf, 8, %afull;
{_wait("E_WAIT", "%bar", "%aparity")}
  tcgen05.fence::after_thread_sync;
  mad.lo.u32 %d, %abuf, {TILE}, %tmem; shl.b32 %t, %warp, 21; add.u32 %d, %d, %t;
{_drain()}
  tcgen05.fence::before_thread_sync;
  bar.warp.sync 0xffffffff;
  mad.lo.u32 %bar, %abuf, 8, %aempty;
  @%lead mbarrier.arrive.shared::cta.b64 _, [%bar];
  fence.proxy.async.shared::cta;
  bar.sync 1, 128;
  rem.u32 %row, %tile, %tilesm; div.u32 %col, %tile, %tilesm; shl.b32 %row, %row, 7; shl.b32 %col, %col, 7;
  add.u32 %t, %s, {D_AT}; add.u32 %u, %t, {TILE * 128}; add.u32 %ck, %col, 64;
  @%p cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%mapd, {{%col, %row}}], [%t];
  @%p cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%mapd, {{%ck, %row}}], [%u];
  @%p cp.async.bulk.commit_group;
  xor.b32 %abuf, %abuf, 1; setp.eq.u32 %q, %abuf, 0;
  @%q xor.b32 %aparity, %aparity, 1;
  add.u32 %tile, %tile, %grid;
  bra E_TILE;
E_DONE:
  setp.eq.u32 %p, %i, 0;
  @%p cp.async.bulk.wait_group 0;
  tcgen05.fence::before_thread_sync;
FINISH:
  bar.warp.sync 0xffffffff;
  bar.sync 0;
  tcgen05.fence::after_thread_sync;
  setp.eq.u32 %p, %warp, 5;
  @!%p bra END;
  tcgen05.dealloc.cta_group::1.sync.aligned.b32 %tmem, 512;
END:
  ret;
}}
"""


def codes(rows: int, k: int, seed: int) -> np.ndarray:
    """(rows, k / 2) bytes of two e2m1 codes each, the even k in the low nibble."""
    return bytes_(rows * k // 2, seed).reshape(rows, k // 2)


def scales(rows: int, k: int, seed: int) -> np.ndarray:
    """(rows, k / 16) e4m3 bytes: 0.5, 1, 1.5 or 2, so that sums stay exact in float32."""
    table = np.array([0x30, 0x38, 0x3C, 0x40], dtype=np.uint8)
    return table[hash32(rows * k // 16, seed) % np.uint32(4)].reshape(rows, k // 16)


def tiled(flat: np.ndarray, k_blocks: int) -> np.ndarray:
    """Scales (rows, K / 16) in the 128x4 tiled layout, zero-padded to whole tiles of 128 rows x 256 k."""
    rows = -(-flat.shape[0] // TILE) * TILE
    padded = np.zeros((rows, 16 * k_blocks), dtype=np.uint8)
    padded[: flat.shape[0], : flat.shape[1]] = flat
    atoms = padded.reshape(rows // 128, 4, 32, 4 * k_blocks, 4)  # row block, r / 32, r % 32, atom, k
    return np.ascontiguousarray(atoms.transpose(0, 3, 2, 1, 4)).reshape(-1)


def decode(code: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """float64 values of codes (rows, k / 2) with scales (rows, k / 16)."""
    nibbles = np.stack([code & 15, code >> 4], axis=-1).reshape(code.shape[0], -1)
    value = E2M1[nibbles & 7] * np.where(nibbles & 8, -1.0, 1.0)
    e4m3 = (8 + (scale & 7)).astype(np.float64) / 8 * 2.0 ** ((scale >> 3).astype(np.int32) - 7)
    return value * np.repeat(e4m3, 16, axis=1)


def expected(m: int, n: int, k: int) -> np.ndarray:
    """The right D as bf16 bits (M, N)."""
    a = decode(codes(m, k, 160), scales(m, k, 161))
    b = decode(codes(n, k, 162), scales(n, k, 163))
    bits = (a @ b.T).astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def kernel(m: int = 200, n: int = 328, k: int = 576, ctas: int = 2) -> Microkernel:
    """The launch; M and N need not be multiples of the tile, K is a multiple of 32 (rows of 16 bytes)."""
    k_blocks, tiles_m = -(-k // TILE_K), -(-m // TILE)
    maps = (
        TensorMap("a", "u8", (k // 2, m), (k // 2,), (128, TILE), "128B"),
        TensorMap("b", "u8", (k // 2, n), (k // 2,), (128, TILE), "128B"),
        TensorMap("d", "bf16", (n, m), (2 * n,), (64, TILE), "128B"),
    )
    sfa, sfb = (Buffer(name, tiled(scales(rows, k, seed), k_blocks)) for name, rows, seed in
                (("sfa", m, 161), ("sfb", n, 163)))  # fmt: skip
    out = Buffer("d", np.full((m, n), 0xCDCD, dtype=np.uint16), result=True)
    args = (*maps, sfa, sfb, tiles_m, tiles_m * -(-n // TILE), k_blocks, Buffer("a", codes(m, k, 160)),
            Buffer("b", codes(n, k, 162)), out)  # fmt: skip
    return Microkernel("blackwell_gemm", ptx(), args, grid=(ctas, 1, 1), block=(192, 1, 1), smem=SMEM)


def kernels() -> list[Microkernel]:
    return [kernel()]
