/* Loops over the lanes of a warp, and the floating-point helpers that several files need.
 *
 * A handler computes all 32 lanes and keeps the result of the active ones, so that the loops vectorise.  An operand
 * and a destination are the same register or disjoint ones, never overlapping otherwise: ivdep is safe.
 */
#ifndef CUTEFP4_LANES_H
#define CUTEFP4_LANES_H

#include "emu.h"

#include <math.h>
#include <string.h>

/* Instr.mod bits shared by the arithmetic handlers; the lowering's modifiers.py holds the same numbers. */
#define MOD_ROUND 7u       /* 0 rn, 1 rz, 2 rm, 3 rp, 4 rna, 5 rs */
#define MOD_FTZ (1u << 3)
#define MOD_SAT (1u << 4)
#define MOD_RELU (1u << 5)
#define MOD_NAN (1u << 6)
#define MOD_XORSIGN (1u << 7)
#define MOD_ABS (1u << 8)
#define MOD_SATFINITE (1u << 9)
enum Round { RN, RZ, RM, RP, RNA, RS };

#if defined(__clang__)
#define FOR_LANES _Pragma("clang loop vectorize(assume_safety)") for (int l = 0; l < LANES; l++)
#else
#define FOR_LANES _Pragma("GCC ivdep") for (int l = 0; l < LANES; l++)
#endif
#define FOR_ACTIVE(mask) for (u32 rest_ = (mask), l = 0; rest_ && ((l = lowest_lane(rest_)), 1); rest_ &= rest_ - 1)
#define LANE(mask, l) ((mask) >> (l) & 1u)

#define LANES_STORE(TD, LOAD, EXPR)                                              \
    if (mask == FULL) { FOR_LANES { LOAD; D[l] = (TD)(EXPR); } }                 \
    else { FOR_LANES { LOAD; TD r_ = (TD)(EXPR); D[l] = LANE(mask, l) ? r_ : D[l]; } } \
    return EX_NEXT;

#define SRC(T, i) ((const T *)(const void *)src32(m, w, ins->a[i]))
#define DST(T, i) ((T *)(void *)dst32(w, ins->a[i]))

/* Handlers OP_n(name, types, expression in a, b, c): the build finds handlers by these macro names. */
#define OP_1(NAME, TD, TA, EXPR)                                                 \
    int op_##NAME(Machine *m, Warp *w, const Instr *ins, u32 mask)               \
    { TD *D = DST(TD, 0); const TA *A = SRC(TA, 1); LANES_STORE(TD, TA a = A[l], EXPR) }
#define OP_2(NAME, TD, TA, TB, EXPR)                                             \
    int op_##NAME(Machine *m, Warp *w, const Instr *ins, u32 mask)               \
    { TD *D = DST(TD, 0); const TA *A = SRC(TA, 1); const TB *B = SRC(TB, 2);    \
      LANES_STORE(TD, TA a = A[l]; TB b = B[l], EXPR) }
#define OP_3(NAME, TD, TA, TB, TC, EXPR)                                         \
    int op_##NAME(Machine *m, Warp *w, const Instr *ins, u32 mask)               \
    { TD *D = DST(TD, 0); const TA *A = SRC(TA, 1); const TB *B = SRC(TB, 2); const TC *C = SRC(TC, 3); \
      LANES_STORE(TD, TA a = A[l]; TB b = B[l]; TC c = C[l], EXPR) }
#define OP_4(NAME, TD, TA, TB, TC, TE, EXPR)                                     \
    int op_##NAME(Machine *m, Warp *w, const Instr *ins, u32 mask)               \
    { TD *D = DST(TD, 0); const TA *A = SRC(TA, 1); const TB *B = SRC(TB, 2);    \
      const TC *C = SRC(TC, 3); const TE *E = SRC(TE, 4);                        \
      LANES_STORE(TD, TA a = A[l]; TB b = B[l]; TC c = C[l]; TE e = E[l], EXPR) }

static inline float f32_of(u32 bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline u32 bits_of(float f) { u32 b; memcpy(&b, &f, 4); return b; }
static inline double f64_of(u64 bits) { double f; memcpy(&f, &bits, 8); return f; }
static inline u64 bits_of64(double f) { u64 b; memcpy(&b, &f, 8); return b; }

/* The hardware's fp32 arithmetic returns one NaN, 0x7fffffff. */
static inline float canonical(float x) { return x == x ? x : f32_of(0x7fffffffu); }
static inline float flush(float x)
{
    u32 b = bits_of(x);
    return (b & 0x7f800000u) ? x : f32_of(b & 0x80000000u);
}
static inline float saturate(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; } /* NaN -> +0 */

/* Conversions without branches, nearest-even, so that loops over lanes vectorise. */
static inline float half_to_float(u32 h)
{
    u32 magnitude = (h & 0x7fffu) << 13, sign = (h & 0x8000u) << 16;
    u32 finite = bits_of(f32_of(magnitude) * 0x1p112f); /* moves the exponent's bias, subnormals included */
    u32 special = magnitude | 0x7f800000u;
    return f32_of((magnitude >= 0x0f800000u ? special : finite) | sign);
}
static inline u32 float_to_half(float x)
{
    u32 b = bits_of(x), sign = b >> 16 & 0x8000u, a = b & 0x7fffffffu;
    u32 normal = (a - 0x38000000u + 0xfffu + (a >> 13 & 1u)) >> 13;
    u32 subnormal = bits_of(f32_of(a) + 0.5f) - 0x3f000000u;
    u32 r = a < 0x38800000u ? subnormal : a >= 0x47800000u ? 0x7c00u : normal;
    return a > 0x7f800000u ? 0x7fffu : r | sign;
}
static inline u32 float_to_bf16(float x)
{
    u32 b = bits_of(x), r = (b + 0x7fffu + (b >> 16 & 1u)) >> 16;
    return (b & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : r;
}

/* cvt.c: exact conversions in any rounding mode; results in the low bits. */
u32 f32_to_half(float x, u32 round);      /* fp16 bits; overflow to Inf (or max for rz) */
float half_to_f32(u32 h);
u32 f32_to_bf16(float x, u32 round);
static inline float bf16_to_f32(u32 h) { return f32_of(h << 16); }
u32 f64_to_half(double x);                /* rn */
u32 f64_to_bf16(double x);                /* rn */

#endif
