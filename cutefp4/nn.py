"""Layers that train in NVFP4: `Linear` and `GroupedLinear` (MoE experts); `convert` for a model; `freeze` to serve it.

    forward          Y  = X W^T + bias    TN   X, W quantised
    input gradient   dX = dY W            NN   dY quantised, W's columnwise copy
    weight gradient  dW = dY^T X          NT   columnwise copies of dY and X

Parameters and their gradients stay dense (bfloat16 or float32); each pass quantises what it multiplies. Tokens are
padded with zero rows to a multiple of 16, which the weight gradient contracts; they add nothing to any product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from cutefp4.errors import OperandError
from cutefp4.format import BLOCK
from cutefp4.gemm import gemm, gemm_a16, grouped_gemm
from cutefp4.quantize import quantize, quantize_grouped
from cutefp4.recipe import PER_TOKEN, TrainingRecipe, named_recipe
from cutefp4.reference import RSR_OFFSETS_PER_CALL
from cutefp4.scale_layout import round_up


@dataclass(frozen=True)
class Quantizer:
    """How a layer quantises: its recipe, the state of its stochastic rounding, and the backend of its calls.

    Attributes:
        recipe: for x, w and dy.
        seed: of stochastic rounding.
        offset: int64 () on the layer's device; every stochastic call takes the next offsets and advances it there, so
            that a replayed CUDA graph draws new bits.
        backend: None follows the device.
        gradients: whether a backward pass will follow, for which the forward pass keeps columnwise copies.
    """

    recipe: TrainingRecipe
    seed: int
    offset: torch.Tensor
    backend: str | None
    gradients: bool = True

    def options(self, name: str) -> dict:
        """Keyword arguments of `quantize` for "x", "w" or "dy"."""
        recipe = getattr(self.recipe, name)
        options = {"recipe": recipe, "columnwise": self.gradients, "backend": self.backend}
        if recipe.rounding == "stochastic":
            options |= {"seed": self.seed, "offset": self.offset.clone()}
            self.offset.add_(RSR_OFFSETS_PER_CALL)
        return options


def _pad_rows(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.pad(x, (0, 0, 0, -x.shape[0] % BLOCK))


def _weight_gradient(product: Callable, weight: torch.Tensor) -> torch.Tensor | None:
    """dW in the weight's dtype; or, if the weight has a `main_grad`, added to that by the GEMM itself."""
    main_grad = getattr(weight, "main_grad", None)
    if main_grad is None:
        return product(out_dtype=weight.dtype)
    product(out=main_grad, accumulate=True)
    return None


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, quantizer):
        qx = quantize(_pad_rows(x), **quantizer.options("x"))
        qw = quantize(weight, **quantizer.options("w"))
        y = gemm(qx, qw, bias=bias, out_dtype=x.dtype, backend=quantizer.backend)
        ctx.quantizer, ctx.weight, ctx.has_bias, ctx.tokens, ctx.dtype = (
            quantizer,
            weight,
            bias is not None,
            len(x),
            x.dtype,
        )
        ctx.qx, ctx.qw = qx, qw
        return y[: len(x)]

    @staticmethod
    def backward(ctx, dy):
        backend, (x_needed, w_needed, bias_needed, _) = ctx.quantizer.backend, ctx.needs_input_grad
        dx = dw = db = None
        if x_needed or w_needed:
            qdy = quantize(_pad_rows(dy.contiguous()), **ctx.quantizer.options("dy"))
        if x_needed:
            dx = gemm(qdy, ctx.qw, layout="NN", out_dtype=ctx.dtype, backend=backend)[: ctx.tokens]
        if w_needed:
            dw = _weight_gradient(lambda **out: gemm(qdy, ctx.qx, layout="NT", backend=backend, **out), ctx.weight)
        if bias_needed and ctx.has_bias:
            db = dy.float().sum(dim=0)
        return dx, dw, db, None


class _GroupedLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, offs, weight, bias, quantizer):
        qx = quantize_grouped(x, offs, **quantizer.options("x"))
        qw = quantize(weight, **quantizer.options("w"))
        ctx.quantizer, ctx.weight, ctx.has_bias, ctx.dtype = quantizer, weight, bias is not None, x.dtype
        ctx.qx, ctx.qw = qx, qw
        return grouped_gemm(qx, qw, bias=bias, out_dtype=x.dtype, backend=quantizer.backend)

    @staticmethod
    def backward(ctx, dy):
        backend, (x_needed, _, w_needed, bias_needed, _) = ctx.quantizer.backend, ctx.needs_input_grad
        offs = ctx.qx.offs
        dx = dw = db = None
        if x_needed or w_needed:
            qdy = quantize_grouped(dy.contiguous(), offs, **ctx.quantizer.options("dy"))
        if x_needed:
            dx = grouped_gemm(qdy, ctx.qw, layout="NN", out_dtype=ctx.dtype, backend=backend)
        if w_needed:
            dw = _weight_gradient(
                lambda **out: grouped_gemm(qdy, ctx.qx, layout="NT", backend=backend, **out), ctx.weight
            )
        if bias_needed and ctx.has_bias:
            # Rows behind the last group fall into bucket E, which is dropped; no host synchronisation.
            group = torch.bucketize(torch.arange(len(dy), device=dy.device), offs, right=True)
            db = dy.new_zeros(len(offs) + 1, dy.shape[1], dtype=torch.float32).index_add(0, group, dy.float())[:-1]
        return dx, None, dw, db, None


class _Layer(nn.Module):
    """What both layers share: recipe, random state, checks."""

    def __init__(self, recipe: TrainingRecipe | str, seed: int, backend: str | None, device) -> None:
        super().__init__()
        self.recipe = recipe if isinstance(recipe, TrainingRecipe) else named_recipe(recipe)
        self.seed, self.backend = seed, backend
        # Not saved, so that checkpoints stay those of the dense layer; set it when a resumed run must not repeat bits.
        self.register_buffer("sr_offset", torch.zeros((), dtype=torch.int64, device=device), persistent=False)

    def _quantizer(self) -> Quantizer:
        return Quantizer(self.recipe, self.seed, self.sr_offset, self.backend, torch.is_grad_enabled())

    def _check_sizes(self) -> None:
        for name in ("in_features", "out_features"):
            size = getattr(self, name)
            if size % BLOCK or size <= 0:
                raise OperandError(
                    f"{type(self).__name__}({name}={size})",
                    f"a positive multiple of {BLOCK}",
                    f"keep this layer in bfloat16, or pad it to {round_up(max(size, 1), BLOCK)}",
                )

    def _check_input(self, x: torch.Tensor) -> None:
        if x.shape[-1] != self.in_features:
            raise OperandError(
                f"x of shape {tuple(x.shape)}", f"(..., {self.in_features})", "pass activations of this layer's width"
            )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"x: {self.recipe.x.describe()}, w: {self.recipe.w.describe()}, dy: {self.recipe.dy.describe()}"
        )


class Linear(_Layer):
    """torch.nn.Linear whose three products run in NVFP4.

    Args:
        in_features, out_features: multiples of 16.
        bias: whether to add one.
        recipe: a `TrainingRecipe` or the name of a shipped one.
        seed: of stochastic rounding, if the recipe has any.
        backend: a name of `cutefp4.backend.BACKENDS`; None follows the device.
        device, dtype: of the parameters.

    Input (..., in_features), output (..., out_features) in x's dtype. A weight with a `main_grad` tensor (float32 or
    bfloat16) gets its gradient added there by the GEMM, and its `.grad` stays None.

    Raises:
        OperandError: sizes that are no multiples of 16, or an input of another width.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        recipe: TrainingRecipe | str = PER_TOKEN,
        seed: int = 0,
        backend: str | None = None,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(recipe, seed, backend, device)
        self.in_features, self.out_features = in_features, out_features
        self._check_sizes()
        dense = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        self.weight, self.bias = dense.weight, dense.bias

    @classmethod
    def from_dense(cls, dense: nn.Linear, **options) -> Linear:
        """A layer that shares the parameters of a dense one."""
        layer = cls(dense.in_features, dense.out_features, dense.bias is not None, device="meta", **options)
        layer.weight, layer.bias = dense.weight, dense.bias
        layer.sr_offset = torch.zeros((), dtype=torch.int64, device=dense.weight.device)
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        self._check_input(x)
        y = _LinearFunction.apply(x.reshape(-1, self.in_features), self.weight, self.bias, self._quantizer())
        return y.view(*x.shape[:-1], self.out_features)

    def freeze(self, *, a16: bool = False) -> FrozenLinear:
        """The layer for inference: its weight quantised once, 4.5 bits an element.

        Args:
            a16: multiply x as it is, in bfloat16 or float16, instead of quantising it (`cutefp4.gemm_a16`).
        """
        with torch.no_grad():
            weight = quantize(self.weight, **self._quantizer().options("w"))
            return FrozenLinear(weight, self.bias, self.recipe, self.backend, a16=a16)


class FrozenLinear(nn.Module):
    """A linear layer for inference whose weight is an NVFP4Tensor (N, K) with a rowwise copy.

    Args:
        a16: x is not quantised and must be bfloat16 or float16.
    """

    def __init__(
        self,
        weight,
        bias: torch.Tensor | None,
        recipe: TrainingRecipe,
        backend: str | None = None,
        *,
        a16: bool = False,
    ) -> None:
        super().__init__()
        self.a16 = a16
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.recipe, self.backend = recipe, backend

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) to (..., N) in x's dtype; quantises x with nearest rounding, unless the layer is a16."""
        if self.a16:
            return gemm_a16(x.contiguous(), self.weight, bias=self.bias, backend=self.backend)
        recipe = self.recipe.x.replace(rounding="nearest")
        qx = quantize(x.reshape(-1, x.shape[-1]), recipe, backend=self.backend)
        y = gemm(qx, self.weight, bias=self.bias, out_dtype=x.dtype, backend=self.backend)
        return y.view(*x.shape[:-1], y.shape[-1])


class GroupedLinear(_Layer):
    """One linear layer per expert over tokens sorted by expert (MoE), in one quantisation and one GEMM per product.

    Args:
        groups: E, the number of experts.
        Others as in `Linear`. Parameters: weight (E, out_features, in_features), bias (E, out_features) or None.

    Raises:
        OperandError: as `Linear`.
    """

    def __init__(
        self,
        groups: int,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        recipe: TrainingRecipe | str = PER_TOKEN,
        seed: int = 0,
        backend: str | None = None,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(recipe, seed, backend, device)
        self.groups, self.in_features, self.out_features = groups, in_features, out_features
        self._check_sizes()
        bound = in_features**-0.5
        weight = torch.empty(groups, out_features, in_features, device=device, dtype=dtype)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound))
        values = torch.empty(groups, out_features, device=device, dtype=dtype)
        self.bias = nn.Parameter(values.uniform_(-bound, bound)) if bias else None

    def forward(self, x: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
        """Tokens (T, in_features) and end offsets int32 (E,) to (T, out_features); rows behind offs[-1] give zeros."""
        self._check_input(x)
        return _GroupedLinearFunction.apply(x, offs, self.weight, self.bias, self._quantizer())


def convert(
    model: nn.Module,
    recipe: TrainingRecipe | str = PER_TOKEN,
    *,
    keep: Callable[[str, nn.Linear], bool] | None = None,
    **options,
) -> list[str]:
    """Replace the nn.Linear layers of a model, in place, by NVFP4 ones that share their parameters.

    Args:
        model: its submodules are replaced; a model that is itself an nn.Linear needs `Linear.from_dense`.
        recipe: for all of them.
        keep: (name, layer) -> True leaves a layer dense, e.g. the output head.
        options: `seed`, `backend`.

    Returns:
        Names of the replaced layers. Layers whose sizes are no multiples of 16 stay dense.
    """
    replaced = []
    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear or not name:
            continue
        if layer.in_features % BLOCK or layer.out_features % BLOCK or (keep is not None and keep(name, layer)):
            continue
        model.set_submodule(name, Linear.from_dense(layer, recipe=recipe, **options))
        replaced.append(name)
    return replaced
