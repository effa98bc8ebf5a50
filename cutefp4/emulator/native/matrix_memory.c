/* ldmatrix and stmatrix.
 *
 * Row addresses come from lanes 8j .. 8j+7 for 8-row matrix j (16 lanes for a 16-row one).  q = lane % 4, r = lane / 4:
 *   m8n8 b16        register j holds elements (row r, columns 2q, 2q+1); .trans: rows 2q, 2q+1 of column r
 *   m8n16 b8        register j holds bytes (row r, columns 4q .. 4q+3)
 *   m16n16.trans b8 registers 2j, 2j+1: bytes k of register i are row 4q + 2i + (k & 1), column r + 8 (k >> 1)
 *   m16n8.trans b8  (stmatrix) byte k of register j goes to row 2q + (k & 1), column r + 8 (k >> 1) of 8 rows x 16 bytes
 */
#include "access.h"
#include "lanes.h"

enum Shape { M8N8, M8N16, M16N16, M16N8 };
#define MAT_COUNT(aux) ((aux) & 0xfu)
#define MAT_SHAPE(aux) ((aux) >> 4 & 3u)
#define MAT_TRANS(aux) ((aux) >> 6 & 1u)
#define MAT_SOURCE(aux) ((aux) >> 7 & 3u) /* 0 bytes, 1 b6x16_p32, 2 b4x16_p64 */

/* 16 elements of 6 or 4 bits, padded to 16 bytes in memory, become 16 bytes (4-bit codes in bits 2-5). */
static void expand_row(const u8 *row, u32 source, u8 out[16])
{
    if (source == 0) { memcpy(out, row, 16); return; }
    for (u32 i = 0; i < 16; i++) {
        if (source == 2) out[i] = (u8)((row[i / 2] >> 4 * (i & 1) & 0xf) << 2);
        else {
            u32 bit = 6 * i, word = row[bit / 8] | (u32)row[bit / 8 + 1] << 8;
            out[i] = (u8)(word >> (bit & 7) & 0x3f);
        }
    }
}

static int resolve_rows(Machine *m, Warp *w, const Instr *ins, i32 base, u32 rows, int kind, Access *x)
{
    u32 lanes = rows >= 32 ? FULL : (1u << rows) - 1;
    return access_resolve(m, w, ins, lanes, base, 16, 16, kind, x);
}

/* args d0 .. dn-1 base */
int op_LDMATRIX(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    if (w->active != w->live || mask != w->live) return EX_SYNC;
    const i32 *a = arg_list(m, ins);
    u32 count = MAT_COUNT(ins->aux), shape = MAT_SHAPE(ins->aux), tall = shape == M16N16;
    u32 regs = tall ? 2 * count : count, rows = (tall ? 16 : 8) * count;
    Access x;
    u8 data[32][16];
    if (!resolve_rows(m, w, ins, a[regs], rows, ACCESS_READ, &x)) return EX_FATAL;
    for (u32 i = 0; i < rows; i++) expand_row(x.ptr[i], MAT_SOURCE(ins->aux), data[i]);
    for (u32 j = 0; j < regs; j++) {
        u32 *D = dst32(w, a[j]);
        for (u32 l = 0; l < LANES; l++) {
            u32 q = l & 3, r = l >> 2, out = 0;
            if (shape == M8N8 && MAT_TRANS(ins->aux)) {
                u16 lo, hi;
                memcpy(&lo, &data[8 * j + 2 * q][2 * r], 2);
                memcpy(&hi, &data[8 * j + 2 * q + 1][2 * r], 2);
                out = lo | (u32)hi << 16;
            } else if (!tall) memcpy(&out, &data[8 * j + r][4 * q], 4);
            else
                for (u32 k = 0; k < 4; k++)
                    out |= (u32)data[16 * (j / 2) + 4 * q + 2 * (j & 1) + (k & 1)][r + 8 * (k >> 1)] << 8 * k;
            D[l] = out;
        }
    }
    return EX_NEXT;
}

/* args base s0 .. sn-1 */
int op_STMATRIX(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    if (w->active != w->live || mask != w->live) return EX_SYNC;
    const i32 *a = arg_list(m, ins);
    u32 count = MAT_COUNT(ins->aux), shape = MAT_SHAPE(ins->aux);
    Access x;
    if (!resolve_rows(m, w, ins, a[0], 8 * count, ACCESS_WRITE, &x)) return EX_FATAL;
    for (u32 j = 0; j < count; j++) {
        const u32 *S = src32(m, w, a[1 + j]);
        for (u32 l = 0; l < LANES; l++) {
            u32 q = l & 3, r = l >> 2, v = S[l];
            if (shape == M16N8)
                for (u32 k = 0; k < 4; k++) x.ptr[8 * j + 2 * q + (k & 1)][r + 8 * (k >> 1)] = (u8)(v >> 8 * k);
            else if (MAT_TRANS(ins->aux)) {
                memcpy(x.ptr[8 * j + 2 * q] + 2 * r, &v, 2);
                u16 hi = (u16)(v >> 16);
                memcpy(x.ptr[8 * j + 2 * q + 1] + 2 * r, &hi, 2);
            } else memcpy(x.ptr[8 * j + r] + 4 * q, &v, 4);
        }
    }
    return EX_NEXT;
}

/* movmatrix.m8n8.trans: args d a */
int op_MOVMATRIX(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    if (w->active != w->live || mask != w->live) return EX_SYNC;
    const u32 *A = SRC(u32, 1);
    u32 *D = DST(u32, 0), out[LANES];
    for (u32 l = 0; l < LANES; l++) {
        u32 q = l & 3, r = l >> 2; /* the element (row 2q + i, column r) is in lane 4 * (2q + i) + r / 2, half r % 2 */
        u32 lo = A[8 * q + r / 2] >> 16 * (r & 1) & 0xffff, hi = A[8 * q + 4 + r / 2] >> 16 * (r & 1) & 0xffff;
        out[l] = lo | hi << 16;
    }
    memcpy(D, out, sizeof out);
    return EX_NEXT;
}
