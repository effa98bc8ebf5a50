/* Matrix and instruction descriptors of wgmma and tcgen05. See descriptors.h for the formulas. */
#include "descriptors.h"

#include <string.h>

static void common_fields(uint64_t bits, SmemDesc *out) {
    out->start = (uint32_t)(bits & 0x3fff) << 4;
    out->lbo = (uint32_t)(bits >> 16 & 0x3fff) << 4;
    out->sbo = (uint32_t)(bits >> 32 & 0x3fff) << 4;
}

const char *smem_desc_decode_wgmma(uint64_t bits, SmemDesc *out) {
    static const uint8_t swizzle[4] = {SWZ_NONE, SWZ_128B, SWZ_64B, SWZ_32B};
    common_fields(bits, out);
    out->swizzle = swizzle[bits >> 62];
    return bits >> 49 & 7 ? "base offset other than 0 (operand not aligned to its swizzle pattern) is not supported" : NULL;
}

const char *smem_desc_decode_tcgen05(uint64_t bits, SmemDesc *out) {
    static const int8_t swizzle[8] = {SWZ_NONE, SWZ_128B_ATOM32, SWZ_128B, -1, SWZ_64B, -1, SWZ_32B, -1};
    common_fields(bits, out);
    if ((bits >> 46 & 7) != 1) return "bits 46-48 are not 0b001: not a tcgen05 descriptor";
    if (bits >> 49 & 7) return "base offset other than 0 (operand not aligned to its swizzle pattern) is not supported";
    if (bits >> 52 & 1) return "absolute leading-dimension addresses are not supported";
    if (swizzle[bits >> 61] < 0) return "unknown swizzle mode";
    out->swizzle = swizzle[bits >> 61];
    return NULL;
}

static const uint8_t SPAN_CHUNKS[5] = {1, 2, 4, 8, 8}; /* swizzle span in 16-byte chunks */

static uint32_t k_major_chunk(const SmemDesc *d, uint32_t row, uint32_t c) {
    uint32_t width = SPAN_CHUNKS[d->swizzle] * 16u;
    return (row % 8) * width + (row / 8) * d->sbo + c * (d->swizzle == SWZ_NONE ? d->lbo : 16u);
}

static uint32_t mn_major_chunk(const SmemDesc *d, uint32_t mc, uint32_t k) {
    if (d->swizzle == SWZ_NONE) return mc * d->sbo + (k % 8) * 16 + (k / 8) * d->lbo;
    uint32_t span = SPAN_CHUNKS[d->swizzle], rows = d->swizzle == SWZ_128B_ATOM32 ? 4 : 8;
    return (mc % span) * 16 + (mc / span) * d->lbo + (k % rows) * span * 16 + (k / rows) * d->sbo;
}

/* bytes that k elements take in an operand row: a padded or byte-wide element counts one byte */
static uint32_t row_bytes(const OperandShape *s) {
    return s->packing == PACK_DENSE ? s->k * (uint32_t)elem_bits(s->type) / 8 : s->k;
}

static uint32_t chunk_elements(const OperandShape *s) {
    return s->packing == PACK_DENSE ? 128u / (uint32_t)elem_bits(s->type) : 16u;
}

uint32_t operand_chunks(const SmemDesc *d, const OperandShape *s, uint32_t *chunks) {
    uint32_t n = 0;
    if (s->mn_major) {
        uint32_t per_k = s->rows / chunk_elements(s);
        for (uint32_t k = 0; k < s->k; k++)
            for (uint32_t mc = 0; mc < per_k; mc++)
                chunks[n++] = swizzle_address(d->start + mn_major_chunk(d, mc + s->first / chunk_elements(s), k), d->swizzle);
        return n;
    }
    uint32_t per_row = row_bytes(s) / 16;
    for (uint32_t r = 0; r < s->rows; r++)
        for (uint32_t c = 0; c < per_row; c++)
            chunks[n++] = swizzle_address(d->start + k_major_chunk(d, r + s->first, c), d->swizzle);
    return n;
}

static void decode_mn_major(const OperandShape *s, const uint8_t *data, int panels, double *out) {
    uint32_t t = chunk_elements(s), per_k = s->rows / t, part = t < 8 ? t : 8;
    for (uint32_t k = 0; k < s->k; k++)
        for (uint32_t mc = 0; mc < per_k; mc++) {
            const uint8_t *chunk = data + 16 * (k * per_k + mc);
            uint32_t row = mc * t;
            if (!panels) {
                decode_elems(s->type, s->packing, chunk, (int)t, out + row * s->k + k, (ptrdiff_t)s->k);
                continue;
            }
            for (uint32_t i = 0; i < t; i += part)
                decode_elems(s->type, s->packing, chunk + i * 16 / t, (int)part,
                             out + (row + i) / 8 * 8 * s->k + k * 8 + (row + i) % 8, 1);
        }
}

void operand_decode(const OperandShape *s, const uint8_t *data, int panels, double *out) {
    if (s->mn_major) {
        decode_mn_major(s, data, panels, out);
        return;
    }
    uint32_t bytes = row_bytes(s);
    for (uint32_t r = 0; r < s->rows; r++) {
        double *to = panels ? out + r / 8 * 8 * s->k + r % 8 : out + r * s->k;
        decode_elems(s->type, s->packing, data + r * bytes, (int)s->k, to, panels ? 8 : 1);
    }
}

static int f8f6f4_type(unsigned code) {
    static const int8_t types[8] = {EL_E4M3, EL_E5M2, -1, EL_E2M3, EL_E3M2, EL_E2M1, -1, -1};
    return types[code];
}

static const char *element_types(int kind, unsigned a, unsigned b, InstrDesc *d) {
    switch (kind) {
    case KIND_F16:
        if (a > 1 || b > 1) return "kind::f16 takes f16 (0) or bf16 (1) operands";
        d->a_type = a ? EL_BF16 : EL_F16;
        d->b_type = b ? EL_BF16 : EL_F16;
        return NULL;
    case KIND_TF32:
        if (a != 2 || b != 2) return "kind::tf32 takes tf32 (2) operands";
        d->a_type = d->b_type = EL_TF32;
        return NULL;
    case KIND_I8:
        if (a > 1 || b > 1) return "kind::i8 takes u8 (0) or s8 (1) operands";
        d->a_type = a ? EL_S8 : EL_U8;
        d->b_type = b ? EL_S8 : EL_U8;
        return NULL;
    case KIND_F8F6F4: case KIND_MXF8F6F4:
        d->a_type = f8f6f4_type(a);
        d->b_type = f8f6f4_type(b);
        return d->a_type < 0 || d->b_type < 0 ? "unknown f8f6f4 operand type" : NULL;
    default:
        if (a != 1 || b != 1) return "kind::mxf4 and mxf4nvf4 take e2m1 (1) operands";
        d->a_type = d->b_type = EL_E2M1;
        return NULL;
    }
}

static const char *check_shape(int kind, int cta_group, const InstrDesc *d) {
    int scaled = kind >= KIND_MXF8F6F4, pair = cta_group == 2;
    if (d->m != 128 && d->m != (pair ? 256 : 64)) return "M must be 64 or 128 (128 or 256 with cta_group::2)";
    if (scaled && d->m == 64) return "block-scaled kinds take M = 128 (128 or 256 with cta_group::2)";
    int step = pair ? (kind == KIND_I8 ? 32 : 16) : d->m == 64 || scaled ? 8 : 16;
    if (kind == KIND_I8 && !pair) step = d->n <= 32 && d->m == 64 ? 8 : 16;
    if (d->n < step || d->n > 256 || d->n % step) return "N is outside what this kind and M accept";
    return NULL;
}

const char *instr_desc_decode(int kind, int cta_group, uint32_t bits, InstrDesc *d) {
    static const uint8_t acc[4] = {ACC_F16, ACC_F32, ACC_S32, 0xff};
    memset(d, 0, sizeof *d);
    const char *bad = element_types(kind, bits >> 7 & 7, bits >> 10 & 7, d);
    if (bad) return bad;
    if (bits >> 2 & 1) return "sparse matrices are not supported";
    d->negate_a = (int)(bits >> 13 & 1);
    d->negate_b = (int)(bits >> 14 & 1);
    d->a_mn_major = (int)(bits >> 15 & 1);
    d->b_mn_major = (int)(bits >> 16 & 1);
    d->n = (int)(bits >> 17 & 63) * 8;
    d->m = (int)(bits >> 24 & 31) * 16;
    d->packing = kind == KIND_F8F6F4 || kind == KIND_MXF8F6F4 ? PACK_ALIGN16 : PACK_DENSE;
    if ((elem_bits(d->a_type) < 8 && d->a_mn_major) || (elem_bits(d->b_type) < 8 && d->b_mn_major))
        return "operands narrower than 8 bits must be K-major";
    d->k = kind == KIND_F16 ? 16 : kind == KIND_TF32 ? 8 : kind >= KIND_MXF4 ? 64 : 32;
    if (kind >= KIND_MXF8F6F4) {
        d->acc_type = ACC_F32;
        d->scale_type = bits >> 23 & 1 ? EL_UE8M0 : EL_UE4M3;
        d->sfb_id = (int)(bits >> 4 & 3);
        d->sfa_id = (int)(bits >> 29 & 3);
        if (bits >> 31) return "K = 96 is not supported";
        if (kind != KIND_MXF4NVF4 && d->scale_type != EL_UE8M0) return "this kind takes ue8m0 scales";
    } else {
        d->acc_type = acc[bits >> 4 & 3];
        d->saturate = (int)(bits >> 3 & 1);
        int wants_s32 = kind == KIND_I8;
        if (d->acc_type == 0xff || wants_s32 != (d->acc_type == ACC_S32)) return "accumulator type does not fit the kind";
        if (kind == KIND_TF32 && d->acc_type != ACC_F32) return "kind::tf32 accumulates in f32";
        if (bits >> 30) return "weight-stationary shifts are not supported";
    }
    return check_shape(kind, cta_group, d);
}
