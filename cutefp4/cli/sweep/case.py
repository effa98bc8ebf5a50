"""One case of a sweep: a product of a linear layer with its recipe and epilogue, and its operands.

The operands come in two kinds: `exact`, whose sums are exact in fp32 in every order, so that a kernel must give the
oracle's bits; and `normal`, quantised normal data, which are what is timed and are checked against the fp32 bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from cutefp4 import gemm_choice_sm100, gemm_request_sm90, ops, ops_gemm_sm100, reference
from cutefp4.epilogue import default_epilogue
from cutefp4.epilogue_text import default_text
from cutefp4.errors import OperandError
from cutefp4.format import BLOCK, gemm_constant, weight_constant
from cutefp4.operand import Nvfp4Operand
from cutefp4.recipe import QuantRecipe, named_recipe
from cutefp4.scale_layout import round_up, to_tiled
from cutefp4.timing import fill

LAYOUTS = {"TN": ("x", "w"), "NN": ("dy", "w"), "NT": ("dy", "x")}
"""The recipe of A and of B."""
KINDS = ("w4a4", "w4a16")
EPILOGUES = {
    "none": {},
    "bias": {"bias": True},
    "relu2": {"activation": "relu2"},
    "gelu": {"activation": "gelu"},
    "silu": {"activation": "silu"},
    "bias_gelu": {"bias": True, "activation": "gelu"},
    "add": {"c": "bfloat16"},
    "bias_add": {"bias": True, "c": "bfloat16"},
    "accumulate": {"c": "float32"},
}
"""What follows the outer scales. add: D = ... + C. accumulate: D += ..., D in fp32, as weight gradients are."""


@dataclass(frozen=True)
class Case:
    """One product.

    Attributes:
        layout: "TN", "NN" or "NT" of the linear layer (tokens, outputs, inputs).
        tokens, outputs, inputs: sizes of the layer.
        kind: "w4a4", or "w4a16": bf16 activations (TN only).
        recipe: name of a training recipe; its scaling and e4m3_max matter to a GEMM.
        epilogue: a name of EPILOGUES.
    """

    layout: str
    tokens: int
    outputs: int
    inputs: int
    kind: str = "w4a4"
    recipe: str = "per_token"
    epilogue: str = "none"

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("layout", self.layout, LAYOUTS),
            ("kind", self.kind, KINDS),
            ("epilogue", self.epilogue, EPILOGUES),
        ):
            if value not in accepted:
                raise OperandError(f"--{name} {value}", ", ".join(accepted), "choose one of these")
        named_recipe(self.recipe)
        if self.kind == "w4a16" and (self.layout != "TN" or "c" in EPILOGUES[self.epilogue]):
            raise OperandError(
                f"--kind w4a16 with layout {self.layout}, epilogue {self.epilogue}",
                "layout TN without add or accumulate",
                "16-bit activations multiply a weight in the forward product",
            )
        multiple = 64 if self.kind == "w4a16" else BLOCK
        if self.k % multiple:
            raise OperandError(
                f"{self.name}: K = {self.k}", f"a multiple of {multiple}", "pad the contraction axis with zeros"
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """M, N, K of the GEMM."""
        t, o, i = self.tokens, self.outputs, self.inputs
        return {"TN": (t, o, i), "NN": (t, i, o), "NT": (o, i, t)}[self.layout]

    @property
    def m(self) -> int:
        return self.sizes[0]

    @property
    def n(self) -> int:
        return self.sizes[1]

    @property
    def k(self) -> int:
        return self.sizes[2]

    @property
    def name(self) -> str:
        shape = f"{self.tokens}x{self.outputs}x{self.inputs}"
        return f"{self.kind} {self.layout} {shape} {self.recipe} {self.epilogue}"

    @property
    def out_dtype(self) -> torch.dtype:
        return torch.float32 if self.epilogue == "accumulate" else torch.bfloat16

    @property
    def flop(self) -> int:
        return 2 * self.m * self.n * self.k

    @property
    def nbytes(self) -> int:
        """Least traffic: operands once, D once, C once."""
        a = self.m * self.k * (2 if self.kind == "w4a16" else 0.5625)
        c_bytes = {"bfloat16": 2, "float32": 4}.get(EPILOGUES[self.epilogue].get("c"), 0)
        return int(a + self.n * self.k * 0.5625 + self.m * self.n * (self.out_dtype.itemsize + c_bytes))

    def recipes(self) -> tuple[QuantRecipe, QuantRecipe]:
        """Of A and B."""
        named = named_recipe(self.recipe)
        a, b = (getattr(named, which) for which in LAYOUTS[self.layout])
        return a, b

    def request(self, arch: str):
        """What the operation asks the heuristic and the tuned table for."""
        return _request(self, arch)


@cache
def _request(case: Case, arch: str):
    recipe_a, recipe_b = case.recipes()
    options = EPILOGUES[case.epilogue]
    alpha_a = "row" if recipe_a.scaling == "token" else "scalar"
    alpha_b = "column" if recipe_b.scaling == "token" else "scalar"
    bias, activation, c = "bfloat16" if "bias" in options else None, options.get("activation"), options.get("c")
    out = str(case.out_dtype).removeprefix("torch.")
    if arch != "sm_90a":
        maxima = recipe_a.e4m3_max, recipe_b.e4m3_max
        text = default_text(maxima, (alpha_a, alpha_b), bias, activation, c)
        k = round_up(case.k, ops_gemm_sm100.K_MULTIPLE)
        return gemm_choice_sm100.GemmRequest(case.m, case.n, k, 1, out, text)
    constant = gemm_constant(recipe_a.e4m3_max, recipe_b.e4m3_max)
    activations = "nvfp4"
    if case.kind == "w4a16":
        constant, alpha_a, activations = weight_constant(recipe_b.e4m3_max), "none", "bfloat16"
    tree = default_epilogue(constant, alpha_a, alpha_b, bias, activation, c)
    return gemm_request_sm90.GemmRequest(
        case.m, case.n, case.k, 1, out, activations, "tiled", "tiled", tree, in_place=case.epilogue == "accumulate"
    )


@dataclass(frozen=True)
class Operands:
    """A, B and what the epilogue reads. a: an operand, or bf16 activations (W4A16)."""

    case: Case
    a: Nvfp4Operand | torch.Tensor
    b: Nvfp4Operand
    bias: torch.Tensor | None
    c: torch.Tensor | None

    def fresh_d(self) -> torch.Tensor:
        """D full of NaN, or a copy of C where the product is accumulated into it."""
        if self.case.epilogue == "accumulate":
            return self.c.clone()
        return torch.full((self.case.m, self.case.n), torch.nan, dtype=self.case.out_dtype, device=self.b.device)

    def run(self, d: torch.Tensor) -> None:
        """The public operation, into D."""
        options = {"bias": self.bias, "activation": EPILOGUES[self.case.epilogue].get("activation"), "out": d}
        if self.case.kind == "w4a16":
            ops.OPERATIONS["gemm_a16"](self.a, self.b, **options)
            return
        c = d if self.case.epilogue == "accumulate" else self.c
        ops.OPERATIONS["gemm"](self.a, self.b, c=c, beta=1.0, out_dtype=d.dtype, **options)

    def decoded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """e2m1 * e4m3 of both in bf16, exact; outer amaxes left out."""
        a = self.a if isinstance(self.a, torch.Tensor) else reference.decoded(self.a).to(torch.bfloat16)
        return a, reference.decoded(self.b).to(torch.bfloat16)

    def alphas(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Outer amaxes by row and column of D, and the constant."""
        b = self.b.row_amax()
        if isinstance(self.a, torch.Tensor):
            return torch.ones(self.case.m, device=b.device), b, weight_constant(self.b.e4m3_max)
        return self.a.row_amax(), b, gemm_constant(self.a.e4m3_max, self.b.e4m3_max)


def _exact_operand(rows: int, k: int, recipe: QuantRecipe, device, seed: int) -> Nvfp4Operand:
    """Random codes with block scales 1 and 2 (1 alone for long K): sums of K products stay below 2^24 units."""
    g = torch.Generator(device).manual_seed(seed)

    def random(most: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, most, shape, generator=g, dtype=torch.uint8, device=device)

    codes, one, two = random(256, rows, k // 2), 0x38, 0x40
    scales = one + random(2 if k <= 28_000 else 1, rows, k // BLOCK) * (two - one)
    scales = to_tiled(scales).view(torch.float8_e4m3fn)
    token = recipe.scaling == "token"
    amax = torch.rand((rows,) if token else (), generator=g, device=device) * 900 + 100
    return Nvfp4Operand(codes, scales, amax, recipe.scaling, recipe.e4m3_max, "tiled", rows, k)


def _normal_operand(rows: int, k: int, recipe: QuantRecipe, device, seed: int) -> Nvfp4Operand:
    x = fill((rows, k), "normal", dtype=torch.bfloat16, device=device, seed=seed)
    plain = QuantRecipe(scaling=recipe.scaling, e4m3_max=recipe.e4m3_max)
    return reference.quantize(x, plain, rowwise=True, columnwise=False)[0]


def make_operands(case: Case, kind: str, device: str | torch.device) -> Operands:
    """Operands of a case, "exact" or "normal", the same in every run."""
    recipe_a, recipe_b = case.recipes()
    make = _exact_operand if kind == "exact" else _normal_operand
    options = EPILOGUES[case.epilogue]
    if case.kind == "w4a16":
        a = fill((case.m, case.k), "normal", dtype=torch.bfloat16, device=device, seed=1)
        # Quarters up to 2.
        a = (a * 4).round().clamp(-8, 8) / 4 if kind == "exact" else a
    else:
        a = make(case.m, case.k, recipe_a, device, 1)
    b = make(case.n, case.k, recipe_b, device, 2)
    bias = fill((case.n,), "normal", dtype=torch.bfloat16, device=device, seed=3) if "bias" in options else None
    c = None
    if "c" in options:
        c = fill((case.m, case.n), "normal", dtype=getattr(torch, options["c"]), device=device, seed=4)
    return Operands(case, a, b, bias, c)
