"""Launches of the Hopper GEMM: allocate D, choose a plan, run.

    gemm        NVFP4 x NVFP4, the operation "gemm" of the backends
    gemm_tree   the same with an epilogue that the user composed
    gemm_a16    bf16 or fp16 activations x NVFP4 weight
    gemm_plan   what they would run, and why, without running it

Few rows of A may run on a kernel of their own (ops_gemm_small_m.py), which takes any K. The other one needs a multiple
of 64: otherwise codes are copied once with zeros at the end of each row (tiled scales are padded already, compact ones
are copied too); `explain` says so.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import ops_gemm_few_rows as few
from cutefp4 import ops_gemm_small_m as small
from cutefp4 import tuned, workspace
from cutefp4.config import K_BLOCK
from cutefp4.epilogue import Epilogue
from cutefp4.epilogue_text import alpha_kinds, composed_text, default_text, tree_of
from cutefp4.errors import UnsupportedError
from cutefp4.format import BLOCK
from cutefp4.gemm_choice_sm90 import AnyPlan, PlannedGemm, make_plan
from cutefp4.gemm_plan import Sm90GemmPlan
from cutefp4.gemm_plan_few_rows import Sm90FewRowsPlan
from cutefp4.gemm_plan_small_m import Sm90SmallMPlan
from cutefp4.gemm_request_sm90 import GemmRequest
from cutefp4.launch import Operator, arch_of, sm_count, target
from cutefp4.operand import Nvfp4Operand
from cutefp4.scale_layout import round_up

_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}

_plans: dict[tuple, tuple[AnyPlan, int]] = {}


def _planned(request: GemmRequest, device: torch.device) -> tuple[AnyPlan, int]:
    key = (request, device, target(device), tuned.generation())
    found = _plans.get(key)
    if found is None:
        sms = sm_count(device)
        found = _plans[key] = make_plan(request, arch_of(device), sms), sms
    return found


def _padded(rows: torch.Tensor, columns: int) -> torch.Tensor:
    """Rows filled with zeros up to a multiple of `columns`."""
    missing = -rows.shape[-1] % columns
    return torch.nn.functional.pad(rows, (0, missing)) if missing else rows


def _padded_operand(rows: torch.Tensor, scales: torch.Tensor) -> list[torch.Tensor]:
    """Codes (or 16-bit rows) and scales of an operand with K padded to 64; tiled scales are padded already."""
    padded = _padded(rows, K_BLOCK // 2 if rows.dtype == torch.uint8 else K_BLOCK)
    return [padded, scales if scales.dim() == 1 else _padded(scales, K_BLOCK // BLOCK)]


def _scales(operand: Nvfp4Operand) -> torch.Tensor:
    """Tiled: flat bytes. Compact: (L, rows, K/16) bytes."""
    raw = operand.block_scales.view(torch.uint8)
    if operand.scale_layout == "tiled":
        return raw.reshape(-1)
    return raw if raw.dim() == 3 else raw[None]


def _run(tensors: list[torch.Tensor], named: dict[str, torch.Tensor], d, request: GemmRequest) -> None:
    """named: the tree's leaves and sinks, in its order."""
    plan, sms = _planned(request, d.device)
    if isinstance(plan, Sm90SmallMPlan):
        small.run(plan, tensors, [d, *named.values()], request, sms)
        return
    if isinstance(plan, Sm90FewRowsPlan):
        few.run(plan, tensors, [d, *named.values()])
        return
    if request.k % K_BLOCK:
        tensors = _padded_operand(*tensors[:2]) + _padded_operand(*tensors[2:])
    arguments = [d, *named.values(), *buffers(plan, request, sms, d.device)]
    kernel_cache.get(plan)(*tensors, tuple(arguments), sms)


def buffers(plan: Sm90GemmPlan, r: GemmRequest, sms: int, device: torch.device) -> list[torch.Tensor]:
    """What a plan needs besides operands and outputs: partial sums and counters if CTAs share K, the staged operand.

    A staged operand can be hundreds of megabytes and lives for one call, so it comes from PyTorch's allocator (which
    knows streams and CUDA graphs) and not from the workspaces, which are kept for every stream and capture.
    """
    c, found = plan.config, []
    rows_m, rows_n = (r.n, r.m) if c.swap_ab else (r.m, r.n)
    if c.uses_workspace:
        tiles = c.cluster * -(-rows_m // (c.cluster * c.tile_m)) * -(-rows_n // c.tile_n) * r.batch
        shape = (c.partial_slots(tiles, sms), c.consumer_groups, c.m_atoms * c.tile_n // 2, 128)
        count, counters = shape[0] * shape[1] * shape[2] * shape[3], tiles * c.consumer_groups
        space = workspace.get(device, scratch_bytes=4 * count, semaphores=counters)
        found += [space.partials[:count].view(shape), space.semaphores[:counters]]
    if c.staged:
        dtype = torch.float16 if c.decode_to == "float16" else torch.bfloat16
        found.append(torch.empty(r.batch, rows_n, round_up(r.k, c.tile_k), dtype=dtype, device=device))
    return found


# ---------------------------------------------------------------- operators


def _gemm_into(
    a, a_scales, b, b_scales, leaves, sinks, d, tree: str, activations: str, batch_invariant: bool
) -> None:  # fmt: skip
    """Run on 3-D operands; `leaves` and `sinks` are in the order of the tree's."""
    if activations != "nvfp4":
        _check_activations(a)  # here and not earlier: traced tensors have no address
    l, m, _ = a.shape
    tree = tree_of(tree)
    named = dict(zip((node.name for node in (*tree.leaves(), *tree.sinks)), (*leaves, *sinks), strict=True))
    request = GemmRequest(
        m,
        b.shape[1],
        b.shape[2] * 2,
        l,
        _NAMES[d.dtype],
        activations,
        "tiled" if a_scales.dim() == 1 else "compact",
        "tiled" if b_scales.dim() == 1 else "compact",
        tree,
        all(t.data_ptr() % 16 == 0 for t in (d, *(t for t in named.values() if t.dim() == 3))),
        batch_invariant,
        "c" in named and named["c"].data_ptr() == d.data_ptr(),
    )
    _run([a, a_scales, b, b_scales], named, d, request)


gemm_into = Operator(
    "gemm_sm90_into(Tensor a, Tensor a_scales, Tensor b, Tensor b_scales, Tensor[] leaves, Tensor(b!)[] sinks, "
    "Tensor(a!) d, str tree, str activations, bool batch_invariant) -> ()",
    _gemm_into,
)


def _batched(t: torch.Tensor, dims: int) -> torch.Tensor:
    """With a batch axis in front, if it has none."""
    return t[None] if t.dim() == dims - 1 else t


_LEAF_DIMS = {"alpha_a": 0, "alpha_b": 0, "bias": 2, "c": 3}
"""0: already has a batch axis."""


def _amax(operand: Nvfp4Operand) -> torch.Tensor:
    """(L,) per tensor, (L, rows) per token."""
    return operand.amax if operand.batch_shape else operand.amax[None]


def _leaves(named: dict[str, torch.Tensor | None], dims: dict[str, int]) -> list[torch.Tensor]:
    """The tensors that are there, in the order of their names (which is the tree's), each with a batch axis."""
    return [_batched(named[name], dims[name]) for name in sorted(named) if named[name] is not None]


def _bias(bias: torch.Tensor | None, batch: int) -> torch.Tensor | None:
    return None if bias is None else bias[None].expand(batch, -1).contiguous()


def _default_arguments(a: Nvfp4Operand, b: Nvfp4Operand, bias, activation, c, beta: float) -> tuple[str, list]:
    """(text, leaves) of the default tree for a pair."""
    batch = a.batch_shape[0] if a.batch_shape else 1
    c = c if beta else None
    text = default_text(
        (a.e4m3_max, b.e4m3_max),
        alpha_kinds(a, b),
        None if bias is None else _NAMES[bias.dtype],
        activation,
        None if c is None else _NAMES[c.dtype],
        beta,
    )
    named = {"alpha_a": _amax(a), "alpha_b": _amax(b), "bias": _bias(bias, batch), "c": c}
    return text, _leaves(named, _LEAF_DIMS)


def _pair(a: Nvfp4Operand, b: Nvfp4Operand) -> list[torch.Tensor]:
    """Codes and scales of both operands as the kernel takes them."""
    return [_batched(a.codes, 3), _scales(a), _batched(b.codes, 3), _scales(b)]


def gemm(
    a: Nvfp4Operand,
    b: Nvfp4Operand,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    c: torch.Tensor | None = None,
    beta: float = 1.0,
    out_dtype: torch.dtype = torch.bfloat16,
    out: torch.Tensor | None = None,
    batch_invariant: bool = False,
) -> torch.Tensor:
    """D = activation(z + bias) + beta * C, as `cutefp4.gemm` defines it, with the arguments already checked there."""
    d = torch.empty(*a.batch_shape, a.rows, b.rows, dtype=out_dtype, device=a.device) if out is None else out
    if 0 in d.shape:
        return d
    text, leaves = _default_arguments(a, b, bias, activation, c, beta)
    gemm_into(*_pair(a, b), leaves, [], _batched(d, 3), text, "nvfp4", batch_invariant)
    return d


def gemm_tree(
    a: Nvfp4Operand,
    b: Nvfp4Operand,
    tree: Epilogue,
    tensors: Mapping[str, torch.Tensor],
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    out: torch.Tensor | None = None,
    batch_invariant: bool = False,
) -> torch.Tensor:
    """A product with an epilogue that the caller composed.

    Args:
        tree: made by the decorator `cutefp4.epilogue`.
        tensors: its leaves and sinks as `epilogue_tensors` returns them: in order, each with a batch axis.
    """
    columns = b.rows // 2 if tree.halves_columns() else b.rows
    d = torch.empty(*a.batch_shape, a.rows, columns, dtype=out_dtype, device=a.device) if out is None else out
    if 0 in d.shape:
        return d
    count = len(tensors) - len(tree.sinks)
    named = list(tensors.values())
    text = composed_text(a, b, tree)
    gemm_into(*_pair(a, b), named[:count], named[count:], _batched(d, 3), text, "nvfp4", batch_invariant)
    return d


def _check_activations(x: torch.Tensor) -> None:
    if x.data_ptr() % 16:
        raise UnsupportedError(
            f"activations of shape {tuple(x.shape)} that start {x.data_ptr() % 16} bytes behind a multiple of 16",
            "activations 16-byte aligned",
            "copy the slice: x.clone()",
        )


def _a16_arguments(w: Nvfp4Operand, bias, activation) -> tuple[str, list]:
    """(text, leaves) of the default tree of `gemm_a16`."""
    bias_dtype = None if bias is None else _NAMES[bias.dtype]
    kinds = ("none", "column" if w.scaling == "token" else "scalar")
    text = default_text((w.e4m3_max,), kinds, bias_dtype, activation, None, 1.0)
    return text, _leaves({"alpha_b": _amax(w), "bias": _bias(bias, 1)}, _LEAF_DIMS)


def gemm_a16(
    x: torch.Tensor,
    w: Nvfp4Operand,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    batch_invariant: bool = False,
) -> torch.Tensor:
    """Y = activation(x W^T + bias) as `cutefp4.gemm_a16` defines it, with the arguments already checked there.

    Args:
        x: (M, K). w: (N, K). out: (M, N).

    Raises:
        UnsupportedError: x is not aligned.
    """
    d = torch.empty(x.shape[0], w.rows, dtype=out_dtype or x.dtype, device=x.device) if out is None else out
    if 0 in d.shape:
        return d
    unused = w.block_scales.view(torch.uint8).reshape(-1)
    text, leaves = _a16_arguments(w, bias, activation)
    operands = [x[None], unused, w.codes[None], _scales(w)]
    gemm_into(*operands, leaves, [], d[None], text, _NAMES[x.dtype], batch_invariant)
    return d


# ---------------------------------------------------------------- plans


def gemm_plan(
    a: Nvfp4Operand | torch.Tensor,
    b: Nvfp4Operand,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    c: torch.Tensor | None = None,
    beta: float = 1.0,
    out_dtype: torch.dtype = torch.bfloat16,
    out: torch.Tensor | None = None,
    batch_invariant: bool = False,
    tree: Epilogue | None = None,
) -> PlannedGemm:
    """What `gemm`, with `tree` `gemm_tree`, and with a 16-bit tensor as `a` `gemm_a16` would run; runs nothing.

    Without `out`, D is taken to be aligned as PyTorch aligns new tensors.
    """
    is_a16 = isinstance(a, torch.Tensor)
    if is_a16:
        _check_activations(a)
        text, _ = _a16_arguments(b, bias, activation)
    elif tree is None:
        text, _ = _default_arguments(a, b, bias, activation, c, beta)
    else:
        text = composed_text(a, b, tree)
    matrices = [t for t in (out, c) if t is not None]
    request = GemmRequest(
        a.shape[0] if is_a16 else a.rows,
        b.rows,
        b.k,
        b.batch_shape[0] if b.batch_shape else 1,
        _NAMES[out_dtype],
        _NAMES[a.dtype] if is_a16 else "nvfp4",
        "tiled" if is_a16 else a.scale_layout,
        b.scale_layout,
        tree_of(text),
        all(t.data_ptr() % 16 == 0 for t in matrices),
        batch_invariant,
        c is not None and beta != 0 and out is not None and c.data_ptr() == out.data_ptr(),
    )
    plan, sms = _planned(request, b.device)
    return PlannedGemm(request, plan, sms)
