"""Launches of the quantisation kernels: allocate outputs, choose plans, run.

`quantize` allocates and wraps; `quantize_into` writes into tensors that exist, and is what torch.compile sees.
"""

from __future__ import annotations

from functools import cache

import torch

from cutefp4 import compile as kernel_cache
from cutefp4.errors import OperandError, UnsupportedError
from cutefp4.launch import Operator, arch_of, sm_count, target
from cutefp4.operand import Nvfp4Operand
from cutefp4.quant_plan import BYTES, BlockMath, CastRowsPlan, row_shape, vector_bytes
from cutefp4.recipe import QuantRecipe
from cutefp4.scale_layout import scale_shape

_FIELDS = tuple(QuantRecipe.__dataclass_fields__)
_DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


def recipe_text(recipe: QuantRecipe) -> str:
    """A recipe as an operator's argument; `recipe_of` reads it."""
    return ";".join([str(getattr(recipe, name)) for name in _FIELDS])


@cache
def recipe_of(text: str) -> QuantRecipe:
    """The recipe that `recipe_text` wrote."""
    values = zip(_FIELDS, text.split(";"), strict=True)
    return QuantRecipe(**{name: int(value) if value.isdecimal() else value for name, value in values})


@cache
def _no_random(device: torch.device) -> torch.Tensor:
    """Stands in for seed and offset where rounding is nearest; the kernel does not read it."""
    return torch.zeros(2, dtype=torch.int64, device=device)


_rows_launches: dict[tuple, tuple[CastRowsPlan, int]] = {}
"""(plan, CTAs) by everything they depend on. Making a plan costs 20 us, finding it here 0.3 us."""


def _rows_launch(text: str, dtype: torch.dtype, n: int, vector: int, amax_given: bool, device: torch.device):
    recipe, name = recipe_of(text), _DTYPES[dtype]
    plan = CastRowsPlan(
        arch_of(device),
        name,
        BlockMath.of(recipe),
        recipe.scaling,
        amax_given,
        recipe.scale_layout,
        vector_bytes=vector,
        **row_shape(n, BYTES[name]),
    )
    return plan, sm_count(device) * (2048 // plan.threads)


def _cast_rows(x, text: str, codes, scales, amax, random, amax_given: bool) -> None:
    device, size = x.device, x.element_size()
    aligned = not (x.data_ptr() | x.stride(0) * size) & 15
    vector = 16 if aligned else vector_bytes(x.data_ptr(), x.stride(0) * size, size)
    key = (text, x.dtype, x.shape[1], vector, amax_given, device, target(device))
    launch = _rows_launches.get(key)
    if launch is None:
        launch = _rows_launches[key] = _rows_launch(*key[:-1])
    if random is None:
        random = _no_random(device)
    kernel_cache.get(launch[0])(x, codes, scales, amax, random, launch[1])


cast_rows = Operator(
    "cast_rows(Tensor x, str recipe, Tensor(a!) codes, Tensor(b!) scales, Tensor(c!) amax, Tensor? random, "
    "bool amax_given) -> ()",
    _cast_rows,
)


def make_operand(recipe: QuantRecipe, codes, block_scales, amax, rows: int, k: int) -> Nvfp4Operand:
    """An operand of tensors that were just allocated to fit: without the checks, which cost 16 us, three launches."""
    values = {
        "codes": codes,
        "block_scales": block_scales,
        "amax": amax,
        "scaling": recipe.scaling,
        "e4m3_max": recipe.e4m3_max,
        "scale_layout": recipe.scale_layout,
        "rows": rows,
        "k": k,
        "rht": None,
    }
    if torch.compiler.is_compiling():
        return Nvfp4Operand(**values)
    operand = object.__new__(Nvfp4Operand)
    operand.__dict__.update(values)
    return operand


def quantize(
    x: torch.Tensor,
    recipe: QuantRecipe,
    *,
    rowwise: bool = True,
    columnwise: bool = False,
    amax: torch.Tensor | None = None,
    columnwise_amax: torch.Tensor | None = None,
    seed: int | torch.Tensor = 0,
    offset: int | torch.Tensor = 0,
) -> tuple[Nvfp4Operand | None, Nvfp4Operand | None]:
    """Quantise a matrix on the device that holds it; arguments and results are those of `cutefp4.reference.quantize`.

    Raises:
        UnsupportedError: a combination that has no kernel.
    """
    if columnwise or x.dim() != 2 or recipe.block != "1d" or (recipe.scaling == "tensor" and amax is None):
        raise UnsupportedError(
            f"quantize on {x.device} with columnwise={columnwise}, {recipe.describe()}, x of shape {tuple(x.shape)}",
            "the rowwise copy of a matrix in 1x16 blocks, per-tensor with a given amax, or per-token",
            "pass backend='reference'",
        )
    if x.dtype not in _DTYPES:
        raise OperandError(f"x of {x.dtype}", ", ".join(map(str, _DTYPES)), "convert x")
    if not rowwise:
        return None, None
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, k = x.shape
    codes = torch.empty((rows, k // 2), dtype=torch.uint8, device=x.device)
    scale_rows, scale_cols = scale_shape(rows, k, recipe.scale_layout)
    scales = torch.empty(scale_rows * scale_cols, dtype=torch.uint8, device=x.device)
    given = amax is not None
    if not given:
        amax = torch.empty(rows, dtype=torch.float32, device=x.device)
    random = None
    if recipe.rounding == "stochastic":
        random = torch.stack([torch.as_tensor(v, dtype=torch.int64, device=x.device) for v in (seed, offset)])
    cast_rows(x, recipe_text(recipe), codes, scales, amax if amax.dim() else amax.view(1), random, given)
    block_scales = scales.view(torch.float8_e4m3fn).view(scale_rows, scale_cols)
    return make_operand(recipe, codes, block_scales, amax, rows, k), None


OPERATIONS = {"quantize": quantize}
