"""Hopper GEMM for few rows: shape -> configuration, or None for the other kernel. Pure Python, no torch, no GPU.

Measured on an H200: W4A4, L2 flushed, us. "first" is the kernel with a cluster of 2 and depth 4, before a single row
took an eighth of the work on activations and before their loads were all in flight together:

    M, N, K               first   wgmma kernel   cuBLAS   a kernel that only reads the weight
    1, 7168, 16384        31.3    38.1           70.9     24.4
    16, 7168, 16384       35.9    37.5           71.8     24.5
    1, 8192, 8192         20.5    28.9           43.9     16.8
    16, 8192, 8192        22.2    28.1           43.7     16.8

Clusters of 4 and 8 took 48 and 30 us at M = 1: of 128 such CTAs not all run at once (`clusters_at_once`), and in a size
that does they were not measured. Slots for 8 units instead of 4 gained nothing. M = 32 took 43 us at (8192, 8192) in
that way, where the wgmma kernel takes 30: so the dispatch ends at 16 rows until a cluster of 2 is measured there.
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

MAX_WARPS = 16
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
    row_tiles = 1 if n_tiles <= 2 else 2
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
        for most in (4, 2, 1):
            depth = ceil_div(per_warp, ceil_div(per_warp, min(most, per_warp)))
            config = SmallMConfig(n_tiles, columns_of(m), row_tiles, depth, row_warps, k_warps, cluster, 1, decode_to)
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


LAUNCH_US, PASS_US = 5.0, 1.5
SM_BYTES_PER_US = 3.4e6 / 132
OTHER_CLUSTER = 1.1
"""Prefer the cluster that was measured, where others look no better."""


def estimate(config: SmallMConfig, n: int, k: int, batch: int, sms: int) -> float:
    """Microseconds: the share of the busiest SM, and a fixed time per pass over the activations."""
    split = split_of(config, n, k, batch, sms)
    waves = ceil_div(split.groups * batch, clusters_at_once(config.cluster, config.ctas_per_sm, sms))
    share = split.group_tiles * 16 * min(split.cta_units * UNIT, k) * 0.5625
    us = waves * (share * config.ctas_per_sm / SM_BYTES_PER_US + split.passes * PASS_US)
    return LAUNCH_US + us * (1.0 if config.cluster == 2 else OTHER_CLUSTER)
