"""Small PTX kernels for the tests: one output buffer of 32-bit words, tid in %lane, the thread's own slot in %mine."""

from __future__ import annotations

import numpy as np
import torch

from cutefp4 import emulator


def kernel(body: str, arch: str = "sm_100a", declarations: str = "", module: str = "", params: str = "") -> str:
    """PTX of kernel k(OUT, params...). The body may store its result to [%mine]."""
    return f""".version 8.8
.target {arch}
.address_size 64
{module}
.visible .entry k(.param .u64 OUT{params})
{{
  {declarations}
  .reg .b32 %lane, %r<40>;
  .reg .b64 %mine, %out, %rd<20>;
  .reg .b16 %h<8>;
  .reg .pred %p, %q, %s;
  ld.param.u64 %out, [OUT];
  cvta.to.global.u64 %out, %out;
  mov.u32 %lane, %tid.x;
  mad.wide.u32 %mine, %lane, 4, %out;
{body}
  ret;
}}
"""


def launch(
    text: str,
    words: int = 128,
    block: int = 32,
    grid: int = 1,
    extra=(),
    arch: str = "sm_100a",
    cluster: int = 1,
    smem: int = 0,
    **device,
) -> tuple[np.ndarray, emulator.LaunchReport]:
    """Runs it; the output words (zero at first) and the report."""
    out = torch.zeros(words, dtype=torch.int32)
    with emulator.device(arch, **device) as dev:
        report = dev.launch_ptx(
            text, "k", (grid, 1, 1), (block, 1, 1), [out, *extra], cluster=(cluster, 1, 1), smem=smem
        )
    return out.numpy().view(np.uint32), report


def fault(text: str, *args, **kwargs) -> emulator.LaunchReport:
    """The report of a launch that must fail."""
    try:
        launch(text, *args, **kwargs)
    except emulator.KernelFault as error:
        return error.report
    raise AssertionError("the kernel's fault was not found")
