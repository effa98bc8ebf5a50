"""Is a configuration right? Before it may win, its product must equal the oracle's.

Exact operands: every bit of D. Normal operands: every element of D within 2^-20 of the sum of magnitudes, and one
rounding to D's dtype. D is full of NaN before the call, so that an element that nobody writes is wrong.
"""

from __future__ import annotations

from functools import cached_property

import torch

from cutefp4 import reference
from cutefp4.cli.sweep.case import EPILOGUES, Case, Operands, make_operands

BITWISE_ACTIVATIONS = (None, "relu", "relu2")
"""The others use an exponential, which differs in its last bits between a GPU and the oracle."""


class Checker:
    """What D must be for one case; computed once, compared with every configuration's D.

    Attributes:
        exact, normal: the operands.
    """

    def __init__(self, case: Case, device: str | torch.device) -> None:
        self.case = case
        self.exact = make_operands(case, "exact", device)
        self.normal = make_operands(case, "normal", device)

    def _oracle(self, operands: Operands, out_dtype: torch.dtype) -> torch.Tensor:
        a, b = (t.double() for t in operands.decoded())
        alpha_a, alpha_b, constant = operands.alphas()
        return reference.epilogue(
            (a @ b.T).float(), alpha_a, alpha_b, constant,
            bias=operands.bias, c=operands.c, activation=EPILOGUES[self.case.epilogue].get("activation"),
            out_dtype=out_dtype,
        )  # fmt: skip

    @cached_property
    def expected_bits(self) -> torch.Tensor:
        return self._oracle(self.exact, self.case.out_dtype)

    @cached_property
    def expected_and_bound(self) -> tuple[torch.Tensor, torch.Tensor]:
        operands = self.normal
        expected = self._oracle(operands, torch.float32)
        a, b = (t.double().abs() for t in operands.decoded())
        alpha_a, alpha_b, constant = operands.alphas()
        magnitude = (a @ b.T) * (alpha_a.double()[:, None] * alpha_b.double() * constant)
        eps = 2.0**-23 if self.case.out_dtype == torch.float32 else 2.0**-8
        # An activation's slope is at most 1.13 (gelu); of relu2 it is 2 z.
        slope = 2 * magnitude + 2 if EPILOGUES[self.case.epilogue].get("activation") == "relu2" else 2.0
        return expected, (magnitude * slope * 2.0**-20 + expected.abs() * eps + 1e-30).float()

    def verdict(self, run) -> str:
        """ "bit-equal, 0.43 of the bound", or what is wrong, starting with "WRONG".

        run: `run(operands, d)` computes D with the configuration under test.
        """
        activation = EPILOGUES[self.case.epilogue].get("activation")
        said = []
        if activation in BITWISE_ACTIVATIONS:
            d = self.exact.fresh_d()
            run(self.exact, d)
            different = int((d.view(_bits(d)) != self.expected_bits.view(_bits(d))).sum())
            if different:
                return f"WRONG: {different} of {d.numel()} elements differ from the oracle"
            said.append("bit-equal")
        d = self.normal.fresh_d()
        run(self.normal, d)
        expected, bound = self.expected_and_bound
        worst = float(((d.float() - expected).abs() / bound).max())
        if not worst <= 1:
            return f"WRONG: {worst:.3g} times the fp32 bound"
        return ", ".join([*said, f"{worst:.2f} of the bound"])


def _bits(d: torch.Tensor) -> torch.dtype:
    return torch.int32 if d.dtype == torch.float32 else torch.int16
