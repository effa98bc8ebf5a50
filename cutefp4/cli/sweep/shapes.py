"""Shapes to sweep: lists, ranges, and the linear layers of well-known models.

A shape is that of a linear layer, MxNxK: M tokens, N outputs, K inputs. Each of the three is a number, a list `1,16,64`
or a range `lo:hi` (doubling) or `lo:hi:step`. A model preset stands for its distinct layers, with M from `--tokens`.
"""

from __future__ import annotations

import itertools
import re

from cutefp4.errors import OperandError

MODELS: dict[str, dict[str, tuple[int, int]]] = {
    "llama-3-8b": {
        "qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336),
    },
    "llama-3-70b": {
        "qkv": (10240, 8192), "o": (8192, 8192), "gate_up": (57344, 8192), "down": (8192, 28672),
    },
    "qwen3-8b": {
        "qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (24576, 4096), "down": (4096, 12288),
    },
    "qwen3-32b": {
        "qkv": (10240, 5120), "o": (5120, 8192), "gate_up": (51200, 5120), "down": (5120, 25600),
    },
    "deepseek-v3": {
        "q_a": (1536, 7168), "q_b": (24576, 1536), "kv_b": (32768, 512), "o": (7168, 16384),
        "gate_up": (36864, 7168), "down": (7168, 18432), "expert_gate_up": (4096, 7168), "expert_down": (7168, 2048),
    },
    "gpt-oss": {
        "qkv": (5120, 2880), "o": (2880, 4096), "expert_gate_up": (5760, 2880), "expert_down": (2880, 2880),
    },
}  # fmt: skip
"""(N, K) of every distinct linear layer, from the models' published configurations. gate_up: both, stacked."""

FIVE = ("1x7168x16384", "128x4096x4096", "4096x4096x4096", "8192x8192x8192", "16384x7168x2048")
"""The default: from one token, limited by reading the weight, to large products, limited by arithmetic."""


def _sizes(text: str, whole: str) -> list[int]:
    """The numbers that one part of a shape stands for."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?::(\d+)(?::(\d+))?)?", part)
        if match is None or int(match[1]) < 1:
            raise OperandError(
                f"shape {whole!r}",
                "MxNxK, each a number, a list 1,16,64, a range 128:4096 (doubling) or 128:1024:128, or a model",
                "for example --shape 1,16x7168x16384, or --shape llama-3-8b --tokens 16,4096",
            )
        low, high, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 0)
        size = low
        while size <= high:
            found.append(size)
            size = size + step if step else size * 2
    return found


def _model(text: str, tokens: str) -> list[tuple[int, int, int]]:
    name, _, layer = text.partition("/")
    layers = MODELS[name]
    if layer and layer not in layers:
        raise OperandError(f"layer {layer!r} of {name}", ", ".join(layers), f"for example {name}/{next(iter(layers))}")
    chosen = [layers[layer]] if layer else list(layers.values())
    return [(m, n, k) for m in _sizes(tokens, tokens) for n, k in dict.fromkeys(chosen)]


def parse(texts: list[str], tokens: str = "1,16,4096") -> list[tuple[int, int, int]]:
    """The distinct shapes (M, N, K) that texts stand for, in order.

    Args:
        texts: shapes, models, or layers of models ("deepseek-v3/o").
        tokens: M for models.

    Raises:
        OperandError: a text that is neither.
    """
    found: dict[tuple[int, int, int], None] = {}
    for text in texts:
        if text.partition("/")[0] in MODELS:
            found.update(dict.fromkeys(_model(text, tokens)))
            continue
        parts = text.split("x")
        if len(parts) != 3:
            raise OperandError(
                f"shape {text!r}", f"MxNxK, or one of {', '.join(MODELS)}", "write --shape 128x4096x4096"
            )
        found.update(dict.fromkeys(itertools.product(*(_sizes(part, text) for part in parts))))
    return list(found)
