"""Hopper GEMM for few rows: shape -> configuration, or None for the other kernel. Pure Python, no torch, no GPU.

Measured on an H200 (us, L2 flushed, one process, interleaved; "before" is what this heuristic chose until then):

    M, N, K               W4A4 before   now    W4A16 before   now     a kernel that only reads the weight
    1, 7168, 16384        31.2          28.7   30.2           28.3    22.0
    16, 7168, 16384       37.0          31.3   38.2           31.4
    1, 8192, 8192         22.5          19.9   20.3           18.9    15.0
    16, 8192, 8192        23.7          22.5   23.1           22.3

More shapes, W4A4 (now, and the wgmma kernel beside it): 1 row (4096, 4096) 10.3 and 15.4, (2112, 7168) 10.5 and 16.2,
(24576, 1536) 14.4 and 20.7, (1536, 24576) 14.2 and 21.3; 16 rows 12.8 and 15.7, 12.5 and 16.4, 16.6 and 20.8, 17.8 and
21.2, (7168, 2048) 11.7 and 15.6; 8 rows (7168, 16384) 30.5 and 36.1. At 32 rows the best configuration takes 28.0 where
the wgmma kernel takes 29.8 at (8192, 8192), but 45.5 where it takes 38.6 at (7168, 16384): the dispatch ends at 16.

What it took: 8 warps with 8 units each in flight along K instead of 14 or 16 with 4 (1.7 us); 2 or 4 of them requested
before the activations (0.5 to 1 us); 16 rows of a long K in one pass, by a cluster of 8 (5.7 us; of 4: 4.4).

What did not help at (7168, 16384), M = 1: more bytes in flight than 64 KB an SM (96 KB: +1.8, 128 KB: +2.5); two CTAs
on an SM (0 to +1); a second set of accumulators (0); row tiles that begin at different places along K (+0.4); lanes
that copy whole 128-byte lines (0); TMA boxes of 256 bytes x 4 rows instead of cp.async, two to five stages (+0.2 to
+5). The loop without arithmetic, activations and sums takes 27.1 us, and 26.2 if every warp reads contiguous memory: an
SM waits for memory, and SMs finish 15 % apart.
"""

from __future__ import annotations

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
        while 2 * k_warps * row_warps <= warps and 2 * k_warps <= units:
            k_warps *= 2
        per_warp = ceil_div(units, k_warps)
        columns = columns_of(m)
        separate, early = activations == "nvfp4" and m == 1, 4 if m == 1 else 2
        for most in (MAX_DEPTH, 4, 2, 1):
            depth = ceil_div(per_warp, ceil_div(per_warp, min(most, per_warp)))
            config = SmallMConfig(
                n_tiles, columns, row_tiles, depth, row_warps, k_warps, cluster, 1, decode_to, separate, early
            )
            if not small_m_problems(config, m, split_of(config, n, k, batch, sms)):
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
PREPARED_PER_US = 25e3
"""Elements of the activations that a CTA prepares."""


def estimate(config: SmallMConfig, n: int, k: int, batch: int, sms: int) -> float:
    """Microseconds: the weight at the speed of memory, or the share of the busiest SM, and what stands beside it."""
    split = split_of(config, n, k, batch, sms)
    waves = ceil_div(split.groups * batch, clusters_at_once(config.cluster, config.ctas_per_sm, sms))
    items = ceil_div(ceil_div(split.group_tiles, config.row_tiles), config.row_warps) * config.row_warps
    share = items * config.row_tiles * 16 * min(split.cta_units * UNIT, k) * 0.5625 * config.ctas_per_sm
    stream = max(batch * n * k * 0.5625 / BYTES_PER_US, waves * share / SM_BYTES_PER_US)
    prepared = waves * split.cta_units * UNIT * config.n_tiles * config.columns / PREPARED_PER_US
    return LAUNCH_US + CLUSTER_US[config.cluster] + stream + prepared + (split.passes - 1) * PASS_US
