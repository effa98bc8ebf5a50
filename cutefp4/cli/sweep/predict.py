"""Without the GPU: compile, report what the compiler made, and predict the time. Every time here is a PREDICTION."""

from __future__ import annotations

from typing import Any

from cutefp4 import emulator, tuned
from cutefp4.cli.sweep.check import Checker
from cutefp4.cli.sweep.run import Result, base_row, entry_of, figures
from cutefp4.cli.sweep.space import Space, Target
from cutefp4.compile_report import compile_report
from cutefp4.config_sm100 import Sm100Config, tmem_layout
from cutefp4.errors import OperandError, UnsupportedError
from cutefp4.plan import Plan

TENSOR_CORE = ("HMMA", "HGMMA", "UTCOMMA", "UTCQMMA", "UTCHMMA", "UTCIMMA")
"""SASS mnemonics of mma.sync, wgmma and tcgen05.mma."""
EMULATED_PRODUCTS = 1 << 29
"""M * N * K that the emulator multiplies in seconds."""
EMULATED_SMS = 4


def resources(plan: Plan) -> dict[str, Any]:
    """Registers, spills, shared memory and instructions of a plan; what needs nvdisasm is None without it."""
    report = compile_report(plan)
    known = [size for size in report.dynamic_shared_bytes if size is not None]
    row: dict[str, Any] = {"smem_bytes": max(known, default=0), "registers": None, "spills": None}
    row |= {"instructions": None, "mma_instructions": None}
    try:
        kernels = report.kernels
    except UnsupportedError:
        return row
    row["registers"] = max(kernel.registers for kernel in kernels)
    row["spills"] = report.spills
    row["instructions"] = sum(sum(kernel.instructions.values()) for kernel in kernels)
    row["mma_instructions"] = sum(kernel.instructions[name] for kernel in kernels for name in TENSOR_CORE)
    return row


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
