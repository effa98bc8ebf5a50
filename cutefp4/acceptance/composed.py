"""Cases of composed epilogues: `gemm(epilogue=...)` with every kind of node, argument and sink, against the oracle."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import cutefp4
from cutefp4.acceptance.case import Case
from cutefp4.acceptance.compare import assert_close, assert_same_bits, assert_same_operand
from cutefp4.acceptance.inputs import DTYPES, integers, operand
from cutefp4.acceptance.machine import Machine
from cutefp4.epilogue import (
    Column,
    ColumnAmax,
    Nvfp4,
    Row,
    RowAmax,
    Scalar,
    Store,
    SwigluPair,
    Tile,
    epilogue,
    fma,
    relu,
    unary,
)
from cutefp4.recipe import QuantRecipe

TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")


@epilogue
def sinks(z, bias: Column("bfloat16"), weight: Row(), shift: Scalar(), c: Tile()):
    y = relu(z + bias) * weight - shift
    return fma(0.5, c, y), Store(y, "float16", "pre"), RowAmax(y, "rows"), ColumnAmax(y, "columns")


@epilogue
def gradient(z, pre: Tile("bfloat16")):
    return z * unary("relu2_grad", pre), RowAmax(z, "rows")


@epilogue
def silu_gradient(z, pre: Tile("bfloat16")):
    return z * unary("silu_grad", pre)


@epilogue
def gated(z):
    return SwigluPair(z)


@epilogue
def quantised(z, amax: Row(), bias: Column("bfloat16")):
    y = relu(z + bias)
    return Nvfp4(y, amax, TOKEN, "bfloat16"), RowAmax(y, "rows")


TREES = {
    "sinks": sinks, "gradient": gradient, "silu.gradient": silu_gradient, "swiglu": gated, "nvfp4": quantised,
}  # fmt: skip
APPROXIMATED = ("silu.gradient", "swiglu")


@dataclass(frozen=True)
class ComposedCase(Case):
    """One of `TREES` over a product of m, n, k whose sums are exact. out: dtype of D, where it is not NVFP4."""

    tree: str = "sinks"
    m: int = 70
    n: int = 144
    k: int = 208
    out: str = "float32"

    area = "epilogues"

    def name(self) -> str:
        return f"{self.tree}-{self.m}x{self.n}x{self.k}-{self.out}"

    def kernel(self) -> str:
        return f"{self.area}:{self.tree}:{self.out}:{self.m <= 64}"

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Arguments and poisoned or zeroed sinks of the tree, by name."""
        m, n = self.m, self.n
        everything = {
            "bias": lambda: integers((n,), self.seed + 2, 64, 0.125, "bfloat16"),
            "weight": lambda: integers((m,), self.seed + 3, 16, 0.25, "float32"),
            "shift": lambda: torch.tensor(1.375),
            "c": lambda: integers((m, n), self.seed + 4, 64, 0.125, "float32"),
            "pre": lambda: integers((m, n), self.seed + 5, 32, 0.125, "bfloat16"),
            "amax": lambda: torch.linspace(0.5, 40.0, m),
            "rows": lambda: torch.zeros(m),
            "columns": lambda: torch.zeros(n),
        }
        if self.tree == "sinks":
            everything["pre"] = lambda: torch.full((m, n), torch.nan, dtype=torch.float16)
        return {name: everything[name]() for name, _ in TREES[self.tree].arguments}

    def _multiply(self, tensors: dict[str, torch.Tensor], device, backend: str | None):
        a, b = operand(self.m, self.k, self.seed).to(device), operand(self.n, self.k, self.seed + 1).to(device)
        dtype = None if self.tree == "nvfp4" else DTYPES[self.out]
        return cutefp4.gemm(a, b, epilogue=TREES[self.tree], tensors=tensors, out_dtype=dtype, backend=backend)

    def check(self, machine: Machine) -> None:
        theirs = self._tensors()
        expected = self._multiply(theirs, "cpu", "reference")
        with machine.running(self.seed) as device:
            mine = {name: t.to(device) for name, t in self._tensors().items()}
            d = self._multiply(mine, device, machine.backend)
        if self.tree == "nvfp4":
            assert_same_operand(d.rowwise.to("cpu"), expected.rowwise, "D")
        elif self.tree in APPROXIMATED:
            largest = float(expected.abs().max())
            assert_close(d.cpu(), expected, rtol=2e-5, atol=1e-6 * largest, what="D")
        else:
            assert_same_bits(d.cpu(), expected, "D")
        for name in theirs:
            assert_same_bits(mine[name].cpu(), theirs[name], name)
