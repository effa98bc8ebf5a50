"""Lowering of wgmma: the asynchronous warpgroup product of Hopper, its fence, commit and wait."""

from __future__ import annotations

from ..ptx_parser import Instruction, Vector
from .context import Context, lowers

# enum ElemType and AccType of native/formats.h
ELEMENTS = {"f16": 0, "bf16": 1, "tf32": 2, "e4m3": 3, "e5m2": 4, "e2m3": 5, "e3m2": 6, "e2m1": 7, "u8": 8, "s8": 9}
ACCUMULATORS = {"f16": 0, "f32": 1, "s32": 2}
K_OF = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "u8": 32, "s8": 32}


def _types(ctx: Context, mods) -> tuple[str, str, str]:
    acc, a, b = mods.one_of(*ACCUMULATORS), mods.one_of(*K_OF), mods.one_of(*K_OF)
    if None in (acc, a, b):
        raise ctx.fail("wgmma takes f16, bf16, tf32, e4m3, e5m2, u8 and s8 operands")
    pairs = {("e4m3", "e5m2"), ("e5m2", "e4m3"), ("u8", "s8"), ("s8", "u8")}
    if a != b and (a, b) not in pairs:
        raise ctx.fail(f"wgmma does not multiply {a} by {b}")
    allowed = ("s32",) if a in ("u8", "s8") else ("f32",) if a in ("bf16", "tf32") else ("f16", "f32")
    if acc not in allowed:
        raise ctx.fail(f"wgmma of {a} accumulates in {' or '.join(allowed)}, not {acc}")
    return acc, a, b


@lowers("wgmma.mma_async")
def mma_async(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    if mods.flag("sp"):
        raise ctx.fail("sparse wgmma is not supported")
    mods.flag("sync")
    mods.flag("aligned")
    shape = mods.match(r"m64n(\d+)k(\d+)")
    acc, a, b = _types(ctx, mods)
    n, k = int(shape.group(1)), int(shape.group(2))
    if k != K_OF[a] or n % 8 or not 8 <= n <= 256:
        raise ctx.fail(f"wgmma m64n{n}k{k} does not exist for {a}")
    saturate = mods.flag("satfinite")
    mods.done()
    d, a_operand, b_operand, scale_d, *immediates = ins.operands
    registers = ctx.vector(d)
    expected = n // 4 if acc == "f16" else n // 2
    if len(registers) != expected:
        raise ctx.fail(f"{len(registers)} accumulator registers, expected {expected}")
    in_registers = isinstance(a_operand, Vector)
    mod = int(in_registers) | n // 8 << 1 | int(saturate) << 22
    mod |= ELEMENTS[a] << 8 | ELEMENTS[b] << 12 | ACCUMULATORS[acc] << 16
    mod |= _immediates(ctx, immediates, in_registers)
    args = [ctx.dst(register, 32) for register in registers]
    if in_registers:
        a_args = [ctx.src(register, 32) for register in ctx.vector(a_operand)]
        if len(a_args) != 4:
            raise ctx.fail(f"{len(a_args)} A registers, expected 4")
    else:
        a_args = [ctx.src(a_operand, 64)]
    emitted = ctx.emit("WGMMA", args + a_args + [ctx.src(b_operand, 64), ctx.pred(scale_d)], mod=mod)
    emitted.uses = []  # the engine has its own rules for the registers of one wgmma after another


def _immediates(ctx: Context, operands: list, in_registers: bool) -> int:
    """imm-scale-a, imm-scale-b (1 or -1; absent for integers), then imm-trans-a (descriptor only), imm-trans-b."""
    values = [operand.value for operand in operands]
    scales, transposes = values[:2], values[2:]
    if any(s not in (1, -1) for s in scales) or any(t not in (0, 1) for t in transposes):
        raise ctx.fail("wgmma scales are 1 or -1, transposes 0 or 1")
    if transposes and len(transposes) != (1 if in_registers else 2):
        raise ctx.fail(f"{len(transposes)} transpose immediates")
    trans_a, trans_b = ([0] * 2 + transposes)[-2:] if not in_registers else (0, (transposes or [0])[0])
    negate_a, negate_b = ([int(s == -1) for s in scales] + [0, 0])[:2]
    return negate_a << 18 | negate_b << 19 | trans_a << 20 | trans_b << 21


@lowers("wgmma.fence")
def fence(ctx: Context, ins: Instruction) -> None:
    _warp_wide(ins)
    ctx.emit("WGMMA_FENCE", [])


@lowers("wgmma.commit_group")
def commit_group(ctx: Context, ins: Instruction) -> None:
    _warp_wide(ins)
    ctx.emit("WGMMA_COMMIT", [])


@lowers("wgmma.wait_group")
def wait_group(ctx: Context, ins: Instruction) -> None:
    _warp_wide(ins)
    ctx.emit("WGMMA_WAIT", [], imm=ins.operands[0].value)


def _warp_wide(ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.flag("sync")
    mods.flag("aligned")
    mods.done()
