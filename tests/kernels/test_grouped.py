"""Row groups at device-resident offsets, SwiGLU in front of the cast, and the way back, against the oracle."""

import pytest
import torch

from cutefp4 import ops_quantize, reference
from cutefp4.errors import OperandError
from cutefp4.recipe import QuantRecipe
from tests import cases
from tests.compare import assert_same_bits, assert_same_operand
from tests.kernels.machines import on_device, on_gpu, on_machines, running

TE = QuantRecipe()
TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")
RECIPES = [
    TE,
    TOKEN,
    TE.replace(rht="fp32", scale_layout="compact"),
    TOKEN.replace(rht="fp32", rounding="stochastic"),
    TE.replace(arithmetic="torchao"),
    TE.replace(four_over_six="mae", four_over_six_error="fast", e4m3_max=256),
    TE.replace(block="2d"),
]
SIZES = [[0, 5, 0, 130, 64, 1], [200], [0, 0, 300], [3] * 40]


def check_grouped(machine: str, x: torch.Tensor, sizes: list[int], recipe: QuantRecipe, **options) -> None:
    with running(machine) as device:
        here, offs = on_device(x, device), cases.end_offsets(sizes, device)
        moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        state = {"rowwise": True, "columnwise": True, "seed": 5, "offset": 6, **moved}
        actual = ops_quantize.quantize_grouped(here, offs, recipe, **state)
        expected = reference.quantize_grouped(here, offs, recipe, **state)
    for got, want, copy in zip(actual, expected, ("rowwise", "columnwise"), strict=True):
        if want is not None:
            assert_same_operand(got, want, f"{copy} of {sizes} {recipe.describe()}")


@on_machines
@pytest.mark.parametrize("recipe", RECIPES, ids=QuantRecipe.describe)
def test_equals_the_oracle(machine, recipe):
    for sizes in SIZES:
        check_grouped(machine, cases.matrix(sum(sizes) + 7, 48, "row_scaled", 1), sizes, recipe)
        check_grouped(machine, cases.matrix(sum(sizes) + 400, 48, "row_scaled", 1), sizes, recipe)


@on_gpu
@pytest.mark.parametrize("recipe", RECIPES, ids=QuantRecipe.describe)
def test_many_groups(machine, recipe):
    for groups, total in ((8, 2048), (64, 5000), (256, 3000)):
        sizes = cases.ragged_sizes(groups, total, seed=groups)
        check_grouped(machine, cases.matrix(total, 720, "row_scaled", 1), sizes, recipe)


@on_machines
def test_one_copy_and_given_amaxes(machine):
    x, sizes = cases.matrix(150, 48, "row_scaled", 1), [20, 0, 100]
    check_grouped(machine, x, sizes, TOKEN, columnwise=False)
    check_grouped(machine, x[:, :37], sizes, TOKEN, rowwise=False)
    check_grouped(machine, x, sizes, TE, amax=torch.tensor([3.0, 4.0, 5.0]))
    check_grouped(machine, x, sizes, TOKEN, amax=torch.linspace(0, 4, 150))


@on_machines
@pytest.mark.parametrize("four_over_six", ["none", "mae"])
def test_one_amax_per_group_is_stored_for_every_row_and_column(machine, four_over_six):
    """16x16 blocks under token scaling; row amaxes that the caller knows differ within a group."""
    recipe = TOKEN.replace(block="2d", four_over_six=four_over_six)
    x, sizes = cases.matrix(150, 48, "row_scaled", 1), [20, 0, 100]
    for options in ({}, {"columnwise": False}, {"rowwise": False}, {"amax": torch.linspace(1, 40, 150)}):
        check_grouped(machine, x, sizes, recipe, **options)


@on_machines
@pytest.mark.parametrize(
    ("interleave", "dtype"),
    [(None, torch.bfloat16), (8, torch.float16), (16, torch.float32), (32, torch.bfloat16)],
    ids=str,
)
def test_swiglu(machine, interleave, dtype):
    """exp is approximate: the amaxes agree to a few ulps of the dtype, and nearly all codes are equal."""
    x = cases.matrix(20, 192, "normal", 4, dtype)
    with running(machine) as device:
        here = x.to(device)
        for recipe, both in ((TOKEN, False), (TE, False), (TOKEN, True)):
            rows = here[:16] if both else here
            got = ops_quantize.swiglu_quantize(rows, recipe, interleave, columnwise=both)
            want = reference.swiglu_quantize(rows, recipe, interleave, columnwise=both)
            for a, b in zip(got, want, strict=True):
                if b is not None:
                    torch.testing.assert_close(a.amax, b.amax, rtol=1e-2, atol=0)
                    assert (a.codes != b.codes).float().mean() < 0.01


@on_machines
def test_fused_swiglu_equals_the_unfused_kernels(machine):
    """One kernel or two: the same h, hence the same bytes."""
    x = cases.matrix(20, 192, "normal", 4)
    with running(machine) as device:
        here = x.to(device)
        h = torch.empty(20, 96, dtype=x.dtype, device=device)
        ops_quantize.swiglu(here, h, "8")
        assert_same_operand(
            ops_quantize.swiglu_quantize(here, TOKEN, 8)[0], reference.quantize(h, TOKEN)[0], "fused SwiGLU"
        )


@on_machines
@pytest.mark.parametrize("recipe", [TE, TOKEN.replace(scale_layout="compact", e4m3_max=256)], ids=QuantRecipe.describe)
def test_dequantize(machine, recipe):
    for rows, k in ((1, 16), (40, 96), (130, 80)):
        with running(machine) as device:
            operand = reference.quantize(cases.matrix(rows, k, "heavy", 2, device=device), recipe)[0]
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                got = ops_quantize.dequantize(operand, dtype)
                assert_same_bits(got, reference.dequantize(operand, dtype), f"values of {operand}")


def test_too_many_rows_is_an_error_before_launch():
    x = torch.zeros(1, 16, dtype=torch.bfloat16).expand(ops_quantize.MAX_ROWS + 1, 16)
    with pytest.raises(OperandError, match="at most 8388480"):
        ops_quantize.quantize(x, TE)
    with pytest.raises(OperandError, match="quantise it in parts"):
        ops_quantize.quantize_grouped(x, cases.end_offsets([5]), TOKEN)
