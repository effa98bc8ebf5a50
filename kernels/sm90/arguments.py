"""The arguments of the Hopper GEMM as the compiler sees them: dtypes, shapes by symbol, divisibility and alignment."""

import cutlass.cute as cute
from cutlass import BFloat16, Float16, Float32, Int32, Uint8
from cutlass.cute.runtime import make_fake_compact_tensor, make_fake_stream

from cutefp4 import epilogue as nodes
from cutefp4.gemm_plan import Sm90GemmPlan

DTYPES = {"bfloat16": BFloat16, "float16": Float16, "float32": Float32}


def _row_bytes(access: str, dtype) -> int:
    """What the rows of a matrix start at a multiple of, for a way to access it."""
    return {"tma": 16, "tma_add": 16, "pairs": dtype.width // 4, "elements": dtype.width // 8}[access]


def _column_multiple(plan: Sm90GemmPlan) -> int:
    """What the columns of D are a multiple of, as its store requires."""
    dtype = DTYPES[plan.out_dtype]
    return _row_bytes(plan.store, dtype) * 8 // dtype.width


def _matrix(dtype, *shape, align: int = 16):
    """A row-major fake tensor."""
    order = tuple(reversed(range(len(shape))))
    return make_fake_compact_tensor(dtype, shape, stride_order=order, assumed_align=align)


def _epilogue_fakes(plan: Sm90GemmPlan, l, m, n) -> tuple:
    """Fake tensors of `plan.tensor_names()`, in their order."""
    tree, dtype = plan.epilogue, DTYPES[plan.out_dtype]
    n_out = cute.sym_int(divisibility=_column_multiple(plan)) if tree.halves_columns() else n
    fakes = [_matrix(dtype, l, m, n_out, align=_row_bytes(plan.store, dtype))]
    for leaf in tree.leaves():
        dtype = DTYPES[leaf.dtype]
        shape = {nodes.Row: (l, m), nodes.Column: (l, n), nodes.Scalar: (l,), nodes.Tile: (l, m, n)}
        align = _row_bytes(plan.load if isinstance(leaf, nodes.Tile) else "elements", dtype)
        fakes.append(_matrix(dtype, *shape[type(leaf)], align=align))
    for sink in tree.sinks:
        dtype = DTYPES[sink.dtype] if isinstance(sink, nodes.Store) else Float32
        shape = {nodes.Store: (l, m, n), nodes.RowAmax: (l, m), nodes.ColumnAmax: (l, n)}
        align = _row_bytes(plan.load if isinstance(sink, nodes.Store) else "elements", dtype)
        fakes.append(_matrix(dtype, *shape[type(sink)], align=align))
    if plan.config.uses_workspace:
        registers = plan.config.m_atoms * plan.config.tile_n // 2
        fakes.append(_matrix(Float32, cute.sym_int(), plan.config.consumer_groups, registers, 128))
        fakes.append(_matrix(Int32, cute.sym_int(), align=4))
    if plan.config.staged:
        staged_k = cute.sym_int(divisibility=plan.config.tile_k)
        fakes.append(_matrix(DTYPES[plan.config.decode_to], cute.sym_int(), cute.sym_int(), staged_k))
    return tuple(fakes)


def _operand_fakes(activations: str, scales: str, l, rows, bytes_k) -> tuple:
    """Fake rows and scales of one operand."""
    if activations != "nvfp4":
        return _matrix(DTYPES[activations], l, rows, cute.sym_int(divisibility=64)), _matrix(Uint8, cute.sym_int())
    flat = _matrix(Uint8, cute.sym_int())
    compact = _matrix(Uint8, l, rows, cute.sym_int(divisibility=4), align=4)
    return _matrix(Uint8, l, rows, bytes_k), flat if scales == "tiled" else compact


def fake_arguments(plan: Sm90GemmPlan) -> tuple:
    """Fakes of the arguments of `Sm90Gemm.__call__`, in their order."""
    l, m, bytes_k = cute.sym_int(), cute.sym_int(), cute.sym_int(divisibility=32)
    n = cute.sym_int(divisibility=1 if plan.epilogue.halves_columns() else _column_multiple(plan))
    a = _operand_fakes(plan.activations, plan.a_scales, l, m, bytes_k)
    b = _operand_fakes("nvfp4", plan.b_scales, l, n, bytes_k)
    stream = make_fake_stream(use_tvm_ffi_env_stream=True)
    return *a, *b, _epilogue_fakes(plan, l, m, n), Int32(1), stream
