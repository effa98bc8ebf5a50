"""Partial sums of the small-M kernel, and its epilogue.

Every row tile of a cluster has an owner, CTA `tile % cluster`. A warp that has finished its share of K writes its
accumulators, as they lie in its registers, to the owner's shared memory; nothing is read from afar. After a cluster
barrier each owner adds the sums in the order of K (so that results repeat bit for bit), evaluates the tree and stores.

    slot of (tile, n tile, CTA of the cluster, K warp): 512 bytes, 16 for each lane, at
    (((tile / cluster * n_tiles + n_tile) * cluster + rank) * k_warps + k_warp) * 512
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32, Int64, Uint32

from cutefp4 import epilogue as nodes
from cutefp4.config_small_m import PARTIAL_BYTES, SmallMConfig

from ..common import ptx
from ..common.device_struct import DeviceStruct
from ..epilogue import math
from ..epilogue.fragment import Fragment
from ..epilogue.sinks import element_pointer, in_bounds, reduce_over_m, reduce_over_n, store_pair
from ..epilogue.tree import evaluate


class QuarterFragment(Fragment):
    """Columns of D are rows g and g + 8 of a row tile, which lie 32 apart (small_m_weight.py); rows of D are those of
    an n tile. One m atom, one n block."""

    def m(self, atom: int, h: int) -> Int32:
        return self.m0 + 32 * h

    def leads_m(self) -> Boolean:
        return (self.m0 % 4 == 0) & (self.m0 % 128 < 32)


class Partials(DeviceStruct):
    """The slots: `here` is their address in this CTA's shared memory."""

    def __init__(self, config: SmallMConfig, here: Uint32, rank: Int32, k_warp: Int32, lane: Int32):
        self.config, self.here, self.rank, self.k_warp, self.lane = config, here, rank, k_warp, lane

    def _offset(self, owned: Int32, nt: int) -> Uint32:
        config = self.config
        slot = (owned * config.n_tiles + nt) * (config.cluster * config.k_warps)
        return Uint32(slot * PARTIAL_BYTES + self.lane * 16)

    @cute.jit
    def put(self, tile: Int32, nt: cutlass.Constexpr, acc: cute.Tensor, first: cutlass.Constexpr, add: Boolean):
        """Write acc[first .. first + 3] to the owner of the group's row tile `tile`, or add them to what is there."""
        config = self.config
        mine = Uint32((self.rank * config.k_warps + self.k_warp) * PARTIAL_BYTES)
        local = self.here + self._offset(tile // config.cluster, nt) + mine
        values = [acc[first + i] for i in range(4)]
        if add:
            values = [math.add(old, new) for old, new in zip(self._get(tile, local), values, strict=True)]
        words = ", ".join(f"${i}" for i in range(1, 5))
        if cutlass.const_expr(config.cluster == 1):
            ptx.asm(f"st.shared.v4.f32 [$0], {{{words}}};", None, local, *values, effect=True)
        else:
            text = f"st.shared::cluster.v4.f32 [$0], {{{words}}};"
            ptx.asm(text, None, _remote(local, tile % config.cluster), *values, effect=True)

    def _get(self, tile: Int32, local: Uint32) -> list:
        if self.config.cluster == 1:
            text, where = "ld.shared.v4.f32 {$0, $1, $2, $3}, [$4];", local
        else:
            text, where = (
                "ld.shared::cluster.v4.f32 {$0, $1, $2, $3}, [$4];",
                _remote(local, tile % self.config.cluster),
            )
        return list(ptx.asm(text, (Float32,) * 4, where, effect=True))

    def total(self, owned: Int32, nt: Int32) -> list:
        """The finished sums of this lane for an owned tile, in the order of K."""
        base = self.here + self._offset(owned, nt)
        text = "ld.shared.v4.f32 {$0, $1, $2, $3}, [$4];"
        sums = None
        for s in range(self.config.cluster * self.config.k_warps):
            part = ptx.asm(text, (Float32,) * 4, base + Uint32(s * PARTIAL_BYTES), effect=True)
            sums = list(part) if sums is None else [math.add(x, y) for x, y in zip(sums, part, strict=True)]
        return sums


def _remote(address: Uint32, rank: Int32) -> Uint32:
    """The same place in the shared memory of another CTA of the cluster."""
    return ptx.asm("mapa.shared::cluster.u32 $0, $1, $2;", Uint32, address, Uint32(rank))


class SmallMEpilogue(DeviceStruct):
    """The tree on one 16x8 tile of sums: columns of D are the weight's rows."""

    def __init__(self, tree: nodes.Epilogue, acc_exponent: int, tensors: dict, sizes, l: Int32, lane: Int32):
        self.tree, self.acc_exponent, self.tensors = tree, acc_exponent, tensors
        self.size_n, self.size_m = sizes
        self.l, self.lane = l, lane

    def fragment(self, first_row: Int32, nt: Int32) -> QuarterFragment:
        """first_row: the weight's row of fragment row g."""
        n0 = nt * 8 + self.lane % 4 * 2
        return QuarterFragment(first_row, n0, self.l, self.size_m, self.size_n, True)

    def prefetch(self, fragment: QuarterFragment) -> None:
        """Have the vectors that a fragment needs brought to the L2 cache."""
        for leaf in self.tree.leaves():
            if isinstance(leaf, (nodes.Row, nodes.Column)):
                index = fragment.clamped_n(0, 0) if isinstance(leaf, nodes.Row) else fragment.clamped_m(0, 0)
                where = element_pointer(self.tensors[leaf.name], (self.l, index)).toint()
                ptx.asm("prefetch.global.L2 [$0];", None, Int64(where), effect=True)

    def load(self, fragment: QuarterFragment) -> dict:
        """Values of the tree's leaves for this lane's four elements, by name and what they depend on."""
        found = {}
        for leaf in self.tree.leaves():
            tensor = self.tensors[leaf.name]
            if isinstance(leaf, nodes.Scalar):
                found[leaf.name] = fragment.load_scalar(tensor)
            elif isinstance(leaf, nodes.Column):
                found.update({(leaf.name, h): fragment.load_vector(tensor, fragment.clamped_m(0, h)) for h in range(2)})
            elif isinstance(leaf, nodes.Row):
                found.update({(leaf.name, j): fragment.load_vector(tensor, fragment.clamped_n(0, j)) for j in range(2)})
            else:
                for h in range(2):
                    for j, value in enumerate(fragment.load_elements(tensor, 0, h, 0)):
                        found[leaf.name, h, j] = value
        return found

    def apply(self, fragment: QuarterFragment, loaded: dict, sums: list) -> None:
        """Evaluate the tree on the sums and run its sinks."""
        amax_n: dict = {}
        for h in range(2):
            elements = [self._element(loaded, sums, h, j) for j in range(2)]
            store_pair(self.tensors["d"], fragment, 0, h, 0, [e(self.tree.out) for e in elements], False)
            for sink in self.tree.sinks:
                values = [e(sink.value) for e in elements]
                if isinstance(sink, nodes.Store):
                    store_pair(self.tensors[sink.name], fragment, 0, h, 0, values, False)
                    continue
                magnitudes = [in_bounds(fragment, 0, h, 0, j, math.absolute(v)) for j, v in enumerate(values)]
                if isinstance(sink, nodes.ColumnAmax):
                    reduce_over_n(self.tensors[sink.name], fragment, 0, h, math.larger(*magnitudes))
                    continue
                for j in range(2):
                    key = sink.name, j
                    amax_n[key] = math.larger(amax_n[key], magnitudes[j]) if key in amax_n else magnitudes[j]
        for (name, j), value in amax_n.items():
            reduce_over_m(self.tensors[name], fragment, 0, j, value)

    def _element(self, loaded: dict, sums: list, h: int, j: int):
        """A function that evaluates a node for element (h, j), each node once."""
        memo: dict = {}

        def leaf_value(leaf):
            if isinstance(leaf, nodes.Accumulator):
                # A power of two: exact.
                return math.mul(sums[2 * h + j], Float32(2.0**-self.acc_exponent))
            if isinstance(leaf, nodes.Scalar):
                return loaded[leaf.name]
            if isinstance(leaf, nodes.Tile):
                return loaded[leaf.name, h, j]
            return loaded[leaf.name, h if isinstance(leaf, nodes.Column) else j]

        return lambda node: evaluate(node, leaf_value, memo)
