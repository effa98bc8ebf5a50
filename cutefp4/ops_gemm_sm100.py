"""Launches of the Blackwell GEMM: allocate D, choose a plan, run.

    gemm        NVFP4 x NVFP4, the operation "gemm" of the backends
    gemm_plan   what it runs, and why (`PlannedGemm.explain`), without running it

K must be a multiple of 32 inside the kernel (rows of codes of 16 bytes). Otherwise codes are copied once with zeros at
the end of each row; tiled scales are padded already. Scales must be tiled: tcgen05 reads the tiles as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import tuned, workspace
from cutefp4.config_sm100 import CTA_ROWS, EPILOGUE_WARPS, TILE_K, Sm100Config, budget_table, sm100_problems
from cutefp4.epilogue import Epilogue, default_epilogue
from cutefp4.epilogue_arguments import alpha_kinds
from cutefp4.errors import UnsupportedError
from cutefp4.format import gemm_constant
from cutefp4.gemm_plan import check_index_range
from cutefp4.gemm_plan_sm100 import Sm100GemmPlan
from cutefp4.heuristics import sm100
from cutefp4.launch import Operator, arch_of, sm_count, target
from cutefp4.operand import Nvfp4Operand
from cutefp4.schedule_model_sm100 import GemmShape, estimate, with_sms

K_MULTIPLE = 32
_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class GemmRequest:
    """Everything that a plan depends on; hashable, made from tensors without touching their data.

    m, n, k: of the product, K padded to 32. batch: L. out_dtype: of D. tree: text of the epilogue, see `tree_of`.
    aligned: D and C start at multiples of 16 bytes.
    """

    m: int
    n: int
    k: int
    batch: int
    out_dtype: str
    tree: str
    aligned: bool = True
    batch_invariant: bool = False

    def store(self) -> str:
        """How D can be written."""
        return "tma" if self.aligned and self.n * _BYTES[self.out_dtype] % 16 == 0 else "elements"

    def problem(self, sms: int) -> dict[str, tuned.Scalar]:
        """What a tuned table knows this request by."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tree"}
        return {**named, "tree": tree_of(self.tree).text(), "sms": sms}

    def shape(self) -> GemmShape:
        """What the heuristic sees."""
        tree = tree_of(self.tree)
        c_bytes = sum(_BYTES[leaf.dtype] for leaf in tree.leaves() if leaf.name == "c")
        vectors = sum(leaf.name in ("alpha_b", "bias") for leaf in tree.leaves())
        tiles = int(self.aligned and c_bytes > 0 and self.n * c_bytes % 16 == 0)
        return GemmShape(self.m, self.n, self.k, self.batch, _BYTES[self.out_dtype], c_bytes, vectors, tiles)


@dataclass(frozen=True)
class PlannedGemm:
    """A plan with the problem it was chosen for."""

    request: GemmRequest
    plan: Sm100GemmPlan
    shape: GemmShape
    sms: int

    def explain(self) -> str:
        """What runs and why: tiles, cluster, predicted time and its limiter, budgets."""
        r, config = self.request, self.plan.config
        e = estimate(config, self.shape, with_sms(self.sms))
        return "\n".join(
            [
                f"W4A4 {r.m}x{r.n}x{r.k}, batch {r.batch}, D {r.out_dtype} stored by {self.plan.store}",
                f"predicted {e.us:.1f} us on {self.sms} SMs, limited by {e.limiter} (a model: not measured on a GPU)",
                f"{e.waves} wave(s) of tiles, {-(-r.k // TILE_K)} stages of K each",
                budget_table(config, self.plan.column_vectors(), len(self.plan.staged_tiles())),
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
        config = sm100.choose(request.shape(), sms, request.batch_invariant)
    else:
        tuned.require_legal(config, config_problems(config, request))
    return PlannedGemm(request, plan_with(config, request, arch), request.shape(), sms)


def config_problems(config: Sm100Config, request: GemmRequest) -> list[str]:
    """Every reason why a configuration cannot serve a request; empty if it can."""
    return sm100_problems(config, request.shape().column_vectors)


def plan_with(config: Sm100Config, request: GemmRequest, arch: str) -> Sm100GemmPlan:
    """The plan that serves a request with a given, legal configuration.

    C comes through shared memory where its buffers fit beside the configuration's stages.
    """
    shape = request.shape()
    store = "elements" if config.swap_ab else request.store()
    tiles = sm100.staged_tiles(config, shape)
    staged = tiles > 0 and not sm100_problems(config, shape.column_vectors, tiles)
    return Sm100GemmPlan(
        arch,
        config,
        tree_of(request.tree),
        request.out_dtype,
        store,
        pdl=True,
        tile_load="tma" if staged else "elements",
    )


def _split_workspace(config: Sm100Config, r: GemmRequest, device: torch.device) -> list[torch.Tensor]:
    """Partial sums and counters of a configuration that splits K."""
    rows, columns = (r.n, r.m) if config.swap_ab else (r.m, r.n)
    tiles = -(-rows // CTA_ROWS) * -(-columns // config.tile_n) * r.batch
    shape = (tiles * config.splits, EPILOGUE_WARPS, config.tile_n, 32)
    count = torch.Size(shape).numel()
    space = workspace.get(device, scratch_bytes=4 * count, semaphores=tiles * EPILOGUE_WARPS)
    return [space.partials[:count].view(shape), space.semaphores[: tiles * EPILOGUE_WARPS].view(tiles, EPILOGUE_WARPS)]


@cache
def tree_of(text: str) -> Epilogue:
    """The epilogue that a text stands for: e4m3 maxima, kinds of alpha_a and alpha_b, dtypes of bias and C, ..."""
    max_a, max_b, alpha_a, alpha_b, bias, activation, c, beta = text.split(";")
    bias, activation, c = (None if part == "None" else part for part in (bias, activation, c))
    constant = gemm_constant(int(max_a), int(max_b))
    return default_epilogue(constant, alpha_a, alpha_b, bias, activation, c, float(beta))


_plans: dict[tuple, PlannedGemm] = {}


def _gemm_into(a, a_scales, b, b_scales, leaves, d, tree: str, batch_invariant: bool) -> None:
    """Run on 3-D codes and flat scales; `leaves` are in the order of the tree's leaves."""
    l, m, _ = a.shape
    aligned = all(t.data_ptr() % 16 == 0 for t in (d, *(leaf for leaf in leaves if leaf.dim() == 3)))
    dtype = _NAMES[d.dtype]
    request = GemmRequest(m, b.shape[1], b.shape[2] * 2, l, dtype, tree, aligned, batch_invariant)
    key = (request, d.device, target(d.device), tuned.generation())
    planned = _plans.get(key)
    if planned is None:
        planned = _plans[key] = make_plan(request, arch_of(d.device), sm_count(d.device))
    tensors = [d, *leaves]
    if planned.plan.config.splits > 1:
        tensors += _split_workspace(planned.plan.config, request, d.device)
    kernel_cache.get(planned.plan)(a, a_scales, b, b_scales, tuple(tensors), planned.sms)


gemm_into = Operator(
    "gemm_sm100_into(Tensor a, Tensor a_scales, Tensor b, Tensor b_scales, Tensor[] leaves, Tensor(a!) d, str tree, "
    "bool batch_invariant) -> ()",
    _gemm_into,
)


def _codes(operand: Nvfp4Operand) -> torch.Tensor:
    """(L, rows, K/2), rows padded to 16 bytes."""
    missing = -operand.codes.shape[-1] % (K_MULTIPLE // 2)
    codes = torch.nn.functional.pad(operand.codes, (0, missing)) if missing else operand.codes
    return codes if codes.dim() == 3 else codes[None]


def _scales(name: str, operand: Nvfp4Operand) -> torch.Tensor:
    if operand.scale_layout != "tiled":
        raise UnsupportedError(
            f"{name} with {operand.scale_layout} scales on Blackwell",
            "tiled scales (128x4 tiles)",
            "quantise with scale_layout='tiled', or convert with cutefp4.scale_layout.to_tiled",
        )
    return operand.block_scales.view(torch.uint8).reshape(-1)


def _tree_text(a: Nvfp4Operand, b: Nvfp4Operand, bias, activation, c, beta: float) -> str:
    """The default tree for a pair; `tree_of` reads it."""
    bias_dtype, c_dtype = (None if t is None else _NAMES[t.dtype] for t in (bias, c if beta else None))
    return ";".join(map(str, (a.e4m3_max, b.e4m3_max, *alpha_kinds(a, b), bias_dtype, activation, c_dtype, beta)))


def gemm(
    a: Nvfp4Operand,
    b: Nvfp4Operand,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    c: torch.Tensor | None = None,
    beta: float = 1.0,
    out_dtype: torch.dtype = torch.bfloat16,
    out: torch.Tensor | None = None,
    batch_invariant: bool = False,
) -> torch.Tensor:
    """D = activation(z + bias) + beta * C, as `cutefp4.gemm` defines it, with the arguments already checked there.

    Raises:
        UnsupportedError: compact scales.
    """
    scales = _scales("A", a), _scales("B", b)
    batch = a.batch_shape[0] if a.batch_shape else 1
    d = torch.empty(*a.batch_shape, a.rows, b.rows, dtype=out_dtype, device=a.device) if out is None else out
    if 0 in d.shape:
        return d
    c = c if beta else None
    matrix = (batch, a.rows, b.rows)
    leaves = [
        a.amax.view(batch, a.rows) if a.scaling == "token" else a.amax.view(batch),
        b.amax.view(batch, b.rows) if b.scaling == "token" else b.amax.view(batch),
        *([] if bias is None else [bias.expand(batch, b.rows).contiguous()]),
        *([] if c is None else [c.view(matrix)]),
    ]
    tree = _tree_text(a, b, bias, activation, c, beta)
    gemm_into(_codes(a), scales[0], _codes(b), scales[1], leaves, d.view(matrix), tree, batch_invariant)
    return d


def gemm_plan(
    a: Nvfp4Operand,
    b: Nvfp4Operand,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    c: torch.Tensor | None = None,
    beta: float = 1.0,
    out_dtype: torch.dtype = torch.bfloat16,
    out: torch.Tensor | None = None,
    batch_invariant: bool = False,
    tree=None,
) -> PlannedGemm:
    """What `gemm` would run; runs nothing. Without `out`, D is taken to be aligned as PyTorch aligns new tensors.

    Raises:
        UnsupportedError: compact scales, 16-bit activations, or an epilogue that the caller composed.
    """
    if isinstance(a, torch.Tensor) or tree is not None:
        raise UnsupportedError(
            "a plan for " + ("gemm_a16" if isinstance(a, torch.Tensor) else "a composed epilogue") + " on Blackwell",
            "NVFP4 operands and the arguments of gemm",
            "pass backend='reference', or plan the gemm of quantised activations",
        )
    for name, operand in (("A", a), ("B", b)):
        _scales(name, operand)
    request = GemmRequest(
        a.rows,
        b.rows,
        -(-a.k // K_MULTIPLE) * K_MULTIPLE,
        a.batch_shape[0] if a.batch_shape else 1,
        _NAMES[out_dtype],
        _tree_text(a, b, bias, activation, c, beta),
        all(t.data_ptr() % 16 == 0 for t in (out, c if beta else None) if t is not None),
        batch_invariant,
    )
    return make_plan(request, arch_of(b.device), sm_count(b.device))
