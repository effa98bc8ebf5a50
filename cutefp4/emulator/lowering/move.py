"""mov and its packing forms, cvta, mapa, isspacep."""

from __future__ import annotations

from ..ptx_parser import Instruction, Vector
from .context import Context, lowers

GENERIC = {"shared": 0x01 << 56, "local": 0x02 << 56, "param": 0x03 << 56, "global": 0, "const": 0}


def copy(ctx: Context, d: int, source: int, bits: int) -> None:
    if bits == 128:
        ctx.emit("MOV64", [d, source])
        ctx.emit("MOV64", [d + 2, source + 2])
    else:
        ctx.emit("MOV64" if bits == 64 else "MOV32", [d, source])


@lowers("mov")
def mov(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    kind = mods.type()
    mods.done()
    d, a = ins.operands
    if kind == "pred":
        number, negated = ctx.pred_source(a)
        ctx.emit("PRED_LOGIC", [ctx.pred(d), number, number], mod=3 | (4 if negated else 0))
        return
    bits = {"bf16": 16, "f16x2": 32, "bf16x2": 32, "f32x2": 64}.get(kind) or int(kind[1:])
    if isinstance(d, Vector):
        return unpack(ctx, d, a, bits)
    if isinstance(a, Vector):
        return pack(ctx, d, a, bits)
    if bits == 8:
        bits = 16
    source = ctx.src(a, bits, kind if kind[0] == "f" else "")
    copy(ctx, ctx.dst(d, bits), source, bits)


def unpack(ctx: Context, d: Vector, a, bits: int) -> None:
    items = ctx.vector(d)
    width = bits // len(items)
    source = ctx.src(a, bits)
    targets = []  # a source may also be a destination: write through scratch registers then
    for i, item in enumerate(items):
        if getattr(item, "name", "") == "_":
            continue
        target = ctx.dst(item, max(width, 16))
        targets.append((i, target))
    clash = source >= 0 and any(t in range(source, source + max(bits // 32, 1)) for _, t in targets)
    pending = []
    for i, target in targets:
        out = ctx.scratch(max(width, 32)) if clash else target
        if width == 64:
            ctx.emit("MOV64", [out, source + 2 * i])
        elif bits == 128:
            ctx.emit("EXTRACT64", [out, source + 2 * (i // 2)], aux=32 * (i % 2), imm=0xFFFFFFFF)
        elif bits == 64:
            ctx.emit("EXTRACT64", [out, source], aux=width * i, imm=(1 << width) - 1)
        else:
            ctx.emit("EXTRACT32", [out, source], aux=width * i, imm=(1 << width) - 1)
        if clash:
            pending.append((target, out))
    for target, out in pending:
        copy(ctx, target, out, max(width, 32))


def pack(ctx: Context, d, a: Vector, bits: int) -> None:
    items = ctx.vector(a)
    width = bits // len(items)
    args = [ctx.src(item, max(width, 16)) for item in items]
    target = ctx.dst(d, max(bits, 16))
    if bits == 128:
        halves = args
        if width == 32:
            halves = [ctx.scratch(64), ctx.scratch(64)]
            ctx.emit("PACK64", [halves[0], args[0], args[1]])
            ctx.emit("PACK64", [halves[1], args[2], args[3]])
        low = ctx.scratch(64)
        ctx.emit("MOV64", [low, halves[0]])
        ctx.emit("MOV64", [target + 2, halves[1]])
        ctx.emit("MOV64", [target, low])
        return
    name = {
        (64, 32): "PACK64",
        (64, 16): "PACK64_16",
        (32, 16): "PACK32",
        (32, 8): "PACK32_8",
        (16, 8): "PACK16_8",
    }.get((bits, width))
    if name is None:
        raise ctx.fail(f"packing {len(items)} x {width} bits is not implemented")
    ctx.emit(name, [target, *args])


@lowers("cvta")
def cvta(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    back = mods.flag("to")
    space = mods.need(
        "global", "shared", "shared::cta", "shared::cluster", "local", "const", "param", "param::entry"
    ).split("::")[0]
    bits = int(mods.need("u64", "u32")[1:])
    mods.done()
    if bits == 32:
        raise ctx.fail("32-bit generic addresses are not supported")
    d, a = ins.operands
    source = ctx.src(a, 64)
    if GENERIC[space] == 0:
        ctx.emit("MOV64", [ctx.dst(d, 64), source])
    else:
        ctx.emit("CVTA_TO" if back else "CVTA", [ctx.dst(d, 64), source], imm=GENERIC[space])


@lowers("isspacep")
def isspacep(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    space = mods.need("global", "shared", "shared::cta", "shared::cluster", "local", "const", "param", "param::entry")
    mods.done()
    p, a = ins.operands
    source = ctx.src(a, 64)
    own = space in ("shared", "shared::cta")
    ctx.emit("ISSPACEP", [ctx.pred(p), source], imm=GENERIC[space.split("::")[0]], aux=int(own))


@lowers("mapa")
def mapa(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.flag("shared::cluster")
    bits = int(mods.need("u32", "u64")[1:])
    mods.done()
    d, a, rank = ins.operands
    args = [ctx.src(a, bits), ctx.src(rank, 32)]
    ctx.emit("MAPA", [ctx.dst(d, bits), *args], mod=int(bits == 64))


@lowers("getctarank")
def getctarank(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.flag("shared::cluster")
    bits = int(mods.need("u32", "u64")[1:])
    mods.done()
    d, a = ins.operands
    source = ctx.src(a, bits)
    ctx.emit("GETCTARANK", [ctx.dst(d, 32), source], mod=int(bits == 64))
