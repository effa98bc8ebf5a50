/* Memory instructions: how the lowering packs them into Instr.mod. */
#ifndef CUTEFP4_ACCESS_H
#define CUTEFP4_ACCESS_H

#include "emu.h"

enum Space { SPACE_GENERIC, SPACE_GLOBAL, SPACE_SHARED, SPACE_LOCAL, SPACE_PARAM, SPACE_CLUSTER };

#define ACC_BYTES(mod) ((mod) & 0xffu)             /* element: 1 2 4 8 16 */
#define ACC_COUNT(mod) ((mod) >> 8 & 0xfu)         /* vector elements */
#define ACC_SPACE(mod) ((mod) >> 12 & 7u)
#define ACC_WIDE(mod) ((mod) >> 15 & 1u)           /* 64-bit address register */
#define ACC_SIGNED(mod) ((mod) >> 16 & 1u)
#define ACC_REG(mod) ((mod) >> 17 & 3u)            /* register width: 0 16 bit, 1 32, 2 64, 3 128 */
#define ACC_OP(mod) ((mod) >> 20 & 0xfu)           /* atomics: enum AtomicOp */
#define ACC_TYPE(mod) ((mod) >> 24 & 0xfu)         /* atomics: enum AtomicType */

enum AtomicOp { AT_ADD, AT_MIN, AT_MAX, AT_INC, AT_DEC, AT_AND, AT_OR, AT_XOR, AT_EXCH, AT_CAS };
enum AtomicType { TY_U32, TY_S32, TY_U64, TY_S64, TY_F32, TY_F64, TY_F16, TY_BF16, TY_F16X2, TY_BF16X2, TY_B128, TY_B16 };

typedef struct Access {
    u8 *ptr[LANES];        /* valid for active lanes */
    u32 off[LANES];        /* shared memory: offset in its CTA */
    Cta *cta;              /* shared memory: the CTA, if all lanes name the same one */
    int space;             /* SPACE_GLOBAL, SPACE_SHARED or SPACE_LOCAL (which stands for all private memory) */
} Access;

/* Resolves and checks the addresses of all active lanes; 0 after a finding that stops the launch.
 * kind: enum Access bits (ACCESS_READ, ACCESS_WRITE). */
int access_resolve(Machine *m, Warp *w, const Instr *ins, u32 mask, i32 base, u32 size, u32 align, int kind, Access *out);

/* atomics.c: one element; also what bulk reductions do. */
u64 atomic_apply(u32 op, u32 type, u64 old, u64 value, int in_global);
u32 atomic_type_bytes(u32 type);

#endif
