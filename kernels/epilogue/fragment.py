"""Where the elements of a wgmma accumulator lie, and the tensors that the tree reads and writes there.

Of a 64 x tile_n accumulator, thread `lane` of warp `w` holds, in n-block b of 8 columns, the elements

    acc[4b + 2h + j]:   m = 16 w + lane // 4 + 8 h,   n = 8 b + 2 (lane % 4) + j        h, j in {0, 1}

"m" is the side of the register operand and "n" the side of the shared one. Without swap_ab they are rows and columns of
D, with it columns and rows.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Boolean, Float32, Int32

from cutefp4 import epilogue as nodes

from ..common.device_struct import DeviceStruct


class Fragment(DeviceStruct):
    """Coordinates of one thread's elements of one work tile, and access to D-shaped tensors and vectors at them.

    Loads clamp their index into the matrix instead of branching; what lies outside is never stored.
    """

    def __init__(self, m0: Int32, n0: Int32, l: Int32, size_m: Int32, size_n: Int32, swap: bool):
        self.m0, self.n0, self.l, self.size_m, self.size_n, self.swap = m0, n0, l, size_m, size_n, swap

    def m(self, atom: int, h: int) -> Int32:
        return self.m0 + (64 * atom + 8 * h)

    def n(self, block: int, j: int) -> Int32:
        return self.n0 + (8 * block + j)

    def leads_m(self) -> Boolean:
        """Whether this lane has the first of the eight m of an 8x8 piece (one lane of each column does)."""
        return self.m0 % 8 == 0

    def clamped_m(self, atom: int, h: int) -> Int32:
        return cutlass.min(self.m(atom, h), self.size_m - 1)

    def clamped_n(self, block: int, j: int) -> Int32:
        return cutlass.min(self.n(block, j), self.size_n - 1)

    def on_m(self, leaf: nodes.Leaf) -> bool:
        """Whether a vector runs along m."""
        return isinstance(leaf, nodes.Column if self.swap else nodes.Row)

    def row_column(self, m: Int32, n: Int32):
        """(row, column) of D."""
        return (n, m) if self.swap else (m, n)

    def load_vector(self, tensor: cute.Tensor, index: Int32) -> Float32:
        return tensor[self.l, index].to(Float32)

    def load_scalar(self, tensor: cute.Tensor) -> Float32:
        return tensor[self.l].to(Float32)

    def load_elements(self, tensor: cute.Tensor, atom: int, h: int, block: int) -> list:
        """The values of a D-shaped tensor at j = 0, 1."""
        m = self.clamped_m(atom, h)
        return [tensor[(self.l, *self.row_column(m, self.clamped_n(block, j)))].to(Float32) for j in range(2)]

    def load_pair(self, tensor: cute.Tensor, atom: int, h: int, block: int) -> list:
        """The same in one access: without swap, for even row lengths and a base aligned to two elements."""
        n = cutlass.min(self.n(block, 0), self.size_n - 2)
        pointer = element_pointer(tensor, (self.l, self.clamped_m(atom, h), n), 2)
        pair = cute.make_tensor(pointer, cute.make_layout(2)).load()
        return [pair[j].to(Float32) for j in range(2)]


def element_pointer(tensor: cute.Tensor, coordinates, elements: int = 1) -> cute.Pointer:
    """Pointer to `elements` consecutive elements of a global tensor, aligned to their size.

    Stores inside a runtime `if` go through pointers: assigning to a tensor there would make it a value of the branch.
    """
    dtype = tensor.element_type
    address = (tensor.iterator + cute.crd2idx(coordinates, tensor.layout)).toint()
    return cute.make_ptr(dtype, address, cute.AddressSpace.gmem, assumed_align=elements * dtype.width // 8)
