"""Inputs of the acceptance matrix: from numpy's legacy generator, whose streams never change, so that results which one
machine recorded can be compared on another."""

from __future__ import annotations

import numpy as np
import torch

from cutefp4.operand import Nvfp4Operand
from cutefp4.scale_layout import to_tiled

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
POISON = 0xA5
MARGIN = 256
_EXACT_SCALES = torch.tensor([0.25, 0.5, 1.0, 1.5, 2.0, 3.5]).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
"""Products are multiples of 2^-6 and sums stay far below 2^18: exact in fp32 in every order."""


def operand(
    rows: int, k: int, seed: int, scaling: str = "token", layout: str = "tiled", batch: int = 0, values: str = "exact"
) -> Nvfp4Operand:
    """Random codes, scales and amaxes of 100 to 1000.

    Args:
        rows, k: of the matrix. batch: L, 0 for no batch axis. scaling, layout: of the operand.
        values: of the scales: "exact", see `_EXACT_SCALES`, or "wide": nearly the whole range, so that sums round.
    """
    rng = np.random.RandomState(seed)
    lead = (batch,) if batch else ()
    codes = torch.from_numpy(rng.randint(0, 256, (*lead, rows, k // 2), dtype=np.uint8))
    shape = (*lead, rows, k // 16)
    exact = values == "exact"
    chosen = rng.choice(_EXACT_SCALES, shape) if exact else rng.randint(0x10, 0x7E, shape, dtype=np.uint8)
    scales = torch.from_numpy(chosen)
    scales = (to_tiled(scales) if layout == "tiled" else scales).view(torch.float8_e4m3fn)
    amax = rng.randint(6400, 64000, (*lead, *((rows,) if scaling == "token" else ()))) / 64.0
    return Nvfp4Operand(codes, scales, torch.as_tensor(amax, dtype=torch.float32), scaling, 448, layout, rows, k)


def integers(shape: tuple[int, ...], seed: int, largest: int, unit: float, dtype: str) -> torch.Tensor:
    """Random multiples of `unit` up to `largest` of them, either sign."""
    values = np.random.RandomState(seed).randint(-largest, largest + 1, shape) * unit
    return torch.from_numpy(values).to(DTYPES[dtype])


def guarded(shape: tuple[int, ...], dtype: torch.dtype, device, shift: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(a tensor full of poison, the larger buffer it lies in), `MARGIN` + `shift` bytes from the buffer's start."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = torch.full((2 * MARGIN + shift + size,), POISON, dtype=torch.uint8, device=device)
    begin = MARGIN + shift
    return memory[begin : begin + size].view(dtype).view(shape), memory


def outside_untouched(memory: torch.Tensor, size: int, shift: int = 0) -> bool:
    """Whether the bytes around a guarded tensor of `size` bytes are still poison."""
    begin = MARGIN + shift
    return bool((memory[:begin] == POISON).all()) and bool((memory[begin + size :] == POISON).all())


def _specials(rows: int, columns: int, rng, dtype: torch.dtype) -> torch.Tensor:
    """Normal data with NaN, Inf, -0, subnormals, extremes and zeros, a row each where there are that many."""
    x = torch.from_numpy(rng.standard_normal((rows, columns))).to(dtype)
    info = torch.finfo(dtype)
    x[1 % rows, 5 % columns] = torch.nan
    x[2 % rows, 7 % columns], x[2 % rows, columns - 1] = torch.inf, -torch.inf
    for row, values in ((3, -0.0), (4, info.tiny / 8), (6, 0.0), (7, torch.nan)):
        if row < rows:
            x[row] = values
    if rows > 5:
        x[5, 0], x[5, columns - 1] = info.max, info.min
    return x


def matrix(kind: str, rows: int, columns: int, seed: int, dtype: str = "bfloat16") -> torch.Tensor:
    """(rows, columns) of one kind: "normal", "rows" (outer amaxes far apart), "ties" (on the grid's rounding ties),
    "decades" (blocks that underflow), "specials", "finite" (specials without NaN and Inf) or "zeros"."""
    rng = np.random.RandomState(seed)
    if kind in ("specials", "finite"):
        x = _specials(rows, columns, rng, DTYPES[dtype])
        return torch.where(torch.isfinite(x), x, torch.ones_like(x)) if kind == "finite" else x
    if kind == "normal":
        values = rng.standard_normal((rows, columns))
    elif kind == "rows":
        values = rng.standard_normal((rows, columns)) * np.exp(2 * rng.standard_normal((rows, 1)))
    elif kind == "ties":
        grid = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
        values = rng.choice(grid, (rows, columns)) * rng.choice([-1, 1], (rows, columns))
        values[:, ::16] = 6
    elif kind == "decades":
        values = rng.standard_normal((rows, columns)) * 10 ** (rng.uniform(-3, 3, (rows, columns)))
    else:
        values = np.zeros((rows, columns))
    return torch.from_numpy(values).to(DTYPES[dtype])
