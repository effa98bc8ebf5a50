"""Faults to inject into the two GEMM kernels: one textual change each, of the kind that people make.

A fault has to be caught: by an error or warning of the emulator that names a place, by a deadlock report, or by a wrong
result, under at least one of a few fixed seeds. Changes that leave the kernel right do not belong here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import blackwell_gemm, hopper_gemm
from .kernel import Microkernel


@dataclass(frozen=True)
class Fault:
    """Replace occurrence number ``which`` of ``old`` (of ``times`` in the text) by ``new``."""

    what: str
    old: str
    new: str = ""
    which: int = 0
    times: int = 1

    def inject(self, kernel: Microkernel) -> Microkernel:
        parts = kernel.ptx.split(self.old)
        if len(parts) != self.times + 1:
            raise ValueError(f"{self.what}: expected {self.times} places of {self.old!r} and found {len(parts) - 1}")
        head, tail = self.old.join(parts[: self.which + 1]), self.old.join(parts[self.which + 1 :])
        return replace(kernel, ptx=head + self.new + tail)


_H, _B = hopper_gemm, blackwell_gemm

HOPPER = (
    Fault("barrier initialisation neither fenced nor released",
          "fence.mbarrier_init.release.cluster;\n  barrier.cluster.arrive.release.aligned;",
          "barrier.cluster.arrive.relaxed.aligned;"),
    Fault("no cluster barrier after the initialisation",
          "barrier.cluster.arrive.release.aligned;\n  barrier.cluster.wait.acquire.aligned;\n  mov.b32", "mov.b32"),
    Fault("no cluster barrier before the exit",
          "barrier.cluster.arrive.release.aligned;\n  barrier.cluster.wait.acquire.aligned;\n  ret;", "ret;"),
    Fault("producer does not wait for an empty stage", "@!%q bra P_WAIT;"),
    Fault("producer waits for the wrong parity", "xor.b32 %t, %parity, 1;", "mov.b32 %t, %parity;"),
    Fault("expected bytes too few", "[%bar], 16384;", "[%bar], 12288;"),
    Fault("expected bytes too many", "[%bar], 16384;", "[%bar], 20480;"),
    Fault("full barrier expects two arrivals", "[%full+8], 1;", "[%full+8], 2;"),
    Fault("empty barriers count one CTA only", "[%empty+0], 8;", "[%empty+0], 4;"),
    Fault("consumer does not wait for a full stage", "@!%q bra C_WAIT;"),
    Fault("consumer's parity never flips", "mov.b32 %stage, 0; xor.b32 %parity, %parity, 1;\nC_NEXT",
          "mov.b32 %stage, 0;\nC_NEXT"),
    Fault("no wgmma.fence", "wgmma.fence.sync.aligned;"),
    Fault("no wgmma.commit_group", "wgmma.commit_group.sync.aligned;"),
    Fault("stage released while wgmma may still read it", "wgmma.wait_group.sync.aligned 1;"),
    Fault("accumulators read before wgmma is done", "wgmma.wait_group.sync.aligned 0;"),
    Fault("stage not released in the own CTA", "@%q mbarrier.arrive.release.cta.shared::cta.b64 _, [%t];"),
    Fault("stage not released in the other CTA", "@%lead mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%u];"),
    Fault("stage released twice", "@%lead mbarrier.arrive.release.cta.shared::cta.b64 _, [%t];",
          "@%lead mbarrier.arrive.release.cta.shared::cta.b64 _, [%t], 2;"),
    Fault("descriptor stride halved", f"add.s64 %da0, %da0, {_H.DESCRIPTOR};",
          f"add.s64 %da0, %da0, {_H.DESCRIPTOR - (32 << 32)};"),
    Fault("descriptor swizzle of 64 bytes", f"add.s64 %db0, %db0, {_H.DESCRIPTOR};",
          f"add.s64 %db0, %db0, {_H.DESCRIPTOR + (1 << 62)};"),
    Fault("K advance twice too far", "add.s64 %da, %da0, 2;", "add.s64 %da, %da0, 4;"),
    Fault("multicast to one CTA", "mov.b16 %both, 3;", "mov.b16 %both, 1;"),
    Fault("both halves of B to the same place", f"mad.lo.u32 %t, %rank, {_H.B_BYTES // 2}, %t;"),
    Fault("no proxy fence before the TMA store", "fence.proxy.async.shared::cta;"),
    Fault("TMA store not after a barrier", "fence.proxy.async.shared::cta;\n  bar.sync 1, 128;",
          "fence.proxy.async.shared::cta;"),
    Fault("D tile overwritten while a TMA store reads it", "@%p cp.async.bulk.wait_group.read 0;"),
    Fault("nobody waits for the thread that waits for the TMA store",
          "@%p cp.async.bulk.wait_group.read 0;\n  bar.sync 1, 128;", "@%p cp.async.bulk.wait_group.read 0;"),
    Fault("TMA store never committed", "@%p cp.async.bulk.commit_group;"),
    Fault("exit before the TMA store has read the tile", "@%p cp.async.bulk.wait_group 0;"),
    Fault("stmatrix to an unswizzled place", "and.b32 %u, %lane, 7; shl.b32 %chunk, %u, 4;", "mov.b32 %chunk, 0;"),
)  # fmt: skip

BLACKWELL = (
    Fault("barrier initialisation not fenced", "fence.mbarrier_init.release.cluster;"),
    Fault("producer does not wait for an empty stage", "@!%q bra P_WAIT;"),
    Fault("producer waits for the wrong parity", "mad.lo.u32 %bar, %stage, 8, %empty; xor.b32 %t, %parity, 1;",
          "mad.lo.u32 %bar, %stage, 8, %empty; mov.b32 %t, %parity;"),
    Fault("expected bytes forget the scales of B", f"[%bar], {_B.STAGE_BYTES};",
          f"[%bar], {_B.STAGE_BYTES - _B.SCALE_BYTES};"),
    Fault("scales of B not copied", f"cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%t], [%gb], "
          f"{_B.SCALE_BYTES}, [%bar];"),
    Fault("tensor core does not wait for a full stage", "@!%q bra M_WAIT;"),
    Fault("tensor core does not wait for a drained accumulator", "@!%q bra M_ACC;"),
    Fault("accumulator counts as drained after one warp", "[%aempty+0], 4;", "[%aempty+0], 1;"),
    Fault("epilogue does not wait for the accumulator", "@!%q bra E_WAIT;"),
    Fault("epilogue's parity never flips", "@%q xor.b32 %aparity, %aparity, 1;", which=1, times=2),
    Fault("stage released by a plain arrival instead of a commit",
          "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%bar];\n  add.u32",
          "mbarrier.arrive.shared::cta.b64 _, [%bar];\n  add.u32"),
    Fault("stage never committed",
          "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%bar];\n  add.u32", "add.u32"),
    Fault("accumulator never committed",
          "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%bar];\n  xor.b32", "xor.b32"),
    Fault("scales of B one column off", f"add.u32 %sfb, %tmem, {_B.SFB_COLUMN + 4};",
          f"add.u32 %sfb, %tmem, {_B.SFB_COLUMN + 5};"),
    Fault("scales of A from the k step before", f"add.u32 %sfa, %tmem, {_B.SFA_COLUMN + 8};",
          f"add.u32 %sfa, %tmem, {_B.SFA_COLUMN + 4};"),
    Fault("one copy of scales forgotten", f"add.u32 %u, %tmem, {_B.SFA_COLUMN + 12};\n"
          "  tcgen05.cp.cta_group::1.32x128b.warpx4 [%u], %da;"),
    Fault("scale descriptor with the codes' stride", f"add.s64 %db, %db, {_B.SCALE_DESCRIPTOR};",
          f"add.s64 %db, %db, {_B.SCALE_DESCRIPTOR + (56 << 32)};", times=2),
    Fault("code descriptor with 64-byte swizzle", f"add.s64 %da0, %da0, {_B.CODE_DESCRIPTOR};",
          f"add.s64 %da0, %da0, {_B.CODE_DESCRIPTOR + (2 << 61)};"),
    Fault("instruction descriptor says ue8m0 scales", f"mov.b32 %idesc, {_B.INSTRUCTION};",
          f"mov.b32 %idesc, {_B.INSTRUCTION | 1 << 23};"),
    Fault("instruction descriptor with N = 64", f"mov.b32 %idesc, {_B.INSTRUCTION};",
          f"mov.b32 %idesc, {_B.INSTRUCTION - (8 << 17)};"),
    Fault("sum restarted at every k block", "mov.b32 %kb, 0; setp.ne.u32 %acc, 0, 0;\nM_K:",
          "mov.b32 %kb, 0;\nM_K:\n  setp.ne.u32 %acc, 0, 0;"),
    Fault("no tcgen05.wait::ld", "tcgen05.wait::ld.sync.aligned;", which=3, times=4),
    Fault("TMEM read in another warp's lanes", "shl.b32 %t, %warp, 21;", "shl.b32 %t, %warp, 20;"),
    Fault("too few TMEM columns", "[%slot], 512;", "[%slot], 256;"),
    Fault("TMEM not freed", "tcgen05.dealloc.cta_group::1.sync.aligned.b32 %tmem, 512;"),
    Fault("TMEM freed while the epilogue reads", "bar.warp.sync 0xffffffff;\n  bar.sync 0;",
    "bar.warp.sync 0xffffffff;"),
    Fault("no proxy fence before the TMA store", "fence.proxy.async.shared::cta;"),
    Fault("TMA store not after a barrier", "fence.proxy.async.shared::cta;\n  bar.sync 1, 128;",
          "fence.proxy.async.shared::cta;"),
    Fault("D tile overwritten while a TMA store reads it", "@%p cp.async.bulk.wait_group.read 0;"),
    Fault("TMA store never committed", "@%p cp.async.bulk.commit_group;"),
)  # fmt: skip
