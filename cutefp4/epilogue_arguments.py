"""The tensors of a composed epilogue: what a GEMM needs, checked and put in order.

`Epilogue.arguments` lists the tensors that the function declared. Amaxes are added here: those of z always, and those
named alpha_a and alpha_b unless the caller passes them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cutefp4 import epilogue as trees
from cutefp4.epilogue import Epilogue
from cutefp4.errors import OperandError
from cutefp4.operand import Nvfp4Operand

ALPHAS = ("alpha_a", "alpha_b")


def epilogue_tensors(
    tree: Epilogue, tensors: Mapping[str, torch.Tensor], a: Nvfp4Operand, b: Nvfp4Operand
) -> dict[str, torch.Tensor]:
    """All tensors of `tree` for the product of two operands: leaves by name, then sinks, each with a batch axis L.

    Args:
        tree: made by the decorator.
        tensors: by name; Row and RowAmax (M,), Column and ColumnAmax (N,), Scalar (), Tile and Store (M, N), with the
            batch in front if the operands have one. Contiguous, on the operands' device, of the declared dtype.

    Raises:
        OperandError: a tensor that is missing, not asked for, or of another shape, dtype or device than declared.
    """
    if not isinstance(tree, Epilogue) or not (tree.arguments or tree.name):
        raise OperandError(
            f"epilogue of type {type(tree).__name__}", "a function decorated with cutefp4.epilogue", "decorate it"
        )
    if not isinstance(tensors, Mapping):
        raise OperandError(f"tensors of type {type(tensors).__name__}", "a mapping from names", "pass tensors={...}")
    given = dict(tensors)
    declared = dict(tree.arguments)
    amaxes = {}
    for name, operand in zip(ALPHAS, (a, b), strict=True):
        if tree.of_z or (name in declared and name not in given):
            amaxes[name] = _amax(name, operand, declared.get(name))
    if set(given) | set(amaxes) != set(declared) | set(amaxes) or set(given) & set(amaxes):
        raise OperandError(
            f"epilogue tensors {sorted(given)}",
            f"{sorted(set(declared) - set(amaxes))}",
            "pass exactly the tensors that the function declares",
        )
    checked = {name: _checked(name, node, given[name], a, b) for name, node in tree.arguments if name not in amaxes}
    sinks = [name for name, node in tree.arguments if isinstance(node, trees.SINKS)]
    leaves = sorted({*declared, *amaxes} - set(sinks))
    return {name: amaxes[name] if name in amaxes else checked[name] for name in (*leaves, *sinks)}


def _amax(name: str, operand: Nvfp4Operand, leaf) -> torch.Tensor:
    """The amaxes of an operand as the tree reads them: (L,) or (L, rows)."""
    amax = operand.amax if operand.batch_shape else operand.amax[None]
    if leaf is None or (operand.scaling == "token") == isinstance(leaf, (trees.Row, trees.Column)):
        return amax
    if operand.scaling == "token":
        raise OperandError(
            f"{name} declared {type(leaf).__name__} for an operand with an amax per row",
            "Row() for alpha_a, Column() for alpha_b",
            "declare it so, or start from z, which fits every operand",
        )
    return amax[:, None].expand(-1, operand.rows).contiguous()


def _checked(name: str, node, t: torch.Tensor, a: Nvfp4Operand, b: Nvfp4Operand) -> torch.Tensor:
    rows, columns = a.rows, b.rows
    sizes = {
        "Row": (rows,), "RowAmax": (rows,), "Column": (columns,), "ColumnAmax": (columns,), "Scalar": (),
        "Tile": (rows, columns), "Store": (rows, columns),
    }  # fmt: skip
    size = sizes[type(node).__name__]
    dtype = getattr(torch, getattr(node, "dtype", "float32"))
    lead = tuple(a.batch_shape)
    shapes = [(*lead, *size)] + ([(1,)] if not lead and not size else [])
    fits = isinstance(t, torch.Tensor) and tuple(t.shape) in shapes and t.is_contiguous()
    if not fits or t.dtype != dtype or t.device != a.device:
        what = f"{t.dtype} {tuple(t.shape)} on {t.device}" if isinstance(t, torch.Tensor) else type(t).__name__
        raise OperandError(
            f"epilogue tensor {name!r}: {what}",
            f"a contiguous {dtype} of shape {shapes[0]} on {a.device}, for {type(node).__name__}",
            f"pass {name} as declared, or declare it otherwise",
        )
    return t.view(lead or (1,)) if not size else (t if lead else t[None])
