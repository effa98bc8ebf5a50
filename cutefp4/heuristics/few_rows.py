"""Hopper GEMM for 17 to 96 rows: shape -> configuration, or None for the other kernel. Pure Python, no torch, no GPU.

Measured on an H200 (us, L2 flushed, one process, interleaved; "before": what ran until then; quack: its W4A16):

    M, N, K               W4A16 before   now    quack           W4A4 before   now
    24, 7168, 16384       44.8           35.0
    24, 8192, 8192        29.2           23.6
    32, 7168, 16384       44.8           35.4   43.1            34.8          36.8, not used
    32, 8192, 8192        29.0           23.3   26.1            23.6          25.3, not used
    48, 7168, 16384       54.4           39.2
    48, 8192, 8192        34.3           24.5
    64, 7168, 16384       54.1           40.9   50.3            44.2          43.3, not used
    64, 8192, 8192        33.9           25.2   30.1 to 32.2    28.7          29.0, not used
    96, 7168, 16384       66.4           49.1   72.6            58.5          50.1
    96, 8192, 8192        38.6           32.2   35.3            34.2          33.7

Of three runs, quack's from the first two. 256 rows of the weight to a CTA, by four warpgroups, take 1680 clocks a stage
(64 rows of A), of which the tensor core is busy 1024; 128 rows, with two warpgroups to an atom that share K, 880. Two
wgmma between two decodes instead of one changed nothing (41.8 and 41.4 us). 64 rows to a CTA bring A in too often: 56.0
us. Stages of 128 rows: 6 of them 27.9 us at (64, 8192, 8192), 7 26.0, 8 25.5; 256 rows at (7168, 16384): 4 41.2, and
where the sums lie over the stages 42.4, with 5 42.3.
"""

from __future__ import annotations

from functools import cache

from cutefp4.config_few_rows import STAGE_K, FewRowsConfig, ceil_div, few_rows_problems, with_most_stages
from cutefp4.config_small_m import clusters_at_once

MIN_M, MAX_M = 17, 96
"""Rows that the kernel is used for: fewer are faster by mma.sync (small_m.py), more do not fit the registers."""
MIN_M_NVFP4 = 65
"""Of W4A4: the other kernel's staged activations cost it as much."""

START_US, STAGED_US, WAVE_US = 9.0, 1.8, 4.0
"""Launch, first loads and sums; a million elements of activations; every further wave."""
STAGE_US = {1: (0.2, 0.0024), 2: (0.30, 0.0030), 4: (0.60, 0.0053)}
"""By atoms: of a stage, and more for every row of A."""
CLUSTER_US = {1: 0.0, 2: 0.2, 3: 0.4, 4: 0.6, 8: 1.5}


def candidates(m: int, activations: str) -> list[FewRowsConfig]:
    """Legal configurations worth comparing."""
    decode_to = "float16" if activations == "nvfp4" else activations
    found, tile_n = [], ceil_div(m, 8) * 8
    # With more than 64 rows of A four atoms are no faster (50.0 us, two 49.1), and their epilogue may spill.
    for atoms, k_groups in ((4, 1), (2, 2), (1, 4))[tile_n > 64 :]:
        for cluster in (1, 2, 4, 8):
            # 72 KB of the weight in flight are best. With 64 rows of A and more they do not fit beside the sums.
            config = FewRowsConfig(tile_n, atoms, k_groups, 2, cluster, tile_n > 64 or atoms < 4, 1, decode_to)
            config = with_most_stages(config)
            if not few_rows_problems(config, m):
                found.append(config)
    return found


def best(m: int, n: int, k: int, batch: int, activations: str, sms: int) -> FewRowsConfig:
    """The candidate with the smallest estimate."""
    return min(candidates(m, activations), key=lambda config: estimate(config, n, k, batch, sms))


@cache
def choose(m: int, n: int, k: int, batch: int, activations: str, sms: int, others_us: float) -> FewRowsConfig | None:
    """The best configuration, None where the other kernel, with an estimate of `others_us`, is faster."""
    if not (MIN_M_NVFP4 if activations == "nvfp4" else MIN_M) <= m <= MAX_M:
        return None
    found = best(m, n, k, batch, activations, sms)
    return found if estimate(found, n, k, batch, sms) < others_us else None


def estimate(config: FewRowsConfig, n: int, k: int, batch: int, sms: int) -> float:
    """Microseconds."""
    clusters = ceil_div(n, config.tile_m) * batch
    waves = ceil_div(clusters, clusters_at_once(config.cluster, 1, sms))
    stages = ceil_div(ceil_div(k, STAGE_K), config.cluster)
    fixed, each = STAGE_US[config.atoms]
    stage = fixed + each * config.tile_n
    start = START_US + STAGED_US * config.tile_n * k * batch / 1e6 + CLUSTER_US[config.cluster]
    return start + waves * stages * stage + (waves - 1) * WAVE_US
