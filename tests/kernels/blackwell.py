"""Running one Blackwell GEMM plan in the emulator: operands with exact fp32 sums, outputs poisoned and guarded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from cutefp4 import compile, emulator, reference
from cutefp4.config_sm100 import Sm100Config, split_workspace
from cutefp4.epilogue import default_epilogue
from cutefp4.format import gemm_constant
from cutefp4.gemm_plan_sm100 import Sm100GemmPlan
from cutefp4.operand import Nvfp4Operand
from cutefp4.scale_layout import to_tiled

CONSTANT = gemm_constant(448, 448)
TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SCALES = torch.tensor([0.5, 1.0, 1.5, 2.0, 3.5, 0.25]).to(torch.float8_e4m3fn)
GUARD = 64


def operand(rows: int, k: int, seed: int, batch: int = 1) -> Nvfp4Operand:
    """(L, rows, k) with every code and scales of 0.25 to 3.5: products are multiples of 2^-6, sums far below 2^18."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (batch, rows, k // 2), generator=g, dtype=torch.uint8)
    scales = SCALES[torch.randint(0, len(SCALES), (batch, rows, k // 16), generator=g)]
    amax = torch.rand(batch, rows, generator=g) * 3000 + 500
    return Nvfp4Operand(codes, to_tiled(scales), amax, scaling="token", rows=rows, k=k)


@dataclass
class Problem:
    """One multiplication; `run` returns (D of the emulator, D of the oracle)."""

    m: int
    n: int
    k: int
    batch: int = 1
    config: Sm100Config = Sm100Config()
    out_dtype: str = "bfloat16"
    store: str = "tma"
    bias: str | None = None
    activation: str | None = None
    c: str | None = None
    beta: float = 1.0
    arch: str = "sm_100a"
    sms: int = 2
    seed: int | None = None
    pdl: bool = False
    tile_load: str = "elements"

    def plan(self) -> Sm100GemmPlan:
        tree = default_epilogue(CONSTANT, bias=self.bias, activation=self.activation, c=self.c, beta=self.beta)
        return Sm100GemmPlan(self.arch, self.config, tree, self.out_dtype, self.store, self.pdl, self.tile_load)

    def plan_dtype(self) -> torch.dtype:
        return TORCH[self.out_dtype]

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        plan = self.plan()
        a, b = operand(self.m, self.k, 1, self.batch), operand(self.n, self.k, 2, self.batch)
        g = torch.Generator().manual_seed(3)
        values = {"alpha_a": a.amax, "alpha_b": b.amax}
        if self.bias:
            values["bias"] = torch.randn(self.batch, self.n, generator=g).to(TORCH[self.bias])
        if self.c:
            values["c"] = torch.randn(self.batch, self.m, self.n, generator=g).to(TORCH[self.c])
        d, guards = guarded((self.batch, self.m, self.n), TORCH[self.out_dtype])
        values["d"] = d
        values |= workspace(self.config, self.m, self.n, self.batch)
        launch(plan, a, b, values, self.arch, self.sms, self.seed)
        for guard in guards:
            assert (guard == 0xA5).all(), "bytes outside D were written"
        assert not values["counters"].any(), "counters are not back at zero"
        expected = reference.gemm(
            a,
            b,
            bias=values.get("bias"),
            activation=self.activation,
            c=values.get("c"),
            beta=self.beta,
            out_dtype=TORCH[self.out_dtype],
        )
        return d, expected

    def check(self) -> None:
        """Every bit of D."""
        actual, expected = self.run()
        where = (actual != expected).nonzero()
        assert len(where) == 0, f"{len(where)} of {actual.numel()} differ, first at {where[0].tolist()}: {self}"

    def name(self) -> str:
        c = self.config
        parts = [f"{self.m}x{self.n}x{self.k}", f"tile{c.tile_m}x{c.tile_n}", self.out_dtype, self.store, self.arch]
        parts += [str(p) for p in (self.bias, self.activation, self.c) if p]
        parts += ["swap"] * c.swap_ab + [f"split{c.splits}"] * (c.splits > 1) + ["clc"] * (c.scheduler == "clc")
        return "-".join(parts + ["tma-c"] * (self.tile_load == "tma"))

    def but(self, **changes) -> Problem:
        return replace(self, **changes)


def guarded(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """A poisoned tensor inside a larger buffer, and the bytes before and behind it."""
    size = torch.Size(shape).numel() * dtype.itemsize
    raw = torch.full((GUARD + size + GUARD,), 0xA5, dtype=torch.uint8)
    return raw[GUARD : GUARD + size].view(dtype).view(shape), (raw[:GUARD], raw[GUARD + size :])


def workspace(config: Sm100Config, m: int, n: int, batch: int) -> dict[str, torch.Tensor]:
    """Poisoned partial sums and zero counters."""
    partials, counters = split_workspace(config, m, n, batch)
    return {"partials": torch.full(partials, torch.nan), "counters": torch.zeros(counters, dtype=torch.int32)}


def launch(plan: Sm100GemmPlan, a: Nvfp4Operand, b: Nvfp4Operand, values: dict, arch: str, sms: int, seed: int | None):
    """Run a plan in the emulator; returns the report. Findings raise."""
    operands = (
        a.codes,
        a.block_scales.view(torch.uint8).reshape(-1),
        b.codes,
        b.block_scales.view(torch.uint8).reshape(-1),
    )
    with emulator.device(arch, seed=seed, sms=sms) as device:
        compile.get(plan)(*operands, tuple(values[name] for name in plan.tensor_names()), sms)
        return device.report()
