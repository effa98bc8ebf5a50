"""Cases of the quantisation kernels: codes, block scales (padding included) and amaxes byte for byte the oracle's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

import cutefp4
from cutefp4 import reference
from cutefp4.acceptance.case import Case
from cutefp4.acceptance.compare import Difference, assert_same_bits, assert_same_operand
from cutefp4.acceptance.inputs import DTYPES, matrix
from cutefp4.acceptance.machine import Machine
from cutefp4.recipe import QuantRecipe

COPIES = {"rowwise": (True, False), "columnwise": (False, True), "both": (True, True)}


def recipe_name(recipe: QuantRecipe) -> str:
    """A recipe in a case's name: its fields that are not the default."""
    return recipe.describe().replace("'", "").replace("four_over_six", "4o6").replace(", ", "+").replace("=", ".")


def same_copies(actual, expected, what: str) -> None:
    """Both copies of two results, byte for byte."""
    for copy in ("rowwise", "columnwise"):
        got, want = getattr(actual, copy), getattr(expected, copy)
        if (got is None) != (want is None):
            raise Difference(f"{what}: the {copy} copy is {'missing' if got is None else 'there unasked'}")
        if want is not None:
            assert_same_operand(got, want, copy)


@dataclass(frozen=True)
class QuantiseCase(Case):
    """`quantize` of each kind of matrix in `inputs`. shape: (rows, columns); copies: of `COPIES`; strided: x is a part
    of a wider matrix; batch: matrices, 0 for no batch axis; amax: the outer amaxes are given."""

    recipe: QuantRecipe = QuantRecipe()
    shape: tuple[int, int] = (48, 80)
    copies: str = "both"
    dtype: str = "bfloat16"
    inputs: tuple[str, ...] = ("rows",)
    strided: bool = False
    batch: int = 0
    amax: bool = False

    area = "quantise"

    def name(self) -> str:
        size = "x".join(map(str, self.shape))
        parts = [recipe_name(self.recipe), self.copies, size, self.dtype, "+".join(self.inputs)]
        parts += ["strided"] * self.strided + [f"batch.{self.batch}"] * bool(self.batch) + ["amax"] * self.amax
        return "-".join(parts)

    def kernel(self) -> str:
        return f"{self.area}:{recipe_name(self.recipe)}:{self.copies}:{self.dtype}"

    def _matrix(self, kind: str) -> torch.Tensor:
        rows, columns = self.shape
        x = matrix(kind, rows * max(self.batch, 1), columns + 24 * self.strided, self.seed, self.dtype)
        x = x[:, 8 : 8 + columns] if self.strided else x
        return x.unflatten(0, (self.batch, rows)) if self.batch else x

    def _options(self) -> dict:
        rowwise, columnwise = COPIES[self.copies]
        options = {"rowwise": rowwise, "columnwise": columnwise, "seed": self.seed, "offset": (1 << 33) + 3}
        if self.amax:
            token = self.recipe.scaling == "token" and self.recipe.block == "1d"
            options["amax"] = torch.linspace(0, 5, self.shape[0]) if token else torch.tensor(3.75)
        return options

    def check(self, machine: Machine) -> None:
        options = self._options()
        for kind in self.inputs:
            x = self._matrix(kind)
            with machine.running(self.seed) as device:
                moved = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in options.items()}
                actual = cutefp4.quantize(_moved(x, device), self.recipe, backend=machine.backend, **moved).to("cpu")
            expected = cutefp4.quantize(x, self.recipe, backend="reference", **options)
            same_copies(actual, expected, kind)


def _moved(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """x on the device with its strides."""
    if x.device == device or x.is_contiguous():
        return x.to(device)
    whole = x._base
    return whole.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


@dataclass(frozen=True)
class GroupedCase(Case):
    """`quantize_grouped` of groups of these sizes, with `behind` rows that belong to none."""

    recipe: QuantRecipe = QuantRecipe()
    sizes: tuple[int, ...] = (0, 5, 0, 130, 64, 1)
    columns: int = 48
    behind: int = 7
    copies: str = "both"
    dtype: str = "bfloat16"

    area = "grouped"

    def name(self) -> str:
        sizes = "+".join(map(str, self.sizes)) if len(self.sizes) < 8 else f"{len(self.sizes)}x{self.sizes[0]}"
        return f"{recipe_name(self.recipe)}-{self.copies}-{sizes}-{self.columns}-{self.behind}-{self.dtype}"

    def kernel(self) -> str:
        return f"{self.area}:{recipe_name(self.recipe)}:{self.copies}:{self.dtype}"

    def check(self, machine: Machine) -> None:
        rowwise, columnwise = COPIES[self.copies]
        options = {"rowwise": rowwise, "columnwise": columnwise, "seed": self.seed, "offset": 6}
        x = matrix("rows", sum(self.sizes) + self.behind, self.columns, self.seed, self.dtype)
        offs = torch.from_numpy(np.cumsum(self.sizes)).to(torch.int32)
        with machine.running(self.seed) as device:
            actual = cutefp4.quantize_grouped(
                x.to(device), offs.to(device), self.recipe, backend=machine.backend, **options
            ).to("cpu")
        expected = cutefp4.quantize_grouped(x, offs, self.recipe, backend="reference", **options)
        same_copies(actual, expected, "groups")


@dataclass(frozen=True)
class DequantiseCase(Case):
    """`dequantize` of an operand that the oracle made. out: dtype of the values."""

    recipe: QuantRecipe = QuantRecipe()
    shape: tuple[int, int] = (40, 96)
    out: str = "bfloat16"

    area = "dequantise"

    def name(self) -> str:
        return f"{recipe_name(self.recipe)}-{'x'.join(map(str, self.shape))}-{self.out}"

    def kernel(self) -> str:
        return f"{self.area}:{self.recipe.scale_layout}:{self.recipe.scaling}:{self.out}"

    def check(self, machine: Machine) -> None:
        operand = reference.quantize(matrix("decades", *self.shape, self.seed), self.recipe)[0]
        with machine.running(self.seed) as device:
            values = cutefp4.dequantize(operand.to(device), DTYPES[self.out], backend=machine.backend)
        assert_same_bits(values.cpu(), reference.dequantize(operand, DTYPES[self.out]), "values")
