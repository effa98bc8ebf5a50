"""Error metrics."""

import math

import pytest
import torch

from cutefp4.reference import rel_l2, sqnr_db


def test_relative_error_and_decibels():
    reference = torch.tensor([3.0, 4.0])
    out = torch.tensor([3.0, 3.5])
    assert rel_l2(out, reference) == pytest.approx(0.1)
    assert sqnr_db(out, reference) == pytest.approx(20.0)
    assert sqnr_db(reference * 0.9, reference) == pytest.approx(20.0)


def test_an_exact_result_has_infinite_sqnr():
    x = torch.ones(3)
    assert rel_l2(x, x) == 0 and math.isinf(sqnr_db(x, x))


def test_metrics_are_taken_in_fp64():
    reference = torch.full((1 << 20,), 1.0)
    assert rel_l2(reference.double() + 1e-9, reference) == pytest.approx(1e-9, rel=1e-6)
