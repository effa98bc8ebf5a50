"""Memory of the copies, operands made of it, and the state of stochastic rounding on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cutefp4.operand import Nvfp4Operand
from cutefp4.recipe import QuantRecipe
from cutefp4.scale_layout import scale_shape

_INT64 = 1 << 64


@dataclass
class Copy:
    """Memory of one copy, for one matrix or a batch: codes (..., rows, k/2), scales as bytes, amax."""

    codes: torch.Tensor
    scales: torch.Tensor
    rows: int
    k: int


def allocate(x: torch.Tensor, batch: tuple, rows: int, k: int, layout: str) -> Copy:
    codes = torch.empty((*batch, rows, k // 2), dtype=torch.uint8, device=x.device)
    scales = torch.empty((*batch, *scale_shape(rows, k, layout)), dtype=torch.uint8, device=x.device)
    return Copy(codes, scales, rows, k)


def make_operand(recipe: QuantRecipe, copy: Copy, amax: torch.Tensor, rht: int | None = None) -> Nvfp4Operand:
    """An operand of tensors that were just allocated to fit: without the checks, which cost 16 us, three launches."""
    values = {
        "codes": copy.codes,
        "block_scales": copy.scales.view(torch.float8_e4m3fn),
        "amax": amax,
        "scaling": recipe.scaling,
        "e4m3_max": recipe.e4m3_max,
        "scale_layout": recipe.scale_layout,
        "rows": copy.rows,
        "k": copy.k,
        "rht": rht,
    }
    if torch.compiler.is_compiling():
        return Nvfp4Operand(**values)
    operand = object.__new__(Nvfp4Operand)
    operand.__dict__.update(values)
    return operand


def random_state(x: torch.Tensor, recipe: QuantRecipe, seed, offset) -> torch.Tensor | None:
    """(seed, offset, seed, offset + 1) on the device: the states of the rowwise and the columnwise copy.

    Tensors are combined on the device, so that a CUDA graph can advance them; integers become fills, not copies.
    """
    if recipe.rounding != "stochastic":
        return None
    if isinstance(seed, torch.Tensor) or isinstance(offset, torch.Tensor):
        seed, offset = (_scalar(v, x.device) for v in (seed, offset))
        return torch.stack((seed, offset, seed, offset + 1))
    state = torch.full((4,), _signed(seed), dtype=torch.int64, device=x.device)
    state[1].fill_(_signed(offset))
    state[3].fill_(_signed(offset + 1))
    return state


def _scalar(value, device: torch.device) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.reshape(()).to(device)
    return torch.full((), _signed(value), dtype=torch.int64, device=device)


def _signed(value: int) -> int:
    return (value + _INT64 // 2) % _INT64 - _INT64 // 2
