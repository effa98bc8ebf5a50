"""RMSNorm, alone and in front of the quantiser, in fp32 with every rounding and the order of the sum fixed.

    h     = x, or cast(fl(x + residual)) if there is a residual
    s     = sum of squares of a row of h (below)
    r     = fl(1 / fl(sqrt(fl(fl(s / C) + fl(eps)))))
    y     = cast(fl(fl(h * r) * weight))

casts are to x.dtype; the quantiser sees the rounded y, so that the fused form equals the unfused one bit for bit.

The sum depends on C alone, and no thread layout enters it:

    block of 16 columns     fl(e + o), e the chain fma(h0, h0, +0), fma(h2, h2, e), ... over even columns, o over odd
    chunk of 32 blocks      a balanced tree: neighbours first, then pairs of pairs, ...
    row                     slot k adds chunks k, k + 32, k + 64, ... in this order; then the same tree over 32 slots

Columns, blocks, chunks and slots that do not exist count as +0, which changes nothing.
"""

from __future__ import annotations

import torch

from cutefp4.errors import OperandError
from cutefp4.format import BLOCK
from cutefp4.operand import Nvfp4Operand
from cutefp4.recipe import QuantRecipe
from cutefp4.reference.gemm import fma
from cutefp4.reference.quantize import quantize
from cutefp4.scale_layout import round_up

CHUNK_BLOCKS = 32
SLOTS = 32

# Elements per step: the emulated fma has many intermediates.
_STEP = 1 << 19


def add_residual(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """cast(fl(x + residual)): the new residual stream, in x.dtype."""
    return (x.float() + residual.float()).to(x.dtype)


def _tree(values: torch.Tensor) -> torch.Tensor:
    """Sum over a last axis of 32: neighbours first."""
    while values.shape[-1] > 1:
        values = values[..., 0::2] + values[..., 1::2]
    return values[..., 0]


def sum_of_squares(h: torch.Tensor) -> torch.Tensor:
    """The sum of squares of the rows of an fp32 (R, C): (R,), in the order above."""
    chunk = CHUNK_BLOCKS * BLOCK
    padded = torch.nn.functional.pad(h, (0, round_up(h.shape[1], chunk) - h.shape[1]))
    blocks = padded.view(h.shape[0], -1, CHUNK_BLOCKS, BLOCK // 2, 2)
    chains = torch.zeros_like(blocks[..., 0, :])
    for pair in blocks.unbind(-2):
        chains = fma(pair, pair, chains)
    chunks = _tree(chains[..., 0] + chains[..., 1])
    chunks = torch.nn.functional.pad(chunks, (0, -chunks.shape[1] % SLOTS))
    slots, *rest = chunks.view(h.shape[0], -1, SLOTS).unbind(1)
    for later in rest:
        slots = slots + later
    return _tree(slots)


def norm_factor(h: torch.Tensor, eps: float) -> torch.Tensor:
    """r of the rows of an fp32 (R, C): (R, 1)."""
    total = sum_of_squares(h)
    # A tensor as divisor: by a number PyTorch multiplies with the reciprocal on some devices.
    mean = total / torch.full_like(total, h.shape[1])
    # In fp64 and rounded, which is one rounding for a root: PyTorch's fp32 root is an ulp off on some CPUs.
    root = (mean + torch.full_like(mean, eps)).double().sqrt().float()
    return (torch.ones_like(root) / root).unsqueeze(-1)


def rmsnorm(
    x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """RMSNorm over the last axis.

    Args:
        x: (..., C).
        weight: (C,), any floating dtype.
        eps: added to the mean square.
        residual: added to x first; `add_residual` gives the sum that the norm sees.

    Returns:
        (..., C) in x.dtype.

    Raises:
        OperandError: weight or residual of a wrong shape.
    """
    for name, tensor, shape in (("weight", weight, x.shape[-1:]), ("residual", residual, x.shape)):
        if tensor is not None and tensor.shape != shape:
            raise OperandError(f"{name} of shape {tuple(tensor.shape)}", f"{tuple(shape)}", f"reshape {name}")
    h = (x if residual is None else add_residual(x, residual)).flatten(0, -2)
    step, scale = max(1, _STEP // x.shape[-1]), weight.float()
    y = torch.empty_like(h, memory_format=torch.contiguous_format)
    for begin in range(0, h.shape[0], step):
        rows = h[begin : begin + step].float()
        y[begin : begin + step] = (rows * norm_factor(rows, eps) * scale).to(x.dtype)
    return y.view(x.shape)


def rmsnorm_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    recipe: QuantRecipe,
    eps: float = 1e-6,
    *,
    residual: torch.Tensor | None = None,
    keep_sum: bool = True,
    keep_normed: bool = False,
    **options,
) -> tuple[tuple[Nvfp4Operand | None, Nvfp4Operand | None], torch.Tensor | None, torch.Tensor | None]:
    """`quantize(rmsnorm(x, weight, eps, residual), recipe, **options)` for x (R, C), and what else is wanted.

    Returns:
        (operands, the residual sum if there is a residual and `keep_sum`, the normalised matrix if `keep_normed`).
    """
    y = rmsnorm(x, weight, eps, residual)
    total = add_residual(x, residual) if residual is not None and keep_sum else None
    return quantize(y, recipe, **options), total, y if keep_normed else None
