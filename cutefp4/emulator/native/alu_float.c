/* fp32, packed fp32x2 and fp64 arithmetic.
 *
 * Round-to-nearest without modifiers has vectorised handlers; everything else goes through a double that was rounded
 * to odd, which makes the final rounding to fp32 exact in every mode.
 */
#include "lanes.h"

#include <fenv.h>

/* ---- exact results as doubles rounded to odd (53 bits keep a sticky bit for fp32's 24) */

static double to_odd(double rounded, double error)
{
    if (error == 0 || error != error || isinf(rounded)) return rounded;
    u64 b = bits_of64(rounded);
    if (b & 1) return rounded;
    int up = (error > 0) == (rounded > 0);
    return f64_of(up ? b + 1 : b - 1);
}
static double sum_odd(double a, double b)
{
    double s = a + b, bb = s - a, error = (a - (s - bb)) + (b - bb);
    if (s == 0 && error != 0) return error;
    return to_odd(s, error);
}
static double product_sum_odd(float a, float b, float c) { return sum_odd((double)a * b, c); }
static double quotient_odd(double a, double b)
{
    double q = a / b;
    if (q != q || isinf(q) || q == 0) return q;
    double r = fma(-q, b, a);
    return to_odd(q, b > 0 ? r : -r);
}
static double root_odd(double a)
{
    double q = sqrt(a);
    return q != q || isinf(q) || q == 0 ? q : to_odd(q, fma(-q, q, a));
}

/* Rounds an (odd-rounded) double to fp32. */
static float round_f32(double x, u32 round)
{
    if (round == RN || x != x || isinf(x) || x == 0) return (float)x;
    float near = (float)x;
    double back = near;
    if (back == x) return near;
    int toward_zero = round == RZ || (round == RM && x > 0) || (round == RP && x < 0);
    if (toward_zero) return fabs(back) > fabs(x) ? f32_of(bits_of(near) - 1) : near;
    return fabs(back) < fabs(x) ? f32_of(bits_of(near) + 1) : near; /* zero becomes the least subnormal of its sign */
}
/* The sign of an exact zero sum depends on the rounding mode. */
static float zero_sum(float result, double a, double b, u32 round)
{
    if (result != 0 || a != -b) return result;
    if (a == 0 && signbit(a) == signbit(b)) return (float)a;
    return round == RM ? -0.0f : 0.0f;
}

static inline float finish(float x, u32 mod)
{
    if (mod & MOD_FTZ) x = flush(x);
    if (mod & MOD_RELU) x = x > 0 ? x : (x != x ? x : 0.0f);
    if (mod & MOD_SAT) x = saturate(x);
    return canonical(x);
}
/* .ftz flushes a result that is tiny before its rounding could lift it to the least normal number: the value, rounded to
 * 24 bits with an unbounded exponent, decides. */
static float flush_tiny(float r, double exact, u32 mod)
{
    if (!(mod & MOD_FTZ) || (bits_of(r) & 0x7fffffffu) != 0x00800000u) return r;
    return fabsf(round_f32(exact * 0x1p64, mod & MOD_ROUND)) < 0x1p-62f ? copysignf(0.0f, r) : r;
}
static inline float operand(float x, u32 mod) { return mod & MOD_FTZ ? flush(x) : x; }

static float add_f32(float a, float b, u32 mod)
{
    a = operand(a, mod);
    b = operand(b, mod);
    if (!(mod & MOD_ROUND)) return finish(a + b, mod);
    return finish(zero_sum(round_f32(sum_odd(a, b), mod & MOD_ROUND), a, b, mod & MOD_ROUND), mod);
}
static float mul_f32(float a, float b, u32 mod)
{
    a = operand(a, mod);
    b = operand(b, mod);
    double exact = (double)a * b;
    return finish(flush_tiny(mod & MOD_ROUND ? round_f32(exact, mod & MOD_ROUND) : a * b, exact, mod), mod);
}
static float fma_f32(float a, float b, float c, u32 mod)
{
    a = operand(a, mod);
    b = operand(b, mod);
    c = operand(c, mod);
    if (!(mod & (MOD_ROUND | MOD_FTZ))) return finish(fmaf(a, b, c), mod);
    double exact = product_sum_odd(a, b, c);
    if (!(mod & MOD_ROUND)) return finish(flush_tiny(fmaf(a, b, c), exact, mod), mod);
    float r = flush_tiny(round_f32(exact, mod & MOD_ROUND), exact, mod);
    return finish(zero_sum(r, (double)a * b, c, mod & MOD_ROUND), mod);
}

/* ---- fp32, nearest */
OP_2(ADD_F32, float, float, float, canonical(a + b))
OP_2(SUB_F32, float, float, float, canonical(a - b))
OP_2(MUL_F32, float, float, float, canonical(a * b))
OP_3(FMA_F32, float, float, float, float, canonical(fmaf(a, b, c)))
OP_2(DIV_F32, float, float, float, canonical(a / b))
OP_1(RCP_F32, float, float, canonical(1.0f / a))
OP_1(SQRT_F32, float, float, canonical(sqrtf(a)))
OP_1(ABS_F32, float, float, canonical(fabsf(a)))
OP_1(NEG_F32, float, float, canonical(-a))
OP_2(COPYSIGN_F32, u32, u32, u32, (a & 0x80000000u) | (b & 0x7fffffffu))

/* ---- fp32 with modifiers */
#define MOD_2(NAME, EXPR) OP_2(NAME, float, float, float, EXPR)
#define MOD_1(NAME, EXPR) OP_1(NAME, float, float, EXPR)
#define OP_MOD2 MOD_2
#define OP_MOD1 MOD_1
#define OP_MOD3(NAME, EXPR) OP_3(NAME, float, float, float, float, EXPR)
OP_MOD2(ADD_F32_MOD, add_f32(a, b, ins->mod))
OP_MOD2(SUB_F32_MOD, add_f32(a, -b, ins->mod))
OP_MOD2(MUL_F32_MOD, mul_f32(a, b, ins->mod))
OP_MOD3(FMA_F32_MOD, fma_f32(a, b, c, ins->mod))
static float div_f32(float a, float b, u32 mod)
{
    double exact = quotient_odd(operand(a, mod), operand(b, mod));
    return finish(flush_tiny(round_f32(exact, mod & MOD_ROUND), exact, mod), mod);
}
OP_MOD2(DIV_F32_MOD, div_f32(a, b, ins->mod))
OP_MOD1(RCP_F32_MOD, finish(round_f32(quotient_odd(1.0, operand(a, ins->mod)), ins->mod & MOD_ROUND), ins->mod))
OP_MOD1(SQRT_F32_MOD, finish(round_f32(root_odd(operand(a, ins->mod)), ins->mod & MOD_ROUND), ins->mod))
OP_MOD1(ABS_F32_FTZ, canonical(fabsf(flush(a))))
OP_MOD1(NEG_F32_FTZ, canonical(-flush(a)))
/* Approximate functions: the correctly rounded value (the hardware's last bits are not documented). */
OP_MOD1(RSQRT_F32, finish((float)(1.0 / sqrt((double)operand(a, ins->mod))), ins->mod))
OP_MOD1(EX2_F32, finish((float)exp2((double)operand(a, ins->mod)), ins->mod))
OP_MOD1(LG2_F32, finish((float)log2((double)operand(a, ins->mod)), ins->mod))
OP_MOD1(SIN_F32, finish((float)sin((double)operand(a, ins->mod)), ins->mod))
OP_MOD1(COS_F32, finish((float)cos((double)operand(a, ins->mod)), ins->mod))
OP_MOD1(TANH_F32, finish((float)tanh((double)operand(a, ins->mod)), ins->mod))

/* min/max: a NaN operand loses unless .NaN; -0 < +0 */
static inline float smaller(float a, float b) { return a < b ? a : b < a ? b : f32_of(bits_of(a) | bits_of(b)); }
static inline float larger(float a, float b) { return a > b ? a : b > a ? b : f32_of(bits_of(a) & bits_of(b)); }
static inline float min_f32(float a, float b) { return a != a ? b : b != b ? a : smaller(a, b); }
static inline float max_f32(float a, float b) { return a != a ? b : b != b ? a : larger(a, b); }
OP_2(MIN_F32, float, float, float, canonical(min_f32(a, b)))
OP_2(MAX_F32, float, float, float, canonical(max_f32(a, b)))
static float extreme(float a, float b, u32 mod, int largest)
{
    u32 sign = (bits_of(a) ^ bits_of(b)) & 0x80000000u;
    a = operand(a, mod);
    b = operand(b, mod);
    if (mod & (MOD_XORSIGN | MOD_ABS)) { a = fabsf(a); b = fabsf(b); }
    if (mod & MOD_NAN && (a != a || b != b)) return canonical(NAN);
    float r = canonical(largest ? max_f32(a, b) : min_f32(a, b));
    return mod & MOD_XORSIGN && r == r ? f32_of((bits_of(r) & 0x7fffffffu) | sign) : r;
}
OP_MOD2(MIN_F32_MOD, extreme(a, b, ins->mod, 0))
OP_MOD2(MAX_F32_MOD, extreme(a, b, ins->mod, 1))
OP_MOD3(MIN3_F32, extreme(extreme(a, b, ins->mod, 0), c, ins->mod, 0))
OP_MOD3(MAX3_F32, extreme(extreme(a, b, ins->mod, 1), c, ins->mod, 1))

/* ---- packed fp32x2: a lane's two values are neighbours, so a warp is 64 floats */
#define PAIRS(NAME, FAST, SLOW, NOPS)                                            \
    int op_##NAME(Machine *m, Warp *w, const Instr *ins, u32 mask)               \
    {                                                                            \
        float *D = DST(float, 0);                                                \
        const float *A = SRC(float, 1), *B = SRC(float, 2), *C = NOPS > 2 ? SRC(float, 3) : A; \
        (void)C;                                                                 \
        if (mask == FULL && ins->mod == 0) {                                     \
            PAIR_LOOP { float a = A[i], b = B[i], c = C[i]; (void)c; D[i] = canonical(FAST); } \
            return EX_NEXT;                                                      \
        }                                                                        \
        for (int i = 0; i < 2 * LANES; i++) {                                    \
            float a = A[i], b = B[i], c = C[i];                                  \
            (void)c;                                                             \
            if (LANE(mask, i / 2)) D[i] = SLOW;                                  \
        }                                                                        \
        return EX_NEXT;                                                          \
    }
#if defined(__clang__)
#define PAIR_LOOP _Pragma("clang loop vectorize(assume_safety)") for (int i = 0; i < 2 * LANES; i++)
#else
#define PAIR_LOOP _Pragma("GCC ivdep") for (int i = 0; i < 2 * LANES; i++)
#endif
#define OP_PAIRS PAIRS
OP_PAIRS(ADD_F32X2, a + b, add_f32(a, b, ins->mod), 2)
OP_PAIRS(SUB_F32X2, a - b, add_f32(a, -b, ins->mod), 2)
OP_PAIRS(MUL_F32X2, a * b, mul_f32(a, b, ins->mod), 2)
OP_PAIRS(FMA_F32X2, fmaf(a, b, c), fma_f32(a, b, c, ins->mod), 3)

/* ---- fp64: directed rounding by the host's rounding mode; volatile keeps the compiler from moving the operation */
static int host_round(u32 round) { return round == RZ ? FE_TOWARDZERO : round == RM ? FE_DOWNWARD : FE_UPWARD; }
#define DIRECTED(EXPR)                                                           \
    ({ double r_;                                                                \
       if (!(ins->mod & MOD_ROUND)) r_ = (EXPR);                                 \
       else { fesetround(host_round(ins->mod & MOD_ROUND)); volatile double v_ = (EXPR); r_ = v_; fesetround(FE_TONEAREST); } \
       r_; })
/* fp64 keeps one operand's NaN, quieted: the last argument's that is one (of an fma the factor b, then c, then a). */
static inline double last_nan(double result, double a, double b, double c)
{
    if (result == result) return result;
    double from = c != c ? c : b != b ? b : a;
    return from != from ? f64_of(bits_of64(from) | 1ull << 51) : f64_of(0xfff8000000000000ull);
}
#define DOUBLE(NAME, NSRC, EXPR)                                                 \
    int op_##NAME(Machine *m, Warp *w, const Instr *ins, u32 mask)               \
    { double *D = DST(double, 0); const double *A = SRC(double, 1), *B = NSRC > 1 ? SRC(double, 2) : A; \
      FOR_ACTIVE(mask) { volatile double a = A[l], b = NSRC > 1 ? B[l] : a; D[l] = last_nan(DIRECTED(EXPR), a, b, 0); } return EX_NEXT; }
#define OP_DOUBLE DOUBLE
OP_DOUBLE(ADD_F64, 2, a + b)
OP_DOUBLE(SUB_F64, 2, a - b)
OP_DOUBLE(MUL_F64, 2, a * b)
int op_DIV_F64(Machine *m, Warp *w, const Instr *ins, u32 mask) /* a division keeps the NaN of its first operand */
{
    double *D = DST(double, 0);
    const double *A = SRC(double, 1), *B = SRC(double, 2);
    FOR_ACTIVE(mask) { volatile double a = A[l], b = B[l]; D[l] = last_nan(DIRECTED(a / b), b, a, 0); }
    return EX_NEXT;
}
OP_DOUBLE(RCP_F64, 1, 1.0 / a)
OP_DOUBLE(SQRT_F64, 1, sqrt(a))
OP_DOUBLE(RSQRT_F64, 1, 1.0 / sqrt(a))
OP_DOUBLE(MIN_F64, 2, a != a ? b : b != b ? a : a < b ? a : b < a ? b : signbit(a) ? a : b)
OP_DOUBLE(MAX_F64, 2, a != a ? b : b != b ? a : a > b ? a : b > a ? b : signbit(a) ? b : a)
int op_FMA_F64(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    double *D = DST(double, 0);
    const double *A = SRC(double, 1), *B = SRC(double, 2), *C = SRC(double, 3);
    FOR_ACTIVE(mask) { volatile double a = A[l], b = B[l], c = C[l]; D[l] = last_nan(DIRECTED(fma(a, b, c)), a, c, b); }
    return EX_NEXT;
}
OP_1(ABS_F64, double, double, a != a ? last_nan(a, a, a, a) : fabs(a))
OP_1(NEG_F64, double, double, a != a ? last_nan(a, a, a, a) : -a)
OP_2(COPYSIGN_F64, u64, u64, u64, (a & 1ull << 63) | (b & ~(1ull << 63)))
