"""Cases of repeatability: the same bits under any schedule, and of a row alone and in any batch.

Sums round in all of them, so that another order of summation would show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

import cutefp4
from cutefp4.acceptance.case import Case
from cutefp4.acceptance.compare import assert_same_bits
from cutefp4.acceptance.gemm import GemmCase
from cutefp4.acceptance.inputs import operand
from cutefp4.acceptance.machine import Machine
from cutefp4.operand import Nvfp4Operand


@dataclass(frozen=True)
class RepeatCase(Case):
    """One product, three times, each with another schedule of the emulator."""

    m: int = 40
    n: int = 136
    k: int = 1552

    area = "gemm"

    def name(self) -> str:
        return f"repeat-{self.m}x{self.n}x{self.k}"

    def check(self, machine: Machine) -> None:
        product = GemmCase(m=self.m, n=self.n, k=self.k, values="wide", out="float32", sms=8)
        first = product.run(machine, None)
        for seed in (self.seed, self.seed + 1):
            assert_same_bits(product.run(machine, seed), first, "D of another run")


@dataclass(frozen=True)
class BatchInvarianceCase(Case):
    """Rows of A alone and together, with batch_invariant=True. m, n, k: of the product of all rows."""

    m: int = 140
    n: int = 72
    k: int = 256

    area = "gemm"

    def name(self) -> str:
        return f"invariant-{self.m}x{self.n}x{self.k}"

    def check(self, machine: Machine) -> None:
        a = operand(self.m, self.k, self.seed, values="wide")
        b = operand(self.n, self.k, self.seed + 1)

        def product(rows: Nvfp4Operand) -> torch.Tensor:
            with machine.running(self.seed) as device:
                options = {"batch_invariant": True, "out_dtype": torch.float32, "backend": machine.backend}
                return cutefp4.gemm(rows.to(device), b.to(device), **options).cpu()

        together = product(a)
        for row in (0, self.m // 2, self.m - 1):
            assert_same_bits(product(_one_row(a, row)), together[row : row + 1], f"row {row} alone")


def _one_row(a: Nvfp4Operand, row: int) -> Nvfp4Operand:
    compact = a.with_scale_layout("compact")
    one = slice(row, row + 1)
    picked = replace(compact, codes=a.codes[one], block_scales=compact.block_scales[one], amax=a.amax[one], rows=1)
    return picked.with_scale_layout("tiled")
