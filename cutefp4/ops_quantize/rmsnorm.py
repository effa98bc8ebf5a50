"""rmsnorm_quantize: RMSNorm (of a residual sum) in front of the quantiser.

    rowwise copy of 1x16 blocks, token scaling or amax given    one kernel, which reads x (and the residual) once
    the same, amax of the tensor to be measured                 the norm's amax in one read, the cast in a second
    everything else                                             the normalised matrix is written (with its amax, where a
                                                                scalar is wanted) and quantised

No value is read by the host.
"""

from __future__ import annotations

import torch

from cutefp4 import compile as kernel_cache
from cutefp4.errors import OperandError
from cutefp4.format import BLOCK
from cutefp4.launch import Operator, arch_of, sm_count
from cutefp4.operand import Nvfp4Operand
from cutefp4.ops_quantize.amax import are_partial, combined, is_small
from cutefp4.ops_quantize.launches import (
    DTYPES,
    check_rows,
    no_random,
    recipe_of,
    recipe_text,
    remembered,
    unused,
    width,
)
from cutefp4.ops_quantize.matrix import quantize
from cutefp4.ops_quantize.outputs import allocate, make_operand, random_state
from cutefp4.quant_plan import BYTES, PARTIALS, BlockMath, RmsnormPlan, row_shape, vector_bytes
from cutefp4.recipe import QuantRecipe
from cutefp4.scale_layout import round_up

MAX_COLUMNS = 1 << 20
"""Columns of a row: 2048 chunks of 512 have slots in shared memory."""


def _shape(n: int, element_bytes: int, heavy: bool) -> dict:
    """Threads of a row, measured at (16384, 6144) bf16 in times of a copy of the same bytes, token scaling.

    Blocks a thread, then the same with the next row loaded ahead: without a residual 2: 1.70, 1.63; 3: 1.57, 1.51;
    4: 1.55. With one 2: 1.18, 1.15; 3: 1.25, 1.23; 4: 1.17 and spills, as fast 4over6 does with 3.
    """
    shape = row_shape(n, element_bytes, 2 if heavy else 3)
    # Without predicates the compiler loads all weights at once: 124 registers instead of 168 for three blocks, but 144
    # instead of 106 for two with a residual.
    exact = not heavy and n // BLOCK == shape["threads_per_row"] * shape["blocks_per_thread"]
    return {**shape, "prefetch": element_bytes == 2 and not shape["looped"], "exact": exact}


def _plan(text: str, dtype, weight_dtype, n: int, vectors: tuple, uses: tuple, cast: str, device):
    recipe, name = recipe_of(text), DTYPES[dtype]
    residual, write_sum, write_normed, measure, partials = uses
    cast_fields = {}
    if cast != "none":
        cast_fields = {
            "math": BlockMath.of(recipe),
            "scaling": recipe.scaling,
            "scale_layout": recipe.scale_layout,
        }
    plan = RmsnormPlan(
        arch_of(device),
        name,
        DTYPES[weight_dtype],
        residual,
        write_sum,
        write_normed,
        measure,
        partials,
        cast,
        vector_bytes=vectors[0],
        weight_vector_bytes=vectors[1],
        **cast_fields,
        **_shape(n, BYTES[name], residual or recipe.four_over_six_error == "fast"),
    )
    return plan, PARTIALS if measure and partials else sm_count(device) * (2048 // plan.threads)


def _rmsnorm(x, weight, eps: float, text: str, residual, total, normed, codes, scales, amax, random, cast: str) -> None:
    device = x.device
    vector = width(x) if residual is None else min(width(x), width(residual))
    vectors = (vector, vector_bytes(weight.data_ptr(), 0, weight.element_size()))
    measure = cast == "none" and amax is not None
    partials = are_partial(amax, recipe_of(text))
    uses = (residual is not None, total is not None, normed is not None, measure, partials)
    plan, ctas = remembered(_plan, text, x.dtype, weight.dtype, x.shape[1], vectors, uses, cast, device)
    matrices = [x if t is None else t for t in (residual, total, normed)]
    codes, scales = (unused(device, torch.uint8) if t is None else t.view(-1) for t in (codes, scales))
    amax = unused(device, torch.float32) if amax is None else amax.view(-1)
    random = no_random(device) if random is None else random
    kernel_cache.get(plan)(x, *matrices, weight, codes, scales, amax, random, eps, ctas)


rmsnorm = Operator(
    "rmsnorm(Tensor x, Tensor weight, float eps, str recipe, Tensor? residual, Tensor(a!)? total, Tensor(b!)? normed, "
    "Tensor(c!)? codes, Tensor(d!)? scales, Tensor(e!)? amax, Tensor? random, str cast) -> ()",
    _rmsnorm,
)


def rmsnorm_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    recipe: QuantRecipe,
    eps: float = 1e-6,
    *,
    residual: torch.Tensor | None = None,
    keep_sum: bool = True,
    keep_normed: bool = False,
    rowwise: bool = True,
    columnwise: bool = False,
    amax: torch.Tensor | None = None,
    columnwise_amax: torch.Tensor | None = None,
    seed: int | torch.Tensor = 0,
    offset: int | torch.Tensor = 0,
) -> tuple[tuple[Nvfp4Operand | None, Nvfp4Operand | None], torch.Tensor | None, torch.Tensor | None]:
    """quantize(rmsnorm(x (+ residual)) * weight); arguments and results are those of
    `cutefp4.reference.rmsnorm.rmsnorm_quantize`.
    """
    m, n = x.shape
    check_rows(m)
    _check_columns(n)
    x, residual = (t.contiguous() if t is not None and t.stride(1) != 1 else t for t in (x, residual))
    weight = weight.contiguous()

    def matrix() -> torch.Tensor:
        return torch.empty(m, n, dtype=x.dtype, device=x.device)

    total = matrix() if residual is not None and keep_sum else None
    state = {"seed": seed, "offset": offset}
    measures = amax is None and (recipe.scaling == "tensor" or recipe.block == "2d")
    if rowwise and not columnwise and recipe.block == "1d" and not (measures and keep_normed):
        normed = matrix() if keep_normed else None
        row = allocate(x, (), m, n, recipe.scale_layout)
        random = random_state(x, recipe, **state)
        written = total
        if measures and is_small(x):
            # The cast may start before this kernel ends: it reads what was there before, not a sum.
            amax = _measured(x, weight, eps, recipe, residual, None, partials=True)
        elif measures:
            source = matrix() if residual is not None and total is None else total
            amax = _measured(x, weight, eps, recipe, residual, source)
            x, residual, written = (x if source is None else source), None, None
        cast = "token" if amax is None else "given"
        amax = torch.empty(m, dtype=torch.float32, device=x.device) if amax is None else amax
        text, scales = recipe_text(recipe), row.scales
        rmsnorm(x, weight, eps, text, residual, written, normed, row.codes, scales, amax, random, cast)
        return (make_operand(recipe, row, combined(amax, recipe)), None), total, normed
    normed = matrix()
    if measures and (rowwise or (recipe.rht == "none" and columnwise_amax is None)):
        amax = _measured(x, weight, eps, recipe, residual, total, normed)
    else:
        rmsnorm(x, weight, eps, recipe_text(recipe), residual, total, normed, None, None, None, None, "none")
    given = {"amax": amax, "columnwise_amax": columnwise_amax}
    copies = quantize(normed, recipe, rowwise=rowwise, columnwise=columnwise, **given, **state)
    return copies, total, normed if keep_normed else None


def _measured(x, weight, eps: float, recipe: QuantRecipe, residual, total, normed=None, partials=False) -> torch.Tensor:
    """The amax () of the normalised matrix, or its partial amaxes for the cast to combine; writes the residual sum and
    the matrix itself where given.
    """
    if partials:
        amax = torch.empty(1 + PARTIALS, dtype=torch.float32, device=x.device)
    else:
        amax = torch.zeros((), dtype=torch.float32, device=x.device)
    rmsnorm(x, weight, eps, recipe_text(recipe), residual, total, normed, None, None, amax, None, "none")
    return amax


def _check_columns(columns: int) -> None:
    if columns % BLOCK or columns > MAX_COLUMNS:
        raise OperandError(
            f"x with {columns} columns",
            f"a multiple of {BLOCK}, at most {MAX_COLUMNS}",
            f"pad it to {round_up(columns, BLOCK)}, or normalise with PyTorch and call quantize",
        )
