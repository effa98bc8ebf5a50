"""Hopper GEMM for few rows: shape -> configuration, or None for the other kernel. Pure Python, no torch, no GPU.

Measured on an H200 (us, L2 flushed, one process, interleaved; "before": half lines, no policy, activations behind the
first copies of the weight):

    M, N, K               W4A4 before   now    W4A16 before   now     a kernel that only reads the weight
    1, 7168, 16384        28.7          25.3   28.8           25.7    21.5
    16, 7168, 16384       31.3          28.8   31.7           29.7
    1, 8192, 8192         19.7          16.8   20.1           17.8    15.0
    16, 8192, 8192        22.7          20.9   -              21.7

What it took: the weight leaves the L2 cache first (`copy_async` of kernels/sm90/small_m_weight.py: 2.3 us; most of
what the kernel took longer than one that only reads was memory that the timer's flush had left in the cache to be
written back; with a cache flushed by reading, the two take 23.8 and 19.0 us). Whole cache lines (0.3, 0.8 of a kernel
that only copies). Activations requested before all of the weight, in one batch, and then all of `depth` at once (0.4;
16 rows: 1.6): the first copy starts 1400 clocks after the kernel instead of waiting for them. One row of (8192, 8192)
without a cluster, each warp an eighth of K (0.6). Before that: 8 warps with 8 units each in flight along K instead of
14 or 16 with 4 (1.7 us); 16 rows of a long K in one pass, by a cluster of 8 (5.7 us; of 4: 4.4).

What is left (ncu, M = 1 and 16 at (7168, 16384)): DRAM 62 and 54 % busy where a kernel that only reads reaches 77 %;
issue slots 40 and 51 %, of two warps on a scheduler, at 16 rows hardly ever waiting for memory but for results of
fixed latency. The last warp ends 12 % behind the median one, CTAs end over 2.3 us; a launch is 3.0 us of every figure.

What did not help at (7168, 16384), M = 1: more bytes in flight than 64 KB an SM (0 where nothing but copies); two CTAs
on an SM (0 to +1); a second set of accumulators (0); row tiles that begin at different places along K (+0.4); K shared
by all 8 warps of a CTA (0); bulk copies of 4 or 8 KB, 64 KB in flight (22.9 without any arithmetic), taken from a
counter of all CTAs (+11); TMA boxes of 256 bytes x 4 rows (+0.2 to +5); a warm instruction cache (0); 15 warps with
4 units (16 rows, 0; with 6 +6), 10 with 8 (+2).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from cutefp4.config_small_m import (
    N_TILE,
    UNIT,
    SmallMConfig,
    ceil_div,
    clusters_at_once,
    row_tile_count,
    small_m_problems,
    split_of,
)

MAX_WARPS = 8
MAX_DEPTH = 8
MAX_M = 64
"""Rows that the kernel takes."""


def n_tiles_of(m: int) -> int:
    """8-row tiles of A that hold m rows: 1, 2, 4 or 8."""
    return next(t for t in (1, 2, 4, 8) if t * N_TILE >= m)


def columns_of(m: int) -> int:
    """Rows of A kept of an n tile."""
    return next(c for c in (1, 2, 4, 8) if c >= min(m, N_TILE))


def candidates(m: int, n: int, k: int, batch: int, activations: str, sms: int) -> list[SmallMConfig]:
    """Legal configurations worth comparing: one for each cluster size."""
    n_tiles = n_tiles_of(m)
    row_tiles = 1 if n_tiles <= 4 else 2
    decode_to = "float16" if activations == "nvfp4" else activations
    found = []
    for cluster in (1, 2, 4, 8):
        units = ceil_div(ceil_div(k, UNIT), cluster)
        items = ceil_div(row_tile_count(n), row_tiles)
        per_group = ceil_div(items, max(min(items, clusters_at_once(cluster, 1, sms) // batch), 1))
        warps = MAX_WARPS // row_tiles
        row_warps = ceil_div(per_group, ceil_div(per_group, warps))
        k_warps = 1
        separate = activations == "nvfp4" and m == 1
        if separate and cluster == 1 and units > MAX_WARPS * MAX_DEPTH // 2:
            row_warps = 1
        while 2 * k_warps * row_warps <= warps and 2 * k_warps <= units:
            k_warps *= 2
        per_warp = ceil_div(units, k_warps)
        columns = columns_of(m)
        for most in (MAX_DEPTH, 4, 2, 1):
            depth = ceil_div(per_warp, ceil_div(per_warp, min(most, per_warp)))
            config = SmallMConfig(
                n_tiles, columns, row_tiles, depth, row_warps, k_warps, cluster, 1, decode_to, separate, depth
            )
            split = split_of(config, n, k, batch, sms)
            config = replace(config, chunks=min(ceil_div(4 * n_tiles * columns * split.pass_units, config.threads), 4))
            if not small_m_problems(config, m, split):
                found.append(config)
                break
    return found


def best(m: int, n: int, k: int, batch: int, activations: str, sms: int) -> SmallMConfig | None:
    """The candidate with the smallest estimate, None if there is none."""
    found = candidates(m, n, k, batch, activations, sms) if m <= MAX_M else []
    return min(found, key=lambda config: estimate(config, n, k, batch, sms)) if found else None


MEASURED_M, MEASURED_PASSES = 16, 2
"""Up to where the kernel was measured to be the faster one: rows, and passes over the activations."""


@cache
def choose(m: int, n: int, k: int, batch: int, activations: str, sms: int) -> SmallMConfig | None:
    """The best configuration, None where the other kernel is faster or nobody has measured."""
    found = best(m, n, k, batch, activations, sms) if m <= MEASURED_M else None
    if found is None or split_of(found, n, k, batch, sms).passes > MEASURED_PASSES:
        return None
    return found


LAUNCH_US, PASS_US = 8.15, 3.5
"""Beside the stream of the weight: launch, first loads and sums; every further pass."""
CLUSTER_US = {1: 0.0, 2: 0.15, 4: 1.85, 8: 1.55}
BYTES_PER_US, SM_BYTES_PER_US = 3.3e6, 30e3
PREPARED_PER_US = {False: 25e3, True: 50e3}
"""Elements of the activations that a CTA prepares; True: of a single row of codes."""


def estimate(config: SmallMConfig, n: int, k: int, batch: int, sms: int) -> float:
    """Microseconds: the weight at the speed of memory, or the share of the busiest SM, and what stands beside it."""
    split = split_of(config, n, k, batch, sms)
    waves = ceil_div(split.groups * batch, clusters_at_once(config.cluster, config.ctas_per_sm, sms))
    items = ceil_div(ceil_div(split.group_tiles, config.row_tiles), config.row_warps) * config.row_warps
    share = items * config.row_tiles * 16 * min(split.cta_units * UNIT, k) * 0.5625 * config.ctas_per_sm
    stream = max(batch * n * k * 0.5625 / BYTES_PER_US, waves * share / SM_BYTES_PER_US)
    prepared = waves * split.cta_units * UNIT * config.n_tiles * config.columns / PREPARED_PER_US[config.separate]
    return LAUNCH_US + CLUSTER_US[config.cluster] + stream + prepared + (split.passes - 1) * PASS_US
