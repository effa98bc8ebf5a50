"""Cases of what is fused in front of a quantiser: SwiGLU, de-interleaving, RMSNorm with a residual.

SwiGLU contains an exponential, which a GPU approximates: its amaxes must agree to an ulp of the input's dtype and all
but one code in a hundred; and byte for byte what the kernels give that compute it and quantise it one after the other.
The others are byte for byte the oracle's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import cutefp4
from cutefp4 import ops_quantize
from cutefp4.acceptance.case import Case
from cutefp4.acceptance.compare import Difference, assert_close, assert_same_bits
from cutefp4.acceptance.inputs import matrix
from cutefp4.acceptance.machine import Machine
from cutefp4.acceptance.quantise import COPIES, recipe_name, same_copies
from cutefp4.recipe import QuantRecipe

TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")


@dataclass(frozen=True)
class SwigluCase(Case):
    """`swiglu_quantize` of (rows, 2 * columns). interleave: as in `swiglu_quantize`."""

    recipe: QuantRecipe = TOKEN
    rows: int = 20
    columns: int = 96
    interleave: int | None = None
    copies: str = "rowwise"
    dtype: str = "bfloat16"

    area = "producers"

    def name(self) -> str:
        chunks = "halves" if self.interleave is None else f"g{self.interleave}"
        return f"swiglu-{recipe_name(self.recipe)}-{self.copies}-{chunks}-{self.rows}x{self.columns}-{self.dtype}"

    def check(self, machine: Machine) -> None:
        rowwise, columnwise = COPIES[self.copies]
        options = {"interleave": self.interleave, "rowwise": rowwise, "columnwise": columnwise}
        x = matrix("normal", self.rows, 2 * self.columns, self.seed, self.dtype)
        with machine.running(self.seed) as device:
            here = x.to(device)
            fused = cutefp4.swiglu_quantize(here, self.recipe, backend=machine.backend, **options).to("cpu")
            h = torch.empty(self.rows, self.columns, dtype=x.dtype, device=device)
            ops_quantize.swiglu(here, h, "halves" if self.interleave is None else str(self.interleave))
        h = h.cpu()
        same_copies(fused, cutefp4.quantize(h, self.recipe, rowwise=rowwise, columnwise=columnwise), "fused")
        expected = cutefp4.swiglu_quantize(x, self.recipe, backend="reference", **options)
        for copy in fused.copies:
            got, want = getattr(fused, copy), getattr(expected, copy)
            assert_close(got.amax, want.amax, rtol=2.0**-7, what=f"{copy}.amax")
            share = float((got.codes != want.codes).float().mean())
            if share >= 0.01:
                raise Difference(f"{copy}: {share:.1%} of the codes differ from the oracle's, at most 1 % may")


@dataclass(frozen=True)
class DeinterleaveCase(Case):
    """`deinterleave_quantize` of (rows, 2 * columns)."""

    recipe: QuantRecipe = TOKEN
    rows: int = 32
    columns: int = 96
    interleave: int | None = 8
    copies: str = "rowwise"
    dtype: str = "bfloat16"

    area = "producers"

    def name(self) -> str:
        chunks = "halves" if self.interleave is None else f"g{self.interleave}"
        size = f"{self.rows}x{self.columns}-{self.dtype}"
        return f"deinterleave-{recipe_name(self.recipe)}-{self.copies}-{chunks}-{size}"

    def check(self, machine: Machine) -> None:
        rowwise, columnwise = COPIES[self.copies]
        options = {"interleave": self.interleave, "rowwise": rowwise, "columnwise": columnwise}
        x = matrix("rows", self.rows, 2 * self.columns, self.seed, self.dtype)
        with machine.running(self.seed) as device:
            got = cutefp4.deinterleave_quantize(x.to(device), self.recipe, backend=machine.backend, **options).to("cpu")
        same_copies(got, cutefp4.deinterleave_quantize(x, self.recipe, backend="reference", **options), "rearranged")


@dataclass(frozen=True)
class RmsNormCase(Case):
    """`rmsnorm_quantize` of (rows, columns), with or without a residual, everything kept."""

    recipe: QuantRecipe = TOKEN
    rows: int = 20
    columns: int = 208
    residual: bool = True
    copies: str = "rowwise"
    dtype: str = "bfloat16"
    inputs: str = "rows"

    area = "producers"

    def name(self) -> str:
        size = f"{self.rows}x{self.columns}-{self.dtype}-{self.inputs}" + "-residual" * self.residual
        return f"rmsnorm-{recipe_name(self.recipe)}-{self.copies}-{size}"

    def check(self, machine: Machine) -> None:
        rowwise, columnwise = COPIES[self.copies]
        x = matrix(self.inputs, self.rows, self.columns, self.seed, self.dtype)
        weight = matrix("normal", 1, self.columns, self.seed + 1, self.dtype)[0]
        other = matrix("rows", self.rows, self.columns, self.seed + 2, self.dtype) if self.residual else None
        options = {"keep_normed": True, "rowwise": rowwise, "columnwise": columnwise}
        with machine.running(self.seed) as device:
            there = None if other is None else other.to(device)
            got = cutefp4.rmsnorm_quantize(
                x.to(device), weight.to(device), self.recipe, residual=there, backend=machine.backend, **options
            )
        want = cutefp4.rmsnorm_quantize(x, weight, self.recipe, residual=other, backend="reference", **options)
        assert_same_bits(got.normed.cpu(), want.normed, "normed")
        if self.residual:
            assert_same_bits(got.residual.cpu(), want.residual, "residual")
        same_copies(got.quantized.to("cpu"), want.quantized, "quantized")
