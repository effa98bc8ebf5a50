"""Comparisons of tests: those of the acceptance matrix, `cutefp4.acceptance.compare`."""

from cutefp4.acceptance.compare import (
    Difference,
    as_bits,
    assert_close,
    assert_same_bits,
    assert_same_codes,
    assert_same_operand,
    assert_ulps,
    first_difference,
    ulps,
)

__all__ = [
    "Difference",
    "as_bits",
    "assert_close",
    "assert_same_bits",
    "assert_same_codes",
    "assert_same_operand",
    "assert_ulps",
    "first_difference",
    "ulps",
]
