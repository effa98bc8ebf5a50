"""One training step of a linear layer: quantise X, W and dY in both copies, and the three products; against bf16.

    cutefp4         six launches or more: x, w, dy quantised; Y = X W^T, dX = dY W, dW = dY^T X (into bf16)
    quantise only   the first half of them
    bf16            the same three products by cuBLAS: what torch.nn.Linear's forward and backward launch

Device time, in CUDA graphs. Each result is compared with the bf16 one: the relative error is that of 4 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cutefp4 import ops, ops_quantize
from cutefp4.cli.bench.session import Session, plans_of
from cutefp4.plan import Plan
from cutefp4.recipe import NAMED, TrainingRecipe
from cutefp4.reference import rel_l2
from cutefp4.timing import GraphClock, Variant, fill, measure

SHAPES = ((4096, 4096, 4096), (8192, 14336, 4096), (16384, 7168, 2048))
"""Tokens, outputs, inputs."""
LARGEST_ERROR = 0.25
"""Of any product, against bf16: 4-bit operands of normal data give 0.10 to 0.19."""


@dataclass(frozen=True)
class Step:
    """Operands of one layer: x (T, K), w (N, K), dy (T, N), all bf16."""

    x: torch.Tensor
    w: torch.Tensor
    dy: torch.Tensor

    def bf16(self) -> tuple[torch.Tensor, ...]:
        """Y, dX, dW by cuBLAS."""
        return self.x @ self.w.T, self.dy @ self.w, self.dy.T @ self.x

    def quantise(self, recipe: TrainingRecipe) -> list:
        """(rowwise, columnwise) of x, w, dy."""
        found = []
        for tensor, how in ((self.x, recipe.x), (self.w, recipe.w), (self.dy, recipe.dy)):
            state = ops_quantize.no_random(tensor.device)[0]
            found.append(ops_quantize.quantize(tensor, how, columnwise=True, seed=state, offset=state))
        return found

    def nvfp4(self, recipe: TrainingRecipe) -> tuple[torch.Tensor, ...]:
        """Y, dX, dW in NVFP4."""
        (x, x_columns), (w, w_columns), (dy, dy_columns) = self.quantise(recipe)
        gemm = ops.OPERATIONS["gemm"]
        return gemm(x, w), gemm(dy, w_columns), gemm(dy_columns, x_columns)


def make_step(tokens: int, outputs: int, inputs: int) -> Step:
    """Normal data."""

    def make(rows: int, columns: int, distribution: str, seed: int) -> torch.Tensor:
        return fill((rows, columns), distribution, dtype=torch.bfloat16, device="cuda", seed=seed)

    return Step(
        make(tokens, inputs, "normal", 1), make(outputs, inputs, "normal", 2), make(tokens, outputs, "normal", 3)
    )


def errors(step: Step, recipe: TrainingRecipe) -> dict[str, float]:
    """Relative errors of the three products against bf16.

    Raises:
        RuntimeError: one is larger than 4 bits explain.
    """
    exact, ours = step.bf16(), step.nvfp4(recipe)
    pairs = zip(("error_y", "error_dx", "error_dw"), ours, exact, strict=True)
    found = {name: round(float(rel_l2(d, e.double())), 4) for name, d, e in pairs}
    if not max(found.values()) < LARGEST_ERROR:
        raise RuntimeError(f"relative errors {found} are larger than {LARGEST_ERROR}")
    return found


def _cases(quick: bool) -> tuple[tuple, dict[str, TrainingRecipe]]:
    return (SHAPES[:1], dict(list(NAMED.items())[:2])) if quick else (SHAPES, NAMED)


def plans(quick: bool) -> list[Plan]:
    """What `bench` launches, to be compiled ahead."""
    shapes, recipes = _cases(quick)

    def call() -> None:
        for tokens, outputs, inputs in shapes:
            sizes = ((tokens, inputs), (outputs, inputs), (tokens, outputs))
            step = Step(*(torch.zeros(size, dtype=torch.bfloat16, device="cuda") for size in sizes))
            for recipe in recipes.values():
                step.nvfp4(recipe)

    return plans_of(call)


def bench(session: Session) -> None:
    """All shapes and recipes."""
    shapes, recipes = _cases(session.quick)
    for shape in shapes:
        name = "x".join(map(str, shape))
        if not session.may_start(name, 5.0):
            continue
        step = make_step(*shape)
        variants = [Variant("bf16", lambda _, step=step: step.bf16())]
        found = {}
        for label, recipe in recipes.items():
            found[label] = errors(step, recipe)
            variants.append(Variant(label, lambda _, step=step, recipe=recipe: step.nvfp4(recipe)))
            variants.append(
                Variant(f"{label}, quantise only", lambda _, step=step, recipe=recipe: step.quantise(recipe))
            )
        timings = measure(variants, rounds=session.rounds(9), clock=GraphClock(calls=3, warmup=1))
        flop = 6 * shape[0] * shape[1] * shape[2]
        for variant, timing in timings.items():
            row = {"case": name, "m": shape[0], "n": shape[1], "k": shape[2]}
            ratio = round(timings["bf16"].median / timing.median, 4)
            speeds = {} if "quantise" in variant else {"tflops": round(timing.tflops(flop), 1), "over_bf16": ratio}
            session.table.add(row, timing, **speeds, **found.get(variant, {}))
        said = ", ".join(f"{label} {timings['bf16'].us / timings[label].us:.2f}x" for label in recipes)
        session.say(f"linear step {name}: bf16 {timings['bf16'].us:.0f} us; {said}")
