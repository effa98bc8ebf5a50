"""The emulator stays fast enough for continuous integration. Limits are in CPU seconds, so that a busy machine does not
fail them; a machine slower than the one they were set on gets more time in proportion to a fixed piece of C-speed work.
"""

import time

import numpy as np
import pytest
from microkernels import blackwell_gemm, hopper_gemm
from microkernels.compare import run_in_emulator

CALIBRATION_SECONDS = 0.035
"""What the calibration below takes on the machine for which the limits were set (one core of an EPYC)."""


def calibration() -> float:
    """CPU seconds of a sort of a million hashed words: integer work at compiled speed."""
    from microkernels.inputs import hash32

    words = hash32(1 << 20, 7)
    best = 1e9
    for _ in range(3):
        start = time.process_time()
        np.sort(words, kind="heapsort")
        best = min(best, time.process_time() - start)
    return best


def cpu_seconds(kernel, right, seed) -> float:
    """The least of two runs, both right."""
    best = 1e9
    for _ in range(2):
        start = time.process_time()
        results, _ = run_in_emulator(kernel, seed=seed)
        best = min(best, time.process_time() - start)
        assert np.array_equal(results["d"].view(np.uint16), np.ascontiguousarray(right).view(np.uint16).reshape(-1))
    return best


@pytest.mark.parametrize(
    ("gemm", "size", "seed", "limit"),
    [
        (blackwell_gemm, (256, 256, 512), None, 0.5),
        (blackwell_gemm, (256, 256, 512), 1, 0.5),
        (blackwell_gemm, (1024, 1024, 1024), None, 1.0),
        (blackwell_gemm, (1024, 1024, 1024), 1, 3.0),
        (hopper_gemm, (256, 256, 512), None, 0.5),
    ],
)
def test_gemm_within_its_limit(gemm, size, seed, limit):
    slower = max(1.0, calibration() / CALIBRATION_SECONDS)
    assert cpu_seconds(gemm.kernel(*size), gemm.expected(*size), seed) < limit * slower
