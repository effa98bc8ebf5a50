"""Hopper GEMM: shape -> configuration. Pure Python, no torch, no GPU; deterministic.

The candidates are few, and a model of the kernel's time picks one. Its constants are fitted to measurements on an H200
(perf/results). Per work tile and 64 of K a CTA takes the longest of

    tensor core   PRODUCTS * tile_m * tile_n / 32 clocks; PRODUCTS > 1 is what the pipeline loses
    issue         ISSUE_M * tile_m + ISSUE_N * tile_n: decoding, which shares the issue slots with everything else;
                  in the order of memory it takes longer, and hides less
    memory        bytes / BYTES_PER_CLOCK of one SM

and each work tile costs a fixed time on top. Tiles run in waves of one per SM. Where they are few, CTAs share K: as
many to each tile as run at once, or with stream-K every SM the same share of all tiles. That costs the time to write
partial sums, to count in, and to read those of the others; two CTAs to a tile may be a pair, each finishing half of it.
Staging an operand costs its bytes, and a launch that is mostly hidden.

Decoding once per call and multiplying with cuBLAS would cost 2.6 or 4.6 bytes an element of one or both operands and a
workspace for both; the staged kernel pays for the smaller operand alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from cutefp4.budget_sm90 import with_most_stages
from cutefp4.config import HELPER_K, K_BLOCK, Sm90Config, Sm90Operand, operand_tiles
from cutefp4.legality_sm90 import sm90_problems

SMS = 132
"""Of an H100 SXM and an H200."""


@dataclass(frozen=True)
class GemmShape:
    """What the choice depends on.

    m, n, k: of D = A * B^T, K padded to 64. batch: L. activations: "nvfp4", "bfloat16" or "float16". a_scales,
    b_scales: scale layouts. staged_store: bytes of an element of D if it can leave by TMA (16-byte rows), else 0.
    halves_columns: SwiGLU over column pairs, which needs the columns of D on the shared operand.
    staged_tile: bytes of an element of C if it comes through D's staging memory, else 0.
    """

    m: int
    n: int
    k: int
    batch: int = 1
    activations: str = "nvfp4"
    a_scales: str = "tiled"
    b_scales: str = "tiled"
    staged_store: int = 2
    halves_columns: bool = False
    staged_tile: int = 0

    def operands(self, config: Sm90Config) -> tuple[Sm90Operand, Sm90Operand]:
        """Register and shared operand of a configuration."""
        return operand_tiles(config, self.activations, self.a_scales, self.b_scales)


WIDE = Sm90Config(
    tile_m=128,
    tile_n=256,
    k_blocks=2,
    decode_groups=0,
    steps_per_group=2,
    fragment_registers=16,
    store_passes=2,
    raster_group=16,
)
"""Large products: 128 packed rows in registers, 256 rows of a 16-bit shared operand: the least decoding per product.

Measured staged at 8192^3, 1376 us: groups of one step 1365, 256x128 (fragment_registers=32) 1420, 128x128 1744, 256x128
decoded in the kernel 1715; cuBLAS 1373. With fragment_registers=32 this tile took 1598: with one 64-row tile per
warpgroup ptxas then serialises all wgmma (C7513)."""

SQUARE = replace(WIDE, tile_n=128, store_passes=1)
"""128x128: more tiles, and cheap partial sums."""

THREE = replace(WIDE, tile_n=192, store_passes=1)
"""128x192, and with swap_ab other widths, where they leave fewer empty rows. (384, 8192, 8192) 69.4 us, 128x128 89.2;
(192, 8192, 8192) 42.8, 128x256 53.8. And without it where C and D are fp32: C of a whole tile fits
beside 4 MMA stages, and comes under the mainloop: (7168, 2048, 2048) 103.4 us, 128x256 111.3."""

WIDTHS_ROWS = 1024
"""Most rows of A for which widths are compared: beyond, at most 6 % of them are empty."""

PAIRS = (replace(WIDE, cluster=2), WIDE)
"""WIDE in pairs and alone: 184 and 184 us staged at 4096^3, 1391 and 1376 at 8192^3, 619 and 628 at (16384, 7168,
2048); 16-bit activations 726 and 737 at (4096, 8192, 8192)."""

NARROW = (replace(SQUARE, tile_n=64), replace(SQUARE, tile_m=256, tile_n=64, consumer_groups=4))
"""For 33 to 64 rows: (64, 8192, 8192) in 30.0 and 29.1 us with 2 and 4 CTAs to a tile, everything decoded in the kernel
(256x64) 30.0. 256x128 by four warpgroups was never best: (128, 8192, 8192) 40.6 us, 128x128 36.7."""

LONG = replace(PAIRS[0], k_blocks=4, store_passes=4)
"""PAIRS with half as many load stages along K, for many tiles beside 16-bit activations, whose decoding is longer.
Of cuBLAS (PAIRS): N = K = 8192, M = 1024 0.996 (0.989), 4096 0.988 (0.978), 8192 1.010 (0.991); (1024, 7168, 16384)
0.999 (0.991); 4096^3 0.992 (0.986). Staged at 4096^3 it makes no difference."""

DECODED = Sm90Config(k_blocks=2, mma_stages=3, steps_per_group=2, fragment_registers=16, store_passes=2)
"""W4A4 with everything decoded in the kernel, 256x128: where staging would cost more than it saves."""

_SMALL = Sm90Config(swap_ab=True, tile_n=16, k_blocks=4, mma_stages=2, steps_per_group=4)
SMALL = (
    _SMALL,
    replace(_SMALL, tile_m=128),
    replace(_SMALL, tile_n=32),
    replace(_SMALL, tile_n=32, tile_m=128),
    replace(_SMALL, tile_n=64, k_blocks=2),
    replace(_SMALL, tile_n=64, tile_m=128, k_blocks=2),
    replace(_SMALL, tile_n=128, tile_m=128, k_blocks=1, mma_stages=4, steps_per_group=2, fragment_registers=16),
)
"""Weights in registers, 16 to 128 rows of activations; the fewest that cover M waste the least."""

PRODUCTS = ((128, 1.26), (160, 1.17), (192, 1.14), (256, 1.11))
"""By tile_m * tile_n / 128, and between these in proportion. Measured: 645 clocks per 64 of K for 128x128, 740 for
128x160, 945 for 128x208, 1040 to 1150 for 128x256; the tensor core alone would take 512, 640, 832 and 1024."""
ISSUE_M = {2: 3.6, 4: 3.3}
"""Per row of the register operand, by consumer warpgroups. Measured: 455 clocks for 128x64, 830 for 256x64 (4)."""
BEGIN_STAGE, BEGIN_STAGE_NATURAL = 72.0, 190.0
"""Clocks that a load stage takes to begin, where tiles are narrow: with four blocks of K instead of two 31.6 and 32.2
us at (128, 8192, 8192), beside bf16 35.7 and 37.3; 128x144 30.7 and 31.5 at (257, 7000, 4096), 128x160 22.7 and 22.4 at
(129, 7000, 4096), 128x256 50.7 and 50.4 at (256, 8192, 8192)."""
LONG_WIDTH = 144
DECODED_M, DECODED_N, DECODED_LEAST = 2.5, 5.5, 3.6
"""Beside decode warps: per row of both operands, and at least this per row of the register operand. Measured: 860 to
1110 clocks for 256x16, 1000 for 256x64, 1030 for 128x128, 1360 for 256x128."""
NATURAL_ROW, NATURAL_PRODUCTS, NATURAL_BLOCK = 2.7, 0.61, 230.0
"""Beside 16-bit activations decoding and products add up: 920 clocks per 64 of K for 256x16, 1060 for 256x32, 570 for
128x32, 730 for 128x64, 1230 for 256x64, 850 for 128x128, 1600 for 256x128, 1200 for 128x256."""
HBM_BYTES_PER_CLOCK, L2_BYTES_PER_CLOCK = 18.0, 45.0
"""Of one SM."""
TILE_CLOCKS, EPILOGUE_BYTES_PER_CLOCK = 4000.0, 18.0
"""What a work tile costs besides its products: at least the first, and the bytes of its C and D. Measured for 128x256
(128x128): bf16 4000; fp32 8400."""
C_BYTES_PER_CLOCK = {True: 34.0, False: 25.0}
"""The same with C: where the ring holds a tile of it, and where boxes come in the epilogue. Measured, clocks of a tile:
bf16, 128x256 5300; fp32, 128x192 5800; fp32, 128x256 in two passes 10 300."""
WRITE_BYTES_PER_CLOCK, READ_BYTES_PER_CLOCK, ARRIVAL_CLOCKS = 36.0, 42.0, 2900.0
"""Partial sums, of one SM: to the L2 cache, back, and counting in (1.6 us: the writes must have arrived). From clocks
read inside the kernel: 128x256 shared by two CTAs at (256, 8192, 8192): 2.3 us writing, 1.5 counting, 1.8 reading;
128x128 by four at (128, 4096, 4096): 0.9, 1.7 and 2.4."""

LAST_CLOCKS = 900.0
"""What the last CTA of a tile takes longer than that: fitted to 128x128 by four and pairs of 128x64 at (128, 4096,
4096), 19.5 and 17.3 us, beside bf16 19.9 and 18.7."""
SENT_BYTES_PER_CLOCK, SENT_CLOCKS = 20.0, 2400.0
"""Partial sums that a CTA of a cluster sends through shared memory. Fitted; against an exchange of the same halves
through the L2 cache: 22.8 and 23.3 us at (128, 4096, 4096), 65.8 and 66.5 at (256, 8192, 8192), 44.2 and 44.2 at (128,
8192, 8192), the GPU held at its base clock; pairs of 128x256, and 128x128 alone: 31.6 and 30.3 us at (512, 4096, 4096),
50.4 and 51.0 at (256, 8192, 8192)."""

CLUSTERS_AT_ONCE = {2: 66, 4: 30}
"""Of 132 SMs, by size of the cluster, one CTA an SM (cuOccupancyMaxActiveClusters)."""

HELPED_CLOCKS = 4000.0
"""Reading what a helper wrote, and waiting for it. Helped pairs, and the best without: (256, 7168, 16384) 88.4 us and
91.8, (128, 7168, 16384) 49.3 and 54.3, (64, 7168, 16384) 40.6 and 44.6; beside bf16 90.5 and 92.1, 58.9 and 64.2, 49.1
and 52.9. cuBLAS takes 88.1, 75.7 and 71.2."""

PAIR_STORE = 0.6
"""Of a tile's time, where each CTA of a pair finishes half of it. Measured, pairs and the last one finishing: 51.2 and
54.1 us at (256, 8192, 8192), 128x256; 35.5 and 36.1 at (128, 8192, 8192), 128x128; beside bf16 53.5 and 55.0."""

STREAM_NARROW = 3500.0
"""What stream-K costs more than that with few columns: (64, 8192, 8192) 33.8 us instead of 30.0 by two CTAs to a tile,
(32, 7168, 16384) 38.5 instead of 35.7 by four. Wide tiles read slowly, too: 24 MB of partial sums at (256, 7168,
16384), 94 us instead of 92.6 by pairs on 112 SMs."""

STREAM_TILES = 200
"""Most tiles of 128x128 that stream-K is used for, and half as many of 128x256: 128 of these took 128 us at (384, 8192,
8192), where whole tiles take 89. With 256 and 1024 of them (1.9 and 7.8 waves) it took 192 us against 181, and
760 against 717: nothing is left over to save, and two tiles per CTA are exchanged."""

STAGING_BYTES_PER_CLOCK = 2500.0
"""Of the GPU, fitted to whole calls: 39 us for 8192 x 8192. ncu, which holds the clock down, saw 50, and 15 for 4096 x
4096."""
STAGING_CLOCKS = 4000.0
"""Launch and first bytes."""


def _tiles(config: Sm90Config, shape: GemmShape) -> int:
    """Work tiles of a cluster: it runs together, with empty tiles where the rows are too few."""
    rows_m, rows_n = (shape.n, shape.m) if config.swap_ab else (shape.m, shape.n)
    return -(-rows_m // (config.tile_m * config.cluster)) * -(-rows_n // config.tile_n) * shape.batch


def _staging_clocks(shape: GemmShape, rows: int) -> float:
    return STAGING_CLOCKS + 2.5625 * rows * shape.k * shape.batch / STAGING_BYTES_PER_CLOCK


def _block_clocks(config: Sm90Config, rows_n: int) -> float:
    """A tile's time per 64 of K."""
    area, used_n = config.tile_m * config.tile_n, min(config.tile_n, rows_n)
    products, packed = area / 32, 0.5625 * config.tile_m
    if config.decode_groups:
        # Operands of few rows come once per tile row: they hardly count beside the other one.
        memory = (packed + 0.5625 * used_n) / HBM_BYTES_PER_CLOCK
        issue = max(DECODED_LEAST * config.tile_m, DECODED_M * config.tile_m + DECODED_N * config.tile_n)
        return max(products, issue, K_BLOCK * memory)
    memory = max(packed / HBM_BYTES_PER_CLOCK, (packed + 2.0 * used_n / config.cluster) / L2_BYTES_PER_CLOCK)
    begin = BEGIN_STAGE_NATURAL if config.natural_order else BEGIN_STAGE
    saved = begin * (0.5 - 1 / config.k_blocks) if area <= 128 * LONG_WIDTH else 0.0
    return max(max(products * _products_factor(area / 128), direct_clocks(config)) - saved, K_BLOCK * memory)


def _products_factor(area: float) -> float:
    """PRODUCTS of an area; outside of the table its ends."""
    for (low, at_low), (high, at_high) in pairwise(PRODUCTS):
        if area <= high:
            return at_low + (at_high - at_low) * max(0.0, area - low) / (high - low)
    return PRODUCTS[-1][1]


def direct_clocks(config: Sm90Config) -> float:
    """What decoding takes per 64 of K where the warps that multiply do it alone."""
    if config.natural_order:
        return NATURAL_BLOCK + NATURAL_ROW * config.tile_m + NATURAL_PRODUCTS * (config.tile_m * config.tile_n / 32)
    return ISSUE_M[4 if config.consumer_groups == 4 else 2] * config.tile_m


def exchange_clocks(config: Sm90Config, others: float, segments: int = 1) -> float:
    """A CTA writes its partial sums of some tiles, and the last one of a tile reads those of the others; or it sends
    to every CTA of a cluster what that one finishes."""
    if config.split_pair:
        return SENT_CLOCKS + config.exchanged_bytes / SENT_BYTES_PER_CLOCK
    partial = 4.0 * config.tile_m * config.tile_n
    return (
        LAST_CLOCKS
        + segments * (partial / WRITE_BYTES_PER_CLOCK + ARRIVAL_CLOCKS)
        + others * partial / READ_BYTES_PER_CLOCK
    )


def estimate(config: Sm90Config, shape: GemmShape, sms: int = SMS) -> float:
    """Clocks of a GEMM, without the launch."""
    rows_n = shape.m if config.swap_ab else shape.n
    units, slots = _tiles(config, shape), max(1, _at_once(config, sms) // config.cluster)
    block, stages = config.k_blocks * _block_clocks(config, rows_n), -(-shape.k // config.tile_k)
    before = _staging_clocks(shape, rows_n) if config.staged else 0.0
    moved = config.tile_m * config.tile_n * (shape.staged_store + shape.staged_tile)
    bytes_per_clock = C_BYTES_PER_CLOCK[config.store_passes == 1] if shape.staged_tile else EPILOGUE_BYTES_PER_CLOCK
    per_tile = max(TILE_CLOCKS, moved / bytes_per_clock)
    if config.stream_k:
        ctas = min(units * stages, slots)
        tiles, wide = max(1.0, units / ctas), max(1.0, config.tile_n / 128)
        exchange = exchange_clocks(config, (1 + ctas / units) * wide, 2) + STREAM_NARROW * (config.tile_n <= 64)
        return before + units * stages / ctas * block + tiles * per_tile + exchange
    if config.split_pair:
        per_tile *= PAIR_STORE
    waves, share = -(-units * config.splits // slots), -(-stages // config.splits)
    exchange = exchange_clocks(config, config.splits - 1) if config.splits > 1 else 0.0
    if config.helped:
        share = -(-(stages - helped_stages(config, units, stages, _at_once(config, sms))) // config.splits)
        exchange += HELPED_CLOCKS
    return before + waves * (share * block + per_tile + exchange)


def helped_stages(config: Sm90Config, tiles: int, stages: int, ctas: int) -> int:
    """Stages of each tile that helpers take: what `HelpedScheduler` computes, as it does."""
    left = max(ctas - tiles * config.splits, 0)
    helpers = left - left % config.splits
    if not helpers:
        return 0
    rounds = -(-tiles // helpers)
    return max(stages - config.splits * rounds * (HELPER_K // config.tile_k), 0) // (config.splits * rounds + 1)


def _at_once(config: Sm90Config, sms: int) -> int:
    """CTAs that run side by side."""
    size = config.cluster_size
    return sms if size == 1 else size * (sms * CLUSTERS_AT_ONCE[size] // SMS)


def candidates(shape: GemmShape, batch_invariant: bool = False, sms: int = SMS) -> list[Sm90Config]:
    """Configurations worth comparing for a shape, with and without sharing K; all of them legal."""
    found = []
    for base in _bases(shape, batch_invariant):
        config = _with_passes(base, shape)
        if config is None:
            continue
        found.append(config)
        if base.swap_ab and not batch_invariant:
            found += _sharing_k(config, shape, sms)
    return found


def _with_passes(base: Sm90Config, shape: GemmShape) -> Sm90Config | None:
    """The configuration with as many stages as fit beside D's staging memory; None if it cannot run.

    D of fp32 takes twice that memory. C is loaded while a tile is multiplied only as far as the ring holds it: bf16,
    4096^3, one pass 191.6 us, two 193.2, four 201.2 (without C 186.3, 185.8 and 187.3); fp32, 7168 x 2048, K = 512,
    128x128, one pass 47.4 us, two 50.6.
    """
    operands, wide = shape.operands(base), 2 if shape.staged_store == 4 else 1
    choices = [base.store_passes * wide]
    if shape.staged_tile:
        choices = [1, wide] if base.decode_groups == 0 else [wide]
    for passes in choices:
        config = with_most_stages(replace(base, store_passes=passes), *operands, shape.staged_store)
        if not sm90_problems(config, *operands, shape.staged_store):
            return config
    return None


def _bases(shape: GemmShape, batch_invariant: bool) -> list[Sm90Config]:
    """Tiles worth comparing, before their stages are counted."""
    a4 = shape.activations == "nvfp4"
    wide = [replace(c, staged=a4) for c in (*PAIRS, SQUARE)]
    if shape.halves_columns:
        bases = [*wide, DECODED]
    elif batch_invariant:
        bases = [replace(WIDE, swap_ab=True, staged=a4)]
    else:
        wide += [replace(THREE, staged=a4)] if shape.staged_tile == 4 and shape.k > 1024 else []
        small = [c for c in SMALL if c.tile_n == 16 or c.tile_n < 2 * shape.m]
        swapped = _swapped(shape)
        bases = [*wide, *swapped, *small, DECODED] if a4 else [*swapped, *(direct(c) for c in small)]
    return [replace(base, decode_to="float16" if a4 else shape.activations) for base in bases]


def _swapped(shape: GemmShape) -> list[Sm90Config]:
    """Of these, the tiles with the weight in registers and 16 bits beside it; longer stages first: they win a tie."""
    a4 = shape.activations == "nvfp4"
    narrow = [c for c in NARROW if c.tile_n < 2 * shape.m and (a4 or c.consumer_groups == 2)]
    found = [*PAIRS, SQUARE, *(replace(THREE, tile_n=width) for width in _widths(shape.m)), *narrow]
    if shape.k % (4 * K_BLOCK) == 0:
        narrow = [c for c in found if c.tile_n <= LONG_WIDTH and c.consumer_groups == 2]
        found = [*(replace(c, k_blocks=4) for c in narrow), *found]
        if not a4 and shape.staged_store == 2 and _tiles(replace(LONG, swap_ab=True), shape) > STREAM_TILES // 2:
            found = [LONG, *found]
    return [replace(c, staged=a4, swap_ab=True) for c in found]


def _widths(m: int) -> list[int]:
    """Widths of a tile, between those of SQUARE and WIDE, that few or no rows of A leave empty."""
    fewest = -(-m // 256)
    widths = {-(-m // (tiles * step)) * step for tiles in (fewest, fewest + 1) for step in (16, 32)}
    return sorted(width for width in widths if 128 < width < 256 and m <= WIDTHS_ROWS)


def _sharing_k(config: Sm90Config, shape: GemmShape, sms: int) -> list[Sm90Config]:
    """The configuration with K shared: by stream-K, and by as many CTAs to a tile as run at the same time."""
    tiles = _tiles(config, shape) * config.cluster
    splits = min(sms // tiles, -(-shape.k // config.tile_k))
    area = config.tile_m * config.tile_n // 128
    found = [replace(config, stream_k=True)] if tiles * max(area, 128) <= STREAM_TILES * 128 else []
    if splits > 1:
        found.append(replace(config, splits=splits))
    for part in (2, 4):
        # A part of D is staged, in as much memory.
        passes = max(1, config.store_passes // part)
        pair = replace(config, splits=part, split_pair=True, store_passes=passes)
        if config.cluster > 1 or part > splits or tiles * part > _at_once(pair, sms):
            continue
        pair = with_most_stages(pair, *shape.operands(pair), shape.staged_store)
        if sm90_problems(pair, *shape.operands(pair), shape.staged_store):
            continue
        found.append(pair)
        if part == 2 and helped_stages(pair, tiles, -(-shape.k // pair.tile_k), _at_once(pair, sms)):
            found.append(replace(pair, helped=True))
    return found


def direct(config: Sm90Config) -> Sm90Config:
    """A configuration with decode warps, for 16-bit activations."""
    return replace(config, decode_groups=0, steps_per_group=2, fragment_registers=16)


def choose(shape: GemmShape, sms: int = SMS, batch_invariant: bool = False) -> Sm90Config:
    """The configuration with the smallest estimate; the first one wins a tie.

    With `batch_invariant` the result does not depend on m: one tile shape, K never split, so that every row of D is
    summed in the same order whatever else is in the batch.
    """
    return min(candidates(shape, batch_invariant, sms), key=lambda config: estimate(config, shape, sms))
