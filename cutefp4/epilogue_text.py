"""An epilogue tree as a line of text: what an operator of torch.compile can take as an argument.

default;448*448;row;column;bfloat16;relu;None;1.0    e4m3 maxima (one of them: a 16-bit A), kinds of alpha_a and
                                                     alpha_b, dtype of the bias, activation, dtype of C, beta
tree;NAME;448;448;row;column                         a composed tree by its name, for two e4m3 maxima and kinds
"""

from __future__ import annotations

from functools import cache

from cutefp4.epilogue import Epilogue, default_epilogue, named
from cutefp4.format import gemm_constant, weight_constant
from cutefp4.operand import Nvfp4Operand


def alpha_kinds(a: Nvfp4Operand, b: Nvfp4Operand) -> tuple[str, str]:
    """How z reads the amaxes of a pair, as `default_epilogue` and `Epilogue.bind` say it."""
    return "row" if a.scaling == "token" else "scalar", "column" if b.scaling == "token" else "scalar"


def default_text(
    e4m3_maxima: tuple[int, ...],
    alphas: tuple[str, str],
    bias: str | None = None,
    activation: str | None = None,
    c: str | None = None,
    beta: float = 1.0,
) -> str:
    """The default tree for two operands of these maxima, or for a 16-bit A and one. bias, c: names of dtypes."""
    factors = "*".join(map(str, e4m3_maxima))
    return f"default;{factors};{alphas[0]};{alphas[1]};{bias};{activation};{c};{float(beta)!r}"


def composed_text(a: Nvfp4Operand, b: Nvfp4Operand, tree: Epilogue) -> str:
    """A composed tree for a pair."""
    return ";".join(["tree", tree.name, str(a.e4m3_max), str(b.e4m3_max), *alpha_kinds(a, b)])


@cache
def tree_of(text: str) -> Epilogue:
    """The tree that a text stands for."""
    kind, rest = text.split(";", 1)
    if kind == "tree":
        name, max_a, max_b, alpha_a, alpha_b = rest.split(";")
        return named(name).bind(gemm_constant(int(max_a), int(max_b)), alpha_a, alpha_b)
    factors, alpha_a, alpha_b, *optional, beta = rest.split(";")
    maxima = [int(m) for m in factors.split("*")]
    constant = gemm_constant(*maxima) if len(maxima) == 2 else weight_constant(*maxima)
    bias, activation, c = (None if part == "None" else part for part in optional)
    return default_epilogue(constant, alpha_a, alpha_b, bias, activation, c, float(beta))
