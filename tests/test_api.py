"""The public functions on the reference backend: they pass every argument on, and their products are the right ones."""

import pytest
import torch

import cutefp4
from cutefp4 import QuantRecipe, emulator, named_recipe, reference
from cutefp4.reference import rel_l2
from tests.cases import end_offsets, matrix
from tests.compare import assert_same_bits, assert_same_operand

RECIPES = {
    "te": QuantRecipe(),
    "2d": QuantRecipe(block="2d"),
    "per_token": QuantRecipe(scaling="token", arithmetic="per_token"),
    "torchao compact": QuantRecipe(arithmetic="torchao", scale_layout="compact"),
    "rht": QuantRecipe(rht="bf16"),
    "4over6": QuantRecipe(four_over_six="mse", e4m3_max=256),
    "stochastic": QuantRecipe(rounding="stochastic"),
}
STATE = {"seed": 11, "offset": 4}


def pair(tensor):
    return tensor.rowwise, tensor.columnwise


def assert_same_copies(actual, expected):
    for got, want in zip(pair(actual), expected, strict=True):
        if want is None:
            assert got is None
        else:
            assert_same_operand(got, want)


@pytest.mark.parametrize("copies", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_quantize_is_the_oracle(recipe, copies):
    rowwise, columnwise = copies
    for x in (
        matrix(48, 80),
        matrix(48, 80, dtype=torch.float32),
        torch.stack([matrix(48, 80), matrix(48, 80, seed=1)]),
    ):
        actual = cutefp4.quantize(x, recipe, rowwise=rowwise, columnwise=columnwise, **STATE)
        assert_same_copies(actual, reference.quantize(x, recipe, rowwise=rowwise, columnwise=columnwise, **STATE))
        assert (actual.shape, actual.dtype, actual.recipe) == (x.shape, x.dtype, recipe)


def test_quantize_takes_amaxes_and_device_random_state():
    x, recipe = matrix(32, 64), RECIPES["per_token"].replace(rounding="stochastic")
    amax, columnwise_amax = torch.full((32,), 5.0), torch.full((64,), 6.0)
    state = {name: torch.tensor(value) for name, value in STATE.items()}
    actual = cutefp4.quantize(x, recipe, columnwise=True, amax=amax, columnwise_amax=columnwise_amax, **state)
    expected = reference.quantize(x, recipe, columnwise=True, amax=amax, columnwise_amax=columnwise_amax, **STATE)
    assert_same_copies(actual, expected)
    assert_same_bits(actual.rowwise.amax, amax)
    assert_same_bits(actual.columnwise.amax, columnwise_amax)


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_amaxes_and_offsets_may_have_strides(arch):
    """Every second element of a tensor, and one value for all rows without a copy of it."""
    recipe = QuantRecipe(scaling="token")
    x, spread = matrix(48, 64, seed=3), torch.full((2, 64, 2), torch.nan)
    spread[0, :48, 0], spread[1, :, 0] = x.float().abs().amax(1), x.float().abs().amax(0)
    rows, columns = spread[0, :48, 0], spread[1, :, 0]
    one = x.float().abs().max()
    offs = torch.tensor([16, 99, 48, 99], dtype=torch.int32)
    with emulator.device(arch, sms=2):
        for amax, columnwise_amax in ((rows, columns), (one.expand(48), one.expand(64))):
            options = {"columnwise": True, "amax": amax, "columnwise_amax": columnwise_amax}
            expected, actual = (
                cutefp4.quantize(x, recipe, **options),
                cutefp4.quantize(x, recipe, backend="emulator", **options),
            )
            assert_same_operand(actual.rowwise, expected.rowwise)
            assert_same_operand(actual.columnwise, expected.columnwise)
        grouped = cutefp4.quantize_grouped(x, offs[::2], recipe, amax=rows, backend="emulator")
    assert_same_operand(grouped.rowwise, cutefp4.quantize_grouped(x, offs[::2].contiguous(), recipe, amax=rows).rowwise)


def test_quantize_does_not_enter_autograd():
    x = matrix(32, 64, dtype=torch.float32).requires_grad_()
    q = cutefp4.quantize(x, columnwise=True)
    assert not q.requires_grad and not q.rowwise.amax.requires_grad
    assert not q.dequantize().requires_grad


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_quantize_grouped_is_the_oracle(recipe):
    offs = end_offsets([0, 17, 40, 0, 7])
    x = matrix(80, 64)  # 16 rows belong to no group
    actual = cutefp4.quantize_grouped(x, offs, recipe, columnwise=True, **STATE)
    assert_same_copies(actual, reference.quantize_grouped(x, offs, recipe, columnwise=True, **STATE))
    assert actual.shape == (80, 64) and actual.offs is offs
    assert "80x64 in 5 groups" in repr(actual)
    only = cutefp4.quantize_grouped(x, offs, recipe, rowwise=False, columnwise=True, **STATE)
    assert only.rowwise is None
    assert_same_operand(only.columnwise, actual.columnwise)


@pytest.mark.parametrize("interleave", [None, 8, 16, 32])
def test_swiglu_quantize_equals_its_two_steps(interleave):
    x = matrix(48, 128)
    actual = cutefp4.swiglu_quantize(x, RECIPES["per_token"], interleave=interleave, columnwise=True)
    h = reference.swiglu(x, interleave)
    assert h.shape == (48, 64)
    assert_same_copies(actual, reference.quantize(h, RECIPES["per_token"], columnwise=True))
    amaxes = {"amax": torch.full((48,), 9.0), "columnwise_amax": torch.full((64,), 8.0)}
    actual = cutefp4.swiglu_quantize(x, RECIPES["per_token"], interleave=interleave, columnwise=True, **amaxes)
    assert_same_copies(actual, reference.quantize(h, RECIPES["per_token"], columnwise=True, **amaxes))
    with pytest.raises(cutefp4.errors.NonFiniteError):
        cutefp4.swiglu_quantize(x * torch.inf, interleave=interleave, check_finite=True)


@pytest.mark.parametrize("interleave", [None, 8, 5])
def test_deinterleave_quantize_equals_its_two_steps(interleave):
    x = matrix(48, 160)
    actual = cutefp4.deinterleave_quantize(x, RECIPES["per_token"], interleave=interleave, columnwise=True)
    h = torch.cat(reference.deinterleave(x, interleave), dim=1)
    assert h.shape == x.shape and torch.equal(h, x) == (interleave is None)
    assert_same_copies(actual, reference.quantize(h, RECIPES["per_token"], columnwise=True))


def test_rmsnorm_quantize_equals_its_two_steps():
    x, residual, weight = matrix(48, 96), matrix(48, 96, seed=1), matrix(1, 96, seed=2)[0]
    actual = cutefp4.rmsnorm_quantize(
        x, weight, RECIPES["per_token"], eps=1e-5, residual=residual, keep_normed=True, columnwise=True
    )
    y = reference.rmsnorm(x, weight, 1e-5, residual)
    assert_same_bits(actual.normed, y)
    assert_same_bits(actual.residual, x + residual)
    assert_same_copies(actual.quantized, reference.quantize(y, RECIPES["per_token"], columnwise=True))
    plain = cutefp4.rmsnorm_quantize(x, weight, RECIPES["per_token"])
    assert plain.residual is None and plain.normed is None and plain.quantized.columnwise is None
    assert cutefp4.rmsnorm_quantize(x, weight, residual=residual, keep_sum=False).residual is None
    with pytest.raises(cutefp4.errors.NonFiniteError):
        cutefp4.rmsnorm_quantize(x * torch.inf, weight, check_finite=True)


@pytest.mark.parametrize("recipe", ["te", "per_token", "te_4over6", "per_token_4over6"])
@pytest.mark.parametrize("layout", ["TN", "NN", "NT"])
def test_training_layouts_approximate_the_exact_products(layout, recipe):
    m, n, k = 256, 192, 320
    recipe = named_recipe(recipe)
    x, w, dy = matrix(m, k, seed=1), matrix(n, k, seed=2), matrix(m, n, seed=3)
    qx, qw, qdy = (
        cutefp4.quantize(t, r, columnwise=True, seed=1, offset=i)
        for i, (t, r) in enumerate(((x, recipe.x), (w, recipe.w), (dy, recipe.dy)))
    )
    x64, w64, dy64 = x.double(), w.double(), dy.double()
    a, b, exact = {"TN": (qx, qw, x64 @ w64.T), "NN": (qdy, qw, dy64 @ w64), "NT": (qdy, qx, dy64.T @ x64)}[layout]
    d = cutefp4.gemm(a, b, layout=layout)
    assert d.shape == exact.shape and d.dtype == torch.bfloat16
    # Two independent 20 dB operands give 0.135; 2-D weights and stochastic rounding cost up to 0.19.
    assert 0.09 < rel_l2(d, exact) < 0.2


def test_layouts_pick_the_copies():
    recipe = RECIPES["per_token"]
    a, b = (cutefp4.quantize(matrix(64, 64, seed=i), recipe, columnwise=True) for i in (1, 2))
    picks = {"TN": (a.rowwise, b.rowwise), "NN": (a.rowwise, b.columnwise), "NT": (a.columnwise, b.columnwise)}
    results = []
    for layout, operands in picks.items():
        results.append(cutefp4.gemm(a, b, layout=layout))
        assert_same_bits(results[-1], reference.gemm(*operands))
        assert_same_bits(results[-1], cutefp4.gemm(*operands, layout=layout))  # operands are taken as they are
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])


def test_gemm_epilogue_arguments_and_out():
    a, b = (cutefp4.quantize(matrix(32, 64, seed=i)) for i in (1, 2))
    bias = matrix(1, 32)[0]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for activation in (None, "relu", "relu2", "gelu", "silu"):
            expected = reference.gemm(a.rowwise, b.rowwise, bias=bias, activation=activation, out_dtype=dtype)
            assert_same_bits(cutefp4.gemm(a, b, bias=bias, activation=activation, out_dtype=dtype), expected)
        out = torch.full((32, 32), torch.nan, dtype=dtype)
        assert cutefp4.gemm(a, b, out=out, batch_invariant=True) is out  # NaN in out is not read
        assert_same_bits(out, reference.gemm(a.rowwise, b.rowwise, out_dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gemm_accumulates_into_out(dtype):
    a, b = (cutefp4.quantize(matrix(32, 64, seed=i)) for i in (1, 2))
    out = matrix(32, 32, seed=3).to(dtype)
    before = out.clone()
    assert cutefp4.gemm(a, b, out=out, accumulate=True) is out
    z = reference.gemm(a.rowwise, b.rowwise, out_dtype=torch.float32)
    assert_same_bits(out, (before.float() + z).to(dtype))


def test_mixed_scalings_multiply_with_their_own_constant():
    """A per token with 448, B per tensor with 256: each side's outer scale is its own."""
    a = cutefp4.quantize(matrix(64, 128, seed=1), RECIPES["per_token"])
    b = cutefp4.quantize(matrix(32, 128, seed=2), RECIPES["4over6"])
    d = cutefp4.gemm(a, b, out_dtype=torch.float32)
    exact = a.dequantize(torch.float32).double() @ b.dequantize(torch.float32).double().T
    assert rel_l2(d, exact) < 1e-6


def test_batched_gemm_is_a_loop():
    x, w = (torch.stack([matrix(32, 64, seed=10 * s + i) for i in range(3)]) for s in (1, 2))
    d = cutefp4.gemm(cutefp4.quantize(x), cutefp4.quantize(w))
    for i in range(3):
        assert_same_bits(d[i], cutefp4.gemm(cutefp4.quantize(x[i]), cutefp4.quantize(w[i])))


@pytest.mark.parametrize("recipe", ["te", "per_token"])
@pytest.mark.parametrize("layout", ["TN", "NN", "NT"])
def test_grouped_gemm_is_a_loop_over_experts(layout, recipe):
    sizes, n, k = [17, 0, 64, 31], 48, 80
    recipe, offs = named_recipe(recipe), end_offsets(sizes)
    x, dy = matrix(sum(sizes), k, seed=1), matrix(sum(sizes), n, seed=2)
    w = torch.stack([matrix(n, k, seed=3 + i) for i in range(len(sizes))])
    state = {"seed": 1, "offset": 0}
    qx = cutefp4.quantize_grouped(x, offs, recipe.x, columnwise=True, **state)
    qdy = cutefp4.quantize_grouped(dy, offs, recipe.dy, columnwise=True, **state)
    qw = cutefp4.quantize(w, recipe.w, columnwise=True, **state)
    a, b = {"TN": (qx, qw), "NN": (qdy, qw), "NT": (qdy, qx)}[layout]
    d = cutefp4.grouped_gemm(a, b, layout=layout, offs=offs, out_dtype=torch.float32)
    begin = 0
    for g, end in enumerate(offs.tolist()):
        part = d[g] if layout == "NT" else d[begin:end]
        xg, dyg, wg = (t.double() for t in (x[begin:end], dy[begin:end], w[g]))
        exact = {"TN": xg @ wg.T, "NN": dyg @ wg, "NT": dyg.T @ xg}[layout]
        if end > begin:
            assert rel_l2(part, exact) < 0.25, g
        elif layout == "NT":
            assert not part.any()
        begin = end
    out = torch.ones_like(d)
    cutefp4.grouped_gemm(a, b, layout=layout, out=out, accumulate=True)
    assert_same_bits(out, d + 1)


def test_grouped_gemm_bias_and_activation():
    offs = end_offsets([16, 32])
    qx = cutefp4.quantize_grouped(matrix(48, 64), offs)
    qw = cutefp4.quantize(torch.stack([matrix(32, 64, seed=i) for i in (1, 2)]))
    for bias in (matrix(2, 32), matrix(1, 32)[0]):
        actual = cutefp4.grouped_gemm(qx, qw, bias=bias, activation="silu")
        expected = reference.grouped_gemm(qx.rowwise, qw.rowwise, layout="TN", bias=bias, activation="silu")
        assert_same_bits(actual, expected)


def test_dequantize_accepts_tensors_operands_and_groups():
    x = matrix(48, 64)
    q = cutefp4.quantize(x, columnwise=True)
    assert_same_bits(cutefp4.dequantize(q), q.dequantize())
    assert_same_bits(cutefp4.dequantize(q.rowwise), reference.dequantize(q.rowwise))
    assert cutefp4.dequantize(q.columnwise).shape == (64, 48)
    only_columnwise = cutefp4.quantize(x, rowwise=False, columnwise=True)
    assert_same_bits(cutefp4.dequantize(only_columnwise), only_columnwise.dequantize())
    assert rel_l2(only_columnwise.dequantize(), x) < 0.12
    groups = cutefp4.quantize_grouped(x, end_offsets([20, 28]), columnwise=True)
    for t in (groups, cutefp4.quantize_grouped(x, end_offsets([20, 28]), rowwise=False, columnwise=True)):
        assert rel_l2(cutefp4.dequantize(t), x) < 0.12


def test_backend_variable_and_argument(monkeypatch):
    x = matrix(32, 64)
    monkeypatch.setenv("CUTEFP4_BACKEND", "reference")
    assert_same_operand(cutefp4.quantize(x).rowwise, reference.quantize(x, QuantRecipe())[0])
    assert cutefp4.backend.choose(torch.device("cuda")) == "reference"
    monkeypatch.setenv("CUTEFP4_BACKEND", "emulator")
    assert cutefp4.backend.choose(torch.device("cpu")) == "emulator"
    assert cutefp4.backend.choose(torch.device("cpu"), "reference") == "reference"  # the argument wins


def test_the_emulated_kernels_give_the_oracles_bits():
    """From the public functions to the kernels' PTX and back."""
    recipe = named_recipe("per_token")
    bias, results = matrix(1, 32)[0], []
    for name in ("reference", "emulator"):
        qx = cutefp4.quantize(matrix(64, 128, seed=1), recipe.x, columnwise=True, backend=name)
        qw = cutefp4.quantize(matrix(32, 128, seed=2), recipe.w, columnwise=True, backend=name)
        results.append((qx, cutefp4.gemm(qx, qw, bias=bias, backend=name)))
    (expected, y), (actual, y_emulated) = results
    assert_same_copies(actual, pair(expected))
    assert_same_bits(y_emulated, y)


@pytest.mark.parametrize("capability, expected", [((9, 0), "sm90"), ((10, 0), "sm100"), ((10, 3), "sm100")])
def test_capability_chooses_the_kernels(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    cutefp4.backend.native.cache_clear()
    assert cutefp4.backend.choose(torch.device("cuda")) == expected
    cutefp4.backend.native.cache_clear()


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (12, 0)])
def test_other_gpus_are_refused(capability, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
    with pytest.raises(cutefp4.errors.UnsupportedError, match=f"capability {capability[0]}.{capability[1]}.*reference"):
        cutefp4.backend.choose(torch.device("cuda"))


def test_kernel_backends_receive_the_oracles_arguments(monkeypatch):
    """What a kernel backend plugs into: the oracle's arguments, plus out and batch_invariant of the GEMMs."""
    calls = {}

    def operation(name):
        def record(*args, **kwargs):
            calls[name] = kwargs
            return backend._REFERENCE[name](*args, **kwargs)

        return record

    backend = cutefp4.backend
    monkeypatch.setattr(backend, "kernel_operations", lambda _: {n: operation(n) for n in backend.OPERATIONS})
    monkeypatch.setenv("CUTEFP4_BACKEND", "emulator")
    x, w, offs = matrix(32, 64), torch.stack([matrix(16, 64), matrix(16, 64)]), end_offsets([16, 16])
    q = cutefp4.quantize(x)
    cutefp4.swiglu_quantize(x)
    cutefp4.deinterleave_quantize(x)
    cutefp4.rmsnorm_quantize(x, x[0])
    cutefp4.gemm(q, q)
    cutefp4.gemm_a16(x, q)
    cutefp4.gemm_plan(q, q)
    cutefp4.grouped_gemm(cutefp4.quantize_grouped(x, offs), cutefp4.quantize(w))
    cutefp4.dequantize(q, backend="emulator")
    assert set(calls) == set(backend.OPERATIONS)
    copies = {"rowwise", "columnwise", "seed", "offset"}
    epilogue = {"bias", "activation", "c", "beta", "out_dtype", "out", "batch_invariant"}
    assert set(calls["quantize"]) == copies | {"amax", "columnwise_amax"}
    assert set(calls["quantize_grouped"]) == copies | {"amax"}
    assert set(calls["swiglu_quantize"]) == copies | {"interleave", "amax", "columnwise_amax"}
    assert set(calls["deinterleave_quantize"]) == set(calls["swiglu_quantize"])
    norm = {"residual", "keep_sum", "keep_normed"}
    assert set(calls["rmsnorm_quantize"]) == copies | norm | {"amax", "columnwise_amax"}
    assert set(calls["gemm"]) == set(calls["gemm_plan"]) == epilogue
    assert set(calls["gemm_a16"]) == epilogue - {"c", "beta"}
    assert set(calls["grouped_gemm"]) == epilogue | {"layout"}
