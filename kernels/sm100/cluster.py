"""Where a CTA stands in its cluster, and which CTAs share what with it.

CTA rank r of a cluster is at m = r % cluster_m, n = r // cluster_m. Pairs (cta_group 2) are ranks 2i and 2i + 1:
neighbours along M, the even one leads.
"""

import cutlass.cute as cute
from cutlass import Int32

from cutefp4.config_sm100 import Sm100Config

from ..common.device_struct import DeviceStruct


class ClusterPlace(DeviceStruct):
    """One CTA's coordinates, group and multicast masks; constants (0, 1) without a cluster."""

    def __init__(self, config: Sm100Config):
        self.config = config
        if config.cluster_size == 1:
            self.rank, self.m, self.n, self.leader = Int32(0), Int32(0), Int32(0), Int32(0)
            return
        self.rank = cute.arch.make_warp_uniform(cute.arch.block_idx_in_cluster())
        self.m, self.n = self.rank % config.cluster_m, self.rank // config.cluster_m
        self.leader = self.rank - self.rank % config.cta_group

    def first_work(self) -> tuple[Int32, Int32]:
        """(index of the cluster, number of clusters): the first work tile and the step to the next."""
        block, _, _ = cute.arch.block_idx()
        grid, _, _ = cute.arch.grid_dim()
        return block // self.config.cluster_size, grid // self.config.cluster_size

    def m_tile(self, work) -> Int32:
        """This CTA's tile of 128 rows of D."""
        return work.m * self.config.cluster_m + self.m

    def n_tile(self, work) -> Int32:
        """This CTA's tile of tile_n columns of D."""
        return work.n * self.config.cluster_n + self.n

    def same_m(self) -> Int32:
        """Mask of the CTAs with the same rows of A."""
        every = sum(1 << self.config.cluster_m * j for j in range(self.config.cluster_n))
        return Int32(every) << self.m

    def same_n(self) -> Int32:
        """Mask of the CTAs with the same columns of D: they share the scales of B."""
        return Int32((1 << self.config.cluster_m) - 1) << (self.n * self.config.cluster_m)

    def same_b(self) -> Int32:
        """Mask of the CTAs with the same rows of B: those of `same_n`, at the same place in their group."""
        every = sum(1 << i for i in range(0, self.config.cluster_m, self.config.cta_group))
        return Int32(every) << (self.n * self.config.cluster_m + self.m % self.config.cta_group)

    def group(self) -> Int32:
        """Mask of this CTA's group."""
        return Int32((1 << self.config.cta_group) - 1) << self.leader

    def senders(self) -> Int32:
        """Mask of the CTAs that bring data to this group: they must know when it has read a stage."""
        rows = self.same_m()
        if self.config.cta_group == 2:
            rows = rows | (rows << 1)
        return rows | self.same_n()
