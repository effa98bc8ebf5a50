"""Stores and reductions of single elements: direct stores of D and extra matrices, row and column amax.

The staged TMA store of D is in staged_store.py.
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from . import math
from .fragment import Fragment, element_pointer


def store_values(pointer: cute.Pointer, values: list) -> None:
    """Convert fp32 values to the pointer's type and store them as one access."""
    registers = cute.make_rmem_tensor(len(values), pointer.dtype)
    for i, value in enumerate(values):
        registers[i] = value.to(pointer.dtype)
    cute.make_tensor(pointer, cute.make_layout(len(values))).store(registers.load())


@cute.jit
def store_pair(
    tensor: cute.Tensor, fragment: Fragment, atom: cutlass.Constexpr, h: cutlass.Constexpr, block: cutlass.Constexpr,
    values, vector: cutlass.Constexpr
):  # fmt: skip
    """Store the elements j = 0, 1; as one access if `vector` (columns contiguous, even row length, aligned base)."""
    m = fragment.m(atom, h)
    if cutlass.const_expr(vector):
        n = fragment.n(block, 0)
        pointer = element_pointer(tensor, (fragment.l, m, n), 2)
        if (m < fragment.size_m) & (n < fragment.size_n):
            store_values(pointer, values)
    else:
        for j in cutlass.range_constexpr(2):
            n = fragment.n(block, j)
            pointer = element_pointer(tensor, (fragment.l, *fragment.row_column(m, n)))
            if (m < fragment.size_m) & (n < fragment.size_n):
                store_values(pointer, [values[j]])


@cute.jit
def store_half(
    tensor: cute.Tensor, fragment: Fragment, atom: cutlass.Constexpr, h: cutlass.Constexpr, block: cutlass.Constexpr,
    value: Float32
):  # fmt: skip
    """Store one value per column pair: D has half the columns (SwiGLU)."""
    m, n = fragment.m(atom, h), fragment.n(block, 0)
    pointer = element_pointer(tensor, (fragment.l, m, n // 2))
    if (m < fragment.size_m) & (n < fragment.size_n):
        store_values(pointer, [value])


def in_bounds(fragment: Fragment, atom: int, h: int, block: int, j: int, value: Float32) -> Float32:
    """`value` inside the matrix, 0 outside (for reductions)."""
    inside = (fragment.m(atom, h) < fragment.size_m) & (fragment.n(block, j) < fragment.size_n)
    return Float32(cutlass.select_(inside, value, Float32(0.0)))


@cute.jit
def reduce_over_n(
    tensor: cute.Tensor, fragment: Fragment, atom: cutlass.Constexpr, h: cutlass.Constexpr, value: Float32
):
    """Maximum of one m over the quad's columns, then into tensor[l, m]."""
    for offset in cutlass.range_constexpr(2):
        value = math.larger(value, cute.arch.shuffle_sync_bfly(value, offset=1 << offset))
    m = fragment.m(atom, h)
    pointer = element_pointer(tensor, (fragment.l, m))
    if (m < fragment.size_m) & (fragment.n0 % 8 == 0):
        _atomic_max(pointer, value)


@cute.jit
def reduce_over_m(
    tensor: cute.Tensor, fragment: Fragment, block: cutlass.Constexpr, j: cutlass.Constexpr, value: Float32
):
    """Maximum of one n over the warp's rows, then into tensor[l, n]."""
    for offset in cutlass.range_constexpr(2, 5):
        value = math.larger(value, cute.arch.shuffle_sync_bfly(value, offset=1 << offset))
    n = fragment.n(block, j)
    pointer = element_pointer(tensor, (fragment.l, n))
    if (n < fragment.size_n) & fragment.leads_m():
        _atomic_max(pointer, value)


def _atomic_max(pointer: cute.Pointer, value: Float32) -> None:
    """Bit patterns of non-negative floats order like the floats."""
    cute.arch.atomic_max(cute.recast_ptr(pointer, dtype=Int32), math.bits(value), scope="gpu", sem="relaxed")
