"""The counters of a launch are exact: bytes, multiply-accumulates, bank conflicts, instructions."""

import pytest
from microkernels import banks, blackwell_gemm, hopper_gemm, warp
from microkernels.compare import run_in_emulator


def counters(kernel, **device) -> dict[str, int]:
    return run_in_emulator(kernel, **device)[1].counters


@pytest.mark.parametrize(
    ("words", "stride", "wavefronts"),
    [(1, 1, 1), (1, 2, 2), (1, 3, 1), (1, 4, 4), (1, 8, 8), (1, 16, 16), (1, 32, 32), (1, 33, 1),
     (2, 2, 2), (2, 4, 4), (4, 4, 4), (4, 8, 8), (4, 32, 32)],
)  # fmt: skip
@pytest.mark.parametrize("store", [False, True])
def test_bank_conflicts(words, stride, wavefronts, store):
    """A wavefront serves 32 banks of 4 bytes once; a wide access of a warp needs at least ``words`` of them."""
    plain = counters(banks.strided(words, words, store))
    got = counters(banks.strided(words, stride, store))
    fill = -(-(32 * stride * 4 + 16) // 128) + -(-(32 * words * 4 + 16) // 128) * -1
    assert got["bank_conflicts"] - plain["bank_conflicts"] == wavefronts - words
    assert got["shared_wavefronts"] - plain["shared_wavefronts"] == wavefronts - words + fill


def test_hopper_gemm_counts():
    m, n, k = 256, 128, 256
    got = counters(hopper_gemm.kernel(m, n, k))
    assert got["mma_macs"] == m * n * k
    assert got["mma_instructions"] == (m // 64) * (n // 64) * (k // 16)
    k_blocks, tiles = k // 64, (m // 64) * (n // 64)
    # bytes that arrive in shared memory: a multicast counts in every CTA that receives it
    assert got["async_load_bytes"] == tiles * k_blocks * (hopper_gemm.A_BYTES + hopper_gemm.B_BYTES)
    assert got["async_store_bytes"] == m * n * 2
    assert got["bank_conflicts"] == 0, "the swizzled stmatrix tile has none"
    assert got["ctas"] == 4


def test_blackwell_gemm_counts():
    m, n, k = 256, 256, 512
    got = counters(blackwell_gemm.kernel(m, n, k))
    tiles, k_blocks = (m // 128) * (n // 128), k // 256
    assert got["mma_macs"] == m * n * k
    assert got["mma_instructions"] == tiles * k_blocks * 4
    assert got["async_load_bytes"] == tiles * k_blocks * blackwell_gemm.STAGE_BYTES
    assert got["async_store_bytes"] == m * n * 2


def test_counts_do_not_depend_on_the_schedule():
    kernel = blackwell_gemm.kernel(256, 128, 512)
    names = ("mma_macs", "async_load_bytes", "async_store_bytes", "shared_store_bytes", "tmem_bytes")
    runs = [{n: c[n] for n in names} for c in (counters(kernel, seed=s) for s in (None, 1, 2))]
    assert runs[0] == runs[1] == runs[2]


def test_instruction_mix_of_a_straight_kernel():
    """One warp, no loop but the two that fill and drain: one stmatrix and one barrier each side."""
    kernel = next(k for k in warp.kernels() if k.name == "stmatrix_x4")
    mix = run_in_emulator(kernel)[1].instructions
    assert sum(n for name, n in mix.items() if name.startswith("stmatrix")) == 1
    assert sum(n for name, n in mix.items() if name.startswith("bar.sync")) == 2
