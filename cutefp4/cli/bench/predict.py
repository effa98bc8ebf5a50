"""B200 times that the schedule model predicts, for the tables; nothing here was measured on such a GPU."""

from __future__ import annotations

from typing import Any

from cutefp4.cli.roofline import ROOFS
from cutefp4.cli.sweep.case import Case
from cutefp4.cli.sweep.run import figures
from cutefp4.cli.sweep.target import describe, target_for
from cutefp4.schedule_model_sm100 import estimate, with_sms

ARCH = "sm_100a"
SHAPES = (
    (1, 7168, 16384), (16, 7168, 16384), (1, 8192, 8192), (128, 4096, 4096), (512, 7168, 2048),
    (4096, 4096, 4096), (8192, 8192, 8192), (16384, 7168, 2048),
)  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """One row per shape, with the configuration that the heuristic takes."""
    found = []
    for sizes in SHAPES:
        case = Case("TN", *sizes)
        target = target_for(ARCH, case)
        config = target.choice(case)
        predicted = estimate(config, target.request(case).shape(), with_sms(target.sms))
        figure = figures(case, ARCH, predicted.us)
        found.append(
            {
                "case": f"w4a4 {case.m}x{case.n}x{case.k} alpha",
                "m": case.m,
                "n": case.n,
                "k": case.k,
                "variant": "prediction",
                "predicted_us": figure["us"],
                "tflops": figure["tflops"],
                "percent_of_roofline": figure["percent_of_roofline"],
                "limiter": predicted.limiter,
                "config": describe(config),
            }
        )
    return found


def document() -> dict[str, Any]:
    """What the results folder keeps: no time and no machine in it, so that the same model gives the same file."""
    return {
        "what": "predictions",
        "environment": {"device": "B200 (predicted, no such GPU was at hand)", "roof": ROOFS[ARCH].name},
        "rows": rows(),
        "skipped": [],
    }
