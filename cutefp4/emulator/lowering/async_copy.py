"""cp.async, bulk copies without a tensor map, st.async and red.async."""

from __future__ import annotations

from ..modifiers import TYPE_BYTES
from ..ptx_parser import Imm, Instruction, Not, Reg
from .atomics import OPERATIONS, SAME, TYPES
from .context import Context, lowers

TO_SHARED, TO_GLOBAL, TO_CLUSTER = 0, 1, 2
WIDE_DST, WIDE_SRC, WIDE_BAR, HAS_MASK, CLUSTER_DST = 4, 8, 16, 32, 64


@lowers("cp.async")
def cp_async(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.need("ca", "cg")
    mods.need("shared", "shared::cta")
    mods.need("global")
    hinted = mods.flag("L2::cache_hint")
    mods.ignore("L2::64B", "L2::128B", "L2::256B")
    mods.done()
    dst, src, size, *rest = ins.operands
    if hinted:
        rest = rest[:-1]
    if not isinstance(size, Imm) or size.value not in (4, 8, 16):
        raise ctx.fail("cp.async copies 4, 8 or 16 bytes")
    base, wide, offset = ctx.address(dst)
    source = absolute(ctx, src)
    count = ctx.const32(size.value)
    if rest and (isinstance(rest[0], Not) or (isinstance(rest[0], Reg) and ctx.bits(rest[0]) == 1)):
        ignore, negated = ctx.pred_source(rest[0])
        count = ctx.scratch(32)
        ctx.emit("SEL32", [count, ctx.const32(0), ctx.const32(size.value), ignore], mod=int(negated))
    elif rest:
        count = ctx.src(rest[0], 32)
    ctx.emit("CP_ASYNC", [base, source, count], mod=int(wide), imm=offset, aux=size.value)


def absolute(ctx: Context, operand) -> int:
    """A 64-bit address with its offset added."""
    base, wide, offset = ctx.address(operand)
    if not wide:
        raise ctx.fail("a global address must be 64 bits wide")
    if offset == 0:
        return base
    out = ctx.scratch(64)
    ctx.emit("ADD_64", [out, base, ctx.const64(offset)])
    return out


def shared_address(ctx: Context, operand) -> tuple[int, bool]:
    base, wide, offset = ctx.address(operand)
    if offset == 0:
        return base, wide
    bits = 64 if wide else 32
    out = ctx.scratch(bits)
    ctx.emit(f"ADD_{bits}", [out, base, ctx.constant(offset, bits)])
    return out, wide


@lowers("cp.async.commit_group")
def commit(ctx: Context, ins: Instruction) -> None:
    ins.modifiers().done()
    ctx.emit("CP_ASYNC_COMMIT")


@lowers("cp.async.wait_group", "cp.async.wait_all")
def wait(ctx: Context, ins: Instruction) -> None:
    ins.modifiers().done()
    every = ins.opcode.endswith("all")
    ctx.emit("CP_ASYNC_WAIT", imm=0 if every else int(ins.operands[0].value), aux=int(every))


@lowers("cp.async.mbarrier.arrive")
def arrive(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    noinc = mods.flag("noinc")
    mods.ignore("shared", "shared::cta")
    mods.need("b64")
    mods.done()
    base, wide, offset = ctx.address(ins.operands[0])
    ctx.emit("CP_ASYNC_ARRIVE", [base], mod=int(wide) | 2 * noinc, imm=offset)


@lowers("cp.async.bulk", "cp.reduce.async.bulk")
def bulk(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    spaces = [p for p in mods.parts if p in ("global", "shared::cta", "shared::cluster")]
    mods.ignore("global", "shared::cta", "shared::cluster", "noftz")
    hinted, masked = mods.flag("L2::cache_hint"), mods.flag("cp_mask")
    multicast = mods.flag("multicast::cluster")
    completion = mods.need("mbarrier::complete_tx::bytes", "bulk_group")
    reduction = reduce_operation(ctx, mods) if ins.opcode.startswith("cp.reduce") else 0
    mods.done()
    to, source = spaces
    operands = list(ins.operands)
    if hinted:
        operands.pop(3 if completion == "bulk_group" else 4) if not multicast else operands.pop()
    to_global = to == "global"
    if (completion == "bulk_group") != to_global:
        raise ctx.fail(f"a copy to .{to} does not complete through .{completion}")
    dst, dst_wide = (absolute(ctx, operands[0]), True) if to_global else shared_address(ctx, operands[0])
    src, src_wide = (absolute(ctx, operands[1]), True) if source == "global" else shared_address(ctx, operands[1])
    size = ctx.src(operands[2], 32)
    barrier, bar_wide, rest = ctx.const32(0), False, operands[3:]
    if not to_global:
        barrier, bar_wide = shared_address(ctx, rest[0])
        rest = rest[1:]
    args = [dst, src, size, barrier]
    mod = TO_GLOBAL if to_global else TO_SHARED if source == "global" else TO_CLUSTER
    mod |= WIDE_DST * dst_wide | WIDE_SRC * src_wide | WIDE_BAR * bar_wide | CLUSTER_DST * (to == "shared::cluster")
    if multicast or masked:
        args.append(ctx.src(rest[0], 16))
        mod |= HAS_MASK
    ctx.emit("BULK", args, mod=mod, aux=reduction)


def reduce_operation(ctx: Context, mods) -> int:
    name = mods.need(*OPERATIONS[:8])
    kind = mods.type()
    return OPERATIONS.index(name) << 8 | (TYPES.index(SAME.get(kind, kind)) + 1)


@lowers("cp.async.bulk.commit_group")
def bulk_commit(ctx: Context, ins: Instruction) -> None:
    ins.modifiers().done()
    ctx.emit("BULK_COMMIT")


@lowers("cp.async.bulk.wait_group")
def bulk_wait(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    read = mods.flag("read")
    mods.done()
    ctx.emit("BULK_WAIT", imm=int(ins.operands[0].value), aux=int(read))


@lowers("st.async", "red.async")
def remote(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.ignore("weak", "relaxed", "cluster")
    mods.need("shared::cluster")
    mods.need("mbarrier::complete_tx::bytes")
    name = mods.one_of(*OPERATIONS[:8]) if ins.opcode.startswith("red") else None
    count = int((mods.one_of("v2", "v4") or "v1")[1:])
    kind = mods.type()
    mods.done()
    size = TYPE_BYTES[kind]
    base, wide, offset = ctx.address(ins.operands[0])
    values = [ctx.src(v, 8 * size) for v in ctx.vector(ins.operands[1])]
    barrier, bar_wide = shared_address(ctx, ins.operands[2])
    if wide != bar_wide:
        raise ctx.fail("both addresses must have one width")
    reduction = (OPERATIONS.index(name) << 8 | (TYPES.index(SAME.get(kind, kind)) + 1)) if name else 0
    ctx.emit("REMOTE_STORE", [base, barrier, *values], mod=size | count << 8 | wide << 15, imm=offset, aux=reduction)
