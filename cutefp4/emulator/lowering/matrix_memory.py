"""ldmatrix, stmatrix, movmatrix."""

from __future__ import annotations

from ..ptx_parser import Instruction
from .context import Context, lowers
from .memory import access_bits, space_of

SHAPES = ("m8n8", "m8n16", "m16n16", "m16n8")
SOURCES = {"b8x16.b6x16_p32": 1, "b8x16.b4x16_p64": 2}


def decode(ctx: Context, ins: Instruction) -> tuple[int, int, int, bool]:
    """(shape, count, aux bits, space)."""
    mods = ins.modifiers()
    mods.need("sync")
    mods.need("aligned")
    shape = mods.need(*SHAPES)
    count = int(mods.need("x1", "x2", "x4")[1:])
    trans = mods.flag("trans")
    space = space_of(mods)
    source = 0
    if mods.flag("b8x16"):
        source = {"b6x16_p32": 1, "b4x16_p64": 2}[mods.need("b6x16_p32", "b4x16_p64")]
    else:
        mods.need("b8" if shape != "m8n8" else "b16")
    mods.done()
    if (shape in ("m16n16", "m16n8")) != trans and shape != "m8n8":
        raise ctx.fail(f"{shape} {'needs' if not trans else 'has no'} .trans")
    return SHAPES.index(shape), count, count | SHAPES.index(shape) << 4 | trans << 6 | source << 7, space


@lowers("ldmatrix")
def ldmatrix(ctx: Context, ins: Instruction) -> None:
    shape, count, aux, space = decode(ctx, ins)
    items = ctx.vector(ins.operands[0])
    if len(items) != (2 * count if SHAPES[shape] == "m16n16" else count):
        raise ctx.fail(f"{len(items)} registers do not fit")
    base, wide, offset = ctx.address(ins.operands[1])
    args = [ctx.dst(item, 32) for item in items]
    ctx.emit("LDMATRIX", [*args, base], mod=access_bits(16, 1, space, wide, False, 32), imm=offset, aux=aux)


@lowers("stmatrix")
def stmatrix(ctx: Context, ins: Instruction) -> None:
    _, count, aux, space = decode(ctx, ins)
    items = ctx.vector(ins.operands[1])
    if len(items) != count:
        raise ctx.fail(f"{len(items)} registers, expected {count}")
    base, wide, offset = ctx.address(ins.operands[0])
    args = [ctx.src(item, 32) for item in items]
    ctx.emit("STMATRIX", [base, *args], mod=access_bits(16, 1, space, wide, False, 32), imm=offset, aux=aux)


@lowers("movmatrix")
def movmatrix(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    for name in ("sync", "aligned", "m8n8", "trans", "b16"):
        mods.need(name)
    mods.done()
    source = ctx.src(ins.operands[1], 32)
    ctx.emit("MOVMATRIX", [ctx.dst(ins.operands[0], 32), source])
