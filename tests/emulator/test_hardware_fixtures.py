"""The emulator gives, bit for bit, what an H200 gave for the same PTX and the same inputs.

The fixtures are made by perf/emulator_fixtures.py on a Hopper GPU. A kernel that the hardware refused (illegal
instruction) has to be refused here as well.
"""

from pathlib import Path

import numpy as np
import pytest
from microkernels import every_kernel, hopper_gemm
from microkernels.compare import differences, run_in_emulator
from microkernels.kernel import ENCODE_ONLY, digests, identity
from microkernels.tensor_map import encode

from cutefp4.emulator import EmulatorError

FIXTURE = np.load(Path(__file__).parent / "fixtures" / "sm90a.npz")
KERNELS = every_kernel()


def test_the_fixture_covers_every_kernel():
    assert {key.split("/")[0] for key in FIXTURE if key.endswith("/identity")} == set(KERNELS)


@pytest.mark.parametrize("name", KERNELS)
def test_equals_the_hardware(name):
    kernel = KERNELS[name]
    assert np.array_equal(FIXTURE[f"{name}/identity"], identity(kernel)), "made from another text or other inputs"
    if f"{name}/fault" in FIXTURE:
        with pytest.raises(EmulatorError):
            run_in_emulator(kernel, FIXTURE if f"{name}/map0" in FIXTURE else None)
        return
    results, _ = run_in_emulator(kernel, FIXTURE)
    assert not differences(kernel, results, FIXTURE)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", [n for n, k in KERNELS.items() if f"{n}/fault" not in FIXTURE and not k.lanewise])
def test_equals_the_hardware_under_adversarial_scheduling(name, seed):
    """Kernels of single threads' arithmetic are left out: no schedule can touch them."""
    results, _ = run_in_emulator(KERNELS[name], FIXTURE, seed=seed)
    assert not differences(KERNELS[name], results, FIXTURE)


def test_tensor_map_encoder_equals_the_driver():
    maps = [(f"{k.name}/map{i}", m, 0) for k in KERNELS.values() for i, m in enumerate(k.tensor_maps)]
    maps += [(f"encode{i}/map0", m, 0x7F0000001000) for i, m in enumerate(ENCODE_ONLY)]
    known = [(FIXTURE[key].tobytes()[8:], encode(m, address)[8:]) for key, m, address in maps if key in FIXTURE]
    assert len(known) > 80 and all(driver == ours for driver, ours in known)


def test_hopper_gemm_fixture_is_the_right_product():
    """The hardware's digest itself is that of the exact matrix product."""
    assert np.array_equal(FIXTURE["hopper_gemm/d"], digests(hopper_gemm.expected(200, 136, 264)))
