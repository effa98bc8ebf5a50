/* Truncating aligned sums of Hopper's tensor cores. See hopper_sum.h. */
#include "hopper_sum.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef double v4d __attribute__((vector_size(32), aligned(8)));
typedef int32_t v4i __attribute__((vector_size(16), aligned(4)));
typedef int32_t v8i __attribute__((vector_size(32), aligned(4)));

enum { NO_EXPONENT = -8192 }; /* of zero: below the sum of any two */

static int least_exponent(int type) {
    switch (type) {
    case EL_F16: case EL_E5M2: return -14;
    case EL_E4M3: return -6;
    default: return -126;
    }
}

static inline int32_t exponent(double x, int least) {
    uint64_t bits;
    memcpy(&bits, &x, 8);
    int32_t e = (int32_t)(bits >> 52 & 0x7ff) - 1023;
    return x == 0 ? NO_EXPONENT : e < least ? least : e;
}

static inline double power_of_two(int e) {
    uint64_t bits = (uint64_t)(1023 + e) << 52;
    double v;
    memcpy(&v, &bits, 8);
    return v;
}

/* Toward zero: to `bits` significant bits, and to multiples of 2^-149 below the normal range of f32. */
static double truncate(double v, int bits) {
    if (bits >= 53) return v;
    if (fabs(v) < 0x1p-126) return trunc(v * 0x1p149) * 0x1p-149;
    uint64_t w;
    memcpy(&w, &v, 8);
    w &= ~0ull << (53 - bits);
    memcpy(&v, &w, 8);
    return v;
}

static inline v4d truncated(v4d x) { return __builtin_convertvector(__builtin_convertvector(x, v4i), v4d); }

/* One row of A against 8 columns of B. */
static void row_of_8(int k, const double *a, const int32_t *ea, const double *b, const int32_t *eb, double *c, int fraction,
                     int out_bits) {
    v8i e;
    for (int j = 0; j < 8; j++) e[j] = exponent(c[j], -126);
    for (int kk = 0; kk < k; kk++) {
        v8i sum = *(const v8i *)(eb + 8 * kk) + ea[kk];
        v8i more = sum > e;
        e = (sum & more) | (e & ~more);
    }
    v4d lo = {0}, hi = {0};
    for (int j = 0; j < 4; j++) {
        lo[j] = power_of_two(e[j] < -1000 ? 0 : fraction - e[j]);
        hi[j] = power_of_two(e[j + 4] < -1000 ? 0 : fraction - e[j + 4]);
    }
    v4d acc0 = truncated(*(const v4d *)c * lo), acc1 = truncated(*(const v4d *)(c + 4) * hi);
    for (int kk = 0; kk < k; kk++) {
        v4d x = {a[kk], a[kk], a[kk], a[kk]};
        acc0 += truncated(x * *(const v4d *)(b + 8 * kk) * lo);
        acc1 += truncated(x * *(const v4d *)(b + 8 * kk + 4) * hi);
    }
    for (int j = 0; j < 8; j++) {
        double s = j < 4 ? acc0[j] : acc1[j - 4], unit = e[j] < -1000 ? 0.0 : power_of_two(e[j] - fraction);
        c[j] = truncate(s * unit, out_bits);
    }
}

static int all_finite(const double *x, size_t n) {
    double any = 0;
    for (size_t i = 0; i < n; i++) any += x[i] * 0.0; /* NaN if any is NaN or infinite */
    return any == 0;
}

/* With a NaN or an infinity in its inputs an element follows IEEE; the others of the tile do not change. */
static void patch_special(int m, int n, int k, const double *a, const double *b, const double *before, double *c, int ldc) {
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            const double *col = b + (size_t)(j / 8) * 8 * (size_t)k + j % 8;
            double plain = before[i * n + j];
            int special = !isfinite(plain);
            for (int kk = 0; kk < k; kk++) {
                double x = a[i * k + kk], y = col[8 * kk];
                special |= !isfinite(x) || !isfinite(y);
                plain += x * y;
            }
            if (special) c[i * ldc + j] = plain;
        }
}

void hopper_sum(int m, int n, int k, const double *a, int a_type, const double *b, int b_type, double *c, int ldc, int fraction,
                int out_bits) {
    int32_t ea[64 * 64], eb[8 * 64];
    int la = least_exponent(a_type), lb = least_exponent(b_type);
    int finite = all_finite(a, (size_t)m * (size_t)k) && all_finite(b, (size_t)n * (size_t)k);
    for (int i = 0; finite && i < m; i++) finite = all_finite(c + i * ldc, (size_t)n);
    double *before = finite ? NULL : malloc((size_t)m * (size_t)n * sizeof *before);
    for (int i = 0; before && i < m; i++) memcpy(before + i * n, c + i * ldc, (size_t)n * sizeof *before);
    for (int i = 0; i < m * k; i++) ea[i] = isfinite(a[i]) ? exponent(a[i], la) : NO_EXPONENT;
    for (int j = 0; j < n; j += 8) {
        const double *panel = b + (size_t)j * (size_t)k;
        for (int i = 0; i < 8 * k; i++) eb[i] = isfinite(panel[i]) ? exponent(panel[i], lb) : NO_EXPONENT;
        for (int i = 0; i < m; i++) row_of_8(k, a + i * k, ea + i * k, panel, eb, c + i * ldc + j, fraction, out_bits);
    }
    if (before) patch_special(m, n, k, a, b, before, c, ldc);
    free(before);
}
