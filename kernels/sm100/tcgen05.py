"""The tcgen05 instructions of the kernel, one function each, and their descriptors.

All are asynchronous except `load_columns`. mma, copy_scales and commit of one CTA group form one in-order queue when
the same thread issues them, so that a scale copy needs no barrier before the MMA that reads it, and overwrites no scale
that an earlier MMA still reads. Order against other threads goes through mbarriers, with `fence_after` behind the wait.

Shared-memory descriptor (64 bits): [13:0] address / 16, [29:16] leading and [45:32] stride byte offset / 16, [48:46] =
1, [63:61] swizzle (0 none, 2 128-byte).
Instruction descriptor (32 bits) of block-scaled kinds: [5:4] SFB id, [9:7] type of A and [12:10] of B (1 = e2m1),
[22:17] N / 8, [23] scale format (0 = ue4m3), [28:24] M / 16, [30:29] SFA id.
"""

from cutlass import Boolean, Float32, Int32, Int64, Uint32

from ..common.ptx import asm

_E2M1 = 1
_DESCRIPTOR_VERSION = 1 << 46
CODE_DESCRIPTOR = 1 << 16 | (1024 >> 4) << 32 | _DESCRIPTOR_VERSION | 2 << 61
"""Codes, K-major, 128-byte swizzle: groups of 8 rows lie 1024 bytes apart."""
SCALE_DESCRIPTOR = 1 << 16 | (128 >> 4) << 32 | _DESCRIPTOR_VERSION
"""A 128x4 scale tile as 32 rows of 16 bytes, no swizzle: groups of 8 rows lie 128 bytes apart."""


def instruction_descriptor(m: int, n: int) -> int:
    """e2m1 times e2m1 with ue4m3 scales, fp32 sums, both operands K-major."""
    return _E2M1 << 7 | _E2M1 << 10 | (n // 8) << 17 | (m // 16) << 24


def smem_descriptor(address: Int32, kind: int) -> Int64:
    """Descriptor of an operand at a multiple of 16 bytes. `kind`: CODE_DESCRIPTOR or SCALE_DESCRIPTOR."""
    return Int64((address & 0x3FFFF) >> 4) | Int64(kind - (1 << 64) if kind >> 63 else kind)


def mma(group: int, d: Int32, a: Int64, b: Int64, descriptor: int, sfa: Int32, sfb: Int32, accumulate: Boolean) -> None:
    """D (+)= (A * SFA) (B * SFB)^T over 64 elements of K; D, SFA and SFB are tensor-memory addresses. One thread."""
    text = (
        "{ .reg .pred p; setp.ne.u32 p, $6, 0;"
        f" tcgen05.mma.cta_group::{group}.kind::mxf4nvf4.block_scale.scale_vec::4X [$0], $1, $2, $3, [$4], [$5], p; }}"
    )
    asm(text, None, d, a, b, Uint32(descriptor), sfa, sfb, Uint32(accumulate), effect=True)


def copy_scales(group: int, tmem: Int32, source: Int64) -> None:
    """A scale tile from shared memory to 4 columns: scale k of row r becomes byte k of lane r % 32, column r / 32,
    repeated in all four quarters of the lanes. With group 2 each CTA copies from its own shared memory. One thread."""
    asm(f"tcgen05.cp.cta_group::{group}.32x128b.warpx4 [$0], $1;", None, tmem, source, effect=True)


def commit(group: int, barrier: Int32, mask: int | Int32 | None) -> None:
    """Arrive once on `barrier` (shared address) when everything that this thread has queued is done.

    mask: CTAs of the cluster on whose barrier at the same offset to arrive; None for this CTA.
    """
    name = f"tcgen05.commit.cta_group::{group}.mbarrier::arrive::one.shared::cluster"
    if mask is None:
        asm(f"{name}.b64 [$0];", None, barrier, effect=True)
    else:
        text = f"{{ .reg .b16 m; cvt.u16.u32 m, $1; {name}.multicast::cluster.b64 [$0], m; }}"
        asm(text, None, barrier, Uint32(mask), effect=True)


def load_columns(address: Int32, count: int) -> tuple[Float32, ...]:
    """`count` columns of this thread's lane (warp w of a warpgroup: lanes 32w .. 32w + 31). Whole warp.

    The wait is part of the text: arithmetic on the results could otherwise be moved before it.
    """
    registers = ", ".join(f"${i}" for i in range(count))
    text = f"tcgen05.ld.sync.aligned.32x32b.x{count}.b32 {{{registers}}}, [${count}]; tcgen05.wait::ld.sync.aligned;"
    return asm(text, (Float32,) * count, address, effect=True)


def fence_after() -> None:
    """What this thread does next with tensor memory comes after what it has waited for."""
    asm("tcgen05.fence::after_thread_sync;", None, effect=True)


def fence_before() -> None:
    """What this thread did with tensor memory comes before its next arrival."""
    asm("tcgen05.fence::before_thread_sync;", None, effect=True)


def arrive_in_cluster(barrier: Int32, rank: Int32) -> None:
    """Arrive on the barrier of CTA `rank` at this CTA's address `barrier`."""
    text = (
        "{ .reg .b32 r; mapa.shared::cluster.u32 r, $0, $1;"
        " mbarrier.arrive.release.cluster.shared::cluster.b64 _, [r]; }"
    )
    asm(text, None, barrier, rank, effect=True)
