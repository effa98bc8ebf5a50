"""From a product to the plan that a Hopper GPU runs, and an explanation of it.

Which of the three kernels runs is decided here; how D and the epilogue's matrices go to and from memory follows from
the request.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutefp4 import ops_gemm_few_rows as few
from cutefp4 import ops_gemm_small_m as small
from cutefp4 import tuned
from cutefp4.budget_sm90 import sm90_budget_table
from cutefp4.config import K_BLOCK, Sm90Config
from cutefp4.config_few_rows import FewRowsConfig
from cutefp4.config_small_m import SmallMConfig
from cutefp4.errors import UnsupportedError
from cutefp4.gemm_plan import Sm90GemmPlan, check_index_range
from cutefp4.gemm_plan_few_rows import Sm90FewRowsPlan
from cutefp4.gemm_plan_small_m import Sm90SmallMPlan
from cutefp4.gemm_request_sm90 import GemmRequest
from cutefp4.heuristics import few_rows, sm90, small_m
from cutefp4.legality_sm90 import sm90_problems
from cutefp4.scale_layout import round_up

CLOCKS_PER_US, LAUNCH_US = 1755.0, 3.3
"""What turns the clocks of heuristics/sm90.py into microseconds, of 64 rows and (7168, 16384) or (8192, 8192)."""

AnyConfig = Sm90Config | SmallMConfig | FewRowsConfig
AnyPlan = Sm90GemmPlan | Sm90SmallMPlan | Sm90FewRowsPlan


def make_plan(request: GemmRequest, arch: str, sms: int) -> AnyPlan:
    """The plan of a request: the configuration of a tuned table that holds it, else the heuristic's.

    Raises:
        UnsupportedError: there is no dense GEMM kernel for this architecture here, or the matrices are too large.
        CompileError: the tuned table holds a configuration that cannot run.
    """
    if arch != "sm_90a":
        raise UnsupportedError(f"the Hopper GEMM for {arch}", "sm_90a", "use the backend of this device")
    check_index_range(request.m, request.n, request.k, request.batch)
    config = tuned.lookup("gemm", arch, request.problem(sms))
    if config is not None:
        tuned.require_legal(config, config_problems(config, request, sms))
        return plan_with(config, request, arch)
    return plan_with(choose(request, sms), request, arch)


def choose(request: GemmRequest, sms: int) -> AnyConfig:
    """The heuristic's configuration: of the kernels for few rows where they serve the request and are measured to be
    faster."""
    if small.serves(request):
        found = small_m.choose(request.m, request.n, request.k, request.batch, request.activations, sms)
        if found is not None:
            return found
    shape = request.shape()
    other = sm90.choose(shape, sms, request.batch_invariant)
    if few.serves(request):
        us = sm90.estimate(other, shape, sms) / CLOCKS_PER_US + LAUNCH_US
        sizes = request.m, request.n, request.k, request.batch, request.activations
        return few_rows.choose(*sizes, sms, us) or other
    return other


def config_problems(config: AnyConfig, request: GemmRequest, sms: int = sm90.SMS) -> list[str]:
    """Every reason why a configuration cannot serve a request; empty if it can."""
    if isinstance(config, SmallMConfig):
        return small.problems(config, request, sms)
    if isinstance(config, FewRowsConfig):
        return few.problems(config, request)
    return sm90_problems(config, *request.shape().operands(config), request.staged_store())


def plan_with(config: AnyConfig, request: GemmRequest, arch: str) -> AnyPlan:
    """The plan that serves a request with a given, legal configuration."""
    if isinstance(config, SmallMConfig):
        return small.plan(config, request, arch)
    if isinstance(config, FewRowsConfig):
        return few.plan(config, request, arch)
    store = request.store()
    if config.swap_ab and store == "pairs":
        store = "elements"
    return Sm90GemmPlan(
        arch,
        config,
        request.tree,
        request.out_dtype,
        store,
        request.activations,
        request.a_scales,
        request.b_scales,
        request.load(),
    )


@dataclass(frozen=True)
class PlannedGemm:
    """A plan with the problem it was chosen for."""

    request: GemmRequest
    plan: AnyPlan
    sms: int

    def explain(self) -> str:
        """What runs and why: tiles, splits, waves, padding, budgets."""
        r = self.request
        kind = "W4A4" if r.activations == "nvfp4" else f"W4A16 ({r.activations})"
        what = f"{kind} {r.m}x{r.n}x{r.k}, batch {r.batch}, D {r.out_dtype}"
        if isinstance(self.plan, Sm90SmallMPlan):
            return "\n".join([what, *small.explain(self.plan, r, self.sms)])
        if isinstance(self.plan, Sm90FewRowsPlan):
            return "\n".join([what, *few.explain(self.plan, r, self.sms)])
        c, padded = self.plan.config, round_up(r.k, K_BLOCK)
        rows_m, rows_n = (r.n, r.m) if c.swap_ab else (r.m, r.n)
        tiles = -(-rows_m // c.tile_m) * -(-rows_n // c.tile_n) * r.batch
        lines = [
            f"{what} stored by {self.plan.store}",
            f"tile {c.tile_m}x{c.tile_n}x{c.tile_k}, {'B' if c.swap_ab else 'A'} decoded in registers to {c.decode_to}",
            self._shared_operand(),
            f"{tiles} tiles on {self.sms} SMs: {self._shared_k(tiles)}",
            f"estimate {sm90.estimate(c, r.shape(), self.sms):.0f} clocks",
        ]
        if padded != r.k:
            lines.append(f"K = {r.k} is padded to {padded}: rows of codes are copied once per call")
        return "\n".join([*lines, sm90_budget_table(c, *self.plan.operands(), self.plan.staged_store())])

    def _shared_k(self, tiles: int) -> str:
        """Waves, and how CTAs share K."""
        c = self.plan.config
        if c.stream_k:
            return "stream-K, equal shares"
        waves = f"{tiles * c.splits / self.sms:.2f} waves"
        if c.splits == 1:
            return waves
        return f"{waves}, {c.splits} CTAs to a tile" + (", each finishes a part of it" if c.split_pair else "")

    def _shared_operand(self) -> str:
        """How the other operand reaches the tensor cores."""
        r, c = self.request, self.plan.config
        name, rows = ("A", r.m) if c.swap_ab else ("B", r.n)
        shared = f", loads shared by {c.cluster} CTAs" if c.cluster > 1 else ""
        if c.decode_groups:
            return f"{name} by {c.decode_groups} decode warpgroup{'s' * (c.decode_groups > 1)}"
        if not c.staged:
            return f"{name} as it is{shared}"
        megabytes = r.batch * rows * round_up(r.k, c.tile_k) * 2 / 1e6
        return f"{name} decoded once into {megabytes:.1f} MB{shared}"
