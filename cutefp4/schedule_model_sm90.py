"""What one launch of the Hopper GEMM needs, for `schedule_model`: the test of the model's rules, on measured kernels.

Per 64 of K a CTA needs

    tensor  tile_m * tile_n / 32 clocks of wgmma, times TENSOR
    decode  rows of the register operand and, if it is decoded here, of the shared one, at clocks per row: what
            decoding costs beside everything else that issues
    l2      what TMA brings, at 64 bytes per clock
    smem    TMA's writes, reads by decoders, decoded tiles written, wgmma's reads, at 128 bytes per clock

and per tile an epilogue that is not hidden behind the next tile's mainloop: instructions, D through L2, C from HBM.
CTAs that share K exchange partial sums. A staged operand is decoded once by a kernel before, at the speed of HBM.

Clocks per row beside a 16-bit operand, and of the exchange, were read inside the kernel on an H200 (heuristics/sm90.py
has them). Those beside decode warps, and the fixed times, are fitted to sweeps of configurations at (4096, 4096, 4096),
(8192, 8192, 8192), (16384, 7168, 2048) and M x 8192 x 8192. perf/schedule_model.py states the error against the results
that are kept, class by class. The small-M kernel is not modelled.
"""

from __future__ import annotations

from cutefp4.config import K_BLOCK, Sm90Config
from cutefp4.heuristics.sm90 import (
    HELPED_CLOCKS,
    PAIR_STORE,
    GemmShape,
    direct_clocks,
    exchange_clocks,
    helped_stages,
)
from cutefp4.schedule_model import Estimate, Machine, Work, schedule

H200 = Machine(name="H200", sms=132, clock=1.75, products=2048, smem=128, l2=64, hbm=4250.0, latency=1500, launch=2.0)
TENSOR = 1.11
"""wgmma takes this much longer than its products alone: between two groups, fragments change hands."""
DECODED_ROW, SHARED_ROW, SHARED_ROW_16 = 3.2, 4.46, 4.76
"""Clocks per row and 64 of K: of the register operand, and of a shared operand of NVFP4 or of 16 bits in the kernel."""
TILE_CLOCKS = 3000.0
"""Of an epilogue."""
EPILOGUE_SLOTS = 1.0
"""Clocks per 128 elements of D."""
STAGING_US = 1.0
NVFP4_BYTES = 0.5625


def _is_direct(config: Sm90Config) -> bool:
    """Whether the shared operand comes in 16 bits: staged, or activations."""
    return config.decode_groups == 0


def _block_clocks(config: Sm90Config, shape: GemmShape, rows: tuple[int, int]) -> dict[str, float]:
    """Clocks per 64 of K by resource. rows: of register and shared operand, which may be fewer than a tile's."""
    c, direct, a16 = config, _is_direct(config), shape.activations != "nvfp4"
    if direct:
        decode = direct_clocks(c)
    else:
        decode = DECODED_ROW * c.tile_m + (SHARED_ROW_16 if a16 else SHARED_ROW) * c.tile_n
    packed = K_BLOCK * NVFP4_BYTES
    row_n = 2 * K_BLOCK if direct or a16 else packed
    decoded_n = 0 if direct else 2 * K_BLOCK + row_n
    smem = 2 * c.tile_m * packed + c.tile_n * (row_n + decoded_n + 2 * K_BLOCK * c.tile_m / 64)
    brought = min(c.tile_m, rows[0]) * packed + min(c.tile_n, rows[1]) * row_n
    return {
        "tensor": TENSOR * c.tile_m * c.tile_n / 32,
        "decode": decode,
        "l2": brought / H200.l2,
        "smem": smem / H200.smem,
    }


def _shared_k_clocks(config: Sm90Config, tiles: int, ctas: int) -> float:
    """What sharing K costs a CTA."""
    if config.stream_k:  # a CTA's share begins and ends inside tiles, and a tile has the partial sums of several
        return exchange_clocks(config, 1 + ctas / tiles, 2)
    helped = HELPED_CLOCKS if config.helped else 0.0
    return exchange_clocks(config, config.splits - 1) + helped if config.shares_k else 0.0


def work(config: Sm90Config, shape: GemmShape, out_bytes: int = 2, c_bytes: int = 0, sms: int = H200.sms) -> Work:
    """What a launch of a configuration needs. out_bytes, c_bytes: of an element of D, of C (0: none)."""
    c = config
    rows = (shape.n, shape.m) if c.swap_ab else (shape.m, shape.n)
    tiles = -(-rows[0] // c.tile_m) * -(-rows[1] // c.tile_n) * shape.batch * c.splits
    stages = -(-shape.k // c.tile_k)
    if c.helped:
        stages -= helped_stages(c, tiles // c.splits, stages, sms)
    stages = -(-stages // c.splits)
    elements = c.tile_m * min(c.tile_n, rows[1])
    per_sm = H200.hbm / (H200.clock * H200.sms)
    crossing = {"bytes": elements * (out_bytes / H200.l2 + c_bytes / per_sm)}
    issue, share = EPILOGUE_SLOTS * elements / 128, PAIR_STORE if c.split_pair else 1.0
    a_bytes = NVFP4_BYTES if shape.activations == "nvfp4" else 2.0
    operands = shape.m * shape.k * a_bytes + shape.n * shape.k * NVFP4_BYTES
    return Work(
        stage={name: c.k_blocks * clocks for name, clocks in _block_clocks(c, shape, rows).items()},
        stages=stages,
        depth=c.load_stages,
        epilogue={name: share * clocks for name, clocks in (crossing | {"issue": issue}).items()},
        epilogue_fixed=share * TILE_CLOCKS,
        overlapped=False,
        tiles=tiles,
        at_once=sms,
        sms=min(tiles * (stages if c.stream_k else 1), sms),
        hbm_bytes=shape.batch * (operands + shape.m * shape.n * (out_bytes + c_bytes)),
        products=shape.m * shape.n * shape.k * shape.batch,
        equal_shares=c.stream_k,
        setup=_shared_k_clocks(c, tiles // c.splits, min(tiles * stages, sms)),
    )


def staging_us(config: Sm90Config, shape: GemmShape) -> float:
    """Time of the kernel that decodes the shared operand before this one; 0 without one."""
    if not _is_direct(config) or shape.activations != "nvfp4":
        return 0.0
    rows = shape.m if config.swap_ab else shape.n
    return STAGING_US + shape.batch * rows * shape.k * (NVFP4_BYTES + 2.0) / H200.hbm / 1e3


def estimate(config: Sm90Config, shape: GemmShape, out_bytes: int = 2, c_bytes: int = 0) -> Estimate:
    """The modelled time of one call; `us` holds the staging kernel, too."""
    found = schedule(work(config, shape, out_bytes, c_bytes), H200)
    extra = staging_us(config, shape)
    if not extra:
        return found
    terms = found.terms | {"staging": extra}
    values = {name: getattr(found, name) for name in Estimate.__dataclass_fields__}
    return Estimate(**values | {"us": found.us + extra, "terms": terms})
