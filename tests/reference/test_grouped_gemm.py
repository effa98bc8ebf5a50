"""Grouped GEMMs of the three layouts equal a loop of GEMMs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutefp4.errors import OperandError
from cutefp4.recipe import QuantRecipe
from cutefp4.reference import gemm, grouped_gemm, quantize, quantize_grouped, rel_l2
from tests.cases import PROFILES, batch, end_offsets, matrix, ragged_sizes
from tests.compare import assert_same_bits

SIZES, TOTAL, N, K = (37, 0, 130, 5), 180, 48, 64
OFFS = end_offsets(SIZES)
EMPTY = 1


def token_and_expert(profile="te1d", layout="TN", sizes=SIZES, total=TOTAL):
    """(A, B) of a TN or NN product: tokens (total, K), experts (E, N, K) quantised along K."""
    recipe = PROFILES[profile]
    a = quantize_grouped(matrix(total, K, "row_scaled", 1), end_offsets(sizes), recipe)[0]
    weights = batch(len(sizes), N, K, seed=2)
    if layout == "TN":
        return a, quantize(weights, recipe)[0]
    return a, quantize(weights.mT.contiguous(), recipe, rowwise=False, columnwise=True)[1]


def wgrad_pair(profile="te_rht", sizes=SIZES, total=TOTAL):
    """(A, B) of an NT product: dY^T (N, total) and X^T (K, total), ragged along the tokens."""
    offs, recipe = end_offsets(sizes), PROFILES[profile]
    dy, x = matrix(total, N, seed=3), matrix(total, K, seed=4)
    a, b = (quantize_grouped(t, offs, recipe, rowwise=False, columnwise=True)[1] for t in (dy, x))
    return a, b, dy, x


def expert(b, g):
    return b.map(lambda t: t[g])


@pytest.mark.parametrize("layout", ["TN", "NN"])
@pytest.mark.parametrize("profile", ["te1d", "pt", "4o6-mae-256", "te2d"])
def test_rows(profile, layout):
    a, b = token_and_expert(profile, layout)
    bias = matrix(4, N, seed=5)
    out = grouped_gemm(a, b, OFFS, layout=layout, bias=bias, activation="silu")
    assert out.shape == (TOTAL, N) and out.dtype == torch.bfloat16
    begin = 0
    for g, size in enumerate(SIZES):
        if size:
            alone = gemm(a.group(g), expert(b, g), bias=bias[g], activation="silu")
            assert_same_bits(out[begin : begin + size], alone)
        begin += size
    assert not out[begin:].any()


@pytest.mark.parametrize("profile", ["te1d", "pt_rht", "te_rht", "4o6-rht", "rsr_rht"])
def test_ragged_k(profile):
    a, b, dy, x = wgrad_pair(profile)
    out = grouped_gemm(a, b, OFFS, layout="NT", out_dtype=torch.float32)
    assert out.shape == (4, N, K)
    begin = 0
    for g, size in enumerate(SIZES):
        if size:
            assert_same_bits(out[g], gemm(a.group(g), b.group(g), out_dtype=torch.float32))
            exact = dy[begin : begin + size].double().T @ x[begin : begin + size].double()
            assert rel_l2(out[g], exact) < 0.25
        begin += size
    assert not out[EMPTY].any()


def test_groups_do_not_mix():
    """Changing one group's rows, or its expert, changes that group's result alone."""
    a, b = token_and_expert("pt")
    x = matrix(TOTAL, K, "row_scaled", 1)
    base = grouped_gemm(a, b, layout="TN")
    x[37:167] *= -3
    other = grouped_gemm(quantize_grouped(x, OFFS, PROFILES["pt"])[0], b, layout="TN")
    assert_same_bits(other[:37], base[:37])
    assert_same_bits(other[167:], base[167:])
    assert not torch.equal(other[37:167], base[37:167])


def test_accumulate_rows():
    a, b = token_and_expert()
    c = matrix(TOTAL, N, seed=7)
    plain = grouped_gemm(a, b, layout="TN", out_dtype=torch.float32)
    got = grouped_gemm(a, b, layout="TN", c=c, out_dtype=torch.float32)
    assert_same_bits(got[:172], c[:172].float() + plain[:172])
    assert_same_bits(got[172:], c[172:].float())  # rows of no group keep C
    nothing = grouped_gemm(a, b, layout="TN", c=torch.full_like(c, torch.nan), beta=0.0)
    assert_same_bits(nothing, grouped_gemm(a, b, layout="TN"))


def test_accumulate_ragged_k():
    a, b, _, _ = wgrad_pair()
    c = batch(4, N, K, seed=8, dtype=torch.float32)
    plain = grouped_gemm(a, b, layout="NT", out_dtype=torch.float32)
    got = grouped_gemm(a, b, layout="NT", c=c, out_dtype=torch.float32)
    assert_same_bits(got, c + plain)
    assert_same_bits(got[EMPTY], c[EMPTY])
    assert_same_bits(grouped_gemm(a, b, layout="NT", c=c, beta=0.5, out_dtype=torch.float32)[EMPTY], c[EMPTY] * 0.5)


def test_one_bias_for_all():
    a, b = token_and_expert()
    bias = matrix(1, N, seed=5)[0]
    assert_same_bits(
        grouped_gemm(a, b, layout="TN", bias=bias), grouped_gemm(a, b, layout="TN", bias=bias.expand(4, N))
    )


@given(st.integers(1, 6), st.integers(0, 200), st.integers(0, 1000))
def test_random_splits(groups, total, seed):
    sizes = ragged_sizes(groups, total, seed)
    a, b = token_and_expert("te1d", "TN", sizes, total)
    rows = grouped_gemm(a, b, layout="TN", out_dtype=torch.float32)
    p, q, _, _ = wgrad_pair("te1d", sizes, total)
    blocks = grouped_gemm(p, q, layout="NT", out_dtype=torch.float32)
    begin = 0
    for g, size in enumerate(sizes):
        if size:
            one = gemm(a.group(g), expert(b, g), out_dtype=torch.float32)
            assert_same_bits(rows[begin : begin + size], one)
            assert_same_bits(blocks[g], gemm(p.group(g), q.group(g), out_dtype=torch.float32))
        else:
            assert not blocks[g].any()
        begin += size


@pytest.mark.parametrize("layout", ["tiled", "compact"])
def test_scale_layouts_agree(layout):
    x, w = matrix(TOTAL, K, seed=1), batch(4, N, K, seed=2)
    recipe = QuantRecipe(scale_layout=layout)
    out = grouped_gemm(quantize_grouped(x, OFFS, recipe)[0], quantize(w, recipe)[0], layout="TN")
    base = QuantRecipe()
    assert_same_bits(out, grouped_gemm(quantize_grouped(x, OFFS, base)[0], quantize(w, base)[0], layout="TN"))


A, B = token_and_expert()
P, Q, _, _ = wgrad_pair()
OTHER = quantize_grouped(matrix(TOTAL, K), end_offsets((37, 3, 127, 5)), PROFILES["te_rht"], columnwise=True)


@pytest.mark.parametrize(
    "a, b, offs, options, words",
    [
        (A, B, None, {"layout": "TT"}, ["layout='TT'", "'TN', 'NN', 'NT'"]),
        (B, B, None, {"layout": "TN"}, ["a = Nvfp4Operand(4x48x64", "ragged='rows'", "quantize_grouped"]),
        (A, A, None, {"layout": "TN"}, ["b = Nvfp4GroupedOperand", "batched operand (E, N, K)"]),
        (A, expert(B, 0), None, {"layout": "NN"}, ["b = Nvfp4Operand(48x64", "batched operand"]),
        (A, Q, None, {"layout": "NT"}, ["a = Nvfp4GroupedOperand", "ragged='k'"]),
        (A, B, OFFS + 1, {"layout": "TN"}, ["offs = [38, 38, 168, 173]", "[37, 37, 167, 172]"]),
        (P, OTHER[1], None, {"layout": "NT"}, ["[37, 37, 167, 172] of a, [37, 40, 167, 172] of b"]),
        (A, B.map(lambda t: t[:3]), None, {"layout": "TN"}, ["4 groups of a, batch of 3"]),
        (A, B, None, {"layout": "TN", "bias": torch.zeros(4)}, ["bias of shape (4,)", "(48,) or (4, 48)"]),
        (A, B, None, {"layout": "TN", "c": torch.zeros(4, 48)}, ["C of shape (4, 48)", "(180, 48)"]),
        (A, B, None, {"layout": "TN", "out_dtype": torch.int8}, ["out_dtype=torch.int8"]),
        (A, B, None, {"layout": "TN", "activation": "tanh"}, ["activation='tanh'"]),
    ],
)
def test_refused(a, b, offs, options, words):
    with pytest.raises(OperandError) as error:
        grouped_gemm(a, b, offs, **options)
    for word in (*words, "accepted:", "to fix:"):
        assert word in str(error.value), str(error.value)
