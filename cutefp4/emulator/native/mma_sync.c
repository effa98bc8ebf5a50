/* mma.sync: warp-level matrix products from registers, with or without block scales.
 *
 * m16n8kK for f16, bf16, tf32, fp8, fp6, fp4 and int8: the fragments are rows of bytes (fragments.h), so that one
 * routine serves all. Scales: thread 2 * thread-id-a + h of quad g holds those of row g + 8 h of A, thread thread-id-b of
 * quad g those of column g of B; byte-id says which byte is the first.
 */
#include <string.h>

#include "descriptors.h"
#include "emu.h"
#include "fragments.h"
#include "hopper_sum.h"

/* Instr.mod, packed by lowering/mma_sync.py */
#define MOD_A_TYPE(mod) ((int)((mod) & 15))
#define MOD_B_TYPE(mod) ((int)((mod) >> 4 & 15))
#define MOD_ACC(mod) ((int)((mod) >> 8 & 3))   /* of D */
#define MOD_ACC_C(mod) ((int)((mod) >> 10 & 3))
#define MOD_SATURATE (1u << 12)
#define MOD_BYTES(mod) ((mod) & (1u << 13) ? 16u : 32u) /* of a row along K */
#define MOD_BYTE_ELEMENTS (1u << 14)           /* kind::f8f6f4: one element per byte */
#define MOD_SCALES(mod) ((mod) >> 16 & 7)      /* scales per row, 0 none */
#define MOD_UE4M3 (1u << 19)

/* Arguments: D, A, B, C, then with scales: A word, byte-id, thread-id, B word, byte-id, thread-id. */
typedef struct Layout { u32 d, a, b, c, end; } Layout;

static Layout layout(u32 mod) {
    Layout l = {0, 0, 0, 0, 0};
    l.a = acc_registers(MOD_ACC(mod), 8);
    l.b = l.a + MOD_BYTES(mod) / 8;
    l.c = l.b + MOD_BYTES(mod) / 16;
    l.end = l.c + acc_registers(MOD_ACC_C(mod), 8);
    return l;
}

/* Multiplies each row of x (rows of k elements, element stride `stride`) by its scales. */
static int apply_scales(Machine *m, Warp *w, const Instr *ins, const i32 *args, int is_a, u32 k, double *x) {
    u32 count = MOD_SCALES(ins->mod), rows = is_a ? 16 : 8, stride = is_a ? 1 : 8;
    int type = ins->mod & MOD_UE4M3 ? EL_UE4M3 : EL_UE8M0;
    const u32 *words = src32(m, w, args[0]);
    u32 byte = src32(m, w, args[1])[0], thread = src32(m, w, args[2])[0];
    if (byte + count > 4 || (count > 1 && byte % count) || thread > (is_a ? 1u : 3u))
        return finding(m, w, ins, 0, F_MMA_OPERAND, byte, "byte-id %u, thread-id %u of scale %s: byte-id must be a multiple of the %u "
                       "scales per row below 4, thread-id 0..%u", byte, thread, is_a ? "A" : "B", count, is_a ? 1 : 3);
    for (u32 r = 0; r < rows; r++) {
        u32 lane = is_a ? 4 * (r % 8) + 2 * thread + r / 8 : 4 * r + thread;
        for (u32 i = 0; i < k; i++) {
            u8 code = (u8)(words[lane] >> 8 * (byte + i * count / k));
            x[is_a ? r * k + i : i * stride + r] *= decode_scale(type, code);
        }
    }
    return EX_NEXT;
}

int op_MMA_SYNC(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    if (mask != w->live) return EX_SYNC;
    if (mask != FULL) return finding(m, w, ins, 0, F_DIVERGED_SYNC, 0, "mma.sync needs all 32 lanes of the warp");
    const i32 *args = arg_list(m, ins);
    u32 mod = ins->mod, bytes = MOD_BYTES(mod);
    Layout l = layout(mod);
    int packing = mod & MOD_BYTE_ELEMENTS ? PACK_BYTE : PACK_DENSE;
    u32 k = packing == PACK_BYTE ? bytes : bytes * 8 / (u32)elem_bits(MOD_A_TYPE(mod));
    OperandShape sa = {MOD_A_TYPE(mod), packing, 0, 16, k, 0}, sb = {MOD_B_TYPE(mod), packing, 0, 8, k, 0};
    double a[16 * 64], b[8 * 64], c[16 * 8];
    u8 raw[16 * 32];
    const u32 *in[8];
    u32 *out[4];
    for (u32 i = l.a; i < l.b; i++) in[i - l.a] = src32(m, w, args[i]);
    gather_a(in, bytes, raw);
    operand_decode(&sa, raw, 0, a);
    for (u32 i = l.b; i < l.c; i++) in[i - l.b] = src32(m, w, args[i]);
    gather_b(in, bytes, raw);
    operand_decode(&sb, raw, 1, b);
    for (u32 i = l.c; i < l.end; i++) in[i - l.c] = src32(m, w, args[i]);
    gather_acc(in, MOD_ACC_C(mod), 8, c);
    if (MOD_SCALES(mod)) {
        if (apply_scales(m, w, ins, args + l.end, 1, k, a) == EX_FATAL) return EX_FATAL;
        if (apply_scales(m, w, ins, args + l.end + 3, 0, k, b) == EX_FATAL) return EX_FATAL;
    }
    /* the order of sums was measured on Hopper for the 16- and 32-bit types; elsewhere one rounding of the double sum */
    if (m->program->arch == 90 && MOD_A_TYPE(mod) <= EL_TF32)
        hopper_sum(16, 8, (int)k, a, MOD_A_TYPE(mod), b, MOD_B_TYPE(mod), c, 8, 25, MOD_ACC(mod) == ACC_F16 ? 53 : 24);
    else matmul_panels(16, 8, (int)k, a, b, c, 8);
    for (u32 i = 0; i < l.a; i++) out[i] = dst32(w, args[i]);
    scatter_acc(out, MOD_ACC(mod), 8, c, (mod & MOD_SATURATE) != 0);
    m->counters[C_MMA_INSTRUCTIONS]++;
    m->counters[C_MMA_MACS] += 16ull * 8 * k;
    return EX_NEXT;
}
