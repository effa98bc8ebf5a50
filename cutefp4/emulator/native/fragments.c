/* Register fragments of mma.sync and wgmma. See fragments.h for the maps. */
#include "fragments.h"

#include <string.h>

#include "formats.h"

void gather_a(const u32 *const *regs, u32 row_bytes, u8 *raw) {
    for (u32 i = 0; i < row_bytes / 8; i++)
        for (u32 t = 0; t < LANES; t++) memcpy(raw + (t / 4 + 8 * (i % 2)) * row_bytes + 4 * (t % 4) + 16 * (i / 2), &regs[i][t], 4);
}

void gather_b(const u32 *const *regs, u32 row_bytes, u8 *raw) {
    for (u32 i = 0; i < row_bytes / 16; i++)
        for (u32 t = 0; t < LANES; t++) memcpy(raw + t / 4 * row_bytes + 4 * (t % 4) + 16 * i, &regs[i][t], 4);
}

void gather_acc(const u32 *const *regs, int acc_type, u32 n, double *c) {
    if (acc_type == ACC_F16) {
        for (u32 i = 0; i < n / 4; i++)
            for (u32 t = 0; t < LANES; t++) {
                double *to = c + (t / 4 + 8 * (i % 2)) * n + 8 * (i / 2) + 2 * (t % 4);
                to[0] = decode_f16((u16)regs[i][t]);
                to[1] = decode_f16((u16)(regs[i][t] >> 16));
            }
        return;
    }
    for (u32 i = 0; i < n / 2; i++)
        for (u32 t = 0; t < LANES; t++)
            c[(t / 4 + 8 * (i / 2 % 2)) * n + 8 * (i / 4) + 2 * (t % 4) + i % 2] = acc_load(acc_type, regs[i][t]);
}

void scatter_acc(u32 *const *regs, int acc_type, u32 n, const double *c, int saturate) {
    if (acc_type == ACC_F16) {
        for (u32 i = 0; i < n / 4; i++)
            for (u32 t = 0; t < LANES; t++) {
                const double *from = c + (t / 4 + 8 * (i % 2)) * n + 8 * (i / 2) + 2 * (t % 4);
                regs[i][t] = round_f16(from[0]) | (u32)round_f16(from[1]) << 16;
            }
        return;
    }
    for (u32 i = 0; i < n / 2; i++)
        for (u32 t = 0; t < LANES; t++)
            regs[i][t] = acc_round(acc_type, c[(t / 4 + 8 * (i / 2 % 2)) * n + 8 * (i / 4) + 2 * (t % 4) + i % 2], saturate);
}
