"""The epilogue warps: tensor memory, through the epilogue tree, to D.

Thread `lane` of warp w has row 32 w + lane of the CTA's 128 rows. A tile is read in panels of 64 columns, 32 per
tcgen05.ld, and the tree is evaluated for a group of columns at a time: 8 (16 bytes of bf16), or what the widest store
takes. When the panel that the next accumulator needs (or, without overlap, the last one) is in registers, the warp
releases the accumulator and the MMA warp goes on.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from cutefp4 import epilogue as nodes
from cutefp4.config_sm100 import CTA_ROWS, PANEL, tmem_layout

from ..common.device_struct import DeviceStruct
from . import tcgen05
from .direct_store import column_amax, group_columns, row_amax, store_row, store_row_amax
from .epilogue_load import TileLoads
from .mma import acc_column
from .packed import evaluate_pair
from .quant_store import QuantStore
from .split_k import SplitSum
from .store import WarpStore, buffer_columns
from .tile_stage import TileStage

READ = 32
"""Columns per tcgen05.ld."""


class TmemEpilogue(DeviceStruct):
    """The epilogue of one warp.

    tensors: by name: D as "d", leaves and sinks by their own names. tma: of D, and of the matrices read through shared
    memory.

    Below, `at` = (row, first column of the work tile, l, panel) is where a thread reads; the column within the panel is
    a constant, as tensor memory is read in unrolled pieces.
    """

    def __init__(self, plan, tensors: dict, sizes, storage, tma: tuple, place, tmem: Int32, warp: Int32, lane: Int32):
        tma_d, tma_tiles = tma
        self.plan, self.config, self.tree = plan, plan.config, plan.kernel_tree()
        self.tensors, self.place, self.warp, self.lane = tensors, place, warp, lane
        self.size_m, self.size_n = sizes
        self.group = group_columns(plan)
        self.tmem = tmem + (warp << 21)
        self.loads = TileLoads(self.tree.leaves(), tensors, plan.config, storage.vectors, sizes, warp, lane)
        self.staged = {
            name: TileStage(tma_tiles[i], tensors[name].element_type, storage, i, warp, lane, plan.config.panels)
            for i, name in enumerate(plan.staged_tiles())
        }
        self.dtype = tensors["d"].element_type
        self.store = WarpStore(tma_d, storage.store, warp, lane, self.dtype) if tma_d else ()
        self.row_sinks = [sink for sink in self.tree.sinks if isinstance(sink, nodes.RowAmax)]
        self.row_max = cute.make_rmem_tensor(max(len(self.row_sinks), 1), Float32)
        self.quant = ()
        if self.tree.quantizes():
            self.quant = QuantStore(self.tree.out, tensors["d"], tensors["d_scales"], sizes, plan)
        self.split = ()
        if plan.config.splits > 1:
            self.split = SplitSum(tensors["partials"], tensors["counters"], plan.config, place, warp, lane)

    @cute.jit
    def run(self, work, acc_ring, state, turn):
        """One work tile; returns the store buffer to use next."""
        config, layout = self.config, tmem_layout(self.config)
        m, n, l = self.place.m_tile(work), self.place.n_tile(work), work.l
        row, column = m * CTA_ROWS + 32 * self.warp + self.lane, n * config.tile_n
        loaded = self.loads.begin(row, column, l)
        if cutlass.const_expr(self.tree.quantizes()):
            loaded |= self.quant.outer(loaded)
        self.row_max.fill(0.0)
        release_at = 0 if layout.overlapped else config.panels - 1
        first_panel = Int32(0)
        if cutlass.const_expr(layout.overlapped):
            # The columns that both accumulators share: the last panel of the first, the first panel of the second.
            first_panel = (config.panels - 1) * (1 - state.phase)
        chunks_at = (m * (CTA_ROWS // 32) + self.warp, n * config.panels, first_panel, l)
        for stage in self.staged.values():
            stage.begin(chunks_at)
        acc_ring.wait_full(state)
        tcgen05.fence_after()
        acc = self.tmem + acc_column(state, layout, False)
        for i in cutlass.range(config.panels, unroll=1):
            panel = (first_panel + i) % config.panels
            for first in cutlass.range_constexpr(0, PANEL, READ):
                values = tcgen05.load_columns(acc + panel * PANEL + first, READ)
                if cutlass.const_expr(first == PANEL - READ):
                    if i == release_at:
                        self._release(acc_ring, state)
                if cutlass.const_expr(config.splits > 1):
                    self._write_partials(work, values, (row, column, l, panel), first)
                else:
                    for stage in self.staged.values():
                        stage.before(first)
                    turn = self._finish(values, (row, column, l, panel), loaded, first, turn)
                    for stage in self.staged.values():
                        stage.after(i, first + READ, chunks_at)
        if cutlass.const_expr(config.splits > 1):
            if self.split.count_in(work):
                for panel in cutlass.range(config.panels, unroll=1):
                    for first in cutlass.range_constexpr(0, PANEL, READ):
                        values = self._read_partials(work, (row, column, l, panel), first)
                        turn = self._finish(values, (row, column, l, panel), loaded, first, turn)
        for i in cutlass.range_constexpr(len(self.row_sinks)):
            store_row_amax(self.tensors[self.row_sinks[i].name], self.row_max[i], l, row, self.size_m)
        return turn

    @cute.jit
    def _finish(self, values, at, loaded, first: cutlass.Constexpr, turn):
        """32 finished sums of this thread's row: evaluate and store; returns the store buffer to use next."""
        if cutlass.const_expr(self.plan.store == "tma"):
            turn = self._stage(values, at, loaded, first, turn)
        elif cutlass.const_expr(self.tree.quantizes()):
            self._quantize(values, at, loaded, first)
        else:
            for g in cutlass.range_constexpr(0, READ, self.group):
                if self._column(at, first + g) < self.size_n:
                    out = self._evaluate(values[g : g + self.group], at, first + g, loaded)
                    column = self._column(at, first + g) // (2 if self.tree.halves_columns() else 1)
                    vectors = self.plan.store == "vectors"
                    store_row(self.tensors["d"], out, at[0], column, at[2], self.size_m, vectors)
        return turn

    @cute.jit
    def _quantize(self, values, at, loaded, first: cutlass.Constexpr):
        """Evaluate and encode 32 columns; write the panel when it is complete."""
        row, _, l, _ = at
        if cutlass.const_expr(first == 0):
            self.quant.begin_panel()
        for g in cutlass.range_constexpr(0, READ, self.group):
            column = self._column(at, first + g)
            if column < self.size_n:
                out = self._evaluate(values[g : g + self.group], at, first + g, loaded)
                self.quant.put(first + g, out, (row, column, l), loaded)
        if cutlass.const_expr(first + READ == PANEL):
            self.quant.end_panel(row, self._column(at, 0), l)

    @cute.jit
    def _write_partials(self, work, values, at, first: cutlass.Constexpr):
        for g in cutlass.range_constexpr(0, READ, self.group):
            if self._column(at, first + g) < self.size_n:
                self.split.write(work, at[3] * PANEL + (first + g), values[g : g + self.group])

    @cute.jit
    def _read_partials(self, work, at, first: cutlass.Constexpr):
        sums = cute.make_rmem_tensor(READ, Float32)
        for g in cutlass.range_constexpr(0, READ, self.group):
            if self._column(at, first + g) < self.size_n:
                self.split.add_up(work, at[3] * PANEL + (first + g), sums, g, self.group)
        return tuple(sums[j] for j in range(READ))

    def _column(self, at: tuple, column: int) -> Int32:
        """Column of the product of column `column` of the panel."""
        return at[1] + at[3] * PANEL + column

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
    def _stage(self, values, at, loaded, first: cutlass.Constexpr, turn):
        """Evaluate 32 columns and write them to a buffer; send it when its rows are full."""
        columns = buffer_columns(self.dtype)
        if cutlass.const_expr(first % columns == 0):
            self.store.wait_buffer()
        for g in cutlass.range_constexpr(0, READ, self.group):
            out = self._evaluate(values[g : g + self.group], at, first + g, loaded)
            self.store.put(turn, (first + g) % columns * self.dtype.width // 128, out)
        if cutlass.const_expr((first + READ) % columns == 0):
            row, column, l, panel = at
            column_tile = (column // PANEL + panel) * (PANEL // columns) + first // columns
            self.store.send(turn, row // 32, column_tile, l)
            turn = turn ^ 1
        return turn

    def _evaluate(self, acc: tuple, at: tuple, first: int, loaded: dict) -> list:
        """D's fp32 values at a group of columns of this thread's row; runs the sinks, too."""
        row, _, l, panel = at
        column = self._column(at, first)
        along_n = self.loads.column_values(panel * PANEL + first, self.group)
        tiles = {name: stage.values(first, self.group) for name, stage in self.staged.items()}
        if not self.staged:
            tiles = self.loads.tile_values(row, column, l, self.group, self.plan.store != "elements")
        pairs = [self._pair(acc[j : j + 2], j, loaded, along_n, tiles) for j in range(0, self.group, 2)]
        self._run_sinks(pairs, (row, column, l))
        out = self.tree.out
        if isinstance(out, nodes.Nvfp4):
            out = out.x
        if isinstance(out, nodes.SwigluPair):
            return [pair(out)[0] for pair in pairs]
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

    def _run_sinks(self, pairs: list, place: tuple) -> None:
        row, column, l = place
        for sink in self.tree.sinks:
            values = [value for pair in pairs for value in pair(sink.value)]
            tensor = self.tensors[sink.name]
            if isinstance(sink, nodes.Store):
                store_row(tensor, values, row, column, l, self.size_m, self.plan.sink_store == "vectors")
            elif isinstance(sink, nodes.RowAmax):
                row_amax(self.row_max, self.row_sinks.index(sink), values, column, self.size_n)
            else:
                column_amax(tensor, values, place, (self.size_m, self.size_n), self.lane)


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
