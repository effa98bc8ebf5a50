"""One tcgen05.mma as a plain-PTX kernel: the host lays out shared and tensor memory, the kernel only moves bytes.

The host decides every byte of each CTA's shared memory (operands, scale factors) and of the initial tensor memory, and
gets the whole tensor memory back, so that a test states the layouts in its own words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LANES, COLUMNS = 128, 512


@dataclass(frozen=True)
class Step:
    """PTX between the initial stores to tensor memory and the commit; may use %tmem (base), %smem (image base), %p0..%p3."""

    text: str


def _words(name: str, count: int, per_line: int = 16) -> str:
    return ", ".join(f"%{name}{i}" for i in range(count))


def kernel(body: str, image_bytes: int, columns: int, group: int = 1, commit: bool = True, dealloc: bool = True) -> str:
    """PTX of a kernel k(IMAGE, TMEM): IMAGE holds image_bytes per CTA, TMEM (ctas, 128, columns) words in and out."""
    cluster = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" if group == 2 else "bar.sync 0;"
    multicast = ".multicast::cluster" if group == 2 else ""
    mask = ", %both" if group == 2 else ""
    regs = _words("r", 32)
    finish = (
        f"""
  @!%leader bra WAIT;
  tcgen05.commit.cta_group::{group}.mbarrier::arrive::one.shared::cluster{multicast}.b64 [%bar]{mask};
WAIT:
  mbarrier.try_wait.parity.shared::cta.b64 %q, [%bar], 0;
  @!%q bra WAIT;
  tcgen05.fence::after_thread_sync;"""
        if commit
        else "WAIT:"
    )
    move = "\n".join(
        f"""  add.u32 %t, %tmem, {c}; add.u32 %t, %t, %warplane;
  {"".join(f" ld.global.b32 %r{i}, [%row+{4 * (c + i)}];" for i in range(32))}
  tcgen05.st.sync.aligned.32x32b.x32.b32 [%t], {{{regs}}};"""
        for c in range(0, columns, 32)
    )
    back = "\n".join(
        f"""  add.u32 %t, %tmem, {c}; add.u32 %t, %t, %warplane;
  tcgen05.ld.sync.aligned.32x32b.x32.b32 {{{regs}}}, [%t];
  tcgen05.wait::ld.sync.aligned;
  {"".join(f" st.global.b32 [%row+{4 * (c + i)}], %r{i};" for i in range(32))}"""
        for c in range(0, columns, 32)
    )
    return f""".version 8.8
.target sm_100a
.address_size 64
.extern .shared .align 1024 .b8 dyn[];
.visible .entry k(.param .u64 IMAGE, .param .u64 TMEM)
{{
  .shared .align 8 .b64 bar_;
  .shared .align 4 .b32 slot_;
  .reg .b64 %image, %row, %off, %a, %b, %c;
  .reg .b32 %i, %warp, %lane, %rank, %smem, %slot, %bar, %tmem, %t, %u, %v, %j, %warplane, %idesc, %r<128>;
  .reg .b16 %both;
  .reg .pred %p, %q, %leader, %p<4>;
  ld.param.u64 %image, [IMAGE]; ld.param.u64 %row, [TMEM];
  mov.u32 %i, %tid.x; shr.u32 %warp, %i, 5; and.b32 %lane, %i, 31; mov.u32 %rank, %cluster_ctarank; mov.b16 %both, 3;
  mov.u32 %smem, dyn; mov.u32 %slot, slot_; mov.u32 %bar, bar_; shl.b32 %warplane, %warp, 21;
  mul.wide.u32 %off, %rank, {image_bytes}; add.s64 %image, %image, %off;
  mad.lo.u32 %t, %rank, {LANES}, %i; mul.wide.u32 %off, %t, {4 * columns}; add.s64 %row, %row, %off;
  setp.eq.u32 %p, %i, 0;
  @%p mbarrier.init.shared::cta.b64 [%bar], 1;
  fence.mbarrier_init.release.cluster;
  setp.eq.u32 %p, %warp, 0;
  @!%p bra FILL_START;
  tcgen05.alloc.cta_group::{group}.sync.aligned.shared::cta.b32 [%slot], {COLUMNS};
  tcgen05.relinquish_alloc_permit.cta_group::{group}.sync.aligned;
FILL_START:
  shl.b32 %j, %i, 4;
FILL: setp.lt.u32 %q, %j, {image_bytes}; @!%q bra FILLED;
  cvt.u64.u32 %off, %j; add.s64 %off, %off, %image; add.u32 %t, %smem, %j;
  ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%off]; st.shared.v4.b32 [%t], {{%r0, %r1, %r2, %r3}};
  add.u32 %j, %j, 2048; bra FILL;
FILLED:
  fence.proxy.async.shared::cta;
  bar.sync 0;
  ld.shared.b32 %tmem, [%slot];
{move}
  tcgen05.wait::st.sync.aligned;
  tcgen05.fence::before_thread_sync;
  {cluster}
  tcgen05.fence::after_thread_sync;
  setp.eq.u32 %leader, %i, 0; setp.eq.and.u32 %leader, %rank, 0, %leader;
  @!%leader bra ISSUED;
{body}
ISSUED:
{finish}
{back}
  tcgen05.fence::before_thread_sync;
  {cluster}
  setp.eq.u32 %p, %warp, 0;
  @!%p bra DONE;
  {f"tcgen05.dealloc.cta_group::{group}.sync.aligned.b32 %tmem, {COLUMNS};" if dealloc else ""}
DONE:
  ret;
}}
"""


def descriptor(start: int, lbo: int, sbo: int, swizzle: int) -> int:
    """tcgen05 matrix descriptor; start is relative to the image and added at run time."""
    return start >> 4 | (lbo >> 4) << 16 | (sbo >> 4) << 32 | 1 << 46 | {0: 0, 32: 6, 64: 4, 128: 2}[swizzle] << 61


def load_descriptor(register: str, value: int) -> str:
    """PTX: 64-bit `register` = descriptor `value` plus the image's address."""
    return f"  shr.u32 %t, %smem, 4; and.b32 %t, %t, 16383; cvt.u64.u32 {register}, %t; add.s64 {register}, {register}, {value};"


class Image:
    """Shared memory of one CTA under construction; operands go in as rows of bytes along K."""

    def __init__(self, size: int):
        self.data = np.zeros(size, np.uint8)
        self.used = 0

    def reserve(self, size: int) -> int:
        at = self.used
        self.used += (size + 1023) // 1024 * 1024
        assert self.used <= self.data.size
        return at

    def k_major(self, rows: np.ndarray, swizzle: int) -> int:
        """rows (R, bytes) in boxes of the swizzle's width (16 without); returns the descriptor."""
        count, length = rows.shape
        width = swizzle or 16
        base = self.reserve(count * max(length, width))
        for r in range(count):
            for chunk in range(0, length, 16):
                at = base + chunk // width * count * width + r * width + chunk % width
                at ^= (at >> 7 & {0: 0, 32: 1, 64: 3, 128: 7}[swizzle]) << 4
                self.data[at : at + 16] = rows[r, chunk : chunk + 16]
        return descriptor(base, count * 16, 8 * width, swizzle)

    def mn_major(self, tile: np.ndarray, swizzle: int) -> int:
        """tile (K, bytes along M or N), boxes of the swizzle's width; returns the descriptor."""
        k, length = tile.shape
        width = swizzle or 16
        base = self.reserve(k * length)
        for row in range(k):
            for chunk in range(0, length, 16):
                at = base + chunk // width * k * width + row * width + chunk % width
                at ^= (at >> 7 & {0: 0, 32: 1, 64: 3, 128: 7}[swizzle]) << 4
                self.data[at : at + 16] = tile[row, chunk : chunk + 16]
        box = k * width
        return descriptor(base, 128 if swizzle == 0 else box, box if swizzle == 0 else 8 * width, swizzle)

    def scale_atoms(self, scales: np.ndarray) -> list[int]:
        """scales (rows, 4) in atoms of 128 rows, 512 bytes each; one descriptor per atom."""
        out = []
        for first in range(0, len(scales), 128):
            base = self.reserve(512)
            for r, row in enumerate(scales[first : first + 128]):
                at = base + r % 32 * 16 + r // 32 * 4
                self.data[at : at + 4] = row
            out.append(descriptor(base, 16, 128, 0))
        return out
