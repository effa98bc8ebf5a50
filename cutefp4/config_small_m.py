"""Hopper GEMM for few rows of A: configuration, shared-memory budget, legality. Pure Python.

Units of the kernel (kernels/sm90/small_m.py):

    row tile   16 rows of the weight, the tall side of one mma.sync: 4 rows r .. r+3 of each 32-row quarter of a 128-row
               group (a 128x4 scale tile keeps the scales of those in 64 neighbouring bytes)
    K unit     128 elements: a quad of threads reads 64 bytes of a row, 16 bytes a thread
    n tile     8 rows of A
"""

from __future__ import annotations

from dataclasses import dataclass

from cutefp4.config import choice_problems

SMEM_BYTES = 232448 - 1024
"""Dynamic shared memory of a CTA on an H100 or H200, less what a CTA's static part may take."""

REGISTERS = 65536
UNIT = 128
N_TILE = 8
PARTIAL_BYTES = 512
"""One 16x8 tile of fp32 partial sums."""
SLOT_BYTES = 1024 + 256
"""A K unit of a row tile in flight: codes and, of tiled scales, what each lane takes."""


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class SmallMConfig:
    """What shapes the code of the small-M kernel.

    Attributes:
        n_tiles: 8-row tiles of A: M <= columns * n_tiles.
        columns: rows of A kept of an n tile; below 8 (one n tile alone) the others repeat them, and are never stored.
        row_tiles: row tiles that a warp multiplies with the same activations.
        depth: K units of every row tile that a warp keeps in flight.
        row_warps, k_warps: warps of a CTA along the weight's rows and along K.
        cluster: CTAs that share K; they add their sums through distributed shared memory.
        ctas_per_sm: of which registers and shared memory must have room.
        decode_to: "float16" or "bfloat16".
        separate: one row of NVFP4 activations whose scales multiply sums (kernels/sm90/small_m_single.py).
        early: of the `depth` K units those that are requested before the activations are prepared. All of them make
            the activations wait behind the weight (W4A4, M = 1: the main loop began 9000 clocks after the kernel).
        chunks: of 32 activations, loaded by a thread at once. Enough of them for a pass, and no load waits behind the
            weight.
    """

    n_tiles: int = 1
    columns: int = 8
    row_tiles: int = 1
    depth: int = 4
    row_warps: int = 16
    k_warps: int = 1
    cluster: int = 4
    ctas_per_sm: int = 1
    decode_to: str = "float16"
    separate: bool = False
    early: int = 2
    chunks: int = 2

    @property
    def warps(self) -> int:
        return self.row_warps * self.k_warps

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def round_units(self) -> int:
        """K units of one step of all warps along K."""
        return self.k_warps * self.depth

    @property
    def registers_available(self) -> int:
        """Per thread, as ptxas rounds them."""
        return min(255, REGISTERS // (self.threads * self.ctas_per_sm) // 8 * 8)

    @property
    def registers_needed(self) -> int:
        """Estimate: accumulators, one unit of activations, a decoded fragment, addresses."""
        return (4 * self.n_tiles + 4) * self.row_tiles + 80


@dataclass(frozen=True)
class SmallMSplit:
    """How one product is shared; values of a launch, which do not change code.

    Attributes:
        tiles: row tiles of the weight. groups: clusters per batch entry. group_tiles: row tiles of each.
        cta_units: K units of each CTA of a cluster.
        pass_units: how many of them have their activations in shared memory at once.
    """

    tiles: int
    groups: int
    group_tiles: int
    cta_units: int
    pass_units: int

    @property
    def passes(self) -> int:
        return ceil_div(self.cta_units, self.pass_units)


def activation_bytes(config: SmallMConfig, split: SmallMSplit) -> int:
    """Shared memory of the prepared activations of one pass: 16 bits an element."""
    return split.pass_units * unit_bytes(config) + zero_bytes(config)


def unit_bytes(config: SmallMConfig) -> int:
    """Bytes of the prepared activations of a K unit."""
    return UNIT * 2 + 16 if config.separate else config.n_tiles * 4 * word_bytes(config)


def word_bytes(config: SmallMConfig) -> int:
    """Bytes of a quarter of them, of an n tile: what one load of a warp brings, and a gap for other banks."""
    return config.columns * 64 + 16


def zero_bytes(config: SmallMConfig) -> int:
    """Bytes of zeros and a constant behind them."""
    return config.depth * UNIT * 2 + 16 if config.separate else 0


def partial_bytes(config: SmallMConfig, split: SmallMSplit) -> int:
    """Shared memory of the partial sums that a CTA finishes: those of its row tiles from every CTA and K warp."""
    owned = ceil_div(split.group_tiles, config.cluster)
    return owned * config.n_tiles * config.cluster * config.k_warps * PARTIAL_BYTES


def launch_numbers(config: SmallMConfig, split: SmallMSplit) -> tuple[int, ...]:
    """What the kernel is told of a split.

    Returns:
        (groups, row items of every group, groups that have one more, K units of a CTA and of a pass, passes, bytes of
        activations and of partial sums). An item is `row_tiles` row tiles, group g has every groups-th of them.
    """
    each, more = divmod(ceil_div(split.tiles, config.row_tiles), split.groups)
    shared = activation_bytes(config, split), partial_bytes(config, split)
    return split.groups, each, more, split.cta_units, split.pass_units, split.passes, *shared


def ring_bytes(config: SmallMConfig) -> int:
    """Shared memory of the weight in flight."""
    return config.warps * config.row_tiles * config.depth * SLOT_BYTES


def row_tile_count(rows: int) -> int:
    """Row tiles of a weight: 8 per 128 rows, fewer at the end if no quarter needs them."""
    rest = rows % 128
    return rows // 128 * 8 + (8 if rest >= 32 else ceil_div(rest, 4))


def clusters_at_once(cluster: int, ctas_per_sm: int, sms: int) -> int:
    """Clusters that run side by side.

    A cluster lives in one GPC, whose SMs need not be a multiple of it: of 4 and of 8 CTAs, one on each SM, an H200
    holds 30 and 15, not 33 and 16. One more, and everything waits for a second wave.
    """
    usable = sms * ctas_per_sm
    return max((usable if cluster <= 2 else usable * 10 // 11) // cluster, 1)


def split_of(config: SmallMConfig, n: int, k: int, batch: int, sms: int) -> SmallMSplit:
    """Share a product of a weight (batch, n, k): every SM gets a CTA, every CTA the same work, nearly.

    Passes are as long as shared memory allows.
    """
    tiles = row_tile_count(n)
    items = ceil_div(tiles, config.row_tiles)
    room = max(clusters_at_once(config.cluster, config.ctas_per_sm, sms) // batch, 1)
    group_tiles = ceil_div(items, min(items, room)) * config.row_tiles
    groups = ceil_div(tiles, group_tiles)
    cta_units = ceil_div(ceil_div(k, UNIT), config.cluster)
    longest = ceil_div(cta_units, config.round_units) * config.round_units
    split = SmallMSplit(tiles, groups, group_tiles, cta_units, longest)
    budget = SMEM_BYTES // config.ctas_per_sm - partial_bytes(config, split) - ring_bytes(config) - zero_bytes(config)
    most = budget // unit_bytes(config) // config.round_units * config.round_units
    if 0 < most < longest:
        per_pass = ceil_div(cta_units, ceil_div(cta_units, most))
        longest = ceil_div(per_pass, config.round_units) * config.round_units
        return SmallMSplit(tiles, groups, group_tiles, cta_units, longest)
    return split


_CHOICES = {
    "n_tiles": (1, 2, 4, 8),
    "columns": (1, 2, 4, 8),
    "row_tiles": (1, 2, 4),
    "depth": tuple(range(1, 17)),
    "row_warps": tuple(range(1, 33)),
    "k_warps": (1, 2, 4, 8, 16),
    "cluster": (1, 2, 4, 8),
    "ctas_per_sm": (1, 2, 3, 4),
    "decode_to": ("float16", "bfloat16"),
    "separate": (False, True),
    "early": tuple(range(17)),
    "chunks": tuple(range(1, 9)),
}


def small_m_problems(config: SmallMConfig, m: int, split: SmallMSplit) -> list[str]:
    """Every reason why the small-M kernel cannot run a product with this configuration; empty if it can."""
    found = choice_problems(config, _CHOICES)
    if found:
        return found
    if config.columns < N_TILE and config.n_tiles > 1:
        found.append(f"columns={config.columns} with n_tiles={config.n_tiles}: only a single n tile may be narrower")
    if config.separate and config.columns > 1:
        found.append(f"separate with columns={config.columns}: it takes one row of A")
    if m > config.columns * config.n_tiles:
        found.append(f"M = {m} rows do not fit n_tiles={config.n_tiles} of {config.columns} rows")
    if config.threads > 1024:
        found.append(f"{config.threads} threads, at most 1024")
    elif config.registers_needed > config.registers_available:
        found.append(f"a thread needs about {config.registers_needed} registers of {config.registers_available}")
    total = activation_bytes(config, split) + partial_bytes(config, split) + ring_bytes(config)
    if total > SMEM_BYTES // config.ctas_per_sm:
        found.append(f"{total} bytes of shared memory, {SMEM_BYTES // config.ctas_per_sm} are available")
    return found
