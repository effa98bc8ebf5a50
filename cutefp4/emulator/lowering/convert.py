"""cvt in all its forms."""

from __future__ import annotations

import re

from ..modifiers import FTZ, RELU, ROUND, SAT, SATFINITE
from ..ptx_parser import Instruction
from .context import Context, lowers

FORMATS = ("f16", "bf16", "tf32", "f32", "f64", "e4m3", "e5m2", "e2m1", "e2m3", "e3m2", "ue8m0")
TO_INTEGRAL = {"rni": 0, "rzi": 1, "rmi": 2, "rpi": 3}
_TYPE = re.compile(rf"([us](?:8|16|32|64)|(?:{'|'.join(sorted(FORMATS, key=len, reverse=True))})(?:x[24])?)")


def is_int(kind: str) -> bool:
    return kind[0] in "us" and kind[1:].isdigit()


def register_bits(kind: str) -> int:
    """Width of the register that holds a value of `kind`."""
    if is_int(kind):
        return max(16, int(kind[1:]))
    return {"f16": 16, "bf16": 16, "tf32": 32, "f32": 32, "f64": 64}[kind]


@lowers("cvt")
def cvt(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    kinds = [p for p in mods.parts if _TYPE.fullmatch(p)]
    mods.parts = [p for p in mods.parts if not _TYPE.fullmatch(p)]
    if len(kinds) != 2:
        raise ctx.fail("cvt needs a destination and a source type")
    integral = mods.one_of(*TO_INTEGRAL)
    rounding = mods.one_of(*ROUND)
    flags = 0
    for name, bit in (("ftz", FTZ), ("sat", SAT), ("relu", RELU), ("satfinite", SATFINITE)):
        flags |= bit if mods.flag(name) else 0
    mods.done()
    to, source = kinds
    if "x" in to[-2:] or "x" in source[-2:]:
        packed(ctx, ins, to, source, rounding or "rn", flags)
    elif is_int(to) and is_int(source):
        integer(ctx, ins, to, source, flags)
    elif is_int(to):
        to_integer(ctx, ins, to, source, TO_INTEGRAL[integral] if integral else 1, flags)
    elif is_int(source):
        from_integer(ctx, ins, to, source, ROUND[rounding or "rn"], flags)
    else:
        between_floats(ctx, ins, to, source, rounding, integral, flags)


@lowers("cvt.pack")
def pack_integers(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.need("sat")
    to = mods.need("u16", "s16", "u8", "s8", "u4", "s4", "u2", "s2")
    source = mods.need("s32", "u32")
    mods.flag("b32")
    mods.done()
    args = [ctx.src(op, 32) for op in ins.operands[1:]]
    mod = int(to[1:]) | (to[0] == "s") << 8 | (source == "s32") << 9
    ctx.emit("CVT_PACK_INT", [ctx.dst(ins.operands[0], 32), *args], mod=mod)


def target(ctx: Context, ins: Instruction, bits: int) -> tuple[int, int]:
    """Destination slot and its register's width, which may exceed the type's."""
    d = ins.operands[0]
    have = ctx.bits(d) or bits
    return ctx.dst(d, have), have


def wide_source(ctx: Context, ins: Instruction, kind: str) -> int:
    """The source may be a wider register than the type."""
    a = ins.operands[1]
    bits = register_bits(kind)
    return ctx.src(a, max(bits, ctx.bits(a)), kind if not is_int(kind) else "")


def source_bits(ctx: Context, ins: Instruction, kind: str) -> int:
    return max(register_bits(kind), ctx.bits(ins.operands[1]))


def integer(ctx: Context, ins: Instruction, to: str, source: str, flags: int) -> None:
    reg_bits = source_bits(ctx, ins, source)
    slot = wide_source(ctx, ins, source)
    d, have = target(ctx, ins, register_bits(to))
    plain = not flags and have == int(to[1:])
    if plain and reg_bits == int(source[1:]):
        name = {
            ("64", "u32"): "CVT_U64_U32",
            ("64", "s32"): "CVT_S64_S32",
            ("32", "u64"): "CVT_U32_U64",
            ("32", "s64"): "CVT_U32_U64",
        }
        fast = name.get((to[1:], source))
        if fast:
            ctx.emit(fast, [d, slot])
            return
    if reg_bits == 64 and source[1:] != "64":
        low = ctx.scratch(32)
        ctx.emit("CVT_U32_U64", [low, slot])
        slot = low
    mod = int(source[1:]) | int(to[1:]) << 8 | (source[0] == "s") << 16 | (to[0] == "s") << 17 | bool(flags & SAT) << 18
    ctx.emit("CVT_INT", [d, slot], mod=mod, aux=have)


def to_integer(ctx: Context, ins: Instruction, to: str, source: str, rounding: int, flags: int) -> None:
    slot = wide_source(ctx, ins, source)
    d, have = target(ctx, ins, register_bits(to))
    mod = (
        int(to[1:]) << 8 | (to[0] == "s") << 17 | rounding << 20 | bool(flags & FTZ) << 23 | FORMATS.index(source) << 24
    )
    ctx.emit("CVT_F2I", [d, slot], mod=mod, aux=have)


def from_integer(ctx: Context, ins: Instruction, to: str, source: str, rounding: int, flags: int) -> None:
    reg_bits = source_bits(ctx, ins, source)
    slot = wide_source(ctx, ins, source)
    d, _ = target(ctx, ins, register_bits(to))
    if reg_bits == 64 and source[1:] != "64":
        low = ctx.scratch(32)
        ctx.emit("CVT_U32_U64", [low, slot])
        slot = low
    if to == "f32" and source in ("s32", "u32") and rounding == 0 and not flags:
        ctx.emit(f"CVT_F32_{source.upper()}", [d, slot])
        return
    mod = (
        int(source[1:]) | (source[0] == "s") << 16 | rounding << 20 | bool(flags & SAT) << 23 | FORMATS.index(to) << 24
    )
    ctx.emit("CVT_I2F", [d, slot], mod=mod)


def between_floats(
    ctx: Context, ins: Instruction, to: str, source: str, rounding: str | None, integral: str | None, flags: int
) -> None:
    slot = wide_source(ctx, ins, source)
    d, _ = target(ctx, ins, register_bits(to))
    fast = {("f32", "f16"), ("f16", "f32"), ("f32", "bf16"), ("bf16", "f32")}
    if (to, source) in fast and not flags and not integral and rounding in (None, "rn"):
        ctx.emit(f"CVT_{to.upper()}_{source.upper()}", [d, slot])
        return
    mod = flags | (TO_INTEGRAL[integral] | 1 << 24 if integral else ROUND[rounding or "rn"])
    ctx.emit("CVT_F2F", [d, slot], mod=mod | FORMATS.index(source) << 16 | FORMATS.index(to) << 20)


def packed(ctx: Context, ins: Instruction, to: str, source: str, rounding: str, flags: int) -> None:
    d, *rest = ins.operands
    to_name, to_count = (to[:-2], int(to[-1])) if to[-2] == "x" else (to, 1)
    element = {"e2m1": 4, "f16": 16, "bf16": 16}.get(to_name, 8)
    bits = ctx.bits(d) or max(16, element * to_count)
    mod = flags | ROUND[rounding] | FORMATS.index(to_name) << 20
    if rounding == "rs":
        return stochastic(ctx, ins, to_name, to_count, mod, bits)
    if source == "f32" and to_count == 2:
        args = [ctx.src(op, 32, "f32") for op in rest]
        if to_name in ("f16", "bf16") and rounding == "rn" and not flags:
            ctx.emit(f"CVT_{to_name.upper()}X2_F32", [ctx.dst(d, bits), *args])
            return
        ctx.emit("CVT_PACK", [ctx.dst(d, bits), *args], mod=mod | FORMATS.index("f32") << 16 | 2 << 24)
        return
    if source[-2:] == "x2" and to_count == 2 and len(rest) == 1:
        from_name = source[:-2]
        wide = ctx.bits(rest[0]) or 32
        ctx.emit("CVT_REPACK", [ctx.dst(d, bits), ctx.src(rest[0], wide)], mod=mod | FORMATS.index(from_name) << 16)
        return
    raise ctx.fail(f"conversion of {source} to {to} is not implemented")


def stochastic(ctx: Context, ins: Instruction, to_name: str, count: int, mod: int, bits: int) -> None:
    d, *rest = ins.operands
    items = [item for op in rest[:-1] for item in ctx.vector(op)]
    args = [ctx.src(op, 32, "f32") for op in items] + [ctx.src(rest[-1], 32)]
    if len(items) != count:
        raise ctx.fail(f"{len(items)} values for a vector of {count}")
    ctx.emit("CVT_RS4" if count == 4 else "CVT_RS2", [ctx.dst(d, bits), *args], mod=mod)
