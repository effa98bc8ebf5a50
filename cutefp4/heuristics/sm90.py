"""Hopper GEMM: shape -> configuration. Pure Python, no torch, no GPU; deterministic.

The candidates are few, and a model of the kernel's time picks one. Its constants are fitted to measurements on an H200
(perf/results). Per work tile and 64 of K a CTA takes the longest of

    tensor core   tile_m * tile_n / 32 clocks
    issue         (ISSUE_M * tile_m + ISSUE_N * tile_n): decoding, which shares the issue slots with everything else
    memory        bytes / BYTES_PER_CLOCK of one SM

and each work tile costs a fixed time on top. Tiles run in waves of one per SM; with stream-K every SM gets the same
share of all tiles, and the exchange of partial sums costs a fixed time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cutefp4.config import K_BLOCK, Sm90Config, Sm90Operand, sm90_problems, with_most_stages

SMS = 132
"""Of an H100 SXM and an H200."""


@dataclass(frozen=True)
class GemmShape:
    """What the choice depends on.

    m, n, k: of D = A * B^T, K padded to 64. batch: L. activations: "nvfp4", "bfloat16" or "float16". a_scales,
    b_scales: scale layouts. staged_store: bytes of an element of D if it can leave by TMA (16-byte rows), else 0.
    halves_columns: SwiGLU over column pairs, which needs the columns of D on the shared operand.
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

    def operands(self, config: Sm90Config) -> tuple[Sm90Operand, Sm90Operand]:
        """Register and shared operand of a configuration."""
        rows_a, rows_b = (config.tile_n, config.tile_m) if config.swap_ab else (config.tile_m, config.tile_n)
        a16 = self.activations != "nvfp4"
        a = Sm90Operand(rows_a, 16, "none") if a16 else Sm90Operand(rows_a, 4, self.a_scales)
        b = Sm90Operand(rows_b, 4, self.b_scales)
        return (b, a) if config.swap_ab else (a, b)


LARGE = Sm90Config(k_blocks=2, mma_stages=3, steps_per_group=4, store_passes=2)
"""W4A4 from a few hundred rows: 256 rows of A in registers, 128 rows of B decoded once."""

LARGE_A16 = Sm90Config(swap_ab=True, mma_stages=4, steps_per_group=4, store_passes=2)
"""W4A16: 256 rows of the weight in registers, 128 rows of activations reordered."""

_SMALL = Sm90Config(swap_ab=True, tile_n=16, k_blocks=4, mma_stages=2, steps_per_group=4)
SMALL = (
    _SMALL,
    replace(_SMALL, tile_m=128),
    replace(_SMALL, tile_n=32),
    replace(_SMALL, tile_n=32, tile_m=128),
    replace(_SMALL, tile_n=64, k_blocks=2),
    replace(_SMALL, tile_n=64, tile_m=128, k_blocks=2),
    replace(_SMALL, tile_n=128, tile_m=128, k_blocks=1, mma_stages=4),
)
"""Weights in registers, 16 to 128 rows of activations; the fewest that cover M waste the least."""

ISSUE_M, ISSUE_N = 4.0, 2.7
"""Measured: 1360 clocks for 256x128 (8192^3), 870 to 1000 for 128x128, 860 to 1110 for 256x16; the tensor core alone
would take 1024, 512 and 128. The same kernel without decoding runs at cuBLAS speed: issue slots are what is short."""
BYTES_PER_CLOCK = 18.0
TILE_CLOCKS, SPLIT_CLOCKS = 1500.0, 4000.0

STREAM_TILE = 128 * 128
"""Largest tile that stream-K is used for: partial sums of larger ones cost more than idle SMs."""


def estimate(config: Sm90Config, shape: GemmShape, sms: int = SMS) -> float:
    """Clocks of a GEMM, without the launch."""
    rows_m, rows_n = (shape.n, shape.m) if config.swap_ab else (shape.m, shape.n)
    tiles = -(-rows_m // config.tile_m) * -(-rows_n // config.tile_n) * shape.batch
    bytes_n = 0.5625 if shape.activations == "nvfp4" else 2.0
    used_n = min(config.tile_n, rows_n)
    block = max(
        config.tile_m * config.tile_n / 32,
        ISSUE_M * config.tile_m + ISSUE_N * config.tile_n,
        K_BLOCK * (0.5625 * config.tile_m + bytes_n * used_n) / BYTES_PER_CLOCK,
    )
    stages = -(-shape.k // config.tile_k)
    if config.stream_k:
        ctas = min(tiles * stages, sms)
        per_cta = tiles * stages / ctas
        parts = 1 + per_cta / stages
        return per_cta * config.k_blocks * block + parts * TILE_CLOCKS + SPLIT_CLOCKS
    waves = -(-tiles // sms)
    return waves * (stages * config.k_blocks * block + TILE_CLOCKS)


def candidates(shape: GemmShape, batch_invariant: bool = False) -> list[Sm90Config]:
    """Configurations worth comparing for a shape, with and without stream-K; all of them legal."""
    decode_to = shape.activations if shape.activations != "nvfp4" else "float16"
    if shape.halves_columns:
        bases = (LARGE,)
    elif batch_invariant:
        bases = (LARGE_A16,)
    else:
        small = [c for c in SMALL if c.tile_n == 16 or c.tile_n < 2 * shape.m]
        bases = (*((LARGE,) if shape.activations == "nvfp4" else ()), LARGE_A16, *small)
    found = []
    for base in bases:
        operands = shape.operands(base)
        config = with_most_stages(replace(base, decode_to=decode_to), *operands, shape.staged_store)
        if sm90_problems(config, *operands, shape.staged_store):
            continue
        found.append(config)
        if not batch_invariant and base.swap_ab and base.tile_n * base.tile_m <= STREAM_TILE:
            found.append(replace(config, stream_k=True))
    return found


def choose(shape: GemmShape, sms: int = SMS, batch_invariant: bool = False) -> Sm90Config:
    """The configuration with the smallest estimate; the first one wins a tie.

    With `batch_invariant` the result does not depend on m: one tile shape, K never split, so that every row of D is
    summed in the same order whatever else is in the batch.
    """
    return min(candidates(shape, batch_invariant), key=lambda config: estimate(config, shape, sms))
