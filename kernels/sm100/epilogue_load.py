"""What the epilogue tree reads besides the accumulators, by the thread's row and a run of columns.

Thread `lane` of epilogue warp w owns row 32 w + lane of the CTA's 128 rows, and walks along the columns:

    Row      one value per thread, a register
    Column   the same for all threads: each warp copies its tile's part to shared memory once, and reads four at a time
    Scalar   a register
    Tile     this row, four columns per access where rows are aligned (store "tma"), else one by one

Loads clamp their index into the matrix instead of branching; what lies outside is never stored.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from cutefp4 import epilogue as nodes
from cutefp4.config_sm100 import Sm100Config

from ..common.device_struct import DeviceStruct
from ..epilogue.sinks import element_pointer

VECTOR = 4


class TileLoads(DeviceStruct):
    """Loads of one epilogue warp.

    tensors: by name; vectors (L, size), matrices (L, M, N), scalars (L,).
    size_m, size_n: of the product.
    """

    def __init__(self, leaves: tuple, tensors: dict, config: Sm100Config, vectors, sizes, warp: Int32, lane: Int32):
        self.leaves, self.tensors, self.config = leaves, tensors, config
        self.size_m, self.size_n = sizes
        self.lane = lane
        self.columns = [leaf for leaf in leaves if isinstance(leaf, nodes.Column)]
        self.vectors = vectors + warp * (len(self.columns) * config.tile_n)

    def begin(self, row: Int32, first_column: Int32, l: Int32) -> dict:
        """Load vectors and scalars of a work tile, before its accumulator is there. Row values and scalars by name."""
        clamped = cutlass.min(row, self.size_m - 1)
        loaded = {}
        for leaf in self.leaves:
            if isinstance(leaf, nodes.Row):
                loaded[leaf.name] = self.tensors[leaf.name][l, clamped].to(Float32)
            elif isinstance(leaf, nodes.Scalar):
                loaded[leaf.name] = self.tensors[leaf.name][l].to(Float32)
        if self.columns:
            self._share_columns(first_column, l)
        return loaded

    def _share_columns(self, first_column: Int32, l: Int32) -> None:
        tile_n = self.config.tile_n
        cute.arch.sync_warp()
        for v, leaf in enumerate(self.columns):
            for i in range(0, tile_n, 32):
                index = cutlass.min(first_column + (i + self.lane), self.size_n - 1)
                slot = cute.make_tensor(self.vectors + (v * tile_n + i + self.lane), cute.make_layout(1))
                slot[0] = self.tensors[leaf.name][l, index].to(Float32)
        cute.arch.sync_warp()

    def column_values(self, offset: Int32, count: int) -> dict:
        """Values of every vector along N at columns offset .. offset + count - 1 of the tile, by name."""
        values = {}
        for v, leaf in enumerate(self.columns):
            values[leaf.name] = []
            for i in range(0, count, VECTOR):
                address = (self.vectors + (v * self.config.tile_n + i + offset)).toint()
                pointer = cute.make_ptr(Float32, address, cute.AddressSpace.smem, assumed_align=16)
                four = cute.make_tensor(pointer, cute.make_layout(VECTOR)).load()
                values[leaf.name] += [Float32(four[j]) for j in range(VECTOR)]
        return values

    def tile_values(self, row: Int32, column: Int32, l: Int32, count: int, aligned: bool) -> dict:
        """Values of every Tile leaf at row and columns column .. column + count - 1 of D, by name."""
        return {
            leaf.name: self._row_of(self.tensors[leaf.name], row, column, l, count, VECTOR if aligned else 1)
            for leaf in self.leaves
            if isinstance(leaf, nodes.Tile)
        }

    def _row_of(self, tensor, row: Int32, column: Int32, l: Int32, count: int, width: int) -> list:
        values = []
        clamped = cutlass.min(row, self.size_m - 1)
        for i in range(0, count, width):
            first = cutlass.min(column + i, self.size_n - width)
            pointer = element_pointer(tensor, (l, clamped, first), width)
            loaded = cute.make_tensor(pointer, cute.make_layout(width)).load()
            values += [tensor.element_type(loaded[j]).to(Float32) for j in range(width)]
        return values
