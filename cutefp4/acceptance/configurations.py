"""Cases of the Blackwell GEMM by configuration: every one that `config_sm100.legal_configs` lists, launched directly.

Small problems with tails on all sides, more tiles than CTAs and more stages of K than the ring has; in the emulator
with an adversarial schedule. D must have the oracle's bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import reference
from cutefp4.acceptance.case import Case
from cutefp4.acceptance.compare import Difference, assert_same_bits
from cutefp4.acceptance.inputs import DTYPES, guarded, operand, outside_untouched
from cutefp4.acceptance.machine import Machine
from cutefp4.config_sm100 import CTA_ROWS, TILE_K, Sm100Config, legal_configs, split_workspace
from cutefp4.epilogue import default_epilogue
from cutefp4.errors import CompileError
from cutefp4.format import gemm_constant
from cutefp4.gemm_plan_sm100 import STORES, Sm100GemmPlan

TREE = default_epilogue(gemm_constant(448, 448))


@dataclass(frozen=True)
class ConfigurationCase(Case):
    """One configuration. store: of the plan; out: dtype of D."""

    config: Sm100Config = Sm100Config()
    store: str = "tma"
    out: str = "bfloat16"

    area = "configurations"

    def name(self) -> str:
        c = self.config
        parts = [f"{c.tile_m}x{c.tile_n}", f"cluster.{c.cluster_m}x{c.cluster_n}", f"stages.{c.stages}"]
        # Whatever else a configuration has and does not leave at its default.
        known = ("tile_m", "tile_n", "cluster_m", "cluster_n", "stages")
        parts += [
            f"{f.name.replace('_', '.')}.{getattr(c, f.name)}"
            for f in fields(c)
            if f.name not in known and getattr(c, f.name) != f.default
        ]
        return "-".join([*parts, self.store, self.out])

    def shape(self) -> tuple[int, int, int]:
        """(m, n, k) of D: a whole cluster tile and a part of one along both, whole stages and a part of one along K."""
        c = self.config
        rows = CTA_ROWS * c.cluster_m + 45
        columns = c.tile_n * c.cluster_n + 48
        k = TILE_K * max(c.splits, 2) + 96
        return (columns, rows + 3, k) if c.swap_ab else (rows, columns, k)

    def plan(self, arch: str) -> Sm100GemmPlan:
        return Sm100GemmPlan(arch, self.config, TREE, self.out, self.store)

    def check(self, machine: Machine) -> None:
        (m, n, k), config = self.shape(), self.config
        a, b = (operand(rows, k, self.seed + i, batch=1) for i, rows in enumerate((m, n)))
        plan = self.plan(machine.arch)
        sms = config.cluster_size
        with machine.running(self.seed, sms) as device:
            d, memory = guarded((1, m, n), DTYPES[self.out], device)
            here = [x.to(device) for x in (a, b)]
            values = {"d": d, "alpha_a": here[0].amax, "alpha_b": here[1].amax} | _workspace(config, m, n, device)
            operands = [t for x in here for t in (x.codes, x.block_scales.view(torch.uint8).reshape(-1))]
            tensors = tuple(values[name] for name in plan.tensor_names())
            kernel_cache.get(plan)(*operands, tensors, machine.sms if machine.native else sms)
        if not outside_untouched(memory, d.numel() * d.element_size()):
            raise Difference("bytes before or behind D were written")
        if values["counters"].any():
            raise Difference("counters of split-K are not back at zero")
        assert_same_bits(d.cpu(), reference.gemm(a, b, out_dtype=DTYPES[self.out]), "D")


def _workspace(config: Sm100Config, m: int, n: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Poisoned partial sums and zero counters."""
    partials, counters = split_workspace(config, m, n)
    return {
        "partials": torch.full(partials, torch.nan, device=device),
        "counters": torch.zeros(counters, dtype=torch.int32, device=device),
    }


def legal_stores(config: Sm100Config) -> list[str]:
    """Ways of writing D that a plan with this configuration accepts."""
    found = []
    for store in STORES:
        try:
            Sm100GemmPlan("sm_100a", config, TREE, "bfloat16", store)
        except CompileError:
            continue
        found.append(store)
    return found


def every_case() -> list[ConfigurationCase]:
    """Every legal configuration, once for all its numbers of stages: these, the ways of writing D and its dtypes take
    turns."""
    shapes: dict[Sm100Config, list[Sm100Config]] = {}
    for config in legal_configs():
        shapes.setdefault(replace(config, stages=0), []).append(config)
    cases = []
    for number, configs in enumerate(shapes.values()):
        config = configs[number % len(configs)]
        stores = legal_stores(config)
        out = "float32" if number % 3 == 2 else "bfloat16"
        cases.append(ConfigurationCase(False, config, stores[number % len(stores)], out))
    return cases


def paired_cases(splits: Sequence[int] = (1, 2, 5), stages: Sequence[int] = (2, 3)) -> list[ConfigurationCase]:
    """A few configurations in which every two values of any two fields (and of store and dtype) that can occur
    together do."""
    cases = [
        ConfigurationCase(True, config, store, out)
        for config in legal_configs(splits=splits, stages=stages)
        for store in legal_stores(config)
        for out in ("bfloat16", "float32")
    ]
    return list(
        pairwise(
            cases, lambda case: (*(getattr(case.config, f.name) for f in fields(case.config)), case.store, case.out)
        )
    )


def pairwise(items: Iterable, values) -> Iterator:
    """Items that together hold every pair of values of two fields that any item holds: greedy, deterministic.

    values: item -> tuple of hashable values, one per field.
    """
    items = list(items)
    pairs = {id(item): set(itertools.combinations(enumerate(values(item)), 2)) for item in items}
    missing = set().union(*pairs.values(), set())
    while missing:
        best = max(items, key=lambda item: len(pairs[id(item)] & missing))
        missing -= pairs[id(best)]
        yield best
