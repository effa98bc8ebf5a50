"""Lowering of tensor copies: cp.async.bulk.tensor loads, stores, reductions and prefetches, and tensormap.*."""

from __future__ import annotations

from ..ptx_parser import Instruction
from .context import Context, lowers

# Instr.mod bits of native/tma.c
CLUSTER, MULTICAST, PAIR, ROWS4, WIDE_MAP = 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7
REDUCTIONS = ("none", "add", "min", "max", "inc", "dec", "and", "or", "xor")
RANKS = ("1d", "2d", "3d", "4d", "5d")
CACHE_HINT = "L2::cache_hint"
# enum MapField of native/tensormap.h, by the name in PTX
FIELDS = (
    "global_address", "rank", "box_dim", "global_dim", "global_stride", "element_stride", "elemtype",
    "interleave_layout", "swizzle_mode", "fill_mode", "swizzle_atomicity",
)  # fmt: skip


def _address(ctx: Context, operand, wide_expected: bool) -> list[int]:
    """Base register and offset constant of an address; engines take shared addresses as 32 bits, maps as 64."""
    base, wide, offset = ctx.address(operand)
    if wide != wide_expected:
        raise ctx.fail(f"the address {operand} must be a {64 if wide_expected else 32}-bit register here")
    return [base, ctx.const32(offset)]


def _coordinates(ctx: Context, operand, rank: int, rows4: bool) -> list[int]:
    if operand.extra is None:
        raise ctx.fail("the tensor map has no coordinates")
    items = ctx.vector(operand.extra)
    expected = 5 if rows4 else rank
    if len(items) != expected:
        raise ctx.fail(f"{len(items)} coordinates, expected {expected}")
    return [ctx.src(item, 32) for item in items]


def _mode(ctx: Context, mods, rows4_name: str) -> int:
    if mods.match(r"im2col.*"):
        raise ctx.fail("im2col tensor copies are not supported; use tiled tensor maps")
    if mods.flag(rows4_name):
        return ROWS4
    mods.flag("tile")
    return 0


def _load(ctx: Context, ins: Instruction, mods, rank: int, space: str) -> None:
    mod = rank | WIDE_MAP | (CLUSTER if space == "shared::cluster" else 0)
    if not mods.flag("global"):
        raise ctx.fail("a tensor load reads .global")
    mod |= _mode(ctx, mods, "tile::gather4")
    if not mods.flag("mbarrier::complete_tx::bytes"):
        raise ctx.fail("a tensor load completes through .mbarrier::complete_tx::bytes")
    operands = list(ins.operands)
    destination, source, barrier = operands[:3]
    rest = operands[3:]
    mask = ctx.const32(0)
    if mods.flag("multicast::cluster"):
        mod |= MULTICAST
        mask = ctx.src(rest.pop(0), 16)
    group = mods.one_of("cta_group::1", "cta_group::2")
    mod |= PAIR if group == "cta_group::2" else 0
    _drop_hint(ctx, mods, rest)
    args = _address(ctx, destination, False) + _address(ctx, barrier, False) + _address(ctx, source, True) + [mask]
    ctx.emit("TMA_LOAD", args + _coordinates(ctx, source, rank, bool(mod & ROWS4)), mod=mod)


def _drop_hint(ctx: Context, mods, rest: list) -> None:
    """Cache policies change nothing that the emulator models."""
    if mods.flag(CACHE_HINT):
        rest.pop()
    mods.done()
    if rest:
        raise ctx.fail(f"{len(rest)} operands too many")


def _store(ctx: Context, ins: Instruction, mods, rank: int, reduction: str) -> None:
    if not mods.flag("shared::cta"):
        raise ctx.fail("a tensor store reads .shared::cta")
    if reduction == "none" and mods.one_of(*REDUCTIONS[1:]):
        raise ctx.fail("reductions are cp.reduce.async.bulk.tensor")
    mod = rank | WIDE_MAP | _mode(ctx, mods, "tile::scatter4") | REDUCTIONS.index(reduction) << 12
    if not mods.flag("bulk_group"):
        raise ctx.fail("a tensor store completes through .bulk_group")
    destination, source, *rest = ins.operands
    _drop_hint(ctx, mods, rest)
    none = ctx.const32(0)
    args = _address(ctx, source, False) + [none, none] + _address(ctx, destination, True) + [none]
    ctx.emit("TMA_STORE", args + _coordinates(ctx, destination, rank, bool(mod & ROWS4)), mod=mod)


@lowers("cp.async.bulk.tensor")
def tensor_copy(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    rank = RANKS.index(mods.one_of(*RANKS)) + 1
    space = mods.one_of("shared::cta", "shared::cluster") if ins.operands[0].extra is None else None
    if space:
        _load(ctx, ins, mods, rank, space)
        return
    if not mods.flag("global"):
        raise ctx.fail("a tensor copy goes to .shared::cta, .shared::cluster or .global")
    _store(ctx, ins, mods, rank, "none")


@lowers("cp.reduce.async.bulk.tensor")
def tensor_reduce(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    rank = RANKS.index(mods.one_of(*RANKS)) + 1
    if not mods.flag("global"):
        raise ctx.fail("a tensor reduction goes to .global")
    reduction = mods.one_of(*REDUCTIONS[1:])
    if reduction is None:
        raise ctx.fail("a tensor reduction needs an operation")
    _store(ctx, ins, mods, rank, reduction)


@lowers("cp.async.bulk.prefetch.tensor")
def tensor_prefetch(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    rank = RANKS.index(mods.one_of(*RANKS)) + 1
    mods.flag("L2")
    mods.flag("global")
    mod = rank | WIDE_MAP | _mode(ctx, mods, "tile::gather4")
    source, *rest = ins.operands
    _drop_hint(ctx, mods, rest)
    none = ctx.const32(0)
    args = [none] * 4 + _address(ctx, source, True) + [none]
    ctx.emit("TMA_PREFETCH", args + _coordinates(ctx, source, rank, bool(mod & ROWS4)), mod=mod)


@lowers("tensormap.replace")
def tensormap_replace(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    mods.flag("tile")
    field = mods.one_of(*FIELDS)
    if field is None:
        raise ctx.fail(f"unknown tensor-map field; known: {', '.join(FIELDS)}")
    shared = mods.one_of("global", "shared::cta", "shared") != "global"
    mods.flag("b1024")
    wide_value = mods.one_of("b32", "b64") == "b64"
    mods.done()
    address, *ordinal, value = ins.operands
    number = ordinal[0].value if ordinal else 0
    base, wide, offset = ctx.address(address)
    mod = FIELDS.index(field) | number << 4 | int(wide) << 7 | int(shared) << 8 | int(wide_value) << 9
    ctx.emit("TENSORMAP_REPLACE", [base, ctx.const32(offset), ctx.src(value, 64 if wide_value else 32)], mod=mod)


@lowers("tensormap.cp_fenceproxy")
def tensormap_cp_fenceproxy(ctx: Context, ins: Instruction) -> None:
    mods = ins.modifiers()
    for flag in ("global", "shared::cta", "tensormap::generic", "release"):
        if not mods.flag(flag):
            raise ctx.fail(f"tensormap.cp_fenceproxy without .{flag}")
    mods.one_of("cta", "cluster", "gpu", "sys")
    mods.flag("sync")
    mods.flag("aligned")
    mods.done()
    if ins.operands[2].value != 128:
        raise ctx.fail("tensormap.cp_fenceproxy copies 128 bytes")
    to, to_wide, to_offset = ctx.address(ins.operands[0])
    source, wide, offset = ctx.address(ins.operands[1])
    args = [to, ctx.const32(to_offset), source, ctx.const32(offset)]
    ctx.emit("TENSORMAP_CP_FENCEPROXY", args, mod=int(to_wide) << 7 | int(wide) << 8)
