"""Cases of generated code: kernels that ship compile, without spills and within the registers of their roles."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cutefp4 import config_sm100
from cutefp4.acceptance.case import Case
from cutefp4.acceptance.compare import Difference
from cutefp4.acceptance.machine import Machine
from cutefp4.compile_report import compile_report
from cutefp4.epilogue import default_epilogue
from cutefp4.format import gemm_constant
from cutefp4.gemm_plan_sm100 import Sm100GemmPlan
from cutefp4.heuristics import sm100
from cutefp4.layer_plans import linear_layer
from cutefp4.plan import Plan
from cutefp4.recipe import NAMED

LAYERS = ((4096, 4096, 4096), (16, 7168, 2048))
"""M, N, K of linear layers whose kernels are looked at, for every shipped training recipe."""


@dataclass(frozen=True)
class CodeCase(Case):
    """One plan. label: what it is for."""

    plan: Plan | None = None
    label: str = ""

    area = "code"

    def name(self) -> str:
        return f"{type(self.plan).__name__}-{self.plan.key[:10]}-{self.label}"

    def check(self, machine: Machine) -> None:
        report = compile_report(self.plan)
        stack = sum(kernel.stack_bytes for kernel in report.resources)
        if stack:  # no spill without a stack frame; the report says what is in it
            raise Difference(f"{stack} bytes of stack per thread: the kernel spills, or indexes an array at run time")
        if isinstance(self.plan, Sm100GemmPlan):
            allowed = min(role.registers for role in config_sm100.ROLES)
            used = max(kernel.registers for kernel in report.resources)
            if used > allowed:
                raise Difference(f"{used} registers per thread, the roles have {allowed}")


def layer_cases(arch: str) -> list[CodeCase]:
    """Kernels of linear layers, forward and backward, under the shipped training recipes."""
    plans: dict[Plan, str] = {}
    for name, recipe in NAMED.items():
        for m, n, k in LAYERS:
            for plan in linear_layer(recipe, m, n, k, torch.bfloat16, arch).plans:
                plans.setdefault(plan, f"{name}.{m}x{n}x{k}")
    return [CodeCase(index % 4 == 0, plan, label) for index, (plan, label) in enumerate(plans.items())]


def shipped_sm100_cases(arch: str) -> list[CodeCase]:
    """Every configuration that the Blackwell heuristic chooses from, with the plain and the richest epilogue."""
    constant = gemm_constant(448, 448)
    trees = {
        "plain": (default_epilogue(constant), "bfloat16"),
        "rich": (default_epilogue(constant, bias="bfloat16", activation="gelu", c="float32"), "float32"),
    }
    cases = []
    for config in (*sm100.CANDIDATES, *sm100.SMALL):
        for name, (tree, out) in trees.items():
            fitted = sm100.with_most_stages(config)
            plan = Sm100GemmPlan(arch, fitted, tree, out, "elements" if config.swap_ab else "tma")
            label = f"{name}.{config.tile_m}x{config.tile_n}.splits{config.splits}"
            cases.append(CodeCase(config in sm100.CANDIDATES[:1], plan, label))
    return cases
