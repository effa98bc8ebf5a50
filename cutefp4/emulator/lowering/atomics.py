"""atom and red."""

from __future__ import annotations

from ..modifiers import TYPE_BYTES
from ..ptx_parser import Instruction
from .context import Context, lowers
from .memory import HINTS, access_bits, space_of

OPERATIONS = ("add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas")
TYPES = ("u32", "s32", "u64", "s64", "f32", "f64", "f16", "bf16", "f16x2", "bf16x2", "b128", "b16")
SAME = {"b32": "u32", "b64": "u64", "u16": "b16", "s16": "b16"}
FLOAT_OPERATIONS = {"f32": ("add", "exch"), "f64": ("add",), "b128": ("cas", "exch")}


def operation(ctx: Context, mods) -> tuple[str, str, int, int, int]:
    """(operation, type, vector count, space, packed bits)."""
    space = space_of(mods)
    mods.ignore(*HINTS, "noftz")
    name = mods.need(*OPERATIONS)
    count = int((mods.one_of("v2", "v4", "v8") or "v1")[1:])
    kind = mods.type()
    mods.done()
    kind = SAME.get(kind, kind)
    allowed = FLOAT_OPERATIONS.get(kind)
    vector_float = count > 1 and kind in ("f32", "f16", "bf16", "f16x2", "bf16x2")
    if (allowed and name not in allowed and not vector_float) or (
        kind in ("f16", "bf16", "f16x2", "bf16x2") and name not in ("add", "min", "max")
    ):
        raise ctx.fail(f"{name} does not exist for {kind}")
    return name, kind, count, space, OPERATIONS.index(name) << 20 | TYPES.index(kind) << 24


def emit(ctx: Context, ins: Instruction, results: list, target, values: list, swap) -> None:
    name, kind, count, space, bits = operation(ctx, ins.modifiers())
    size = TYPE_BYTES[kind]
    register = max(16, 8 * size)
    base, wide, offset = ctx.address(target)
    sources = [ctx.src(v, register, kind if kind in ("f32", "f64", "f16", "bf16") else "") for v in values]
    if name == "cas":
        sources.append(ctx.src(swap, register))
    if len(values) != count:
        raise ctx.fail(f"{len(values)} values for a vector of {count}")
    outputs = [ctx.dst(r, register) for r in results]
    mod = access_bits(size, count, space, wide, False, register) | bits
    ctx.emit("ATOM", [*outputs, base, *sources], mod=mod, imm=offset, aux=int(bool(results)))


@lowers("atom")
def atom(ctx: Context, ins: Instruction) -> None:
    d, target, value, *rest = ins.operands
    emit(ctx, ins, ctx.vector(d), target, ctx.vector(value), rest[0] if rest else None)


@lowers("red")
def red(ctx: Context, ins: Instruction) -> None:
    target, value, *_ = ins.operands
    emit(ctx, ins, [], target, ctx.vector(value), None)
