"""NVFP4Tensor: a quantised matrix as a torch.Tensor, with a copy for each way that a GEMM may contract it.

`rowwise` holds the matrix with blocks along its last axis, `columnwise` its transpose, with blocks along its first
axis. The tensor has the shape and dtype of the matrix that was quantised. It moves between devices, is cloned,
detached, saved and loaded; every other torch operation raises, because it would have to dequantise behind the caller's
back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from cutefp4 import reference
from cutefp4.errors import OperandError, UnsupportedError
from cutefp4.operand import TENSOR_FIELDS, Nvfp4GroupedOperand, Nvfp4Operand
from cutefp4.recipe import QuantRecipe

COPIES = ("rowwise", "columnwise")
_MUST_AGREE = ("scaling", "e4m3_max", "scale_layout")


def require_consistent(rowwise, columnwise) -> None:
    """Check that two copies describe one matrix: transposed sizes, one device, one scaling, one e4m3_max, one layout.

    Takes two `Nvfp4Operand` or two `Nvfp4GroupedOperand`; either may be None, but not both.

    Raises:
        OperandError: they do not.
    """
    if rowwise is None and columnwise is None:
        raise OperandError("neither a rowwise nor a columnwise copy", "at least one of them", "quantise the matrix")
    if rowwise is not None and rowwise.rht is not None:
        raise OperandError(
            f"a rowwise copy with rht={rowwise.rht:#06x}",
            "a Hadamard transform on the columnwise copy only",
            "pass this operand as columnwise, or as an operand of its own to gemm",
        )
    if rowwise is None or columnwise is None:
        return
    for name in _MUST_AGREE:
        if getattr(rowwise, name) != getattr(columnwise, name):
            raise OperandError(
                f"a rowwise copy with {name}={getattr(rowwise, name)!r} and "
                f"a columnwise copy with {name}={getattr(columnwise, name)!r}",
                f"two copies with the same {name}",
                "quantise both copies in one call with one recipe",
            )
    if (rowwise.rows, rowwise.k) != (columnwise.k, columnwise.rows):
        raise OperandError(
            f"a rowwise copy of {rowwise.rows}x{rowwise.k} and a columnwise copy of {columnwise.rows}x{columnwise.k}",
            f"a columnwise copy of {rowwise.k}x{rowwise.rows}, the transpose",
            "quantise both copies in one call",
        )
    if rowwise.device != columnwise.device:
        raise OperandError(
            f"a rowwise copy on {rowwise.device} and a columnwise copy on {columnwise.device}",
            "two copies on one device",
            "move one with .to(device)",
        )


def _readable(rowwise, columnwise) -> tuple:
    if rowwise is not None:
        return rowwise, False
    if columnwise.rht is not None:
        raise UnsupportedError(
            "dequantize of a tensor whose only copy is Hadamard-transformed",
            "a rowwise copy, or a columnwise copy without rht",
            "quantise with rowwise=True, or dequantise .columnwise and undo the transform yourself",
        )
    return columnwise, True


class NVFP4Tensor(torch.Tensor):
    """A matrix (R, C), or a batch (L, R, C), in NVFP4.

    Args:
        rowwise: Nvfp4Operand with rows=R, k=C, or None.
        columnwise: Nvfp4Operand with rows=C, k=R, or None.
        dtype: the dtype that the tensor shows and dequantises to by default, as the matrix had before.
        recipe: the recipe that made it, None if unknown (imported).

    Raises:
        OperandError: no copy, or two copies that do not fit together.
    """

    rowwise: Nvfp4Operand | None
    columnwise: Nvfp4Operand | None
    recipe: QuantRecipe | None

    @staticmethod
    def __new__(cls, rowwise=None, columnwise=None, dtype=torch.bfloat16, recipe=None):
        require_consistent(rowwise, columnwise)
        one = rowwise or columnwise
        if rowwise and columnwise and rowwise.batch_shape != columnwise.batch_shape:
            raise OperandError(
                f"copies of batch {rowwise.batch_shape} and {columnwise.batch_shape}",
                "two copies of one batch",
                "quantise both copies in one call",
            )
        matrix = (rowwise.rows, rowwise.k) if rowwise else (columnwise.k, columnwise.rows)
        return torch.Tensor._make_wrapper_subclass(cls, (*one.batch_shape, *matrix), dtype=dtype, device=one.device)

    def __init__(self, rowwise=None, columnwise=None, dtype=torch.bfloat16, recipe=None) -> None:
        self.rowwise, self.columnwise, self.recipe = rowwise, columnwise, recipe
        # torch.compile takes the tensor apart by attribute name.
        for copy in self.copies:
            for field in TENSOR_FIELDS:
                setattr(self, f"{copy}_{field}", getattr(getattr(self, copy), field))

    @property
    def copies(self) -> tuple[str, ...]:
        """The copies that exist: a subset of ("rowwise", "columnwise")."""
        return tuple(name for name in COPIES if getattr(self, name) is not None)

    @property
    def quantized_nbytes(self) -> int:
        """Bytes of codes, scales and amaxes of all copies (`nbytes` counts the matrix as if it were dense)."""
        return sum(getattr(self, name).nbytes for name in self.copies)

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The values as a dense tensor of `dtype` (default: this tensor's), from the rowwise copy if there is one.

        Raises:
            UnsupportedError: only a columnwise copy with a Hadamard transform exists; its values are not the matrix.
        """
        operand, transposed = self.readable_copy()
        values = reference.dequantize(operand, dtype or self.dtype)
        return values.transpose(-1, -2).contiguous() if transposed else values

    def readable_copy(self) -> tuple[Nvfp4Operand, bool]:
        """The copy that holds the matrix's own values, and whether it is its transpose; errors as `dequantize`."""
        return _readable(self.rowwise, self.columnwise)

    def map(self, f) -> NVFP4Tensor:
        """A tensor with `f` applied to every inner tensor."""
        rowwise, columnwise = (getattr(self, n).map(f) if n in self.copies else None for n in COPIES)
        return NVFP4Tensor(rowwise, columnwise, self.dtype, self.recipe)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        one = self.rowwise or self.columnwise
        rht = "" if self.columnwise is None or self.columnwise.rht is None else f", rht={self.columnwise.rht:#06x}"
        dense = self.numel() * self.element_size()
        return (
            f"NVFP4Tensor({shape} of {str(self.dtype).removeprefix('torch.')}, {' + '.join(self.copies)}, "
            f"scaling={one.scaling}, e4m3_max={one.e4m3_max}, scales={one.scale_layout}{rht}, "
            f"{self.quantized_nbytes} bytes (dense {dense}), {self.device}, "
            f"recipe: {self.recipe.describe() if self.recipe else 'unknown'})"
        )

    def __tensor_flatten__(self):
        names = [f"{copy}_{field}" for copy in self.copies for field in TENSOR_FIELDS]
        metadata = {copy: getattr(self, copy).metadata() for copy in self.copies}
        return names, (metadata, self.dtype, self.recipe)

    @staticmethod
    def __tensor_unflatten__(inner, context, outer_size=None, outer_stride=None) -> NVFP4Tensor:
        metadata, dtype, recipe = context
        copies = {
            copy: Nvfp4Operand(**{field: inner[f"{copy}_{field}"] for field in TENSOR_FIELDS}, **fields)
            for copy, fields in metadata.items()
        }
        return NVFP4Tensor(copies.get("rowwise"), copies.get("columnwise"), dtype, recipe)

    def __reduce_ex__(self, protocol):
        names, context = self.__tensor_flatten__()
        metadata, dtype, recipe = context
        return rebuild, ({name: getattr(self, name) for name in names}, metadata, dtype, recipe and vars(recipe))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is None:
            raise UnsupportedError(
                f"{func} on an NVFP4Tensor",
                "cutefp4.gemm, dequantize(), .to(device), clone, detach, copy_, save and load",
                "multiply with cutefp4.gemm, or call .dequantize() for a dense tensor",
            )
        return handler(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class NVFP4Copies:
    """What `quantize` returns inside a function that torch.compile traces, in place of an NVFP4Tensor.

    Tracing can follow operands, but cannot make a tensor subclass out of them. `gemm`, `dequantize` and the attributes
    below work alike; outside, `NVFP4Tensor(c.rowwise, c.columnwise, c.dtype, c.recipe)` makes the tensor.
    """

    rowwise: Nvfp4Operand | None
    columnwise: Nvfp4Operand | None
    dtype: torch.dtype
    recipe: QuantRecipe | None

    def readable_copy(self) -> tuple[Nvfp4Operand, bool]:
        """As `NVFP4Tensor.readable_copy`."""
        return _readable(self.rowwise, self.columnwise)


def wrap(copies, dtype: torch.dtype, recipe: QuantRecipe) -> NVFP4Tensor | NVFP4Copies:
    """(rowwise, columnwise) operands as an NVFP4Tensor, or as NVFP4Copies while torch.compile traces."""
    kind = NVFP4Copies if torch.compiler.is_compiling() else NVFP4Tensor
    return kind(*copies, dtype, recipe)


def rebuild(inner: dict, metadata: dict, dtype: torch.dtype, recipe: dict | None) -> NVFP4Tensor:
    """Make an NVFP4Tensor from its inner tensors and plain metadata; what torch.load calls. Validates everything."""
    context = (metadata, dtype, None if recipe is None else QuantRecipe(**recipe))
    return NVFP4Tensor.__tensor_unflatten__(inner, context)


torch.serialization.add_safe_globals([rebuild])


def _detach(t: NVFP4Tensor) -> NVFP4Tensor:
    return t.map(torch.Tensor.detach)


def _clone(t: NVFP4Tensor, memory_format=None) -> NVFP4Tensor:
    return t.map(torch.Tensor.clone)


def _to_copy(t: NVFP4Tensor, dtype=None, device=None, non_blocking=False, **kwargs) -> NVFP4Tensor:
    if dtype not in (None, t.dtype):
        raise UnsupportedError(
            f"conversion of an NVFP4Tensor to {dtype}", "a device", "call .dequantize(dtype) for a dense tensor"
        )
    return t.map(lambda inner: inner.to(device or inner.device, non_blocking=non_blocking, copy=True))


def _copy(target: NVFP4Tensor, source: NVFP4Tensor, non_blocking=False) -> NVFP4Tensor:
    if not (isinstance(target, NVFP4Tensor) and isinstance(source, NVFP4Tensor)) or (
        target.__tensor_flatten__()[1][0] != source.__tensor_flatten__()[1][0]
    ):
        raise OperandError(
            f"copy_ of {source!r} into {target!r}"
            if isinstance(source, NVFP4Tensor)
            else f"copy_ of a {type(source).__name__} into a {type(target).__name__}",
            "two NVFP4Tensors of one shape, with the same copies and metadata",
            "quantise the source with the target's recipe first, or dequantise it",
        )
    for name in target.__tensor_flatten__()[0]:
        getattr(target, name).copy_(getattr(source, name), non_blocking=non_blocking)
    return target


_HANDLERS = {
    torch.ops.aten.detach.default: _detach,
    torch.ops.aten.alias.default: lambda t: t.map(lambda inner: inner),
    torch.ops.aten.clone.default: _clone,
    torch.ops.aten._to_copy.default: _to_copy,
    torch.ops.aten.copy_.default: _copy,
}


@dataclass(frozen=True, eq=False)
class NVFP4GroupedTensor:
    """Grouped matrices (one per expert) in NVFP4: what `quantize_grouped` returns and `grouped_gemm` takes.

    Attributes:
        rowwise: Nvfp4GroupedOperand with ragged="rows", or None.
        columnwise: Nvfp4GroupedOperand with ragged="k", the transpose, or None.
        recipe: the recipe that made it.

    Raises:
        OperandError: no copy, or two copies that do not fit together.
    """

    rowwise: Nvfp4GroupedOperand | None = None
    columnwise: Nvfp4GroupedOperand | None = None
    recipe: QuantRecipe | None = None

    def __post_init__(self) -> None:
        require_consistent(self.rowwise, self.columnwise)
        for name, ragged in zip(COPIES, ("rows", "k"), strict=True):
            copy = getattr(self, name)
            if copy is not None and copy.ragged != ragged:
                raise OperandError(
                    f"a {name} copy with ragged={copy.ragged!r}", f"ragged={ragged!r}", "swap the copies"
                )

    @property
    def offs(self) -> torch.Tensor:
        """int32 (E,) end offsets of the groups along the first axis, on the device."""
        return (self.rowwise or self.columnwise).offs

    @property
    def shape(self) -> tuple[int, int]:
        """(total rows, columns) of the matrix that was quantised."""
        return (self.rowwise.rows, self.rowwise.k) if self.rowwise else (self.columnwise.k, self.columnwise.rows)

    @property
    def device(self) -> torch.device:
        return self.offs.device

    def readable_copy(self) -> tuple[Nvfp4GroupedOperand, bool]:
        """As `NVFP4Tensor.readable_copy`."""
        return _readable(self.rowwise, self.columnwise)

    def to(self, device: torch.device | str) -> NVFP4GroupedTensor:
        """The groups on another device."""
        rowwise, columnwise = (copy and _move_group(copy, device) for copy in (self.rowwise, self.columnwise))
        return NVFP4GroupedTensor(rowwise, columnwise, self.recipe)

    def __repr__(self) -> str:
        rows, columns = self.shape
        copies = " + ".join(name for name in COPIES if getattr(self, name) is not None)
        one = self.rowwise or self.columnwise
        return (
            f"NVFP4GroupedTensor({rows}x{columns} in {one.groups} groups, {copies}, scaling={one.scaling}, "
            f"e4m3_max={one.e4m3_max}, scales={one.scale_layout}, {self.device})"
        )


def _move_group(operand: Nvfp4GroupedOperand, device: torch.device | str) -> Nvfp4GroupedOperand:
    return replace(operand, **{name: getattr(operand, name).to(device) for name in (*TENSOR_FIELDS, "offs")})
