"""Blackwell GEMM: shape -> configuration, by the predicted time of `schedule_model_sm100`. Pure Python, deterministic.

No Blackwell GPU has run the kernel: every number here is a prediction.
"""

from __future__ import annotations

from dataclasses import replace

from cutefp4.config_sm100 import TILE_K, Sm100Config, most_stages, sm100_problems
from cutefp4.schedule_model_sm100 import GemmShape, estimate, with_sms

MAX_STAGES = 8


def with_most_stages(config: Sm100Config, column_vectors: int = 2, tiles: int = 0) -> Sm100Config:
    """The configuration with as many stages as fit, at most MAX_STAGES; column_vectors, tiles: see `sm100_smem`."""
    return replace(config, stages=min(most_stages(config, column_vectors, tiles), MAX_STAGES))


CANDIDATES = tuple(
    with_most_stages(Sm100Config(tile_m=128 * group, tile_n=tile_n, cluster_m=m, cluster_n=n))
    for group, m, n in ((2, 2, 1), (1, 1, 1))
    for tile_n in (256, 192, 128, 64)
)
"""Configurations for many rows. Larger clusters are legal, too, but the model never preferred one."""

SMALL_M = 128
SMALL = tuple(
    with_most_stages(Sm100Config(tile_m, tile_n, cluster_m, 1, swap_ab=True, splits=splits))
    for tile_m, tile_n, cluster_m, shares in (
        (128, 64, 1, (1, 2, 3, 4, 5, 6, 8, 12, 16)),
        (256, 64, 2, (1, 2, 3, 4, 6, 8)),
        (256, 128, 2, (1, 2, 3, 4, 6, 8)),
    )
    for splits in shares
)
"""Configurations for at most SMALL_M rows: the weight fills the 128 or 256 rows of the MMA, and K is shared.

Pairs read each activation once for 256 rows of the weight: 128 x 7168 over 16384 is predicted 1.30x faster for it."""

_INVARIANT_M = 1024


def staged_tiles(config: Sm100Config, shape: GemmShape) -> int:
    """Matrices that the epilogue of a configuration reads through shared memory: C, unless it is read transposed
    (swap_ab), or by the last CTA alone (splits)."""
    return 0 if config.swap_ab or config.splits > 1 else shape.tiles


def choose(shape: GemmShape, sms: int, batch_invariant: bool = False, swap: bool = True) -> Sm100Config:
    """The candidate with the smallest predicted time; of equal ones the one with the fewest rounds and shares of K.

    The scheduler follows from the rounds of tiles. With one round there is nothing to hand out. With more, both take
    the same predicted time on an idle GPU, but a static grid gives every cluster its share in advance: all would wait
    for one that starts late because a kernel of another stream holds its SM. Launch control does not.

    Args:
        sms: multiprocessors of the device.
        batch_invariant: do not look at M.
        swap: whether D may be computed transposed.
    """
    machine = with_sms(sms)
    seen = replace(shape, m=_INVARIANT_M) if batch_invariant else shape
    small = [replace(c, swap_ab=swap) for c in SMALL if c.splits <= -(-shape.k // TILE_K)] if seen.m <= SMALL_M else []
    needs = {c: (shape.column_vectors, staged_tiles(c, shape)) for c in (*CANDIDATES, *small) if c.cluster_size <= sms}
    fitting = [(with_most_stages(c, *need), need) for c, need in needs.items()]
    legal = [c for c, need in fitting if not sm100_problems(c, *need)]
    predicted = {c: estimate(c, seen, machine) for c in legal}
    # Many shares of K are equally fast where memory is the limit: the fewest partial sums then.
    best = min(legal, key=lambda c: (predicted[c].us, predicted[c].waves, c.splits))
    return replace(best, scheduler="clc" if predicted[best].waves > 1 else "static")
