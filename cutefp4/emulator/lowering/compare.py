"""setp, set, selp, testp."""

from __future__ import annotations

from ..modifiers import Modifiers
from ..ptx_parser import Instruction
from .context import Context, lowers

COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
COMBINE = {"and": 1, "or": 2, "xor": 3}
FTZ_COMPARE, BF16_COMPARE = 256, 512
HANDLER = {
    "b16": "U16",
    "u16": "U16",
    "s16": "S16",
    "b32": "U32",
    "u32": "U32",
    "s32": "S32",
    "b64": "U64",
    "u64": "U64",
    "s64": "S64",
    "f32": "F32",
    "f64": "F64",
    "f16": "HALF",
    "bf16": "HALF",
    "f16x2": "HALF2",
    "bf16x2": "HALF2",
}


def comparison(ctx: Context, mods: Modifiers) -> int:
    """Comparison, combination and ftz bits."""
    name = mods.need(*COMPARISONS, *UNSIGNED)
    bits = COMPARISONS.index(UNSIGNED.get(name, name))
    combine = mods.one_of(*COMBINE)
    bits |= (COMBINE[combine] if combine else 0) << 5
    return bits | (FTZ_COMPARE if mods.flag("ftz") else 0)


def emit_compare(ctx: Context, kind: str, mod: int, p: int, q: int, operands: list) -> None:
    bits = {"f16x2": 32, "bf16x2": 32, "bf16": 16}.get(kind) or int(kind[1:])
    sources = [ctx.src(op, bits, kind if kind[0] == "f" or "bf" in kind else "") for op in operands[:2]]
    args = [p, q, *sources]
    if mod >> 5 & 3:
        c, negated = ctx.pred_source(operands[2])
        args.append(c)
        mod |= 128 if negated else 0
    ctx.emit(f"SETP_{HANDLER[kind]}", args, mod=mod | (BF16_COMPARE if "bf" in kind else 0))


@lowers("setp")
def setp(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mod = comparison(ctx, mods)
    kind = mods.type()
    mods.done()
    first, second = ctx.pair(ins.operands[0])
    p = -1 if getattr(first, "name", "") == "_" else ctx.pred(first)
    q = -1 if second is None or getattr(second, "name", "") == "_" else ctx.pred(second)
    emit_compare(ctx, kind, mod, p, q, ins.operands[1:])


@lowers("set")
def set_value(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mod = comparison(ctx, mods)
    result, kind = mods.types()
    mods.done()
    d, *operands = ins.operands
    if result in ("f16x2", "bf16x2") or kind in ("f16x2", "bf16x2"):
        return set_halves(ctx, d, operands, result, kind, mod)
    p = ctx.scratch_pred()
    emit_compare(ctx, kind, mod, p, -1, operands)
    bits = 16 if result in ("f16", "bf16", "u16", "s16") else 32
    true = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80, "u16": 0xFFFF, "s16": 0xFFFF}.get(result, 0xFFFFFFFF)
    ctx.emit("SEL32", [ctx.dst(d, bits), ctx.const32(true), ctx.const32(0), p])


def set_halves(ctx: Context, d, operands: list, result: str, kind: str, mod: int) -> None:
    low, high = ctx.scratch_pred(), ctx.scratch_pred()
    emit_compare(ctx, kind, mod, low, high, operands)
    one = {"f16x2": 0x3C00, "bf16x2": 0x3F80}.get(result, 0xFFFF)
    parts = [ctx.scratch(32), ctx.scratch(32)]
    for slot, p in zip(parts, (low, high), strict=True):
        ctx.emit("SEL32", [slot, ctx.const32(one), ctx.const32(0), p])
    ctx.emit("PACK32", [ctx.dst(d, 32), *parts])


@lowers("selp")
def selp(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    kind = mods.type()
    mods.done()
    bits = {"bf16": 16, "f16x2": 32, "bf16x2": 32}.get(kind) or int(kind[1:])
    d, a, b, p = ins.operands
    number, negated = ctx.pred_source(p)
    args = [ctx.src(a, bits, kind if kind[0] == "f" else ""), ctx.src(b, bits, kind if kind[0] == "f" else "")]
    ctx.emit("SEL64" if bits == 64 else "SEL32", [ctx.dst(d, bits), *args, number], mod=int(negated))


@lowers("testp")
def testp(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    names = ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    which = names.index(mods.need(*names))
    kind = mods.need("f32", "f64")
    mods.done()
    source = ctx.src(ins.operands[1], int(kind[1:]), kind)
    ctx.emit(f"TESTP_{kind.upper()}", [ctx.pred(ins.operands[0]), source], mod=which)
