/* How a warp's registers hold the operands of mma.sync and wgmma.
 *
 * A (16 rows) and B (8 columns) are rows of bytes along K: thread t holds, in register i, the four bytes from
 * 4 (t % 4) + 16 (i / 2) of row t / 4 + 8 (i % 2) of A, and from 4 (t % 4) + 16 i of column t / 4 of B. That covers every
 * element width. Accumulators: register i of a 32-bit type is row t / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) + i % 2;
 * f16 accumulators pack the column pair.
 */
#ifndef CUTEFP4_FRAGMENTS_H
#define CUTEFP4_FRAGMENTS_H

#include "emu.h"

/* raw[row * row_bytes + byte]; row_bytes 16 or 32. regs[i] points at 32 lanes. */
void gather_a(const u32 *const *regs, u32 row_bytes, u8 *raw);
void gather_b(const u32 *const *regs, u32 row_bytes, u8 *raw);
/* c[row * n + column] of 16 rows */
void gather_acc(const u32 *const *regs, int acc_type, u32 n, double *c);
void scatter_acc(u32 *const *regs, int acc_type, u32 n, const double *c, int saturate);
static inline u32 acc_registers(int acc_type, u32 n) { return acc_type == 0 ? n / 4 : n / 2; }

#endif
