"""The exact accumulator, the epilogue's order of operations, the predicate of the exact regime."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutefp4.errors import OperandError
from cutefp4.format import gemm_constant, numerator, pack_codes
from cutefp4.operand import Nvfp4Operand
from cutefp4.recipe import QuantRecipe
from cutefp4.reference import decoded, dequantize, epilogue, gemm, gemm_accumulator, in_exact_regime, quantize, rel_l2
from cutefp4.reference.gemm import fma
from tests.cases import PROFILES, batch, matrix, odd_shapes
from tests.compare import assert_close, assert_same_bits


def pair(m=40, n=24, k=96, profile="te1d", kind="normal", seed=0):
    a, b = matrix(m, k, kind, seed), matrix(n, k, kind, seed + 1)
    return tuple(quantize(x, PROFILES[profile])[0] for x in (a, b))


def operand_of(codes: torch.Tensor, scales: torch.Tensor) -> Nvfp4Operand:
    """codes (rows, K) 0..15 and scale bytes (rows, K/16) with amax 1."""
    return Nvfp4Operand(
        pack_codes(codes.to(torch.uint8)),
        scales.to(torch.uint8).contiguous().view(torch.float8_e4m3fn),
        torch.ones(()),
        scale_layout="compact",
    )


def random_operand(rows: int, k: int, seed: int, low: int = 0, high: int = 127) -> Nvfp4Operand:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, k), generator=generator)
    return operand_of(codes, torch.randint(low, high, (rows, k // 16), generator=generator))


def python_accumulator(a: Nvfp4Operand, b: Nvfp4Operand) -> list[list[Fraction]]:
    rows_a, rows_b = ([[Fraction(v) for v in row] for row in decoded(o).tolist()] for o in (a, b))
    return [[sum(x * y for x, y in zip(ra, rb, strict=True)) for rb in rows_b] for ra in rows_a]


# ---------------------------------------------------------------- accumulator


@given(st.integers(0, 10_000), st.sampled_from([16, 64, 208]))
def test_accumulator_is_exact(seed, k):
    a, b = random_operand(3, k, seed), random_operand(4, k, seed + 1)
    assert [[Fraction(v) for v in row] for row in gemm_accumulator(a, b).tolist()] == python_accumulator(a, b)


def test_accumulator_is_exact_where_one_fp64_product_is_not():
    """The smallest terms first, then large ones that reach beyond 2**53 units of 2**-20, and cancel in the end."""
    k, units = (1 << 16) + 16, 1 << 20
    codes = torch.full((2, k), 7)
    codes[:, :16], codes[1, 0] = 1, 0
    scales = torch.full((2, k // 16), 0x7E)
    scales[:, 0] = 0x01
    a = operand_of(codes, scales)
    large = int(numerator(448)) ** 2 * (k - 16) * units
    assert large > 1 << 57
    exact = [[large + 16, large + 15], [large + 15, large + 15]]
    expected = torch.tensor([[v / units for v in row] for row in exact], dtype=torch.float64)
    assert torch.equal(gemm_accumulator(a, a), expected)
    codes[:, 16 : 16 + (1 << 15)] |= 8
    left = gemm_accumulator(a, operand_of(codes, scales)) * units
    assert left.tolist() == [[16, 15], [15, 15]]


@pytest.mark.parametrize("scale_layout", ["tiled", "compact"])
def test_scale_layout_does_not_matter(scale_layout):
    a, b = pair()
    expected = gemm(a, b)
    assert_same_bits(gemm(a.with_scale_layout(scale_layout), b.with_scale_layout("compact")), expected)


def test_sequential_block_order_in_fp32_agrees_in_the_exact_regime():
    a, b = pair(32, 32, 512, "pt")
    assert bool(in_exact_regime(a, b).all())
    da, db = decoded(a).view(32, -1, 16), decoded(b).view(32, -1, 16)
    acc = torch.zeros(32, 32)
    for block in range(da.shape[1]):
        acc = acc + da[:, block] @ db[:, block].T
    assert_same_bits(acc, gemm_accumulator(a, b).float())


def test_exact_regime_means_every_order_is_exact():
    a, b = random_operand(16, 64, 3, 40, 90), random_operand(12, 64, 4, 40, 90)
    exact = in_exact_regime(a, b)
    assert 0 < int(exact.sum()) < exact.numel()
    da, db = decoded(a), decoded(b)
    for seed in range(20):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
        acc = torch.zeros(16, 12)
        for k in order.tolist():
            acc = acc + da[:, k, None] * db[None, :, k]
        assert torch.equal(acc.double()[exact], gemm_accumulator(a, b)[exact])


def test_outside_of_the_exact_regime_order_matters():
    codes = torch.tensor([[7] * 16 + [1] * 16])
    a = operand_of(codes, torch.tensor([[0x7E, 0x01]]))
    assert not bool(in_exact_regime(a, a))
    acc = float(gemm_accumulator(a, a))
    assert float(torch.tensor(acc).float()) != acc


def test_equal_powers_of_two_are_exact_for_long_k():
    a = random_operand(4, 4096, 1, 0x38, 0x39)  # all scales 1
    assert bool(in_exact_regime(a, a).all())
    zero = operand_of(torch.zeros(2, 32), torch.zeros(2, 2))
    assert bool(in_exact_regime(zero, zero).all()) and not gemm_accumulator(zero, zero).any()


# ---------------------------------------------------------------- epilogue


def numpy_epilogue(acc, alpha_a, alpha_b, constant, bias=None, c=None, beta=1.0):
    """fp32 scalars in the stated order, fma by exact fractions."""
    out = np.zeros(acc.shape, dtype=np.float32)
    for i in range(acc.shape[0]):
        for j in range(acc.shape[1]):
            z = np.float32(alpha_a[i]) * np.float32(acc[i, j])
            z = np.float32(constant) * (np.float32(alpha_b[j]) * z)
            if bias is not None:
                z = z + np.float32(bias[j])
            if c is not None:
                z = exact_fma(np.float32(beta), np.float32(c[i, j]), z)
            out[i, j] = z
    return torch.from_numpy(out)


def exact_fma(x, y, z) -> np.float32:
    """Round the exact value to fp32, nearest even, through integers."""
    exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
    guess = np.float32(float(exact))
    around = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(around, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.int32)) & 1))


@pytest.mark.parametrize("profile", ["te1d", "pt", "4o6-mae-256"])
def test_order_of_the_epilogue(profile):
    a, b = pair(12, 9, 64, profile, "row_scaled")
    acc, constant = gemm_accumulator(a, b).float().numpy(), gemm_constant(a.e4m3_max, b.e4m3_max)
    alphas = (a.row_amax().numpy(), b.row_amax().numpy())
    bias, c = matrix(1, 9, seed=5, dtype=torch.float32)[0], matrix(12, 9, seed=6, dtype=torch.float32)
    fp32 = {"out_dtype": torch.float32}
    assert_same_bits(gemm(a, b, **fp32), numpy_epilogue(acc, *alphas, constant))
    assert_same_bits(gemm(a, b, bias=bias, **fp32), numpy_epilogue(acc, *alphas, constant, bias.numpy()))
    for beta in (1.0, 0.7, -2.0):
        expected = numpy_epilogue(acc, *alphas, constant, bias.numpy(), c.numpy(), beta)
        assert_same_bits(gemm(a, b, bias=bias, c=c, beta=beta, **fp32), expected, f"beta {beta}")


def test_factors_go_in_from_the_inside():
    """Operands of few bits hide the order; factors and accumulators of 24 bits show it."""
    acc = matrix(40, 30, seed=1, dtype=torch.float32)
    alpha_a, alpha_b = (matrix(1, n, seed=n, dtype=torch.float32)[0].abs() for n in (40, 30))
    constant = gemm_constant(448, 448)
    got = epilogue(acc, alpha_a, alpha_b, constant, out_dtype=torch.float32)
    assert_same_bits(got, numpy_epilogue(acc.numpy(), alpha_a.numpy(), alpha_b.numpy(), constant))
    swapped = epilogue(acc.T, alpha_b, alpha_a, constant, out_dtype=torch.float32).T
    left_to_right = ((constant * alpha_a[:, None]) * alpha_b[None, :]) * acc
    for other in (swapped, left_to_right):
        assert float((other != got).float().mean()) > 0.05


def test_bf16_and_fp16_are_the_cast_fp32_result():
    a, b = pair(64, 48, 256)
    wide = gemm(a, b, out_dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        assert_same_bits(gemm(a, b, out_dtype=dtype), wide.to(dtype))
    assert gemm(a, b).dtype == torch.bfloat16


@pytest.mark.parametrize("exponent", [0, 3, -2])
def test_power_of_two_alphas_equal_a_scalar_alpha(exponent):
    a, b = (o.map(torch.clone) for o in pair(16, 16, 64))
    acc, constant = gemm_accumulator(a, b), gemm_constant(448, 448)
    alpha = torch.full((16,), 2.0**exponent)
    got = epilogue(acc, alpha, torch.ones(16), constant, out_dtype=torch.float32)
    assert_same_bits(got, torch.tensor(constant * 2.0**exponent, dtype=torch.float32) * acc.float())


def test_mixed_maxima_take_their_own_constant():
    a = quantize(matrix(16, 64), QuantRecipe())[0]
    b = quantize(matrix(16, 64, seed=1), QuantRecipe(e4m3_max=256))[0]
    exact = dequantize(a).double() @ dequantize(b).double().T
    assert rel_l2(gemm(a, b, out_dtype=torch.float32), exact) < 1e-6
    assert rel_l2(gemm(b, a, out_dtype=torch.float32), exact.T) < 1e-6


def test_accumulate():
    a, b = pair(20, 24, 64)
    c = matrix(20, 24, seed=7)
    z = gemm(a, b, out_dtype=torch.float32)
    assert_same_bits(gemm(a, b, c=c, out_dtype=torch.float32), c.float() + z)
    assert_same_bits(gemm(a, b, c=c), (c.float() + z).bfloat16())
    poisoned = torch.full_like(c, torch.nan)
    assert_same_bits(gemm(a, b, c=poisoned, beta=0.0), gemm(a, b))
    assert bool(gemm(a, b, c=poisoned).isnan().all())


@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3), min_size=1, max_size=30))
def test_fma_rounds_once(triples):
    x, y, z = (torch.tensor(v, dtype=torch.float32) for v in zip(*triples, strict=True))
    got = fma(x, y, z)
    for i, (a, b, c) in enumerate(triples):
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        if abs(exact) < Fraction(2) ** 127:
            want = exact_fma(np.float32(a), np.float32(b), np.float32(c))
            assert float(got[i]) == float(want), (a, b, c)


def test_fma_differs_from_two_roundings():
    x = torch.tensor([1 + 2.0**-12])
    assert float(fma(x, x, torch.tensor([-1.0]))) == (1 + 2.0**-12) ** 2 - 1
    assert float(x * x - 1) != (1 + 2.0**-12) ** 2 - 1
    # z + 2**-24 -+ 2**-70: beside a tie of fp32, by less than fp64 can hold, so that rounding twice would go wrong
    below, above = torch.tensor([1 - 2.0**-23]), torch.tensor([1 + 2.0**-22])
    half = torch.tensor([2.0**-24])
    odd, even = torch.tensor([1 + 2.0**-23]), torch.tensor([1.0])
    assert float(fma(half * (1 + 2.0**-23), below, odd)) == 1 + 2.0**-23  # product 2**-24 - 2**-70
    assert float(fma(half * (1 - 2.0**-22 + 2.0**-23), above, even)) == exact_fma(
        float(half) * (1 - 2.0**-22 + 2.0**-23), float(above), 1.0
    )
    assert float(fma(half, even, even)) == 1.0 and float(fma(half, even, odd)) == 1 + 2.0**-22
    assert torch.isnan(fma(torch.tensor([torch.inf]), torch.tensor([0.0]), torch.tensor([1.0])))
    assert float(fma(torch.tensor([torch.inf]), torch.tensor([1.0]), torch.tensor([1.0]))) == torch.inf


@pytest.mark.parametrize(
    "name, function",
    [
        ("relu", torch.relu),
        ("relu2", lambda z: torch.relu(z).square()),
        ("gelu", torch.nn.functional.gelu),
        ("silu", torch.nn.functional.silu),
    ],
)
def test_activations(name, function):
    a, b = pair(32, 32, 64)
    bias, c = matrix(1, 32, seed=2)[0], matrix(32, 32, seed=3)
    z = gemm(a, b, bias=bias, out_dtype=torch.float32)
    got = gemm(a, b, bias=bias, activation=name, out_dtype=torch.float32)
    # half an ulp of the exact function; torch's own gelu cancels in its negative tail, hence the 1e-15
    assert_close(got, function(z.double()), rtol=6.1e-8, atol=1e-15)
    assert_same_bits(
        gemm(a, b, bias=bias, activation=name, c=c, out_dtype=torch.float32), c.float() + got
    )  # C comes behind the activation
    assert not torch.equal(got, z)


def test_activation_tails():
    z = torch.tensor([-40.0, -12.0, -1e-30, 0.0, 1e-30, 12.0, 40.0, 1e30])
    one = torch.ones(1)
    gelu, silu = (
        epilogue(z.view(1, 8), one, torch.ones(8), 1.0, activation=v, out_dtype=torch.float32)[0]
        for v in ("gelu", "silu")
    )
    assert float(gelu[1]) == pytest.approx(-12 * 1.776482e-33, rel=1e-5) and float(silu[0]) < 0
    for out in (gelu, silu):
        assert out[3] == 0 and out[7] == z[7] and out[6] == 40.0 and float(out[4]) == pytest.approx(5e-31)


@pytest.mark.parametrize("profile", ["te1d", "pt"])
def test_batch_equals_a_loop(profile):
    a, b = batch(3, 20, 64), batch(3, 24, 64, seed=9)
    qa, qb = (quantize(x, PROFILES[profile])[0] for x in (a, b))
    bias, c = matrix(3, 24, seed=4), batch(3, 20, 24, seed=5)
    out = gemm(qa, qb, bias=bias, c=c, activation="silu")
    shared = gemm(qa, qb, bias=bias[0])
    assert out.shape == (3, 20, 24)
    for i in range(3):
        one, two = quantize(a[i], PROFILES[profile])[0], quantize(b[i], PROFILES[profile])[0]
        assert_same_bits(out[i], gemm(one, two, bias=bias[i], c=c[i], activation="silu"))
        assert_same_bits(shared[i], gemm(one, two, bias=bias[0]))


@pytest.mark.parametrize("shape", odd_shapes(4, seed=3, largest=150))
def test_the_three_training_layouts(shape):
    m, k = shape[0] // 16 * 16 + 16, shape[1]
    n = 48
    x, w, dy = matrix(m, k, seed=1), matrix(n, k, seed=2), matrix(m, n, seed=3)
    recipe = QuantRecipe(rht="bf16")
    (xr, xc), (wr, wc) = quantize(x, recipe, columnwise=True), quantize(w, QuantRecipe(block="2d"), columnwise=True)
    dr, dc = quantize(dy, recipe, columnwise=True)
    x, w, dy = x.double(), w.double(), dy.double()
    for got, exact in ((gemm(xr, wr), x @ w.T), (gemm(dr, wc), dy @ w), (gemm(dc, xc), dy.T @ x)):
        assert got.shape == exact.shape and rel_l2(got, exact) < 0.2


def test_no_rows():
    a = quantize(torch.zeros(0, 64), QuantRecipe())[0]
    b = quantize(matrix(24, 64), QuantRecipe())[0]
    assert gemm(a, b).shape == (0, 24) and gemm(b, a).shape == (24, 0) and in_exact_regime(a, b).shape == (0, 24)


A, B = pair()


@pytest.mark.parametrize(
    "a, b, options, words",
    [
        (A, pair(k=64)[1], {}, ["K 96 of a and 64 of b", "contraction axis"]),
        (A, quantize(batch(2, 24, 96), QuantRecipe())[0], {}, ["batch () of a and (2,) of b"]),
        (
            quantize(matrix(96, 40), QuantRecipe(rht="bf16"), rowwise=False, columnwise=True)[1],
            B,
            {},
            ["Hadamard mask 55272 of a and None of b", "same transform"],
        ),
        (A, B.to("meta"), {}, ["device cpu of a and meta of b"]),
        (A, B, {"bias": torch.zeros(40)}, ["bias of shape (40,)", "(24,)"]),
        (A, B, {"c": torch.zeros(24, 40)}, ["C of shape (24, 40)", "(40, 24)"]),
        (A, B, {"out_dtype": torch.float64}, ["out_dtype=torch.float64", "torch.bfloat16"]),
        (A, B, {"activation": "tanh"}, ["activation='tanh'", "'relu', 'relu2', 'gelu', 'silu' or None"]),
    ],
)
def test_refused(a, b, options, words):
    with pytest.raises(OperandError) as error:
        gemm(a, b, **options)
    for word in (*words, "accepted:", "to fix:"):
        assert word in str(error.value), str(error.value)
