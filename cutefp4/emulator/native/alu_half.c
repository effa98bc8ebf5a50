/* fp16 and bf16 arithmetic, scalar and packed.
 *
 * Sums, products and quotients of two halves, computed in fp32 and rounded once more, equal one rounding (fp32 has more
 * than twice the bits plus two).  An fma goes through a double that was rounded to odd.
 */
#include "lanes.h"

static inline u32 flush_half(u32 h) { return h & 0x7c00u ? h : h & 0x8000u; }
static inline float load_half(u32 h, u32 mod, int bf)
{
    h &= 0xffff;
    if (bf) return bf16_to_f32(h);
    return half_to_float(mod & MOD_FTZ ? flush_half(h) : h);
}
static inline u32 store_half(float x, u32 mod, int bf)
{
    if (mod & MOD_SAT) x = saturate(x);
    if (mod & MOD_RELU) x = x != x ? x : x > 0 ? x : 0.0f;
    u32 h = bf ? float_to_bf16(x) : float_to_half(x);
    if (!(mod & MOD_FTZ) || bf) return h;
    /* tiny before rounding lifted it to the least normal number: 11 bits with an unbounded exponent decide */
    if ((h & 0x7fff) == 0x0400 && float_to_half(fabsf(x) * 0x1p10f) < 0x2c00) return h & 0x8000;
    return flush_half(h);
}
/* a*b+c as a float that rounds to the right half: 24 bits kept to odd. */
static inline float fma_to_odd(float a, float b, float c)
{
    double p = (double)a * b, s = p + c, bb = s - p, error = (p - (s - bb)) + (c - bb);
    if (!(error == 0) && error == error && !isinf(s)) {
        u64 bits = bits_of64(s);
        if (!(bits & 1)) s = f64_of((error > 0) == (s > 0) ? bits + 1 : bits - 1);
    }
    float f = (float)s;
    if (f != f || isinf(f) || (double)f == s) return f;
    u32 b32 = bits_of(f);
    if (b32 & 1) return f;
    return f32_of(fabs((double)f) < fabs(s) ? b32 + 1 : b32 - 1);
}
static inline float half_min(float a, float b) { return a < b ? a : b < a ? b : f32_of(bits_of(a) | bits_of(b)); }
static inline float half_max(float a, float b) { return a > b ? a : b > a ? b : f32_of(bits_of(a) & bits_of(b)); }
static float half_extreme(float a, float b, u32 mod, int largest)
{
    u32 sign = (bits_of(a) ^ bits_of(b)) & 0x80000000u;
    if (mod & (MOD_XORSIGN | MOD_ABS)) { a = fabsf(a); b = fabsf(b); }
    if (a != a || b != b) {
        if (mod & MOD_NAN || (a != a && b != b)) return NAN;
        float r = a != a ? b : a;
        return mod & MOD_XORSIGN ? f32_of((bits_of(r) & 0x7fffffffu) | sign) : r;
    }
    float r = largest ? half_max(a, b) : half_min(a, b);
    return mod & MOD_XORSIGN ? f32_of((bits_of(r) & 0x7fffffffu) | sign) : r;
}

/* One handler per operation, format and packing: EXPR in floats a, b, c. */
#define HALF_BODY(BF, PACKED, EXPR, NSRC)                                        \
    {                                                                            \
        enum { BF_ = BF };                                                       \
        u32 *D = DST(u32, 0), mod = ins->mod;                                    \
        const u32 *A = SRC(u32, 1), *B = NSRC > 1 ? SRC(u32, 2) : A, *C = NSRC > 2 ? SRC(u32, 3) : A; \
        for (int l = 0; l < LANES; l++) {                                        \
            u32 out;                                                             \
            { float a = load_half(A[l], mod, BF), b = load_half(B[l], mod, BF), c = load_half(C[l], mod, BF); \
              (void)b; (void)c; out = store_half(EXPR, mod, BF); }               \
            if (PACKED) {                                                        \
                float a = load_half(A[l] >> 16, mod, BF), b = load_half(B[l] >> 16, mod, BF), c = load_half(C[l] >> 16, mod, BF); \
                (void)b; (void)c; out |= store_half(EXPR, mod, BF) << 16;        \
            }                                                                    \
            D[l] = LANE(mask, l) ? out : D[l];                                   \
        }                                                                        \
        return EX_NEXT;                                                          \
    }
#define HANDLER(NAME) int op_##NAME(Machine *m, Warp *w, const Instr *ins, u32 mask)
#define OP_HALF(NAME, NSRC, EXPR)                                                \
    HANDLER(NAME##_F16) HALF_BODY(0, 0, EXPR, NSRC)                              \
    HANDLER(NAME##_BF16) HALF_BODY(1, 0, EXPR, NSRC)                             \
    HANDLER(NAME##_F16X2) HALF_BODY(0, 1, EXPR, NSRC)                            \
    HANDLER(NAME##_BF16X2) HALF_BODY(1, 1, EXPR, NSRC)

OP_HALF(ADD, 2, a + b)
OP_HALF(SUB, 2, a - b)
/* mul.ftz: tiny before rounding is zero (an fma.ftz or add.ftz decides after rounding) */
static inline float half_product(float a, float b, u32 mod, int bf)
{
    float p = a * b;
    return mod & MOD_FTZ && !bf && fabsf(p) < 0x1p-14f ? copysignf(0.0f, p) : p;
}
OP_HALF(MUL, 2, half_product(a, b, mod, BF_))
OP_HALF(FMA, 3, fma_to_odd(a, b, c))
OP_HALF(MIN, 2, half_extreme(a, b, mod, 0))
OP_HALF(MAX, 2, half_extreme(a, b, mod, 1))
OP_HALF(MIN3, 3, half_extreme(half_extreme(a, b, mod, 0), c, mod, 0))
OP_HALF(MAX3, 3, half_extreme(half_extreme(a, b, mod, 1), c, mod, 1))
OP_HALF(EX2, 1, (float)exp2(a))
OP_HALF(TANH, 1, (float)tanh(a))

/* abs and neg of halves, a NaN becomes 0x7fff: mod ftz flushes fp16 subnormals, aux 1 bf16, imm: the sign bits present */
static inline u32 prepare_half(u32 h, u32 ftz, u32 bf)
{
    h &= 0xffff;
    return ftz && !bf ? flush_half(h) : h;
}
static inline u32 sign_half(u32 h, u32 ftz, u32 bf, u32 flip)
{
    u32 x = prepare_half(h, ftz, bf);
    if ((x & 0x7fff) > (bf ? 0x7f80u : 0x7c00u)) return 0x7fff;
    return flip ? x ^ 0x8000u : x & 0x7fffu;
}
int op_ABS_HALF(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 *D = DST(u32, 0), two = (u32)ins->imm >> 31, ftz = ins->mod & MOD_FTZ, bf = ins->aux;
    const u32 *A = SRC(u32, 1);
    LANES_STORE(u32, (void)0, sign_half(A[l], ftz, bf, 0) | (two ? sign_half(A[l] >> 16, ftz, bf, 0) << 16 : 0))
}
int op_NEG_HALF(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 *D = DST(u32, 0), two = (u32)ins->imm >> 31, ftz = ins->mod & MOD_FTZ, bf = ins->aux;
    const u32 *A = SRC(u32, 1);
    LANES_STORE(u32, (void)0, sign_half(A[l], ftz, bf, 1) | (two ? sign_half(A[l] >> 16, ftz, bf, 1) << 16 : 0))
}
