/* Integer, logic and bit instructions.  16-bit registers are zero-extended in 32-bit lanes. */
#include "lanes.h"

#define U16(x) ((u32)(u16)(x))
#define S16(x) ((i32)(i16)(u16)(x))

/* ---- moves and selects */
OP_1(MOV32, u32, u32, a)
OP_1(MOV64, u64, u64, a)
OP_2(PACK64, u64, u32, u32, (u64)a | (u64)b << 32)
OP_2(PACK32, u32, u32, u32, (a & 0xffffu) | b << 16)
OP_4(PACK32_8, u32, u32, u32, u32, u32, (a & 0xffu) | (b & 0xffu) << 8 | (c & 0xffu) << 16 | e << 24)
OP_2(PACK16_8, u32, u32, u32, (a & 0xffu) | (b & 0xffu) << 8)
OP_4(PACK64_16, u64, u32, u32, u32, u32, (u64)U16(a) | (u64)U16(b) << 16 | (u64)U16(c) << 32 | (u64)U16(e) << 48)

/* extract field: aux = shift, imm = mask */
int op_EXTRACT32(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 *D = DST(u32, 0);
    const u32 *A = SRC(u32, 1);
    u32 shift = ins->aux, keep = (u32)ins->imm;
    LANES_STORE(u32, u32 a = A[l], a >> shift & keep)
}
int op_EXTRACT64(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 *D = DST(u32, 0);
    const u64 *A = SRC(u64, 1);
    u32 shift = ins->aux, keep = (u32)ins->imm;
    LANES_STORE(u32, u64 a = A[l], (u32)(a >> shift) & keep)
}

int op_SEL32(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 *D = DST(u32, 0), p = w->preds[ins->a[3]];
    const u32 *A = SRC(u32, 1), *B = SRC(u32, 2);
    if (ins->mod & 1) p = ~p;
    LANES_STORE(u32, (void)0, LANE(p, l) ? A[l] : B[l])
}
int op_SEL64(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u64 *D = DST(u64, 0);
    u32 p = w->preds[ins->a[3]];
    const u64 *A = SRC(u64, 1), *B = SRC(u64, 2);
    if (ins->mod & 1) p = ~p;
    LANES_STORE(u64, (void)0, LANE(p, l) ? A[l] : B[l])
}
OP_3(SLCT32_S32, u32, u32, u32, i32, c >= 0 ? a : b)
OP_3(SLCT64_S32, u64, u64, u64, i32, c >= 0 ? a : b)
OP_3(SLCT32_F32, u32, u32, u32, float, c >= 0.0f ? a : b)
OP_3(SLCT64_F32, u64, u64, u64, float, c >= 0.0f ? a : b)
OP_3(SLCT32_F32_FTZ, u32, u32, u32, float, flush(c) >= 0.0f ? a : b)
OP_3(SLCT64_F32_FTZ, u64, u64, u64, float, flush(c) >= 0.0f ? a : b)

/* ---- 32 bit */
OP_2(ADD_32, u32, u32, u32, a + b)
OP_2(SUB_32, u32, u32, u32, a - b)
OP_2(MUL_32, u32, u32, u32, a * b)
OP_2(MULHI_S32, u32, i32, i32, (u64)((i64)a * b) >> 32)
OP_2(MULHI_U32, u32, u32, u32, (u64)a * b >> 32)
OP_2(MULWIDE_S32, u64, i32, i32, (i64)a * b)
OP_2(MULWIDE_U32, u64, u32, u32, (u64)a * b)
OP_3(MAD_32, u32, u32, u32, u32, a * b + c)
OP_3(MADHI_S32, u32, i32, i32, u32, (u32)((u64)((i64)a * b) >> 32) + c)
OP_3(MADHI_U32, u32, u32, u32, u32, (u32)((u64)a * b >> 32) + c)
OP_3(MADHI_SAT_S32, i32, i32, i32, i32, ({ i64 s_ = (((i64)a * b) >> 32) + c; s_ > 2147483647 ? 2147483647 : s_ < -2147483647 - 1 ? -2147483647 - 1 : s_; }))
OP_3(MADWIDE_S32, u64, i32, i32, u64, (u64)((i64)a * b) + c)
OP_3(MADWIDE_U32, u64, u32, u32, u64, (u64)a * b + c)
OP_2(MUL24_LO_S32, u32, i32, i32, (u32)((i64)(a << 8 >> 8) * (b << 8 >> 8)))
OP_2(MUL24_LO_U32, u32, u32, u32, (a & 0xffffffu) * (b & 0xffffffu))
OP_2(MUL24_HI_S32, u32, i32, i32, (u64)((i64)(a << 8 >> 8) * (b << 8 >> 8)) >> 16)
OP_2(MUL24_HI_U32, u32, u32, u32, (u64)(a & 0xffffffu) * (b & 0xffffffu) >> 16)
OP_2(DIV_S32, i32, i32, i32, b == 0 ? -1 : (a == -2147483647 - 1 && b == -1) ? a : a / (b ? b : 1))
OP_2(DIV_U32, u32, u32, u32, b == 0 ? FULL : a / (b ? b : 1))
OP_2(REM_S32, i32, i32, i32, b == 0 ? a : b == -1 ? 0 : a % (b ? b : 1))
OP_2(REM_U32, u32, u32, u32, b == 0 ? a : a % (b ? b : 1))
OP_1(ABS_32, u32, i32, a < 0 ? 0u - (u32)a : (u32)a)
OP_1(NEG_32, u32, u32, 0u - a)
OP_2(MIN_S32, i32, i32, i32, a < b ? a : b)
OP_2(MAX_S32, i32, i32, i32, a > b ? a : b)
OP_2(MIN_U32, u32, u32, u32, a < b ? a : b)
OP_2(MAX_U32, u32, u32, u32, a > b ? a : b)
OP_2(MIN_RELU_S32, i32, i32, i32, ({ i32 r = a < b ? a : b; r > 0 ? r : 0; }))
OP_2(MAX_RELU_S32, i32, i32, i32, ({ i32 r = a > b ? a : b; r > 0 ? r : 0; }))
OP_2(AND_32, u32, u32, u32, a & b)
OP_2(OR_32, u32, u32, u32, a | b)
OP_2(XOR_32, u32, u32, u32, a ^ b)
OP_1(NOT_32, u32, u32, ~a)
OP_1(CNOT_32, u32, u32, a == 0)
OP_2(SHL_32, u32, u32, u32, b > 31 ? 0u : a << (b & 31))
OP_2(SHR_U32, u32, u32, u32, b > 31 ? 0u : a >> (b & 31))
OP_2(SHR_S32, i32, i32, u32, a >> (b > 31 ? 31 : b))
OP_3(SAD_S32, u32, i32, i32, u32, c + (a < b ? (u32)b - (u32)a : (u32)a - (u32)b))
OP_3(SAD_U32, u32, u32, u32, u32, c + (a < b ? b - a : a - b))
OP_2(ADD_SAT_S32, i32, i32, i32, ({ i64 s_ = (i64)a + b; s_ > 2147483647 ? 2147483647 : s_ < -2147483647 - 1 ? -2147483647 - 1 : s_; }))
OP_2(SUB_SAT_S32, i32, i32, i32, ({ i64 s_ = (i64)a - b; s_ > 2147483647 ? 2147483647 : s_ < -2147483647 - 1 ? -2147483647 - 1 : s_; }))

/* ---- 16 bit and packed */
OP_2(ADD_16, u32, u32, u32, U16(a + b))
OP_2(SUB_16, u32, u32, u32, U16(a - b))
OP_2(MUL_16, u32, u32, u32, U16(a * b))
OP_2(MULHI_S16, u32, u32, u32, U16(S16(a) * S16(b) >> 16))
OP_2(MULHI_U16, u32, u32, u32, U16(a) * U16(b) >> 16)
OP_2(MULWIDE_S16, u32, u32, u32, S16(a) * S16(b))
OP_2(MULWIDE_U16, u32, u32, u32, U16(a) * U16(b))
OP_3(MAD_16, u32, u32, u32, u32, U16(a * b + c))
OP_3(MADWIDE_S16, u32, u32, u32, u32, (u32)(S16(a) * S16(b)) + c)
OP_3(MADWIDE_U16, u32, u32, u32, u32, U16(a) * U16(b) + c)
OP_3(MADHI_S16, u32, u32, u32, u32, U16((S16(a) * S16(b) >> 16) + S16(c)))
OP_3(MADHI_U16, u32, u32, u32, u32, U16((U16(a) * U16(b) >> 16) + c))
OP_3(SAD_S16, u32, u32, u32, u32, U16(c + (u32)(S16(a) < S16(b) ? S16(b) - S16(a) : S16(a) - S16(b))))
OP_3(SAD_U16, u32, u32, u32, u32, U16(c + (U16(a) < U16(b) ? U16(b) - U16(a) : U16(a) - U16(b))))
OP_2(DIV_S16, u32, u32, u32, U16(S16(b) == 0 ? -1 : S16(a) / (S16(b) ? S16(b) : 1)))
OP_2(DIV_U16, u32, u32, u32, U16(U16(b) == 0 ? 0xffff : U16(a) / (U16(b) ? U16(b) : 1)))
OP_2(REM_S16, u32, u32, u32, U16(S16(b) == 0 ? S16(a) : S16(a) % (S16(b) ? S16(b) : 1)))
OP_2(REM_U16, u32, u32, u32, U16(U16(b) == 0 ? U16(a) : U16(a) % (U16(b) ? U16(b) : 1)))
OP_1(ABS_16, u32, u32, U16(S16(a) < 0 ? -S16(a) : S16(a)))
OP_1(NEG_16, u32, u32, U16(0u - a))
OP_2(MIN_S16, u32, u32, u32, U16(S16(a) < S16(b) ? a : b))
OP_2(MAX_S16, u32, u32, u32, U16(S16(a) > S16(b) ? a : b))
OP_2(MIN_U16, u32, u32, u32, U16(a) < U16(b) ? U16(a) : U16(b))
OP_2(MAX_U16, u32, u32, u32, U16(a) > U16(b) ? U16(a) : U16(b))
OP_1(NOT_16, u32, u32, U16(~a))
OP_1(CNOT_16, u32, u32, U16(a) == 0)
OP_2(SHL_16, u32, u32, u32, b > 15 ? 0u : U16(a << (b & 15)))
OP_2(SHR_U16, u32, u32, u32, b > 15 ? 0u : U16(a) >> (b & 15))
OP_2(SHR_S16, u32, u32, u32, U16(S16(a) >> (b > 15 ? 15 : b)))
#define HALVES(lo, hi) (U16(lo) | (u32)(hi) << 16)
OP_2(ADD_16X2, u32, u32, u32, HALVES(a + b, (a >> 16) + (b >> 16)))
OP_2(MIN_S16X2, u32, u32, u32, HALVES(S16(a) < S16(b) ? a : b, (i32)a >> 16 < (i32)b >> 16 ? a >> 16 : b >> 16))
OP_2(MAX_S16X2, u32, u32, u32, HALVES(S16(a) > S16(b) ? a : b, (i32)a >> 16 > (i32)b >> 16 ? a >> 16 : b >> 16))
OP_2(MIN_U16X2, u32, u32, u32, HALVES(U16(a) < U16(b) ? a : b, a >> 16 < b >> 16 ? a >> 16 : b >> 16))
OP_2(MAX_U16X2, u32, u32, u32, HALVES(U16(a) > U16(b) ? a : b, a >> 16 > b >> 16 ? a >> 16 : b >> 16))
OP_1(RELU_S16X2, u32, u32, HALVES(S16(a) > 0 ? a : 0, (i32)a > 0 && a >> 16 ? a >> 16 : 0))
OP_2(SUB_16X2, u32, u32, u32, HALVES(a - b, (a >> 16) - (b >> 16)))
OP_1(NEG_16X2, u32, u32, HALVES(0u - a, 0u - (a >> 16)))

/* ---- 64 bit */
OP_2(ADD_64, u64, u64, u64, a + b)
OP_2(SUB_64, u64, u64, u64, a - b)
OP_2(MUL_64, u64, u64, u64, a * b)
OP_3(MAD_64, u64, u64, u64, u64, a * b + c)
OP_2(MULHI_U64, u64, u64, u64, (unsigned __int128)a * b >> 64)
OP_2(MULHI_S64, u64, i64, i64, (unsigned __int128)((__int128)a * b) >> 64)
OP_3(MADHI_U64, u64, u64, u64, u64, (u64)((unsigned __int128)a * b >> 64) + c)
OP_3(MADHI_S64, u64, i64, i64, u64, (u64)((unsigned __int128)((__int128)a * b) >> 64) + c)
#define I64_MIN (-9223372036854775807ll - 1)
OP_2(DIV_S64, i64, i64, i64, b == 0 ? -1 : (a == I64_MIN && b == -1) ? a : a / (b ? b : 1))
OP_2(DIV_U64, u64, u64, u64, b == 0 ? ~0ull : a / (b ? b : 1))
OP_2(REM_S64, i64, i64, i64, b == 0 ? a : b == -1 ? 0 : a % (b ? b : 1))
OP_2(REM_U64, u64, u64, u64, b == 0 ? a : a % (b ? b : 1))
OP_1(ABS_64, u64, i64, a < 0 ? 0u - (u64)a : (u64)a)
OP_1(NEG_64, u64, u64, 0u - a)
OP_2(MIN_S64, i64, i64, i64, a < b ? a : b)
OP_2(MAX_S64, i64, i64, i64, a > b ? a : b)
OP_2(MIN_U64, u64, u64, u64, a < b ? a : b)
OP_2(MAX_U64, u64, u64, u64, a > b ? a : b)
OP_2(AND_64, u64, u64, u64, a & b)
OP_2(OR_64, u64, u64, u64, a | b)
OP_2(XOR_64, u64, u64, u64, a ^ b)
OP_1(NOT_64, u64, u64, ~a)
OP_1(CNOT_64, u64, u64, a == 0)
OP_2(SHL_64, u64, u64, u32, b > 63 ? 0ull : a << (b & 63))
OP_2(SHR_U64, u64, u64, u32, b > 63 ? 0ull : a >> (b & 63))
OP_2(SHR_S64, i64, i64, u32, a >> (b > 63 ? 63 : b))
OP_3(SAD_S64, u64, i64, i64, u64, c + (a < b ? (u64)b - (u64)a : (u64)a - (u64)b))
OP_3(SAD_U64, u64, u64, u64, u64, c + (a < b ? b - a : a - b))

/* ---- bits */
OP_1(POPC_32, u32, u32, (u32)__builtin_popcount(a))
OP_1(POPC_64, u32, u64, (u32)__builtin_popcountll(a))
OP_1(CLZ_32, u32, u32, a ? (u32)__builtin_clz(a | !a) : 32u)
OP_1(CLZ_64, u32, u64, a ? (u32)__builtin_clzll(a | !a) : 64u)
static inline u32 reverse32(u32 x)
{
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
OP_1(BREV_32, u32, u32, reverse32(a))
OP_1(BREV_64, u64, u64, (u64)reverse32((u32)a) << 32 | reverse32((u32)(a >> 32)))
static inline u32 find_bit(u64 x, u32 shift_amount, u32 width)
{
    if (!x) return FULL;
    u32 position = 63u - (u32)__builtin_clzll(x);
    return shift_amount ? width - 1 - position : position;
}
#define BFIND(NAME, TA, VALUE, WIDTH)                                            \
    int op_##NAME(Machine *m, Warp *w, const Instr *ins, u32 mask)               \
    { u32 *D = DST(u32, 0); const TA *A = SRC(TA, 1); u32 shift = ins->mod & 1;  \
      FOR_ACTIVE(mask) { TA a = A[l]; D[l] = find_bit(VALUE, shift, WIDTH); }    \
      return EX_NEXT; }
#define OP_BFIND BFIND
OP_BFIND(BFIND_U32, u32, a, 32)
OP_BFIND(BFIND_S32, i32, (u32)(a < 0 ? ~a : a), 32)
OP_BFIND(BFIND_U64, u64, a, 64)
OP_BFIND(BFIND_S64, i64, (u64)(a < 0 ? ~a : a), 64)

/* bfe: bits [pos, pos+len); beyond the top a signed extract repeats the sign, len 0 gives 0. */
static inline u64 extract_field(u64 value, u32 pos, u32 len, u32 width, int is_signed)
{
    if (width == 32) { pos &= 0xff; len &= 0xff; } /* the 64-bit form is a sequence that looks at all bits of both */
    else { pos = pos > 255 ? 255 : pos; len = len > 255 ? 255 : len; }
    u32 top = width - 1, last = pos + len - 1 < top ? pos + len - 1 : top;
    u64 sign = !is_signed || len == 0 ? 0 : value >> last & 1;
    u64 out = 0;
    u32 usable = pos > top ? 0 : (len < width - pos ? len : width - pos);
    if (usable) out = (usable == 64 ? value : value >> pos & ((1ull << usable) - 1));
    if (sign && usable < 64) out |= ~0ull << usable;
    return out;
}
OP_3(BFE_U32, u32, u32, u32, u32, extract_field(a, b, c, 32, 0))
OP_3(BFE_S32, u32, u32, u32, u32, extract_field(a, b, c, 32, 1))
OP_3(BFE_U64, u64, u64, u32, u32, extract_field(a, b, c, 64, 0))
OP_3(BFE_S64, u64, u64, u32, u32, extract_field(a, b, c, 64, 1))
static inline u64 insert_field(u64 from, u64 into, u32 pos, u32 len, u32 width)
{
    pos &= 0xff;
    len &= 0xff;
    if (pos >= width || !len) return into;
    if (len > width - pos) len = width - pos;
    u64 field = (len == 64 ? ~0ull : (1ull << len) - 1) << pos;
    return (into & ~field) | (from << pos & field);
}
OP_4(BFI_32, u32, u32, u32, u32, u32, insert_field(a, b, c, e, 32))
OP_4(BFI_64, u64, u64, u64, u32, u32, insert_field(a, b, c, e, 64))
/* bmsk: a mask of b bits from position a; mod 1 clamp, else wrap */
int op_BMSK(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 *D = DST(u32, 0), clamp = ins->mod & 1;
    const u32 *A = SRC(u32, 1), *B = SRC(u32, 2);
    FOR_ACTIVE(mask) {
        u32 pos = A[l], len = B[l];
        if (clamp) { pos = pos > 32 ? 32 : pos; len = len > 32 ? 32 : len; }
        else { pos &= 31; len &= 31; }
        u64 ones = (1ull << len) - 1;
        D[l] = pos > 31 ? 0 : (u32)(ones << pos);
    }
    return EX_NEXT;
}
/* szext: sign- or zero-extend a from b bits; mod 1 clamp, 2 signed */
int op_SZEXT(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 *D = DST(u32, 0), clamp = ins->mod & 1, is_signed = ins->mod & 2;
    const u32 *A = SRC(u32, 1), *B = SRC(u32, 2);
    FOR_ACTIVE(mask) {
        u32 n = clamp ? (B[l] > 32 ? 32 : B[l]) : B[l] & 31, a = A[l];
        if (n == 32) D[l] = a;
        else if (n == 0) D[l] = 0;
        else D[l] = is_signed ? (u32)((i32)(a << (32 - n)) >> (32 - n)) : a & ((1u << n) - 1);
    }
    return EX_NEXT;
}
/* fns: position of the n-th set bit from a base */
int op_FNS(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 *D = DST(u32, 0);
    const u32 *A = SRC(u32, 1), *B = SRC(u32, 2);
    const i32 *C = SRC(i32, 3);
    FOR_ACTIVE(mask) {
        i32 n = C[l], step = n < 0 ? -1 : 1, position = (i32)B[l], found = -1, left = n < 0 ? -n : n;
        if (n == 0) found = A[l] >> (B[l] & 31) & 1 ? position : -1;
        else
            for (; position >= 0 && position < 32; position += step)
                if (A[l] >> position & 1 && --left == 0) { found = position; break; }
        D[l] = (u32)found;
    }
    return EX_NEXT;
}
OP_3(SHF_L_WRAP, u32, u32, u32, u32, (u32)(((u64)b << 32 | a) << (c & 31) >> 32))
OP_3(SHF_R_WRAP, u32, u32, u32, u32, (u32)(((u64)b << 32 | a) >> (c & 31)))
OP_3(SHF_L_CLAMP, u32, u32, u32, u32, c > 31 ? a : (u32)(((u64)b << 32 | a) << c >> 32))
OP_3(SHF_R_CLAMP, u32, u32, u32, u32, c > 31 ? b : (u32)(((u64)b << 32 | a) >> c))

/* prmt: mod 0 generic, 1 f4e, 2 b4e, 3 rc8, 4 ecl, 5 ecr, 6 rc16 */
static inline u32 permute(u32 a, u32 b, u32 selector)
{
    u64 bytes = (u64)b << 32 | a;
    u32 out = 0;
    for (int i = 0; i < 4; i++) {
        u32 s = selector >> 4 * i & 0xf, byte = (u32)(bytes >> 8 * (s & 7)) & 0xff;
        if (s & 8) byte = byte & 0x80 ? 0xff : 0;
        out |= byte << 8 * i;
    }
    return out;
}
static const u16 permute_modes[7][4] = {
    {0, 0, 0, 0},
    {0x3210, 0x4321, 0x5432, 0x6543}, {0x5670, 0x6701, 0x7012, 0x0123}, {0x0000, 0x1111, 0x2222, 0x3333},
    {0x3210, 0x3211, 0x3222, 0x3333}, {0x0000, 0x1110, 0x2210, 0x3210}, {0x1010, 0x3232, 0x1010, 0x3232},
};
int op_PRMT(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 *D = DST(u32, 0), mode = ins->mod;
    const u32 *A = SRC(u32, 1), *B = SRC(u32, 2), *C = SRC(u32, 3);
    if (mode == 0 && ins->a[3] < 0 && !(C[0] & 0x8888)) { /* constant selector without sign bits: shifts vectorise */
        u32 s0 = (C[0] & 7) * 8, s1 = (C[0] >> 4 & 7) * 8, s2 = (C[0] >> 8 & 7) * 8, s3 = (C[0] >> 12 & 7) * 8;
        LANES_STORE(u32, u64 v = (u64)B[l] << 32 | A[l],
                    (v >> s0 & 0xff) | (v >> s1 & 0xff) << 8 | (v >> s2 & 0xff) << 16 | (v >> s3 & 0xff) << 24)
    }
    FOR_ACTIVE(mask) D[l] = permute(A[l], B[l], mode ? permute_modes[mode][C[l] & 3] : C[l]);
    return EX_NEXT;
}
int op_LOP3(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 *D = DST(u32, 0), table = (u32)ins->imm;
    const u32 *A = SRC(u32, 1), *B = SRC(u32, 2), *C = SRC(u32, 3);
    u32 t[8];
    for (int i = 0; i < 8; i++) t[i] = table >> i & 1 ? FULL : 0;
    LANES_STORE(u32, u32 a = A[l]; u32 b = B[l]; u32 c = C[l],
                (t[7] & a & b & c) | (t[6] & a & b & ~c) | (t[5] & a & ~b & c) | (t[4] & a & ~b & ~c) |
                (t[3] & ~a & b & c) | (t[2] & ~a & b & ~c) | (t[1] & ~a & ~b & c) | (t[0] & ~a & ~b & ~c))
}
/* lop3.BoolOp: additionally p = (d != 0) op q.  args d a b c p q; mod 1 or, 2 and; 4: q negated */
int op_LOP3_PRED(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 q = w->preds[ins->a[5]], nonzero = 0;
    if (ins->mod & 4) q = ~q;
    op_LOP3(m, w, ins, mask);
    const u32 *D = DST(u32, 0);
    for (int l = 0; l < LANES; l++) nonzero |= (u32)(D[l] != 0) << l;
    u32 r = ins->mod & 1 ? nonzero | q : nonzero & q;
    w->preds[ins->a[4]] = (w->preds[ins->a[4]] & ~mask) | (r & mask);
    return EX_NEXT;
}
#define BYTE_S(x, i) ((i32)(i8)((x) >> 8 * (i)))
#define BYTE_U(x, i) ((i32)(u8)((x) >> 8 * (i)))
#define DP4(FA, FB) (u32)(FA(a, 0) * FB(b, 0) + FA(a, 1) * FB(b, 1) + FA(a, 2) * FB(b, 2) + FA(a, 3) * FB(b, 3)) + c
OP_3(DP4A_SS, u32, u32, u32, u32, DP4(BYTE_S, BYTE_S))
OP_3(DP4A_SU, u32, u32, u32, u32, DP4(BYTE_S, BYTE_U))
OP_3(DP4A_US, u32, u32, u32, u32, DP4(BYTE_U, BYTE_S))
OP_3(DP4A_UU, u32, u32, u32, u32, DP4(BYTE_U, BYTE_U))
/* dp2a: mod 1 hi, 2 a signed, 4 b signed */
int op_DP2A(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 *D = DST(u32, 0), hi = ins->mod & 1 ? 2 : 0;
    const u32 *A = SRC(u32, 1), *B = SRC(u32, 2), *C = SRC(u32, 3);
    FOR_ACTIVE(mask) {
        u32 sum = C[l];
        for (u32 i = 0; i < 2; i++) {
            i32 x = ins->mod & 2 ? S16(A[l] >> 16 * i) : (i32)U16(A[l] >> 16 * i);
            i32 y = ins->mod & 4 ? BYTE_S(B[l], i + hi) : BYTE_U(B[l], i + hi);
            sum += (u32)(x * y);
        }
        D[l] = sum;
    }
    return EX_NEXT;
}

/* ---- extended precision: args d a b [c] cc; mod 1 uses the carry, 2 sets it, 4 subtract, 8 hi product, 16 signed */
#define CARRY_OP(NAME, T, WIDE, SIGNED_WIDE, BITS)                               \
    int op_##NAME(Machine *m, Warp *w, const Instr *ins, u32 mask)               \
    {                                                                            \
        T *D = DST(T, 0);                                                        \
        const T *A = SRC(T, 1), *B = SRC(T, 2);                                  \
        const T *C = ins->nargs == 5 ? SRC(T, 3) : 0;                            \
        u32 *cc = &w->preds[ins->a[ins->nargs - 1]], out = *cc;                  \
        FOR_ACTIVE(mask) {                                                       \
            T x = A[l], y = B[l];                                                \
            u32 carry = ins->mod & 1 ? LANE(*cc, l) : 0;                         \
            if (C) {                                                             \
                WIDE product = ins->mod & 16 ? (WIDE)((SIGNED_WIDE)(i##BITS)x * (i##BITS)y) : (WIDE)x * y; \
                x = ins->mod & 8 ? (T)(product >> BITS) : (T)product;            \
                y = C[l];                                                        \
            }                                                                    \
            WIDE sum = ins->mod & 4 ? (WIDE)x - y - carry : (WIDE)x + y + carry; \
            D[l] = (T)sum;                                                       \
            out = (out & ~(1u << l)) | (u32)((sum >> BITS) & 1) << l;            \
        }                                                                        \
        if (ins->mod & 2) *cc = out;                                             \
        return EX_NEXT;                                                          \
    }
#define OP_CARRY CARRY_OP
OP_CARRY(CARRY_32, u32, u64, i64, 32)
OP_CARRY(CARRY_64, u64, unsigned __int128, __int128, 64)

/* ---- predicates */
/* args d a b; mod low 2 bits: 0 and, 1 or, 2 xor, 3 mov a; 4: a negated, 8: b negated, 16: result negated */
int op_PRED_LOGIC(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    (void)m;
    u32 a = w->preds[ins->a[1]], b = w->preds[ins->a[2]], r;
    if (ins->mod & 4) a = ~a;
    if (ins->mod & 8) b = ~b;
    switch (ins->mod & 3) {
    case 0: r = a & b; break;
    case 1: r = a | b; break;
    case 2: r = a ^ b; break;
    default: r = a;
    }
    if (ins->mod & 16) r = ~r;
    w->preds[ins->a[0]] = (w->preds[ins->a[0]] & ~mask) | (r & mask);
    return EX_NEXT;
}
/* predicate constant: imm 0/1 */
int op_PRED_SET(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    (void)m;
    w->preds[ins->a[0]] = (w->preds[ins->a[0]] & ~mask) | (ins->imm ? mask : 0);
    return EX_NEXT;
}
