"""The small-M kernel of Hopper as the GEMM operations see it: which requests it takes, its plan, its launch."""

from __future__ import annotations

from functools import cache

import torch

from cutefp4 import compile as kernel_cache
from cutefp4.config_small_m import (
    SmallMConfig,
    SmallMSplit,
    activation_bytes,
    launch_numbers,
    partial_bytes,
    ring_bytes,
    small_m_problems,
    split_of,
)
from cutefp4.gemm_plan_small_m import Sm90SmallMPlan
from cutefp4.gemm_request_sm90 import GemmRequest


def serves(request: GemmRequest) -> bool:
    """Whether the kernel has what a request asks for, whatever the configuration."""
    return not (request.batch_invariant or request.tree.halves_columns() or request.tree.quantizes())


def problems(config: SmallMConfig, request: GemmRequest, sms: int) -> list[str]:
    """Every reason why a configuration cannot serve a request; empty if it can."""
    found = []
    if not serves(request):
        found.append(
            "batch_invariant (the order of sums depends on M), or an epilogue over several columns of D, which are on "
            "different threads (SwiGLU over pairs, NVFP4 blocks)"
        )
    if request.k % 16:
        found.append(f"K = {request.k} is not a multiple of 16")
    if request.activations not in ("nvfp4", config.decode_to):
        found.append(f"decode_to={config.decode_to!r} with {request.activations} activations")
    if config.separate and request.activations != "nvfp4":
        found.append(f"separate with {request.activations} activations: it multiplies codes")
    return found + small_m_problems(config, request.m, split(config, request, sms))


def split(config: SmallMConfig, request: GemmRequest, sms: int) -> SmallMSplit:
    """How a request is shared between CTAs."""
    return _split(config, request.n, request.k, request.batch, sms)


_split = cache(split_of)


def shared_bytes(config: SmallMConfig, request: GemmRequest, sms: int) -> int:
    """Shared memory of a CTA."""
    s = split(config, request, sms)
    return activation_bytes(config, s) + partial_bytes(config, s) + ring_bytes(config)


def plan(config: SmallMConfig, request: GemmRequest, arch: str) -> Sm90SmallMPlan:
    """The plan that serves a request with a legal configuration."""
    return Sm90SmallMPlan(
        arch,
        config,
        request.tree,
        request.out_dtype,
        request.activations,
        request.a_scales,
        request.b_scales,
        vector=16 if request.k % 64 == 0 else 8,
    )


def run(
    chosen: Sm90SmallMPlan, tensors: list[torch.Tensor], arguments: list[torch.Tensor], request: GemmRequest, sms: int
) -> None:
    """Launch on (a, a_scales, b, b_scales) as they are in memory, and the epilogue's tensors."""
    numbers = launch_numbers(chosen.config, split(chosen.config, request, sms))
    kernel_cache.get(chosen)(*tensors, tuple(arguments), numbers)


def explain(chosen: Sm90SmallMPlan, request: GemmRequest, sms: int) -> list[str]:
    """What runs: shares, warps, bytes in flight, shared memory."""
    c = chosen.config
    s = split(c, request, sms)
    flight = c.warps * c.depth * c.row_tiles * 1152
    lines = [
        f"small M: the weight streams into mma.sync, decoded in registers to {c.decode_to}; D stored by elements",
        f"{s.groups * request.batch} clusters of {c.cluster} CTAs on {sms} SMs: {s.group_tiles} row tiles of 16 a "
        f"cluster, {s.cta_units} units of 128 K a CTA in {s.passes} passes",
        f"{c.row_warps} x {c.k_warps} warps (rows x K), {flight} bytes in flight per CTA",
    ]
    parts = {"activations": activation_bytes(c, s), "partial sums": partial_bytes(c, s), "in flight": ring_bytes(c)}
    return lines + [f"{name:24s} {size:7d} B" for name, size in parts.items()]
