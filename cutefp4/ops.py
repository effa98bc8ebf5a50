"""The operations of the kernel backends, by backend and name: what `cutefp4.backend` runs.

Each function takes the arguments of the oracle's function of the same name and returns the same kind of result. CUDA
tensors are served by the kernels of their device; CPU tensors by the emulator, while its target is active.
"""

from __future__ import annotations

from cutefp4 import ops_quantize

OPERATIONS = {**ops_quantize.OPERATIONS}

OPS = {"sm90": OPERATIONS, "sm100": OPERATIONS}
