"""Branches, exchange between lanes, and instructions about the warp itself."""

from __future__ import annotations

from ..modifiers import ABS, NAN
from ..ptx_parser import Arguments, Imm, Instruction, Reg
from .context import Context, lowers

SHUFFLES = ("up", "down", "bfly", "idx")
FULL_MASK = Imm(0xFFFFFFFF)


@lowers("bra")
def bra(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.flag("uni")
    mods.done()
    ctx.emit("BRA", label=ins.operands[0].name)


@lowers("brx.idx")
def brx(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.flag("uni")
    mods.done()
    index, table = ins.operands
    scope = ins.scope
    while scope is not None and table.name not in scope.target_lists:
        scope = scope.parent
    if scope is None:
        raise ctx.fail(f"branch table {table.name} is not declared")
    emitted = ctx.emit("BRX", [ctx.src(index, 32)])
    emitted.labels = [(ins.scope, name) for name in scope.target_lists[table.name]]


@lowers("exit", "ret")
def leave(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.flag("uni")
    mods.done()
    if ins.opcode.startswith("ret") and ctx.inlined:
        ctx.emit("BRA").label = ctx.inlined[-1].end_label
    else:
        ctx.emit("EXIT")


@lowers("trap", "brkpt")
def trap(ctx: Context, ins: Instruction) -> None:
    ctx.emit("TRAP")


@lowers("call")
def call(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.flag("uni")
    mods.done()
    operands = list(ins.operands)
    returns = operands.pop(0).items if isinstance(operands[0], Arguments) else ()
    name = operands.pop(0)
    arguments = operands.pop(0).items if operands and isinstance(operands[0], Arguments) else ()
    if not isinstance(name, Reg) or name.name not in ctx.module.functions:
        raise ctx.fail("indirect calls are not implemented")
    if name.name == "vprintf":
        form, data = (ctx.call_slot(a.name, 0, 8) for a in arguments)
        result = ctx.call_slot(returns[0].name, 0, 4) if returns else ctx.scratch(32)
        ctx.emit("VPRINTF", [result, form, data])
    elif name.name == "__assertfail":
        ctx.emit("ASSERTFAIL", [ctx.call_slot(arguments[0].name, 0, 8)])
    else:
        ctx.inline(ctx.module.functions[name.name], returns, arguments)


@lowers("shfl.sync")
def shfl(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mode = SHUFFLES.index(mods.need(*SHUFFLES))
    mods.need("b32")
    mods.done()
    d, p = ctx.pair(ins.operands[0])
    sources = [ctx.src(op, 32) for op in ins.operands[1:5]]
    args = [ctx.dst(d, 32), -1 if p is None or getattr(p, "name", "") == "_" else ctx.pred(p), *sources]
    ctx.emit("SHFL", args, aux=mode)


@lowers("vote.sync")
def vote(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mode = mods.need("all", "any", "uni", "ballot")
    mods.need("pred", "b32")
    mods.done()
    d, p, members = ins.operands
    number, negated = ctx.pred_source(p)
    team = ctx.src(members, 32)
    target = ctx.dst(d, 32) if mode == "ballot" else ctx.pred(d)
    ctx.emit("VOTE", [target, number, team], aux=("all", "any", "uni", "ballot").index(mode), mod=int(negated))


@lowers("match")
def match(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    every = mods.need("any", "all") == "all"
    mods.need("sync")
    bits = int(mods.need("b32", "b64")[1:])
    mods.done()
    d, p = ctx.pair(ins.operands[0])
    sources = [ctx.src(ins.operands[1], bits), ctx.src(ins.operands[2], 32)]
    ctx.emit("MATCH", [ctx.dst(d, 32), -1 if p is None else ctx.pred(p), *sources], aux=int(every), mod=int(bits == 64))


@lowers("redux.sync")
def redux(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    names = ("add", "min", "max", "and", "or", "xor")
    which = names.index(mods.need(*names))
    bits = (ABS if mods.flag("abs") else 0) | (NAN if mods.flag("NaN") else 0)
    kind = mods.need("u32", "s32", "b32", "f32")
    mods.done()
    sources = [ctx.src(ins.operands[1], 32), ctx.src(ins.operands[2], 32)]
    mod = bits | {"s32": 1, "f32": 2}.get(kind, 0)
    ctx.emit("REDUX", [ctx.dst(ins.operands[0], 32), *sources], aux=which, mod=mod)


@lowers("elect.sync")
def elect(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.done()
    d, p = ctx.pair(ins.operands[0])
    team = ctx.src(ins.operands[1], 32)
    ctx.emit("ELECT", [-1 if getattr(d, "name", "") == "_" else ctx.dst(d, 32), ctx.pred(p), team])


@lowers("activemask")
def activemask(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.need("b32")
    mods.done()
    ctx.emit("ACTIVEMASK", [ctx.dst(ins.operands[0], 32)])


@lowers("bar.warp.sync")
def bar_warp(ctx: Context, ins: Instruction) -> None:
    ins.modifiers().done()
    ctx.emit("BAR_WARP", [ctx.src(ins.operands[0] if ins.operands else FULL_MASK, 32)])


@lowers("nanosleep")
def nanosleep(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.need("u32")
    mods.done()
    ctx.emit("NANOSLEEP")


@lowers("setmaxnreg")
def setmaxnreg(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    more = mods.need("inc", "dec") == "inc"
    for name in ("sync", "aligned", "u32"):
        mods.need(name)
    mods.done()
    ctx.emit("SETMAXNREG", imm=int(ins.operands[0].value), aux=int(more))


@lowers("griddepcontrol")
def grid_dependency(ctx: Context, ins: Instruction) -> None:
    """Kernels run one after the other: the grid before has completed."""
    mods = ins.modifiers()
    mods.need("launch_dependents", "wait")
    mods.done()
    ctx.emit("NOP")


@lowers("pmevent")
def performance_event(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.flag("mask")
    mods.done()
    ctx.emit("NOP")
