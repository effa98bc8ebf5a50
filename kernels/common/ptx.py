"""Single PTX instructions as functions of DSL numbers.

Quantisation is a contract on bits: every multiplication, addition and division rounds once, to nearest, and none may be
contracted into an FMA or replaced by an approximation. Plain DSL arithmetic leaves that to compiler options, so the
kernels spell these instructions out. All functions are free of side effects except loads, stores and atomics, so that
the compiler may merge and move them.

Word: a Uint32 that holds packed data (two bf16, eight codes, ...). `bool` arguments are DSL Booleans.
"""

from cutlass import Boolean, Float32, Int32, Int64, Uint16, Uint32
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T

_CODES = {Float32: "f", Uint32: "r", Uint16: "h", Int64: "l"}


def _mlir_type(dtype):
    return {Float32: T.f32, Uint32: T.i32, Uint16: T.i16, Int64: T.i64}[dtype]()


def asm(text: str, result, *args, effect: bool = False):
    """Inline PTX. `result`: a DSL type, a tuple of equal DSL types, or None; `args`: DSL numbers ($n in the text)."""
    results = result if isinstance(result, tuple) else (result,) if result is not None else ()
    args = [Uint32(a) if isinstance(a, (Int32, Boolean)) else a for a in args]
    constraints = [f"={_CODES[r]}" for r in results] + [_CODES[type(a)] for a in args]
    if len(results) > 1:
        kind = llvm.StructType.get_literal([_mlir_type(r) for r in results])
    else:
        kind = _mlir_type(results[0]) if results else None
    value = llvm.inline_asm(
        kind, [a.ir_value() for a in args], text, ",".join(constraints), has_side_effects=effect, asm_dialect=0
    )
    if not results:
        return None
    if len(results) == 1:
        return results[0](value)
    return tuple(r(llvm.extractvalue(_mlir_type(r), value, [i])) for i, r in enumerate(results))


# fp32 arithmetic, one rounding each


def mul(a: Float32, b: Float32) -> Float32:
    return asm("mul.rn.f32 $0, $1, $2;", Float32, a, b)


def mul_rz(a: Float32, b: Float32) -> Float32:
    return asm("mul.rz.f32 $0, $1, $2;", Float32, a, b)


def add(a: Float32, b: Float32) -> Float32:
    return asm("add.rn.f32 $0, $1, $2;", Float32, a, b)


def sub(a: Float32, b: Float32) -> Float32:
    return asm("sub.rn.f32 $0, $1, $2;", Float32, a, b)


def fma_sat(a: Float32, b: Float32, c: Float32) -> Float32:
    """fl(a * b + c) clamped to [0, 1]; NaN gives 0."""
    return asm("fma.rn.sat.f32 $0, $1, $2, $3;", Float32, a, b, c)


def fma(a: Float32, b: Float32, c: Float32) -> Float32:
    return asm("fma.rn.f32 $0, $1, $2, $3;", Float32, a, b, c)


def div(a: Float32, b: Float32) -> Float32:
    """IEEE division."""
    return asm("div.rn.f32 $0, $1, $2;", Float32, a, b)


def reciprocal(a: Float32) -> Float32:
    """fl(1 / a), correctly rounded."""
    return asm("rcp.rn.f32 $0, $1;", Float32, a)


def sqrt(a: Float32) -> Float32:
    """The square root, correctly rounded."""
    return asm("sqrt.rn.f32 $0, $1;", Float32, a)


def fmin(a: Float32, b: Float32) -> Float32:
    """The smaller; the other one if one is NaN."""
    return asm("min.f32 $0, $1, $2;", Float32, a, b)


def fmax(a: Float32, b: Float32) -> Float32:
    """The larger; the other one if one is NaN."""
    return asm("max.f32 $0, $1, $2;", Float32, a, b)


def fabs(a: Float32) -> Float32:
    return asm("abs.f32 $0, $1;", Float32, a)


def bits(a: Float32) -> Uint32:
    return asm("mov.b32 $0, $1;", Uint32, a)


def from_bits(a: Uint32) -> Float32:
    return asm("mov.b32 $0, $1;", Float32, a)


def select(condition: Boolean, a, b):
    """a where the condition holds, else b; both are evaluated."""
    kind = {Float32: "f32", Uint32: "b32", Int64: "b64"}[type(a)]
    return asm(
        f"{{ .reg .pred p; setp.ne.u32 p, $1, 0; selp.{kind} $0, $2, $3, p; }}", type(a), Uint32(condition), a, b
    )


# words


def prmt(a: Uint32, b: Uint32, selector: int) -> Uint32:
    """Bytes picked from b:a by the selector's nibbles."""
    return asm(f"prmt.b32 $0, $1, $2, {selector:#x};", Uint32, a, b)


def lop3(a: Uint32, b: Uint32, c: Uint32, table: int) -> Uint32:
    return asm(f"lop3.b32 $0, $1, $2, $3, {table:#x};", Uint32, a, b, c)


def mad(a: Uint32, b: Uint32, c: Uint32) -> Uint32:
    """a * b + c modulo 2^32."""
    return asm("mad.lo.u32 $0, $1, $2, $3;", Uint32, a, b, c)


def mul_wide(a: Uint32, b: Uint32) -> tuple[Uint32, Uint32]:
    """(low, high) word of the 64-bit product."""
    text = "{ .reg .b64 t; mul.wide.u32 t, $2, $3; mov.b64 {$0, $1}, t; }"
    return asm(text, (Uint32, Uint32), a, b)


def umin(a: Uint32, b: Uint32) -> Uint32:
    return asm("min.u32 $0, $1, $2;", Uint32, a, b)


def umax(a: Uint32, b: Uint32) -> Uint32:
    return asm("max.u32 $0, $1, $2;", Uint32, a, b)


def max_abs_16x2(a: Uint32, b: Uint32, kind: str) -> Uint32:
    """Lane-wise max of magnitudes of two packed bf16 or f16 words; NaN loses. The result's signs mean nothing."""
    return asm(f"max.xorsign.abs.{kind}x2 $0, $1, $2;", Uint32, a, b)


def add_16x2(a: Uint32, b: Uint32, kind: str) -> Uint32:
    """Lane-wise sum of two packed bf16 or f16 words, one rounding; NaN becomes the canonical one."""
    return asm(f"add.rn.{kind}x2 $0, $1, $2;", Uint32, a, b)


# memory


def address(tensor) -> Int64:
    """Byte address of a global tensor's first element."""
    return Int64(tensor.iterator.toint())


def load_words(where: Int64, count: int, valid: Boolean) -> tuple[Uint32, ...]:
    """`count` (1, 2 or 4) words from a read-only global address that is aligned to their size; zeros if not valid.

    `valid` may be Python's True: no predicate, and no registers cleared before.
    """
    outs = ", ".join(f"${i}" for i in range(count))
    if valid is True:
        kind = f"v{count}.b32 {{{outs}}}" if count > 1 else "b32 $0"
        loaded = asm(f"ld.global.nc.{kind}, [${count}];", (Uint32,) * count, where, effect=True)
        return loaded if isinstance(loaded, tuple) else (loaded,)
    zeros = " ".join(f"mov.b32 ${i}, 0;" for i in range(count))
    kind = f"v{count}.b32 {{{outs}}}" if count > 1 else "b32 $0"
    text = f"{{ .reg .pred p; setp.ne.u32 p, ${count + 1}, 0; {zeros} @p ld.global.nc.{kind}, [${count}]; }}"
    loaded = asm(text, (Uint32,) * count, where, Uint32(valid), effect=True)
    return loaded if isinstance(loaded, tuple) else (loaded,)


def load_half(where: Int64, valid: Boolean) -> Uint32:
    """One 16-bit value, zero-extended; 0 if not valid."""
    text = (
        "{ .reg .pred p; .reg .b16 h; setp.ne.u32 p, $2, 0; mov.b16 h, 0; "
        "@p ld.global.nc.b16 h, [$1]; cvt.u32.u16 $0, h; }"
    )
    return asm(text, Uint32, where, Uint32(valid), effect=True)


def load_changing(where: Int64) -> Uint32:
    """One word that another grid may have written since this kernel began."""
    return asm("ld.relaxed.gpu.global.b32 $0, [$1];", Uint32, where, effect=True)


def load_acquire(where: Int64) -> Uint32:
    """One word that another CTA releases."""
    return asm("ld.acquire.gpu.global.b32 $0, [$1];", Uint32, where, effect=True)


def load_byte(where: Int64, valid: Boolean) -> Uint32:
    """One byte, zero-extended; 0 if not valid."""
    text = "{ .reg .pred p; setp.ne.u32 p, $2, 0; mov.b32 $0, 0; @p ld.global.nc.u8 $0, [$1]; }"
    return asm(text, Uint32, where, Uint32(valid), effect=True)


def store_words(where: Int64, words: tuple[Uint32, ...], valid: Boolean) -> None:
    """1, 2 or 4 words to a global address that is aligned to their size."""
    n = len(words)
    ins = ", ".join(f"${i + 2}" for i in range(n))
    kind = f"v{n}.b32 [$0], {{{ins}}}" if n > 1 else "b32 [$0], $2"
    text = f"{{ .reg .pred p; setp.ne.u32 p, $1, 0; @p st.global.{kind}; }}"
    asm(text, None, where, Uint32(valid), *words, effect=True)


def store_byte(where: Int64, byte: Uint32, valid: Boolean) -> None:
    text = "{ .reg .pred p; setp.ne.u32 p, $1, 0; @p st.global.u8 [$0], $2; }"
    asm(text, None, where, Uint32(valid), byte, effect=True)


def store_half(where: Int64, value: Uint32, valid: Boolean) -> None:
    """The low 16 bits of a word."""
    text = "{ .reg .pred p; .reg .b16 h; setp.ne.u32 p, $1, 0; cvt.u16.u32 h, $2; @p st.global.b16 [$0], h; }"
    asm(text, None, where, Uint32(valid), value, effect=True)


def atomic_umax(where: Int64, value: Uint32, valid: Boolean) -> None:
    """Raise a global word to at least `value`; relaxed, no result."""
    text = "{ .reg .pred p; setp.ne.u32 p, $1, 0; @p red.relaxed.gpu.global.max.u32 [$0], $2; }"
    asm(text, None, where, Uint32(valid), value, effect=True)


def load_shared(where: Uint32, count: int) -> tuple[Uint32, ...]:
    """`count` (1, 2 or 4) words of shared memory."""
    outs = ", ".join(f"${i}" for i in range(count))
    kind = f"v{count}.b32 {{{outs}}}" if count > 1 else "b32 $0"
    loaded = asm(f"ld.shared.{kind}, [${count}];", (Uint32,) * count, where, effect=True)
    return loaded if isinstance(loaded, tuple) else (loaded,)


def store_shared(where: Uint32, words: tuple[Uint32, ...]) -> None:
    """1, 2 or 4 words to shared memory."""
    n = len(words)
    ins = ", ".join(f"${i + 1}" for i in range(n))
    kind = f"v{n}.b32 [$0], {{{ins}}}" if n > 1 else "b32 [$0], $1"
    asm(f"st.shared.{kind};", None, where, *words, effect=True)


def store_shared_if(where: Uint32, word: Uint32, valid: Boolean) -> None:
    """One word to shared memory, if valid."""
    text = "{ .reg .pred p; setp.ne.u32 p, $2, 0; @p st.shared.b32 [$0], $1; }"
    asm(text, None, where, word, Uint32(valid), effect=True)


def shared_umax(where: Uint32, value: Uint32) -> None:
    """Raise a shared word to at least `value`."""
    asm("red.relaxed.cta.shared.max.u32 [$0], $1;", None, where, value, effect=True)


def warp_umax(value: Uint32) -> Uint32:
    """The largest value of the 32 lanes, in all of them."""
    return asm("redux.sync.max.u32 $0, $1, 0xffffffff;", Uint32, value, effect=True)


def shuffle_xor(value: Uint32, distance: int) -> Uint32:
    """The value of the lane whose number differs by `distance` (a power of two)."""
    return asm(f"shfl.sync.bfly.b32 $0, $1, {distance}, 0x1f, 0xffffffff;", Uint32, value, effect=True)


def opaque(value: Int32) -> Int32:
    """`value`, kept in a register: the compiler cannot see what it is made of, and so cannot make it again where it is
    used (in a loop it does, however many registers are free). A shuffle with oneself; all lanes of a warp take part."""
    return Int32(asm("shfl.sync.up.b32 $0, $1, 0, 0, 0xffffffff;", Uint32, Uint32(value), effect=True))
