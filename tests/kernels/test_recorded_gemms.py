"""The GEMM kernels give, in the emulator, the bits that an H200 gave (tests/fixtures/gemm_sm90.npz)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cutefp4.acceptance import recorded
from cutefp4.acceptance.machine import Machine
from tests.compare import assert_close

RECORD = np.load(Path(__file__).parents[1] / "fixtures" / "gemm_sm90.npz")
ARCHS = ("sm_90a", "sm_100a")


def test_every_case_is_recorded():
    assert {case.id for case in recorded.EVERY} | {"versions"} == set(RECORD.files)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("case", recorded.EXACT, ids=lambda case: case.name())
def test_exact_sums(case, arch):
    """Another architecture, another kernel, another number of multiprocessors: the same bits."""
    assert recorded.first_difference(case.run(Machine(arch), case.seed), RECORD[case.id]) is None


@pytest.mark.parametrize("case", recorded.ROUNDED, ids=lambda case: case.name())
def test_the_same_kernel_where_sums_round(case):
    """The emulator models the Hopper tensor core's rounding bit for bit."""
    assert recorded.first_difference(recorded.run_rounded(case, Machine("sm_90a")), RECORD[case.id]) is None


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("case", recorded.APPROXIMATED, ids=lambda case: case.name())
def test_approximated_activations(case, arch):
    d = case.run(Machine(arch), case.seed)
    assert_close(d, recorded.values(RECORD[case.id], d), rtol=1e-6, atol=1e-9)


def test_a_difference_is_named():
    case = recorded.EXACT[0]
    d = case.expected()
    assert recorded.first_difference(d, recorded.digest(d)) is None
    changed = d.clone()
    changed[0, 0] += 1
    assert "(0, 0)" in recorded.first_difference(changed, recorded.digest(d))
