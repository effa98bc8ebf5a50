"""All cases of an architecture: the quick ones, and the rest of the full matrix."""

from __future__ import annotations

import itertools

from cutefp4.acceptance.case import Case
from cutefp4.acceptance.code import layer_cases, shipped_sm100_cases
from cutefp4.acceptance.composed import TREES, ComposedCase
from cutefp4.acceptance.configurations import every_case, paired_cases
from cutefp4.acceptance.gemm import A16Case, GemmCase
from cutefp4.acceptance.producers import DeinterleaveCase, RmsNormCase, SwigluCase
from cutefp4.acceptance.quantise import DequantiseCase, GroupedCase, QuantiseCase
from cutefp4.acceptance.repeat import BatchInvarianceCase, RepeatCase
from cutefp4.errors import RecipeError
from cutefp4.recipe import QuantRecipe

TE = QuantRecipe()
TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")
FOURS = TE.replace(four_over_six="mae", e4m3_max=256)
DTYPES = ("bfloat16", "float16", "float32")

RECIPES = (
    TE,
    TOKEN,
    TE.replace(scaling="token", scale_layout="compact"),
    TE.replace(arithmetic="torchao", scale_layout="compact"),
    TE.replace(block="2d"),
    TOKEN.replace(block="2d", e4m3_max=256),
    TE.replace(rht="bf16"),
    TOKEN.replace(rht="fp32"),
    TE.replace(rounding="stochastic"),
    TE.replace(rht="bf16", rounding="stochastic"),
    FOURS,
    FOURS.replace(four_over_six="mse", four_over_six_error="fast", scaling="token"),
    FOURS.replace(block="2d", four_over_six_error="fast", e4m3_max=448),
    FOURS.replace(rht="fp32", rounding="stochastic", four_over_six="mse", scaling="token"),
)
"""What the quick matrix quantises with: every value of every field."""

INPUTS = ("rows", "ties", "decades", "specials", "finite", "zeros")
SIZES = (1, 7, 63, 129, 300)
DEPTHS = (16, 48, 208, 4096)


def every_recipe() -> list[QuantRecipe]:
    """Every recipe that has a meaning, but for sign masks; layouts of the scales take turns."""
    fields = {
        "scaling": ("tensor", "token"),
        "block": ("1d", "2d"),
        "arithmetic": ("te", "per_token", "torchao"),
        "rht": ("none", "bf16", "fp32"),
        "rounding": ("nearest", "stochastic"),
        "four_over_six": ("none", "mae", "mse"),
        "four_over_six_error": ("strict", "fast"),
        "four_over_six_columnwise": ("shared", "recomputed"),
        "e4m3_max": (448, 256),
    }
    found = []
    for number, values in enumerate(itertools.product(*fields.values())):
        chosen = dict(zip(fields, values, strict=True))
        fours, flat = chosen["four_over_six"] != "none", chosen["block"] == "1d"
        if not fours and chosen["four_over_six_error"] == "fast":
            continue
        if chosen["four_over_six_columnwise"] == "recomputed" and (flat or not fours):
            continue
        try:
            found.append(QuantRecipe(**chosen, scale_layout=("tiled", "compact")[number % 2]))
        except RecipeError:
            continue
    return found


def quantise_cases() -> list[Case]:
    cases: list[Case] = []
    for number, recipe in enumerate(RECIPES):
        dtype = DTYPES[number % 3]
        cases.append(QuantiseCase(True, recipe, (48, 80), "both", dtype, INPUTS))
        cases.append(QuantiseCase(True, recipe, (144, 208), "both", dtype))
        cases.append(QuantiseCase(True, recipe, (7, 48), "rowwise", dtype, ("decades", "specials")))
        cases.append(QuantiseCase(number % 3 == 0, recipe, (32, 37), "columnwise", dtype, ("rows", "specials")))
        cases += [QuantiseCase(False, recipe, (48, 80), "both", other, INPUTS) for other in DTYPES if other != dtype]
    for recipe in (TE, TOKEN):
        for columns in (16, 1008, 7168):
            cases.append(QuantiseCase(columns != 7168, recipe, (1, columns), "rowwise"))
        cases.append(QuantiseCase(True, recipe, (300, 2112), "rowwise"))
        cases.append(QuantiseCase(False, recipe, (304, 2112), "both"))
        cases.append(QuantiseCase(True, recipe, (32, 160), "both", strided=True))
        cases.append(QuantiseCase(True, recipe, (32, 48), "both", batch=2))
        cases.append(QuantiseCase(True, recipe, (32, 64), "both", amax=True))
    for number, recipe in enumerate(every_recipe()):
        cases.append(QuantiseCase(False, recipe, (48, 96), "both", DTYPES[number % 3], ("rows", "specials")))
    return cases


def grouped_cases() -> list[Case]:
    recipes = (
        TE, TOKEN, TE.replace(rht="fp32", scale_layout="compact"), TOKEN.replace(rht="fp32", rounding="stochastic"),
        TE.replace(arithmetic="torchao"), FOURS.replace(four_over_six_error="fast"),
    )  # fmt: skip
    cases: list[Case] = []
    for number, recipe in enumerate(recipes):
        quick = number < 4
        cases.append(GroupedCase(quick, recipe))
        cases.append(GroupedCase(quick, recipe, (0, 0, 300), behind=0))
        cases.append(GroupedCase(quick, recipe, (3,) * 40, behind=400))
        cases.append(GroupedCase(number == 1, recipe, (20, 0, 100), copies="rowwise"))
        cases.append(GroupedCase(False, recipe, (20, 0, 100), columns=37, copies="columnwise", dtype="float16"))
        cases.append(GroupedCase(False, recipe, (200,), columns=720))
    return cases


def producer_cases() -> list[Case]:
    """SwiGLU, de-interleaving and RMSNorm in front of the quantiser."""
    cases: list[Case] = [SwigluCase(True, interleave=g) for g in (None, 8, 32)]
    cases += [SwigluCase(False, interleave=g, dtype=dtype) for g in (None, 8, 16, 32) for dtype in DTYPES[1:]]
    cases += [SwigluCase(True, TE, 32, interleave=8, copies="both"), SwigluCase(False, TOKEN, 48, copies="both")]
    cases += [DeinterleaveCase(g == 8, recipe, interleave=g) for recipe in (TE, TOKEN) for g in (None, 8, 32)]
    cases += [DeinterleaveCase(True, TOKEN, 48, interleave=16, copies="both", dtype="float16")]
    for number, recipe in enumerate((TOKEN, TE, TOKEN.replace(rht="fp32"), FOURS)):
        dtype = DTYPES[number % 3]
        cases.append(RmsNormCase(number < 2, recipe, residual=number % 2 == 0, dtype=dtype))
        cases.append(RmsNormCase(number == 1, recipe, 32, 208, residual=number % 2 == 1, copies="both", dtype=dtype))
        cases.append(RmsNormCase(False, recipe, 33, 7168, dtype=dtype))
        cases.append(RmsNormCase(False, recipe, 9, 2112, dtype=dtype, inputs="finite"))
    return cases


def dequantise_cases() -> list[Case]:
    recipes = (TE, TOKEN.replace(scale_layout="compact", e4m3_max=256))
    return [
        DequantiseCase(shape == (130, 80), recipe, shape, out)
        for recipe in recipes
        for shape in ((1, 16), (40, 96), (130, 80))
        for out in DTYPES
    ]


def tail_cases() -> list[Case]:
    """M, N in 1, 7, 63, 129, 300 and K in 16, 48, 208, 4096: all of them in the full matrix, with layouts and dtypes of
    D taking turns; every M with every N in the quick one, where K takes turns, too."""
    cases: list[Case] = []
    layouts = ("TN", "NN", "NT")
    for i, (m, n) in enumerate(itertools.product(SIZES, SIZES)):
        turn = (i + i // 5) % (len(DEPTHS) if m * n <= 63 * 300 else len(DEPTHS) - 1)
        for j, k in enumerate(DEPTHS):
            # In the quick matrix the dtype of D follows N, so that few kernels serve many shapes.
            out = "bfloat16" if i % 5 in (0, 2, 4) else "float32"
            cases.append(GemmCase(j == turn, m, n, k, layouts[(i + j) % 3], out=out))
            if k < 4096:
                cases.append(GemmCase(False, m, n, k, layouts[(i + j + 1) % 3], out=DTYPES[(i + j) % 3], shift=4))
    return cases


def epilogue_cases() -> list[Case]:
    """Outputs x bias x activation x accumulation."""
    cases: list[Case] = []
    kinds = itertools.product(DTYPES, (None, *DTYPES), (None, "relu", "relu2", "gelu", "silu"), (False, True))
    for number, (out, bias, activation, accumulate) in enumerate(kinds):
        quick = number % 11 == 0
        n = 136 if number % 2 else 71
        options = {"out": out, "bias": bias, "activation": activation, "accumulate": accumulate}
        cases.append(GemmCase(quick, (70, 150, 9)[number % 3], n, 128, **options))
    return cases


def form_cases(arch: str) -> list[Case]:
    """Layouts, scalings, batches, rounded sums, small M, repeatability, batch invariance."""
    cases: list[Case] = [GemmCase(True, 70, 72, 208, layout) for layout in ("TN", "NN", "NT")]
    cases += [GemmCase(True, 70, 72, 208, layout, values="wide", out="float32") for layout in ("TN", "NT")]
    cases += [GemmCase(False, 300, 264, k, values="wide") for k in (208, 4096)]
    cases += [
        GemmCase(a == "tensor", 40, 56, 208, scaling_a=a, scaling_b=b)
        for a in ("tensor", "token")
        for b in ("tensor", "token")
    ]
    cases += [GemmCase(True, 33, 48, 64, batch=3), GemmCase(False, 9, 200, 1536, batch=2)]
    cases += [GemmCase(m in (1, 16), m, 520, 1024, sms=8) for m in (1, 2, 8, 16, 17, 32, 64)]
    cases += [GemmCase(m == 1, m, 1032, 4096, sms=16) for m in (1, 16, 64)]
    cases += [GemmCase(m == 5, m, 136, 208, batch_invariant=True) for m in (1, 5, 129)]
    cases += [RepeatCase(m == 40, m, n, k) for m, n, k in ((40, 136, 1552), (3, 520, 2064), (200, 264, 784))]
    cases += [BatchInvarianceCase(True), BatchInvarianceCase(False, 300, 136, 1040)]
    if arch == "sm_90a":
        cases += [
            GemmCase(a == "compact", 129, 71, 208, scales_a=a, scales_b=b)
            for a in ("tiled", "compact")
            for b in ("tiled", "compact")
            if (a, b) != ("tiled", "tiled")
        ]
    return cases


def composed_cases(arch: str) -> list[Case]:
    """Every tree, for few and for many rows; D as NVFP4 where there is a kernel for it."""
    trees = [name for name in TREES if name != "nvfp4" or arch != "sm_90a"]
    cases: list[Case] = [ComposedCase(m == 150, tree, m, n, 208) for tree in trees for m, n in ((20, 144), (150, 144))]
    cases += [ComposedCase(False, "sinks", m, 136, 96, out) for m in (5, 300) for out in ("bfloat16", "float16")]
    return cases


def a16_cases() -> list[Case]:
    cases: list[Case] = [
        A16Case(n % 8 == 0 and dtype == "bfloat16", m, n, k, dtype, out, scales)
        for m, k in ((1, 256), (20, 128), (150, 192), (300, 64))
        for n, scales in ((264, "tiled"), (300, "compact"))
        for dtype, out in (("bfloat16", "float32"), ("float16", "float16"))
    ]
    cases.append(A16Case(True, 16, 520, 1024, "bfloat16", "bfloat16", bias=None))
    return cases


def cases_of(arch: str) -> list[Case]:
    """Every case of an architecture; `Case.quick` tells the quick ones. Of equal ids the first stays."""
    found = [
        *quantise_cases(), *grouped_cases(), *producer_cases(), *dequantise_cases(),
        *tail_cases(), *epilogue_cases(), *form_cases(arch), *composed_cases(arch),
    ]  # fmt: skip
    if arch == "sm_90a":
        found += a16_cases()
    else:
        found += [*paired_cases(), *every_case(), *shipped_sm100_cases(arch)]
    found += layer_cases(arch)
    unique: dict[str, Case] = {}
    for case in found:
        if case.id not in unique or (case.quick and not unique[case.id].quick):
            unique[case.id] = case
    return list(unique.values())
