"""Blackwell GEMM: a model of the kernel's time, and shape -> configuration by it. Pure Python, deterministic.

No Blackwell GPU has run the kernel: every number here is a prediction. Per work tile and stage of 256 along K a CTA
takes the longest of

    mma    128 * tile_n * 256 products at 16384 per clock and SM
    smem   what TMA writes, tcgen05.mma and tcgen05.cp read, at 128 bytes per clock (assumed to share one port)
    l2     what TMA brings to this SM, slices that neighbours multicast not counted, at 64 bytes per clock (assumed)

Rows behind the end of a matrix are filled with zeros: they cost smem and mma, not l2. The epilogue of a tile runs
beside the mainloop of the next: a tile takes the longer of the two. On top come the first fill of the pipeline, the
last epilogue, the launch, and with split-K writing and reading the partial sums. All that is never less than the bytes
that must cross HBM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cutefp4.config_sm100 import (
    CTA_ROWS,
    K_BLOCKS,
    ROW_BYTES,
    SCALE_TILE_BYTES,
    TILE_K,
    Sm100Config,
    most_stages,
    sm100_problems,
    stage_bytes,
)


@dataclass(frozen=True)
class Machine:
    """What the model knows of a GPU.

    Attributes:
        sms: multiprocessors. clock: GHz at which the products per clock give the published peak.
        products: fp4 multiply-adds per clock and SM. smem, l2: bytes per clock and SM. hbm: GB/s that a good kernel
            reaches. latency: clocks from a TMA's issue to its bytes. launch: us that any launch takes.
    """

    sms: int = 148
    clock: float = 1.85
    products: int = 16384
    smem: int = 128
    l2: int = 64
    hbm: float = 6900.0
    latency: int = 1500
    launch: float = 2.0


B200 = Machine()
MAX_STAGES = 8
EPILOGUE_SLOTS = 2.95
"""Instructions per column of an epilogue warp, default tree, besides storing: counted by perf/schedule_model.py."""
EPILOGUE_PANEL = 150
"""Clocks of a panel of 64 columns that nothing hides: two reads of tensor memory, and the store's fences."""


@dataclass(frozen=True)
class GemmShape:
    """m, n, k of D = A * B^T; batch: L; out_bytes, c_bytes: of an element of D, C (0: none); column_vectors: of N."""

    m: int
    n: int
    k: int
    batch: int = 1
    out_bytes: int = 2
    c_bytes: int = 0
    column_vectors: int = 2


@dataclass(frozen=True)
class Estimate:
    """Predicted time and where it goes.

    Attributes:
        us: of the whole launch. limiter: "mma", "smem", "l2", "epilogue", "hbm" or "latency".
        stage: clocks per stage by resource. mainloop, epilogue: clocks per tile. waves: rounds of tiles per cluster.
        hbm_us: bytes / bandwidth. mma_share: of the MMA peak of the whole GPU. hbm_share: of `Machine.hbm`.
    """

    us: float
    limiter: str
    stage: dict[str, float]
    mainloop: float
    epilogue: float
    waves: int
    hbm_us: float
    mma_share: float
    hbm_share: float


def stage_clocks(config: Sm100Config, rows: tuple[int, int], machine: Machine = B200) -> dict[str, float]:
    """Clocks per stage of one CTA by resource; see the module's text.

    rows: of the kernel's A and B, which may be fewer than a tile's.
    """
    c, size = config, stage_bytes(config)
    mma = CTA_ROWS * c.tile_n * TILE_K / machine.products
    # Every byte is written once by TMA and read once by tcgen05.
    smem = 2 * size.total / machine.smem
    share_a, share_b = min(1.0, rows[0] / CTA_ROWS), min(1.0, rows[1] / c.tile_n)
    brought = share_a * size.a / c.a_slices + size.sfa / c.a_slices
    brought += share_b * size.b / c.b_slices + size.sfb / c.sfb_slices
    return {"mma": mma, "smem": smem, "l2": brought / machine.l2}


def hbm_bytes(shape: GemmShape) -> float:
    """Bytes that must cross HBM once: codes and scales, C and D."""
    operands = (shape.m + shape.n) * shape.k * (ROW_BYTES + K_BLOCKS * SCALE_TILE_BYTES / 128) / TILE_K
    return shape.batch * (operands + shape.m * shape.n * (shape.out_bytes + shape.c_bytes))


def clusters_at_once(config: Sm100Config, sms: int) -> int:
    """Clusters that run side by side. A GPC of up to 18 SMs holds whole clusters: larger ones lose a tenth."""
    usable = sms if config.cluster_size <= 2 else sms * 16 // 18
    return max(usable // config.cluster_size, 1)


def estimate(config: Sm100Config, shape: GemmShape, machine: Machine = B200) -> Estimate:
    """The model: time of one launch."""
    c = config
    rows = (shape.n, shape.m) if c.swap_ab else (shape.m, shape.n)
    tiles = -(-rows[0] // (CTA_ROWS * c.cluster_m)) * -(-rows[1] // (c.tile_n * c.cluster_n)) * shape.batch * c.splits
    at_once = clusters_at_once(c, machine.sms)
    waves, stages = -(-tiles // at_once), -(-shape.k // (TILE_K * c.splits))
    per_stage = stage_clocks(c, rows, machine)
    limiter, slowest = max(per_stage.items(), key=lambda item: item[1])
    # A ring of S stages has S - 1 loads under way: latency shows when they do not last that long.
    hidden = (c.stages - 1) * slowest
    if hidden < machine.latency:
        limiter, slowest = "latency", machine.latency / (c.stages - 1)
    mainloop = stages * slowest
    columns = min(c.tile_n, rows[1])
    epilogue = columns * (EPILOGUE_SLOTS + shape.out_bytes / 4 + shape.c_bytes / 2) + c.panels * EPILOGUE_PANEL
    if c.splits > 1:
        # Partial sums: written by all, read back by the last; stores and dependent loads through L2.
        epilogue += CTA_ROWS * columns * 4 * (1 + c.splits) / machine.l2 + 2 * machine.latency
    tile = max(mainloop, epilogue) if waves > 1 else mainloop
    if tile > mainloop:
        limiter = "epilogue"
    compute_us = (waves * tile + epilogue + machine.latency) / (machine.clock * 1e3)
    # SMs without work bring no bytes: a lone SM takes at most its L2 port.
    busy = min(tiles, at_once) * c.cluster_size
    rate = min(machine.hbm, busy * machine.l2 * machine.clock)
    hbm_us = hbm_bytes(shape) / rate / 1e3
    if hbm_us + machine.latency / (machine.clock * 1e3) > compute_us:
        limiter, compute_us = "hbm", hbm_us + machine.latency / (machine.clock * 1e3)
    us = compute_us + machine.launch
    products = shape.m * shape.n * shape.k * shape.batch
    peak = machine.sms * machine.products * machine.clock * 1e3
    shares = products / peak / us, hbm_bytes(shape) / machine.hbm / 1e3 / us
    return Estimate(us, limiter, per_stage, mainloop, epilogue, waves, hbm_us, *shares)


def with_most_stages(config: Sm100Config, column_vectors: int = 2) -> Sm100Config:
    """The configuration with as many stages as fit, at most MAX_STAGES."""
    return replace(config, stages=min(most_stages(config, column_vectors), MAX_STAGES))


CANDIDATES = tuple(
    with_most_stages(Sm100Config(tile_m=128 * group, tile_n=tile_n, cluster_m=m, cluster_n=n))
    for group, m, n in ((2, 2, 1), (1, 1, 1))
    for tile_n in (256, 192, 128, 64)
)
"""Configurations for many rows. Larger clusters are legal, too, but the model never preferred one."""

SMALL_M = 128
SMALL = tuple(
    with_most_stages(Sm100Config(tile_n=64, swap_ab=True, splits=splits)) for splits in (1, 2, 3, 4, 5, 6, 8, 12, 16)
)
"""Configurations for at most SMALL_M rows: the weight fills the 128 rows of the MMA, and K is shared."""

_INVARIANT_M = 1024


def choose(shape: GemmShape, sms: int, batch_invariant: bool = False) -> Sm100Config:
    """The candidate with the smallest predicted time; the first of equal ones.

    Args:
        sms: multiprocessors of the device.
        batch_invariant: do not look at M.
    """
    machine = replace(B200, sms=sms)
    seen = replace(shape, m=_INVARIANT_M) if batch_invariant else shape
    small = [c for c in SMALL if c.splits <= -(-shape.k // TILE_K)] if seen.m <= SMALL_M else []
    fitting = (with_most_stages(c, shape.column_vectors) for c in (*CANDIDATES, *small) if c.cluster_size <= sms)
    legal = [c for c in fitting if not sm100_problems(c, shape.column_vectors)]
    return min(legal, key=lambda c: estimate(c, seen, machine).us)
