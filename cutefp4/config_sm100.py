"""Configurations of the Blackwell GEMM: tensor and shared memory and warp roles as data, and the legality predicate.

Pure Python: no torch, no GPU, no compiler. `sm100_problems` returns every reason why a configuration cannot run, one
line each, and an empty list if it can; `budget_table` prints what a configuration uses.

A *CTA group* is the one or two CTAs that issue one tcgen05.mma together: 128 rows of A and of D per CTA, tile_n columns
of D that a pair shares (each CTA brings half of B's rows, and all of B's scales). A cluster holds whole groups; what
several CTAs of a cluster need is loaded once, in slices, and multicast.

Tensor memory, 512 columns of 128 lanes x 4 bytes; a CTA's accumulator takes tile_n columns:

    tile_n <= 192    | acc 0 | acc 1 | scales |       two accumulators side by side
    tile_n  = 256    | acc 0    0..255                two that overlap in columns 192..255: the epilogue reads
                     |      acc 1  192..447           these first and releases them while it still works on
                     |              scales 448..511   the rest
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import product

SCALE_BLOCK = 64
"""Elements of K of one tcgen05.mma (32 bytes), and of one 128x4 scale tile."""
K_BLOCKS = 4
TILE_K = SCALE_BLOCK * K_BLOCKS
"""Elements of K per stage: 128 bytes of codes, one row of the 128-byte swizzle."""
ROW_BYTES = TILE_K // 2
SCALE_TILE_BYTES = 512
CTA_ROWS = 128

TMEM_COLUMNS = 512
SM100_SMEM_BYTES = 227 * 1024
SM100_REGISTERS = 64 * 1024

PANEL = 64
"""Columns of D that the epilogue reads, and releases, together."""
STORE_BUFFERS = 2
STORE_BUFFER_BYTES = 32 * 128
"""Per epilogue warp: 32 rows of 128 bytes."""
TILE_BUFFERS = 2
TILE_CHUNK_BYTES = 32 * 128
"""Per epilogue warp and matrix that the epilogue reads through shared memory (C): 32 rows of 128 bytes."""
EPILOGUE_WARPS = 4
TILE_MS, TILE_NS = (128, 256), (64, 128, 192, 256)
CLUSTER_SIDES = (1, 2, 4)
MAX_SPLITS = 16
SCHEDULERS = ("static", "clc")
CLC_STAGES = 3
"""Answers of cluster launch control under way: the loads of a tile run while the epilogue is two tiles behind."""


@dataclass(frozen=True)
class Role:
    """One kind of warp: how many, which is the first, and the registers per thread that its code may use."""

    name: str
    first_warp: int
    warps: int
    registers: int


ROLES = (
    # No setmaxnreg: 224 threads may have 255 registers each, and the roles share two warpgroups unevenly.
    Role("epilogue", 0, EPILOGUE_WARPS, 255),
    Role("load", EPILOGUE_WARPS, 1, 255),
    Role("mma", EPILOGUE_WARPS + 1, 1, 255),
    Role("schedule", EPILOGUE_WARPS + 2, 1, 255),
)
LOAD_WARP, MMA_WARP, SCHEDULE_WARP = (role.first_warp for role in ROLES[1:])
THREADS = 32 * sum(role.warps for role in ROLES)
assert THREADS * max(role.registers for role in ROLES) <= SM100_REGISTERS
assert ROLES[0].first_warp % 4 == 0, "a warp reads the 32 tensor-memory lanes of its number modulo 4"


@dataclass(frozen=True)
class Sm100Config:
    """How the Blackwell GEMM kernel tiles a problem.

    Attributes:
        tile_m: rows of D per CTA group: 128 (one CTA) or 256 (two CTAs).
        tile_n: columns of D per CTA group: 64, 128, 192 or 256.
        cluster_m, cluster_n: CTAs of a cluster along M and N: 1, 2 or 4 each, at most 16 together.
        stages: ring of tiles of 256 along K that TMA fills.
        raster_group: cluster tiles along M that neighbouring clusters share a B tile over (L2 reuse).
        swap_ab: the kernel's A is the GEMM's B, and D is written transposed (small M: the weight fills the 128 rows).
        splits: CTAs, or pairs, that share the K of one tile of D; their partial sums are added in a fixed order.
        scheduler: who says what a cluster works on next: "static" (every nth tile of a persistent grid), or "clc"
            (cluster launch control: running clusters take over what has not started).
    """

    tile_m: int = 128
    tile_n: int = 128
    cluster_m: int = 1
    cluster_n: int = 1
    stages: int = 4
    raster_group: int = 8
    swap_ab: bool = False
    splits: int = 1
    scheduler: str = "static"

    @property
    def cta_group(self) -> int:
        """CTAs per tcgen05.mma."""
        return self.tile_m // CTA_ROWS

    @property
    def cluster_size(self) -> int:
        return self.cluster_m * self.cluster_n

    @property
    def b_rows(self) -> int:
        """Rows of B in the shared memory of one CTA."""
        return self.tile_n // self.cta_group

    @property
    def sfb_tiles(self) -> int:
        """128-row scale tiles of B per stage. A tile of 64 or 192 columns may start in the middle of one."""
        return -(-self.tile_n // 128)

    @property
    def a_slices(self) -> int:
        """CTAs that need the same rows of A; each loads a slice for all."""
        return self.cluster_n

    @property
    def b_slices(self) -> int:
        """CTAs that need the same rows of B."""
        return self.cluster_m // self.cta_group

    @property
    def sfb_slices(self) -> int:
        """CTAs that need the same scales of B: those of a pair, too."""
        return self.cluster_m

    @property
    def panels(self) -> int:
        return self.tile_n // PANEL

    @property
    def roles(self) -> tuple[Role, ...]:
        """Kinds of warps of a CTA."""
        return ROLES if self.scheduler == "clc" else ROLES[:-1]

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return 32 * sum(role.warps for role in self.roles)


@dataclass(frozen=True)
class TmemLayout:
    """Columns of tensor memory by use.

    Attributes:
        acc_step: columns between the two accumulators.
        overlapped: whether they share columns, so that the second may start only when the epilogue has read the shared
        panel. sfa, sfb: first column of the scales: 4 per block of 64 along K for A, 4 * sfb_tiles for B.
        used: columns in all.
    """

    acc_step: int
    overlapped: bool
    sfa: int
    sfb: int
    used: int


def tmem_layout(config: Sm100Config) -> TmemLayout:
    """Where accumulators and scales lie."""
    sfa_columns, sfb_columns = 4 * K_BLOCKS, 4 * K_BLOCKS * config.sfb_tiles
    scales = sfa_columns + sfb_columns
    overlapped = 2 * config.tile_n + scales > TMEM_COLUMNS
    step = config.tile_n - PANEL if overlapped else config.tile_n
    sfa = step + config.tile_n
    return TmemLayout(step, overlapped, sfa, sfa + sfa_columns, sfa + scales)


@dataclass(frozen=True)
class StageBytes:
    """Bytes of one stage in the shared memory of one CTA; TMA brings all of them."""

    a: int
    b: int
    sfa: int
    sfb: int

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


def stage_bytes(config: Sm100Config) -> StageBytes:
    """Stage sizes of a configuration."""
    return StageBytes(
        a=CTA_ROWS * ROW_BYTES,
        b=config.b_rows * ROW_BYTES,
        sfa=K_BLOCKS * SCALE_TILE_BYTES,
        sfb=config.sfb_tiles * K_BLOCKS * SCALE_TILE_BYTES,
    )


@dataclass(frozen=True)
class Sm100SmemBudget:
    """Bytes of shared memory of a CTA by use."""

    stages: int
    store: int
    tiles: int
    vectors: int
    small: int

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


def sm100_smem(config: Sm100Config, column_vectors: int = 2, tiles: int = 0) -> Sm100SmemBudget:
    """Shared memory of a configuration.

    Args:
        column_vectors: vectors along N that the epilogue reads (alpha_b, bias).
        tiles: matrices that the epilogue reads through shared memory (C).
    """
    return Sm100SmemBudget(
        stages=config.stages * stage_bytes(config).total,
        store=EPILOGUE_WARPS * STORE_BUFFERS * STORE_BUFFER_BYTES,
        tiles=EPILOGUE_WARPS * tiles * TILE_BUFFERS * TILE_CHUNK_BYTES,
        vectors=EPILOGUE_WARPS * column_vectors * config.tile_n * 4,
        # Barriers, the address of tensor memory, and alignment gaps.
        small=3072,
    )


def split_workspace(config: Sm100Config, m: int, n: int, batch: int = 1) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the partial sums (float32) and of the counters (int32, zero) that a product (batch, m, n) shares K in.

    Every CTA of every cluster tile has its own, CTAs without rows of D too.
    """
    rows, columns = (n, m) if config.swap_ab else (m, n)
    tiles = -(-rows // (CTA_ROWS * config.cluster_m)) * -(-columns // (config.tile_n * config.cluster_n)) * batch
    ctas = tiles * config.cluster_size
    return (ctas * config.splits, EPILOGUE_WARPS, config.tile_n, 32), (ctas, EPILOGUE_WARPS)


def most_stages(config: Sm100Config, column_vectors: int = 2, tiles: int = 0) -> int:
    """Stages that fit beside the rest; column_vectors, tiles: as in `sm100_smem`."""
    budget = sm100_smem(config, column_vectors, tiles)
    return (SM100_SMEM_BYTES - budget.total + budget.stages) // stage_bytes(config).total


def sm100_problems(config: Sm100Config, column_vectors: int = 2, tiles: int = 0) -> list[str]:
    """Why a configuration cannot run; [] if it can. column_vectors, tiles: as in `sm100_smem`."""
    c = config
    shape = [
        (c.tile_m in TILE_MS, f"tile_m={c.tile_m}: 128 (one CTA) or 256 (two CTAs)"),
        (c.tile_n in TILE_NS, f"tile_n={c.tile_n}: one of {TILE_NS} (scales lie in tensor memory by 64 rows)"),
        (c.cluster_m in CLUSTER_SIDES, f"cluster_m={c.cluster_m}: 1, 2 or 4 (scales of a stage are sliced by 4)"),
        (c.cluster_n in CLUSTER_SIDES, f"cluster_n={c.cluster_n}: 1, 2 or 4 (scales of a stage are sliced by 4)"),
        (c.stages >= 2, f"stages={c.stages}: at least 2, or loads never overlap MMAs"),
        (c.raster_group >= 1, f"raster_group={c.raster_group}: at least 1"),
        (1 <= c.splits <= MAX_SPLITS, f"splits={c.splits}: 1 to {MAX_SPLITS}"),
        (
            c.splits == 1 or c.cluster_size == c.cta_group,
            f"splits={c.splits} in a cluster of {c.cluster_m} x {c.cluster_n}: only single CTAs and pairs",
        ),
        (c.scheduler in SCHEDULERS, f"scheduler={c.scheduler!r}: one of {SCHEDULERS}"),
    ]
    problems = [reason for good, reason in shape if not good]
    if problems:
        return problems
    smem, tmem = sm100_smem(c, column_vectors, tiles).total, tmem_layout(c)
    budgets = [
        (
            c.cluster_m % c.cta_group == 0,
            f"cluster_m={c.cluster_m} with tile_m={c.tile_m}: pairs need an even cluster_m",
        ),
        (
            smem <= SM100_SMEM_BYTES,
            f"stages={c.stages} need {smem} bytes of shared memory of {SM100_SMEM_BYTES}: at most "
            f"{most_stages(c, column_vectors, tiles)} stages",
        ),
        (tmem.used <= TMEM_COLUMNS, f"tile_n={c.tile_n} needs {tmem.used} tensor-memory columns of {TMEM_COLUMNS}"),
    ]
    return [reason for good, reason in budgets if not good]


def legal_configs(
    column_vectors: int = 2,
    splits: Iterable[int] = range(1, MAX_SPLITS + 1),
    stages: Iterable[int] | None = None,
    tiles: int = 0,
) -> Iterator[Sm100Config]:
    """Every configuration that `sm100_problems` accepts, but for `raster_group`, which only orders the tiles.

    Args:
        column_vectors, tiles: as in `sm100_smem`.
        splits, stages: the numbers to try; None: every number of stages.
    """
    splits, stages = tuple(splits), None if stages is None else tuple(stages)
    shapes = product(TILE_MS, TILE_NS, CLUSTER_SIDES, CLUSTER_SIDES, (False, True), splits, SCHEDULERS)
    for tile_m, tile_n, cluster_m, cluster_n, swap_ab, split, scheduler in shapes:
        shape = Sm100Config(tile_m, tile_n, cluster_m, cluster_n, 2, 8, swap_ab, split, scheduler)
        if not sm100_problems(shape, column_vectors, tiles):
            for count in stages or range(2, most_stages(shape, column_vectors, tiles) + 1):
                config = replace(shape, stages=count)
                if not sm100_problems(config, column_vectors, tiles):
                    yield config


def budget_table(config: Sm100Config, column_vectors: int = 2, tiles: int = 0) -> str:
    """What a configuration uses, as text: columns of tensor memory, bytes of shared memory, warps and registers."""
    smem, tmem, stage = sm100_smem(config, column_vectors, tiles), tmem_layout(config), stage_bytes(config)
    warps = sum(role.warps for role in config.roles)
    columns = [
        ("acc 0", 0, config.tile_n),
        (
            "acc 1" + " (overlapped: its first panel is the last of acc 0)" * tmem.overlapped,
            tmem.acc_step,
            tmem.acc_step + config.tile_n,
        ),
        ("SFA", tmem.sfa, tmem.sfb),
        ("SFB", tmem.sfb, tmem.used),
    ]
    rows = [
        ("tile", f"{config.tile_m} x {config.tile_n} x {TILE_K}, {config.cta_group} CTA(s) per MMA"),
        ("cluster", f"{config.cluster_m} x {config.cluster_n} CTAs"),
        ("scheduler", {"static": "static, persistent grid", "clc": "cluster launch control"}[config.scheduler]),
        ("tensor memory", f"{tmem.used} of {TMEM_COLUMNS} columns"),
        *(("", f"{first:>6} ..{end - 1:>4}  {name}") for name, first, end in columns),
        ("shared memory", f"{smem.total} of {SM100_SMEM_BYTES} bytes"),
        ("", f"{smem.stages:>6}  {config.stages} stages of A {stage.a}, B {stage.b}, SFA {stage.sfa}, SFB {stage.sfb}"),
        ("", f"{smem.store:>6}  D on its way out"),
        *([("", f"{smem.tiles:>6}  C on its way in")] if tiles else []),
        ("", f"{smem.vectors:>6}  vectors along N"),
        ("", f"{smem.small:>6}  barriers, alignment"),
        ("warps", f"{warps}, {32 * warps} threads, {SM100_REGISTERS} registers"),
        *(("", f"{role.warps:>6}  {role.name}, <= {role.registers} registers per thread") for role in config.roles),
    ]
    return "\n".join(f"{name:<14} {text}" for name, text in rows)
