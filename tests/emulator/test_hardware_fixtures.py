"""The emulator gives, bit for bit, what an H200 gave for the same PTX and the same inputs.

The fixtures are made by perf/emulator_fixtures.py on a Hopper GPU. A kernel that the hardware refused (illegal
instruction) has to be refused here as well.
"""

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from microkernels import every_kernel, hopper_gemm
from microkernels.compare import differences, run_in_emulator
from microkernels.kernel import ELEMENT_BITS, ENCODE_ONLY, SWIZZLES, TensorMap, digests, identity
from microkernels.tensor_map import encode

from cutefp4.emulator import EmulatorError
from cutefp4.emulator.native_build import library_path

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


def native_encode(m, address: int) -> tuple[bytes, str | None]:
    """What a host function gets from cuTensorMapEncodeTiled, and why it is refused if it is."""
    call = ctypes.CDLL(str(library_path())).tensormap_encode
    call.restype, out, rank = ctypes.c_char_p, ctypes.create_string_buffer(128), len(m.dims)
    dims, strides = ((ctypes.c_uint64 * 6)(*values) for values in (m.dims, m.strides))
    box, steps = ((ctypes.c_uint32 * 6)(*values) for values in (m.box, m.element_strides or (1,) * rank))
    numbers = list(ELEMENT_BITS).index(m.element), rank, ctypes.c_uint64(address + m.offset)
    why = call(out, *numbers, dims, strides, box, steps, 0, SWIZZLES.index(m.swizzle), int(m.nan_fill))
    return out.raw, None if why is None else why.decode()


def test_host_functions_get_the_tensor_maps_that_the_driver_makes():
    maps = [(f"{k.name}/map{i}", m, 0) for k in KERNELS.values() for i, m in enumerate(k.tensor_maps)]
    maps += [(f"encode{i}/map0", m, 0x7F0000001000) for i, m in enumerate(ENCODE_ONLY)]
    equal = 0
    for key, m, address in maps:
        ours, why = native_encode(m, address)
        if why is not None:
            assert m.element_strides or m.nan_fill, why
        elif key in FIXTURE:
            assert ours[8:] == FIXTURE[key].tobytes()[8:], key
            equal += 1
    assert equal > 80


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dims": (64,) * 6, "strides": (256,) * 5, "box": (8,) * 6}, "rank outside 1..5"),
        ({"box": (8, 0)}, "box dimension is outside 1..256"),
        ({"box": (257, 8)}, "box dimension is outside 1..256"),
        ({"box": (3, 8)}, "not a multiple of 16 bytes"),
        ({"strides": (72,)}, "global stride is not a multiple of 16"),
        ({"offset": 8}, "global address is not a multiple of 16"),
        ({"box": (32, 8), "swizzle": "32B"}, "wider than the swizzle span"),
        ({"element_strides": (1, 2)}, "element strides other than 1"),
    ],
)
def test_tensor_maps_that_a_driver_refuses_are_refused(change, reason):
    m = replace(TensorMap("x", "f32", (64, 64), (256,), (8, 8)), **change)
    assert reason in native_encode(m, 0x1000)[1]


def test_hopper_gemm_fixture_is_the_right_product():
    """The hardware's digest itself is that of the exact matrix product."""
    assert np.array_equal(FIXTURE["hopper_gemm/d"], digests(hopper_gemm.expected(200, 136, 264)))
