"""Integer, logic and bit instructions. Opcodes that also exist for floats (add, min, neg ...) go on to floating.py."""

from __future__ import annotations

from ..ptx_parser import Imm, Instruction
from . import floating
from .context import Context, lowers

FLOAT_TYPES = {"f16", "bf16", "f16x2", "bf16x2", "f32", "f64", "f32x2"}


def width(kind: str) -> int:
    return int("".join(c for c in kind.split("x")[0] if c.isdigit()))


def is_float(ins: Instruction) -> bool:
    return bool(FLOAT_TYPES & set(ins.opcode.split(".")[1:]))


def sources(ctx: Context, operands, bits: int) -> list[int]:
    return [ctx.src(op, bits) for op in operands]


def simple(ctx: Context, ins: Instruction, name: str, bits: int, mod: int = 0) -> None:
    """d = op(sources), all of one width."""
    d, *rest = ins.operands
    args = sources(ctx, rest, bits)
    ctx.emit(name, [ctx.dst(d, bits), *args], mod=mod)


def carry(ctx: Context, ins: Instruction, bits: int, mod: int) -> None:
    d, *rest = ins.operands
    args = sources(ctx, rest, bits)
    ctx.emit(f"CARRY_{bits}", [ctx.dst(d, bits), *args, ctx.scratch_pred("carry")], mod=mod)


@lowers("add", "sub")
def add(ctx: Context, ins: Instruction) -> None:
    if is_float(ins):
        return floating.add(ctx, ins)
    mods = ins.modifiers()
    name = ins.opcode.split(".")[0].upper()
    sat, cc = mods.flag("sat"), mods.flag("cc")
    kind = mods.need("u16", "s16", "u32", "s32", "u64", "s64", "u16x2", "s16x2", "b32", "b64")
    mods.done()
    bits = width(kind)
    if cc:
        return carry(ctx, ins, bits, 2 | (4 if name == "SUB" else 0))
    if kind.endswith("x2"):
        return simple(ctx, ins, f"{name}_16X2", 32)
    simple(ctx, ins, f"{name}_SAT_S32" if sat else f"{name}_{bits}", bits)


@lowers("addc", "subc")
def add_carry(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    cc = mods.flag("cc")
    bits = width(mods.need("u32", "s32", "b32", "u64", "s64", "b64"))
    mods.done()
    carry(ctx, ins, bits, 1 | (2 if cc else 0) | (4 if ins.opcode.startswith("sub") else 0))


@lowers("mul", "mul24")
def mul(ctx: Context, ins: Instruction) -> None:
    if is_float(ins):
        return floating.multiply(ctx, ins)
    mods = ins.modifiers()
    short = ins.opcode.startswith("mul24")
    part = mods.need("lo", "hi", "wide")
    kind = mods.need("u16", "s16", "u32", "s32", "u64", "s64", "b32", "b64")
    mods.done()
    bits, sign = width(kind), "S" if kind[0] == "s" else "U"
    if short:
        return simple(ctx, ins, f"MUL24_{part.upper()}_{sign}32", 32)
    if part == "wide":
        d, a, b = ins.operands
        args = sources(ctx, (a, b), bits)
        return ctx.emit(f"MULWIDE_{sign}{bits}", [ctx.dst(d, 2 * bits), *args]) and None
    simple(ctx, ins, f"MUL_{bits}" if part == "lo" else f"MULHI_{sign}{bits}", bits)


@lowers("mad", "madc", "mad24")
def mad(ctx: Context, ins: Instruction) -> None:
    if is_float(ins):
        return floating.multiply_add(ctx, ins)
    mods = ins.modifiers()
    part = mods.need("lo", "hi", "wide")
    sat, cc = mods.flag("sat"), mods.flag("cc")
    kind = mods.need("u16", "s16", "u32", "s32", "u64", "s64", "b32", "b64")
    mods.done()
    bits, sign = width(kind), "S" if kind[0] == "s" else "U"
    with_carry = ins.opcode.startswith("madc")
    if cc or with_carry:
        mod = int(with_carry) | 2 * cc | (8 if part == "hi" else 0) | (16 if sign == "S" else 0)
        return carry(ctx, ins, bits, mod)
    d, a, b, c = ins.operands
    if ins.opcode.startswith("mad24"):
        product = ctx.scratch(32)
        ctx.emit(f"MUL24_{part.upper()}_{sign}32", [product, *sources(ctx, (a, b), 32)])
        other = ctx.src(c, 32)
        return ctx.emit("ADD_32", [ctx.dst(d, 32), product, other]) and None
    if part == "wide":
        args = [*sources(ctx, (a, b), bits), ctx.src(c, 2 * bits)]
        return ctx.emit(f"MADWIDE_{sign}{bits}", [ctx.dst(d, 2 * bits), *args]) and None
    if part == "hi" and sat:
        return simple(ctx, ins, "MADHI_SAT_S32", 32)
    simple(ctx, ins, f"MAD_{bits}" if part == "lo" else f"MADHI_{sign}{bits}", bits)


@lowers("div", "rem")
def divide(ctx: Context, ins: Instruction) -> None:
    if is_float(ins):
        return floating.divide(ctx, ins)
    mods = ins.modifiers()
    kind = mods.need("u16", "s16", "u32", "s32", "u64", "s64")
    mods.done()
    simple(ctx, ins, f"{ins.opcode[:3].upper()}_{kind.upper()}", width(kind))


@lowers("abs", "neg")
def sign(ctx: Context, ins: Instruction) -> None:
    if is_float(ins):
        return floating.sign(ctx, ins)
    mods = ins.modifiers()
    kind = mods.need("s16", "s32", "s64", "s16x2")
    mods.done()
    name = ins.opcode[:3].upper()
    if kind == "s16x2":
        return simple(ctx, ins, f"{name}_16X2", 32)
    simple(ctx, ins, f"{name}_{width(kind)}", width(kind))


@lowers("min", "max")
def extreme(ctx: Context, ins: Instruction) -> None:
    if is_float(ins):
        return floating.extreme(ctx, ins)
    mods = ins.modifiers()
    relu = mods.flag("relu")
    kind = mods.need("u16", "s16", "u32", "s32", "u64", "s64", "u16x2", "s16x2")
    mods.done()
    name = ins.opcode[:3].upper()
    if len(ins.operands) == 4:
        return three_input(ctx, ins, f"{name}_{kind.upper()}", width(kind), relu)
    if kind.endswith("x2"):
        simple(ctx, ins, f"{name}_{kind.upper()}", 32)
        if relu:
            d = ctx.dst(ins.operands[0], 32)
            ctx.emit("RELU_S16X2", [d, d])
        return
    simple(ctx, ins, f"{name}_RELU_S32" if relu else f"{name}_{kind.upper()}", width(kind))


def three_input(ctx: Context, ins: Instruction, name: str, bits: int, relu: bool) -> None:
    d, a, b, c = ins.operands
    first = ctx.scratch(bits)
    ctx.emit(name, [first, *sources(ctx, (a, b), bits)])
    last = ctx.src(c, bits)
    ctx.emit(name, [ctx.dst(d, bits), first, last])
    if relu:
        result = ctx.dst(d, bits)
        ctx.emit("MAX_S32", [result, result, ctx.const32(0)])


@lowers("and", "or", "xor", "not", "cnot")
def logic(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    name = ins.opcode.split(".")[0]
    kind = mods.need("pred", "b16", "b32", "b64")
    mods.done()
    if kind == "pred":
        return predicate_logic(ctx, ins, name)
    bits = width(kind)
    operation = name.upper() + (f"_{bits}" if bits != 16 or name in ("not", "cnot") else "_32")
    simple(ctx, ins, operation, bits)


def predicate_logic(ctx: Context, ins: Instruction, name: str) -> None:
    d, *rest = ins.operands
    parts = [ctx.pred_source(op) for op in rest]
    if name == "not":
        number, negated = parts[0]
        ctx.emit("PRED_LOGIC", [ctx.pred(d), number, number], mod=3 | (0 if negated else 4))
        return
    (a, not_a), (b, not_b) = parts
    ctx.emit("PRED_LOGIC", [ctx.pred(d), a, b], mod=("and", "or", "xor").index(name) | 4 * not_a | 8 * not_b)


@lowers("shl", "shr")
def shift(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    kind = mods.need("b16", "u16", "s16", "b32", "u32", "s32", "b64", "u64", "s64")
    mods.done()
    bits, (d, a, b) = width(kind), ins.operands
    left = ins.opcode.startswith("shl")
    name = f"SHL_{bits}" if left else f"SHR_{'S' if kind[0] == 's' else 'U'}{bits}"
    args = [ctx.src(a, bits), ctx.src(b, 32)]
    ctx.emit(name, [ctx.dst(d, bits), *args])


@lowers("shf")
def funnel(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    name = f"SHF_{mods.need('l', 'r').upper()}_{mods.need('clamp', 'wrap').upper()}"
    mods.need("b32")
    mods.done()
    simple(ctx, ins, name, 32)


@lowers("sad")
def sad(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    kind = mods.need("u32", "s32", "u64", "s64", "u16", "s16")
    mods.done()
    simple(ctx, ins, f"SAD_{kind.upper()}", width(kind))


@lowers("popc", "clz")
def count_bits(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    bits = width(mods.need("b32", "b64"))
    mods.done()
    d, a = ins.operands
    source = ctx.src(a, bits)
    ctx.emit(f"{ins.opcode.split('.')[0].upper()}_{bits}", [ctx.dst(d, 32), source])


@lowers("brev")
def brev(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    bits = width(mods.need("b32", "b64"))
    mods.done()
    simple(ctx, ins, f"BREV_{bits}", bits)


@lowers("bfind")
def bfind(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    amount = mods.flag("shiftamt")
    kind = mods.need("u32", "s32", "u64", "s64")
    mods.done()
    d, a = ins.operands
    source = ctx.src(a, width(kind))
    ctx.emit(f"BFIND_{kind.upper()}", [ctx.dst(d, 32), source], mod=int(amount))


@lowers("bfe", "bfi")
def field(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    kind = mods.need("u32", "s32", "u64", "s64", "b32", "b64")
    mods.done()
    bits, (d, *rest) = width(kind), ins.operands
    wide = sources(ctx, rest[:-2], bits) + sources(ctx, rest[-2:], 32)
    name = f"BFE_{kind.upper()}" if ins.opcode.startswith("bfe") else f"BFI_{bits}"
    ctx.emit(name, [ctx.dst(d, bits), *wide])


@lowers("bmsk", "szext")
def mask(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    clamp = mods.need("clamp", "wrap") == "clamp"
    kind = mods.need("b32", "u32", "s32")
    mods.done()
    simple(ctx, ins, ins.opcode.split(".")[0].upper(), 32, mod=int(clamp) | (2 if kind == "s32" else 0))


@lowers("fns")
def fns(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.need("b32")
    mods.done()
    simple(ctx, ins, "FNS", 32)


@lowers("prmt")
def prmt(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.need("b32")
    mode = mods.one_of("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")
    mods.done()
    simple(ctx, ins, "PRMT", 32, mod=0 if mode is None else 1 + ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16").index(mode))


@lowers("lop3")
def lop3(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    combine = mods.one_of("or", "and")
    mods.need("b32")
    mods.done()
    target, p = ctx.pair(ins.operands[0])
    a, b, c, table, *rest = ins.operands[1:]
    if not isinstance(table, Imm):
        raise ctx.fail("the lookup table of lop3 must be a constant")
    args = sources(ctx, (a, b, c), 32)
    if combine is None:
        ctx.emit("LOP3", [ctx.dst(target, 32), *args], imm=int(table.value))
        return
    q, negated = ctx.pred_source(rest[0])
    mod = (1 if combine == "or" else 2) | 4 * negated
    ctx.emit("LOP3_PRED", [ctx.dst(target, 32), *args, ctx.pred(p), q], mod=mod, imm=int(table.value))


@lowers("dp4a", "dp2a")
def dot(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    half = mods.one_of("lo", "hi")
    kinds = mods.types()
    mods.done()
    a, b = (k == "s32" for k in kinds)
    if half:
        return simple(ctx, ins, "DP2A", 32, mod=int(half == "hi") | 2 * a | 4 * b)
    simple(ctx, ins, f"DP4A_{'S' if a else 'U'}{'S' if b else 'U'}", 32)


@lowers("slct")
def slct(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    ftz = mods.flag("ftz")
    kind, selector = mods.types()
    mods.done()
    bits, (d, a, b, c) = max(width(kind), 32), ins.operands
    chosen = ctx.src(c, 32, selector)
    args = [*sources(ctx, (a, b), width(kind)), chosen]
    ctx.emit(f"SLCT{bits}_{selector.upper()}{'_FTZ' if ftz else ''}", [ctx.dst(d, width(kind)), *args])
