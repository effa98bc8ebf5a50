"""wgmma and mma.sync on small integers (every sum exact) and on subnormals; the layouts are what is under test.

wgmma: shared memory holds 48 KiB of values and each test names two descriptors into it. Nothing places a matrix there
on purpose, so that the result shows which bytes the hardware reads for each swizzle, major and stride, in what order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .inputs import hash32, small_floats
from .kernel import Buffer, Microkernel
from .lanewise import HEADER

SMEM = 47 * 1024


@dataclass(frozen=True)
class Shape:
    """One form of the instruction: types and K, N, majors (1 = MN-major), where A comes from."""

    kind: str
    k: int
    n: int
    d: str = "f32"
    trans_a: int = 0
    trans_b: int = 0
    a_in_registers: bool = False
    negate: tuple[int, int] = (1, 1)

    @property
    def types(self) -> str:
        a, _, b = self.kind.partition("*")
        return f"{self.d}.{a}.{b or a}"

    @property
    def d_registers(self) -> int:
        return self.n // 4 if self.d == "f16" else self.n // 2

    @property
    def name(self) -> str:
        source = "rs" if self.a_in_registers else "ss"
        sign = "_negated" if self.negate != (1, 1) else ""
        kind = self.kind.replace("*", "_")
        return f"wgmma_{source}_{kind}_{self.d}_n{self.n}_major{self.trans_a}{self.trans_b}{sign}"


def descriptor(offset: int, leading: int, stride: int, swizzle: int) -> int:
    """A matrix descriptor without its base: byte offsets into shared memory; swizzle 0 none, 1 128B, 2 64B, 3 32B."""
    return (offset >> 4) | (leading >> 4) << 16 | (stride >> 4) << 32 | swizzle << 62


def _descriptor_pairs(shape: Shape) -> list[tuple[int, int]]:
    """Swizzles in all pairs, with strides in use by real kernels and odd ones, and starts inside a swizzle atom."""
    pairs = []
    widths = {0: 16, 1: 128, 2: 64, 3: 32}
    for index, (swa, swb) in enumerate((a, b) for a in widths for b in widths):
        out = []
        for operand, (sw, trans) in enumerate(((swa, shape.trans_a), (swb, shape.trans_b))):
            step = index + 5 * operand
            if trans:  # MN-major: one offset walks along M or N, the other along K
                leading = (1024, 2048, 512, 1536)[step % 4]
                stride = (1024, 512, 2048, 768)[(step // 2) % 4]
                start = 0 if sw else 128 * (step % 3)
            elif sw:  # K-major swizzled: rows in groups of eight; K advances inside the atom
                leading = (16, 0, 256)[step % 3]
                stride = 8 * widths[sw] * (1, 1, 2)[step % 3]
                start = 32 * (step % (widths[sw] // 32))
            else:  # K-major without swizzle: 8x16-byte cores
                leading = (128, 1024, 256)[step % 3]
                stride = (256, 128, 640)[step % 3]
                start = 128 * (step % 5)
            base = 0 if operand == 0 else 17 * 1024
            out.append(descriptor(base + start, leading, stride, sw))
        pairs.append((out[0], out[1]))
    return pairs


def _values(kind: str, count_bytes: int, seed: int) -> np.ndarray:
    a = kind.partition("*")[0]
    if a in ("f16", "bf16"):
        return small_floats(count_bytes // 2, a, seed).view(np.uint8)
    if a == "tf32":
        return small_floats(count_bytes // 4, "f32", seed).view(np.uint8)
    if a in ("s8", "u8"):
        return (hash32(count_bytes, seed) & np.uint32(0xFF)).astype(np.uint8)
    codes = {
        "e4m3": (0x00, 0x38, 0x40, 0x44, 0xB8, 0xC0, 0x30, 0x80),
        "e5m2": (0x00, 0x3C, 0x40, 0x42, 0xBC, 0xC0, 0x38, 0x80),
    }
    table = np.array(codes[a], dtype=np.uint8)
    return table[hash32(count_bytes, seed) % np.uint32(8)]


def _subnormal_values(kind: str, count: int, seed: int) -> np.ndarray:
    """First 16 KiB (operand A): subnormals of the type; the rest (operand B): powers of two that lift or keep them."""
    low = (hash32(count, seed) & np.uint32(0x8007)).astype(np.uint16)
    lift = {"f16": (0x3C00, 0x7800, 0x0400, 0xBC00), "bf16": (0x3F80, 0x7F00, 0x5380, 0xBF80)}[kind]
    high = np.array(lift, dtype=np.uint16)[hash32(count, seed + 1) % np.uint32(4)]
    return np.where(np.arange(count) < 8192, low, high).astype(np.uint16).view(np.uint8)


def wgmma(shape: Shape, values: np.ndarray | None = None, name: str = "", pairs=None) -> Microkernel:
    """Two chained instructions per descriptor pair: D = A B, then D += A' B' with both descriptors 64 bytes on."""
    pairs = pairs or _descriptor_pairs(shape)
    nd = shape.d_registers
    regs = ", ".join(f"%d{i}" for i in range(nd))
    sa, sb = shape.negate
    integer = shape.kind in ("s8", "u8")
    half = shape.kind in ("f16", "bf16")
    a_operand = "{%a0, %a1, %a2, %a3}" if shape.a_in_registers else "%da"
    scales = "" if integer else f", {sa}, {sb}"
    majors = "" if not half else f", {shape.trans_b}" if shape.a_in_registers else f", {shape.trans_a}, {shape.trans_b}"
    types = shape.types if not integer else f"s32.{shape.kind}.{shape.kind}"
    mma = f"wgmma.mma_async.sync.aligned.m64n{shape.n}k{shape.k}.{types} {{{regs}}}, "
    mma += f"{a_operand}, %db, %p{scales}{majors};"
    stores = "\n".join(f"  st.global.b32 [%po+{4 * i}], %d{i};" for i in range(nd))
    size = 128 * nd * 4
    ptx = f"""{HEADER}
.visible .entry k(.param .u64 IN, .param .u64 DESC, .param .u64 OUT)
{{
  .shared .align 1024 .b8 sm[{SMEM}];
  .reg .b64 %pi, %pd, %po, %off, %da, %db, %base;
  .reg .b32 %i, %s, %n, %j, %v<4>, %a<4>, %d<{nd}>;
  .reg .pred %p, %q;
  ld.param.u64 %pi, [IN]; ld.param.u64 %pd, [DESC]; ld.param.u64 %po, [OUT];
  mov.u32 %i, %tid.x; mov.u32 %s, sm;
  shl.b32 %j, %i, 4;
FILL: cvt.u64.u32 %off, %j; add.s64 %off, %off, %pi; ld.global.v4.b32 {{%v0, %v1, %v2, %v3}}, [%off];
  add.u32 %n, %s, %j; st.shared.v4.b32 [%n], {{%v0, %v1, %v2, %v3}};
  add.u32 %j, %j, 2048; setp.lt.u32 %q, %j, {SMEM}; @%q bra FILL;
  fence.proxy.async.shared::cta;
  bar.sync 0;
  shr.u32 %n, %s, 4; cvt.u64.u32 %base, %n;
  mul.wide.u32 %off, %i, {4 * nd}; add.s64 %po, %po, %off;
  mov.b32 %n, 0;
NEXT:
  ld.global.v2.b64 {{%da, %db}}, [%pd]; add.s64 %da, %da, %base; add.s64 %db, %db, %base;
  mad.lo.u32 %j, %i, 16, %s; mad.lo.u32 %j, %n, 32, %j; ld.shared.v4.b32 {{%a0, %a1, %a2, %a3}}, [%j];
  setp.ne.u32 %p, 0, 0;
  wgmma.fence.sync.aligned;
  {mma}
  wgmma.commit_group.sync.aligned;
  wgmma.wait_group.sync.aligned 0;
  add.s64 %da, %da, 4; add.s64 %db, %db, 4; setp.eq.u32 %p, 0, 0;
  wgmma.fence.sync.aligned;
  {mma}
  wgmma.commit_group.sync.aligned;
  wgmma.wait_group.sync.aligned 0;
{stores}
  add.s64 %pd, %pd, 16; add.s64 %po, %po, {size};
  add.u32 %n, %n, 1; setp.lt.u32 %q, %n, {len(pairs)}; @%q bra NEXT;
  ret;
}}
"""
    data = _values(shape.kind, SMEM, 140) if values is None else values
    out = Buffer("out", np.full(size * len(pairs), 0xCD, dtype=np.uint8), result=True)
    rows = tuple(f"descriptors {a:#018x} {b:#018x}" for a, b in pairs)
    args = (Buffer("in", data), Buffer("desc", np.array(pairs, dtype=np.uint64)), out)
    return Microkernel(name or shape.name, ptx, args, rows=rows)


def _shapes() -> list[Shape]:
    out = [Shape(kind, 16, 16, trans_a=ta, trans_b=tb) for kind in ("f16", "bf16") for ta in (0, 1) for tb in (0, 1)]
    out += [Shape(kind, 16, 24, trans_b=tb, a_in_registers=True) for kind in ("f16", "bf16") for tb in (0, 1)]
    out += [Shape("f16", 16, 16, d="f16"), Shape("f16", 16, 16, d="f16", a_in_registers=True),
            Shape("f16", 16, 8, negate=(-1, 1)), Shape("bf16", 16, 8, negate=(-1, -1)),
            Shape("f16", 16, 8, negate=(1, -1), a_in_registers=True),
            Shape("e4m3", 32, 16), Shape("e5m2", 32, 16), Shape("e4m3*e5m2", 32, 16), Shape("tf32", 8, 16),
            Shape("s8", 32, 16), Shape("u8", 32, 16), Shape("e4m3", 32, 16, a_in_registers=True)]  # fmt: skip
    return out


WIDE = [
    (descriptor(0, 16, 1024, 1), descriptor(12 * 1024, 16, 1024, 1)),
    (descriptor(32, 0, 512, 2), descriptor(8192, 0, 512, 2)),
]

MMA_SYNC = (
    ("m16n8k16", "f32.f16.f16.f32", 4, 2, 4), ("m16n8k16", "f32.bf16.bf16.f32", 4, 2, 4),
    ("m16n8k16", "f16.f16.f16.f16", 4, 2, 2), ("m16n8k8", "f32.f16.f16.f32", 2, 1, 4),
    ("m16n8k8", "f32.bf16.bf16.f32", 2, 1, 4), ("m16n8k8", "f32.tf32.tf32.f32", 4, 2, 4),
    ("m16n8k4", "f32.tf32.tf32.f32", 2, 1, 4), ("m16n8k32", "s32.s8.s8.s32", 4, 2, 4),
    ("m16n8k32", "s32.u8.s8.s32", 4, 2, 4), ("m16n8k32", "f32.e4m3.e5m2.f32", 4, 2, 4),
)  # fmt: skip


def mma_sync(shape: str, types: str, na: int, nb: int, nc: int, values=None, acc=None) -> Microkernel:
    a = ", ".join(f"%a{i}" for i in range(na))
    b = ", ".join(f"%b{i}" for i in range(nb))
    c = ", ".join(f"%c{i}" for i in range(nc))
    d = ", ".join(f"%d{i}" for i in range(nc))
    ptx = f"""{HEADER}
.visible .entry k(.param .u64 IN, .param .u64 ACC, .param .u64 OUT)
{{
  .reg .b64 %pi, %pc, %po, %off;
  .reg .b32 %i, %a<4>, %b<4>, %c<4>, %d<4>;
  ld.param.u64 %pi, [IN]; ld.param.u64 %pc, [ACC]; ld.param.u64 %po, [OUT];
  mov.u32 %i, %tid.x; mul.wide.u32 %off, %i, 32; add.s64 %pi, %pi, %off;
  mul.wide.u32 %off, %i, 16; add.s64 %pc, %pc, %off; add.s64 %po, %po, %off;
  ld.global.v4.b32 {{%a0, %a1, %a2, %a3}}, [%pi]; ld.global.v4.b32 {{%b0, %b1, %b2, %b3}}, [%pi+16];
  ld.global.v4.b32 {{%c0, %c1, %c2, %c3}}, [%pc];
  mov.b32 %d0, 0; mov.b32 %d1, 0; mov.b32 %d2, 0; mov.b32 %d3, 0;
  mma.sync.aligned.{shape}.row.col.{types} {{{d}}}, {{{a}}}, {{{b}}}, {{{c}}};
  st.global.v4.b32 [%po], {{%d0, %d1, %d2, %d3}};
  ret;
}}
"""
    kinds = types.split(".")
    if acc is None:
        acc = hash32(512, 142) % np.uint32(1000) if kinds[0] == "s32" else small_floats(
            2048 // (4 if kinds[0] == "f32" else 2), kinds[0], 142)  # fmt: skip
    values = _values(kinds[1], 128 * 32, 141) if values is None else values
    out = Buffer("out", np.full(128 * 16, 0xCD, dtype=np.uint8), result=True)
    args = (Buffer("in", values), Buffer("acc", acc), out)
    return Microkernel(f"mma_{shape}_{types.replace('.', '_')}", ptx, args, whole=True)


def kernels() -> list[Microkernel]:
    out = [wgmma(s) for s in _shapes()]
    out.append(wgmma(Shape("f16", 16, 256), pairs=WIDE))
    out.append(wgmma(Shape("bf16", 16, 256, trans_b=1), pairs=[(WIDE[0][0], descriptor(12 * 1024, 4096, 1024, 1))]))
    for kind in ("f16", "bf16"):
        values = _subnormal_values(kind, SMEM // 2, 144)
        out.append(wgmma(Shape(kind, 16, 16), values, f"wgmma_subnormal_{kind}"))
    out += [mma_sync(*form) for form in MMA_SYNC]
    return out + rounding()


def _rough_values(kind: str, count_bytes: int, seed: int, special: bool = False) -> np.ndarray:
    """Values of mixed magnitude, so that sums lose bits; with ``special`` some are subnormal, infinite or NaN."""
    if kind in ("e4m3", "e5m2"):
        codes = (hash32(count_bytes, seed) & np.uint32(0xFF)).astype(np.uint8)
        top = 0x7F if kind == "e4m3" else 0x7C
        return np.where((codes & 0x7F) >= top, codes ^ np.uint8(0x40), codes) if not special else codes
    word = 4 if kind == "tf32" else 2
    bits = hash32(count_bytes // word, seed)
    spread = (bits >> np.uint32(12)) % np.uint32(12)
    if kind == "tf32":
        values = (bits & np.uint32(0x807FFFFF)) | (np.uint32(120) + spread) << np.uint32(23)
        return values.astype(np.uint32).view(np.uint8)
    mantissa, first, odd = {
        "f16": (10, 8, (0x7C00, 0xFC00, 0x7E01, 0x0001)),
        "bf16": (7, 120, (0x7F80, 0xFF80, 0x7FC1, 0x0001)),
    }[kind]
    values = (bits & np.uint32(0x8000 | (1 << mantissa) - 1)) | (np.uint32(first) + spread) << np.uint32(mantissa)
    if special:
        pick = hash32(len(values), seed + 1)
        values = np.where(
            pick % np.uint32(160) == 0, np.array(odd, np.uint32)[(pick >> np.uint32(16)) % np.uint32(4)], values
        )
    return values.astype(np.uint16).view(np.uint8)


def rounding() -> list[Microkernel]:
    """How the hardware aligns and truncates the terms of a sum, for every type, and what infinities and NaNs do."""
    out = []
    for shape in (Shape("f16", 16, 64), Shape("bf16", 16, 64), Shape("f16", 16, 64, d="f16"), Shape("tf32", 8, 64),
                  Shape("e4m3", 32, 64), Shape("e5m2", 32, 64), Shape("f16", 16, 64, a_in_registers=True)):  # fmt: skip
        values = _rough_values(shape.kind, SMEM, 145)
        out.append(wgmma(shape, values, f"rounding_{shape.name}", pairs=WIDE))
    for kind in ("f16", "bf16", "e5m2"):
        shape = Shape(kind, 32 if kind == "e5m2" else 16, 64)
        out.append(wgmma(shape, _rough_values(kind, SMEM, 146, True), f"special_{shape.name}", pairs=WIDE))
    for form in MMA_SYNC:
        kinds = form[1].split(".")
        if kinds[0] == "s32" or kinds[1] == "e4m3":
            continue  # integers are exact; fp8 mma.sync is made of several f16 steps on Hopper, in an unknown order
        for special in (False, True):
            if special and kinds[1] not in ("f16", "bf16"):
                continue
            acc = _rough_values({"f32": "tf32", "f16": "f16"}[kinds[0]], 2048, 148)
            made = mma_sync(*form, values=_rough_values(kinds[1], 4096, 147, special), acc=acc)
            out.append(replace(made, name=f"{'special' if special else 'rounding'}_{made.name}"))
    return out
