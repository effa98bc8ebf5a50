/* Number formats of the conversion instructions. */
#ifndef CUTEFP4_CVT_H
#define CUTEFP4_CVT_H

#include "emu.h"

enum Format { FMT_F16, FMT_BF16, FMT_TF32, FMT_F32, FMT_F64, FMT_E4M3, FMT_E5M2, FMT_E2M1, FMT_E2M3, FMT_E3M2, FMT_UE8M0, FMT_COUNT };

typedef struct FormatInfo {
    u8 bits, mantissa;   /* width, stored mantissa bits */
    int bias;
    u32 max, inf, nan;   /* codes without sign; inf 0: the format has none, nan 0: none */
    u8 shift;            /* tf32 sits in the upper bits of a 32-bit word */
} FormatInfo;
extern const FormatInfo format_info[FMT_COUNT];

/* Rounds x to a format.  Overflow: the largest value if satfinite (or the format has no Inf, or rounding says so).
 * For round RS, `random` has the bits that are added to the top `random_bits` discarded bits. */
u32 encode_float(double x, int format, u32 round, int satfinite, u32 random, u32 random_bits);
double decode_float(u32 code, int format);

#endif
