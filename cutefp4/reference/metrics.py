"""How far a result lies from its reference. Both are computed in fp64."""

from __future__ import annotations

import torch


def rel_l2(out: torch.Tensor, reference: torch.Tensor) -> float:
    """||out - reference|| / ||reference||."""
    out, reference = out.double(), reference.double()
    return float(torch.linalg.vector_norm(out - reference) / torch.linalg.vector_norm(reference))


def sqnr_db(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Signal to quantisation noise, 20 * log10(||reference|| / ||reference - out||), in dB; inf if they are equal."""
    error = torch.tensor(rel_l2(out, reference), dtype=torch.float64)
    return float(-20 * torch.log10(error))
