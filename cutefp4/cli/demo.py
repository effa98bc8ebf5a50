"""`cutefp4 demo`: quantise a real model on this machine and show what 4 bits cost."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import cutefp4
from cutefp4.cli import demo_report
from cutefp4.cli.demo_data import DemoInput, encoder_input, file_input, sentences
from cutefp4.cli.encoder import SentenceEncoder, Tokens, load_encoder
from cutefp4.cli.measure import SEED, LayerError, measure_layer
from cutefp4.recipe import TrainingRecipe, named_recipe

RECIPES = ("te", "per_token", "per_token_4over6")


@dataclass(frozen=True)
class Similarity:
    """Sentence embeddings with all linears in NVFP4 against fp32: cosine similarity, and paraphrases found."""

    recipe: str
    cosine_mean: float
    cosine_min: float
    found: int
    of: int


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(demo)


def demo(
    weights: Annotated[
        Path | None,
        typer.Option(help="Quantise the matrices of this safetensors file, with Gaussian activations, instead."),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="Training recipe; may be repeated. Default: te, per_token and per_token_4over6."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Save a PNG of the errors per layer here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document; progress goes to stderr.")] = False,
) -> None:
    """Quantise a real model to NVFP4 and show what it costs, layer by layer. No GPU needed.

    By default the model is a small sentence encoder (36 linear layers) at work on real sentences, with the gradients of
    a real loss. For each layer: bytes in bf16 and NVFP4, SQNR of weight and input in dB (more is better), and the
    relative error of the layer's three products against float64: TN (forward), NN (input gradient), NT (weight
    gradient). At the end: how close the sentence embeddings stay with all linears in NVFP4.

    Examples:

        cutefp4 demo --plot errors.png
        cutefp4 demo --recipe per_token --json > report.json
        cutefp4 demo --weights model.safetensors
    """
    recipes = {name: named_recipe(name) for name in recipe or RECIPES}
    begin = time.perf_counter()
    progress_console = Console(stderr=True)
    encoder = None if weights else load_encoder()
    tokens = encoder.tokenize(sentences()) if encoder else None
    data = encoder_input(encoder, tokens) if encoder else file_input(weights)
    errors = _measure(data, recipes, progress_console)
    similarities = _similarities(encoder, tokens, recipes, progress_console) if encoder else []
    report = {
        "cutefp4": cutefp4.__version__,
        "source": data.source,
        "activations": data.activations,
        "skipped": data.skipped,
        "layers": [asdict(e) for e in errors],
        "embeddings": [asdict(s) for s in similarities],
        "seconds": round(time.perf_counter() - begin, 1),
    }
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        demo_report.show(data, errors, similarities, recipes, report["seconds"])
    if plot:
        demo_report.save_plot(plot, errors)
        progress_console.print(f"Plot saved: {plot}")


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _measure(data: DemoInput, recipes: dict[str, TrainingRecipe], console: Console) -> list[LayerError]:
    errors = []
    with _bar(console) as bar:
        task = bar.add_task("layers", total=len(data.layers) * len(recipes))
        for name, recipe in recipes.items():
            for offset, layer in enumerate(data.layers):
                bar.update(task, description=f"{name} {layer.name}")
                # One offset per quantised copy: three tensors of two copies each.
                errors.append(measure_layer(layer, name, recipe, offset=6 * offset))
                bar.advance(task)
    return errors


def _similarities(
    encoder: SentenceEncoder, tokens: Tokens, recipes: dict[str, TrainingRecipe], console: Console
) -> list[Similarity]:
    """Embeddings of all sentences under each recipe, compared with fp32's."""
    exact = encoder.embed(tokens)
    rows = []
    with _bar(console) as bar:
        task = bar.add_task("embeddings", total=len(recipes) * len(encoder.linear_names()))
        for name, recipe in recipes.items():

            def nvfp4_linear(_layer, x, weight, bias, recipe=recipe):
                qx = cutefp4.quantize(x.bfloat16(), recipe.x, seed=SEED, offset=0)
                qw = cutefp4.quantize(weight.bfloat16(), recipe.w, seed=SEED, offset=0)
                bar.advance(task)
                return cutefp4.gemm(qx, qw, bias=bias, out_dtype=torch.float32)

            embeddings = encoder.embed(tokens, nvfp4_linear)
            cosine = (embeddings * exact).sum(dim=1)
            rows.append(Similarity(name, float(cosine.mean()), float(cosine.min()), *_found(embeddings)))
    return [Similarity("fp32", 1.0, 1.0, *_found(exact)), *rows]


def _found(embeddings: torch.Tensor) -> tuple[int, int]:
    """How many sentences find their paraphrase as the nearest of all second sentences, and of how many."""
    first, second = embeddings[0::2], embeddings[1::2]
    nearest = (first @ second.T).argmax(dim=1)
    return int((nearest == torch.arange(len(first))).sum()), len(first)
