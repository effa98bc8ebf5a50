"""The Hopper kernel for some dozens of rows as the GEMM operations see it: requests, plan, launch."""

from __future__ import annotations

import torch

from cutefp4 import compile as kernel_cache
from cutefp4.config import K_BLOCK
from cutefp4.config_few_rows import STAGE_K, FewRowsConfig, ceil_div, few_rows_problems, partial_bytes, stage_bytes
from cutefp4.gemm_plan_few_rows import Sm90FewRowsPlan
from cutefp4.gemm_request_sm90 import GemmRequest
from cutefp4.scale_layout import round_up


def serves(request: GemmRequest) -> bool:
    """Whether the kernel has what a request asks for, whatever the configuration."""
    plain = not (request.batch_invariant or request.tree.halves_columns() or request.tree.quantizes())
    return plain and request.b_scales == "tiled" and request.k % K_BLOCK == 0


def problems(config: FewRowsConfig, request: GemmRequest) -> list[str]:
    """Every reason why a configuration cannot serve a request; empty if it can."""
    found = []
    if not serves(request):
        found.append(
            f"few rows: K a multiple of {K_BLOCK} and a weight with tiled scales, without batch_invariant (the order "
            "of sums depends on M) and without epilogues over several columns of D (SwiGLU over pairs, NVFP4 blocks)"
        )
    if request.activations not in ("nvfp4", config.decode_to):
        found.append(f"decode_to={config.decode_to!r} with {request.activations} activations")
    return found + few_rows_problems(config, request.m)


def plan(config: FewRowsConfig, request: GemmRequest, arch: str) -> Sm90FewRowsPlan:
    """The plan that serves a request with a legal configuration."""
    return Sm90FewRowsPlan(arch, config, request.tree, request.out_dtype, request.activations, request.a_scales)


def run(chosen: Sm90FewRowsPlan, tensors: list[torch.Tensor], arguments: list[torch.Tensor]) -> None:
    """Launch on (a, a_scales, b, b_scales) as they are in memory, and the epilogue's tensors.

    The activations are staged in PyTorch's memory, which knows streams and CUDA graphs.
    """
    l, m, _ = tensors[0].shape
    dtype = torch.float16 if chosen.config.decode_to == "float16" else torch.bfloat16
    k = 2 * tensors[2].shape[2]
    staged = torch.empty(l, m, round_up(k, STAGE_K), dtype=dtype, device=tensors[0].device)
    kernel_cache.get(chosen)(*tensors, (*arguments, staged))


def explain(chosen: Sm90FewRowsPlan, request: GemmRequest, sms: int) -> list[str]:
    """What runs: tiles, shares of K, shared memory."""
    c = chosen.config
    tiles, stages = ceil_div(request.n, c.tile_m) * request.batch, ceil_div(request.k, STAGE_K)
    lines = [
        f"few rows: {c.tile_m} rows of the weight times {c.tile_n} of A by wgmma, decoded in registers to "
        f"{c.decode_to}; A {'decoded' if chosen.activations == 'nvfp4' else 'reordered'} once into "
        f"{request.batch * request.m * round_up(request.k, STAGE_K) * 2 / 1e6:.1f} MB; D stored by elements",
        f"{tiles} clusters of {c.cluster} CTAs on {sms} SMs: {ceil_div(stages, c.cluster)} stages of {STAGE_K} along K "
        f"each, taken in turn by {c.k_groups} warpgroups for each 64 rows",
    ]
    parts = {f"{c.stages} stages": c.stages * stage_bytes(c), "partial sums": partial_bytes(c)}
    return lines + [f"{name:24s} {size:7d} B" for name, size in parts.items()]
