/* setp: comparisons into predicates.
 * args p q a b c; p or q may be -1 (not wanted).  mod: [4:0] comparison, [6:5] combine with c (1 and, 2 or, 3 xor),
 * 128 c negated, 256 ftz. */
#include "lanes.h"

enum Compare { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NAN_ };

static int store_predicates(Warp *w, const Instr *ins, u32 mask, u32 result)
{
    u32 p = result, q = ~result, combine = ins->mod >> 5 & 3;
    if (combine) {
        u32 c = w->preds[ins->a[4]];
        if (ins->mod & 128) c = ~c;
        p = combine == 1 ? p & c : combine == 2 ? p | c : p ^ c;
        q = combine == 1 ? q & c : combine == 2 ? q | c : q ^ c;
    }
    if (ins->a[0] >= 0) w->preds[ins->a[0]] = (w->preds[ins->a[0]] & ~mask) | (p & mask);
    if (ins->a[1] >= 0) w->preds[ins->a[1]] = (w->preds[ins->a[1]] & ~mask) | (q & mask);
    return EX_NEXT;
}

#define COLLECT(COND) { u32 r_ = 0; for (int l = 0; l < LANES; l++) { r_ |= (u32)(COND) << l; } result = r_; } break
#define INT_COMPARE(NAME, T, STORE, CAST)                                        \
    int op_##NAME(Machine *m, Warp *w, const Instr *ins, u32 mask)               \
    {                                                                            \
        const STORE *A = SRC(STORE, 2), *B = SRC(STORE, 3);                      \
        u32 result = 0;                                                          \
        switch (ins->mod & 31) {                                                 \
        case EQ: COLLECT((T)(CAST)A[l] == (T)(CAST)B[l]);                        \
        case NE: COLLECT((T)(CAST)A[l] != (T)(CAST)B[l]);                        \
        case LT: COLLECT((T)(CAST)A[l] < (T)(CAST)B[l]);                         \
        case LE: COLLECT((T)(CAST)A[l] <= (T)(CAST)B[l]);                        \
        case GT: COLLECT((T)(CAST)A[l] > (T)(CAST)B[l]);                         \
        default: COLLECT((T)(CAST)A[l] >= (T)(CAST)B[l]);                        \
        }                                                                        \
        return store_predicates(w, ins, mask, result);                           \
    }
#define OP_COMPARE INT_COMPARE
OP_COMPARE(SETP_S32, i32, u32, i32)
OP_COMPARE(SETP_U32, u32, u32, u32)
OP_COMPARE(SETP_S64, i64, u64, i64)
OP_COMPARE(SETP_U64, u64, u64, u64)
OP_COMPARE(SETP_S16, i32, u32, i16)
OP_COMPARE(SETP_U16, u32, u32, u16)

#define FLOAT_CASES(LOADA, LOADB)                                                \
    switch (ins->mod & 31) {                                                     \
    case EQ: COLLECT(LOADA == LOADB);                                            \
    case NE: COLLECT(LOADA < LOADB || LOADA > LOADB);                            \
    case LT: COLLECT(LOADA < LOADB);                                             \
    case LE: COLLECT(LOADA <= LOADB);                                            \
    case GT: COLLECT(LOADA > LOADB);                                             \
    case GE: COLLECT(LOADA >= LOADB);                                            \
    case EQU: COLLECT(!(LOADA < LOADB || LOADA > LOADB));                        \
    case NEU: COLLECT(LOADA != LOADB);                                           \
    case LTU: COLLECT(!(LOADA >= LOADB));                                        \
    case LEU: COLLECT(!(LOADA > LOADB));                                         \
    case GTU: COLLECT(!(LOADA <= LOADB));                                        \
    case GEU: COLLECT(!(LOADA < LOADB));                                         \
    case NUM: COLLECT(LOADA == LOADA && LOADB == LOADB);                         \
    default: COLLECT(LOADA != LOADA || LOADB != LOADB);                          \
    }

static u32 compare_floats(const Instr *ins, const float *A, const float *B)
{
    u32 result = 0;
    FLOAT_CASES(A[l], B[l])
    return result;
}
int op_SETP_F32(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    const float *A = SRC(float, 2), *B = SRC(float, 3);
    if (!(ins->mod & 256)) return store_predicates(w, ins, mask, compare_floats(ins, A, B));
    float a[LANES], b[LANES];
    for (int l = 0; l < LANES; l++) { a[l] = flush(A[l]); b[l] = flush(B[l]); }
    return store_predicates(w, ins, mask, compare_floats(ins, a, b));
}
int op_SETP_F64(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    const double *A = SRC(double, 2), *B = SRC(double, 3);
    u32 result = 0;
    FLOAT_CASES(A[l], B[l])
    return store_predicates(w, ins, mask, result);
}

/* Half precision: mod 512 bf16; part 0 low, 1 high half.  ftz concerns fp16 only and flushes its subnormals. */
static u32 compare_halves(Machine *m, Warp *w, const Instr *ins, u32 shift)
{
    const u32 *A = SRC(u32, 2), *B = SRC(u32, 3);
    float a[LANES], b[LANES];
    for (int l = 0; l < LANES; l++) {
        u32 x = A[l] >> shift & 0xffff, y = B[l] >> shift & 0xffff;
        if (ins->mod & 512) { a[l] = bf16_to_f32(x); b[l] = bf16_to_f32(y); continue; }
        if (ins->mod & 256) { x = x & 0x7c00 ? x : x & 0x8000; y = y & 0x7c00 ? y : y & 0x8000; }
        a[l] = half_to_f32(x);
        b[l] = half_to_f32(y);
    }
    return compare_floats(ins, a, b);
}
int op_SETP_HALF(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    return store_predicates(w, ins, mask, compare_halves(m, w, ins, 0));
}
/* The packed form has two results, each combined with c: p for the low, q for the high half. */
int op_SETP_HALF2(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 part[2] = {compare_halves(m, w, ins, 0), compare_halves(m, w, ins, 16)}, combine = ins->mod >> 5 & 3;
    for (int i = 0; i < 2; i++) {
        u32 p = part[i];
        if (combine) {
            u32 c = w->preds[ins->a[4]];
            if (ins->mod & 128) c = ~c;
            p = combine == 1 ? p & c : combine == 2 ? p | c : p ^ c;
        }
        if (ins->a[i] >= 0) w->preds[ins->a[i]] = (w->preds[ins->a[i]] & ~mask) | (p & mask);
    }
    return EX_NEXT;
}

/* testp: args p a; mod 0 finite 1 infinite 2 number 3 notanumber 4 normal 5 subnormal */
static u32 test_class(int category, u32 property)
{
    switch (property) {
    case 0: return category != FP_INFINITE && category != FP_NAN;
    case 1: return category == FP_INFINITE;
    case 2: return category != FP_NAN;
    case 3: return category == FP_NAN;
    case 4: return category == FP_NORMAL || category == FP_ZERO;
    default: return category == FP_SUBNORMAL;
    }
}
int op_TESTP_F32(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    const float *A = SRC(float, 1);
    u32 r = 0;
    for (int l = 0; l < LANES; l++) r |= test_class(fpclassify(A[l]), ins->mod) << l;
    w->preds[ins->a[0]] = (w->preds[ins->a[0]] & ~mask) | (r & mask);
    return EX_NEXT;
}
int op_TESTP_F64(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    const double *A = SRC(double, 1);
    u32 r = 0;
    for (int l = 0; l < LANES; l++) r |= test_class(fpclassify(A[l]), ins->mod) << l;
    w->preds[ins->a[0]] = (w->preds[ins->a[0]] & ~mask) | (r & mask);
    return EX_NEXT;
}
