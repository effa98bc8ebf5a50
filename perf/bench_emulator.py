"""How fast the emulator runs: GEMMs and SIMT kernels, eager and under adversarial scheduling.

    python perf/bench_emulator.py [--repeat N]

Prints one row per kernel: wall and CPU seconds of the best run, warp instructions per second, MACs per second.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "emulator"))

from microkernels import blackwell_gemm, every_kernel, hopper_gemm
from microkernels.compare import run_in_emulator


def cases() -> list[tuple[str, object]]:
    """Kernels by label."""
    small = every_kernel()
    return [
        ("NVFP4 GEMM sm_100a 256x256x512", blackwell_gemm.kernel(256, 256, 512)),
        ("NVFP4 GEMM sm_100a 1024x1024x1024", blackwell_gemm.kernel(1024, 1024, 1024)),
        ("f16 GEMM sm_90a 256x256x512", hopper_gemm.kernel(256, 256, 512)),
        ("f16 GEMM sm_90a 1024x1024x1024", hopper_gemm.kernel(1024, 1024, 1024)),
        ("SIMT: 43 conversions of 65536 floats", small["cvt_f32_to_narrow"]),
        ("SIMT: 133 float32 operations on 4096 pairs", small["f32_arithmetic"]),
        ("SIMT: 123 atomics on 4096 words", small["atomics_32"]),
    ]


def measure(kernel, seed: int | None, repeat: int) -> dict[str, float]:
    """The best of ``repeat`` runs, and the counters."""
    best = {"wall": 1e9, "cpu": 1e9}
    for _ in range(repeat):
        wall, cpu = time.perf_counter(), time.process_time()
        _, report = run_in_emulator(kernel, seed=seed)
        best["cpu"] = min(best["cpu"], time.process_time() - cpu)
        best["wall"] = min(best["wall"], time.perf_counter() - wall)
    return best | {"instructions": report.counters["warp_instructions"], "macs": report.counters["mma_macs"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    print(f"{'kernel':44}{'schedule':10}{'wall s':>9}{'CPU s':>9}{'Minstr/s':>10}{'GMAC/s':>8}")
    for label, kernel in cases():
        for seed in (None, 1):
            r = measure(kernel, seed, args.repeat)
            rate, macs = r["instructions"] / r["cpu"] / 1e6, r["macs"] / r["cpu"] / 1e9
            name = "eager" if seed is None else "seed 1"
            print(f"{label:44}{name:10}{r['wall']:9.3f}{r['cpu']:9.3f}{rate:10.1f}{macs:8.2f}", flush=True)


if __name__ == "__main__":
    main()
