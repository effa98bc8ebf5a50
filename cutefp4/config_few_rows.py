"""Hopper GEMM for some dozens of rows of A: configuration, shared-memory budget, legality. Pure Python.

The kernel (kernels/sm90/few_rows.py) multiplies by wgmma: 64 rows of the weight times all rows of A. Its stages are 128
long along K.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cutefp4.config import Sm90Config, Sm90Operand, choice_problems

SMEM_BYTES = 232448 - 1024
"""Dynamic shared memory of a CTA on an H100 or H200, less what its static part may take."""

REGISTERS = 65536
STAGE_K = 128
ATOM = 64
"""Rows of the weight that one wgmma takes."""
LOADER_REGISTERS = 24


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class FewRowsConfig:
    """What shapes the code of the kernel for few rows.

    Attributes:
        tile_n: rows of A, rounded up to what wgmma takes: a multiple of 8.
        atoms: 64-row tiles of the weight that a CTA makes.
        k_groups: warpgroups that share the K of one of them: they take its stages in turn.
        stages: of 128 along K, in the ring.
        cluster: CTAs that share K beyond that; they add their sums through distributed shared memory.
        overlay: their sums lie where the stages were: more stages, and one more wait for the cluster.
        steps: wgmma (16 of K each) between two decodes, 1 or 2; fragments of 4 steps are in registers.
        decode_to: "float16" or "bfloat16".
    """

    tile_n: int = 64
    atoms: int = 2
    k_groups: int = 2
    stages: int = 6
    cluster: int = 2
    overlay: bool = False
    steps: int = 1
    decode_to: str = "float16"

    @property
    def n_tiles(self) -> int:
        """8-row tiles of A."""
        return self.tile_n // 8

    @property
    def row_tiles(self) -> int:
        """16-row tiles of the weight of a CTA, one for each warp of `atoms` warpgroups."""
        return 4 * self.atoms

    @property
    def k_warps(self) -> int:
        """Sums of one row tile that a CTA makes."""
        return self.k_groups

    @property
    def consumer_warps(self) -> int:
        """Warps that decode the weight and multiply."""
        return 4 * self.atoms * self.k_groups

    @property
    def warps(self) -> int:
        """Besides the consumers a warpgroup of which two warps load."""
        return self.consumer_warps + 4

    @property
    def threads(self) -> int:
        return 32 * self.warps

    @property
    def tile_m(self) -> int:
        """Rows of the weight of a CTA."""
        return ATOM * self.atoms

    @property
    def registers_available(self) -> int:
        """Of a consumer's thread: the loaders keep LOADER_REGISTERS of what all threads are launched with."""
        launched = REGISTERS // self.threads // 8 * 8
        left = launched * self.threads - 128 * LOADER_REGISTERS
        return min(240, left // (32 * self.consumer_warps) // 8 * 8)

    @property
    def registers_needed(self) -> int:
        """Estimate: accumulators, fragments, packed words and addresses."""
        return self.tile_n // 2 + 16 + 40

    def tiles(self) -> Sm90Config:
        """The tiles as the parts shared with the large GEMM know them: one warpgroup to an atom."""
        return Sm90Config(
            tile_m=self.tile_m,
            tile_n=self.tile_n,
            k_blocks=2,
            consumer_groups=self.atoms,
            load_stages=self.stages,
            mma_stages=self.stages,
            swap_ab=True,
            steps_per_group=self.steps,
            decode_groups=1,
            fragment_registers=16,
            decode_to=self.decode_to,
        )

    def weight(self) -> Sm90Operand:
        """The packed operand."""
        return Sm90Operand(self.tile_m)


def stage_bytes(config: FewRowsConfig) -> int:
    """Shared memory of a stage: codes, scales and 16-bit activations."""
    tiles, weight = config.tiles(), config.weight()
    return weight.tile_bytes(tiles) + weight.scale_bytes(tiles) + 2 * STAGE_K * config.tile_n


def partial_bytes(config: FewRowsConfig) -> int:
    """Shared memory of the sums that a CTA finishes, of every CTA and warpgroup along K."""
    owned = ceil_div(config.row_tiles, config.cluster)
    return owned * config.n_tiles * config.cluster * config.k_groups * 512


def shared_bytes(config: FewRowsConfig) -> int:
    """Shared memory of a CTA."""
    stages, sums = config.stages * stage_bytes(config), partial_bytes(config)
    return (max(stages, sums) if config.overlay else stages + sums) + 3072


def with_most_stages(config: FewRowsConfig) -> FewRowsConfig:
    """The configuration with as many stages as fit, at most 8."""
    sums = 0 if config.overlay else partial_bytes(config)
    fit = (SMEM_BYTES - sums - 3072) // stage_bytes(config)
    return replace(config, stages=max(2, min(8, fit)))


_CHOICES = {
    "tile_n": tuple(range(8, 129, 8)),
    "atoms": (1, 2, 4),
    "k_groups": (1, 2, 3, 4),
    "stages": tuple(range(2, 13)),
    "cluster": (1, 2, 3, 4, 8),
    "overlay": (False, True),
    "steps": (1, 2),
    "decode_to": ("float16", "bfloat16"),
}


def few_rows_problems(config: FewRowsConfig, m: int) -> list[str]:
    """Every reason why the kernel cannot run a product of m rows with this configuration; empty if it can."""
    found = choice_problems(config, _CHOICES)
    if found:
        return found
    if m > config.tile_n:
        found.append(f"M = {m} rows do not fit tile_n={config.tile_n}")
    if config.threads > 1024:
        found.append(f"{config.threads} threads, at most 1024")
    elif config.registers_needed > config.registers_available:
        found.append(f"a thread needs about {config.registers_needed} registers of {config.registers_available}")
    if config.stages <= config.k_groups:
        found.append(f"stages={config.stages} leaves nothing to overlap for k_groups={config.k_groups}")
    if shared_bytes(config) > SMEM_BYTES:
        found.append(f"{shared_bytes(config)} bytes of shared memory, {SMEM_BYTES} are available")
    return found
