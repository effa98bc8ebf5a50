"""Record what the Hopper GEMM computes on an H100 or H200, or compare a machine with the record.

    python -m perf.gemm_fixtures make --out FILE.npz     needs a Hopper GPU; goes to tests/fixtures/gemm_sm90.npz
    python -m perf.gemm_fixtures check                   the emulator as an sm_90a and as an sm_100a, or the GPU here

The cases are `cutefp4.acceptance.recorded`; an array holds D, or a digest per row, and `versions` says what made it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from cutefp4.acceptance import recorded
from cutefp4.acceptance.gemm import GemmCase
from cutefp4.acceptance.machine import Machine, here, native_machine
from cutefp4.acceptance.run import run

MAKE_JOBS = 14
"""Processes that compile and check before anything is recorded."""
FIXTURE = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "gemm_sm90.npz"


def computed(case: GemmCase, machine: Machine) -> torch.Tensor:
    """D of a case, in the recorded configuration where that decides its bits."""
    if case in recorded.ROUNDED:
        return recorded.run_rounded(case, machine)
    return case.run(machine, None if machine.native else case.seed)


def make(out: Path) -> int:
    """Record every case, after a run in parallel has compiled the kernels and compared them with the oracle."""
    machine = native_machine()
    if machine is None or machine.arch != "sm_90a":
        print("make needs a Hopper GPU", file=sys.stderr)
        return 2
    cases = recorded.EVERY
    wrong = [r for r in run([(case, machine) for case in cases], MAKE_JOBS) if r.failure is not None]
    for result in wrong:
        print(f"{result.case.id}: {result.failure}", file=sys.stderr)
    if wrong:
        return 1
    arrays = {case.id: recorded.digest(computed(case, machine)) for case in cases}
    versions = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, versions=np.frombuffer(json.dumps(versions).encode(), np.uint8), **arrays)
    print(f"{len(arrays)} results, {out.stat().st_size} bytes, {versions}")
    return 0


def check(machine: Machine, fixture: Path) -> int:
    """Print and count the cases whose bits are not the recorded ones."""
    arrays = np.load(fixture)
    cases = recorded.EXACT + (recorded.ROUNDED if machine.arch == "sm_90a" else ())
    wrong = 0
    for case in cases:
        difference = recorded.first_difference(computed(case, machine), arrays[case.id])
        wrong += difference is not None
        print(f"{'ok' if difference is None else 'DIFFERS':8}{case.id} {difference or ''}", flush=True)
    print(f"{machine.name}: {wrong} of {len(cases)} differ from the record")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "check"))
    parser.add_argument("--out", type=Path, default=FIXTURE, help="where make writes, and check reads")
    arguments = parser.parse_args()
    if arguments.what == "make":
        return make(arguments.out)
    return max(check(machine, arguments.out) for machine in here())


if __name__ == "__main__":
    sys.exit(main())
