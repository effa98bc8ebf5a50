"""Shared-memory access patterns with a known number of wavefronts, for the emulator's counters."""

from __future__ import annotations

import numpy as np

from .kernel import Buffer, Microkernel
from .lanewise import HEADER


def strided(words: int, stride: int, store: bool = False) -> Microkernel:
    """One warp reads (or writes) ``words`` 32-bit words per lane, lanes ``stride`` words apart."""
    vector = {1: "b32", 2: "v2.b32", 4: "v4.b32"}[words]
    regs = {1: "%r0", 2: "{%r0, %r1}", 4: "{%r0, %r1, %r2, %r3}"}[words]
    size = 32 * stride * 4 + 16
    access = f"st.shared.{vector} [%s], {regs};" if store else f"ld.shared.{vector} {regs}, [%s];"
    ptx = f"""{HEADER}
.visible .entry k(.param .u64 OUT)
{{
  .shared .align 16 .b8 sm[{size}];
  .reg .b64 %po, %off; .reg .b32 %i, %j, %s, %base, %r<4>; .reg .pred %q;
  ld.param.u64 %po, [OUT]; mov.u32 %i, %tid.x; mov.u32 %base, sm;
  mov.b32 %r0, 1; mov.b32 %r1, 2; mov.b32 %r2, 3; mov.b32 %r3, 4; shl.b32 %j, %i, 2;
FILL: setp.ge.u32 %q, %j, {size}; @%q bra FILLED;
  add.u32 %s, %base, %j; st.shared.b32 [%s], %j; add.u32 %j, %j, 128; bra FILL;
FILLED:
  bar.warp.sync 0xffffffff;
  mad.lo.u32 %s, %i, {4 * stride}, %base;
  {access}
  add.u32 %r0, %r0, %i; mul.wide.u32 %off, %i, 4; add.s64 %po, %po, %off; st.global.b32 [%po], %r0;
  ret;
}}
"""
    out = Buffer("out", np.zeros(32, dtype=np.uint32), result=True)
    return Microkernel(f"stride_{words}_{stride}", ptx, (out,), block=(32, 1, 1))
