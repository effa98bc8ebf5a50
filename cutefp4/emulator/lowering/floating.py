"""Floating-point arithmetic of every width; the integer module hands over the opcodes that both share."""

from __future__ import annotations

from ..modifiers import ABS, FTZ, NAN, XORSIGN, Modifiers
from ..ptx_parser import Instruction
from .context import Context, lowers

HALVES = {"f16": 1, "bf16": 1, "f16x2": 2, "bf16x2": 2}
BITS = {"f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32, "f32": 32, "f64": 64, "f32x2": 64}
SIGN_MASK = {"f16": 0x8000, "bf16": 0x8000, "f16x2": 0x80008000, "bf16x2": 0x80008000}


def kind_of(ctx: Context, mods: Modifiers) -> str:
    """The operation's type. `fma.rn.f32.f16` multiplies halves into fp32: mixed() handles its second type."""
    return mods.need(*BITS)


def sources(ctx: Context, operands, kind: str, narrow: str | None = None, keep: int = 0) -> list[int]:
    """Sources of `kind`; with `narrow`, all but the last `keep` are halves that are converted to fp32 first."""
    out = []
    for i, operand in enumerate(operands):
        if narrow and i < len(operands) - keep:
            half = ctx.src(operand, 16, narrow)
            wide = ctx.scratch(32)
            ctx.emit(f"CVT_F32_{narrow.upper()}", [wide, half])
            out.append(wide)
        else:
            out.append(ctx.src(operand, BITS[kind], kind))
    return out


def emit(ctx: Context, ins: Instruction, name: str, kind: str, args: list[int], mod: int) -> None:
    """Chooses the fast handler when there is no modifier."""
    d = ctx.dst(ins.operands[0], BITS[kind])
    suffix = f"_{kind.upper()}" + ("_MOD" if kind == "f32" and mod else "")
    ctx.emit(name + suffix, [d, *args], mod=mod)


def add(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mod = mods.arithmetic()
    kind = kind_of(ctx, mods)
    narrow = mods.one_of("f16", "bf16") if kind == "f32" else None
    mods.done()
    emit(ctx, ins, ins.opcode[:3].upper(), kind, sources(ctx, ins.operands[1:], kind, narrow, keep=1), mod)


def multiply(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mod = mods.arithmetic()
    kind = kind_of(ctx, mods)
    mods.done()
    emit(ctx, ins, "MUL", kind, sources(ctx, ins.operands[1:], kind), mod)


@lowers("fma")
def multiply_add(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mod = mods.arithmetic()
    oob = mods.flag("oob")
    kind = kind_of(ctx, mods)
    narrow = mods.one_of("f16", "bf16") if kind == "f32" else None
    mods.done()
    if oob:
        raise ctx.fail("fma.oob is not implemented")
    emit(ctx, ins, "FMA", kind, sources(ctx, ins.operands[1:], kind, narrow, keep=1), mod)


def divide(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.ignore("approx", "full")
    mod = mods.arithmetic()
    kind = mods.need("f32", "f64")
    mods.done()
    emit(ctx, ins, "DIV", kind, sources(ctx, ins.operands[1:], kind), mod)


def sign(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    name, ftz = ins.opcode[:3].upper(), mods.flag("ftz")
    kind = kind_of(ctx, mods)
    mods.done()
    args = sources(ctx, ins.operands[1:], kind)
    d = ctx.dst(ins.operands[0], BITS[kind])
    if kind in HALVES:
        ctx.emit(
            f"{name}_HALF",
            [d, *args],
            mod=FTZ if ftz and "bf" not in kind else 0,
            imm=SIGN_MASK[kind],
            aux=int("bf" in kind),
        )
    elif kind == "f32x2":
        raise ctx.fail("packed fp32 sign operations do not exist")
    else:
        ctx.emit(f"{name}_{kind.upper()}" + ("_FTZ" if ftz else ""), [d, *args])


def extreme(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mod = 0
    for name, bit in (("ftz", FTZ), ("NaN", NAN), ("xorsign", XORSIGN), ("abs", ABS)):
        if mods.flag(name):
            mod |= bit
    kind = kind_of(ctx, mods)
    mods.done()
    name = ins.opcode[:3].upper() + ("3" if len(ins.operands) == 4 else "")
    args = sources(ctx, ins.operands[1:], kind)
    if name.endswith("3") and kind == "f32":
        ctx.emit(f"{name}_F32", [ctx.dst(ins.operands[0], 32), *args], mod=mod)
        return
    emit(ctx, ins, name, kind, args, mod)


@lowers("rcp", "sqrt", "rsqrt", "sin", "cos", "lg2", "ex2", "tanh")
def function(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    name = ins.opcode.split(".")[0].upper()
    mods.flag("approx")
    mod = mods.arithmetic()
    kind = kind_of(ctx, mods)
    mods.done()
    args = sources(ctx, ins.operands[1:], kind)
    d = ctx.dst(ins.operands[0], BITS[kind])
    if kind in HALVES and name not in ("EX2", "TANH"):
        raise ctx.fail(f"{name.lower()} does not exist for {kind}")
    if kind == "f64":
        ctx.emit(f"{name}_F64", [d, args[0], args[0]], mod=mod)
    elif kind == "f32" and name in ("RCP", "SQRT") and mod:
        ctx.emit(f"{name}_F32_MOD", [d, *args], mod=mod)
    else:
        ctx.emit(f"{name}_{kind.upper()}", [d, *args], mod=mod)


@lowers("copysign")
def copysign(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    kind = mods.need("f32", "f64")
    mods.done()
    emit(ctx, ins, "COPYSIGN", kind, sources(ctx, ins.operands[1:], kind), 0)
