"""The epilogue of one work tile: evaluate the tree on the accumulators and store.

Vectors are loaded before the mainloop of their tile: along m into registers, along n into registers and then shared
memory; C during it. After the mainloop the n-blocks of 8 columns are visited one by one. With split-K only the
warpgroup that holds the finished sum goes on.

Clocks of a tile at 4096^3 on an H200, 128x256: scalar factors 69 600, of which the boxes of D take 2260; with row and
column factors, bias and a bf16 C 71 100 and 3650 for 530 instead of 320 instructions a box and scheduler; the mainloops
are equal. Of the warps in them ncu finds 31 % issuing, 23 % waiting for shared memory, 21 % at barriers and fences.

Tried there, where it takes 187.6 us (full; 183.1 scalar): C and vectors of a box read before it is computed 187.5,
or before the barrier of the box before 187.6; two vectors in one access 0.2 us slower; the accumulators' power of two
multiplied into the row's factor, 128 of 1060 instructions less: full 0.1 us faster, scalar 1.2 faster, but without bias
and C it took 214 us (perhaps serialised wgmma; its SASS was not read). One barrier for two boxes was 0.4 % faster in
two runs, 186.8. Not taken yet: one for four, with C and vectors of the next box read ahead, 608 instead of 615 us at
K = 2048 in one run, nothing at K = 4096.
"""

from dataclasses import dataclass

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from cutefp4 import epilogue as nodes
from cutefp4.config import Sm90Config, store_box_blocks, store_slots

from ..common.device_struct import DeviceStruct
from . import math
from .fragment import Fragment
from .sinks import in_bounds, reduce_over_m, reduce_over_n, store_half, store_pair
from .split_k import SplitK
from .staged_store import StagedStore
from .tree import evaluate


@dataclass(frozen=True)
class EpilogueSpec:
    """Compile-time description of an epilogue.

    Attributes:
        tree: what to compute.
        acc_exponent: the accumulators hold the sum times 2^acc_exponent.
        store: "tma" (16-byte aligned rows), "tma_add" (with load "tma": D = C + z in place, and TMA adds where C is
            not loaded), "pairs" (two columns per access) or "elements".
        load: how `Tile` leaves are read (and extra matrices stored): "tma" (the first one that has elements of D's
            size through D's staging buffer, the others as pairs), "pairs" or "elements".
    """

    tree: nodes.Epilogue
    acc_exponent: int
    store: str
    load: str

    @property
    def staged(self) -> bool:
        """Whether D leaves through shared memory."""
        return self.store in ("tma", "tma_add")


class TileEpilogue(DeviceStruct):
    """The epilogue of one consumer warpgroup, bound to its tensors.

    tensors: by name: D as "d", leaves and sinks by their own names; vectors (L, size), matrices (L, M, N), scalars
    (L,). staged_leaf: name of the `Tile` that comes through the staging buffer, or "".
    """

    def __init__(self, spec, config: Sm90Config, tensors: dict, sizes, parts, staged_leaf: str, consumer, thread):
        self.spec, self.config, self.tensors, self.sizes = spec, config, tensors, sizes
        self.staged, self.split, self.vectors = parts
        self.staged_leaf, self.consumer, self.thread = staged_leaf, consumer, thread

    def prefetch(self, work):
        """Start loading the vectors of a work tile; call it before the mainloop, whose time hides the latency.

        Returns (values along m in registers, this thread's part of the vectors along n, scalars).
        """
        fragment = self._fragment(work)
        along_m = {
            (leaf.name, atom, h): fragment.load_vector(self.tensors[leaf.name], fragment.clamped_m(atom, h))
            for leaf in self._vectors(True)
            for atom in range(self.config.m_atoms)
            for h in range(2)
        }
        first_n = work.n * self.config.tile_n + self.thread
        along_n = {
            (leaf.name, i): fragment.load_vector(
                self.tensors[leaf.name], cutlass.min(first_n + 128 * i, self._columns(leaf) - 1)
            )
            for leaf in self._vectors(False)
            for i in range(-(-self.config.tile_n // 128))
        }
        leaves = [leaf for leaf in self.spec.tree.leaves() if isinstance(leaf, nodes.Scalar)]
        return along_m, along_n, {leaf.name: fragment.load_scalar(self.tensors[leaf.name]) for leaf in leaves}

    @cute.jit
    def during(self, work, k: Int32):
        """Behind stage k of the mainloop of a work tile: load C."""
        if cutlass.const_expr(self.staged_leaf != "" and not self.config.shares_k):
            self.staged.fetch_during(work, k)

    @cute.jit
    def load_c(self, work):
        """The same at once, for a work tile that has no stages."""
        if cutlass.const_expr(self.staged_leaf != ""):
            self.staged.fetch_first(work)

    @cute.jit
    def store_tile(self, work, acc, prefetched, tiles: Int32) -> Int32:
        """Finish one work tile with what `prefetch` returned for it.

        tiles: work tiles that this warpgroup has finished before; returns their number afterwards.
        """
        if cutlass.const_expr(self.config.shares_k):
            if self.split.reduce(work, acc):
                self.load_c(work)
                self.apply(work, acc, prefetched, tiles)
                tiles += 1
        else:
            self.apply(work, acc, prefetched, tiles)
            tiles += 1
        return tiles

    @cute.jit
    def apply(self, work, acc, prefetched, tiles: Int32):
        """Evaluate the tree on finished accumulators and store."""
        along_m, along_n, scalars = prefetched
        loaded = (along_m, scalars)
        fragment = self._fragment(work)
        amax_m: dict = {}
        if cutlass.const_expr(len(along_n) > 0):
            self._share_along_n(along_n)
        if cutlass.const_expr(self.spec.staged):
            for box in cutlass.range_constexpr(self.staged.boxes):
                self.staged.begin(box, tiles)
                self._stage_box(fragment, acc, box, loaded, amax_m)
                self.staged.end(box, work)
        else:
            for block in cutlass.range_constexpr(self.config.tile_n // 8):
                self._block(fragment, acc, block, range(self.config.m_atoms), loaded, amax_m)
        for (name, atom, h), value in amax_m.items():
            reduce_over_n(self.tensors[name], fragment, atom, h, value)

    def _stage_box(self, fragment: Fragment, acc, box: int, loaded, amax_m: dict) -> None:
        """Compute one box of D and write it to shared memory."""
        staged, per_atom = self.staged, self.config.tile_n // (8 * self.staged.blocks)
        atom, first = box // per_atom, box % per_atom * staged.blocks
        for block in range(0, staged.blocks, staged.blocks_per_access):
            access = range(block, block + staged.blocks_per_access)
            tiles = staged.read(box, block) if staged.fetched(box) else [None] * len(access)
            values = [
                self._block(fragment, acc, first + b, [atom], loaded, amax_m, tile)[0]
                for b, tile in zip(access, tiles, strict=True)
            ]
            staged.write(box, block, values)

    def _fragment(self, work) -> Fragment:
        config, lane = self.config, self.thread % 32
        m0 = work.m * config.tile_m + self.consumer * (64 * config.m_atoms) + (self.thread // 32) * 16 + lane // 4
        n0 = work.n * config.tile_n + 2 * (lane % 4)
        return Fragment(m0, n0, work.l, self.sizes[0], self.sizes[1], config.swap_ab)

    def _vectors(self, on_m: bool) -> list:
        """The vector leaves along one side, by name."""
        along_m = nodes.Column if self.config.swap_ab else nodes.Row
        leaves = [leaf for leaf in self.spec.tree.leaves() if isinstance(leaf, (nodes.Row, nodes.Column))]
        return [leaf for leaf in leaves if isinstance(leaf, along_m) == on_m]

    def _columns(self, leaf) -> Int32:
        return self.tensors[leaf.name].shape[1]

    @cute.jit
    def _share_along_n(self, along_n):
        """Put the vectors along n into shared memory: every thread needs two values of each n-block.

        Reading them from global memory per block made the compiler hoist 64 loads and spill 104 bytes.
        """
        tile_n = self.config.tile_n
        vectors = self._vectors(False)
        cute.arch.barrier(barrier_id=1 + self.consumer, number_of_threads=128)
        for v in cutlass.range_constexpr(len(vectors)):
            for i in cutlass.range_constexpr((tile_n + 127) // 128):
                n = self.thread + 128 * i
                slot, value = self.vectors + (v * tile_n + n), along_n[vectors[v].name, i]
                if n < tile_n:
                    cute.make_tensor(slot, cute.make_layout(1))[0] = value
        cute.arch.barrier(barrier_id=1 + self.consumer, number_of_threads=128)

    def _shared_pair(self, v: int, block: int) -> list:
        """The values of n-vector `v` at this thread's two columns of an n-block."""
        offset = v * self.config.tile_n + 8 * block + 2 * (self.thread % 4)
        address = (self.vectors + offset).toint()
        pointer = cute.make_ptr(Float32, address, cute.AddressSpace.smem, assumed_align=8)
        pair = cute.make_tensor(pointer, cute.make_layout(2)).load()
        return [Float32(pair[0]), Float32(pair[1])]

    def _block(self, fragment: Fragment, acc, block: int, atoms, loaded, amax_m: dict, tile=None) -> list:
        """All elements of one n-block of some 64-row tiles.

        tile: values [h][j] of the staged leaf, for a single 64-row tile. Returns D's values [h][j] per 64-row tile
        (staged store).
        """
        along_n = {
            (leaf.name, j): value
            for v, leaf in enumerate(self._vectors(False))
            for j, value in enumerate(self._shared_pair(v, block))
        }
        amax_n: dict = {}
        values = []
        for atom in atoms:
            rows = []
            for h in range(2):
                tiles = self._load_tiles(fragment, atom, h, block)
                if tile is not None:
                    tiles[self.staged_leaf] = tile[h]
                elements = [self._element(acc, loaded, along_n, tiles, (atom, h, block, j)) for j in range(2)]
                out = self.spec.tree.out
                if self.spec.store == "tma_add" and self.staged_leaf and tile is None:
                    out = self.spec.tree.without_addition_to(self.staged_leaf).out
                rows.append(self._store_out(fragment, out, elements, (atom, h, block)))
                self._run_sinks(fragment, elements, (atom, h, block), amax_m, amax_n)
            values.append(rows)
        for (name, j), value in amax_n.items():
            reduce_over_m(self.tensors[name], fragment, block, j, value)
        return values

    def _load_tiles(self, fragment: Fragment, atom: int, h: int, block: int) -> dict:
        """By name, the values [j] of the `Tile` leaves that are read from global memory."""
        leaves = [leaf for leaf in self.spec.tree.leaves() if isinstance(leaf, nodes.Tile)]
        load = fragment.load_elements if self.spec.load == "elements" or self.config.swap_ab else fragment.load_pair
        return {
            leaf.name: load(self.tensors[leaf.name], atom, h, block) for leaf in leaves if leaf.name != self.staged_leaf
        }

    def _element(self, acc, loaded, along_n, tiles: dict, position):
        """A function that evaluates a node for one element, each node once."""
        atom, h, block, j = position
        along_m, scalars = loaded
        memo: dict = {}

        def leaf_value(leaf):
            if isinstance(leaf, nodes.Accumulator):
                # A power of two: exact.
                return math.mul(acc[atom][4 * block + 2 * h + j], Float32(2.0**-self.spec.acc_exponent))
            if isinstance(leaf, nodes.Scalar):
                return scalars[leaf.name]
            if isinstance(leaf, nodes.Tile):
                return tiles[leaf.name][j]
            on_m = isinstance(leaf, nodes.Column if self.config.swap_ab else nodes.Row)
            return along_m[leaf.name, atom, h] if on_m else along_n[leaf.name, j]

        return lambda node: evaluate(node, leaf_value, memo)

    def _store_out(self, fragment: Fragment, out, elements, position):
        """Store D's pair of elements, the expression `out`, or return it for the staged store."""
        d = self.tensors["d"]
        if isinstance(out, nodes.SwigluPair):
            gate, up = (element(out.x) for element in elements)
            store_half(d, fragment, *position, math.mul(math.silu(gate), up))
            return None
        values = [element(out) for element in elements]
        if self.spec.staged:
            return values
        store_pair(d, fragment, *position, values, self.spec.store == "pairs")
        return None

    def _run_sinks(self, fragment: Fragment, elements, position, amax_m: dict, amax_n: dict) -> None:
        atom, h, block = position
        for sink in self.spec.tree.sinks:
            values = [element(sink.value) for element in elements]
            if isinstance(sink, nodes.Store):
                pairs = self.spec.load != "elements" and not self.config.swap_ab
                store_pair(self.tensors[sink.name], fragment, *position, values, pairs)
                continue
            magnitudes = [
                in_bounds(fragment, atom, h, block, j, math.absolute(value)) for j, value in enumerate(values)
            ]
            if isinstance(sink, nodes.RowAmax) != fragment.swap:
                _accumulate(amax_m, (sink.name, atom, h), math.larger(*magnitudes))
            else:
                for j in range(2):
                    _accumulate(amax_n, (sink.name, j), magnitudes[j])


def n_vectors(tree: nodes.Epilogue, swap_ab: bool) -> int:
    """Number of vectors along n."""
    along_n = nodes.Row if swap_ab else nodes.Column
    return sum(isinstance(leaf, along_n) for leaf in tree.leaves())


def _accumulate(maxima: dict, key, value: Float32) -> None:
    maxima[key] = math.larger(maxima[key], value) if key in maxima else value


def bind(spec: EpilogueSpec, config: Sm90Config, tensors: dict, sizes, storage, tmas, consumer: Int32, thread: Int32):
    """The epilogue of consumer warpgroup `consumer`.

    Args:
        tensors: see `TileEpilogue`; with split-K also "partials" and "counters".
        sizes: rows of the register and of the shared operand.
        storage: shared memory: `store` (staging), `tile_full` (barriers of the staged leaf) and `flags`.
        tmas: (atom, coordinate tensor) of D for the staged store, of the staged leaf, and of D for adding to it, or ()
            each.
    """
    staged, staged_leaf = (), ""
    if spec.staged:
        size = tensors["d"].element_type.width // 8
        if tmas[1]:
            staged_leaf = staged_tile(spec.tree, size)
        dtypes = tensors["d"].element_type, tensors[staged_leaf or "d"].element_type
        slots = store_slots(config, size)
        buffer = storage.store + consumer * (slots * 64 * 8 * store_box_blocks(config, size) * size)
        full = storage.tile_full + consumer * slots
        staged = StagedStore(tmas, dtypes, buffer, full, config, consumer, thread)
    split = ()
    if config.shares_k:
        split = SplitK(tensors["partials"], tensors["counters"], storage.flags, config, consumer, thread)
    vectors = storage.vectors + consumer * (n_vectors(spec.tree, config.swap_ab) * config.tile_n)
    return TileEpilogue(spec, config, tensors, sizes, (staged, split, vectors), staged_leaf, consumer, thread)


def staged_tile(tree: nodes.Epilogue, element_bytes: int) -> str:
    """Name of the first `Tile` with elements of this size, which comes through D's staging buffer; "" if none."""
    sizes = {"float32": 4, "bfloat16": 2, "float16": 2}
    tiles = [leaf for leaf in tree.leaves() if isinstance(leaf, nodes.Tile) and sizes[leaf.dtype] == element_bytes]
    return tiles[0].name if tiles else ""
