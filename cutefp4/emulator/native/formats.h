/* Matrix element formats: exact decoding to double, and rounding of double sums to the accumulator types.
 *
 * Every format a tensor core reads (f16, bf16, tf32, fp8, fp6, fp4, int8, the scale formats) is a subset of double, so
 * decoding loses nothing; products of two decoded elements times two decoded scales are exact in double as well.
 */
#ifndef CUTEFP4_FORMATS_H
#define CUTEFP4_FORMATS_H

#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default"))) /* callable from tests */

enum ElemType {
    EL_F16, EL_BF16, EL_TF32, EL_E4M3, EL_E5M2, EL_E2M3, EL_E3M2, EL_E2M1, EL_U8, EL_S8, EL_UE8M0, EL_UE4M3, EL_COUNT
};

/* How elements narrower than a byte sit in memory. */
enum ElemPacking {
    PACK_DENSE,   /* bits packed: two e2m1 per byte, low nibble first */
    PACK_ALIGN16, /* 16 elements in 16 bytes: 8 bytes of e2m1 + 8 of padding, or 12 bytes of 6-bit values + 4 */
    PACK_BYTE,    /* one element per byte: e2m1 in bits 2-5, 6-bit types in bits 0-5 */
};

enum AccType { ACC_F16, ACC_F32, ACC_S32 };

int elem_bits(int type);
/* Decodes n elements starting at raw (an aligned group for PACK_ALIGN16) to out[i * stride]. */
EXPORT void decode_elems(int type, int packing, const uint8_t *raw, int n, double *out, ptrdiff_t stride);
EXPORT double decode_scale(int type, uint8_t code); /* EL_UE8M0 or EL_UE4M3 */
double decode_f16(uint16_t bits);
double decode_f32(uint32_t bits);

/* Reads and rounds one accumulator; NaN becomes the canonical 0x7fffffff / 0x7fff. */
EXPORT double acc_load(int acc_type, uint32_t bits);
EXPORT uint32_t acc_round(int acc_type, double value, int saturate);
EXPORT uint16_t round_f16(double value);

/* c[i][j] += sum_k a[i][k] * b[k][j] in double. a is (m, k) row major; b comes in panels of 8 columns,
 * b[(j / 8) * k * 8 + kk * 8 + j % 8]; c is (m, n) row major with row stride ldc. m % 4 == 0, n % 8 == 0. */
EXPORT void matmul_panels(int m, int n, int k, const double *a, const double *b, double *c, int ldc);

#endif
