"""Composed epilogues and 16-bit activations through the public functions, on the reference and in the emulator."""

import contextlib
import math

import pytest
import torch

import cutefp4
from cutefp4 import QuantRecipe, emulator, ops
from cutefp4.config import Sm90Config
from cutefp4.config_sm100 import Sm100Config
from cutefp4.config_small_m import SmallMConfig
from cutefp4.epilogue import (
    Column,
    Row,
    RowAmax,
    Scalar,
    Store,
    SwigluPair,
    Tile,
    default_epilogue,
    fma,
    gelu,
    maximum,
    minimum,
    relu,
    unary,
)
from cutefp4.epilogue.trace import RESERVED
from cutefp4.errors import OperandError, UnsupportedError
from cutefp4.format import gemm_constant
from cutefp4.gemm_plan import Sm90GemmPlan
from cutefp4.gemm_plan_sm100 import Sm100GemmPlan
from cutefp4.gemm_plan_small_m import Sm90SmallMPlan
from cutefp4.reference.gemm import fma as fma_oracle
from tests.cases import matrix
from tests.compare import assert_same_bits

TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")
TENSOR = QuantRecipe()
M, N, K = 20, 48, 64


@cutefp4.epilogue
def affine(z, bias: Column("bfloat16"), shift: Scalar(), c: Tile()):
    y = relu(z + bias) - shift
    return fma(0.5, c, y), Store(y, "float16", "pre"), RowAmax(y, "amax")


@cutefp4.epilogue
def from_acc(acc, alpha_a: Row(), alpha_b: Column()):
    return gemm_constant(448, 448) * (alpha_b * (alpha_a * acc))


@cutefp4.epilogue
def gated(z):
    return SwigluPair(z)


def pair(recipe=TOKEN, batch=()):
    shapes = (M, K), (N, K)
    if batch:
        return tuple(cutefp4.quantize(torch.stack([matrix(*s, seed=i) for i in range(2)]), recipe) for s in shapes)
    return tuple(cutefp4.quantize(matrix(*s, seed=i), recipe) for i, s in enumerate(shapes))


def affine_tensors(lead=()):
    g = torch.Generator().manual_seed(7)
    return {
        "bias": torch.randn(*lead, N, generator=g).bfloat16(),
        "shift": torch.rand(lead, generator=g),
        "c": torch.randn(*lead, M, N, generator=g),
        "pre": torch.full((*lead, M, N), torch.nan, dtype=torch.float16),
        "amax": torch.zeros(*lead, M),
    }


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("recipe", [TOKEN, TENSOR], ids=["token", "tensor"])
def test_reference_evaluates_the_tree_as_written(recipe, batch):
    a, b = pair(recipe, batch)
    tensors = affine_tensors((2,) if batch else ())
    d = cutefp4.gemm(a, b, epilogue=affine, tensors=tensors, out_dtype=torch.float32)
    z = cutefp4.gemm(a, b, out_dtype=torch.float32)
    shift = tensors["shift"][..., None, None]
    y = torch.relu(z + tensors["bias"].float().unsqueeze(-2)) - shift
    assert_same_bits(d, fma_oracle(torch.full_like(y, 0.5), tensors["c"], y))
    assert_same_bits(tensors["pre"], y.half())
    assert_same_bits(tensors["amax"], y.abs().amax(-1))


def test_z_and_acc_name_the_same_product():
    a, b = pair()
    assert_same_bits(cutefp4.gemm(a, b, epilogue=from_acc), cutefp4.gemm(a, b))
    a, b = pair(TENSOR)  # amaxes are spread over rows and columns, as declared
    assert_same_bits(cutefp4.gemm(a, b, epilogue=from_acc), cutefp4.gemm(a, b))
    doubled = {"alpha_a": 2 * a.rowwise.row_amax()}
    twice = cutefp4.gemm(a, b, epilogue=from_acc, tensors=doubled, out_dtype=torch.float32)
    assert_same_bits(twice, 2 * cutefp4.gemm(a, b, out_dtype=torch.float32))


def test_the_decorator_is_the_module_of_its_vocabulary():
    assert cutefp4.epilogue.Row is Row and affine.of_z and not from_acc.of_z
    assert [name for name, _ in affine.arguments] == ["bias", "c", "shift", "pre", "amax"]
    again = cutefp4.epilogue(lambda z: relu(z))
    assert again == cutefp4.epilogue(lambda z: relu(z)) != cutefp4.epilogue(lambda z: gelu(z))


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("recipe", [TOKEN, TENSOR], ids=["token", "tensor"])
def test_kernels_equal_the_reference(seed, recipe):
    a, b = pair(recipe)
    with emulator.device("sm_90a", sms=2, seed=seed):
        for function, tensors, options in (
            (affine, affine_tensors(), {"out_dtype": torch.float32}),
            (affine, affine_tensors(), {"out": torch.full((M, N), torch.nan, dtype=torch.bfloat16)}),
            (from_acc, {}, {}),
        ):
            expected, mine = {k: v.clone() for k, v in tensors.items()}, {k: v.clone() for k, v in tensors.items()}
            want = cutefp4.gemm(a, b, epilogue=function, tensors=expected, out_dtype=options.get("out_dtype"))
            got = cutefp4.gemm(a, b, epilogue=function, tensors=mine, backend="emulator", **options)
            assert_same_bits(got, want.to(got.dtype))
            for name in expected:
                assert_same_bits(mine[name], expected[name])


ZEROS = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, 1e-40, -1e-40])


@pytest.mark.parametrize("arch", [None, "sm_90a", "sm_100a"])
def test_the_larger_zero_is_the_positive_one(arch):
    """relu(-0) is +0; max and min order the zeros, whichever comes first, and NaN wins."""

    @cutefp4.epilogue
    def orders(z, s: Tile(), t: Tile()):
        stores = {"most": maximum(s, t), "least": minimum(s, t), "squares": unary("relu2", s), "step": relu(s * t)}
        return relu(s), *(Store(value, "float32", name) for name, value in stores.items())

    a, b = pair()
    s = ZEROS.repeat(M * N // 9 + 1)[: M * N].view(M, N)
    t = ZEROS.repeat_interleave(9).repeat(M * N // 81 + 1)[: M * N].view(M, N)
    sinks = {name: torch.full((M, N), torch.nan) for name in ("most", "least", "squares", "step")}
    with emulator.device(arch, sms=2) if arch else contextlib.nullcontext():
        d = cutefp4.gemm(
            a, b, epilogue=orders, tensors={"s": s, "t": t, **sinks}, out_dtype=torch.float32,
            backend="emulator" if arch else None,
        )  # fmt: skip

    def larger(x: float, y: float) -> float:
        return math.nan if math.isnan(x) or math.isnan(y) else max(x, y, key=lambda v: (v, math.copysign(1, v)))

    pairs = list(zip(s.flatten().tolist(), t.flatten().tolist(), strict=True))
    most, least, step = ([f(x, y) for x, y in pairs] for f in (
        larger, lambda x, y: -larger(-x, -y), lambda x, y: larger(x * y, 0.0)
    ))  # fmt: skip
    ramp = [larger(x, 0.0) for x, _ in pairs]
    wanted = {"most": most, "least": least, "step": step, "squares": [x * x for x in ramp], "d": ramp}
    for name, values in wanted.items():
        got, want = (sinks | {"d": d})[name], torch.tensor(values).view(M, N)
        assert torch.equal(got.isnan(), want.isnan())
        assert_same_bits(got.nan_to_num(0, torch.inf, -torch.inf), want.nan_to_num(0, torch.inf, -torch.inf), name)


@pytest.mark.parametrize("arch", [None, "sm_90a", "sm_100a"])
def test_a_function_may_ignore_the_product(arch):
    @cutefp4.epilogue
    def copy(z, t: Tile("bfloat16")):
        return 2.0 * t

    t = torch.randn(M, N, generator=torch.Generator().manual_seed(1)).bfloat16()
    options = {"backend": "emulator"} if arch else {}
    with emulator.device(arch, sms=2) if arch else contextlib.nullcontext():
        assert_same_bits(cutefp4.gemm(*pair(), epilogue=copy, tensors={"t": t}, **options), 2 * t)


def storing(name: str):
    return lambda z: (z, Store(z, "float32", name))


def test_names_of_the_kernels_own_tensors_are_reserved():
    tree = default_epilogue(1.0)
    plans = (
        Sm90GemmPlan("sm_90a", Sm90Config(staged=True, decode_groups=0, stream_k=True), tree),
        Sm90SmallMPlan("sm_90a", SmallMConfig(), tree),
        Sm100GemmPlan("sm_100a", Sm100Config(splits=2), tree),
    )
    leaves = {leaf.name for leaf in tree.leaves()}
    own = set().union(*(plan.tensor_names() for plan in plans)) - leaves
    assert own | {"d_scales"} == set(RESERVED)
    for name in RESERVED:
        with pytest.raises(OperandError, match=f"tensors named {name}; accepted: names other than"):
            cutefp4.epilogue(storing(name))


def test_swiglu_halves_the_columns():
    a, b = pair()
    d = cutefp4.gemm(a, b, epilogue=gated, out_dtype=torch.float32)
    z = cutefp4.gemm(a, b, out_dtype=torch.float32).double()
    assert d.shape == (M, N // 2)
    torch.testing.assert_close(d.double(), torch.nn.functional.silu(z[:, 0::2]) * z[:, 1::2], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"epilogue": affine}, "pass exactly the tensors"),
        ({"epilogue": gated, "bias": torch.zeros(N)}, "one of the two"),
        ({"epilogue": gated, "accumulate": True, "out": torch.zeros(M, N // 2)}, "one of the two"),
        ({"epilogue": gated, "out": torch.zeros(M, N)}, r"shape \(20, 24\)"),
        ({"epilogue": lambda z: z}, "decorated with cutefp4.epilogue"),
        ({"tensors": {}}, "tensors without epilogue"),
        ({"epilogue": affine, "tensors": [1]}, "a mapping from names"),
        ({"epilogue": gated, "tensors": {"alpha_a": torch.ones(M)}}, "pass exactly the tensors"),
        ({"epilogue": affine, "tensors": affine_tensors() | {"bias": torch.zeros(N)}}, "'bias': torch.float32"),
        ({"epilogue": affine, "tensors": affine_tensors() | {"c": torch.zeros(N, M).T}}, "contiguous torch.float32"),
        ({"epilogue": affine, "tensors": affine_tensors() | {"amax": torch.zeros(N)}}, "for RowAmax"),
    ],
)
def test_wrong_arguments_say_what_to_do(keywords, message):
    with pytest.raises(OperandError, match=message):
        cutefp4.gemm(*pair(), **keywords)


def test_wrong_functions_say_what_to_do():
    for function, message in (
        (lambda acc, alpha: acc * alpha, "declare it"),
        (lambda x: x, "the bare sum"),
        (lambda acc: Store(acc, "float32"), "D's expression first"),
        (lambda z: relu(SwigluPair(z)), "D itself"),
        (lambda z: (z, Store(z, "float32", "alpha_a")), "part of z"),
        (lambda z: unary("tanh", z), "activation 'tanh'"),
        (lambda: 1.0, "first argument None"),
        (lambda z: z if z > 0 else 0.0, "a comparison.*use maximum, minimum, relu"),
        (lambda z: max(z, 0.0), "a comparison"),
        (lambda z: z and 1.0, "a conversion"),
        (lambda z: z**2, "z \\* z for a square"),
        (lambda z: math.exp(z), "a conversion"),
        (lambda z: torch.relu(z), "functions of cutefp4.epilogue"),
    ):
        with pytest.raises(OperandError, match=message):
            cutefp4.epilogue(function)

    @cutefp4.epilogue
    def scalars(acc, alpha_a: Scalar()):
        return alpha_a * acc

    with pytest.raises(OperandError, match="declared Scalar for an operand with an amax per row"):
        cutefp4.gemm(*pair(), epilogue=scalars)


def test_compiled_graphs_hold_composed_epilogues(monkeypatch):
    # As a GPU's backend has them, without the wrapper that starts an emulator.
    monkeypatch.setattr(cutefp4.backend, "kernel_operations", lambda _: ops.OPERATIONS)
    a, b = pair()
    tensors = affine_tensors()
    reference_tensors = {k: v.clone() for k, v in tensors.items()}
    want = cutefp4.gemm(a, b, epilogue=affine, tensors=reference_tensors)
    with emulator.device("sm_90a", sms=2):

        @torch.compile(backend="aot_eager", fullgraph=True)
        def run(bias):
            return cutefp4.gemm(a, b, epilogue=affine, tensors={**tensors, "bias": bias}, backend="emulator")

        assert_same_bits(run(tensors["bias"]), want)
    for name in ("pre", "amax"):
        assert_same_bits(tensors[name], reference_tensors[name])


# ---------------------------------------------------------------- 16-bit activations


def activations(dtype=torch.bfloat16):
    g = torch.Generator().manual_seed(3)
    return (torch.randint(-8, 9, (2, 10, K), generator=g) / 4).to(dtype)  # every product and sum is exact


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("recipe", [TOKEN, TENSOR], ids=["token", "tensor"])
def test_gemm_a16(dtype, recipe):
    x, w, bias = activations(dtype), cutefp4.quantize(matrix(N, K), recipe), torch.randn(N).bfloat16()
    y = cutefp4.gemm_a16(x, w, bias=bias, activation="relu", out_dtype=torch.float32)
    unit = cutefp4.dequantize(w, dtype=torch.float32).double()
    torch.testing.assert_close(y.double(), torch.relu(x.double() @ unit.T + bias.double()), rtol=1e-5, atol=1e-5)
    assert cutefp4.gemm_a16(x, w).dtype == dtype and y.shape == (2, 10, N)
    out = torch.full((2, 10, N), torch.nan)
    with emulator.device("sm_90a", sms=2):
        got = cutefp4.gemm_a16(x, w, bias=bias, activation="relu", out=out, backend="emulator")
    assert got is out
    assert_same_bits(out, y)


def test_gemm_a16_compiles_and_refuses_a_misaligned_slice(monkeypatch):
    monkeypatch.setattr(cutefp4.backend, "kernel_operations", lambda _: ops.OPERATIONS)
    x, w = activations(), cutefp4.quantize(matrix(N, K), TOKEN)
    want = cutefp4.gemm_a16(x, w)
    run = torch.compile(lambda x: cutefp4.gemm_a16(x, w, backend="emulator"), backend="aot_eager", fullgraph=True)
    with emulator.device("sm_90a", sms=2):
        assert_same_bits(run(x), want)
        shifted = torch.zeros(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)
        with pytest.raises(UnsupportedError, match="2 bytes behind a multiple of 16"):
            cutefp4.gemm_a16(shifted, w, backend="emulator")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, K), "bfloat16 or float16"),
        (torch.zeros(4, K + 64, dtype=torch.bfloat16), "the same K"),
        (torch.zeros(K, 4, dtype=torch.bfloat16).T, "contiguous"),
        (torch.zeros(K, dtype=torch.bfloat16), "bfloat16 or float16"),
        ([1.0], "activations list"),
    ],
)
def test_gemm_a16_refuses(x, message):
    with pytest.raises(OperandError, match=message):
        cutefp4.gemm_a16(x, cutefp4.quantize(matrix(N, K), TOKEN))


def test_gemm_a16_refuses_a_transformed_weight():
    w = cutefp4.quantize(matrix(N, K), QuantRecipe(rht="bf16"), columnwise=True).columnwise
    with pytest.raises(OperandError, match="Hadamard"):
        cutefp4.gemm_a16(torch.zeros(4, w.k, dtype=torch.bfloat16), w)


def test_blackwell_says_what_to_do_instead():
    a, b = pair(TENSOR)
    with emulator.device("sm_100a"):
        with pytest.raises(UnsupportedError, match="quantise the activations and call cutefp4.gemm"):
            cutefp4.gemm_a16(activations(), b, backend="emulator")


# ---------------------------------------------------------------- plans


def test_plans_explain_themselves_on_every_backend():
    a, b = pair(TENSOR)
    text = cutefp4.gemm_plan(a, b, bias=torch.zeros(N), activation="gelu").explain()
    assert "W4A4 20x48x64" in text and "exact sums" in text and "bias + gelu" in text
    assert "W4A16 20x48x64" in cutefp4.gemm_plan(activations(), b).explain()
    for arch in ("sm_90a", "sm_100a"):
        with emulator.device(arch):
            plan = cutefp4.gemm_plan(a, b, out_dtype=torch.float32, backend="emulator")
        assert "W4A4 20x48x64" in plan.explain() and "registers" in plan.explain()
    with emulator.device("sm_90a"):
        assert "W4A16 (bfloat16)" in cutefp4.gemm_plan(activations(), b, backend="emulator").explain()
        assert cutefp4.gemm_plan(a, b, epilogue=affine, tensors=affine_tensors(), backend="emulator").plan.epilogue
        out = torch.zeros(M, N)
        added = cutefp4.gemm_plan(a, b, out=out, accumulate=True, backend="emulator")
        assert (added.plan.store, added.plan.load) == ("tma_add", "tma") and "stored by tma_add" in added.explain()


def test_a_plan_checks_as_the_call_does():
    with pytest.raises(OperandError, match="accumulate=True without out"):
        cutefp4.gemm_plan(*pair(), accumulate=True)
    with pytest.raises(OperandError, match="the same K"):
        cutefp4.gemm_plan(torch.zeros(4, 32, dtype=torch.bfloat16), pair()[1])
