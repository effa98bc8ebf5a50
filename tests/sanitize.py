"""Each family of Hopper kernels once, on small shapes, under NVIDIA's compute-sanitizer (a program, no test module).

    python -m tests.sanitize                            memcheck, racecheck and initcheck of everything
    python -m tests.sanitize --tool racecheck --jobs 8 "gemm pair" "cast both token"
    python -m tests.sanitize --warm                     compile what the cases need into the cache, without a GPU

Every case also compares its results with the oracle. A process runs several cases, so that what a process costs at its
start is paid once; its summary is printed with their names.
tests/test_sanitize.py holds the list of cases against the kernels that exist.

What an H200 said of 45 cases: memcheck and initcheck 0 errors. racecheck reports hazards, though results are equal:
cp.async of compact scales against reads of the stage before, and sums that st.async brings against what lay there
before ("gemm pair"; none in "gemm staged four", where only TMA has written). Both are ordered by mbarriers; that
racecheck does not follow these is our reading, not proven: letting every lane arrive changed nothing. The emulator
models them and reports no race.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from unittest import mock

import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import emulator
from cutefp4 import ops_gemm_sm90 as ops
from cutefp4.acceptance.case import Case
from cutefp4.acceptance.composed import ComposedCase
from cutefp4.acceptance.gemm import A16Case, GemmCase
from cutefp4.acceptance.machine import Machine
from cutefp4.acceptance.matrix import FOURS, TE, TOKEN
from cutefp4.acceptance.producers import DeinterleaveCase, RmsNormCase, SwigluCase
from cutefp4.acceptance.quantise import DequantiseCase, GroupedCase, QuantiseCase
from cutefp4.config import Sm90Config
from cutefp4.config_few_rows import FewRowsConfig
from cutefp4.config_small_m import SmallMConfig
from cutefp4.errors import CuteFP4Error
from cutefp4.heuristics import few_rows, sm90, small_m
from cutefp4.warmup import warmup
from tests.compare import assert_same_bits
from tests.kernels.hopper import expect, operand, run_config

TOOLS = ("memcheck", "racecheck", "initcheck")
OURS = ("--kernel-regex", "kns=kernel_cutlass")
"""Instrument kernels of the DSL only; but initcheck must see what torch's kernels have written."""


def _configured(config: Sm90Config, m: int, n: int, k: int, device: str, ctas: int = 4) -> None:
    """A product with a configuration of the large kernel, twice: the second finds what the first left behind."""
    a, b = operand(m, k, 1, device=device), operand(n, k, 2, layout="compact", device=device)
    for d in run_config(config, a, b, ctas)[0]:
        assert_same_bits(d, expect(a, b))


def _small_m(config: SmallMConfig, m: int, n: int, k: int, device: str) -> None:
    a, b = operand(m, k, 1, device=device), operand(n, k, 2, device=device)
    with mock.patch.object(small_m, "choose", lambda *_: config), mock.patch.object(ops, "_plans", {}):
        d = ops.gemm(a, b)
    assert_same_bits(d.cpu(), expect(a, b))


def _few_rows(config: FewRowsConfig, m: int, n: int, k: int, device: str) -> None:
    a, b = operand(m, k, 1, device=device), operand(n, k, 2, device=device)
    with (
        mock.patch.object(small_m, "choose", lambda *_: None),
        mock.patch.object(few_rows, "choose", lambda *_: config),
        mock.patch.object(ops, "_plans", {}),
    ):
        d = ops.gemm(a, b)
    assert_same_bits(d.cpu(), expect(a, b))


def _acceptance(case: Case, device: str) -> None:
    case.check(Machine("sm_90a", native=device == "cuda"))


def _dense(config: Sm90Config, m: int = 300, n: int = 264, k: int = 320) -> Callable[[str], None]:
    return partial(_configured, config, m, n, k)


def _shared_k(config: Sm90Config) -> Callable[[str], None]:
    """5 tiles of 4 stages: shares of 4 CTAs begin and end inside tiles."""
    return partial(_configured, config, 9, 600, 1024)


def _both(recipe, shape: tuple[int, int] = (144, 208), **options) -> Callable[[str], None]:
    return partial(_acceptance, QuantiseCase(True, recipe, shape, "both", **options))


def _case(case: Case) -> Callable[[str], None]:
    return partial(_acceptance, case)


STAGED = replace(sm90.SQUARE, swap_ab=True, staged=True)

CASES: dict[str, Callable[[str], None]] = {
    "small M": partial(_small_m, SmallMConfig(1, 8, 1, 2, 2, 2, 4), 3, 300, 1040),
    "small M 32 rows": partial(_small_m, SmallMConfig(4, 8, 2, 2, 2, 2, 4), 32, 264, 1024),
    "small M one row": partial(_small_m, SmallMConfig(1, 1, 1, 3, 2, 2, 4, separate=True, early=0), 1, 300, 1216),
    "small M 16 bits": _case(A16Case(m=16, n=520, k=1024, out="bfloat16", bias=None)),
    "few rows": partial(_few_rows, FewRowsConfig(64, 2, 2, 6, 2), 63, 200, 2240),
    "few rows in a cluster": partial(_few_rows, FewRowsConfig(48, 1, 2, 4, 8), 41, 72, 2112),
    "gemm decoded": _dense(sm90.DECODED),
    "gemm staged": _dense(replace(sm90.WIDE, staged=True)),
    "gemm staged in pairs": _dense(replace(sm90.PAIRS[0], staged=True)),
    "gemm three groups": _dense(replace(sm90.THREE, staged=True, swap_ab=True)),
    "gemm splits": _shared_k(replace(sm90.SMALL[1], splits=3)),
    "gemm staged splits": _shared_k(replace(STAGED, splits=3)),
    "gemm stream-K": _shared_k(replace(sm90.SMALL[1], stream_k=True)),
    "gemm staged stream-K": _shared_k(replace(STAGED, stream_k=True)),
    "gemm pair": _shared_k(replace(sm90.SMALL[4], splits=2, split_pair=True)),
    "gemm staged pair": _shared_k(replace(STAGED, splits=2, split_pair=True)),
    "gemm staged four": _shared_k(replace(STAGED, splits=4, split_pair=True)),
    "gemm helped": partial(_configured, replace(STAGED, splits=2, split_pair=True, helped=True), 9, 304, 2816, ctas=8),
    "gemm 16 bits": _case(A16Case(m=300, n=264, k=192)),
    "gemm 16 bits few": _case(A16Case(m=150, n=300, k=192, dtype="float16", out="float16", scales="compact")),
    "gemm epilogue": _case(GemmCase(m=150, bias="bfloat16", activation="gelu", accumulate=True)),
    "gemm sum in place": _case(GemmCase(m=129, n=136, k=208, out="float32", accumulate=True)),
    "gemm odd columns": _case(GemmCase(m=129, n=71, k=208, shift=4)),
    "gemm batch": _case(GemmCase(m=33, n=48, k=64, batch=3)),
    "gemm sinks": _case(ComposedCase(m=150)),
    "gemm swiglu": _case(ComposedCase(tree="swiglu", m=150)),
    "cast rows": _case(QuantiseCase(True, TE, (300, 2112), "rowwise")),
    "cast rows token": _case(QuantiseCase(True, TOKEN, (7, 7168), "rowwise", strided=True)),
    "cast columns": _case(QuantiseCase(True, TE, (48, 37), "columnwise", inputs=("specials",))),
    "cast both": _both(TE),
    "cast both token": _both(TOKEN),
    "cast both 2-D": _both(TE.replace(block="2d")),
    "cast both, amax given": _both(TOKEN, (32, 64), amax=True),
    "cast batch": _both(TE, (32, 48), batch=2, dtype="float32"),
    "cast RHT": _both(TE.replace(rht="bf16")),
    "cast RHT fp32 token": _both(TOKEN.replace(rht="fp32")),
    "cast SR": _both(TE.replace(rounding="stochastic")),
    "cast RHT and SR": _both(TE.replace(rht="bf16", rounding="stochastic")),
    "cast 4over6": _both(FOURS),
    "cast 4over6 fast rows": _case(
        QuantiseCase(True, FOURS.replace(four_over_six_error="fast"), (63, 2112), "rowwise")
    ),
    "grouped": _case(GroupedCase(True, TE)),
    "grouped token RHT SR": _case(GroupedCase(True, TOKEN.replace(rht="fp32", rounding="stochastic"))),
    "swiglu": _case(SwigluCase(interleave=8)),
    "swiglu both": _case(SwigluCase(True, TOKEN, 48, copies="both")),
    "de-interleave": _case(DeinterleaveCase(interleave=8)),
    "rmsnorm": _case(RmsNormCase()),
    "rmsnorm both": _case(RmsNormCase(True, TE, 32, 208, copies="both")),
    "dequantise": _case(DequantiseCase(shape=(130, 80))),
}


def plans(names) -> dict[str, list]:
    """The kernels that cases launch, by case; found without a GPU and without compiling any."""
    found = {}
    for name in names:
        with (
            emulator.device("sm_90a", sms=132),
            kernel_cache.record() as asked,
            mock.patch.object(Machine, "running", _already_running),
        ):
            # Nothing is launched, so that a case finds its results wrong.
            with suppress(AssertionError, CuteFP4Error):
                CASES[name]("cpu")
        found[name] = list(asked)
    return found


def _already_running(machine, seed=None, sms=0):
    return mock.MagicMock(__enter__=lambda _: torch.device("cpu"), __exit__=lambda *_: False)


def _run(names: list[str]) -> None:
    """In a process under the sanitizer."""
    for name in names:
        print(f"case {name}", flush=True)
        CASES[name]("cuda")
        torch.cuda.synchronize()
    print("all equal the oracle", flush=True)


def _sanitize(tool: str, names: list[str]) -> bool:
    """Run cases in one process under a tool; print its summary, and all of its output if anything is wrong."""
    begin = time.perf_counter()
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *(() if tool == "initcheck" else OURS)]
    command += [sys.executable, "-m", "tests.sanitize", "--run", *names]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    summary = [line.strip("= ") for line in result.stdout.splitlines() if "SUMMARY" in line] or ["no summary"]
    good = result.returncode == 0 and "all equal the oracle" in result.stdout
    verdict = "all equal the oracle" if good else f"FAILED, exit code {result.returncode}\n{result.stdout}"
    print(
        f"{tool}: {'; '.join(summary)}: {', '.join(names)}: {verdict}, {time.perf_counter() - begin:.0f} s", flush=True
    )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="may be repeated; default: all three")
    parser.add_argument("--jobs", type=int, default=4, help="processes at a time (default 4)")
    parser.add_argument("--warm", action="store_true", help="only compile what the cases need")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.cases or list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"no case {unknown[0]!r}; there are {', '.join(CASES)}")
    if options.run:
        _run(names)
        return 0
    if options.warm:
        result = warmup(sum(plans(names).values(), []), load=False, progress=True)
        print(f"{len(result.outcomes)} kernels, {result.compiled} compiled now, in {result.seconds:.0f} s")
        return 0
    tools = options.tool or TOOLS
    shares = max(1, min(len(names), options.jobs // len(tools)))
    work = [(tool, names[share::shares]) for tool in tools for share in range(shares)]
    with ThreadPoolExecutor(options.jobs) as pool:
        return 0 if all(pool.map(lambda item: _sanitize(*item), work)) else 1


if __name__ == "__main__":
    sys.exit(main())
