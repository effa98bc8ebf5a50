"""`Sm90Config`: how the Hopper GEMM tiles a problem. Pure Python: no torch, no GPU, no compiler.

What a configuration costs is in budget_sm90.py, and whether it can run in legality_sm90.py.

Terms: the kernel multiplies a *register operand* (its rows are the M of the wgmma; decoded in the registers of the
consumer warpgroups) and a *shared operand* (its rows are the N of the wgmma). The shared operand is

    decoded   in the kernel, once per tile, into shared memory by decode warpgroups       decode_groups > 0
    staged    decoded once per call into a 16-bit workspace by a kernel before this one   staged
    direct    16-bit activations, loaded as they are                                      neither

Without `swap_ab` register and shared operand are A and B of the GEMM, with it B and A, and D is written transposed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

K_BLOCK = 64
"""Elements of K of one decoded sub-tile: 128 bytes of bf16, one swizzle row."""

HELPER_K = 512
"""What a helper could multiply while it writes the sums of a tile: 6500 clocks for 128x256, where 64 of K take 1050;
4700 and 620 for 128x128."""

SCALE_TILE_BYTES = 512
WARPGROUP = 128


def choice_problems(config, choices: dict[str, tuple]) -> list[str]:
    """The fields of a configuration whose values are not among those accepted, as sentences."""
    return [
        f"{name}={getattr(config, name)!r} is not one of {', '.join(map(repr, accepted))}"
        for name, accepted in choices.items()
        if getattr(config, name) not in accepted
    ]


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
        split_pair: the CTAs that share a tile (a pair, splits=2, or four) are a cluster, exchange partial sums through
            shared memory, and finish an equal part of its columns each.
        helped: with split_pair: CTAs that are left over multiply the end of K of several tiles each, in a workspace.
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
    split_pair: bool = False
    helped: bool = False
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
        """Whether several CTAs may contribute to one output tile."""
        return self.splits > 1 or self.stream_k

    @property
    def uses_workspace(self) -> bool:
        """Whether partial sums go through global memory."""
        return self.shares_k and (self.helped or not self.split_pair)

    @property
    def cluster_size(self) -> int:
        """CTAs that are launched together."""
        return self.cluster * (self.splits if self.split_pair else 1)

    def finished_tile(self) -> Sm90Config:
        """The configuration with the tile that the epilogue of one CTA covers."""
        if not self.split_pair:
            return self
        return replace(self, tile_n=self.tile_n // self.splits, splits=1, split_pair=False, helped=False)

    @property
    def exchanged_bytes(self) -> int:
        """Of shared memory, where partial sums of a cluster's other CTAs arrive: the MMA ring after its last use."""
        return 4 * self.tile_m * (self.tile_n - self.tile_n // self.splits) if self.split_pair else 0

    def partial_slots(self, tiles: int, ctas: int) -> int:
        """Workspace slots for partial sums."""
        return 2 * ctas if self.stream_k else tiles if self.helped else tiles * self.splits

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


def store_box_blocks(config: Sm90Config, element_bytes: int) -> int:
    """n-blocks of 8 that a warpgroup stages of one 64-row tile between two barriers.

    128 bytes along n; with swap_ab, where these are rows of D, what divides the tile best, at most 10 KiB.
    """
    if not config.swap_ab:
        return min(config.tile_n // 8, 16 // element_bytes)
    step = 4 // element_bytes
    fitting = [b for b in range(step, 20 // element_bytes + 1, step) if config.tile_n // 8 % b == 0]
    return max(fitting, default=step)


def store_boxes(config: Sm90Config, element_bytes: int) -> int:
    """Boxes of a warpgroup's tile of D."""
    return config.m_atoms * (config.tile_n // (8 * store_box_blocks(config, element_bytes)))


def store_slots(config: Sm90Config, element_bytes: int) -> int:
    """Boxes that a warpgroup's staging ring holds."""
    return store_boxes(config, element_bytes) // config.store_passes
