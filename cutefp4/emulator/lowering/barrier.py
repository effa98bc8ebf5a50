"""bar / barrier, barrier.cluster, mbarrier, fences and membar."""

from __future__ import annotations

import re

from ..ptx_parser import Instruction
from .context import Context, lowers

SCOPES = ("acquire", "release", "relaxed", "acq_rel", "sc", "cta", "cluster", "gpu", "sys", "gl")
SYNC, ARRIVE, RED = 0, 1, 2


@lowers("bar", "barrier")
def named_barrier(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.flag("cta")
    kind = (SYNC, ARRIVE, RED)[("sync", "arrive", "red").index(mods.need("sync", "arrive", "red"))]
    aligned = mods.flag("aligned") or ins.opcode.startswith("bar.")
    reduction, operands = 0, list(ins.operands)
    if kind == RED:
        reduction = ("popc", "and", "or").index(mods.need("popc", "and", "or"))
        mods.need("u32", "pred")
    mods.done()
    d = operands.pop(0) if kind == RED else None
    p = operands.pop() if kind == RED else None
    number = ctx.src(operands[0], 32)
    count = ctx.src(operands[1], 32) if len(operands) > 1 else ctx.const32(0)
    mod = kind | 4 * aligned | 8 * (len(operands) > 1) | reduction << 4
    args = [number, count]
    if kind == RED:
        source, negated = ctx.pred_source(p)
        args = [ctx.dst(d, 32) if reduction == 0 else ctx.pred(d), *args, source]
        mod |= 64 * negated
    ctx.emit("BAR", args, mod=mod)


@lowers("barrier.cluster")
def cluster_barrier(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    wait = mods.need("arrive", "wait") == "wait"
    aligned, relaxed = mods.flag("aligned"), mods.flag("relaxed")
    mods.ignore("acquire", "release")
    mods.done()
    ctx.emit("BARRIER_CLUSTER", mod=int(wait) | 4 * aligned | 8 * relaxed)


def barrier_address(ctx: Context, mods, operand) -> tuple[int, int, int]:
    """(base, offset, mod bits): 1 for a 64-bit register, 2 for an address that may name another CTA."""
    space = mods.one_of("shared", "shared::cta", "shared::cluster")
    base, wide, offset = ctx.address(operand)
    return base, offset, int(wide) | (2 if space in (None, "shared::cluster") else 0)


@lowers("mbarrier.init", "mbarrier.inval")
def mbarrier_init(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    base, offset, mod = barrier_address(ctx, mods, ins.operands[0])
    mods.need("b64")
    mods.done()
    if "inval" in ins.opcode:
        ctx.emit("MBAR_INVAL", [base], mod=mod, imm=offset)
    else:
        ctx.emit("MBAR_INIT", [base, ctx.src(ins.operands[1], 32)], mod=mod, imm=offset)


def state_register(ctx: Context, operand) -> int:
    return -1 if getattr(operand, "name", "") == "_" else ctx.dst(operand, 64)


@lowers("mbarrier.arrive", "mbarrier.arrive_drop")
def mbarrier_arrive(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    operands = list(ins.operands)
    has_state = not hasattr(operands[0], "base")
    state = operands.pop(0) if has_state else None
    expect, no_complete = mods.flag("expect_tx"), mods.flag("noComplete")
    base, offset, mod = barrier_address(ctx, mods, operands[0])
    mods.ignore(*SCOPES)
    mods.need("b64")
    mods.done()
    value = ctx.src(operands[1], 32) if len(operands) > 1 else ctx.const32(1)
    count, tx = (ctx.const32(1), value) if expect else (value, ctx.const32(0))
    mod |= 32 | (4 if "arrive_drop" in ins.opcode else 0) | 8 * expect | 16 * no_complete
    ctx.emit("MBAR_ARRIVE", [state_register(ctx, state) if has_state else -1, base, count, tx], mod=mod, imm=offset)


@lowers("mbarrier.expect_tx", "mbarrier.complete_tx")
def mbarrier_tx(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    base, offset, mod = barrier_address(ctx, mods, ins.operands[0])
    mods.ignore(*SCOPES)
    mods.need("b64")
    mods.done()
    mod |= 8 if "expect" in ins.opcode else 64
    ctx.emit("MBAR_ARRIVE", [-1, base, ctx.const32(0), ctx.src(ins.operands[1], 32)], mod=mod, imm=offset)


@lowers("mbarrier.test_wait", "mbarrier.try_wait")
def mbarrier_wait(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    parity = mods.flag("parity")
    p, address, state, *hint = ins.operands
    base, offset, mod = barrier_address(ctx, mods, address)
    mods.ignore(*SCOPES)
    mods.need("b64")
    mods.done()
    if len(hint) > 1:
        raise ctx.fail("too many operands")
    value = ctx.src(state, 32 if parity else 64)
    ctx.emit("MBAR_WAIT", [ctx.pred(p), base, value], mod=mod | 4 * parity, imm=offset)


@lowers("mbarrier.pending_count")
def mbarrier_pending(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.need("b64")
    mods.done()
    state = ctx.src(ins.operands[1], 64)
    ctx.emit("MBAR_PENDING", [ctx.dst(ins.operands[0], 32), state])


@lowers("fence", "membar")
def fence(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mod = 2 if mods.flag("mbarrier_init") else 0
    if mods.flag("proxy"):
        proxy = mods.match(
            r"(alias|async(::(global|shared::cta|shared::cluster|shared))?|tensormap::generic|async::generic"
            r"|generic::async)"
        )
        if proxy is None:
            raise ctx.fail("unknown proxy")
        mods.ignore(
            "global", "shared::cta", "shared::cluster", "sync_restrict::shared::cta", "sync_restrict::shared::cluster"
        )
        # async::generic orders the other way round: what the async proxy wrote, for generic reads.
        if re.fullmatch(r"async(::shared(::cta|::cluster)?)?|generic::async", proxy.group(1)):
            mod |= 1
    else:
        mods.ignore("sync_restrict::shared::cta", "sync_restrict::shared::cluster")
    mods.ignore(*SCOPES)
    mods.done()
    ctx.emit("FENCE", mod=mod)
