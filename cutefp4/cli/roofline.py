"""The limits of a GPU, how near a time is to them, and the plot of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cutefp4.errors import UnsupportedError


@dataclass(frozen=True)
class Roof:
    """Published peaks of a GPU: dense FLOP/s of the tensor cores that a W4A4 product uses, and bytes/s of its memory.

    Hopper multiplies decoded operands in 16 bits, so its roof is that of bf16.
    """

    name: str
    flops: float
    bandwidth: float

    def us(self, flop: float, nbytes: float) -> float:
        """The least time: arithmetic or memory, whichever takes longer."""
        return max(flop / self.flops, nbytes / self.bandwidth) * 1e6


ROOFS = {
    "sm_90a": Roof("H200: 989 TFLOP/s bf16, 4.8 TB/s", 989.4e12, 4.8e12),
    "sm_100a": Roof("B200: 9.0 PFLOP/s NVFP4, 8 TB/s", 9.0e15, 8.0e12),
    "sm_103a": Roof("taken as B200: 9.0 PFLOP/s NVFP4, 8 TB/s", 9.0e15, 8.0e12),
}
"""By architecture; an H100 has 3.35 TB/s, so memory-bound percentages of one are too low."""


@dataclass(frozen=True)
class Point:
    """One measurement of the plot. series: its colour and legend."""

    series: str
    label: str
    flop: float
    nbytes: float
    us: float


def pyplot():
    """matplotlib without a display.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as found
    except ImportError as error:
        raise UnsupportedError(
            f"a plot without matplotlib ({error})", "matplotlib 3.8 or newer", "pip install 'cutefp4[demo]'"
        ) from error
    return found


def require_plots(path: Path) -> None:
    """Refuse now what `plot` could not write later.

    Raises:
        UnsupportedError: there is no matplotlib, or it does not know the ending of the name.
    """
    known = pyplot().figure().canvas.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise UnsupportedError(f"{path}: a plot of this kind", ", ".join(f".{name}" for name in known), "choose .png")


def plot(points: Sequence[Point], roof: Roof, path: str | Path, title: str) -> None:
    """Arithmetic intensity against speed, both logarithmic, under the roof; PNG (or what the name's ending says)."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.0, 4.2))
    low = min([p.flop / p.nbytes for p in points] + [1.0]) / 2
    high = max([p.flop / p.nbytes for p in points] + [1e3]) * 2
    ridge = roof.flops / roof.bandwidth
    xs = [low, ridge, max(high, 2 * ridge)]
    axes.plot(xs, [min(roof.flops, x * roof.bandwidth) / 1e12 for x in xs], color="black", linewidth=1.2)
    axes.annotate(roof.name, (0.02, 0.95), xycoords="axes fraction", fontsize=8)
    markers = "os^Dv*"
    for index, series in enumerate(dict.fromkeys(p.series for p in points)):
        mine = [p for p in points if p.series == series]
        x, y = [p.flop / p.nbytes for p in mine], [p.flop / p.us / 1e6 for p in mine]
        axes.scatter(x, y, s=22, marker=markers[index % len(markers)], label=series, alpha=0.8)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte (least traffic)", ylabel="TFLOP/s", title=title)
    axes.grid(True, which="major", linewidth=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    try:
        # No date and no version inside: the same results give the same file with the same matplotlib.
        figure.savefig(path, dpi=100, metadata={"Software": None} if str(path).endswith(".png") else None)
    except (OSError, ValueError) as error:
        raise UnsupportedError(
            f"{path}: {error}", "a file that can be written, .png", "choose another place"
        ) from error
    finally:
        plt.close(figure)
