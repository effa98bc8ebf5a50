"""Launches of the Blackwell GEMM: allocate D, choose a plan, run.

    gemm        NVFP4 x NVFP4, the operation "gemm" of the backends
    gemm_tree   the same with an epilogue that the user composed; D may be NVFP4
    gemm_plan   what they run, and why (`PlannedGemm.explain`), without running it

K must be a multiple of 32 inside the kernel (rows of codes of 16 bytes). Otherwise codes are copied once with zeros at
the end of each row; tiled scales are padded already. Scales must be tiled: tcgen05 reads the tiles as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import tuned, workspace
from cutefp4.config_sm100 import Sm100Config, split_workspace
from cutefp4.epilogue import Epilogue
from cutefp4.epilogue_text import alpha_kinds, composed_text, default_text
from cutefp4.errors import OperandError, UnsupportedError
from cutefp4.format import BLOCK
from cutefp4.gemm_choice_sm100 import TMA_BYTES, VECTOR_BYTES, GemmRequest, PlannedGemm, make_plan
from cutefp4.launch import Operator, arch_of, sm_count, target
from cutefp4.operand import Nvfp4Operand
from cutefp4.scale_layout import scale_shape

K_MULTIPLE = 32
_NAMES = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
    torch.uint8: "nvfp4",
}


def _split_workspace(config: Sm100Config, r: GemmRequest, device: torch.device) -> list[torch.Tensor]:
    """Partial sums and counters of a configuration that splits K."""
    partials, counters = (torch.Size(shape) for shape in split_workspace(config, r.m, r.n, r.batch))
    space = workspace.get(device, scratch_bytes=4 * partials.numel(), semaphores=counters.numel())
    sums, count = space.partials[: partials.numel()], space.semaphores[: counters.numel()]
    return [sums.view(partials), count.view(counters)]


_plans: dict[tuple, PlannedGemm] = {}


def _alignment(matrices: Iterable[torch.Tensor]) -> tuple[bool, bool]:
    """Whether all start at multiples of 16 bytes, and of 32."""
    bits = functools.reduce(int.__or__, (t.data_ptr() for t in matrices), 0)
    return bits % TMA_BYTES == 0, bits % VECTOR_BYTES == 0


def _gemm_into(a, a_scales, b, b_scales, leaves, sinks, d, tree: str, batch_invariant: bool) -> None:
    """Run on 3-D codes and flat scales; `leaves` and `sinks` are in the order of the tree's.

    An NVFP4 D is d, its codes, and the first of `sinks`, its scales.
    """
    l, m, _ = a.shape
    aligned, aligned32 = _alignment(t for t in (d, *leaves, *sinks) if t.dim() == 3)
    dtype = _NAMES[d.dtype]
    request = GemmRequest(m, b.shape[1], b.shape[2] * 2, l, dtype, tree, aligned, batch_invariant, aligned32)
    key = (request, d.device, target(d.device), tuned.generation())
    planned = _plans.get(key)
    if planned is None:
        planned = _plans[key] = make_plan(request, arch_of(d.device), sm_count(d.device))
    scales = 1 if dtype == "nvfp4" else 0
    tensors = [d, *sinks[:scales], *leaves, *sinks[scales:]]
    if planned.plan.config.splits > 1:
        tensors += _split_workspace(planned.plan.config, request, d.device)
    kernel_cache.get(planned.plan)(a, a_scales, b, b_scales, tuple(tensors), planned.sms)


gemm_into = Operator(
    "gemm_sm100_into(Tensor a, Tensor a_scales, Tensor b, Tensor b_scales, Tensor[] leaves, Tensor(b!)[] sinks, "
    "Tensor(a!) d, str tree, bool batch_invariant) -> ()",
    _gemm_into,
)


def _codes(operand: Nvfp4Operand) -> torch.Tensor:
    """(L, rows, K/2), rows padded to 16 bytes."""
    missing = -operand.codes.shape[-1] % (K_MULTIPLE // 2)
    codes = torch.nn.functional.pad(operand.codes, (0, missing)) if missing else operand.codes
    return _batched(codes)


def _batched(t: torch.Tensor) -> torch.Tensor:
    return t if t.dim() == 3 else t[None]


def _pair(a: Nvfp4Operand, b: Nvfp4Operand) -> list[torch.Tensor]:
    """Codes and scales of both operands as the kernel takes them."""
    return [_codes(a), _scales("A", a), _codes(b), _scales("B", b)]


def _scales(name: str, operand: Nvfp4Operand) -> torch.Tensor:
    if operand.scale_layout != "tiled":
        raise UnsupportedError(
            f"{name} with {operand.scale_layout} scales on Blackwell",
            "tiled scales (128x4 tiles)",
            "quantise with scale_layout='tiled', or convert with cutefp4.scale_layout.to_tiled",
        )
    return operand.block_scales.view(torch.uint8).reshape(-1)


def _tree_text(a: Nvfp4Operand, b: Nvfp4Operand, bias, activation, c, beta: float) -> str:
    """The default tree for a pair."""
    bias_dtype, c_dtype = (None if t is None else _NAMES[t.dtype] for t in (bias, c if beta else None))
    return default_text((a.e4m3_max, b.e4m3_max), alpha_kinds(a, b), bias_dtype, activation, c_dtype, beta)


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
    """D = activation(z + bias) + beta * C, as `cutefp4.gemm` defines it, with the arguments already checked there.

    Raises:
        UnsupportedError: compact scales.
    """
    batch = a.batch_shape[0] if a.batch_shape else 1
    d = torch.empty(*a.batch_shape, a.rows, b.rows, dtype=out_dtype, device=a.device) if out is None else out
    if 0 in d.shape:
        return d
    c = c if beta else None
    matrix = (batch, a.rows, b.rows)
    leaves = [
        a.amax.view(batch, a.rows) if a.scaling == "token" else a.amax.view(batch),
        b.amax.view(batch, b.rows) if b.scaling == "token" else b.amax.view(batch),
        *([] if bias is None else [bias.expand(batch, b.rows).contiguous()]),
        *([] if c is None else [c.view(matrix)]),
    ]
    text = _tree_text(a, b, bias, activation, c, beta)
    gemm_into(*_pair(a, b), leaves, [], d.view(matrix), text, batch_invariant)
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
) -> torch.Tensor | Nvfp4Operand:
    """A product with an epilogue that the caller composed.

    Args:
        tree: made by the decorator `cutefp4.epilogue`.
        tensors: its leaves and sinks as `epilogue_tensors` returns them: in order, each with a batch axis.

    Returns:
        D; an operand (..., M, N) with N as its contraction axis if the tree quantises.

    Raises:
        UnsupportedError: compact scales.
        OperandError: an NVFP4 D whose columns are not whole blocks.
    """
    count = len(tensors) - len(tree.sinks)
    named = list(tensors.values())
    leaves, sinks, text = named[:count], named[count:], composed_text(a, b, tree)
    if tree.quantizes():
        d = _empty_operand(a, b, tree, tensors[tree.out.amax.name])
        if a.rows:
            scales = d.block_scales.view(torch.uint8).view(-1)
            gemm_into(*_pair(a, b), leaves, [scales, *sinks], _batched(d.codes), text, batch_invariant)
        return d
    columns = b.rows // 2 if tree.halves_columns() else b.rows
    d = torch.empty(*a.batch_shape, a.rows, columns, dtype=out_dtype, device=a.device) if out is None else out
    if 0 not in d.shape:
        gemm_into(*_pair(a, b), leaves, sinks, _batched(d), text, batch_invariant)
    return d


def _empty_operand(a: Nvfp4Operand, b: Nvfp4Operand, tree: Epilogue, amax: torch.Tensor) -> Nvfp4Operand:
    """An NVFP4 D to be filled."""
    columns = b.rows // 2 if tree.halves_columns() else b.rows
    if columns % BLOCK:
        raise OperandError(
            f"an NVFP4 D of {columns} columns", f"a multiple of {BLOCK}, whole blocks", "pad the rows of B"
        )
    recipe, lead = tree.out.recipe, tuple(a.batch_shape)
    return Nvfp4Operand(
        torch.empty(*lead, a.rows, columns // 2, dtype=torch.uint8, device=a.device),
        torch.empty(*lead, *scale_shape(a.rows, columns, "tiled"), dtype=torch.float8_e4m3fn, device=a.device),
        amax if lead else amax[0],
        recipe.scaling,
        e4m3_max=recipe.e4m3_max,
        rows=a.rows,
        k=columns,
    )


def gemm_plan(
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
    tree: Epilogue | None = None,
) -> PlannedGemm:
    """What `gemm`, or with `tree` `gemm_tree`, would run; runs nothing. Without `out`, D is taken to be aligned as
    PyTorch aligns new tensors.

    Raises:
        UnsupportedError: compact scales, or 16-bit activations.
    """
    if isinstance(a, torch.Tensor):
        raise UnsupportedError(
            "a plan for gemm_a16 on Blackwell",
            "NVFP4 operands on both sides",
            "pass backend='reference', or plan the gemm of quantised activations",
        )
    for name, operand in (("A", a), ("B", b)):
        _scales(name, operand)
    quantizes = tree is not None and tree.quantizes()
    aligned, aligned32 = _alignment(t for t in (out, c if beta else None) if t is not None)
    request = GemmRequest(
        a.rows,
        b.rows,
        -(-a.k // K_MULTIPLE) * K_MULTIPLE,
        a.batch_shape[0] if a.batch_shape else 1,
        "nvfp4" if quantizes else _NAMES[out_dtype],
        _tree_text(a, b, bias, activation, c, beta) if tree is None else composed_text(a, b, tree),
        aligned,
        batch_invariant,
        aligned32,
    )
    return make_plan(request, arch_of(b.device), sm_count(b.device))
