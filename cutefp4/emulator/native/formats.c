/* Element decoding tables, accumulator rounding and the double-precision matrix product. See formats.h. */
#include "formats.h"

#include <math.h>
#include <string.h>

static const uint8_t BITS[EL_COUNT] = {16, 16, 32, 8, 8, 6, 6, 4, 8, 8, 8, 8};

/* Decoding of all types of up to 8 bits, by code. Filled once; filling it twice writes the same values. */
static double table[EL_COUNT][256];
static volatile int tables_ready;

int elem_bits(int type) { return BITS[type]; }

/* sign:1, exponent:ebits, mantissa:mbits with the given bias, no special values */
static double small_float(unsigned code, int ebits, int mbits, int bias) {
    unsigned mant = code & ((1u << mbits) - 1), exp = (code >> mbits) & ((1u << ebits) - 1);
    double v = exp ? ldexp(1.0 + ldexp(mant, -mbits), (int)exp - bias) : ldexp(mant, 1 - bias - mbits);
    return (code >> (ebits + mbits)) & 1 ? -v : v;
}

static void fill_tables(void) {
    for (unsigned c = 0; c < 256; c++) {
        table[EL_E4M3][c] = (c & 0x7f) == 0x7f ? NAN : small_float(c, 4, 3, 7);
        table[EL_E5M2][c] = (c & 0x7f) > 0x7c   ? NAN
                            : (c & 0x7f) == 0x7c ? (c & 0x80 ? -INFINITY : INFINITY)
                                                 : small_float(c, 5, 2, 15);
        table[EL_E2M3][c] = small_float(c & 0x3f, 2, 3, 1);
        table[EL_E3M2][c] = small_float(c & 0x3f, 3, 2, 3);
        table[EL_E2M1][c] = small_float(c & 0xf, 2, 1, 1);
        table[EL_U8][c] = c;
        table[EL_S8][c] = (int8_t)c;
        table[EL_UE8M0][c] = c == 0xff ? NAN : ldexp(1.0, (int)c - 127);
        table[EL_UE4M3][c] = (c & 0x7f) == 0x7f ? NAN : small_float(c & 0x7f, 4, 3, 7);
    }
    tables_ready = 1;
}

static inline const double *table_of(int type) {
    if (!tables_ready) fill_tables();
    return table[type];
}

double decode_scale(int type, uint8_t code) { return table_of(type)[code]; }

double decode_f32(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

double decode_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, mag = h & 0x7fff;
    if (mag >= 0x7c00) return decode_f32(sign | 0x7f800000 | (mag & 0x3ff) << 13);
    if (mag < 0x400) { /* zero and subnormals: the value is mag * 2^-24 */
        double v = ldexp(mag, -24);
        return sign ? -v : v;
    }
    return decode_f32(sign | ((mag << 13) + 0x38000000));
}

static void decode_wide(int type, const uint8_t *raw, int n, double *out, ptrdiff_t stride) {
    for (int i = 0; i < n; i++) {
        uint16_t h;
        uint32_t w;
        switch (type) {
        case EL_F16: memcpy(&h, raw + 2 * i, 2); out[i * stride] = decode_f16(h); break;
        case EL_BF16: memcpy(&h, raw + 2 * i, 2); out[i * stride] = decode_f32((uint32_t)h << 16); break;
        default: /* the tensor core reads the upper 19 bits of a tf32 word */
            memcpy(&w, raw + 4 * i, 4);
            out[i * stride] = decode_f32(w & 0xffffe000);
        }
    }
}

/* 6-bit element i of a little-endian bit string */
static inline unsigned six_bits(const uint8_t *raw, int i) {
    int bit = 6 * i, byte = bit >> 3;
    unsigned w = raw[byte] | ((bit & 7) > 2 ? (unsigned)raw[byte + 1] << 8 : 0);
    return w >> (bit & 7) & 0x3f;
}

void decode_elems(int type, int packing, const uint8_t *raw, int n, double *out, ptrdiff_t stride) {
    if (type <= EL_TF32) {
        decode_wide(type, raw, n, out, stride);
        return;
    }
    const double *t = table_of(type);
    int bits = BITS[type];
    if (bits == 8 || packing == PACK_BYTE) {
        int shift = bits == 4 ? 2 : 0;
        for (int i = 0; i < n; i++) out[i * stride] = t[raw[i] >> shift];
        return;
    }
    int group = packing == PACK_ALIGN16 ? 16 : n;
    for (int base = 0; base < n; base += group) {
        const uint8_t *g = packing == PACK_ALIGN16 ? raw + base : raw;
        int count = n - base < group ? n - base : group;
        for (int i = 0; i < count; i++) {
            unsigned code = bits == 4 ? (unsigned)(g[i >> 1] >> (4 * (i & 1))) & 0xf : six_bits(g, i);
            out[(base + i) * stride] = t[code];
        }
    }
}

double acc_load(int acc_type, uint32_t bits) {
    if (acc_type == ACC_F32) return decode_f32(bits);
    return acc_type == ACC_S32 ? (double)(int32_t)bits : decode_f16((uint16_t)bits);
}

uint16_t round_f16(double v) {
    if (v != v) return 0x7fff;
    uint16_t sign = signbit(v) ? 0x8000 : 0;
    double a = fabs(v);
    if (a >= 65520.0) return sign | 0x7c00; /* the midpoint above 65504 rounds to infinity */
    if (a < 0x1p-14) return sign | (uint16_t)nearbyint(a * 0x1p24);
    int exp;
    frexp(a, &exp); /* a = f * 2^exp with f in [0.5, 1): 11 significant bits end at 2^(exp - 11) */
    uint32_t sig = (uint32_t)nearbyint(ldexp(a, 11 - exp)); /* 1024..2048 */
    return sign | (uint16_t)(((uint32_t)(exp + 13) << 10) + sig);
}

uint32_t acc_round(int acc_type, double v, int saturate) {
    if (acc_type == ACC_F16) return round_f16(v);
    if (acc_type == ACC_S32) {
        if (saturate && v > 2147483647.0) return 0x7fffffff;
        if (saturate && v < -2147483648.0) return 0x80000000;
        return (uint32_t)(int64_t)v;
    }
    if (v != v) return 0x7fffffff;
    float f = (float)v;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

typedef double v4d __attribute__((vector_size(32), aligned(8)));

/* 4 rows x 8 columns of c stay in registers while k runs: with 256-bit vectors 8 accumulators, 2 loads of b and 4
 * broadcasts of a per step. Vector extensions instead of intrinsics: the same source builds for every target. */
static inline void block_4x8(int k, const double *restrict a, const double *restrict b, double *restrict c, int ldc) {
    v4d acc[4][2];
    for (int i = 0; i < 4; i++) {
        acc[i][0] = *(const v4d *)(c + i * ldc);
        acc[i][1] = *(const v4d *)(c + i * ldc + 4);
    }
    for (int kk = 0; kk < k; kk++) {
        v4d b0 = *(const v4d *)(b + 8 * kk), b1 = *(const v4d *)(b + 8 * kk + 4);
        for (int i = 0; i < 4; i++) {
            double x = a[i * k + kk];
            v4d s = {x, x, x, x};
            acc[i][0] += s * b0;
            acc[i][1] += s * b1;
        }
    }
    for (int i = 0; i < 4; i++) {
        *(v4d *)(c + i * ldc) = acc[i][0];
        *(v4d *)(c + i * ldc + 4) = acc[i][1];
    }
}

void matmul_panels(int m, int n, int k, const double *a, const double *b, double *c, int ldc) {
    for (int j = 0; j < n; j += 8)
        for (int i = 0; i < m; i += 4) block_4x8(k, a + (size_t)i * k, b + (size_t)j * k, c + (size_t)i * ldc + j, ldc);
}
