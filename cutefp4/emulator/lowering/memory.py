"""ld, st and their hints, prefetch, and the parameter space of calls."""

from __future__ import annotations

from ..modifiers import TYPE_BYTES, Modifiers
from ..ptx_parser import Address, Instruction, Reg
from .context import Context, lowers

SPACE = {"global": 1, "shared": 2, "local": 3, "param": 4, "const": 1}
HINTS = (
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "nc",
    "weak",
    "volatile",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "mmio",
    "cta",
    "cluster",
    "gpu",
    "sys",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::evict_normal",
    "L2::evict_first",
    "L2::evict_last",
    "L2::cache_hint",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "unified",
)
CLUSTER_SPACE = 5


def space_of(mods: Modifiers) -> int:
    """Space number of native/access.h; 0 generic."""
    name = mods.one_of(
        "global", "shared", "shared::cta", "shared::cluster", "local", "param", "param::entry", "param::func", "const"
    )
    if name == "shared::cluster":
        return CLUSTER_SPACE
    return SPACE[name.split("::")[0]] if name else 0


def access_bits(element: int, count: int, space: int, wide: bool, signed: bool, register: int) -> int:
    width = {16: 0, 32: 1, 64: 2, 128: 3}[register]
    return element | count << 8 | space << 12 | wide << 15 | signed << 16 | width << 17


def register_width(ctx: Context, items: list, kind: str) -> int:
    """The widest register among the operands; constants and `_` take the type's width."""
    natural = max(16, 8 * TYPE_BYTES[kind])
    return max([natural] + [ctx.bits(item) for item in items])


@lowers("ld", "ldu")
def ld(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    hinted = "L2::cache_hint" in mods.parts
    space = space_of(mods)
    mods.ignore(*HINTS)
    count = int((mods.one_of("v2", "v4", "v8") or "v1")[1:])
    kind = mods.type()
    mods.done()
    items, source = ctx.vector(ins.operands[0]), ins.operands[1]
    if space == SPACE["param"] and is_call_parameter(ctx, source):
        return load_call_parameter(ctx, items, source, kind)
    if len(items) != count:
        raise ctx.fail(f"{len(items)} registers for a vector of {count}")
    register = register_width(ctx, items, kind)
    base, wide, offset = ctx.address(source)
    args = [ctx.dst(item, register) for item in items]
    mod = access_bits(TYPE_BYTES[kind], count, space, wide, kind[0] == "s", register)
    ctx.emit("LD", [*args, base], mod=mod, imm=offset)
    expected = 3 if hinted else 2
    if len(ins.operands) != expected:
        raise ctx.fail(f"{len(ins.operands)} operands, expected {expected}")


@lowers("st")
def st(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    space = space_of(mods)
    mods.ignore(*HINTS)
    count = int((mods.one_of("v2", "v4", "v8") or "v1")[1:])
    kind = mods.type()
    mods.done()
    target, items = ins.operands[0], ctx.vector(ins.operands[1])
    if space == SPACE["param"]:
        return store_call_parameter(ctx, items, target, kind)
    if len(items) != count:
        raise ctx.fail(f"{len(items)} registers for a vector of {count}")
    register = register_width(ctx, items, kind)
    base, wide, offset = ctx.address(target)
    args = [ctx.src(item, register, kind if kind[0] == "f" else "") for item in items]
    ctx.emit("ST", [base, *args], mod=access_bits(TYPE_BYTES[kind], count, space, wide, False, register), imm=offset)


# ---- parameters of calls: registers, since callees are inlined


def is_call_parameter(ctx: Context, operand: object) -> bool:
    if not isinstance(operand, Address) or not isinstance(operand.base, Reg):
        return False
    return ctx.call_parameter(operand.base.name) is not None


def load_call_parameter(ctx: Context, items: list, source: Address, kind: str) -> None:
    size = TYPE_BYTES[kind]
    for i, item in enumerate(items):
        slot = ctx.call_slot(source.base.name, source.offset + i * size, size)
        bits = max(32, 8 * size)
        d = ctx.dst(item, max(ctx.bits(item), 16))
        ctx.emit("MOV64" if bits == 64 else "MOV32", [d, slot])


def store_call_parameter(ctx: Context, items: list, target: Address, kind: str) -> None:
    size = TYPE_BYTES[kind]
    for i, item in enumerate(items):
        slot = ctx.call_slot(target.base.name, target.offset + i * size, size)
        source = ctx.src(item, max(16, 8 * size), kind if kind[0] == "f" else "")
        ctx.emit("MOV64" if size == 8 else "MOV32", [slot, source])


@lowers("prefetch", "prefetchu", "discard", "applypriority", "createpolicy", "cp.async.bulk.prefetch")
def hint(ctx: Context, ins: Instruction) -> None:
    """Cache hints: no effect, but a policy register must hold something."""
    if ins.opcode.startswith("createpolicy"):
        ctx.emit("MOV64", [ctx.dst(ins.operands[0], 64), ctx.const64(0)])
    else:
        ctx.emit("NOP")
