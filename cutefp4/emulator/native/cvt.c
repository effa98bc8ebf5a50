/* cvt: conversions between integers and floats of every width, exact in every rounding mode. */
#include "cvt.h"
#include "lanes.h"

const FormatInfo format_info[FMT_COUNT] = {
    [FMT_F16] = {16, 10, 15, 0x7bff, 0x7c00, 0x7fff, 0},
    [FMT_BF16] = {16, 7, 127, 0x7f7f, 0x7f80, 0x7fff, 0},
    [FMT_TF32] = {32, 10, 127, 0x3fbff, 0x3fc00, 0x3ffff, 13},
    [FMT_F32] = {32, 23, 127, 0x7f7fffff, 0x7f800000, 0x7fffffff, 0},
    [FMT_F64] = {64, 52, 1023, 0, 0, 0, 0},
    [FMT_E4M3] = {8, 3, 7, 0x7e, 0, 0x7f, 0},
    [FMT_E5M2] = {8, 2, 15, 0x7b, 0x7c, 0x7f, 0},
    [FMT_E2M1] = {4, 1, 1, 0x7, 0, 0, 0},
    [FMT_E2M3] = {6, 3, 1, 0x1f, 0, 0, 0},
    [FMT_E3M2] = {6, 2, 3, 0x1f, 0, 0, 0},
    [FMT_UE8M0] = {8, 0, 127, 0xfe, 0, 0xff, 0},
};

/* Powers of two, no sign, no zero: rz gives the power below, rp the one above. */
static u32 encode_ue8m0(double x, u32 round, int satfinite)
{
    if (x != x) return 0xff;
    x = fabs(x);
    if (isinf(x)) return satfinite ? 0xfe : 0xff;
    if (x == 0) return 0;
    int exponent;
    double m = frexp(x, &exponent); /* m in [0.5, 1) */
    exponent -= 1;
    if (round == RP && m > 0.5) exponent += 1;
    if (exponent < -127) return 0;
    if (exponent > 127) return satfinite ? 0xfe : 0xff;
    return (u32)(exponent + 127);
}

static u32 overflow_code(const FormatInfo *f, u32 sign, u32 round, int satfinite)
{
    int inward = round == RZ || (round == RM && !sign) || (round == RP && sign);
    if (satfinite || inward) return f->max;
    return f->inf ? f->inf : f->nan ? f->nan : f->max;
}

u32 encode_float(double x, int format, u32 round, int satfinite, u32 random, u32 random_bits)
{
    const FormatInfo *f = &format_info[format];
    if (format == FMT_UE8M0) return encode_ue8m0(x, round, satfinite);
    u64 b = bits_of64(x);
    u32 sign = (u32)(b >> 63), code;
    if (x != x) /* NaN has no sign; formats without one give +max */
        return (f->nan ? f->nan : f->max) << f->shift;
    if (isinf(x)) code = satfinite || !f->inf ? (satfinite || !f->nan ? f->max : f->nan) : f->inf;
    else if (x == 0) code = 0;
    else {
        int exponent = (int)(b >> 52 & 0x7ff);
        u64 sig = b & ((1ull << 52) - 1);
        if (exponent) sig |= 1ull << 52;
        else exponent = 1;
        u32 lead = (u32)__builtin_clzll(sig);
        sig <<= lead;
        exponent = exponent - 1023 + 11 - (int)lead; /* of the leading bit, now bit 63 */
        int least = 1 - f->bias, subnormal = exponent < least;
        u32 drop = 63u - f->mantissa + (u32)(subnormal ? least - exponent : 0);
        u64 kept = drop > 63 ? 0 : sig >> drop, up;
        u64 rest = drop > 127 ? 1 : drop > 64 ? sig >> (drop - 64) | 1 : drop == 64 ? sig : sig << (64 - drop);
        /* rest: the discarded bits, left-aligned, with a sticky last one */
        const u64 half = 1ull << 63;
        switch (round) {
        case RN: up = rest > half || (rest == half && kept & 1); break;
        case RNA: up = rest >= half; break;
        case RZ: up = 0; break;
        case RM: up = sign && rest; break;
        case RP: up = !sign && rest; break;
        default: up = ((rest >> (64 - random_bits)) + random) >> random_bits; /* stochastic */
        }
        code = (u32)(kept + up);
        if (!subnormal) code += (u32)(exponent + f->bias - 1) << f->mantissa; /* kept has the implicit bit */
        if (exponent > f->bias + 1 || code > f->max) code = overflow_code(f, sign, round, satfinite);
    }
    return (code | sign << (f->bits - f->shift - 1)) << f->shift;
}

double decode_float(u32 code, int format)
{
    const FormatInfo *f = &format_info[format];
    if (format == FMT_UE8M0) return code == 0xff ? NAN : ldexp(1.0, (int)code - 127);
    if (format == FMT_F32) return f32_of(code);
    code >>= f->shift;
    u32 top = f->bits - f->shift - 1u, sign = code >> top & 1, magnitude = code & ((1u << top) - 1);
    double value;
    if (f->inf && magnitude >= f->inf) value = magnitude == f->inf ? (double)INFINITY : (double)NAN;
    else if (f->nan && magnitude == f->nan) value = NAN;
    else {
        int exponent = (int)(magnitude >> f->mantissa);
        u32 fraction = magnitude & ((1u << f->mantissa) - 1);
        value = exponent ? ldexp(1.0 + ldexp(fraction, -f->mantissa), exponent - f->bias)
                         : ldexp(fraction, 1 - f->bias - f->mantissa);
    }
    return sign ? -value : value;
}

u32 f32_to_half(float x, u32 round) { return encode_float(x, FMT_F16, round, 0, 0, 0); }
u32 f32_to_bf16(float x, u32 round) { return encode_float(x, FMT_BF16, round, 0, 0, 0); }
u32 f64_to_half(double x) { return encode_float(x, FMT_F16, RN, 0, 0, 0); }
u32 f64_to_bf16(double x) { return encode_float(x, FMT_BF16, RN, 0, 0, 0); }
float half_to_f32(u32 h) { return half_to_float(h); }

/* ---- integers.  mod: [7:0] source bits, [15:8] destination bits, 1<<16 source signed, 1<<17 destination signed,
 * 1<<18 saturate */
static i64 load_int(const Machine *m, const Warp *w, i32 s, u32 bits, int is_signed, int l)
{
    u64 v = bits == 64 ? src64(m, w, s)[l] : src32(m, w, s)[l];
    if (bits == 64) return (i64)v;
    v &= (1ull << bits) - 1;
    return is_signed && v >> (bits - 1) & 1 ? (i64)(v | ~0ull << bits) : (i64)v;
}
static void store_int(const Warp *w, i32 d, u32 bits, u64 value, int l)
{
    if (bits == 64) dst64(w, d)[l] = value;
    else dst32(w, d)[l] = (u32)value; /* narrower results: the caller extends to the register's width */
}
int op_CVT_INT(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 from = ins->mod & 0xff, to = ins->mod >> 8 & 0xff, reg = ins->aux;
    int from_signed = ins->mod >> 16 & 1, to_signed = ins->mod >> 17 & 1, sat = ins->mod >> 18 & 1;
    FOR_ACTIVE(mask) {
        i64 v = load_int(m, w, ins->a[1], from, from_signed, l);
        if (sat) {
            int huge = !from_signed && from == 64 && v < 0; /* an unsigned 64-bit value beyond i64 */
            i64 high = to == 64 ? (to_signed ? INT64_MAX : -1) : (i64)((1ull << (to - to_signed)) - 1);
            i64 low = to_signed ? (to == 64 ? INT64_MIN : -(1ll << (to - 1))) : 0;
            if (huge) v = high;
            else if (v < low) v = low;
            else if (to < 64 && v > high) v = high;
        }
        u64 r = (u64)v;
        if (to < 64) {
            r &= (1ull << to) - 1;
            if (to_signed && r >> (to - 1) & 1) r |= ~0ull << to;
        }
        store_int(w, ins->a[0], reg, reg == 16 ? (r & 0xffff) : r, (int)l);
    }
    return EX_NEXT;
}
/* cvt.pack: args d a b [c]; mod: destination bits, 1<<8 destination signed, 1<<9 a and b signed: both saturated, a above b,
 * c shifted in above them */
static i64 clamp_to(i64 v, u32 bits, u32 to_signed)
{
    i64 high = to_signed ? (1ll << (bits - 1)) - 1 : (1ll << bits) - 1, low = to_signed ? -(1ll << (bits - 1)) : 0;
    return v < low ? low : v > high ? high : v;
}
int op_CVT_PACK_INT(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 bits = ins->mod & 0xff, to_signed = ins->mod >> 8 & 1, from_signed = ins->mod >> 9 & 1, keep = (1u << bits) - 1;
    const u32 *A = SRC(u32, 1), *B = SRC(u32, 2), *C = ins->nargs > 3 ? SRC(u32, 3) : 0;
    FOR_ACTIVE(mask) {
        i64 a = from_signed ? (i64)(i32)A[l] : (i64)A[l], b = from_signed ? (i64)(i32)B[l] : (i64)B[l];
        u64 high = C ? (u64)C[l] << 2 * bits : 0;
        DST(u32, 0)[l] = (u32)high | ((u32)clamp_to(a, bits, to_signed) & keep) << bits | ((u32)clamp_to(b, bits, to_signed) & keep);
    }
    return EX_NEXT;
}
OP_1(CVT_U64_U32, u64, u32, a)
OP_1(CVT_S64_S32, i64, i32, a)
OP_1(CVT_U32_U64, u32, u64, a)

/* ---- float -> integer.  mod as above with source format in [27:24], rounding in [22:20], 1<<23 ftz */
static double load_float(const Machine *m, const Warp *w, i32 s, u32 format, u32 l)
{
    switch (format) {
    case FMT_F64: return ((const double *)src64(m, w, s))[l];
    case FMT_F32: return ((const float *)src32(m, w, s))[l];
    case FMT_F16: return half_to_float(src32(m, w, s)[l] & 0xffff);
    case FMT_BF16: return bf16_to_f32(src32(m, w, s)[l] & 0xffff);
    default: return decode_float(src32(m, w, s)[l], (int)format);
    }
}
static double to_integral(double x, u32 round)
{
    switch (round) {
    case RN: return nearbyint(x);
    case RZ: return trunc(x);
    case RM: return floor(x);
    default: return ceil(x);
    }
}
int op_CVT_F2I(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 format = ins->mod >> 24 & 0xf, to = ins->mod >> 8 & 0xff, round = ins->mod >> 20 & 7;
    int to_signed = ins->mod >> 17 & 1;
    FOR_ACTIVE(mask) {
        double x = load_float(m, w, ins->a[1], format, l);
        if (ins->mod >> 23 & 1) x = flush((float)x);
        u64 r;
        if (x != x) r = format == FMT_F64 || to == 64 ? 1ull << (to - 1) : 0;
        else {
            x = to_integral(x, round);
            double high = ldexp(1.0, (int)to - to_signed), low = to_signed ? -ldexp(1.0, (int)to - 1) : 0.0;
            if (x >= high) r = to_signed ? (1ull << (to - 1)) - 1 : to == 64 ? ~0ull : (1ull << to) - 1;
            else if (x < low) r = to_signed ? 1ull << (to - 1) : 0;
            else r = to_signed ? (u64)(i64)x : (u64)x;
        }
        if (to < 64) {
            r &= (1ull << to) - 1;
            if (to_signed && r >> (to - 1) & 1) r |= ~0ull << to;
        }
        store_int(w, ins->a[0], ins->aux, ins->aux == 16 ? (r & 0xffff) : r, (int)l);
    }
    return EX_NEXT;
}

/* ---- integer -> float.  mod: source bits, 1<<16 signed, rounding [22:20], 1<<23 sat, destination format [27:24] */
static double int_to_odd(i64 v, int is_signed) /* a double with a sticky last bit */
{
    int negative = is_signed && v < 0;
    u64 magnitude = negative ? 0 - (u64)v : (u64)v;
    if (magnitude >> 53) { /* fold the low bits into a sticky one: still more than any target keeps but fp64 */
        u64 low = magnitude & 0x7ff;
        magnitude = (magnitude & ~0x7ffull) | (low ? 0x800 : 0);
    }
    double x = (double)magnitude;
    return negative ? -x : x;
}
static double int_to_double(i64 v, int is_signed, u32 round)
{
    double near = is_signed ? (double)v : (double)(u64)v;
    if (round == RN) return near;
    __int128 exact = is_signed ? (__int128)v : (__int128)(u64)v, got = (__int128)near;
    if (got == exact) return near;
    int want_below = round == RM || (round == RZ && exact > 0);
    if (want_below && got > exact) return nextafter(near, -INFINITY);
    if (!want_below && got < exact) return nextafter(near, INFINITY);
    return near;
}
int op_CVT_I2F(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 from = ins->mod & 0xff, format = ins->mod >> 24 & 0xf, round = ins->mod >> 20 & 7;
    int from_signed = ins->mod >> 16 & 1, sat = ins->mod >> 23 & 1;
    FOR_ACTIVE(mask) {
        i64 v = load_int(m, w, ins->a[1], from, from_signed, (int)l);
        if (format == FMT_F64) ((double *)dst64(w, ins->a[0]))[l] = int_to_double(v, from_signed, round);
        else {
            double x = int_to_odd(v, from_signed);
            if (sat) x = x < 0 ? 0 : x > 1 ? 1 : x;
            dst32(w, ins->a[0])[l] = encode_float(x, (int)format, round, 0, 0, 0);
        }
    }
    return EX_NEXT;
}
OP_1(CVT_F32_S32, float, i32, (float)a)
OP_1(CVT_F32_U32, float, u32, (float)a)

/* ---- float -> float, one value.  mod: MOD_* bits, source format [19:16], destination [23:20], 1<<24 to integral */
static double limit(double x, u32 mod)
{
    if (mod & MOD_RELU) x = x != x ? x : x > 0 ? x : 0;
    if (mod & MOD_SAT) x = x > 0 ? (x < 1 ? x : 1) : 0;
    return x;
}
int op_CVT_F2F(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 from = ins->mod >> 16 & 0xf, to = ins->mod >> 20 & 0xf, mod = ins->mod;
    FOR_ACTIVE(mask) {
        double x = load_float(m, w, ins->a[1], from, l);
        if (mod & MOD_FTZ && from == FMT_F32 && to != FMT_F16) x = flush((float)x); /* f16.f32 ignores .ftz */
        if (mod >> 24 & 1) x = to_integral(x, mod & MOD_ROUND);
        x = limit(x, mod);
        if (to == FMT_F64) { ((double *)dst64(w, ins->a[0]))[l] = x; continue; }
        if (x != x && from == FMT_F64 && to == FMT_F32) { /* keeps the sign and the payload's upper bits, quieted */
            u64 b = src64(m, w, ins->a[1])[l];
            dst32(w, ins->a[0])[l] = (u32)(b >> 32 & 0x80000000u) | 0x7fc00000u | (u32)(b >> 29 & 0x3fffff);
            continue;
        }
        if (to == FMT_TF32 && x != x && (mod & MOD_ROUND) == RNA) { /* .rna truncates a NaN, .rn and .rz make it canonical */
            dst32(w, ins->a[0])[l] = src32(m, w, ins->a[1])[l] & 0xffffe000u; continue; }
        u32 r = encode_float(x, (int)to, mod & MOD_ROUND, (mod & MOD_SATFINITE) != 0, 0, 0);
        if (mod & MOD_FTZ && to == FMT_F32) r = bits_of(flush(f32_of(r)));
        dst32(w, ins->a[0])[l] = r;
    }
    return EX_NEXT;
}
OP_1(CVT_F32_F16, float, u32, canonical(half_to_float(a)))
OP_1(CVT_F16_F32, u32, float, float_to_half(a))
OP_1(CVT_F32_BF16, u32, u32, a << 16)
OP_1(CVT_BF16_F32, u32, float, float_to_bf16(a))
OP_2(CVT_F16X2_F32, u32, float, float, float_to_half(a) << 16 | float_to_half(b))
OP_2(CVT_BF16X2_F32, u32, float, float, float_to_bf16(a) << 16 | float_to_bf16(b))

/* ---- packed.  mod: MOD_* bits, source format [19:16], destination [23:20], source count in [27:24].
 * args d s0 s1 ...: s0 goes to the highest element. */
int op_CVT_PACK(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 mod = ins->mod, to = mod >> 20 & 0xf, n = mod >> 24 & 0xf, bits = format_info[to].bits;
    u32 width = n == 2 && bits > 4 && bits < 8 ? 8 : bits; /* 6-bit codes sit in bytes */
    if (bits == 6) width = 8;
    for (u32 l = 0; l < LANES; l++) {
        if (!LANE(mask, l)) continue;
        u32 out = 0;
        for (u32 i = 0; i < n; i++) {
            double x = limit(load_float(m, w, ins->a[1 + i], mod >> 16 & 0xf, l), mod);
            out = out << width | encode_float(x, (int)to, mod & MOD_ROUND, (mod & MOD_SATFINITE) != 0, 0, 0);
        }
        dst32(w, ins->a[0])[l] = out;
    }
    return EX_NEXT;
}
/* x2 of halves -> x2 of bytes or nibbles: args d s */
int op_CVT_REPACK(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 mod = ins->mod, from = mod >> 16 & 0xf, to = mod >> 20 & 0xf;
    u32 from_width = format_info[from].bits, to_width = format_info[to].bits;
    if (from_width == 6) from_width = 8;
    if (to_width == 6) to_width = 8;
    u32 from_mask = (1u << from_width) - 1, to_mask = to_width == 32 ? FULL : (1u << to_width) - 1;
    const u32 *A = SRC(u32, 1);
    u32 *D = DST(u32, 0);
    FOR_ACTIVE(mask) {
        u32 out = 0;
        for (u32 i = 0; i < 2; i++) {
            double x = limit(decode_float(A[l] >> from_width * i & from_mask, (int)from), mod);
            u32 r = encode_float(x, (int)to, mod & MOD_ROUND, (mod & MOD_SATFINITE) != 0, 0, 0);
            out |= (r & to_mask) << to_width * i;
        }
        D[l] = out;
    }
    return EX_NEXT;
}

/* ---- stochastic rounding.  Four values (args d a b e f rbits): the discarded bits' top eight plus a random byte.
 * Which byte serves which element is what was probed on sm_103a: element 0 (f, lowest) byte 2, element 1 byte 0 with
 * its bits reversed, element 2 byte 3, element 3 byte 1 reversed.  Two halves (args d a b rbits): the upper 16 bits
 * serve a, the lower ones b; fp16 uses 13 of them. */
static u32 reverse_byte(u32 b)
{
    b = (b & 0xf0) >> 4 | (b & 0x0f) << 4;
    b = (b & 0xcc) >> 2 | (b & 0x33) << 2;
    return (b & 0xaa) >> 1 | (b & 0x55) << 1;
}
int op_CVT_RS4(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 mod = ins->mod, to = mod >> 20 & 0xf, width = format_info[to].bits == 6 ? 8 : format_info[to].bits;
    const u32 *R = SRC(u32, 5);
    u32 *D = DST(u32, 0);
    FOR_ACTIVE(mask) {
        u32 r = R[l], out = 0;
        u32 bytes[4] = {r >> 16 & 0xff, reverse_byte(r & 0xff), r >> 24, reverse_byte(r >> 8 & 0xff)};
        for (u32 i = 0; i < 4; i++) {
            double x = limit(SRC(float, 4 - i)[l], mod);
            out |= encode_float(x, (int)to, RS, 1, bytes[i], 8) << width * i;
        }
        D[l] = out;
    }
    return EX_NEXT;
}
int op_CVT_RS2(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 mod = ins->mod, to = mod >> 20 & 0xf, bits = to == FMT_F16 ? 13 : 16, keep = (1u << bits) - 1;
    int satfinite = (mod & MOD_SATFINITE) != 0;
    const float *A = SRC(float, 1), *B = SRC(float, 2);
    const u32 *R = SRC(u32, 3);
    u32 *D = DST(u32, 0);
    FOR_ACTIVE(mask)
        D[l] = encode_float(limit(A[l], mod), (int)to, RS, satfinite, R[l] >> 16 & keep, bits) << 16 |
               encode_float(limit(B[l], mod), (int)to, RS, satfinite, R[l] & keep, bits);
    return EX_NEXT;
}
