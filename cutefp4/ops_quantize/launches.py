"""What every launch of a quantisation kernel needs: recipes as text, load widths, stand-ins, remembered plans."""

from __future__ import annotations

from functools import cache

import torch

from cutefp4.errors import OperandError
from cutefp4.launch import target
from cutefp4.quant_plan import MAP_WORDS, vector_bytes
from cutefp4.recipe import QuantRecipe
from cutefp4.scale_layout import round_up

_FIELDS = tuple(QuantRecipe.__dataclass_fields__)
DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
MAX_ROWS = 65535 * 128
"""Rows of a matrix: the second dimension of a launch counts tiles of 128 rows."""


def recipe_text(recipe: QuantRecipe) -> str:
    """A recipe as an operator's argument; `recipe_of` reads it."""
    return ";".join([str(getattr(recipe, name)) for name in _FIELDS])


@cache
def recipe_of(text: str) -> QuantRecipe:
    """The recipe that `recipe_text` wrote."""
    values = zip(_FIELDS, text.split(";"), strict=True)
    return QuantRecipe(**{name: int(value) if value.isdecimal() else value for name, value in values})


@cache
def unused(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Stands in for a tensor that a kernel does not touch."""
    return torch.zeros(16, dtype=dtype, device=device)


@cache
def no_map(device: torch.device) -> torch.Tensor:
    """Stands in for the map of row groups where there are none."""
    return torch.zeros(1, MAP_WORDS, dtype=torch.int32, device=device)


@cache
def no_random(device: torch.device) -> torch.Tensor:
    """Stands in for seeds and offsets where rounding is nearest."""
    return torch.zeros(4, dtype=torch.int64, device=device)


def width(x: torch.Tensor, columns_count: bool = False) -> int:
    """Bytes per load; `columns_count`: the number of columns must be a multiple too."""
    size = x.element_size()
    rows = x.stride(0) * size | (x.shape[1] * size if columns_count else 0)
    return 16 if not (x.data_ptr() | rows) & 15 else vector_bytes(x.data_ptr(), rows, size)


plans: dict[tuple, tuple] = {}
"""(plan, launch constants) by everything they depend on. Making a plan costs 20 us, finding it here 0.3 us."""


def remembered(make, *key):
    """`make(*key)`, remembered; the last element of `key` is the device."""
    full = (make, *key, target(key[-1]))
    found = plans.get(full)
    if found is None:
        found = plans[full] = make(*key)
    return found


def rows_per_cta(rows: int, strips: int, ctas: int, multiple: int) -> int:
    """Rows of a strip's share, so that about `ctas` CTAs run."""
    parts = max(1, ctas // strips)
    return max(multiple, round_up(-(-rows // parts), multiple))


def check_rows(rows: int) -> None:
    if rows > MAX_ROWS:
        raise OperandError(f"x with {rows} rows", f"at most {MAX_ROWS}", "quantise it in parts")


def gated_width(x: torch.Tensor, layout: str) -> int:
    """Bytes per load of gate and up: chunks of 8 elements that begin at multiples of 8 elements or at half a row."""
    size = x.element_size()
    start = x.shape[1] // 2 * size if layout == "halves" else 0
    return min(vector_bytes(x.data_ptr() | start, x.stride(0) * size, size), 8 * size)
