"""What a configuration of the Hopper GEMM takes of a multiprocessor: shared memory by use, registers by role."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from cutefp4.config import K_BLOCK, WARPGROUP, Sm90Config, Sm90Operand

SM90_SMEM_BYTES = 227 * 1024
SM90_REGISTERS = 64 * 1024


@dataclass(frozen=True)
class Sm90SmemBudget:
    """Bytes of shared memory by use."""

    register_operand: int
    shared_operand: int
    scales: int
    decoded_shared_operand: int
    store: int
    small: int

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


def sm90_smem(
    config: Sm90Config, operand_m: Sm90Operand, operand_n: Sm90Operand, staged_store: int = 2
) -> Sm90SmemBudget:
    """Shared memory of a configuration.

    Args:
        operand_m, operand_n: register and shared operand.
        staged_store: bytes of an element of D if D leaves by TMA, else 0.
    """
    stages = config.load_stages
    return Sm90SmemBudget(
        register_operand=stages * operand_m.tile_bytes(config),
        shared_operand=stages * operand_n.tile_bytes(config),
        scales=stages * (operand_m.scale_bytes(config) + operand_n.scale_bytes(config)),
        decoded_shared_operand=config.mma_stages * config.tile_n * K_BLOCK * config.mma_blocks * 2,
        store=config.tile_m * config.finished_tile().tile_n * staged_store // config.store_passes,
        # Barriers, flags, up to two vectors along n per consumer, and alignment gaps.
        small=4096 + 8 * config.tile_n * config.consumer_groups,
    )


@dataclass(frozen=True)
class Sm90RegisterBudget:
    """Registers per thread by role, after setmaxnreg."""

    load: int
    decode: int
    consumer: int

    def total(self, config: Sm90Config) -> int:
        """Registers of a CTA."""
        groups = config.decode_groups * self.decode + config.consumer_groups * self.consumer
        return WARPGROUP * groups + self.load * (32 if config.decode_groups == 2 else WARPGROUP)


def sm90_registers(config: Sm90Config, compact_scales: bool = False) -> Sm90RegisterBudget:
    """The split of the register file between the roles.

    A launch gives every thread the same number r of registers (a multiple of 8); setmaxnreg then moves them between
    warpgroups, and the sum may not grow. A lone load warp is no warpgroup and keeps r. Copying compact scales needs 40
    registers where TMA alone needs 24 (48 bytes were spilled). The consumers get the rest (at most 240).
    """
    r = SM90_REGISTERS // config.threads // 8 * 8
    lone_load_warp = config.decode_groups > 1
    load, decode = (r, 56) if lone_load_warp else (40 if compact_scales else 24, 72)
    left = r * config.threads - load * (32 if lone_load_warp else WARPGROUP) - decode * WARPGROUP * config.decode_groups
    consumer = left // (WARPGROUP * config.consumer_groups) // 8 * 8
    return Sm90RegisterBudget(load, decode, min(consumer, 240))


def sm90_budget_table(config: Sm90Config, operand_m: Sm90Operand, operand_n: Sm90Operand, staged_store: int = 2) -> str:
    """Shared memory and registers of a configuration, one line each."""
    smem = sm90_smem(config, operand_m, operand_n, staged_store)
    registers = sm90_registers(config, "compact" in (operand_m.scales, operand_n.scales))
    lines = [f"{f.name:24s} {getattr(smem, f.name):7d} B" for f in fields(smem)]
    lines.append(f"{'shared memory':24s} {smem.total:7d} B of {SM90_SMEM_BYTES}")
    lines += [f"{f.name + ' registers':24s} {getattr(registers, f.name):7d} per thread" for f in fields(registers)]
    lines.append(f"{'registers':24s} {registers.total(config):7d} of {SM90_REGISTERS}")
    return "\n".join(lines)


MAX_LOAD_STAGES, MAX_MMA_STAGES = 8, 12


def with_most_stages(
    config: Sm90Config, operand_m: Sm90Operand, operand_n: Sm90Operand, staged_store: int = 2
) -> Sm90Config:
    """The configuration with as many stages as fit, at least 2.

    A decoded shared operand: load stages. Otherwise the MMA ring gets as many as it can, and the load ring is longer
    along K.
    """
    if config.decode_groups:
        deeper = (replace(config, load_stages=stages) for stages in range(MAX_LOAD_STAGES, 2, -1))
    else:
        deeper = (
            replace(config, mma_stages=stages, load_stages=max(2, stages // config.k_blocks + 1))
            for stages in range(MAX_MMA_STAGES, 2, -1)
        )
    for found in deeper:
        if sm90_smem(found, operand_m, operand_n, staged_store).total <= SM90_SMEM_BYTES:
            return found
    return replace(config, load_stages=2)
