"""Quantised tensors in safetensors files: `save_safetensors`, `load_safetensors`.

A file holds the inner tensors of each NVFP4Tensor `w` as `w.rowwise.codes`, `w.rowwise.block_scales`, `w.rowwise.amax`
(and `w.columnwise...`), dense tensors as they are, and in its metadata under "cutefp4" a JSON document:

    {"version": 1, "tensors": {"w": {"dtype": "bfloat16", "recipe": {...} or null,
                                     "copies": {"rowwise": {"scaling": "token", "e4m3_max": 448, ...}}}}}

so that any safetensors reader sees plain uint8, float8_e4m3fn and float32 tensors. Loading validates every operand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cutefp4.errors import CheckpointError, CuteFP4Error
from cutefp4.operand import TENSOR_FIELDS, Nvfp4Operand
from cutefp4.recipe import QuantRecipe
from cutefp4.tensor import COPIES, NVFP4Tensor

VERSION = 1
KEY = "cutefp4"
_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.bfloat16, torch.float16, torch.float32)}


def save_safetensors(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write NVFP4Tensors and dense tensors to one safetensors file.

    Args:
        path: the file; overwritten.
        tensors: by name.

    Raises:
        CheckpointError: a value is no tensor, or two names collide in the file.
    """
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"tensors of type {type(tensors).__name__}", "a mapping from names", "pass (path, {...})")
    flat: dict[str, torch.Tensor] = {}
    described = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, NVFP4Tensor):
            described[name] = _describe(tensor)
            parts = {
                f"{name}.{copy}.{field}": getattr(getattr(tensor, copy), field)
                for copy in tensor.copies
                for field in TENSOR_FIELDS
            }
        elif isinstance(tensor, torch.Tensor):
            parts = {name: tensor}
        else:
            raise CheckpointError(
                f"{name!r} of type {type(tensor).__name__}", "NVFP4Tensor or torch.Tensor", "leave it out or convert it"
            )
        for key, part in parts.items():
            if key in flat:
                raise CheckpointError(f"two tensors that are both stored as {key!r}", "distinct names", "rename one")
            # safetensors refuses tensors that share memory, such as the one amax of two copies.
            flat[key] = part.detach().clone(memory_format=torch.contiguous_format)
    save_file(flat, path, metadata={"format": "pt", KEY: json.dumps({"version": VERSION, "tensors": described})})


def load_safetensors(path: str | Path, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Read a file that `save_safetensors` wrote: name to NVFP4Tensor or dense tensor.

    Raises:
        CheckpointError: there is no such file, it is damaged, it was not written by `save_safetensors`, or its contents
            do not fit its metadata.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: {error}", "a readable safetensors file", "check the path, or copy or save the file again"
        ) from error
    described = _parse(path, metadata)
    loaded: dict[str, torch.Tensor] = {}
    for name, description in described.items():
        loaded[name] = _assemble(path, name, description, flat)
    return loaded | flat


def _describe(tensor: NVFP4Tensor) -> dict:
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "recipe": tensor.recipe and asdict(tensor.recipe),
        "copies": {copy: getattr(tensor, copy).metadata() for copy in tensor.copies},
    }


def _parse(path: str | Path, metadata: dict[str, str]) -> dict:
    """The "tensors" part of the JSON document."""
    if KEY not in metadata:
        raise CheckpointError(
            f"{path}: no {KEY!r} entry in the file's metadata",
            "a file written by cutefp4.save_safetensors",
            "read it with safetensors.torch.load_file, then quantise its weights",
        )
    try:
        document = json.loads(metadata[KEY])
        version, tensors = document["version"], dict(document["tensors"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: unreadable {KEY!r} metadata ({error!r})", "the JSON document of save_safetensors", "save it again"
        ) from error
    if version != VERSION:
        raise CheckpointError(
            f"{path}: version {version!r}", f"version {VERSION}", "load it with the cutefp4 that saved it"
        )
    return tensors


def _assemble(path: str | Path, name: str, description: dict, flat: dict[str, torch.Tensor]) -> NVFP4Tensor:
    """Take the inner tensors of `name` out of `flat` and make the tensor."""
    try:
        operands = {
            copy: Nvfp4Operand(**{field: flat.pop(f"{name}.{copy}.{field}") for field in TENSOR_FIELDS}, **fields)
            for copy, fields in description["copies"].items()
        }
        recipe = description["recipe"] and QuantRecipe(**description["recipe"])
        return NVFP4Tensor(*(operands.get(copy) for copy in COPIES), _DTYPES[description["dtype"]], recipe)
    except (CuteFP4Error, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: tensor {name!r} does not fit its metadata ({error})",
            "codes, block_scales and amax of each copy as save_safetensors writes them",
            "copy or save the file again",
        ) from error
