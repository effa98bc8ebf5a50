"""From the epilogue's registers to global memory, without shared memory: matrices, row and column maxima.

A thread holds consecutive columns of one row. With rows of a multiple of 32 bytes ("vectors") they leave in accesses of
32 bytes, st.global.v8.b32, a whole sector each; else one by one ("elements").
"""

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint32

from cutefp4 import epilogue as nodes
from cutefp4.format import BLOCK

from ..common.ptx import atomic_umax, store_words, warp_umax
from ..epilogue import math
from ..epilogue.arguments import DTYPES
from ..epilogue.sinks import element_pointer, store_values
from .store import to_words

VECTOR_WORDS = 8


def group_columns(plan) -> int:
    """Columns of the product that are evaluated together, so that every matrix fills whole vectors; at least 8."""
    halves = 2 if plan.epilogue.halves_columns() else 1
    widths = [8]
    if plan.out_dtype == "nvfp4":
        widths.append(halves * BLOCK)
    elif plan.store == "vectors":
        widths.append(halves * VECTOR_WORDS * 32 // DTYPES[plan.out_dtype].width)
    if plan.sink_store == "vectors":
        stores = [sink for sink in plan.epilogue.sinks if isinstance(sink, nodes.Store)]
        widths += [VECTOR_WORDS * 32 // DTYPES[sink.dtype].width for sink in stores]
    return max(widths)


def address(tensor: cute.Tensor, coordinates: tuple) -> Int64:
    return Int64(element_pointer(tensor, coordinates).toint())


def _store_vectors(tensor: cute.Tensor, values, place: tuple, valid) -> None:
    row, column, l = place
    words, per_vector = to_words(values, tensor.element_type), VECTOR_WORDS * 32 // tensor.element_type.width
    for i in range(0, len(words), VECTOR_WORDS):
        first = column + i // VECTOR_WORDS * per_vector
        inside = valid & (first < tensor.shape[2])
        store_words(address(tensor, (l, row, first)), tuple(words[i : i + VECTOR_WORDS]), inside)


@cute.jit
def store_row(
    tensor: cute.Tensor, values, row: Int32, column: Int32, l: Int32, rows: Int32, vectors: cutlass.Constexpr
):  # fmt: skip
    """Store consecutive values of this thread's row of a matrix (L, `rows`, columns), those inside it."""
    columns = tensor.shape[2]
    if cutlass.const_expr(vectors):
        _store_vectors(tensor, values, (row, column, l), row < rows)
    else:
        for j in cutlass.range_constexpr(len(values)):
            pointer = element_pointer(tensor, (l, row, column + j))
            if (row < rows) & (column + j < columns):
                store_values(pointer, [values[j]])


def row_amax(running: cute.Tensor, index: int, values: list, column: Int32, columns: Int32) -> None:
    """Raise this thread's running maximum by the values inside the matrix; NaN does not count."""
    for j, value in enumerate(values):
        inside = Float32(cutlass.select_(column + j < columns, math.absolute(value), Float32(0.0)))
        running[index] = math.larger(running[index], inside)


def store_row_amax(tensor: cute.Tensor, value: Float32, l: Int32, row: Int32, rows: Int32) -> None:
    """Into tensor[l, row]. Bits order like non-negative floats."""
    atomic_umax(address(tensor, (l, row)), Uint32(math.bits(value)), row < rows)


def column_amax(tensor: cute.Tensor, values: list, place: tuple, sizes: tuple, lane: Int32) -> None:
    """Maximum over the warp's rows, then into tensor[l, column + j].

    place: (row, column, l). sizes: rows and columns of the matrix.
    """
    row, column, l = place
    for j, value in enumerate(values):
        magnitude = math.absolute(value)
        # larger() drops NaN.
        inside = math.larger(Float32(cutlass.select_(row < sizes[0], magnitude, Float32(0.0))), Float32(0.0))
        largest = warp_umax(Uint32(math.bits(inside)))
        atomic_umax(address(tensor, (l, column + j)), largest, (lane == j) & (column + j < sizes[1]))
