"""Hopper GEMM: shape -> configuration. Pure Python, no torch, no GPU; deterministic.

The candidates are few, and a model of the kernel's time picks one. Its constants are fitted to measurements on an H200
(perf/results). Per work tile and 64 of K a CTA takes the longest of

    tensor core   PRODUCTS * tile_m * tile_n / 32 clocks; PRODUCTS > 1 is what the pipeline loses
    issue         ISSUE_M * tile_m + ISSUE_N * tile_n: decoding, which shares the issue slots with everything else;
                  in the order of memory it takes longer, and hides less
    memory        bytes / BYTES_PER_CLOCK of one SM

and each work tile costs a fixed time on top. Tiles run in waves of one per SM; with stream-K every SM gets the same
share of all tiles, and the exchange of partial sums costs a fixed time. Staging an operand costs its bytes, and a
launch that is mostly hidden.

Decoding once per call and multiplying with cuBLAS would cost 2.6 or 4.6 bytes an element of one or both operands and a
workspace for both; the staged kernel pays for the smaller operand alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cutefp4.budget_sm90 import with_most_stages
from cutefp4.config import K_BLOCK, Sm90Config, Sm90Operand, operand_tiles
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

PAIRS = (replace(WIDE, cluster=2), WIDE)
"""WIDE in pairs and alone: 184 and 184 us staged at 4096^3, 1391 and 1376 at 8192^3, 619 and 628 at (16384, 7168,
2048); 16-bit activations 726 and 737 at (4096, 8192, 8192)."""

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

PRODUCTS = {128: 1.45, 256: 1.09}
"""By tile_m * tile_n / 128. Measured: 741 clocks per 64 of K for 128x128, 1110 for 128x256, 1127 for 256x128; the
tensor core alone would take 512 and 1024."""
ISSUE_M, ISSUE_N = 4.0, 2.7
"""Per row of the register operand, and of an operand that decode warps decode. Measured: 1360 clocks for 256x128 with
decode warps (8192^3), 870 to 1000 for 128x128, 860 to 1110 for 256x16."""
NATURAL_ROW, NATURAL_PRODUCTS = 3.5, 0.8
"""Beside 16-bit activations decoding and products add up: 920 clocks per 64 of K for 256x16, 1060 for 256x32, 570 for
128x32, 700 for 128x64, 1490 for 256x64, 1000 for 128x128, 1580 to 1780 for 256x128, 1210 for 128x256."""
HBM_BYTES_PER_CLOCK, L2_BYTES_PER_CLOCK = 18.0, 45.0
"""Of one SM."""
TILE_CLOCKS, EPILOGUE_BYTES_PER_CLOCK = 4000.0, 18.0
"""What a work tile costs besides its products: at least the first, and the bytes of its C and D. Measured for 128x256
(128x128): bf16 4000, with C 6500; fp32 8400, with C 15 000 (6300)."""
SPLIT_CLOCKS = {128: 8000.0, 256: 33000.0}
"""By tile_m * tile_n / 128: partial sums of 64 and of 128 KiB. (256, 7168, 16384) took 95 us, of which products,
tiles and staging explain 76; 24 MB of partial sums may be too much for the L2 cache."""

STREAM_TILES = 200
"""Most tiles that stream-K is used for. With 256 and 1024 of them (1.9 and 7.8 waves) it took 192 us against 181, and
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
    packed = 0.5625 * config.tile_m
    issue = ISSUE_M * config.tile_m
    if config.natural_order:
        issue = NATURAL_ROW * config.tile_m + NATURAL_PRODUCTS * area / 32
    if config.decode_groups:
        # Operands of few rows come once per tile row: they hardly count beside the other one.
        memory = (packed + 0.5625 * used_n) / HBM_BYTES_PER_CLOCK
        return max(area / 32, issue + ISSUE_N * config.tile_n, K_BLOCK * memory)
    memory = max(packed / HBM_BYTES_PER_CLOCK, (packed + 2.0 * used_n / config.cluster) / L2_BYTES_PER_CLOCK)
    return max(area / 32 * PRODUCTS.get(area // 128, 1.45), issue, K_BLOCK * memory)


def estimate(config: Sm90Config, shape: GemmShape, sms: int = SMS) -> float:
    """Clocks of a GEMM, without the launch."""
    rows_n = shape.m if config.swap_ab else shape.n
    units, slots = _tiles(config, shape), max(1, sms // config.cluster)
    block, stages = _block_clocks(config, rows_n), -(-shape.k // config.tile_k)
    before = _staging_clocks(shape, rows_n) if config.staged else 0.0
    moved = config.tile_m * config.tile_n * (shape.staged_store + shape.staged_tile)
    per_tile = max(TILE_CLOCKS, moved / EPILOGUE_BYTES_PER_CLOCK)
    if config.stream_k:
        per_cta = units * stages / min(units * stages, slots)
        parts = 1 + per_cta / stages
        exchange = SPLIT_CLOCKS.get(config.tile_m * config.tile_n // 128, 4000.0)
        return before + per_cta * config.k_blocks * block + parts * per_tile + exchange
    waves = -(-units // slots)
    return before + waves * (stages * config.k_blocks * block + per_tile)


def candidates(shape: GemmShape, batch_invariant: bool = False) -> list[Sm90Config]:
    """Configurations worth comparing for a shape, with and without stream-K; all of them legal."""
    a4 = shape.activations == "nvfp4"
    decode_to = "float16" if a4 else shape.activations
    sixteen_bits = [replace(c, staged=a4) for c in (*PAIRS, SQUARE)]
    swapped = [replace(c, swap_ab=True) for c in sixteen_bits]
    if shape.halves_columns:
        bases = [*sixteen_bits, DECODED]
    elif batch_invariant:
        bases = [replace(WIDE, swap_ab=True, staged=a4)]
    else:
        small = [c for c in SMALL if c.tile_n == 16 or c.tile_n < 2 * shape.m]
        bases = [*sixteen_bits, *swapped, *small, DECODED] if a4 else [*swapped, *(direct(c) for c in small)]
    found = []
    for base in bases:
        operands = shape.operands(base)
        # D of fp32 takes twice the staging memory. C is loaded while a tile is multiplied only as far as the ring
        # holds it: bf16, 4096^3, one pass 191.6 us, two 193.2, four 201.2; without C 186.3, 185.8 and 187.3.
        passes = (1 if shape.staged_tile else base.store_passes) * (2 if shape.staged_store == 4 else 1)
        config = replace(base, decode_to=decode_to, store_passes=passes)
        config = with_most_stages(config, *operands, shape.staged_store)
        if sm90_problems(config, *operands, shape.staged_store):
            continue
        found.append(config)
        if not batch_invariant and base.swap_ab and _tiles(config, shape) * config.cluster <= STREAM_TILES:
            found.append(replace(config, stream_k=True))
    return found


def direct(config: Sm90Config) -> Sm90Config:
    """A configuration with decode warps, for 16-bit activations."""
    return replace(config, decode_groups=0, steps_per_group=2, fragment_registers=16)


def choose(shape: GemmShape, sms: int = SMS, batch_invariant: bool = False) -> Sm90Config:
    """The configuration with the smallest estimate; the first one wins a tie.

    With `batch_invariant` the result does not depend on m: one tile shape, K never split, so that every row of D is
    summed in the same order whatever else is in the batch.
    """
    return min(candidates(shape, batch_invariant), key=lambda config: estimate(config, shape, sms))
