"""Comparisons that name the first coordinate that differs, and say how much differs in all."""

from __future__ import annotations

import torch

from cutefp4.format import E2M1_VALUES, unpack_codes
from cutefp4.operand import Nvfp4GroupedOperand, Nvfp4Operand


class Difference(AssertionError):
    """Two results differ; the message names the first coordinate."""


def _require(good: bool, what: str) -> None:
    if not good:
        raise Difference(what)


_INT_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_bits(x: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor as integers of the same size."""
    return x.contiguous().view(_INT_OF_SIZE[x.element_size()])


def _coordinate(flat: int, shape: torch.Size) -> tuple[int, ...]:
    place = []
    for size in reversed(shape):
        place.append(flat % size)
        flat //= size
    return tuple(reversed(place))


def first_difference(different: torch.Tensor) -> tuple[int, ...] | None:
    """Row-major first coordinate where a bool tensor is True."""
    if not bool(different.any()):
        return None
    return _coordinate(int(different.flatten().to(torch.uint8).argmax()), different.shape)


def _require_shape(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    _require(actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")


def _show(value: torch.Tensor) -> str:
    if value.dtype.is_floating_point:
        return f"{float(value)!r} ({float(value).hex() if torch.isfinite(value.float()) else 'special'})"
    return f"{int(value)} ({int(value):#x})"


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor, what: str = "result") -> None:
    """Equal dtype, shape and bytes (so -0 differs from 0, and NaN equals NaN of the same bits)."""
    _require(actual.dtype == expected.dtype, f"{what}: dtype {actual.dtype}, expected {expected.dtype}")
    _require_shape(actual, expected, what)
    expected = expected.to(actual.device)
    different = as_bits(actual) != as_bits(expected)
    place = first_difference(different)
    if place is not None:
        raise Difference(
            f"{what}: first difference at {place}: {_show(actual[place])}, expected {_show(expected[place])}; "
            f"{int(different.sum())} of {different.numel()} differ"
        )


def assert_same_codes(actual: torch.Tensor, expected: torch.Tensor, what: str = "codes") -> None:
    """Equal packed codes; the coordinate in the message is that of the element, not of the byte."""
    _require_shape(actual, expected, what)
    a, e = unpack_codes(actual), unpack_codes(expected.to(actual.device))
    place = first_difference(a != e)
    if place is not None:
        got, want = (
            f"{'-' if c & 8 else ''}{E2M1_VALUES[c & 7]} (code {c:#x})" for c in (int(a[place]), int(e[place]))
        )
        raise Difference(
            f"{what}: first difference at element {place}: {got}, expected {want}; {int((a != e).sum())} of {a.numel()}"
        )


def assert_same_operand(
    actual: Nvfp4Operand | Nvfp4GroupedOperand, expected: Nvfp4Operand | Nvfp4GroupedOperand, what: str = "operand"
) -> None:
    """Equal metadata, codes, block scales (padding included) and amax, bit for bit."""
    _require(type(actual) is type(expected), f"{what}: {type(actual).__name__}, expected {type(expected).__name__}")
    names = ("rows", "k", "scaling", "e4m3_max", "scale_layout", "rht")
    if isinstance(actual, Nvfp4GroupedOperand):
        names += ("ragged",)
        assert_same_bits(actual.offs, expected.offs, f"{what}.offs")
    for name in names:
        got, want = getattr(actual, name), getattr(expected, name)
        _require(got == want, f"{what}.{name}: {got!r}, expected {want!r}")
    assert_same_bits(actual.amax, expected.amax, f"{what}.amax")
    if isinstance(actual, Nvfp4Operand):  # compact first: its coordinates mean something
        got, want = actual.compact_scales(), expected.compact_scales()
        assert_same_bits(got.view(torch.uint8), want.view(torch.uint8), f"{what}.compact_scales() bytes")
    scales = (o.block_scales.view(torch.uint8) for o in (actual, expected))
    assert_same_bits(*scales, f"{what}.block_scales bytes")
    assert_same_codes(actual.codes, expected.codes, f"{what}.codes")


def assert_close(
    actual: torch.Tensor,
    expected: torch.Tensor,
    rtol: float = 0.0,
    atol: float | torch.Tensor = 0.0,
    what: str = "result",
    budget: float = 0.0,
) -> None:
    """|actual - expected| <= atol + rtol * |expected| for all but a fraction `budget` of the elements.

    NaN equals NaN only. `atol` may be a tensor, e.g. 2**-20 * sum |terms| for an accumulator.
    """
    _require_shape(actual, expected, what)
    a, e = actual.double().cpu(), expected.double().cpu()
    limit = (atol.double().cpu() if isinstance(atol, torch.Tensor) else atol) + rtol * e.abs()
    error = (a - e).abs()
    bad = ~((error <= limit) | (a == e) | (a.isnan() & e.isnan()))
    count = int(bad.sum())
    if count > budget * bad.numel():
        place = first_difference(bad)
        raise Difference(
            f"{what}: first beyond tolerance at {place}: {float(a[place])!r}, expected {float(e[place])!r}; "
            f"{count} of {bad.numel()} beyond, allowed {budget * bad.numel():g}; "
            f"largest error {float(error[bad].nan_to_num(torch.inf).max()):g}"
        )


def ulps(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Distance in units in the last place of the common dtype, int64; both signs and zero are on one line."""

    def ordered(x: torch.Tensor) -> torch.Tensor:
        bits = as_bits(x).to(torch.int64)
        lowest = -(1 << (8 * x.element_size() - 1))
        return torch.where(bits < 0, lowest - bits, bits)

    _require(actual.dtype == expected.dtype, f"dtypes {actual.dtype} and {expected.dtype}")
    return (ordered(actual) - ordered(expected.to(actual.device))).abs()


def assert_ulps(actual: torch.Tensor, expected: torch.Tensor, most: int, what: str = "result", budget: float = 0.0):
    """At most `most` ulps apart, but for a fraction `budget` of the elements."""
    distance = ulps(actual, expected)
    bad = distance > most
    if int(bad.sum()) > budget * bad.numel():
        place = first_difference(bad)
        raise Difference(
            f"{what}: first beyond {most} ulps at {place}: {_show(actual[place])}, expected {_show(expected[place])}; "
            f"{int(bad.sum())} of {bad.numel()}, largest {int(distance.max())} ulps"
        )
