"""From a product to the plan that a Blackwell GPU runs, and an explanation of it.

What the heuristic leaves to the shapes is decided here: how D and the epilogue's matrices go to and from memory. A TMA
access needs rows of a multiple of 16 bytes, a 256-bit one of 32.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from cutefp4 import tuned
from cutefp4.config_sm100 import TILE_K, Sm100Config, budget_table, sm100_problems
from cutefp4.epilogue import Column, Row, Store, Tile
from cutefp4.epilogue_text import tree_of
from cutefp4.gemm_plan import check_index_range
from cutefp4.gemm_plan_sm100 import Sm100GemmPlan
from cutefp4.heuristics import sm100
from cutefp4.schedule_model_sm100 import GemmShape, estimate, with_sms

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_NVFP4_BYTES = 0.5625
"""Codes and block scales."""
TMA_BYTES, VECTOR_BYTES = 16, 32


@dataclass(frozen=True)
class GemmRequest:
    """Everything that a plan depends on; hashable, made from tensors without touching their data.

    m, n, k: of the product, K padded to 32. batch: L. out_dtype: of D, "nvfp4" if the tree quantises. tree: the
    epilogue as text. aligned, aligned32: D, and all matrices of the tree, start at multiples of 16, of 32 bytes.
    """

    m: int
    n: int
    k: int
    batch: int
    out_dtype: str
    tree: str
    aligned: bool = True
    batch_invariant: bool = False
    aligned32: bool = True

    def fits(self, columns: int, dtype: str, multiple: int) -> bool:
        """Whether every row of a matrix with so many columns starts at a multiple of 16 or 32 bytes."""
        start = self.aligned if multiple == TMA_BYTES else self.aligned32
        return start and columns * _BYTES[dtype] % multiple == 0

    def store(self) -> str:
        """How D can be written."""
        tree = tree_of(self.tree)
        if tree.quantizes():
            return "vectors" if self.aligned32 and self.n % 64 == 0 else "elements"
        if tree.halves_columns():
            return "vectors" if self.fits(self.n // 2, self.out_dtype, VECTOR_BYTES) else "elements"
        return "tma" if self.fits(self.n, self.out_dtype, TMA_BYTES) else "elements"

    def sink_store(self) -> str:
        """How the tree's other matrices can be written."""
        stores = [sink for sink in tree_of(self.tree).sinks if isinstance(sink, Store)]
        return "vectors" if stores and all(self.fits(self.n, s.dtype, VECTOR_BYTES) for s in stores) else "elements"

    def swappable(self) -> bool:
        """Whether D may be computed transposed: pairs and blocks of columns must stay within a thread."""
        tree = tree_of(self.tree)
        return not (tree.quantizes() or tree.halves_columns())

    def problem(self, sms: int) -> dict[str, tuned.Scalar]:
        """What a tuned table knows this request by."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tree"}
        return {**named, "tree": tree_of(self.tree).text(), "sms": sms}

    def shape(self) -> GemmShape:
        """What the heuristic sees."""
        leaves = tree_of(self.tree).leaves()
        tiles = [leaf.dtype for leaf in leaves if isinstance(leaf, Tile)]
        # Swapped, the vectors along N are those along M.
        vectors = max(sum(isinstance(leaf, kind) for leaf in leaves) for kind in (Column, Row))
        return GemmShape(
            self.m,
            self.n,
            self.k,
            self.batch,
            _NVFP4_BYTES if self.out_dtype == "nvfp4" else _BYTES[self.out_dtype],
            sum(_BYTES[dtype] for dtype in tiles),
            vectors,
            len(tiles) if all(self.fits(self.n, dtype, TMA_BYTES) for dtype in tiles) else 0,
        )


@dataclass(frozen=True)
class PlannedGemm:
    """A plan with the problem it was chosen for."""

    request: GemmRequest
    plan: Sm100GemmPlan
    shape: GemmShape
    sms: int

    def explain(self) -> str:
        """What runs and why: tiles, cluster, scheduler, ways to memory, predicted time and limiter, budgets."""
        r, p, config = self.request, self.plan, self.plan.config
        e = estimate(config, self.shape, with_sms(self.sms))
        matrices = [f"D {r.out_dtype} stored by {p.store}"]
        matrices += [f"C read by {p.tile_load}"] * bool(self.shape.c_bytes)
        matrices += [f"other matrices stored by {p.sink_store}"] * any(isinstance(s, Store) for s in p.epilogue.sinks)
        swapped = "; operands swapped: B fills the 128 rows of the MMA" if config.swap_ab else ""
        split = f"; {config.splits} CTAs share the K of a tile" if config.splits > 1 else ""
        return "\n".join(
            [
                f"W4A4 {r.m}x{r.n}x{r.k}, batch {r.batch}, {p.arch}; {', '.join(matrices)}{swapped}{split}",
                f"predicted {e.us:.1f} us on {self.sms} SMs, limited by {e.limiter} (a model: not measured on a GPU)",
                f"{e.waves} wave(s) of tiles, {-(-r.k // (TILE_K * config.splits))} stages of K each; "
                f"dependent launch {'on' if p.pdl else 'off'}",
                budget_table(config, p.column_vectors(), len(p.staged_tiles())),
            ]
        )


def make_plan(request: GemmRequest, arch: str, sms: int) -> PlannedGemm:
    """The plan of a request: the configuration of a tuned table that holds it, else the heuristic's.

    Raises:
        UnsupportedError: the matrices are too large.
        CompileError: the tuned table holds a configuration that cannot run.
    """
    check_index_range(request.m, request.n, request.k, request.batch)
    config = tuned.lookup("gemm", arch, request.problem(sms))
    if config is None:
        config = sm100.choose(request.shape(), sms, request.batch_invariant, request.swappable())
    else:
        tuned.require_legal(config, config_problems(config, request))
    return PlannedGemm(request, plan_with(config, request, arch), request.shape(), sms)


def config_problems(config: Sm100Config, request: GemmRequest) -> list[str]:
    """Every reason why a configuration cannot serve a request; empty if it can."""
    problems = sm100_problems(config, request.shape().column_vectors)
    if config.swap_ab and not request.swappable():
        problems.append("swap_ab with SwiGLU or an NVFP4 D: pairs and blocks of columns lie in different threads")
    return problems


def plan_with(config: Sm100Config, request: GemmRequest, arch: str) -> Sm100GemmPlan:
    """The plan that serves a request with a given, legal configuration.

    C comes through shared memory where its buffers fit beside the configuration's stages.
    """
    shape = request.shape()
    plan = Sm100GemmPlan(arch, config, tree_of(request.tree), request.out_dtype, "elements", pdl=True)
    if config.swap_ab:
        return plan
    tiles = sm100.staged_tiles(config, shape)
    staged = tiles > 0 and not sm100_problems(config, shape.column_vectors, tiles)
    load = "tma" if staged else "elements"
    return replace(plan, store=request.store(), tile_load=load, sink_store=request.sink_store())
