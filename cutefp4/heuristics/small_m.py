"""Hopper GEMM for few rows: shape -> configuration, or None where the other kernel is faster. Pure Python."""

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


@cache
def choose(m: int, n: int, k: int, batch: int, activations: str, sms: int) -> SmallMConfig | None:
    """The configuration with the smallest estimate, None if M is too large for this kernel."""
    if m > 16:
        return None
    found = candidates(m, n, k, batch, activations, sms)
    return min(found, key=lambda config: estimate(config, n, k, batch, sms)) if found else None


def estimate(config: SmallMConfig, n: int, k: int, batch: int, sms: int) -> float:
    """Clocks of the slowest CTA, without the launch."""
    split = split_of(config, n, k, batch, sms)
    return split.group_tiles * split.cta_units * (1 + 0.1 * (split.passes - 1)) * (1.0 if config.cluster <= 2 else 1.2)
