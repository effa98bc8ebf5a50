"""What `cutefp4 demo` prints and plots."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cutefp4.cli.demo_data import DemoInput
from cutefp4.cli.measure import LayerError
from cutefp4.errors import UnsupportedError
from cutefp4.recipe import TrainingRecipe

LAYOUTS = {"tn": "TN, forward", "nn": "NN, input gradient", "nt": "NT, weight gradient"}
NAME_WIDTH = 20
_SHORT = {
    "attention.self.": "attn.",
    "attention.output.dense": "attn.out",
    "intermediate.dense": "mlp.up",
    "output.dense": "mlp.down",
}


def show(
    data: DemoInput, errors: list[LayerError], similarities: list, recipes: dict[str, TrainingRecipe], seconds: float
) -> None:
    """Print one table per recipe and the summary."""
    console = Console()
    console.print(f"[bold]Weights[/bold]: {data.source}\n[bold]Activations[/bold]: {data.activations}")
    if data.skipped:
        console.print(f"[dim]Left out: {len(data.skipped)} tensors ({'; '.join(data.skipped[:4])} ...)[/dim]")
    console.print(
        "W dB, x dB: SQNR of weight and input. TN, NN, NT: relative error of forward product, input gradient,"
    )
    console.print("weight gradient against float64.")
    for name, recipe in recipes.items():
        console.print(f"\n[bold]Recipe {name}[/bold]")
        for tensor in ("x", "w", "dy"):
            console.print(f"  [dim]{tensor:2} {escape(getattr(recipe, tensor).describe())}[/dim]")
        console.print(_layer_table([e for e in errors if e.recipe == name]))
    console.print(_summary(errors, recipes))
    if similarities:
        console.print(_similarity_table(similarities))
    console.print(f"[dim]{seconds:.0f} s on the reference backend (plain PyTorch, the kernels' bit-exact oracle)[/dim]")


def _layer_table(rows: list[LayerError]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1), title_justify="left")
    for column in ("layer", "N x K", "KiB in > out", "W dB", "x dB", "TN %", "NN %", "NT %"):
        table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=True)
    for e in rows:
        table.add_row(
            short_name(e.layer),
            f"{e.n}x{e.k}",
            f"{e.bytes_bf16 / 1024:.0f} > {e.bytes_nvfp4 / 1024:.0f}",
            f"{e.sqnr_weight_db:.1f}",
            f"{e.sqnr_x_db:.1f}",
            *(f"{100 * error:.1f}" for error in (e.error_tn, e.error_nn, e.error_nt)),
        )
    return table


def short_name(layer: str) -> str:
    """A layer's name in at most `NAME_WIDTH` characters; its end tells most."""
    for long, short in _SHORT.items():
        layer = layer.replace(long, short)
    return layer if len(layer) <= NAME_WIDTH else f"..{layer[2 - NAME_WIDTH :]}"


def _summary(errors: list[LayerError], recipes: dict[str, TrainingRecipe]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1))
    for column in ("mean over layers", "bits/weight", "W dB", "x dB", "TN %", "NN %", "NT %"):
        table.add_column(column, justify="left" if column == "mean over layers" else "right", no_wrap=True)
    for name in recipes:
        rows = [e for e in errors if e.recipe == name]
        bits = 16 * sum(e.bytes_nvfp4 for e in rows) / sum(e.bytes_bf16 for e in rows)
        means = [sum(getattr(e, f) for e in rows) / len(rows) for f in ("sqnr_weight_db", "sqnr_x_db")]
        products = [sum(getattr(e, f"error_{layout}") for e in rows) / len(rows) for layout in LAYOUTS]
        table.add_row(name, f"{bits:.2f}", *(f"{m:.2f}" for m in means), *(f"{100 * p:.2f}" for p in products))
    return table


def _similarity_table(similarities: list) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1))
    for column in ("embeddings vs fp32", "cosine, mean", "cosine, worst", "paraphrases found"):
        table.add_column(column, justify="left" if column.startswith("emb") else "right", no_wrap=True)
    for s in similarities:
        table.add_row(s.recipe, f"{s.cosine_mean:.4f}", f"{s.cosine_min:.4f}", f"{s.found} of {s.of}")
    return table


def save_plot(path: Path, errors: list[LayerError]) -> None:
    """Save a PNG: one panel per product, relative error over the layers, one line per recipe.

    Raises:
        UnsupportedError: matplotlib is not installed, or cannot write to the path.
    """
    try:
        import matplotlib  # an extra of this command, not a dependency of the package
    except ImportError as error:
        raise UnsupportedError(
            "--plot without matplotlib", "matplotlib >= 3.8", "pip install 'cutefp4[demo]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    recipes = list(dict.fromkeys(e.recipe for e in errors))
    layers = list(dict.fromkeys(e.layer for e in errors))
    figure, axes = pyplot.subplots(len(LAYOUTS), 1, sharex=True, figsize=(max(8, 0.28 * len(layers)), 8))
    for axis, (layout, title) in zip(axes, LAYOUTS.items(), strict=True):
        for recipe in recipes:
            values = [getattr(e, f"error_{layout}") for e in errors if e.recipe == recipe]
            axis.plot(range(len(layers)), values, marker=".", label=recipe)
        axis.set_title(title, loc="left")
        axis.set_ylabel("relative error")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend()
    axes[-1].set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
    figure.suptitle("NVFP4 product against float64, per layer")
    figure.tight_layout()
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise UnsupportedError(f"--plot {path}: {error}", "a writable path", "choose another file") from error
    pyplot.close(figure)
