"""Without the GPU: compile, report what the compiler made, and predict the time. Every time here is a PREDICTION."""

from __future__ import annotations

from typing import Any

from cutefp4 import emulator, tuned
from cutefp4.cli.resources import resources
from cutefp4.cli.sweep.check import Checker
from cutefp4.cli.sweep.operations import entry_of
from cutefp4.cli.sweep.run import Result, base_row, figures
from cutefp4.cli.sweep.space import Space
from cutefp4.cli.sweep.target import Target
from cutefp4.config_sm100 import Sm100Config, tmem_layout
from cutefp4.errors import OperandError
from cutefp4.plan import Plan

EMULATED_PRODUCTS = 1 << 29
"""M * N * K that the emulator multiplies in seconds."""
EMULATED_SMS = 4


def _emulated_verdict(checker: Checker, target: Target, config: Any) -> str:
    entry = entry_of(target, checker.case, config, sms=EMULATED_SMS)

    def run(operands, d) -> None:
        with tuned.use([entry]):
            operands.run(d)

    with emulator.device(target.arch, sms=EMULATED_SMS):
        return checker.verdict(run)


def check_emulated_size(case) -> None:
    """Refuse what the emulator would take hours for.

    Raises:
        OperandError: the product is too large.
    """
    products = case.m * case.n * case.k
    if products > EMULATED_PRODUCTS:
        raise OperandError(
            f"--check emulator with {case.name}: {products:.2g} products",
            f"at most {EMULATED_PRODUCTS:.2g} (about 512x1024x1024)",
            "emulate a small shape: what is right there is right in every tile",
        )


def predict_case(space: Space, configs: list[Any], failed: dict[Plan, str], check: bool, say=lambda _: None) -> Result:
    """A row per configuration, in the order of the predicted time.

    Args:
        failed: plans that did not compile, with the reason.
        check: run each in the emulator and compare with the oracle.
    """
    target, case = space.target, space.case
    result = Result(case, target)
    checker = Checker(case, "cpu") if check else None
    try:
        for config in configs:
            plan = target.plan(config, case)
            predicted = target.predict(config, case)
            row = base_row(case, target, config, "prediction")
            row |= {"phase": "prediction", "heuristic": config == space.choice, "check": "not run"}
            row |= {"percent_of_cublas": None, **figures(case, target.arch, predicted.us), "limiter": predicted.limiter}
            row["tmem_columns"] = tmem_layout(config).used if isinstance(config, Sm100Config) else None
            if plan in failed:
                row |= {"check": f"does not compile: {failed[plan]}", "us": None}
            else:
                row |= resources(plan)
                row["smem_bytes"] = row["smem_bytes"] or target.shared_bytes(config, case)
                if checker is not None:
                    say(f"emulating {row['name']}")
                    row["check"] = _emulated_verdict(checker, target, config)
            result.rows.append(row)
    except KeyboardInterrupt:
        result.interrupted = True
    result.rows.sort(key=lambda row: (row["us"] is None, row["us"]))
    return result
