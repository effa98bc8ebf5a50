"""Configurations of the GEMM kernels, the one legality predicate of each, and their shared-memory and register budgets.

Pure Python: no torch, no GPU, no compiler. `sm90_problems` returns every reason why a configuration cannot run, one
line each, and an empty list if it can.

Terms: the kernel multiplies a *register operand* (its rows are the M of the wgmma; decoded in the registers of the
consumer warpgroups) and a *shared operand* (its rows are the N of the wgmma). The shared operand is

    decoded   in the kernel, once per tile, into shared memory by decode warpgroups       decode_groups > 0
    staged    decoded once per call into a 16-bit workspace by a kernel before this one   staged
    direct    16-bit activations, loaded as they are                                      neither

Without `swap_ab` register and shared operand are A and B of the GEMM, with it B and A, and D is written transposed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

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
        mma_stages: ring of 16-bit tiles of the shared operand; of tile_k if decoded here, else of 64 along K.
        raster_group: register-operand tiles that neighbouring CTAs share a shared-operand tile over (L2 reuse).
        swap_ab: the GEMM's B is the register operand (small M).
        splits: CTAs that share the K of one output tile; their partial sums are added in a fixed order.
        stream_k: instead of splits: the K of all tiles in one row, cut into equal shares, one per CTA.
        store_passes: laps of its staging ring that a warpgroup makes per tile of D (2 halve the staging memory).
        steps_per_group: wgmma (16 of K each) between two decodes of the register operand: 1, 2 or 4.
        decode_groups: warpgroups that decode the shared operand, 1 or 2; 0 where it comes in 16 bits.
        staged: the shared operand is NVFP4 and is decoded into a workspace before the kernel.
        cluster: CTAs, neighbours along the register operand, that share the loads of the shared operand (multicast).
        fragment_registers: registers per thread for decoded fragments, 16 or 32.
        decode_to: what NVFP4 becomes for wgmma: "float16" or "bfloat16", both exact; 16-bit activations decide it.
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
    stream_k: bool = False
    store_passes: int = 1
    steps_per_group: int = 2
    decode_groups: int = 1
    staged: bool = False
    cluster: int = 1
    fragment_registers: int = 32
    decode_to: str = "float16"

    @property
    def tile_k(self) -> int:
        """Elements of K per stage."""
        return K_BLOCK * self.k_blocks

    @property
    def mma_blocks(self) -> int:
        """Blocks of 64 along K of one MMA stage."""
        return self.k_blocks if self.decode_groups else 1

    @property
    def natural_order(self) -> bool:
        """Whether the order of K is that of memory, because the shared operand is loaded as it is."""
        return self.decode_groups == 0 and not self.staged

    @property
    def groups_per_mma_stage(self) -> int:
        """wgmma groups between two waits for the shared operand."""
        return self.m_atoms * self.mma_blocks * 4 // self.steps_per_group

    @property
    def fragment_buffers(self) -> int:
        """Fragments of `steps_per_group` k-steps that a consumer rotates through, one of them being decoded."""
        groups = self.m_atoms * self.k_blocks * 4 // self.steps_per_group
        return min(groups, self.fragment_registers // (4 * self.steps_per_group))

    @property
    def stages_in_flight(self) -> int:
        """MMA stages before the current one that running wgmma may still read."""
        return 1 + (self.fragment_buffers - 1) // self.groups_per_mma_stage

    @property
    def m_atoms(self) -> int:
        """64-row wgmma tiles per consumer warpgroup."""
        return self.tile_m // (64 * self.consumer_groups)

    @property
    def shares_k(self) -> bool:
        """Whether several CTAs may contribute to one output tile, which takes a workspace."""
        return self.splits > 1 or self.stream_k

    def partial_slots(self, tiles: int, ctas: int) -> int:
        """Workspace slots for partial sums."""
        return 2 * ctas if self.stream_k else tiles * self.splits

    @property
    def threads(self) -> int:
        """Threads per CTA: decode and consumer warpgroups, and load warps (a lone one beside two decode groups)."""
        load = 32 if self.decode_groups == 2 else WARPGROUP
        return WARPGROUP * (self.decode_groups + self.consumer_groups) + load


def operand_tiles(
    config: Sm90Config, activations: str = "nvfp4", a_scales: str = "tiled", b_scales: str = "tiled"
) -> tuple[Sm90Operand, Sm90Operand]:
    """Register and shared operand as the kernel loads them; a staged one has 16 bits and no scales."""
    a = (4, a_scales) if activations == "nvfp4" else (16, "none")
    m, n = ((4, b_scales), a) if config.swap_ab else (a, (4, b_scales))
    if config.staged:
        n = (16, "none")
    return Sm90Operand(config.tile_m, *m), Sm90Operand(config.tile_n, *n)


def scale_rows(tile_rows: int) -> int:
    """128-row scale tiles that cover a tile (a smaller tile still reads a whole one)."""
    return max(1, tile_rows // 128)


@dataclass(frozen=True)
class Sm90Operand:
    """One operand as it lies in memory, and the rows of its tile.

    Attributes:
        rows: of a CTA tile.
        bits: 4 (NVFP4) or 16 (bf16 or fp16 activations).
        scales: layout of the block scales: "tiled", "compact", or "none" (16 bits).
    """

    rows: int
    bits: int = 4
    scales: str = "tiled"

    def tile_bytes(self, config: Sm90Config) -> int:
        """Bytes of one load stage of codes; 16-bit rows go into the MMA ring."""
        return self.rows * config.tile_k // 2 if self.bits == 4 else 0

    def scale_bytes(self, config: Sm90Config) -> int:
        """Bytes of one stage of scales, as 128x4 tiles."""
        return 0 if self.bits == 16 else scale_rows(self.rows) * config.k_blocks * SCALE_TILE_BYTES

    def tma_bytes(self, config: Sm90Config) -> int:
        """What TMA brings per load stage; compact scales come by cp.async."""
        return self.tile_bytes(config) + (self.scale_bytes(config) if self.scales == "tiled" else 0)


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
        store=config.tile_m * config.tile_n * staged_store // config.store_passes,
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


def _tile_problems(config: Sm90Config) -> list[str]:
    rows = 64 * config.consumer_groups
    found = []
    if config.tile_m % rows or config.tile_m <= 0:
        found.append(f"tile_m={config.tile_m} is not a multiple of 64 * consumer_groups = {rows}")
    for name in ("tile_m", "tile_n"):
        size = getattr(config, name)
        if size <= 0 or (size % 128 and 128 % size):
            found.append(f"{name}={size} neither divides 128 nor is a multiple of it, the rows of a scale tile")
    if config.tile_n % 8 or not 8 <= config.tile_n <= 256:
        found.append(f"tile_n={config.tile_n} is not a wgmma N: a multiple of 8, at most 256")
    for name, accepted in _CHOICES.items():
        if getattr(config, name) not in accepted:
            found.append(f"{name}={getattr(config, name)!r} is not one of {', '.join(map(repr, accepted))}")
    for name in ("load_stages", "mma_stages"):
        if getattr(config, name) < 2:
            found.append(f"{name}={getattr(config, name)} leaves nothing to overlap; at least 2")
    for name in ("raster_group", "splits"):
        if getattr(config, name) < 1:
            found.append(f"{name}={getattr(config, name)} is below 1")
    return found


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
    if config.stream_k and config.splits > 1:
        found.append(f"splits={config.splits} with stream_k; choose one of them")
    if registers.total(config) > SM90_REGISTERS:
        found.append(f"the roles take {registers.total(config)} registers of {SM90_REGISTERS}")
    return found


def store_box_blocks(config: Sm90Config, element_bytes: int) -> int:
    """n-blocks of 8 that a warpgroup stages of one 64-row tile between two barriers: 128 bytes along n, or all."""
    return min(config.tile_n // 8, 16 // element_bytes)


def store_boxes(config: Sm90Config, element_bytes: int) -> int:
    """Boxes of a warpgroup's tile of D."""
    return config.m_atoms * (config.tile_n // (8 * store_box_blocks(config, element_bytes)))


def store_slots(config: Sm90Config, element_bytes: int) -> int:
    """Boxes that a warpgroup's staging ring holds."""
    return store_boxes(config, element_bytes) // config.store_passes


def _store_problems(config: Sm90Config, element_bytes: int) -> list[str]:
    if config.tile_n % (16 if config.swap_ab else 128 // element_bytes):
        return [f"tile_n={config.tile_n} does not fill the panels of a TMA store"]
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
        found += _store_problems(config, staged_store)
    total = sm90_smem(config, operand_m, operand_n, staged_store).total
    if total > SM90_SMEM_BYTES:
        found.append(f"{total} bytes of shared memory, {SM90_SMEM_BYTES} are available")
    return found


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
        deeper = [replace(config, load_stages=stages) for stages in range(MAX_LOAD_STAGES, 2, -1)]
    else:
        deeper = [
            replace(config, mma_stages=stages, load_stages=max(2, stages // config.k_blocks + 1))
            for stages in range(MAX_MMA_STAGES, 2, -1)
        ]
    for found in deeper:
        if sm90_smem(found, operand_m, operand_n, staged_store).total <= SM90_SMEM_BYTES:
            return found
    return replace(config, load_stages=2)
