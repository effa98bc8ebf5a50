"""Launches of the quantisation kernels: allocate outputs, choose plans, run. One file per operation.

    rowwise 1x16 copy, token scaling    cast_rows: the amaxes are found in the read that casts
    rowwise 1x16 copy, fast 4over6      cast_rows: 119 us against 132 at (16384, 6144); strict is faster in tiles, 160
                                        against 216
    rowwise 1x16 copy of a small tensor whose amax is not given    partial amaxes, cast_rows combines them
    everything else                     amaxes that are not given, in one read; then cast_tiles

Outputs are allocated outside the operators, so that torch.compile sees them; what depends on the values of shapes and
pointers is inside, in functions that write into tensors that exist.
"""

from cutefp4.ops_quantize.amax import measure, measure_hadamard
from cutefp4.ops_quantize.cast import cast_rows, cast_tiles
from cutefp4.ops_quantize.dequantize import decode, dequantize
from cutefp4.ops_quantize.groups import quantize_grouped
from cutefp4.ops_quantize.launches import MAX_ROWS, no_random, plans, recipe_of, recipe_text
from cutefp4.ops_quantize.matrix import quantize
from cutefp4.ops_quantize.outputs import make_operand
from cutefp4.ops_quantize.rmsnorm import rmsnorm, rmsnorm_quantize
from cutefp4.ops_quantize.swiglu import deinterleave_quantize, swiglu, swiglu_quantize

__all__ = [
    "MAX_ROWS",
    "OPERATIONS",
    "cast_rows",
    "cast_tiles",
    "decode",
    "deinterleave_quantize",
    "dequantize",
    "make_operand",
    "measure",
    "measure_hadamard",
    "no_random",
    "plans",
    "quantize",
    "quantize_grouped",
    "recipe_of",
    "recipe_text",
    "rmsnorm",
    "rmsnorm_quantize",
    "swiglu",
    "swiglu_quantize",
]

OPERATIONS = {
    "quantize": quantize,
    "quantize_grouped": quantize_grouped,
    "swiglu_quantize": swiglu_quantize,
    "deinterleave_quantize": deinterleave_quantize,
    "rmsnorm_quantize": rmsnorm_quantize,
    "dequantize": dequantize,
}
