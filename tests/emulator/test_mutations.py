"""Sixty faults injected into right kernels: each is reported, or deadlocks with a report, or gives a wrong result.

Run with ``-s`` to see what caught each. The kernels themselves have to be right and silent under every seed used here.
"""

import numpy as np
import pytest
from microkernels import blackwell_gemm, hopper_gemm
from microkernels.compare import run_in_emulator
from microkernels.faults import BLACKWELL, HOPPER

from cutefp4.emulator import EmulatorError

SEEDS = (None, 1, 2, 3, 4, 5)
"""None is the eager scheduler; the others are adversarial."""

GEMMS = {"hopper": hopper_gemm, "blackwell": blackwell_gemm}
SIZE = {"hopper": (200, 136, 264), "blackwell": (200, 328, 576)}
CASES = [(arch, fault) for arch, faults in (("hopper", HOPPER), ("blackwell", BLACKWELL)) for fault in faults]


def caught_by(kernel, right: np.ndarray, seed: int | None) -> str | None:
    """What a run under ``seed`` shows: the kind of the first finding, "wrong result", or None if all looks well."""
    try:
        results, report = run_in_emulator(kernel, seed=seed)
    except EmulatorError as e:
        kinds = [f.kind for f in e.report.findings] if e.report is not None else [str(e).splitlines()[0]]
        return kinds[0]
    if report.findings:
        return report.findings[0].kind
    same = np.array_equal(results["d"].view(np.uint8), np.ascontiguousarray(right).view(np.uint8).reshape(-1))
    return None if same else "wrong result"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("arch", GEMMS)
def test_the_kernels_are_right_and_silent(arch, seed):
    gemm = GEMMS[arch]
    assert caught_by(gemm.kernel(*SIZE[arch]), gemm.expected(*SIZE[arch]), seed) is None


@pytest.mark.parametrize(("arch", "fault"), CASES, ids=[f"{a}-{f.what}".replace(" ", "_") for a, f in CASES])
def test_fault_is_caught(arch, fault):
    gemm = GEMMS[arch]
    broken, right = fault.inject(gemm.kernel(*SIZE[arch])), gemm.expected(*SIZE[arch])
    for seed in SEEDS:
        found = caught_by(broken, right, seed)
        if found:
            print(f"{arch:10} {fault.what:60} {found} ({'eager' if seed is None else f'seed {seed}'})")
            return
    pytest.fail(f"no seed of {SEEDS} shows it")
