"""Cases of the GEMM: W4A4 in the three layouts, and 16-bit activations x NVFP4 weight on Hopper.

Where sums are exact in fp32 in every order (`reference.in_exact_regime`), D must have the oracle's bits. Elsewhere it
must be within `error_bound`, and a rounding of D's dtype. Transcendental activations are
approximations on a GPU: D must be within 2e-6 of its size and 2e-5, and a rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import cutefp4
from cutefp4 import reference
from cutefp4.acceptance.case import Case
from cutefp4.acceptance.compare import Difference, assert_close, assert_same_bits, first_difference
from cutefp4.acceptance.inputs import DTYPES, guarded, integers, operand, outside_untouched
from cutefp4.acceptance.machine import EMULATED_SMS, Machine
from cutefp4.gemm_arguments import LAYOUT_COPIES
from cutefp4.operand import Nvfp4Operand

EPSILON = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10, torch.float32: 2.0**-23}
EXACT_ACTIVATIONS = (None, "relu", "relu2")


@dataclass(frozen=True)
class GemmCase(Case):
    """D = activation(A B^T + bias) + C of operands with random codes.

    Attributes:
        m, n, k: of the product. layout: which copies hold A and B. batch: L, 0 for none.
        values: "exact" or "wide". scaling_a, scaling_b, scales_a, scales_b: of the operands.
        out: dtype of D. bias: dtype or None. activation: or None. accumulate: add to D.
        shift: bytes by which D misses 16-byte alignment. batch_invariant: as in `cutefp4.gemm`.
        sms: of an emulated GPU.
    """

    m: int = 129
    n: int = 136
    k: int = 208
    layout: str = "TN"
    batch: int = 0
    values: str = "exact"
    scaling_a: str = "token"
    scaling_b: str = "token"
    scales_a: str = "tiled"
    scales_b: str = "tiled"
    out: str = "bfloat16"
    bias: str | None = None
    activation: str | None = None
    accumulate: bool = False
    shift: int = 0
    batch_invariant: bool = False
    sms: int = EMULATED_SMS

    area = "gemm"

    def epilogue(self) -> str:
        parts = [self.out, *(["bias." + self.bias] if self.bias else []), self.activation, "acc" * self.accumulate]
        return "-".join(p for p in parts if p)

    def name(self) -> str:
        default = GemmCase()
        parts = [f"{self.layout}-{self.m}x{self.n}x{self.k}", self.epilogue()]
        for field in ("batch", "values", "scaling_a", "scaling_b", "scales_a", "scales_b", "shift", "batch_invariant"):
            value = getattr(self, field)
            if value != getattr(default, field):
                parts.append(f"{field.replace('_', '.')}.{value}")
        if self.sms != default.sms:
            parts.append(f"sms.{self.sms}")
        return "-".join(parts)

    def kernel(self) -> str:
        # Rows per 16 and 128 are where heuristics change tiles, and store follows N and the address.
        rows = "tiny" if self.m <= 16 else "few" if self.m <= 128 else "many"
        parts = (rows, self.n % 8 == 0, self.n % 2, self.shift % 16 == 0, self.epilogue(), self.batch_invariant)
        scalings = (self.scaling_a, self.scaling_b, self.scales_a, self.scales_b)
        return f"{self.area}:{parts}:{scalings}"

    def operands(self) -> tuple[Nvfp4Operand, Nvfp4Operand]:
        seed = self.seed
        a = operand(self.m, self.k, seed, self.scaling_a, self.scales_a, self.batch, self.values)
        b = operand(self.n, self.k, seed + 1, self.scaling_b, self.scales_b, self.batch, self.values)
        return a, b

    def leaves(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Bias, and what D holds before; None where there is none."""
        shape = (*((self.batch,) if self.batch else ()), self.m, self.n)
        bias = integers((self.n,), self.seed + 2, 64, 0.125, self.bias) if self.bias else None
        c = integers(shape, self.seed + 3, 64, 0.125, self.out) if self.accumulate else None
        return bias, c

    def run(self, machine: Machine, seed: int | None) -> torch.Tensor:
        """D of the kernel, on the CPU; raises if bytes around it were written."""
        a, b = self.operands()
        bias, c = self.leaves()
        shape = (*((self.batch,) if self.batch else ()), self.m, self.n)
        copies = LAYOUT_COPIES[self.layout]
        with machine.running(seed, self.sms) as device:
            d, memory = guarded(shape, DTYPES[self.out], device, self.shift)
            if c is not None:
                d.copy_(c)
            cutefp4.gemm(
                cutefp4.NVFP4Tensor(**{copies[0]: a.to(device)}),
                cutefp4.NVFP4Tensor(**{copies[1]: b.to(device)}),
                layout=self.layout,
                bias=None if bias is None else bias.to(device),
                activation=self.activation,
                out=d,
                accumulate=self.accumulate,
                batch_invariant=self.batch_invariant,
                backend=machine.backend,
            )
        if not outside_untouched(memory, d.numel() * d.element_size(), self.shift):
            raise Difference("bytes before or behind D were written")
        return d.cpu()

    def expected(self) -> torch.Tensor:
        """D of the oracle."""
        a, b = self.operands()
        bias, c = self.leaves()
        options = {"bias": bias, "activation": self.activation, "out_dtype": DTYPES[self.out]}
        return reference.gemm(a, b, c=c, beta=1.0 if self.accumulate else 0.0, **options)

    def check(self, machine: Machine) -> None:
        d = self.run(machine, self.seed)
        expected = self.expected()
        if self.activation not in EXACT_ACTIVATIONS:
            assert_close(d, expected, rtol=2e-6 + EPSILON[d.dtype], atol=2e-5, what="D")
            return
        a, b = self.operands()
        exact = reference.in_exact_regime(a, b)
        if self.values == "exact" and not bool(exact.all()):
            raise Difference("the case's own operands are outside the exact regime: its values are too wide")
        if bool(exact.all()):
            assert_same_bits(d, expected, "D")
            return
        _require_equal_where(exact, d, expected)
        assert_close(d, expected, rtol=2 * EPSILON[d.dtype], atol=error_bound(a, b), what="D")


def _require_equal_where(exact: torch.Tensor, d: torch.Tensor, expected: torch.Tensor) -> None:
    place = first_difference(exact & (d != expected))
    if place is not None:
        raise Difference(
            f"D at {place}, where sums are exact: {float(d[place])!r}, expected {float(expected[place])!r}"
        )


def error_bound(a: Nvfp4Operand, b: Nvfp4Operand) -> torch.Tensor:
    """What rounded sums may cost: 2^-20 of the sum of the magnitudes of D's terms, fp64 (M, N), and from K = 256 on
    2^-28 * K of it: a Hopper tensor core truncates the accumulator once per 16 of K, always in the same direction."""
    one, two = (reference.dequantize(x, torch.float32).double().abs() for x in (a, b))
    return max(2.0**-20, 2.0**-28 * a.k) * one @ two.mT


@dataclass(frozen=True)
class A16Case(Case):
    """Y = relu(X W^T + bias) with 16-bit X and NVFP4 W, every sum exact. m, n, k; dtype: of X; scales: of W."""

    m: int = 20
    n: int = 264
    k: int = 128
    dtype: str = "bfloat16"
    out: str = "float32"
    scales: str = "tiled"
    bias: str | None = "bfloat16"

    area = "w4a16"

    def name(self) -> str:
        return f"{self.m}x{self.n}x{self.k}-{self.dtype}-{self.out}-{self.scales}" + "-bias" * bool(self.bias)

    def kernel(self) -> str:
        rows = "tiny" if self.m <= 16 else "few" if self.m <= 128 else "many"
        return f"{self.area}:{rows}:{self.n % 8 == 0}:{self.dtype}:{self.out}:{self.scales}:{self.bias}"

    def check(self, machine: Machine) -> None:
        w = operand(self.n, self.k, self.seed, layout=self.scales)
        x = integers((self.m, self.k), self.seed + 1, 8, 0.25, self.dtype)
        bias = integers((self.n,), self.seed + 2, 64, 0.125, self.bias) if self.bias else None
        with machine.running(self.seed) as device:
            y, memory = guarded((self.m, self.n), DTYPES[self.out], device)
            cutefp4.gemm_a16(
                x.to(device),
                w.to(device),
                bias=None if bias is None else bias.to(device),
                activation="relu",
                out=y,
                backend=machine.backend,
            )
        if not outside_untouched(memory, y.numel() * y.element_size()):
            raise Difference("bytes before or behind Y were written")
        expected = cutefp4.gemm_a16(x, w, bias=bias, activation="relu", out_dtype=y.dtype, backend="reference")
        assert_same_bits(y.cpu(), expected, "Y")
