"""The epilogue warps: tensor memory, through the epilogue tree, to D.

Thread `lane` of warp w has row 32 w + lane of the CTA's 128 rows. A tile is read in panels of 64 columns, 32 per
tcgen05.ld, and the tree is evaluated for 8 columns at a time. When the panel that the next accumulator needs (or,
without overlap, the last one) is in registers, the warp releases the accumulator and the MMA warp goes on.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint32

from cutefp4 import epilogue as nodes
from cutefp4.config_sm100 import CTA_ROWS, PANEL, tmem_layout

from ..common.device_struct import DeviceStruct
from ..common.ptx import atomic_umax, warp_umax
from ..epilogue import math
from ..epilogue.sinks import element_pointer, store_values
from . import tcgen05
from .epilogue_load import TileLoads
from .mma import acc_column
from .packed import evaluate_pair
from .split_k import SplitSum
from .store import WarpStore, buffer_columns

READ = 32
"""Columns per tcgen05.ld."""
GROUP = 8
"""Columns that are evaluated together: 16 bytes of bf16."""


class TmemEpilogue(DeviceStruct):
    """The epilogue of one warp.

    tensors: by name: D as "d", leaves and sinks by their own names.
    """

    def __init__(self, plan, tensors: dict, sizes, storage, tma_d: tuple, place, tmem: Int32, warp: Int32, lane: Int32):
        self.plan, self.config, self.tree = plan, plan.config, plan.kernel_tree()
        self.tensors, self.place, self.warp, self.lane = tensors, place, warp, lane
        self.size_m, self.size_n = sizes
        self.tmem = tmem + (warp << 21)
        self.loads = TileLoads(self.tree.leaves(), tensors, plan.config, storage.vectors, sizes, warp, lane)
        self.dtype = tensors["d"].element_type
        self.store = WarpStore(tma_d, storage.store, warp, lane, self.dtype) if tma_d else ()
        self.row_sinks = [sink for sink in self.tree.sinks if isinstance(sink, nodes.RowAmax)]
        self.row_max = cute.make_rmem_tensor(max(len(self.row_sinks), 1), Float32)
        self.split = ()
        if plan.config.splits > 1:
            self.split = SplitSum(tensors["partials"], tensors["counters"], plan.config.splits, warp, lane)

    @cute.jit
    def run(self, work, acc_ring, state, turn):
        """One work tile; returns the store buffer to use next."""
        config, layout = self.config, tmem_layout(self.config)
        m, n, l = self.place.m_tile(work), self.place.n_tile(work), work.l
        row, column = m * CTA_ROWS + 32 * self.warp + self.lane, n * config.tile_n
        loaded = self.loads.begin(row, column, l)
        self.row_max.fill(0.0)
        release_at = 0 if layout.overlapped else config.panels - 1
        first_panel = Int32(0)
        if cutlass.const_expr(layout.overlapped):
            # The columns that both accumulators share: the last panel of the first, the first panel of the second.
            first_panel = (config.panels - 1) * (1 - state.phase)
        acc_ring.wait_full(state)
        tcgen05.fence_after()
        acc = self.tmem + acc_column(state, layout, False)
        for i in cutlass.range(config.panels, unroll=1):
            panel = (first_panel + i) % config.panels
            for half in cutlass.range_constexpr(PANEL // READ):
                offset = panel * PANEL + half * READ
                values = tcgen05.load_columns(acc + offset, READ)
                if cutlass.const_expr(half == PANEL // READ - 1):
                    if i == release_at:
                        self._release(acc_ring, state)
                if cutlass.const_expr(config.splits > 1):
                    self._write_partials(work, values, column, offset)
                else:
                    turn = self._finish(values, (row, column, l, offset), loaded, half, (m, n, panel), turn)
        if cutlass.const_expr(config.splits > 1):
            if self.split.count_in(work):
                for panel in cutlass.range(config.panels, unroll=1):
                    for half in cutlass.range_constexpr(PANEL // READ):
                        offset = panel * PANEL + half * READ
                        values = self._read_partials(work, column, offset)
                        turn = self._finish(values, (row, column, l, offset), loaded, half, (m, n, panel), turn)
        for i in cutlass.range_constexpr(len(self.row_sinks)):
            where = self._address(self.row_sinks[i].name, (l, row))
            atomic_umax(where, Uint32(math.bits(self.row_max[i])), row < self.size_m)
        return turn

    @cute.jit
    def _finish(self, values, position, loaded, half: cutlass.Constexpr, tile, turn):
        """32 finished sums of this thread's row: evaluate and store; returns the store buffer to use next."""
        row, column, l, offset = position
        if cutlass.const_expr(self.plan.store == "tma"):
            turn = self._stage(values, position, loaded, half, tile, turn)
        else:
            for g in cutlass.range_constexpr(0, READ, GROUP):
                if column + offset + g < self.size_n:
                    out = self._evaluate(values[g : g + GROUP], position, g, loaded)
                    self._store_elements(self.tensors["d"], out, row, self._d_column(column, offset, g), l)
        return turn

    @cute.jit
    def _write_partials(self, work, values, column: Int32, offset: Int32):
        for g in cutlass.range_constexpr(0, READ, GROUP):
            if column + offset + g < self.size_n:
                self.split.write(work, offset + g, values[g : g + GROUP])

    @cute.jit
    def _read_partials(self, work, column: Int32, offset: Int32):
        sums = cute.make_rmem_tensor(READ, Float32)
        for g in cutlass.range_constexpr(0, READ, GROUP):
            if column + offset + g < self.size_n:
                self.split.add_up(work, offset + g, sums, g, GROUP)
        return tuple(sums[j] for j in range(READ))

    def _release(self, acc_ring, state) -> None:
        """This warp has read what the next accumulator overwrites."""
        tcgen05.fence_before()
        with cute.arch.elect_one():
            if self.config.cta_group == 1:
                acc_ring.arrive_empty(state.index)
            else:
                barrier = Int32((acc_ring.empty + state.index).toint())
                tcgen05.arrive_in_cluster(barrier, self.place.leader)

    @cute.jit
    def _stage(self, values, position, loaded, half: cutlass.Constexpr, tile, turn):
        """Evaluate 32 columns and write them to a buffer; send it when its rows are full."""
        columns = buffer_columns(self.dtype)
        chunks_per_group = GROUP * self.dtype.width // 128
        first_chunk = (half * READ) % columns * self.dtype.width // 128
        if cutlass.const_expr(half * READ % columns == 0):
            self.store.wait_buffer()
        for g in cutlass.range_constexpr(0, READ, GROUP):
            out = self._evaluate(values[g : g + GROUP], position, g, loaded)
            self.store.put(turn, first_chunk + g // GROUP * chunks_per_group, out)
        if cutlass.const_expr((half + 1) * READ % columns == 0):
            m, n, panel = tile
            per_panel = PANEL // columns
            column_tile = (n * self.config.panels + panel) * per_panel + half * READ // columns
            self.store.send(turn, m * (CTA_ROWS // 32) + self.warp, column_tile, position[2])
            turn = turn ^ 1
        return turn

    def _d_column(self, column: Int32, offset: Int32, g: int) -> Int32:
        """Column of D of product column `column + offset + g`."""
        return (column + offset + g) // (2 if self.tree.halves_columns() else 1)

    def _evaluate(self, acc: tuple, position: tuple, g: int, loaded: dict) -> list:
        """D's fp32 values at 8 columns of this thread's row; runs the sinks, too."""
        row, first, l, offset = position
        column = first + offset + g
        along_n = self.loads.column_values(offset + g, GROUP)
        tiles = self.loads.tile_values(row, column, l, GROUP, self.plan.store == "tma")
        pairs = [self._pair(acc[j : j + 2], j, loaded, along_n, tiles) for j in range(0, GROUP, 2)]
        self._run_sinks(pairs, row, column, l)
        out = self.tree.out
        if isinstance(out, nodes.SwigluPair):
            return [math.mul(math.silu(gate), up) for gate, up in (pair(out.x) for pair in pairs)]
        return [value for pair in pairs for value in pair(out)]

    def _pair(self, acc: tuple, j: int, loaded: dict, along_n: dict, tiles: dict):
        """A function that evaluates a node for columns j and j + 1, each node once."""
        memo: dict = {}

        def leaf_value(leaf):
            if isinstance(leaf, nodes.Accumulator):
                return acc
            if isinstance(leaf, (nodes.Column, nodes.Tile)):
                values = along_n if isinstance(leaf, nodes.Column) else tiles
                return tuple(values[leaf.name][j : j + 2])
            return loaded[leaf.name], loaded[leaf.name]

        return lambda node: evaluate_pair(node, leaf_value, memo)

    def _run_sinks(self, pairs: list, row: Int32, column: Int32, l: Int32) -> None:
        for sink in self.tree.sinks:
            values = [value for pair in pairs for value in pair(sink.value)]
            if isinstance(sink, nodes.Store):
                self._store_elements(self.tensors[sink.name], values, row, column, l)
                continue
            magnitudes = [math.absolute(v) for v in values]
            if isinstance(sink, nodes.RowAmax):
                self._row_amax(self.row_sinks.index(sink), magnitudes, column)
            else:
                self._column_amax(sink.name, magnitudes, row, column, l)

    def _row_amax(self, index: int, magnitudes: list, column: Int32) -> None:
        for j, value in enumerate(magnitudes):
            inside = Float32(cutlass.select_(column + j < self.size_n, value, Float32(0.0)))
            self.row_max[index] = math.larger(self.row_max[index], inside)

    def _column_amax(self, name: str, magnitudes: list, row: Int32, column: Int32, l: Int32) -> None:
        """Maximum over the warp's rows, then into tensor[l, column + j]. Bits order like non-negative floats."""
        for j, value in enumerate(magnitudes):
            # larger() drops NaN.
            inside = math.larger(Float32(cutlass.select_(row < self.size_m, value, Float32(0.0))), Float32(0.0))
            largest = warp_umax(Uint32(math.bits(inside)))
            where = self._address(name, (l, column + j))
            atomic_umax(where, largest, (self.lane == j) & (column + j < self.size_n))

    def _address(self, name: str, coordinates: tuple) -> Int64:
        return Int64(element_pointer(self.tensors[name], coordinates).toint())

    @cute.jit
    def _store_elements(self, tensor: cute.Tensor, values, row: Int32, column: Int32, l: Int32):
        """Store consecutive values of this thread's row, one by one."""
        columns = tensor.shape[2]
        for j in cutlass.range_constexpr(len(values)):
            pointer = element_pointer(tensor, (l, row, column + j))
            if (row < self.size_m) & (column + j < columns):
                store_values(pointer, [values[j]])


@cute.jit
def epilogue_role(scheduler, queue, acc_ring, epilogue: TmemEpilogue):
    """Finish every work tile of this CTA (one of four warps)."""
    state = acc_ring.consumer_state()
    turn = Int32(0)
    while queue.more():
        turn = epilogue.run(scheduler.work(queue.index), acc_ring, state, turn)
        state.advance()
        queue.advance()
    if cutlass.const_expr(epilogue.plan.store == "tma"):
        epilogue.store.drain()
