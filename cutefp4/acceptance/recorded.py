"""GEMMs whose results an H200 has recorded (tests/fixtures/gemm_sm90.npz, made by perf/gemm_fixtures.py).

Wherever sums are exact in fp32 every kernel on every machine must give these bits. Where they round, the same Hopper
kernel must, in the emulator too: the same configuration, whatever the heuristic prefers today, and batch invariant, so
that its order of summation does not depend on the number of multiprocessors.
Approximated functions may differ in their last bits.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from cutefp4 import tuned
from cutefp4.acceptance.gemm import GemmCase
from cutefp4.acceptance.machine import Machine
from cutefp4.budget_sm90 import with_most_stages
from cutefp4.config import Sm90Config
from cutefp4.epilogue import default_epilogue
from cutefp4.format import gemm_constant
from cutefp4.gemm_request_sm90 import GemmRequest

WHOLE_BYTES = 2048
"""A larger D is kept as a digest of 8 bytes per row."""

_TAILS = tuple(
    GemmCase(m=m, n=n, k=k, out=out)
    for m, n, k, out in (
        (1, 1, 16, "float32"), (1, 300, 4096, "bfloat16"), (7, 63, 48, "bfloat16"), (16, 264, 512, "bfloat16"),
        (33, 7, 208, "float32"), (63, 129, 48, "float16"), (64, 136, 1024, "bfloat16"), (129, 300, 208, "bfloat16"),
        (129, 63, 208, "float16"), (300, 7, 64, "float32"), (300, 264, 4096, "bfloat16"), (520, 392, 96, "bfloat16"),
    )
)  # fmt: skip

_FORMS = (
    GemmCase(layout="NN", m=70, n=72),
    GemmCase(layout="NT", m=70, n=72, out="float32"),
    GemmCase(scaling_a="tensor", m=40, n=56),
    GemmCase(scaling_b="tensor", m=40, n=56),
    GemmCase(scaling_a="tensor", scaling_b="tensor", m=40, n=56, out="float16"),
    GemmCase(batch=3, m=33, n=48, k=64),
    GemmCase(batch=2, m=9, n=200, k=1536),
    GemmCase(shift=4, m=40, n=56),
    GemmCase(batch_invariant=True, m=5, n=136),
)

_EPILOGUES = tuple(
    GemmCase(m=m, n=n, k=128, bias=bias, activation=activation, accumulate=accumulate, out=out)
    for m, n, bias, activation, accumulate, out in (
        (70, 72, "bfloat16", None, False, "bfloat16"),
        (70, 72, "float32", None, False, "float32"),
        (70, 72, "float16", "relu", False, "float16"),
        (70, 72, None, "relu2", False, "bfloat16"),
        (150, 136, "bfloat16", "relu2", True, "float32"),
        (70, 71, None, None, True, "float32"),
        (70, 71, "float32", "relu", True, "bfloat16"),
        (300, 136, None, None, True, "bfloat16"),
        (8, 72, "bfloat16", "relu", True, "float32"),
    )
)

EXACT = (*_TAILS, *_FORMS, *_EPILOGUES)
"""Every machine gives these bits, and so does the oracle."""

ROUNDED = tuple(
    GemmCase(m=m, n=n, k=k, values="wide", out="float32", batch_invariant=True)
    for m, n, k in ((20, 24, 256), (129, 136, 208), (7, 63, 2048))
)
"""The same kernel on the same architecture, in the configuration `ROUNDED_CONFIG`, gives these bits."""

ROUNDED_CONFIG = Sm90Config(swap_ab=True, mma_stages=4, steps_per_group=4, store_passes=2)
"""As many stages as fit; their number does not change a sum."""

APPROXIMATED = tuple(
    GemmCase(m=5, n=72, k=128, bias=bias, activation=activation, out="float32")
    for bias, activation in (("float32", "gelu"), (None, "silu"))
)
"""A GPU's exponential: every machine comes within a few units in the last place. Small, so that D is kept whole."""

EVERY = (*EXACT, *ROUNDED, *APPROXIMATED)


def run_rounded(case: GemmCase, machine: Machine) -> torch.Tensor:
    """D of one of `ROUNDED`, in the recorded configuration."""
    tree = default_epilogue(gemm_constant(448, 448), "row", "column")
    scales = case.scales_a, case.scales_b
    request = GemmRequest(case.m, case.n, case.k, 1, case.out, "nvfp4", *scales, tree, batch_invariant=True)
    operands = request.shape().operands(ROUNDED_CONFIG)
    config = with_most_stages(ROUNDED_CONFIG, *operands, request.staged_store())
    with tuned.use([tuned.TunedEntry("gemm", "sm_90a", request.problem(machine.sms), config)]):
        return case.run(machine, None if machine.native else case.seed)


def digest(d: torch.Tensor) -> np.ndarray:
    """The bytes of D, or 8 bytes of SHA-256 for each row of a larger one: (rows, 8)."""
    rows = d.contiguous().flatten(0, -2).view(torch.uint8).numpy()
    if rows.nbytes <= WHOLE_BYTES:
        return rows
    return np.stack([np.frombuffer(hashlib.sha256(row.tobytes()).digest()[:8], np.uint8) for row in rows])


def values(recorded: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """D that was recorded whole, with dtype and shape of `like`."""
    return torch.from_numpy(recorded.copy()).view(like.dtype).view(like.shape)


def first_difference(d: torch.Tensor, recorded: np.ndarray) -> str | None:
    """Where D differs from what was recorded, None if nowhere."""
    found = digest(d)
    if found.shape != recorded.shape:
        return f"a record of shape {found.shape}, recorded {recorded.shape}"
    if (found == recorded).all():
        return None
    row, byte = (int(i) for i in np.argwhere(found != recorded)[0])
    differing = int((found != recorded).any(axis=1).sum())
    if found.shape[1] != d.shape[-1] * d.element_size():
        return f"row {row}; {differing} of {len(found)} rows differ"
    column = byte // d.element_size()
    old = torch.from_numpy(recorded[row].copy()).view(d.dtype)[column]
    new = d.flatten(0, -2)[row, column]
    return f"({row}, {column}): {float(new)!r}, recorded {float(old)!r}; {differing} of {len(found)} rows differ"
