"""Configurations of the GEMM kernels, the one legality predicate of each, and their shared-memory and register budgets.

Pure Python: no torch, no GPU, no compiler. `sm90_problems` returns every reason why a configuration cannot run, one line each, and an
empty list if it can.

Terms: the kernel multiplies a *register operand* (its rows are the M of the wgmma; decoded in the registers of the consumer
warpgroups) and a *shared operand* (its rows are the N of the wgmma; decoded once into shared memory by the decode warpgroup).
Without `swap_ab` these are A and B of the GEMM, with it B and A, and D is written transposed.
"""

from __future__ import annotations

from dataclasses import dataclass

K_BLOCK = 64
"""Elements of K of one decoded sub-tile: 128 bytes of bf16, one swizzle row."""

SCALE_TILE_BYTES = 512
SM90_SMEM_BYTES = 227 * 1024
SM90_REGISTERS = 64 * 1024
WARPGROUP = 128


@dataclass(frozen=True)
class Sm90Config:
    """How the Hopper GEMM kernel tiles a problem.

    Attributes:
        tile_m: rows of the register operand per CTA; 64 or 128 rows per consumer warpgroup.
        tile_n: rows of the shared operand per CTA.
        k_blocks: blocks of 64 along K per pipeline stage (1, 2 or 4).
        consumer_groups: warpgroups that decode the register operand and issue wgmma.
        load_stages: ring of packed tiles that TMA fills.
        mma_stages: ring of decoded tiles of the shared operand.
        raster_group: register-operand tiles that neighbouring CTAs share a shared-operand tile over (L2 reuse).
        swap_ab: the GEMM's B is the register operand (small M).
        splits: CTAs that share the K of one output tile; their partial sums are added in a fixed order.
    """

    tile_m: int = 256
    tile_n: int = 128
    k_blocks: int = 1
    consumer_groups: int = 2
    load_stages: int = 6
    mma_stages: int = 4
    raster_group: int = 8
    swap_ab: bool = False
    splits: int = 1

    @property
    def tile_k(self) -> int:
        """Elements of K per stage."""
        return K_BLOCK * self.k_blocks

    @property
    def m_atoms(self) -> int:
        """64-row wgmma tiles per consumer warpgroup."""
        return self.tile_m // (64 * self.consumer_groups)

    @property
    def threads(self) -> int:
        """Threads per CTA: one load, one decode and the consumer warpgroups."""
        return WARPGROUP * (2 + self.consumer_groups)


def scale_rows(tile_rows: int) -> int:
    """128-row scale tiles that cover a tile (a smaller tile still reads a whole one)."""
    return max(1, tile_rows // 128)


@dataclass(frozen=True)
class Sm90SmemBudget:
    """Bytes of shared memory by use."""

    packed_register_operand: int
    landed_shared_operand: int
    scales: int
    decoded_shared_operand: int
    store: int
    barriers: int

    @property
    def total(self) -> int:
        return (
            self.packed_register_operand
            + self.landed_shared_operand
            + self.scales
            + self.decoded_shared_operand
            + self.store
            + self.barriers
        )


def sm90_smem(config: Sm90Config, shared_bits: int = 4, out_bytes: int = 2) -> Sm90SmemBudget:
    """Shared memory of a configuration.

    Args:
        shared_bits: bits per element of the shared operand as it lands: 4 (NVFP4) or 16 (bf16, fp16).
        out_bytes: bytes per element of D; only 16-bit outputs are staged for TMA stores.
    """
    packed_row = config.tile_k // 2
    scale_tiles = scale_rows(config.tile_m) + (scale_rows(config.tile_n) if shared_bits == 4 else 0)
    return Sm90SmemBudget(
        packed_register_operand=config.load_stages * config.tile_m * packed_row,
        landed_shared_operand=config.load_stages * config.tile_n * config.tile_k * shared_bits // 8,
        scales=config.load_stages * scale_tiles * config.k_blocks * SCALE_TILE_BYTES,
        decoded_shared_operand=config.mma_stages * config.tile_n * config.tile_k * 2,
        store=config.tile_m * config.tile_n * 2 if out_bytes == 2 and config.splits == 1 else 0,
        barriers=1024,
    )


@dataclass(frozen=True)
class Sm90RegisterBudget:
    """Registers per thread by role, after setmaxnreg."""

    load: int
    decode: int
    consumer: int

    def total(self, consumer_groups: int) -> int:
        return WARPGROUP * (self.load + self.decode + consumer_groups * self.consumer)


def sm90_registers(config: Sm90Config) -> Sm90RegisterBudget:
    """The split of the register file between the roles.

    A launch gives every thread the same number r of registers (a multiple of 8); setmaxnreg then moves them between warpgroups, and
    the sum may not grow. Loading needs the least, decoding 72, and the consumers get the rest (at most 240).
    """
    groups = 2 + config.consumer_groups
    per_group = SM90_REGISTERS // config.threads // 8 * 8
    load, decode = 24, 72
    consumer = (per_group * groups - load - decode) // config.consumer_groups // 8 * 8
    return Sm90RegisterBudget(load, decode, min(consumer, 240))
