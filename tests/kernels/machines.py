"""Where kernel tests run: the GPU of this machine, and the emulator as an sm_90a and as an sm_100a.

@on_machines            the test takes `machine`, and runs once on each
check(...)              quantises on the machine and compares every byte with the oracle
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from cutefp4 import emulator, ops_quantize, reference
from tests.compare import assert_same_operand

EMULATED = ("sm_90a", "sm_100a")

on_machines = pytest.mark.parametrize(
    "machine", [*(f"emulated {arch}" for arch in EMULATED), pytest.param("cuda", marks=pytest.mark.gpu)]
)
on_gpu = pytest.mark.parametrize("machine", [pytest.param("cuda", marks=pytest.mark.gpu)])


@contextmanager
def running(machine: str):
    """The torch device of a machine, while kernels for its tensors run there."""
    if machine == "cuda":
        poison()
        yield torch.device("cuda", 0)
        return
    with emulator.device(machine.removeprefix("emulated ")):
        yield torch.device("cpu")


def poison() -> None:
    """Fill the allocator's free blocks with a pattern, so that unwritten outputs show."""
    blocks = [
        torch.full((size,), 0xA5, dtype=torch.uint8, device="cuda") for size in (1 << 12, 1 << 16, 1 << 20, 1 << 24)
    ]
    del blocks


def check(machine: str, x: torch.Tensor, recipe, what: str = "", **options) -> None:
    """`ops_quantize.quantize` on the machine equals the oracle, byte for byte."""
    with running(machine) as device:
        moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        here = on_device(x, device)
        actual = ops_quantize.quantize(here, recipe, **moved)
        expected = reference.quantize(here, recipe, **moved)
    for got, want, copy in zip(actual, expected, ("rowwise", "columnwise"), strict=True):
        assert (got is None) == (want is None), copy
        if want is not None:
            assert_same_operand(got, want, f"{what} {copy} of {tuple(x.shape)} {x.dtype} {recipe.describe()}")


def on_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """x on the device with its strides."""
    if x.device == device or x.is_contiguous():
        return x.to(device)
    size = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    flat = x.as_strided((size,), (1,)).to(device)
    return flat.as_strided(x.shape, x.stride())
