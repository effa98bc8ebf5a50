"""From a product to the plan that a Hopper GPU runs, and an explanation of it.

What the heuristic leaves to the shapes is decided here: which of the two kernels runs, and how D and the epilogue's
matrices go to and from memory. A TMA access needs rows of a multiple of 16 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from cutefp4 import epilogue as trees
from cutefp4 import ops_gemm_small_m as small
from cutefp4 import tuned
from cutefp4.budget_sm90 import sm90_budget_table
from cutefp4.config import K_BLOCK, Sm90Config
from cutefp4.config_small_m import SmallMConfig
from cutefp4.epilogue import Epilogue
from cutefp4.errors import UnsupportedError
from cutefp4.gemm_plan import Sm90GemmPlan, check_index_range
from cutefp4.gemm_plan_small_m import Sm90SmallMPlan
from cutefp4.heuristics import sm90, small_m
from cutefp4.legality_sm90 import sm90_problems
from cutefp4.scale_layout import round_up

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


TMA_ADD_K = 1024
"""Largest K of an in-place fp32 sum that TMA adds in part. Measured, 7168 x 2048: K = 512 48.7 us (all of C loaded
49.5, all added 56.3); K = 2048 117.1 (115.0, 118.4)."""


def _matrices(tree: Epilogue) -> list:
    """The nodes of a tree that read or write a matrix besides D."""
    return [node for node in (*tree.leaves(), *tree.sinks) if isinstance(node, (trees.Tile, trees.Store))]


@dataclass(frozen=True)
class GemmRequest:
    """Everything that a plan depends on; hashable, made from tensors without touching their data.

    m, n, k: of the product. batch: L. out_dtype, activations: names of dtypes, "nvfp4" for W4A4.
    a_scales, b_scales: layouts. tree: the epilogue. aligned: D, and all matrices of the tree, start at multiples of 16
    bytes. in_place: the tree's tile "c" is D.
    """

    m: int
    n: int
    k: int
    batch: int
    out_dtype: str
    activations: str
    a_scales: str
    b_scales: str
    tree: Epilogue
    aligned: bool = True
    batch_invariant: bool = False
    in_place: bool = False

    def store(self) -> str:
        """How D can be written."""
        if self.tree.halves_columns() or not self.aligned:
            return "elements"
        if self.n * _BYTES[self.out_dtype] % 16:
            return "elements" if self.n % 2 else "pairs"
        product = self.tree.without_addition_to("c") if self.in_place and self.k <= TMA_ADD_K else None
        return "tma" if product is None or _matrices(product) else "tma_add"

    def load(self) -> str:
        """How tiles can be read and extra matrices written."""
        matrices = _matrices(self.tree)
        if not matrices or not self.aligned or self.n % 2:
            return "elements"
        rows = all(self.n * _BYTES[node.dtype] % 16 == 0 for node in matrices)
        return "tma" if rows and self.store() in ("tma", "tma_add") else "pairs"

    def staged_store(self) -> int:
        """Bytes of an element of D if D leaves by TMA, else 0."""
        return _BYTES[self.out_dtype] if self.store() in ("tma", "tma_add") else 0

    def shape(self) -> sm90.GemmShape:
        """What the heuristic sees."""
        return sm90.GemmShape(
            self.m, self.n, round_up(self.k, K_BLOCK), self.batch, self.activations, self.a_scales, self.b_scales,
            self.staged_store(), self.tree.halves_columns(), self.staged_store() if self.load() == "tma" else 0,
        )  # fmt: skip

    def problem(self, sms: int) -> dict[str, tuned.Scalar]:
        """What a tuned table knows this request by."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tree"}
        return {**named, "tree": self.tree.text(), "sms": sms}


AnyConfig = Sm90Config | SmallMConfig
AnyPlan = Sm90GemmPlan | Sm90SmallMPlan


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
    """The heuristic's configuration: the small-M kernel where it serves the request and is measured to be faster."""
    if small.serves(request):
        found = small_m.choose(request.m, request.n, request.k, request.batch, request.activations, sms)
        if found is not None:
            return found
    return sm90.choose(request.shape(), sms, request.batch_invariant)


def config_problems(config: AnyConfig, request: GemmRequest, sms: int = sm90.SMS) -> list[str]:
    """Every reason why a configuration cannot serve a request; empty if it can."""
    if isinstance(config, SmallMConfig):
        return small.problems(config, request, sms)
    return sm90_problems(config, *request.shape().operands(config), request.staged_store())


def plan_with(config: AnyConfig, request: GemmRequest, arch: str) -> AnyPlan:
    """The plan that serves a request with a given, legal configuration."""
    if isinstance(config, SmallMConfig):
        return small.plan(config, request, arch)
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
        return f"{waves}, {c.splits} CTAs to a tile" + (", each finishes half of it" if c.split_pair else "")

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
