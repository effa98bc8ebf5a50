"""Whether the Hopper GEMM can run a configuration: `sm90_problems` returns every reason why not, one line each."""

from __future__ import annotations

from cutefp4.budget_sm90 import SM90_REGISTERS, SM90_SMEM_BYTES, sm90_registers, sm90_smem
from cutefp4.config import K_BLOCK, WARPGROUP, Sm90Config, Sm90Operand, choice_problems, store_box_blocks, store_boxes

_CHOICES = {
    "k_blocks": (1, 2, 4),
    "consumer_groups": (1, 2, 3, 4),
    "steps_per_group": (1, 2, 4),
    "decode_groups": (0, 1, 2),
    "cluster": (1, 2),
    "fragment_registers": (16, 32),
    "decode_to": ("float16", "bfloat16"),
    "store_passes": (1, 2, 4, 8),
}

WGMMA_OVERHEAD = 30
"""Registers that ptxas wants besides a wgmma's accumulators, before setmaxnreg ("target of 158" for n = 256)."""

CONSUMER_OVERHEAD = 40
"""Registers of a consumer besides accumulators and fragments: packed words, scales, addresses."""


def _tile_problems(config: Sm90Config) -> list[str]:
    rows = 64 * config.consumer_groups
    found = []
    if config.tile_m % rows or config.tile_m <= 0:
        found.append(f"tile_m={config.tile_m} is not a multiple of 64 * consumer_groups = {rows}")
    for name in ("tile_m", "tile_n"):
        size = getattr(config, name)
        # A shared operand of 16 bits has no scale tiles; its panels of D are 64 wide, or 16 rows of D.
        free = name == "tile_n" and config.decode_groups == 0 and size % (16 if config.swap_ab else 64) == 0
        if size <= 0 or (size % 128 and 128 % size and not free):
            found.append(f"{name}={size} neither divides 128 nor is a multiple of it, the rows of a scale tile")
    if config.tile_n % 8 or not 8 <= config.tile_n <= 256:
        found.append(f"tile_n={config.tile_n} is not a wgmma N: a multiple of 8, at most 256")
    found += choice_problems(config, _CHOICES)
    for name in ("load_stages", "mma_stages"):
        if getattr(config, name) < 2:
            found.append(f"{name}={getattr(config, name)} leaves nothing to overlap; at least 2")
    for name in ("raster_group", "splits"):
        if getattr(config, name) < 1:
            found.append(f"{name}={getattr(config, name)} is below 1")
    return found


def _role_problems(config: Sm90Config, operands: tuple[Sm90Operand, ...]) -> list[str]:
    found = []
    rows, threads = config.tile_n * config.k_blocks, WARPGROUP * config.decode_groups
    if rows < threads and (threads % rows or rows % 32):
        found.append(f"tile_n * k_blocks = {rows} rows cannot be shared by {threads} decode threads in whole warps")
    if threads and rows >= threads and rows % threads:
        found.append(f"tile_n * k_blocks = {rows} rows is not a multiple of {threads} decode threads")
    groups, buffers = config.m_atoms * config.k_blocks * 4 // config.steps_per_group, config.fragment_buffers
    if buffers < 1 or groups % buffers:
        found.append(f"{groups} wgmma groups per stage do not go round {buffers} fragment buffers")
    elif config.mma_stages <= config.stages_in_flight:
        found.append(f"{config.stages_in_flight} stages are read by running wgmma; mma_stages={config.mma_stages}")
    compact = any(operand.scales == "compact" for operand in operands)
    if compact and config.decode_groups == 2:
        found.append("compact scales need a load warpgroup, and two decode groups leave a single load warp")
    registers = sm90_registers(config, compact)
    needed = config.m_atoms * config.tile_n // 2 + config.fragment_registers + CONSUMER_OVERHEAD
    if needed > registers.consumer:
        found.append(f"a consumer needs about {needed} registers and gets {registers.consumer}")
    launched = SM90_REGISTERS // config.threads // 8 * 8
    if config.tile_n // 2 + WGMMA_OVERHEAD > launched:
        found.append(
            f"tile_n={config.tile_n}: ptxas wants {config.tile_n // 2 + WGMMA_OVERHEAD} registers for the wgmma, "
            f"and {config.threads} threads are launched with {launched}"
        )
    found += _serialised(config)
    if config.stream_k and config.splits > 1:
        found.append(f"splits={config.splits} with stream_k; choose one of them")
    found += _split_pair_problems(config) if config.split_pair else []
    if config.helped and not config.split_pair:
        found.append("helped needs split_pair: helpers add to tiles that clusters share")
    if registers.total(config) > SM90_REGISTERS:
        found.append(f"the roles take {registers.total(config)} registers of {SM90_REGISTERS}")
    return found


def _split_pair_problems(config: Sm90Config) -> list[str]:
    if config.splits not in (2, 4) or config.cluster != 1:
        return [f"split_pair needs splits=2 or 4 and cluster=1, not {config.splits} and {config.cluster}"]
    found = []
    if config.tile_n % (16 * config.splits):
        found.append(f"split_pair cuts tile_n={config.tile_n} into {config.splits}: not into multiples of 16 columns")
    ring = config.mma_stages * config.tile_n * 2 * K_BLOCK * config.mma_blocks
    if config.exchanged_bytes > ring:
        found.append(f"the {config.exchanged_bytes} bytes of a cluster's partial sums exceed the MMA ring's {ring}")
    return found


def _serialised(config: Sm90Config) -> list[str]:
    """Where ptxas waits for each wgmma before the next one (warning C7512).

    Read from the SASS of 105 configurations, DSL 4.8.1: all 31 of this kind, whatever their tile and steps per group.
    128x256 staged took 1598 us with 32 registers and 1376 with 16 at 8192^3. Beside a decode warpgroup, 256x128 with 32
    registers is serialised as well (3 configurations; it is what a configuration's defaults say, and stays legal).
    """
    if config.decode_groups or config.m_atoms > 1 or config.fragment_registers < 32:
        return []
    return [
        "ptxas serialises all wgmma with one 64-row tile a warpgroup, a shared operand of 16 bits and "
        "fragment_registers=32; take 16"
    ]


def _store_problems(config: Sm90Config, element_bytes: int) -> list[str]:
    if config.tile_n % (16 if config.swap_ab else 128 // element_bytes):
        return [f"tile_n={config.tile_n} does not fill the panels of a TMA store"]
    if config.tile_n % (8 * store_box_blocks(config, element_bytes)):
        return [
            f"tile_n={config.tile_n} is not cut into boxes of {8 * store_box_blocks(config, element_bytes)} columns"
        ]
    boxes = store_boxes(config, element_bytes)
    if boxes % config.store_passes:
        return [f"{boxes} boxes of D per warpgroup cannot be stored in {config.store_passes} passes"]
    return []


def _shared_operand_problems(config: Sm90Config, operand: Sm90Operand) -> list[str]:
    found = []
    if config.staged and config.decode_groups:
        found.append(f"a staged operand is decoded before the kernel, but decode_groups={config.decode_groups}")
    elif operand.bits == 4 and not config.decode_groups:
        found.append("the shared operand is NVFP4 and nobody decodes it: set decode_groups, or staged")
    elif operand.bits == 16 and config.decode_groups:
        found.append(f"a shared operand of 16 bits needs no decoding, but decode_groups={config.decode_groups}")
    if config.cluster > 1 and config.decode_groups:
        found.append("only a shared operand of 16 bits is shared in a cluster: decode_groups must be 0")
    if config.cluster > 1 and config.tile_n % 64:
        found.append(f"tile_n={config.tile_n} in a cluster: the DSL slices multiples of 64 rows (208 aborted)")
    if config.tile_n % (8 * config.cluster):
        found.append(f"tile_n={config.tile_n} is not cut into {config.cluster} slices of whole swizzle atoms (8 rows)")
    return found


def sm90_problems(
    config: Sm90Config, operand_m: Sm90Operand, operand_n: Sm90Operand, staged_store: int = 2
) -> list[str]:
    """Every reason why the Hopper kernel cannot run a configuration; empty if it can.

    Args:
        operand_m, operand_n: register and shared operand, as `Sm90GemmPlan.operands` returns them.
        staged_store: bytes of an element of D if D leaves by TMA, else 0.
    """
    found = _tile_problems(config)
    if found:
        return found
    found = _role_problems(config, (operand_m, operand_n)) + _shared_operand_problems(config, operand_n)
    if operand_m.bits != 4:
        found.append("the register operand is not NVFP4: 16-bit activations must be the shared operand (swap_ab)")
    if (operand_m.rows, operand_n.rows) != (config.tile_m, config.tile_n):
        found.append(f"operand tiles of {operand_m.rows} and {operand_n.rows} rows are not tile_m and tile_n")
    if staged_store:
        found += _store_problems(config.finished_tile(), staged_store)
    total = sm90_smem(config, operand_m, operand_n, staged_store).total
    if total > SM90_SMEM_BYTES:
        found.append(f"{total} bytes of shared memory, {SM90_SMEM_BYTES} are available")
    return found
