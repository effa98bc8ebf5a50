/* Shared-memory matrix descriptors (wgmma and tcgen05) and tcgen05 instruction descriptors.
 *
 * A matrix operand is a set of 16-byte chunks. The descriptor says where chunk (row, c) of a K-major operand, or chunk
 * (mn / T, k) of an MN-major operand with T = 16 / element bytes, lies; the swizzle then permutes the absolute address.
 *   K-major, swizzle W bytes:  (row % 8) * W + (row / 8) * SBO + c * 16
 *   K-major, no swizzle:       (row % 8) * 16 + (row / 8) * SBO + c * LBO
 *   MN-major, swizzle W:       (mc % (W/16)) * 16 + (mc / (W/16)) * LBO + (k % 8) * W + (k / 8) * SBO
 *   MN-major, 32-byte atoms:   (mc % 8) * 16 + (mc / 8) * LBO + (k % 4) * 128 + (k / 4) * SBO
 *   MN-major, no swizzle:      mc * SBO + (k % 8) * 16 + (k / 8) * LBO
 */
#ifndef CUTEFP4_DESCRIPTORS_H
#define CUTEFP4_DESCRIPTORS_H

#include <stdint.h>

#include "formats.h"
#include "tensormap.h"

typedef struct SmemDesc {
    uint32_t start, lbo, sbo; /* bytes */
    int swizzle;              /* enum Swizzle */
} SmemDesc;

/* Both return NULL, or what is wrong. */
EXPORT const char *smem_desc_decode_wgmma(uint64_t bits, SmemDesc *out);
EXPORT const char *smem_desc_decode_tcgen05(uint64_t bits, SmemDesc *out);

/* One operand of a matrix instruction. rows counts M or N; k counts elements of one instruction. */
typedef struct OperandShape {
    int type, packing; /* enum ElemType, enum ElemPacking */
    int mn_major;
    uint32_t rows, k;
    uint32_t first; /* row of the descriptor's matrix where the operand starts: a warp's part of a wgmma tile */
} OperandShape;

enum { MAX_CHUNKS = 1024 };
/* Absolute (swizzled) addresses of the operand's chunks: [row][c] if K-major, else [k][mn chunk]. Returns their number. */
EXPORT uint32_t operand_chunks(const SmemDesc *d, const OperandShape *s, uint32_t *chunks);
/* Decodes the operand from 16-byte chunks given in the order of operand_chunks: `data` holds them back to back.
 * As the left operand: out[row * k + kk]. As the right one: panels of 8 rows, out[(row / 8) * 8 * k + kk * 8 + row % 8]. */
EXPORT void operand_decode(const OperandShape *s, const uint8_t *data, int panels, double *out);

/* tcgen05 kinds */
enum MmaKind { KIND_F16, KIND_TF32, KIND_I8, KIND_F8F6F4, KIND_MXF8F6F4, KIND_MXF4, KIND_MXF4NVF4 };

typedef struct InstrDesc {
    int acc_type, a_type, b_type; /* enum AccType, ElemType */
    int packing;                  /* of both operands in shared memory */
    int a_mn_major, b_mn_major, negate_a, negate_b, saturate;
    int m, n, k;
    int scale_type, sfa_id, sfb_id; /* block-scaled kinds */
} InstrDesc;

EXPORT const char *instr_desc_decode(int kind, int cta_group, uint32_t bits, InstrDesc *out);

#endif
