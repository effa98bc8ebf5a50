"""RMSNorm, SwiGLU and de-interleaving in front of the quantiser: kernels against the oracle, fused against unfused."""

import pytest
import torch

from cutefp4 import emulator, ops_quantize, reference
from cutefp4.errors import OperandError
from cutefp4.recipe import QuantRecipe
from tests import cases
from tests.compare import assert_same_bits, assert_same_operand
from tests.kernels.machines import EMULATED, on_device, on_gpu, on_machines, running

TE = QuantRecipe()
TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")
COMPACT = TOKEN.replace(arithmetic="te", e4m3_max=256, scale_layout="compact")
RHT = TE.replace(rht="bf16", rounding="stochastic")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def assert_same_pair(got, want, what="") -> None:
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None), what
        if b is not None:
            assert_same_operand(a, b, what)


def assert_same_values(got: torch.Tensor | None, want: torch.Tensor | None, what: str) -> None:
    """Equal bits; a NaN equals any NaN."""
    assert (got is None) == (want is None), what
    if want is not None:
        assert torch.equal(got.isnan(), want.isnan()), what
        assert_same_bits(got.nan_to_num(nan=0.0, posinf=None), want.nan_to_num(nan=0.0, posinf=None), what)


def check_norm(machine: str, x: torch.Tensor, weight: torch.Tensor, recipe, residual=None, **options) -> None:
    """`ops_quantize.rmsnorm_quantize` on the machine equals the oracle."""
    with running(machine) as device:
        options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        residual = None if residual is None else on_device(residual, device)
        arguments = (on_device(x, device), on_device(weight, device), recipe, 1e-5)
        got, total, normed = ops_quantize.rmsnorm_quantize(*arguments, residual=residual, **options)
        want, wanted_total, wanted_normed = reference.rmsnorm_quantize(*arguments, residual=residual, **options)
    what = f"{tuple(x.shape)} {x.dtype} {recipe.describe()} {sorted(options)}"
    assert_same_values(total, wanted_total, f"sum of {what}")
    assert_same_values(normed, wanted_normed, f"norm of {what}")
    assert_same_pair(got, want, what)


def norm_inputs(rows: int, columns: int, dtype=BF16, kind="row_scaled"):
    """x, residual, weight."""
    x, residual = cases.matrix(rows, columns, kind, 1, dtype), cases.matrix(rows, columns, "normal", 2, dtype)
    return x, residual, cases.matrix(1, columns, "normal", 3, BF16)[0]


@on_machines
@pytest.mark.parametrize(
    ("recipe", "dtype"), [(TOKEN, BF16), (TE, BF16), (COMPACT, FP16), (TOKEN, FP32)], ids=lambda v: str(v)[:40]
)
def test_rmsnorm(machine, recipe, dtype):
    for rows, columns, alone in ((3, 16, True), (9, 80, False), (5, 1040, True), (2, 2112, False)):
        x, residual, weight = norm_inputs(rows, columns, dtype)
        check_norm(machine, x, weight, recipe, None if alone else residual, keep_normed=columns == 80)


@on_gpu
@pytest.mark.parametrize(("recipe", "dtype"), [(TOKEN, BF16), (TE, FP16), (COMPACT, FP32)], ids=lambda v: str(v)[:40])
def test_rmsnorm_of_many_shapes(machine, recipe, dtype):
    for rows, columns in (*cases.odd_shapes(2, largest=4000), (64, 7168), (300, 2112), (33, 16384), (2, 65552)):
        x, residual, weight = norm_inputs(rows, columns, dtype)
        check_norm(machine, x, weight.to(dtype), recipe, residual)


@on_machines
def test_rmsnorm_of_rows_longer_than_a_cta_holds(machine):
    x, residual, weight = norm_inputs(2, 16400, FP32)
    check_norm(machine, x, weight.float(), TOKEN, residual, keep_normed=True)
    check_norm(machine, x, weight, TE)


@on_machines
def test_rmsnorm_of_both_copies(machine):
    x, residual, weight = norm_inputs(48, 96)
    for recipe in (TOKEN, TE.replace(block="2d")):
        check_norm(machine, x, weight, recipe, residual, columnwise=True)
    check_norm(machine, x, weight, TE, rowwise=False, columnwise=True)
    check_norm(machine, x, weight, RHT, rowwise=False, columnwise=True, keep_normed=True, seed=3, offset=4)


@on_machines
def test_rmsnorm_with_given_amaxes(machine):
    x, residual, weight = norm_inputs(20, 96)
    check_norm(machine, x, weight, TE, residual, amax=torch.tensor(3.7), keep_normed=True)
    check_norm(machine, x, weight, TOKEN, residual, amax=torch.linspace(0, 5, 20), keep_sum=False)
    check_norm(machine, x, weight, TE, residual, keep_sum=False)


@on_machines
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_rmsnorm_of_special_values(machine, dtype):
    """A NaN or Inf spoils its row alone; rows of zeros, of the largest and of the smallest values."""
    x, residual, weight = norm_inputs(12, 64, dtype, "normal")
    x[1], x[2, 5], x[3, 7], x[4, 9] = 0, torch.nan, torch.inf, -torch.inf
    x[5] *= torch.finfo(dtype).tiny
    x[6] = torch.finfo(dtype).max
    x[7, ::2] = -0.0
    residual[1] = 0
    for recipe in (TOKEN, TE):
        check_norm(machine, x, weight, recipe, keep_normed=True)
        check_norm(machine, x, weight, recipe, residual, keep_normed=True)


@on_machines
def test_rmsnorm_of_strided_and_misaligned_rows(machine):
    x, residual, weight = norm_inputs(6, 160)
    check_norm(machine, cases.strided(x), weight, TOKEN, residual)
    wide = cases.matrix(6, 77, "distinct", dtype=FP32)
    check_norm(machine, wide[:, 3:67], cases.matrix(1, 77, seed=2)[0, 5:69], TOKEN, wide.roll(1, 0)[:, 2:66])
    check_norm(machine, cases.matrix(64, 32, "distinct").t(), cases.matrix(1, 64)[0], TE)


@pytest.mark.parametrize("arch", EMULATED)
def test_rmsnorm_under_any_schedule(arch):
    x, residual, weight = norm_inputs(3, 2112)
    want, total, _ = reference.rmsnorm_quantize(x, weight, TOKEN, residual=residual)
    for seed in range(4):
        with emulator.device(arch, seed=seed):
            got, actual_total, _ = ops_quantize.rmsnorm_quantize(x, weight, TOKEN, residual=residual)
        assert_same_pair(got, want, f"seed {seed}")
        assert_same_bits(actual_total, total)


def test_rmsnorm_of_columns_that_are_no_blocks():
    with emulator.device("sm_90a"), pytest.raises(OperandError, match="40 columns.*pad it to 48"):
        ops_quantize.rmsnorm_quantize(torch.zeros(4, 40), torch.ones(40), TE)


# ---------------------------------------------------------------- gate and up


def check_deinterleaved(machine: str, x: torch.Tensor, recipe, interleave, **options) -> None:
    with running(machine) as device:
        options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        here = on_device(x, device)
        got = ops_quantize.deinterleave_quantize(here, recipe, interleave, **options)
        want = reference.deinterleave_quantize(here, recipe, interleave, **options)
    assert_same_pair(got, want, f"{tuple(x.shape)} {x.dtype} by {interleave} {recipe.describe()}")


@on_machines
@pytest.mark.parametrize("interleave", [None, 8, 16, 24, 32, 5])
def test_deinterleave(machine, interleave):
    dtype = {8: FP16, 16: FP32}.get(interleave, BF16)
    x = cases.matrix(20, 960, "distinct", dtype=dtype)
    check_deinterleaved(machine, x, TOKEN, interleave)
    check_deinterleaved(machine, x, COMPACT, interleave)
    check_deinterleaved(machine, x, TE, interleave)


@on_machines
def test_deinterleave_options(machine):
    x = cases.matrix(32, 336, "distinct")  # the middle block holds 8 columns of gate and 8 of up
    check_deinterleaved(machine, x, TOKEN, 8, amax=torch.linspace(1, 5, 32))
    check_deinterleaved(machine, x, TE, 24, amax=torch.tensor(900.0))
    check_deinterleaved(machine, x, RHT, 8, columnwise=True, seed=1, offset=2)
    check_deinterleaved(machine, x, TOKEN, 8, rowwise=False, columnwise=True)
    check_deinterleaved(machine, cases.strided(x), TOKEN, 8)
    check_deinterleaved(machine, cases.matrix(5, 99, "distinct", dtype=FP32)[:, 3:], TOKEN, 8)


@on_machines
@pytest.mark.parametrize("interleave", [None, 8, 24, 6])
def test_swiglu_with_any_amax_equals_the_unfused_kernels(machine, interleave):
    """One kernel or two, given amaxes or measured: the same h, hence the same bytes."""
    x = cases.matrix(32, 192, "normal", 4)
    with running(machine) as device:
        here = x.to(device)
        gate_up = here if interleave is None else torch.cat(reference.deinterleave(here, interleave), 1)
        h = torch.empty(32, 96, dtype=x.dtype, device=device)
        ops_quantize.swiglu(gate_up, h, "halves", None)
        for recipe, options in (
            (TE, {}),
            (TE, {"amax": torch.tensor(1.5)}),
            (TOKEN, {"amax": torch.linspace(1, 2, 32)}),
            (TE, {"columnwise": True}),
            (TOKEN, {"columnwise": True}),
            (RHT, {"columnwise": True, "seed": 1, "offset": 2}),
        ):
            options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
            got = ops_quantize.swiglu_quantize(here, recipe, interleave, **options)
            assert_same_pair(got, reference.quantize(h, recipe, **options), f"{recipe.describe()} {options}")


@on_machines
def test_weight_along_its_first_axis(machine):
    """A weight stored (K, N): the columnwise copy alone, any N."""
    with running(machine) as device:
        for k, n in ((64, 96), (48, 37)):
            weight = cases.matrix(k, n, "distinct", device=device)
            got = ops_quantize.quantize(weight, TE, rowwise=False, columnwise=True)[1]
            assert_same_operand(got, reference.quantize_weight_dim0(weight, TE))
            assert (got.rows, got.k) == (n, k)
