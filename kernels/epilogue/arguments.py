"""The tensors of an epilogue tree as a kernel declares them to the compiler."""

import cutlass.cute as cute
from cutlass import BFloat16, Float16, Float32
from cutlass.cute.runtime import make_fake_compact_tensor

from cutefp4 import epilogue as nodes

DTYPES = {"bfloat16": BFloat16, "float16": Float16, "float32": Float32}


def fake_matrix(dtype, *shape, align: int = 16):
    """A row-major fake tensor."""
    order = tuple(reversed(range(len(shape))))
    return make_fake_compact_tensor(dtype, shape, stride_order=order, assumed_align=align)


def fake_tensors(tree: nodes.Epilogue, out_dtype: str, align: int | None, l, m, n) -> tuple:
    """D, leaves by name and sinks, for a product (L, M, N).

    Args:
        out_dtype: of D.
        align: bytes that every row of D and of the `Tile` leaves starts at a multiple of; None: of an element.
    """

    def matrix(dtype, columns):
        return fake_matrix(dtype, l, m, columns, align=align or dtype.width // 8)

    n_out = cute.sym_int() if tree.halves_columns() else n
    fakes = [matrix(DTYPES[out_dtype], n_out)]
    for leaf in tree.leaves():
        dtype, size = DTYPES[leaf.dtype], DTYPES[leaf.dtype].width // 8
        if isinstance(leaf, nodes.Tile):
            fakes.append(matrix(dtype, n))
        else:
            shape = {nodes.Row: (l, m), nodes.Column: (l, n), nodes.Scalar: (l,)}[type(leaf)]
            fakes.append(fake_matrix(dtype, *shape, align=size))
    for sink in tree.sinks:
        if isinstance(sink, nodes.Store):
            fakes.append(fake_matrix(DTYPES[sink.dtype], l, m, n, align=DTYPES[sink.dtype].width // 8))
        else:
            fakes.append(fake_matrix(Float32, l, m if isinstance(sink, nodes.RowAmax) else n, align=4))
    return tuple(fakes)
