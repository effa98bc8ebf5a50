"""Known bytes and known errors: hashes, SQNR of five distributions, relative errors of GEMMs."""

import hashlib

import pytest
import torch

from cutefp4.recipe import PER_TOKEN, TE, QuantRecipe
from cutefp4.reference import dequantize, gemm, quantize, rel_l2, sqnr_db
from cutefp4.reference.hadamard import inverse_transform, transform
from tests.cases import GOLDEN_NAMES, PROFILES, golden, normal

X = normal(999, (128, 64))
COMPACT = {"scale_layout": "compact"}


def sha(t: torch.Tensor) -> str:
    return hashlib.sha256(t.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    "profile, codes, scales",
    [
        ("te1d", "41252cf702c10ae8", "5e3f22ae59e04f1d"),
        ("pt", "aa4c3bdfdb58acbf", "977893acc9566011"),
        ("te2d", "98d7d2bcffbcb0ae", None),
        ("4o6-mae-256", "04e1873b715ee286", "53855485dec5f26e"),
    ],
)
def test_hashes_of_codes_and_scales(profile, codes, scales):
    assert sha(X) == "08c5c8ae993ec552"
    operand = quantize(X, PROFILES[profile].replace(**COMPACT))[0]
    assert sha(operand.codes) == codes
    assert scales is None or sha(operand.block_scales) == scales


def test_hash_of_tiled_scales():
    assert sha(quantize(X, QuantRecipe())[0].block_scales) == "df1afea5adafe279"


def test_hash_of_row_amaxes():
    assert sha(quantize(X, PROFILES["pt"])[0].amax) == "412bd166aca2674e"


def test_hash_of_the_transform():
    assert sha(transform(X.t().contiguous(), "bf16", 0xD7E8).to(torch.bfloat16)) == "557a89a832254a20"


def test_hash_of_stochastic_codes():
    operand = quantize(X, PROFILES["rsr"].replace(**COMPACT), seed=42, offset=0)[0]
    assert (sha(operand.codes), sha(operand.block_scales)) == ("eef2149a3edde89c", "5e3f22ae59e04f1d")


# ---------------------------------------------------------------- SQNR in dB, columns as in GOLDEN_NAMES

SQNR = {
    "te1d": (20.4406, 20.6620, 21.2167, 23.7150, 20.4583),
    "te2d": (19.0673, 17.7826, 15.1805, 18.4827, 18.7997),
    "pt": (20.4413, 20.6729, 21.2765, 23.9869, 20.4626),
    "ao": (20.4406, 20.6620, 21.2167, 23.7150, 20.4583),
    "4o6-mae-256": (21.0834, 21.0605, 21.4947, 24.2173, 21.0647),
    "4o6-mse-256": (21.2199, 21.1953, 21.5867, 24.2377, 21.1831),
    "4o6-mae-448": (21.0738, 21.0626, 21.4859, 24.2027, 21.0024),
    "4o6-mse-448": (21.2088, 21.1951, 21.5764, 24.2247, 21.1304),
    "4o6-mae-256-2d": (19.0682, 17.7844, 15.1669, 18.7798, 19.0567),
    "4o6-mae-256-fast": (21.0835, 21.0606, 21.4947, 24.2173, 21.0647),
}


@pytest.mark.parametrize("profile", SQNR)
def test_sqnr_rowwise(profile):
    for name, expected in zip(GOLDEN_NAMES, SQNR[profile], strict=True):
        x = golden(name)
        assert sqnr_db(dequantize(quantize(x, PROFILES[profile])[0]), x) == pytest.approx(expected, abs=0.002), name


def columnwise(x: torch.Tensor, recipe: QuantRecipe) -> torch.Tensor:
    operand = quantize(x, recipe, rowwise=False, columnwise=True)[1]
    values = dequantize(operand)
    return values if operand.rht is None else inverse_transform(values, operand.rht)


@pytest.mark.parametrize(
    "rht, along_rows, expected",
    [
        ("bf16", False, (20.4439, 20.3424, 20.5189, 20.1764, 20.3614)),
        ("bf16", True, (20.4416, 20.3500, 20.4726, 20.4664, 21.9516)),
        ("none", True, (20.4337, 20.6568, 21.2153, 20.5316, 26.2125)),
    ],
)
def test_sqnr_columnwise(rht, along_rows, expected):
    for name, figure in zip(GOLDEN_NAMES, expected, strict=True):
        x = golden(name) if along_rows else golden(name).t()
        assert sqnr_db(columnwise(x, QuantRecipe(rht=rht)), x.t()) == pytest.approx(figure, abs=0.002), name


@pytest.mark.parametrize(
    "draws, expected",
    [(1, (17.2554, 17.3853, 17.8294, 18.2254, 17.2478)), (16, (28.9622, 28.9199, 29.0867, 29.0648, 29.0088))],
)
def test_sqnr_stochastic(draws, expected):
    for name, figure in zip(GOLDEN_NAMES, expected, strict=True):
        x = golden(name)
        total = torch.zeros(x.shape, dtype=torch.float64)
        for offset in range(draws):
            total += dequantize(quantize(x, PROFILES["rsr"], seed=1, offset=offset)[0])
        assert sqnr_db(total / draws, x) == pytest.approx(figure, abs=0.05), name


# ---------------------------------------------------------------- GEMM


def bf16_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.double() @ b.double().T).to(torch.bfloat16)


@pytest.mark.parametrize(
    "x_profile, w_profile, expected",
    [
        ("pt", "pt", (0.13391, 0.13449)),
        ("te1d", "te2d", (0.14537, 0.14555)),
        ("4o6-mae-256", "4o6-mae-256", (0.12525, 0.12467)),
    ],
)
def test_gemm_error(x_profile, w_profile, expected):
    for k, figure in zip((256, 1024), expected, strict=True):
        x, w = normal(201, (256, k), 0.5), normal(202, (256, k), 0.5)
        out = gemm(quantize(x, PROFILES[x_profile])[0], quantize(w, PROFILES[w_profile])[0])
        assert rel_l2(out, bf16_product(x, w)) == pytest.approx(figure, abs=1.1e-5)


@pytest.mark.parametrize("profile, expected", [("pt", 0.13471), ("pt_rht", 0.13498), ("te_rht", 0.13349)])
def test_wgrad_error(profile, expected):
    dy, x = normal(203, (1024, 128), 0.5), golden("outlier_cols")[:, :128]
    a, b = (quantize(t, PROFILES[profile], rowwise=False, columnwise=True)[1] for t in (dy, x))
    assert rel_l2(gemm(a, b), dy.double().T @ x.double()) == pytest.approx(expected, abs=1.1e-5)


@pytest.mark.parametrize(
    "recipe, fprop, dgrad, wgrad, sr_tolerance",
    [(TE, 0.14578, 0.17585, 0.16692, 1e-3), (PER_TOKEN, 0.13378, 0.13375, 0.13320, 1.1e-5)],
)
def test_training_gemm_errors(recipe, fprop, dgrad, wgrad, sr_tolerance):
    x, w, dy = normal(211, (512, 256), 0.5), normal(212, (256, 256), 0.5), normal(213, (512, 256), 0.5)
    (xr, xc), (wr, wc) = quantize(x, recipe.x, columnwise=True), quantize(w, recipe.w, columnwise=True)
    dr, dc = quantize(dy, recipe.dy, columnwise=True, seed=3)
    x, w, dy = x.double(), w.double(), dy.double()
    assert rel_l2(gemm(xr, wr), x @ w.T) == pytest.approx(fprop, abs=1.1e-5)
    assert rel_l2(gemm(dr, wc), dy @ w) == pytest.approx(dgrad, abs=sr_tolerance)
    assert rel_l2(gemm(dc, xc), dy.T @ x) == pytest.approx(wgrad, abs=sr_tolerance)
