"""Safetensors files: exact round trips, and refusal of everything else."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

import cutefp4
from cutefp4 import QuantRecipe
from cutefp4.errors import CheckpointError
from tests.cases import matrix
from tests.compare import assert_same_bits, assert_same_operand


@pytest.fixture
def saved(tmp_path):
    tensors = {
        "layer.w": cutefp4.quantize(matrix(48, 80), QuantRecipe(block="2d"), columnwise=True),
        "layer.v": cutefp4.quantize(matrix(32, 64), QuantRecipe(scaling="token", scale_layout="compact")),
        "experts": cutefp4.quantize(torch.stack([matrix(32, 64), matrix(32, 64, seed=1)]), columnwise=True),
        "imported": cutefp4.NVFP4Tensor(cutefp4.quantize(matrix(16, 32)).rowwise, dtype=torch.float16),
        "layer.bias": matrix(1, 48)[0],
        "scalar": torch.tensor(3),
        "transposed": matrix(16, 32).t(),
    }
    path = tmp_path / "model.safetensors"
    cutefp4.save_safetensors(path, tensors)
    return path, tensors


def test_round_trip(saved):
    path, tensors = saved
    loaded = cutefp4.load_safetensors(path)
    assert set(loaded) == set(tensors)
    for name, expected in tensors.items():
        actual = loaded[name]
        assert type(actual) is type(expected) and actual.shape == expected.shape and actual.dtype == expected.dtype
        if not isinstance(expected, cutefp4.NVFP4Tensor):
            assert_same_bits(actual, expected)
            continue
        assert actual.recipe == expected.recipe and actual.copies == expected.copies
        for copy in expected.copies:
            assert_same_operand(getattr(actual, copy), getattr(expected, copy))


def test_other_readers_see_plain_tensors(saved):
    path, tensors = saved
    plain = load_file(path)
    assert_same_bits(plain["layer.w.rowwise.codes"], tensors["layer.w"].rowwise.codes)
    assert plain["layer.w.columnwise.block_scales"].dtype == torch.float8_e4m3fn
    assert_same_bits(plain["layer.w.columnwise.amax"], tensors["layer.w"].columnwise.amax)


def test_grouped_and_foreign_values_are_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match="'w' of type list.*NVFP4Tensor"):
        cutefp4.save_safetensors(tmp_path / "x", {"w": [1, 2]})
    with pytest.raises(CheckpointError, match="'w.rowwise.codes'.*distinct.*rename"):
        cutefp4.save_safetensors(
            tmp_path / "x", {"w.rowwise.codes": torch.zeros(1), "w": cutefp4.quantize(matrix(16, 16))}
        )


def header(path):
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write(path, head, body):
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def change_document(path, change):
    """Rewrite the JSON document of cutefp4 in a file's metadata."""
    head, body = header(path)
    document = json.loads(head["__metadata__"]["cutefp4"])
    change(document)
    head["__metadata__"]["cutefp4"] = json.dumps(document)
    write(path, head, body)


def drop_tensor(path, name):
    tensors = load_file(path)
    del tensors[name]
    head, _ = header(path)
    save_file(tensors, path, metadata=head["__metadata__"])


def set_in(document, *path, value):
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


W = ("tensors", "layer.w")
DAMAGE = {
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-100]),
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("not a checkpoint" * 100),
    "missing": lambda p: p.unlink(),
    "foreign": lambda p: save_file({"w": torch.zeros(4)}, p),
    "metadata is no JSON": lambda p: save_file({"w": torch.zeros(4)}, p, metadata={"cutefp4": "{"}),
    "metadata is a list": lambda p: save_file({"w": torch.zeros(4)}, p, metadata={"cutefp4": "[]"}),
    "newer version": lambda p: change_document(p, lambda d: d.update(version=99)),
    "tensor missing": lambda p: drop_tensor(p, "layer.w.rowwise.codes"),
    "wrong rows": lambda p: change_document(p, lambda d: set_in(d, *W, "copies", "rowwise", "rows", value=47)),
    "wrong scaling": lambda p: change_document(
        p, lambda d: set_in(d, *W, "copies", "rowwise", "scaling", value="token")
    ),
    "unknown field": lambda p: change_document(p, lambda d: set_in(d, *W, "copies", "rowwise", "colour", value=1)),
    "unknown recipe": lambda p: change_document(p, lambda d: set_in(d, *W, "recipe", "block", value="3d")),
    "unknown dtype": lambda p: change_document(p, lambda d: set_in(d, *W, "dtype", value="int3")),
    "no copies": lambda p: change_document(p, lambda d: set_in(d, *W, "copies", value={})),
    "description is a list": lambda p: change_document(p, lambda d: set_in(d, *W, value=[])),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused(saved, damage):
    path, _ = saved
    DAMAGE[damage](path)
    with pytest.raises(CheckpointError) as caught:
        cutefp4.load_safetensors(path)
    error = caught.value
    assert str(path) in error.given and error.accepted and error.fix
