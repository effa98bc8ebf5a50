"""Lowering of clusterlaunchcontrol: asking for, and decoding, the work of a cluster that was not launched."""

from __future__ import annotations

from ..ptx_parser import Instruction
from .context import Context, lowers


@lowers("clusterlaunchcontrol.try_cancel")
def try_cancel(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.flag("async")
    mods.flag("shared::cta")
    if not mods.flag("mbarrier::complete_tx::bytes"):
        raise ctx.fail("try_cancel completes through .mbarrier::complete_tx::bytes")
    multicast = mods.flag("multicast::cluster::all")
    mods.flag("b128")
    mods.done()
    args = []
    for operand in ins.operands[:2]:
        base, wide, offset = ctx.address(operand)
        if wide:
            raise ctx.fail("try_cancel takes 32-bit shared addresses")
        args += [base, ctx.const32(offset)]
    ctx.emit("CLC_TRY_CANCEL", args, mod=int(multicast))


def _halves(ctx: Context, response) -> list[int]:
    """The two 64-bit halves of a 128-bit register."""
    slot = ctx.src(response, 128)
    return [slot, slot + 2]


@lowers("clusterlaunchcontrol.query_cancel")
def query_cancel(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    response = ins.operands[-1]
    if mods.flag("is_canceled"):
        mods.flag("pred")
        mods.flag("b128")
        mods.done()
        ctx.emit("CLC_IS_CANCELED", [ctx.pred(ins.operands[0])] + _halves(ctx, response))
        return
    which = mods.one_of("get_first_ctaid", "get_first_ctaid::x", "get_first_ctaid::y", "get_first_ctaid::z")
    if which is None:
        raise ctx.fail("query_cancel is .is_canceled or .get_first_ctaid")
    mods.flag("v4")
    mods.flag("b32")
    mods.flag("b128")
    mods.done()
    dimension = 3 if which == "get_first_ctaid" else "xyz".index(which[-1])
    outputs = ctx.vector(ins.operands[0]) if dimension == 3 else [ins.operands[0]]
    ctx.emit("CLC_FIRST_CTAID", [ctx.dst(item, 32) for item in outputs] + _halves(ctx, response), mod=dimension)
