"""What one launch of the Blackwell GEMM needs, for `schedule_model`. Every figure that comes out is a PREDICTION.

No Blackwell GPU has run the kernel. Per stage of 256 along K a CTA needs

    mma    128 * tile_n * 256 products at 16384 per clock and SM
    cp     tcgen05.cp: scale tiles into tensor memory, four copies of each, at 512 bytes per clock (assumed); in the
           same queue as the MMAs, so it is added to them
    smem   what TMA writes, tcgen05.mma and tcgen05.cp read, at 128 bytes per clock (assumed to share one port)
    l2     what TMA brings to this SM, slices that neighbours multicast not counted, at 64 bytes per clock (assumed)

and per tile the epilogue needs issue slots (one warp per scheduler: a slot is a clock) and L2 bytes for C and D, and a
fixed time per panel. Rows behind the end of a matrix are filled with zeros: they cost smem and mma, not l2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cutefp4.config_sm100 import CTA_ROWS, K_BLOCKS, ROW_BYTES, SCALE_TILE_BYTES, TILE_K, Sm100Config, stage_bytes
from cutefp4.schedule_model import Estimate, Machine, Work, schedule

B200 = Machine(
    name="B200 (predicted)",
    sms=148,
    clock=1.85,  # GHz at which the products per clock give the published peak of 9 PFLOP/s
    products=16384,
    smem=128,
    l2=64,
    hbm=6900.0,
    latency=1500,
    launch=2.0,
)
EPILOGUE_SLOTS = 2.99
"""Instructions per column of an epilogue warp, default tree, besides storing: counted by perf/schedule_model.py."""
EPILOGUE_PANEL = 150
"""Clocks of a panel of 64 columns that nothing hides: two reads of tensor memory, and the store's fences."""
TMEM_COPY_BYTES = 512
"""Bytes per clock that tcgen05.cp writes to tensor memory: 128 lanes of 4 bytes (assumed)."""


@dataclass(frozen=True)
class GemmShape:
    """m, n, k of D = A * B^T; batch: L; out_bytes, c_bytes: of an element of D, C (0: none); column_vectors: of N;
    tiles: matrices like C whose rows TMA can read."""

    m: int
    n: int
    k: int
    batch: int = 1
    out_bytes: int = 2
    c_bytes: int = 0
    column_vectors: int = 2
    tiles: int = 0


def stage_clocks(config: Sm100Config, rows: tuple[int, int], machine: Machine = B200) -> dict[str, float]:
    """Clocks per stage of one CTA by resource; see the module's text.

    rows: of the kernel's A and B, which may be fewer than a tile's.
    """
    c, size = config, stage_bytes(config)
    copies = 4 * (size.sfa + size.sfb) / TMEM_COPY_BYTES
    mma = CTA_ROWS * c.tile_n * TILE_K / machine.products + copies
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


def work(config: Sm100Config, shape: GemmShape, machine: Machine = B200) -> Work:
    """What a launch of a configuration needs."""
    c = config
    rows = (shape.n, shape.m) if c.swap_ab else (shape.m, shape.n)
    tiles = -(-rows[0] // (CTA_ROWS * c.cluster_m)) * -(-rows[1] // (c.tile_n * c.cluster_n)) * shape.batch * c.splits
    at_once = clusters_at_once(c, machine.sms)
    columns = min(c.tile_n, rows[1])
    crossing = CTA_ROWS * columns * (shape.out_bytes + shape.c_bytes)
    fixed = c.panels * EPILOGUE_PANEL
    if c.splits > 1:
        # Partial sums: written by all, read back by the last; stores and dependent loads through L2.
        fixed += CTA_ROWS * columns * 4 * (1 + c.splits) / machine.l2 + 2 * machine.latency
    return Work(
        stage=stage_clocks(c, rows, machine),
        stages=-(-shape.k // (TILE_K * c.splits)),
        depth=c.stages,
        epilogue={
            # C: loads of 16 bytes, addresses and conversion; from shared memory, without addresses and bounds.
            "issue": columns * (EPILOGUE_SLOTS + shape.out_bytes / 4 + shape.c_bytes / (4 if shape.tiles else 2)),
            "bytes": crossing / machine.l2,
        },
        epilogue_fixed=fixed,
        overlapped=True,
        tiles=tiles,
        at_once=at_once,
        sms=min(tiles, at_once) * c.cluster_size,
        hbm_bytes=hbm_bytes(shape),
        products=shape.m * shape.n * shape.k * shape.batch,
    )


def estimate(config: Sm100Config, shape: GemmShape, machine: Machine = B200) -> Estimate:
    """The predicted time of one launch."""
    return schedule(work(config, shape, machine), machine)


def with_sms(sms: int) -> Machine:
    """A B200 with another number of multiprocessors."""
    return replace(B200, sms=sms)
