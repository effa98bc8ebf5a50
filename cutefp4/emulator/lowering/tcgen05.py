"""Lowering of tcgen05: tensor memory, its copies, and the fifth-generation matrix product."""

from __future__ import annotations

from ..ptx_parser import Address, Instruction, Vector
from .context import Context, lowers

LDST_SHAPES = ("32x32b", "16x64b", "16x128b", "16x256b", "16x32bx2")
LDST_REGISTERS = {"32x32b": 1, "16x64b": 1, "16x128b": 2, "16x256b": 4, "16x32bx2": 1}
KINDS = ("f16", "tf32", "i8", "f8f6f4", "mxf8f6f4", "mxf4", "mxf4nvf4")
E2M1, E2M3 = 7, 5
A_TMEM, BLOCK16 = 1 << 5, 1 << 6


def _group(ctx: Context, mods) -> int:
    group = mods.match(r"cta_group::([12])")
    if group is None:
        raise ctx.fail("tcgen05 instructions name .cta_group::1 or ::2")
    return int(group.group(1))


def _aligned(mods) -> None:
    mods.flag("sync")
    mods.flag("aligned")


def _tmem(ctx: Context, operand) -> list[int]:
    base, wide, offset = ctx.address(operand)
    if wide:
        raise ctx.fail("a tensor-memory address is a 32-bit register")
    return [base, ctx.const32(offset)]


# ---- allocation


@lowers("tcgen05.alloc")
def alloc(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    group = _group(ctx, mods)
    _aligned(mods)
    mods.flag("shared::cta")
    mods.flag("b32")
    mods.done()
    base, _, offset = ctx.address(ins.operands[0])
    ctx.emit("TCGEN05_ALLOC", [base, ctx.const32(offset), ctx.src(ins.operands[1], 32)], mod=group)


@lowers("tcgen05.dealloc")
def dealloc(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    group = _group(ctx, mods)
    _aligned(mods)
    mods.flag("b32")
    mods.done()
    ctx.emit("TCGEN05_DEALLOC", [ctx.src(operand, 32) for operand in ins.operands], mod=group)


@lowers("tcgen05.relinquish_alloc_permit")
def relinquish(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    group = _group(ctx, mods)
    _aligned(mods)
    mods.done()
    ctx.emit("TCGEN05_RELINQUISH", [], mod=group)


# ---- ld, st, waits, fences


def _ldst_modifiers(ctx: Context, mods, packing: str) -> tuple[int, int, str]:
    _aligned(mods)
    shape = mods.one_of(*LDST_SHAPES)
    repeat = mods.match(r"x(\d+)")
    if shape is None or repeat is None:
        raise ctx.fail("tcgen05.ld and st name a shape and a repeat count")
    times = int(repeat.group(1))
    registers = LDST_REGISTERS[shape] * times
    if times & (times - 1) or registers > 128:
        raise ctx.fail(f".{shape}.x{times} does not exist")
    packed = mods.flag(packing)
    return LDST_SHAPES.index(shape) | int(packed) << 3 | (times.bit_length() - 1) << 4, registers, shape


def _register_list(ctx: Context, operand, count: int) -> list:
    items = ctx.vector(operand) if isinstance(operand, Vector) else [operand]
    if len(items) != count:
        raise ctx.fail(f"{len(items)} registers, expected {count}")
    return items


@lowers("tcgen05.ld")
def ld(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    reducing = mods.flag("red")
    mod, count, shape = _ldst_modifiers(ctx, mods, "pack::16b")
    if reducing:
        operation = mods.one_of("min", "max")
        mod |= (1 if operation == "min" else 2) << 8 | int(mods.flag("abs")) << 10 | int(mods.flag("NaN")) << 11
        mod |= ("f32", "u32", "s32").index(mods.one_of("f32", "u32", "s32")) << 12
    else:
        mods.flag("b32")
    mods.done()
    operands = list(ins.operands)
    args = [ctx.dst(item, 32) for item in _register_list(ctx, operands.pop(0), count)]
    if reducing:
        args.append(ctx.dst(operands.pop(0), 32))
    args += _tmem(ctx, operands.pop(0))
    split = operands.pop(0).value if shape == "16x32bx2" else 0
    ctx.emit("TCGEN05_LD", args, mod=mod, imm=split)


@lowers("tcgen05.st")
def st(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mod, count, shape = _ldst_modifiers(ctx, mods, "unpack::16b")
    mods.flag("b32")
    mods.done()
    operands = list(ins.operands)
    args = _tmem(ctx, operands.pop(0))
    split = operands.pop(0).value if shape == "16x32bx2" else 0
    args += [ctx.src(item, 32) for item in _register_list(ctx, operands.pop(0), count)]
    ctx.emit("TCGEN05_ST", args, mod=mod, imm=split)


@lowers("tcgen05.wait::ld")
def wait_ld(ctx: Context, ins: Instruction) -> None:
    _aligned(ins.modifiers())
    ctx.emit("TCGEN05_WAIT_LD", [])


@lowers("tcgen05.wait::st")
def wait_st(ctx: Context, ins: Instruction) -> None:
    _aligned(ins.modifiers())
    ctx.emit("TCGEN05_WAIT_ST", [])


@lowers("tcgen05.fence::before_thread_sync")
@lowers("tcgen05.fence::after_thread_sync")
def fence(ctx: Context, ins: Instruction) -> None:
    ctx.emit("TCGEN05_FENCE", [])


# ---- the in-order queue: commit, cp, shift


@lowers("tcgen05.commit")
def commit(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    group = _group(ctx, mods)
    if not mods.flag("mbarrier::arrive::one"):
        raise ctx.fail("tcgen05.commit completes through .mbarrier::arrive::one")
    mods.flag("shared::cluster")
    multicast = mods.flag("multicast::cluster")
    mods.flag("b64")
    mods.done()
    base, wide, offset = ctx.address(ins.operands[0])
    mask = ctx.src(ins.operands[1], 16) if multicast else ctx.const32(0)
    ctx.emit("TCGEN05_COMMIT", [base, ctx.const32(offset), mask], mod=group | int(multicast) << 2 | int(wide) << 3)


@lowers("tcgen05.cp")
def cp(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    group = _group(ctx, mods)
    shape = mods.one_of("128x256b", "4x256b", "128x128b", "64x128b", "32x128b")
    multicast = mods.one_of("warpx2::02_13", "warpx2::01_23", "warpx4")
    names = {
        ("128x256b", None): 0, ("4x256b", None): 1, ("128x128b", None): 2, ("64x128b", "warpx2::02_13"): 3,
        ("64x128b", "warpx2::01_23"): 4, ("32x128b", "warpx4"): 5,
    }  # fmt: skip
    if (shape, multicast) not in names:
        raise ctx.fail(f"tcgen05.cp .{shape} with {multicast or 'no multicast'} does not exist")
    source = 0
    if mods.flag("b8x16"):
        source = {"b4x16_p64": E2M1 + 1, "b6x16_p32": E2M3 + 1}[mods.one_of("b4x16_p64", "b6x16_p32")]
    mods.done()
    args = _tmem(ctx, ins.operands[0]) + [ctx.src(ins.operands[1], 64)]
    ctx.emit("TCGEN05_CP", args, mod=group | names[shape, multicast] << 2 | source << 5)


@lowers("tcgen05.shift")
def shift(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    group = _group(ctx, mods)
    mods.flag("down")
    mods.done()
    ctx.emit("TCGEN05_SHIFT", _tmem(ctx, ins.operands[0]), mod=group)


# ---- mma


def _block(ctx: Context, mods, kind: str) -> int:
    """Elements per scale factor; the kind's default where the instruction does not say."""
    if not mods.flag("block_scale"):
        raise ctx.fail(f"kind::{kind} needs .block_scale")
    named = mods.one_of("scale_vec::1X", "scale_vec::2X", "scale_vec::4X", "block16", "block32")
    default = {"mxf8f6f4": 32, "mxf4": 32, "mxf4nvf4": 16}[kind]
    k = 32 if kind == "mxf8f6f4" else 64
    block = default if named is None else int(named[5:]) if named.startswith("block") else k // int(named[-2])
    allowed = {"mxf8f6f4": (32,), "mxf4": (32,), "mxf4nvf4": (16, 32)}[kind]
    if block not in allowed:
        raise ctx.fail(f"kind::{kind} has scale factors of {' or '.join(map(str, allowed))} elements, not {block}")
    return block


@lowers("tcgen05.mma")
def mma(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    for refused, why in (("sp", "sparse"), ("ws", "weight-stationary (.ws)")):
        if mods.flag(refused):
            raise ctx.fail(f"{why} tcgen05.mma is not supported")
    group = _group(ctx, mods)
    name = mods.match(r"kind::(\w+)")
    if name is None or name.group(1) not in KINDS:
        raise ctx.fail(f"tcgen05.mma kinds are {', '.join(KINDS)}")
    kind = name.group(1)
    scaled = kind.startswith("mx")
    block = _block(ctx, mods, kind) if scaled else 32
    mods.match(r"collector::a::(fill|use|lastuse|discard)")  # operand reuse changes no result
    if mods.match(r"ashift"):
        raise ctx.fail("tcgen05.mma.ashift is not supported")
    mods.done()
    d, a, b, idesc, *rest = ins.operands
    in_tmem = isinstance(a, Address)
    mod = KINDS.index(kind) | (group - 1) << 4 | A_TMEM * in_tmem | BLOCK16 * (block == 16)
    none = ctx.const32(0)
    args = _tmem(ctx, d) + (_tmem(ctx, a) if in_tmem else [ctx.src(a, 64), none])
    args += [ctx.src(b, 64), ctx.src(idesc, 32)]
    scales = [none] * 4
    if scaled:
        scales = _tmem(ctx, rest.pop(0)) + _tmem(ctx, rest.pop(0))
    disable = ctx.vector(rest.pop(0)) if isinstance(rest[0], Vector) else []
    if disable and len(disable) != 4 * group:
        raise ctx.fail(f"{len(disable)} registers of disable-output-lane, expected {4 * group}")
    enable = ctx.pred(rest.pop(0))
    mod |= len(disable) << 8 | (rest.pop(0).value if rest else 0) << 12
    ctx.emit("TCGEN05_MMA", args + [enable] + scales + [ctx.src(item, 32) for item in disable], mod=mod)
