"""Tensor-map copies: every rank, element size and swizzle, boxes that hang over the edges, clipping stores, reductions.

Loads: every CTA takes one coordinate from a list, fills its tile with 0xA5, loads the box and writes the whole tile
out. Stores and reductions: one CTA works through the list in order, so that overlapping boxes have one result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .inputs import bytes_, small_floats
from .kernel import ELEMENT_BITS, Buffer, Microkernel, TensorMap
from .lanewise import HEADER

SWIZZLE_BYTES = {"none": 0, "32B": 32, "64B": 64, "128B": 128}


@dataclass(frozen=True)
class Case:
    """A tensor (dims from the contiguous one up, row pitches padded by ``pad`` bytes), a box, and coordinates."""

    name: str
    element: str
    dims: tuple[int, ...]
    box: tuple[int, ...]
    coords: tuple[tuple[int, ...], ...]
    swizzle: str = "none"
    pad: int = 0
    offset: int = 0
    nan_fill: bool = False

    @property
    def strides(self) -> tuple[int, ...]:
        out, step = [], self.dims[0] * ELEMENT_BITS[self.element] // 8
        for d in self.dims[1:]:
            step = (step + self.pad + 15) // 16 * 16
            out.append(step)
            step *= d
        return tuple(out)

    @property
    def tensor_bytes(self) -> int:
        row = self.dims[0] * ELEMENT_BITS[self.element] // 8
        last = self.strides[-1] * self.dims[-1] if len(self.dims) > 1 else row
        return self.offset + (last + 15) // 16 * 16

    @property
    def box_bytes(self) -> int:
        return int(np.prod(self.box)) * ELEMENT_BITS[self.element] // 8

    @property
    def smem_bytes(self) -> int:
        """Shared memory that the box covers: under a swizzle its rows are one swizzle width apart, however narrow."""
        row = self.box[0] * ELEMENT_BITS[self.element] // 8
        return int(np.prod(self.box[1:])) * max(row, SWIZZLE_BYTES[self.swizzle])

    @property
    def tile_bytes(self) -> int:
        """The box, rounded up to whole 128-byte rows, and one more row to see that nothing else is written."""
        return (self.smem_bytes + 127) // 128 * 128 + 128

    def aligned(self, coord: tuple[int, ...]) -> bool:
        """Whether the box starts at a multiple of 16 bytes from the start of its row."""
        return coord[0] * ELEMENT_BITS[self.element] // 8 % 16 == 0

    def map(self) -> TensorMap:
        return TensorMap("tensor", self.element, self.dims, self.strides, self.box, self.swizzle, self.offset,
                         self.nan_fill)  # fmt: skip

    def coord_array(self) -> np.ndarray:
        return np.array([list(c) + [0] * (8 - len(c)) for c in self.coords], dtype=np.int32)


def _coords(rank: int) -> str:
    return ", ".join(f"%c{i}" for i in range(rank))


def _load_coords(rank: int) -> str:
    return " ".join(f"ld.global.b32 %c{i}, [%pc+{4 * i}];" for i in range(rank))


def load_kernel(case: Case) -> Microkernel:
    rank, tile = len(case.dims), case.tile_bytes
    ptx = f"""{HEADER}
.visible .entry k(.param .align 64 .b8 MAP[128], .param .u64 COORDS, .param .u64 OUT,
                          .param .u64 TENSOR)
{{
  .shared .align 1024 .b8 tile[{tile}];
  .shared .align 8 .b64 bar;
  .reg .b64 %map, %pc, %po, %off;
  .reg .b32 %i, %x, %s, %b, %j, %v, %at, %c<5>;
  .reg .pred %p, %q;
  mov.b64 %map, MAP; cvta.param.u64 %map, %map;
  ld.param.u64 %pc, [COORDS]; ld.param.u64 %po, [OUT];
  mov.u32 %i, %tid.x; mov.u32 %x, %ctaid.x; mov.u32 %s, tile; mov.u32 %b, bar;
  mul.wide.u32 %off, %x, 32; add.s64 %pc, %pc, %off; mul.wide.u32 %off, %x, {tile}; add.s64 %po, %po, %off;
  {_load_coords(rank)}
  setp.eq.u32 %p, %i, 0;
  @%p prefetch.tensormap [%map];
  @%p mbarrier.init.shared::cta.b64 [%b], 1;
  mov.b32 %v, 0xa5a5a5a5; shl.b32 %j, %i, 2;
FILL: setp.lt.u32 %q, %j, {tile}; @!%q bra FILLED;
  add.u32 %at, %s, %j; st.shared.b32 [%at], %v; add.u32 %j, %j, 512; bra FILL;
FILLED:
  fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;
  bar.sync 0;
  @!%p bra WAIT;
  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%b], {case.box_bytes};
  cp.async.bulk.prefetch.tensor.{rank}d.L2.global.tile [%map, {{{_coords(rank)}}}];
  cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes
      [%s], [%map, {{{_coords(rank)}}}], [%b];
WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q, [%b], 0; @!%q bra WAIT;
  shl.b32 %j, %i, 2;
OUT_: setp.lt.u32 %q, %j, {tile}; @!%q ret;
  add.u32 %at, %s, %j; ld.shared.b32 %v, [%at]; cvt.u64.u32 %off, %j; add.s64 %off, %off, %po;
  st.global.b32 [%off], %v; add.u32 %j, %j, 512; bra OUT_;
}}
"""
    out = np.full(tile * len(case.coords), 0xCD, dtype=np.uint8)
    rows = tuple(f"{case.name} at {c}" for c in case.coords)
    # the tensor itself is a last, unused parameter: it only has to be an allocation that the map can point to
    args = (case.map(), Buffer("coords", case.coord_array()), Buffer("out", out, result=True),
            Buffer("tensor", bytes_(case.tensor_bytes, 130)))  # fmt: skip
    return Microkernel(f"tma_load_{case.name}", ptx, args, grid=(len(case.coords), 1, 1), rows=rows)


def store_kernel(case: Case, reduce: str = "", source: np.ndarray | None = None, first: np.ndarray | None = None,
                 name: str = "") -> Microkernel:  # fmt: skip
    """Stores (or with ``reduce`` combines) one box after another; the result is the whole tensor, padding included."""
    rank, size, n = len(case.dims), case.smem_bytes, len(case.coords)
    what = f"cp.reduce.async.bulk.tensor.{rank}d.global.shared::cta.{reduce}" if reduce else (
        f"cp.async.bulk.tensor.{rank}d.global.shared::cta")  # fmt: skip
    ptx = f"""{HEADER}
.visible .entry k(.param .align 64 .b8 MAP[128], .param .u64 COORDS, .param .u64 IN, .param .u64 OUT)
{{
  .shared .align 1024 .b8 tile[{size}];
  .reg .b64 %map, %pc, %pi, %off;
  .reg .b32 %i, %n, %s, %j, %v, %at, %c<5>;
  .reg .pred %p, %q;
  mov.b64 %map, MAP; cvta.param.u64 %map, %map;
  ld.param.u64 %pc, [COORDS]; ld.param.u64 %pi, [IN];
  mov.u32 %i, %tid.x; mov.u32 %s, tile; mov.b32 %n, 0; setp.eq.u32 %p, %i, 0;
NEXT:
  shl.b32 %j, %i, 2;
FILL: setp.lt.u32 %q, %j, {size}; @!%q bra FILLED;
  add.u32 %at, %s, %j; cvt.u64.u32 %off, %j; add.s64 %off, %off, %pi; ld.global.b32 %v, [%off]; st.shared.b32 [%at], %v;
  add.u32 %j, %j, 512; bra FILL;
FILLED:
  fence.proxy.async.shared::cta;
  bar.sync 0;
  @!%p bra STORED;
  {_load_coords(rank)}
  {what}.tile.bulk_group [%map, {{{_coords(rank)}}}], [%s];
  cp.async.bulk.commit_group;
  cp.async.bulk.wait_group 0;
STORED:
  bar.sync 0;
  add.s64 %pc, %pc, 32; add.s64 %pi, %pi, {size};
  add.u32 %n, %n, 1; setp.lt.u32 %q, %n, {n}; @%q bra NEXT;
  ret;
}}
"""
    source = bytes_(size * n, 131) if source is None else source
    first = np.full(case.tensor_bytes, 0xCD, dtype=np.uint8) if first is None else first
    args = (
        case.map(),
        Buffer("coords", case.coord_array()),
        Buffer("in", source),
        Buffer("tensor", first, result=True),
    )
    return Microkernel(name or f"tma_store_{case.name}", ptx, args)


def _cases() -> list[Case]:
    """Interior boxes, boxes over each edge and corner, and boxes entirely outside, in one to five dimensions."""
    edges2 = ((0, 0), (16, 4), (-16, 0), (0, -3), (-1, -1), (32, 14), (48, 15), (208, 0), (0, -100), (3, 17), (-16, -4))
    out = [
        Case("1d_u8", "u8", (208,), (64,), ((0,), (16,), (-5,), (150,), (207,), (208,), (-64,), (-63,))),
        Case("1d_u32", "u32", (100,), (32,), ((0,), (-31,), (99,), (70,))),
        Case("2d_u8", "u8", (80, 20), (32, 8), edges2, pad=16),
        Case("2d_u16", "u16", (56, 19), (16, 8), edges2),
        Case("2d_f32", "f32", (44, 18), (8, 4), edges2, pad=32),
        Case("2d_u64", "u64", (46, 18), (4, 4), edges2),
        Case("3d_bf16", "bf16", (40, 7, 5), (16, 3, 2),
             ((0, 0, 0), (8, 2, 1), (-3, -1, -1), (30, 5, 4), (39, 6, 4), (0, 7, 0), (16, -2, 3), (-8, -1, -1),
              (32, 6, 4)), pad=16),
        Case("4d_f16", "f16", (24, 5, 4, 3), (8, 2, 3, 2),
             ((0, 0, 0, 0), (-1, 1, 1, 1), (17, 4, 2, 2), (0, -1, -2, -1), (8, 0, 3, 0), (24, 0, 0, 0), (16, 4, 2, 2))),
        Case("5d_u8", "u8", (32, 4, 3, 3, 2), (16, 2, 2, 1, 2),
             ((0, 0, 0, 0, 0), (-8, 3, 2, 2, 1), (20, -1, -1, -1, -1), (16, 1, 1, 2, 0), (0, 0, 0, 3, 0), (-16, 3, 2,
             2, 1),
              (16, 3, -1, 0, 1))),
        Case("2d_offset", "u16", (56, 12), (16, 8), ((0, 0), (-4, 6), (48, -2)), offset=48),
        Case("2d_nan_fill", "f16", (40, 12), (16, 8), ((0, 0), (-4, 6), (32, -2), (100, 0)), nan_fill=True),
        Case("2d_f32_ftz", "f32_ftz", (40, 12), (16, 8), ((0, 0), (-4, 6))),
        Case("2d_tf32", "tf32", (40, 12), (16, 8), ((0, 0), (-4, 6))),
        Case("2d_tf32_ftz", "tf32_ftz", (40, 12), (16, 8), ((0, 0),)),
    ]  # fmt: skip
    wide = {"32B": 32, "64B": 64, "128B": 128}
    for swizzle, width in wide.items():
        for element in ("u8", "bf16", "f32"):
            inner = width * 8 // ELEMENT_BITS[element]
            out.append(Case(f"2d_{element}_{swizzle}", element, (3 * inner, 40), (inner, 24),
                            ((0, 0), (inner, 8), (-inner // 2, -3), (5 * inner // 2, 30)), swizzle))  # fmt: skip
        half = width * 8 // 16 // 2  # a box narrower than the swizzle
        out.append(Case(f"2d_narrow_{swizzle}", "bf16", (4 * half, 24), (half, 16), ((0, 0), (half, 9)), swizzle))
        out.append(Case(f"3d_{swizzle}", "bf16", (2 * half, 12, 3), (2 * half, 5, 2), ((0, 0, 0), (8, 9, 2), (-8, -1,
        1), (4, 1, 0)),
                        swizzle))  # fmt: skip
    out.append(Case("2d_full_box", "u16", (72, 300), (8, 256), ((0, 0), (64, 100), (-4, 280))))
    return out


STORE_NAMES = {"1d_u8", "2d_u8", "2d_u16", "2d_f32", "3d_bf16", "4d_f16", "5d_u8", "2d_offset", "2d_bf16_32B",
               "2d_bf16_64B", "2d_bf16_128B", "2d_f32_128B", "3d_128B", "2d_narrow_128B", "2d_narrow_64B"}  # fmt: skip


def reductions() -> list[Microkernel]:
    """Every element type with the operations that it has; small integers and wild bits in turn."""
    table = {
        "u32": ("add", "min", "max", "inc", "dec", "and", "or", "xor"), "s32": ("add", "min", "max"),
        "u64": ("add", "min", "max", "and", "or", "xor"), "s64": ("min", "max"),
        "f32": ("add",), "f16": ("add", "min", "max"), "bf16": ("add", "min", "max"),
    }  # fmt: skip
    out = []
    for element, names in table.items():
        bytes_each = ELEMENT_BITS[element] // 8
        inner = 32 // bytes_each
        case = Case(
            element,
            element,
            (2 * inner, 10),
            (inner, 4),
            ((0, 0), (0, 2), (inner // 2, 1), (3 * inner // 2, 8), (inner // 2, 3)),
            pad=16,
        )
        for name in names:
            count = case.smem_bytes * len(case.coords) // bytes_each
            if element in ("f16", "bf16", "f32"):
                source = small_floats(count, element, 132, limit=50).view(np.uint8)
                first = small_floats(case.tensor_bytes // bytes_each, element, 133, limit=50).view(np.uint8).copy()
                first[::7] = bytes_(len(first[::7]), 134)
            else:
                source, first = bytes_(case.smem_bytes * len(case.coords), 132), bytes_(case.tensor_bytes, 133)
            out.append(store_kernel(case, name, source, first, f"tma_reduce_{name}_{element}"))
    return out


def multicast() -> Microkernel:
    """Four CTAs in a 2x2 cluster: rows of the cluster share one box, columns share another; both by multicast."""
    ptx = f"""{HEADER}
.visible .entry k(.param .align 64 .b8 MAP[128], .param .u64 TENSOR, .param .u64 OUT)
{{
  .shared .align 1024 .b8 tile[4096];
  .shared .align 8 .b64 bar;
  .reg .b64 %map, %po, %off;
  .reg .b32 %i, %rank, %x, %y, %s, %b, %d, %at, %v, %c0, %c1, %j;
  .reg .b16 %m;
  .reg .pred %p, %q;
  mov.b64 %map, MAP; cvta.param.u64 %map, %map; ld.param.u64 %po, [OUT];
  mov.u32 %i, %tid.x; mov.u32 %rank, %cluster_ctarank; mov.u32 %x, %cluster_ctaid.x; mov.u32 %y, %cluster_ctaid.y;
  mov.u32 %s, tile; mov.u32 %b, bar; setp.eq.u32 %p, %i, 0;
  @%p mbarrier.init.shared::cta.b64 [%b], 1;
  fence.mbarrier_init.release.cluster;
  @%p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%b], 4096;
  barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
  @!%p bra WAIT;
  // my half of the box that the two CTAs with my y share (they differ in x): into bytes x*1024 of both
  mov.b32 %c0, 0; shl.b32 %c1, %y, 4; mad.lo.u32 %c1, %x, 8, %c1; mad.lo.u32 %d, %x, 1024, %s;
  mov.b32 %v, 3; shl.b32 %j, %y, 1; shl.b32 %v, %v, %j; cvt.u16.u32 %m, %v;
  cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster
      [%d], [%map, {{%c0, %c1}}], [%b], %m;
  // my half of the box that the two CTAs with my x share: into bytes 2048 + y*1024 of both
  mov.b32 %c0, 64; shl.b32 %c1, %x, 4; mad.lo.u32 %c1, %y, 8, %c1; mad.lo.u32 %d, %y, 1024, %s; add.u32 %d, %d, 2048;
  mov.b32 %v, 5; shl.b32 %v, %v, %x; cvt.u16.u32 %m, %v;
  cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster
      [%d], [%map, {{%c0, %c1}}], [%b], %m;
WAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %q, [%b], 0; @!%q bra WAIT;
  mul.wide.u32 %off, %rank, 4096; add.s64 %po, %po, %off; shl.b32 %j, %i, 2;
OUT_: add.u32 %at, %s, %j; ld.shared.b32 %v, [%at]; cvt.u64.u32 %off, %j; add.s64 %off, %off, %po;
  st.global.b32 [%off], %v; add.u32 %j, %j, 512; setp.lt.u32 %q, %j, 4096; @%q bra OUT_;
  barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
  ret;
}}
"""
    case = Case("", "bf16", (128, 40), (64, 8), (), "128B")
    out = Buffer("out", np.full(4 * 4096, 0xCD, dtype=np.uint8), result=True)
    args = (case.map(), Buffer("tensor", bytes_(case.tensor_bytes, 135)), out)
    return Microkernel("tma_multicast", ptx, args, grid=(2, 2, 1), cluster=(2, 2, 1))


def replace_map() -> Microkernel:
    """tensormap.replace of every field that a grouped GEMM changes, then a load through the new map."""
    ptx = f"""{HEADER}
.visible .entry k(.param .align 64 .b8 MAP[128], .param .u64 TENSOR, .param .u64 NEWMAP, .param .u64 OUT)
{{
  .shared .align 1024 .b8 tile[2048];
  .shared .align 128 .b8 work[128];
  .shared .align 8 .b64 bar;
  .reg .b64 %map, %pt, %pn, %po, %off, %w;
  .reg .b32 %i, %s, %b, %t, %v, %at, %j, %zero;
  .reg .pred %p, %q;
  mov.b64 %map, MAP; cvta.param.u64 %map, %map;
  ld.param.u64 %pt, [TENSOR]; ld.param.u64 %pn, [NEWMAP]; ld.param.u64 %po, [OUT];
  mov.u32 %i, %tid.x; mov.u32 %s, tile; mov.u32 %b, bar; mov.u32 %t, work; cvt.u64.u32 %w, %t;
  setp.eq.u32 %p, %i, 0; mov.b32 %zero, 0;
  @%p mbarrier.init.shared::cta.b64 [%b], 1; fence.mbarrier_init.release.cluster;
  mul.wide.u32 %off, %i, 4; add.s64 %off, %map, %off; ld.b32 %v, [%off]; mad.lo.u32 %at, %i, 4, %t;
  st.shared.b32 [%at], %v;
  bar.sync 0;
  @!%p bra REPLACED;
  add.s64 %off, %pt, 256;
  tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%w], %off;
  mov.b32 %v, 50; tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%w], 0, %v;
  mov.b32 %v, 13; tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%w], 1, %v;
  mov.b64 %off, 144; tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%w], 0, %off;
  mov.b32 %v, 32; tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%w], 0, %v;
  mov.b32 %v, 16; tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%w], 1, %v;
  tensormap.replace.tile.swizzle_mode.shared::cta.b1024.b32 [%w], 2;
REPLACED:
  bar.warp.sync 0xffffffff;
  tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%pn], [%w], 128;
  fence.proxy.tensormap::generic.acquire.gpu [%pn], 128;
  @%p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%b], 1024;
  mov.b32 %v, -8; mov.b32 %j, 3;
  @%p cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%s], [%pn, {{%zero, %j}}], [%b];
WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q, [%b], 0; @!%q bra WAIT;
  @%p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%b], 1024; add.u32 %at, %s, 1024;
  createpolicy.fractional.L2::evict_last.b64 %w, 0.5;
  @%p cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint
      [%at], [%pn, {{%v, %v}}], [%b], %w;
WAIT2: mbarrier.try_wait.parity.shared::cta.b64 %q, [%b], 1; @!%q bra WAIT2;
  shl.b32 %j, %i, 2;
OUT_: add.u32 %at, %s, %j; ld.shared.b32 %v, [%at]; cvt.u64.u32 %off, %j; add.s64 %off, %off, %po;
  st.global.b32 [%off], %v; add.u32 %j, %j, 128; setp.lt.u32 %q, %j, 2048; @%q bra OUT_;
  ret;
}}
"""
    case = Case("", "u16", (64, 20), (16, 8), ())
    out = Buffer("out", np.full(2048, 0xCD, dtype=np.uint8), result=True)
    new = Buffer("newmap", np.zeros(128, dtype=np.uint8))
    args = (case.map(), Buffer("tensor", bytes_(4096, 136)), new, out)
    return Microkernel("tma_replace_map", ptx, args, block=(32, 1, 1))


FAULTS = (
    Case("odd_u8", "u8", (64, 8), (16, 4), ((1, 0),)), Case("odd_f32", "f32", (64, 8), (16, 4), ((2, 0),)),
    Case("odd_u64", "u64", (64, 8), (16, 4), ((1, 0),)), Case("odd_negative", "f32", (64, 8), (16, 4), ((-1, 0),)),
    Case("odd_bf16_128B", "bf16", (64, 8), (64, 4), ((4, 0),), "128B"),
)  # fmt: skip
"""Boxes that do not start at a multiple of 16 bytes in their row: the hardware stops with an illegal instruction."""

STORE_LIMITS = (
    Case("high_rows", "u16", (56, 19), (16, 8), ((0, 15), (48, 0))),
    Case("outside_row", "u16", (56, 19), (16, 8), ((0, 19),)), Case("outside_column", "u16", (56, 19), (16, 8), ((56,
    0),)),
    Case("far_outside", "u16", (56, 19), (16, 8), ((8000, 5000),)),
    Case("negative_row", "u16", (56, 19), (16, 8), ((0, -1),)), Case("negative_column", "u16", (56, 19), (16, 8),
    ((-8, 0),)),
    Case("negative_outside", "u16", (56, 19), (16, 8), ((0, -8),)), Case("odd", "u16", (56, 19), (16, 8), ((4, 0),)),
    Case("negative_depth", "u8", (32, 4, 4), (16, 2, 2), ((0, 0, -1),)),
)  # fmt: skip


def kernels() -> list[Microkernel]:
    loads = [replace(c, coords=tuple(x for x in c.coords if c.aligned(x))) for c in _cases()]
    stores = [replace(c, coords=tuple(x for x in c.coords if min(x) >= 0)) for c in loads if c.name in STORE_NAMES]
    stores += STORE_LIMITS
    limit = store_kernel(STORE_LIMITS[4], "add", name="tma_reduce_negative_row")
    return [*map(load_kernel, loads), *map(load_kernel, FAULTS), *map(store_kernel, stores), *reductions(), limit,
            multicast(), replace_map()]  # fmt: skip
