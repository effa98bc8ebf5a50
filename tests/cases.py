"""Every generator of test inputs: golden matrices, odd shapes, edge blocks, group splits, recipes, guarded buffers.

Inputs are deterministic: numpy's legacy RandomState for golden data (its streams never change), torch generators with a
given seed for the rest.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from cutefp4.acceptance.matrix import every_recipe
from cutefp4.format import E4M3_MAX, numerator
from cutefp4.recipe import QuantRecipe

GOLDEN_SIZE = 1024


# ---------------------------------------------------------------- golden inputs


def normal(seed: int, shape: tuple[int, ...], scale: float = 1.0, dtype=torch.bfloat16, device="cpu") -> torch.Tensor:
    """RandomState(seed).standard_normal(shape) * scale, fp64 -> fp32 -> dtype."""
    values = np.random.RandomState(seed).standard_normal(shape) * scale
    return torch.from_numpy(np.asarray(values)).float().to(dtype).to(device)


def _laplace(n: int) -> np.ndarray:
    u = np.random.RandomState(102).uniform(-0.5, 0.5, (n, n))
    return -np.sign(u) * np.log(1 - 2 * np.abs(u))


def _student_t3(n: int) -> np.ndarray:
    chi2 = np.random.RandomState(104).chisquare(3, (n, n))
    return np.random.RandomState(103).standard_normal((n, n)) / np.sqrt(chi2 / 3)


def _outlier_cols(n: int) -> np.ndarray:
    x = np.random.RandomState(105).standard_normal((n, n))
    x[:, np.random.RandomState(106).choice(n, 10, replace=False)] *= 50
    return x


def _row_lognormal(n: int) -> np.ndarray:
    rows = np.exp(2 * np.random.RandomState(108).standard_normal((n, 1)))
    return np.random.RandomState(107).standard_normal((n, n)) * rows


_GOLDEN = {
    "gauss": lambda n: np.random.RandomState(101).standard_normal((n, n)),
    "laplace": _laplace,
    "student_t3": _student_t3,
    "outlier_cols": _outlier_cols,
    "row_lognormal": _row_lognormal,
}
GOLDEN_NAMES = tuple(_GOLDEN)


def golden(name: str) -> torch.Tensor:
    """One of the five 1024x1024 bf16 matrices whose errors are known."""
    return torch.from_numpy(_GOLDEN[name](GOLDEN_SIZE)).float().to(torch.bfloat16)


# ---------------------------------------------------------------- matrices for kernels


def _distinct(rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    """Every element tells its place: swapped rows, columns or blocks show."""
    values = torch.arange(rows * cols, dtype=torch.float32).view(rows, cols)
    return torch.sin(values * 0.37) * (1 + values.remainder(977))


def _ties(rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    """Block maxima of 6 and elements on the rounding ties of the grid."""
    grid = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0])
    x = grid[torch.randint(0, 8, (rows, cols), generator=generator)]
    x *= torch.randint(0, 2, (rows, cols), generator=generator) * 2 - 1
    x[:, ::16] = 6
    return x


def _normal(rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(rows, cols, generator=generator)


def _heavy(rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    """Six decades, so that many blocks underflow against the outer amax."""
    decades = torch.rand(rows, cols, generator=generator) * 6 - 3
    return torch.randn(rows, cols, generator=generator) * 10**decades


def _row_scaled(rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(rows, cols, generator=generator) * torch.exp(2 * torch.randn(rows, 1, generator=generator))


def _zeros(rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    return torch.zeros(rows, cols)


_KINDS = {
    "normal": _normal,
    "heavy": _heavy,
    "row_scaled": _row_scaled,
    "ties": _ties,
    "distinct": _distinct,
    "zeros": _zeros,
}
KINDS = tuple(_KINDS)


def matrix(rows: int, cols: int, kind: str = "normal", seed: int = 0, dtype=torch.bfloat16, device="cpu"):
    """A (rows, cols) matrix of one of `KINDS`."""
    generator = torch.Generator().manual_seed(seed)
    return _KINDS[kind](rows, cols, generator).to(dtype).to(device)


def batch(count: int, rows: int, cols: int, kind: str = "normal", seed: int = 0, dtype=torch.bfloat16, device="cpu"):
    """(count, rows, cols), each matrix with a seed of its own."""
    return torch.stack([matrix(rows, cols, kind, seed + 1000 * i, dtype, device) for i in range(count)])


def strided(x: torch.Tensor) -> torch.Tensor:
    """The same values with a row stride that is not the width, between poisoned columns."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 24), torch.nan, dtype=x.dtype, device=x.device)
    wide[..., 8 : 8 + x.shape[-1]] = x
    return wide[..., 8 : 8 + x.shape[-1]]


def odd_shapes(count: int, seed: int = 0, multiple: tuple[int, int] = (1, 16), largest: int = 400):
    """`count` random (rows, cols) up to `largest`, multiples of `multiple`, never all round numbers."""
    rng = np.random.RandomState(seed)
    upper = [max(1, largest // m) for m in multiple]
    return [tuple(int(rng.randint(1, u + 1)) * m for u, m in zip(upper, multiple, strict=True)) for _ in range(count)]


# ---------------------------------------------------------------- edge blocks


def edge_row(largest: float = numerator(E4M3_MAX)) -> torch.Tensor:
    """One row of four blocks: [max | +-3e-3 | +-0 | 9e-3], bf16. With the default maximum (6 * 448) S_enc is 1."""
    row = torch.zeros(4, 16)
    row[0, 3] = largest
    row[1, 0::2], row[1, 1::2] = 3e-3, -3e-3
    row[2, 1::2] = -0.0
    row[3, :] = 9e-3
    return row.view(1, 64).to(torch.bfloat16)


def specials(rows: int = 32, cols: int = 64, seed: int = 5, dtype=torch.bfloat16, inf: bool = True) -> torch.Tensor:
    """Normal data with rows of NaN, of +-Inf (which make a tensor's amax Inf), of -0, of subnormals, of extremes, of
    zeros. At least 9 rows and 16 columns."""
    x = matrix(rows, cols, seed=seed, dtype=dtype)
    info = torch.finfo(dtype)
    x[1, 5] = torch.nan
    if inf:
        x[2, 7], x[2, cols - 3] = torch.inf, -torch.inf
    x[3, ::2] = -0.0
    x[4, :] = info.tiny / 8
    x[5, 0], x[5, cols - 1] = info.max, info.min
    x[6, :] = 0
    x[7, :] = torch.nan
    x[8, :] = info.tiny * torch.arange(cols, dtype=torch.float32).to(dtype)
    return x


# ---------------------------------------------------------------- groups


def end_offsets(sizes: list[int] | tuple[int, ...], device="cpu") -> torch.Tensor:
    """int32 end offsets of groups of these sizes."""
    return torch.tensor(sizes, dtype=torch.int64).cumsum(0).to(torch.int32).to(device)


def ragged_sizes(groups: int, total: int, seed: int = 0) -> list[int]:
    """Sizes of `groups` groups that sum to `total`, some of them 0."""
    rng = np.random.RandomState(seed)
    cuts = np.sort(rng.randint(0, total + 1, groups - 1))
    cuts[rng.rand(groups - 1) < 0.2] = 0
    edges = [0, *np.sort(cuts).tolist(), total]
    return [int(b - a) for a, b in itertools.pairwise(edges)]


# ---------------------------------------------------------------- recipes

PROFILES = {
    "te1d": QuantRecipe(),
    "te2d": QuantRecipe(block="2d"),
    "te_row": QuantRecipe(scaling="token"),
    "te_rht": QuantRecipe(rht="bf16"),
    "te_256": QuantRecipe(e4m3_max=256),
    "pt": QuantRecipe(scaling="token", arithmetic="per_token"),
    "pt_rht": QuantRecipe(scaling="token", arithmetic="per_token", rht="fp32"),
    "pt_2d": QuantRecipe(scaling="token", arithmetic="per_token", block="2d"),
    "ao": QuantRecipe(arithmetic="torchao"),
    "rsr": QuantRecipe(rounding="stochastic"),
    "rsr_rht": QuantRecipe(rounding="stochastic", rht="bf16"),
    **{
        f"4o6-{metric}-{top}{'-fast' if error == 'fast' else ''}{suffix}": QuantRecipe(
            four_over_six=metric, e4m3_max=top, four_over_six_error=error, **extra
        )
        for metric in ("mae", "mse")
        for top in (448, 256)
        for error in ("strict", "fast")
        for suffix, extra in (("", {}), ("-2d", {"block": "2d"}), ("-row", {"scaling": "token"}))
    },
    "4o6-rht": QuantRecipe(four_over_six="mae", e4m3_max=256, rht="bf16"),
    "4o6-rsr-rht": QuantRecipe(four_over_six="mse", e4m3_max=256, rht="fp32", rounding="stochastic", scaling="token"),
}
"""Recipes by the name of their arithmetic."""


def all_recipes() -> list[QuantRecipe]:
    """Every recipe that has a meaning, with the default sign mask and tiled scales."""
    return [recipe.replace(scale_layout="tiled") for recipe in every_recipe()]


# ---------------------------------------------------------------- guarded buffers

POISON = 0xA5


@dataclass(frozen=True)
class Guarded:
    """A tensor inside a larger poisoned allocation; `check` tells whether anything was written outside."""

    tensor: torch.Tensor
    memory: torch.Tensor
    margin: int

    def check(self) -> None:
        """Raise AssertionError with the first byte outside of the tensor that changed."""
        inside = self.tensor.numel() * self.tensor.element_size()
        for name, part, start in (
            ("before", self.memory[: self.margin], -self.margin),
            ("behind", self.memory[self.margin + inside :], inside),
        ):
            changed = (part != POISON).nonzero()
            if changed.numel():
                raise AssertionError(f"byte {start + int(changed[0])} {name} a {tuple(self.tensor.shape)} was written")

    def untouched(self) -> bool:
        """Whether no byte of the tensor itself was written since it was poisoned (or all by chance with poison)."""
        inside = self.tensor.numel() * self.tensor.element_size()
        return bool((self.memory[self.margin : self.margin + inside] == POISON).all())


def guarded(shape: tuple[int, ...], dtype: torch.dtype, device="cpu", margin: int = 4096) -> Guarded:
    """A tensor full of poison (0xA5 bytes) with `margin` poisoned bytes before and behind; 16-byte aligned."""
    size = torch.empty((), dtype=dtype).element_size()
    count = int(np.prod(shape, dtype=np.int64))
    memory = torch.full((2 * margin + count * size,), POISON, dtype=torch.uint8, device=device)
    return Guarded(memory[margin : margin + count * size].view(dtype).view(shape), memory, margin)


def poison(x: torch.Tensor) -> torch.Tensor:
    """Fill a tensor with poison bytes (a tiny negative number, so no NaN, in every floating dtype) and return it."""
    x.view(torch.uint8).fill_(POISON)
    return x
