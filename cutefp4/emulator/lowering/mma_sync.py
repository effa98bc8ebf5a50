"""Lowering of mma.sync (m16n8kK), plain and block-scaled."""

from __future__ import annotations

from ..ptx_parser import Instruction
from .context import Context, lowers
from .wgmma import ACCUMULATORS, ELEMENTS

BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "e2m3": 6, "e3m2": 6, "e2m1": 4, "u8": 8, "s8": 8}
KINDS = ("kind::f8f6f4", "kind::mxf8f6f4", "kind::mxf4", "kind::mxf4nvf4")
SHORT_ROWS, SATURATE, BYTE_ELEMENTS, UE4M3 = 1 << 13, 1 << 12, 1 << 14, 1 << 19


def _scale_count(ctx: Context, mods, kind: str) -> int:
    vector = mods.one_of("scale_vec::1X", "scale_vec::2X", "scale_vec::4X")
    allowed = {"kind::mxf8f6f4": (1,), "kind::mxf4": (2,), "kind::mxf4nvf4": (2, 4)}[kind]
    count = int(vector[-2]) if vector else allowed[0]
    if count not in allowed:
        raise ctx.fail(f"{kind} has {' or '.join(map(str, allowed))} scales per row, not {count}")
    return count


@lowers("mma")
def mma(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    if not mods.flag("sync") or mods.match(r"sp.*"):
        raise ctx.fail("only dense mma.sync is supported")
    mods.flag("aligned")
    shape = mods.match(r"m(\d+)n(\d+)k(\d+)")
    if shape is None or shape.group(1, 2) != ("16", "8"):
        raise ctx.fail("mma.sync shapes other than m16n8kK are not supported")
    k = int(shape.group(3))
    if not (mods.flag("row") and mods.flag("col")):
        raise ctx.fail("mma.sync takes a row-major A and a column-major B")
    kind = mods.one_of(*KINDS)
    scaled = mods.flag("block_scale")
    count = _scale_count(ctx, mods, kind) if scaled else 0
    saturate = mods.flag("satfinite")
    d, a, b, c = (mods.one_of(*ACCUMULATORS), mods.one_of(*BITS), mods.one_of(*BITS), mods.one_of(*ACCUMULATORS))
    scale_type = mods.one_of("ue8m0", "ue4m3") if scaled else None
    mods.done()
    if None in (d, a, b, c):
        raise ctx.fail("mma.sync takes f16, bf16, tf32, fp8, fp6, fp4, u8 and s8 operands")
    bytewise = kind in ("kind::f8f6f4", "kind::mxf8f6f4")
    row_bytes = k if bytewise else k * BITS[a] // 8
    if row_bytes not in (16, 32) or (not bytewise and (BITS[a] != BITS[b] or (BITS[a] < 8) != (kind in KINDS[2:]))):
        raise ctx.fail(f"mma.sync m16n8k{k} does not exist for {a} by {b}")
    mod = ELEMENTS[a] | ELEMENTS[b] << 4 | ACCUMULATORS[d] << 8 | ACCUMULATORS[c] << 10 | count << 16
    mod |= SATURATE * saturate | SHORT_ROWS * (row_bytes == 16) | BYTE_ELEMENTS * bytewise
    mod |= UE4M3 * (scale_type == "ue4m3")
    counts = (2 if d == "f16" else 4, row_bytes // 8, row_bytes // 16, 2 if c == "f16" else 4)
    args = _registers(ctx, ins, counts)
    if scaled:
        args += _scales(ctx, ins)
    ctx.emit("MMA_SYNC", args, mod=mod)


def _registers(ctx: Context, ins: Instruction, counts: tuple[int, ...]) -> list[int]:
    args = []
    for name, operand, count in zip("DABC", ins.operands, counts, strict=False):
        items = ctx.vector(operand)
        if len(items) != count:
            raise ctx.fail(f"{len(items)} registers of {name}, expected {count}")
        args += [ctx.dst(item, 32) if name == "D" else ctx.src(item, 32) for item in items]
    return args


def _scales(ctx: Context, ins: Instruction) -> list[int]:
    """Scale word, byte-id and thread-id of A, then of B; the ids are immediates or registers."""
    args = []
    for word, ids in (ins.operands[4:6], ins.operands[6:8]):
        (word,) = ctx.vector(word)
        args += [ctx.src(word, 32)] + [ctx.src(item, 16) for item in ctx.vector(ids)]
    return args
