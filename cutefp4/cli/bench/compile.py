"""What a kernel costs before its first launch, for each architecture; needs no GPU.

memory hit   compile.get(plan) alone
disk hit     an entry read, checked, loaded; target 30 ms (the first one also loads the DSL's libraries)
cold         the compiler, a quantisation kernel; target 5 s
cold GEMM    the compiler, the GEMM for 4096^3
"""

from __future__ import annotations

import os
import tempfile
from unittest import mock

from cutefp4 import compile as kernel_cache
from cutefp4.cli.bench.launch import TARGETS, once, rows_plan, seconds_of
from cutefp4.cli.bench.session import Session
from cutefp4.cli.sweep.case import Case
from cutefp4.cli.sweep.operations import operation_plans
from cutefp4.cli.sweep.target import target_for
from cutefp4.timing import HostClock, Table, Variant, measure

SIZES = (512, 1024, 2048, 4096, 6144)
"""Row lengths whose kernels are compiled."""
ARCHS = ("sm_90a", "sm_100a")


def cache_rows(table: Table, arch: str) -> None:
    """Cold compiles, disk hits and memory hits, in a cache directory of their own."""
    plans = list(dict.fromkeys(rows_plan(arch, n) for n in SIZES))
    with tempfile.TemporaryDirectory() as scratch, mock.patch.dict(os.environ, {"CUTEFP4_CACHE_DIR": scratch}):
        kernel_cache.reset()
        first = seconds_of(lambda: kernel_cache.artifacts(plans[0]))
        table.add({"case": "cold, first", "arch": arch}, once("cold", [first]), target_us=TARGETS["cold"])
        samples = [seconds_of(lambda plan=plan: kernel_cache.artifacts(plan)) for plan in plans[1:]]
        table.add({"case": "cold", "arch": arch}, once("cold", samples), target_us=TARGETS["cold"])
        first = seconds_of(lambda: kernel_cache.get(plans[0]))
        table.add({"case": "disk hit, first", "arch": arch}, once("disk hit", [first]), target_us=TARGETS["disk hit"])
        samples = [seconds_of(lambda plan=plan: kernel_cache.get(plan)) for plan in plans[1:]]
        table.add({"case": "disk hit", "arch": arch}, once("disk hit", samples), target_us=TARGETS["disk hit"])
        plan, get = plans[0], kernel_cache.get
        timing = measure([Variant("memory hit", lambda i: get(plan))], clock=HostClock(calls=10_000, synchronize=False))
        table.add({"case": "memory hit", "arch": arch}, timing["memory hit"])
        stats = kernel_cache.stats()
        if (stats.compiles, stats.disk_hits) != (len(plans), len(plans)):
            raise RuntimeError(f"the cache did not do what is being measured: {stats}")
    kernel_cache.reset()


def gemm_row(table: Table, arch: str) -> None:
    """A cold compile of the dense GEMM."""
    case = Case("TN", 4096, 4096, 4096)
    plans = operation_plans(case, target_for(arch, case))
    with tempfile.TemporaryDirectory() as scratch, mock.patch.dict(os.environ, {"CUTEFP4_CACHE_DIR": scratch}):
        kernel_cache.reset()
        samples = [seconds_of(lambda: [kernel_cache.artifacts(plan) for plan in plans])]
    table.add({"case": "cold GEMM", "arch": arch}, once("cold GEMM", samples), target_us=TARGETS["cold"])
    kernel_cache.reset()


def bench(session: Session) -> None:
    """Both architectures."""
    for arch in ARCHS:
        if session.may_start(arch, 8.0):
            cache_rows(session.table, arch)
            gemm_row(session.table, arch)
    for row in session.table.rows:
        session.say(f"compile {row['arch']} {row['case']}: {row['median_us'] / 1e3:.4g} ms")
