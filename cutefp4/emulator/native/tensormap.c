/* Decoding, patching and box geometry of tensor maps. See tensormap.h for the bit layout. */
#include "tensormap.h"

#include <string.h>

static uint64_t word(const uint8_t *bytes, int i) {
    uint64_t w;
    memcpy(&w, bytes + 8 * i, 8);
    return w;
}

static int type_bits(int type, int *smem_bits) {
    static const uint8_t bits[14] = {8, 16, 32, 32, 64, 64, 16, 32, 32, 64, 16, 4, 4, 6};
    *smem_bits = type >= MAP_U4_PADDED ? 8 : bits[type];
    return bits[type];
}

static const char *check_geometry(const TensorMap *m) {
    if (m->base & 15) return "global address is not a multiple of 16";
    for (int i = 1; i < m->rank; i++)
        if (m->stride[i] & 15) return "global stride is not a multiple of 16";
    for (int i = 0; i < m->rank; i++)
        if (m->box[i] == 0 || m->box[i] > 256) return "box dimension is outside 1..256";
    if (m->box[0] * (uint32_t)m->smem_bits % 128) return "inner box dimension is not a multiple of 16 bytes";
    uint32_t inner = m->box[0] * (uint32_t)m->smem_bits / 8;
    static const uint32_t span[5] = {0xffffffff, 32, 64, 128, 128};
    if (inner > span[m->swizzle]) return "inner box dimension is wider than the swizzle span";
    return NULL;
}

const char *tensormap_decode(const uint8_t *bytes, TensorMap *m) {
    uint64_t q1 = word(bytes, 1), q2 = word(bytes, 2), q6 = word(bytes, 6), q7 = word(bytes, 7);
    memset(m, 0, sizeof *m);
    if (q1 & 13) return "not a tiled tensor map: wrong address, or not encoded";
    m->rank = (int)(q1 >> 4 & 7) + 1;
    m->type = (int)(q1 >> 7 & 15);
    m->swizzle = (int)(q1 >> 13 & 3);
    m->round_tf32 = (int)(q1 >> 16 & 1);
    if (m->rank > 5) return "rank above 5";
    if (m->type > MAP_U6_PADDED) return "unknown element type";
    if (q1 >> 11 & 3) return "interleaved layouts are not supported";
    m->nan_fill = (int)(q1 >> 15 & 1);
    if (m->nan_fill && m->type != MAP_F16) return "out-of-bounds fill with NaN is known for f16 tensors only";
    unsigned atom = (unsigned)(q1 >> 19 & 3);
    if (atom > 1 || (atom == 1 && m->swizzle != SWZ_128B)) return "swizzle atom other than 16 bytes, or 32 bytes with 128B swizzle";
    if (atom) m->swizzle = SWZ_128B_ATOM32;
    if (q6 >> 32 & 0xffffff) return "element strides other than 1 are not supported";
    m->bits = type_bits(m->type, &m->smem_bits);
    m->base = word(bytes, 0);
    uint64_t q4 = word(bytes, 4), q5 = word(bytes, 5);
    uint64_t q3 = word(bytes, 3), strides[5] = {0, q1 >> 32, q2 & 0xffffffff, q2 >> 32, q3 & 0xffffffff};
    uint64_t dims[5] = {q4 & 0xffffffff, q4 >> 32, q5 & 0xffffffff, q5 >> 32, q6 & 0xffffffff};
    for (int i = 0; i < 5; i++) {
        m->dim[i] = i < m->rank ? dims[i] + 1 : 1;
        m->stride[i] = i && i < m->rank ? (strides[i] | (q3 >> (28 + 4 * i) & 15) << 32) * 16 : 0;
        uint64_t box = i ? q7 >> (8 * (i - 1)) & 255 : q6 >> 56;
        m->box[i] = i < m->rank ? (uint32_t)box + 1 : 1;
    }
    return check_geometry(m);
}

static void put_bits(uint8_t *bytes, int bit, int width, uint64_t value) {
    uint64_t w = word(bytes, bit / 64), mask = (width == 64 ? ~0ull : (1ull << width) - 1) << bit % 64;
    w = (w & ~mask) | (value << bit % 64 & mask);
    memcpy(bytes + bit / 64 * 8, &w, 8);
}

const char *tensormap_replace(uint8_t *bytes, int field, int ord, uint64_t value) {
    static const int stride_bit[4] = {96, 128, 160, 192}, dim_bit[5] = {256, 288, 320, 352, 384};
    int ordinals = field == FIELD_GLOBAL_STRIDE ? 4 : 5;
    if (ord < 0 || ord >= ordinals) return "ordinal outside the tensor's rank";
    switch (field) {
    case FIELD_GLOBAL_ADDRESS: put_bits(bytes, 0, 64, value); return NULL;
    case FIELD_RANK: put_bits(bytes, 68, 3, value); return value > 4 ? "rank above 5" : NULL;
    case FIELD_BOX_DIM:
        if (value == 0 || value > 256) return "box dimension is outside 1..256";
        put_bits(bytes, 440 + 8 * ord, 8, value - 1);
        return NULL;
    case FIELD_GLOBAL_DIM: put_bits(bytes, dim_bit[ord], 32, value - 1); return NULL;
    case FIELD_GLOBAL_STRIDE:
        if (value & 15) return "global stride is not a multiple of 16";
        put_bits(bytes, stride_bit[ord], 32, value >> 4);
        put_bits(bytes, 224 + 4 * ord, 4, value >> 36);
        return NULL;
    case FIELD_ELEMENT_STRIDE: return value == 1 ? NULL : "element strides other than 1 are not supported";
    case FIELD_INTERLEAVE: return value == 0 ? NULL : "interleaved layouts are not supported";
    case FIELD_SWIZZLE:
        if (value > 3) return "unknown swizzle mode";
        put_bits(bytes, 77, 2, value);
        return NULL;
    case FIELD_FILL: put_bits(bytes, 79, 1, value); return value > 1 ? "unknown fill mode" : NULL;
    case FIELD_SWIZZLE_ATOM:
        if (value > 1) return "unknown swizzle atom";
        put_bits(bytes, 83, 2, value);
        return NULL;
    case FIELD_ELEMTYPE: { /* PTX numbers 11 and 12 are tf32; the packed types follow them */
        static const int8_t code[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 7, 8, 11, 12, 13};
        if (value > 15) return "unknown element type";
        put_bits(bytes, 71, 4, (uint64_t)code[value]);
        put_bits(bytes, 80, 1, value == 11 || value == 12);
        return NULL;
    }
    default: return "unknown tensor-map field";
    }
}

const char *tensormap_encode(uint8_t *bytes, uint32_t type, uint32_t rank, uint64_t address, const uint64_t *dims,
                             const uint64_t *strides, const uint32_t *box, const uint32_t *element_strides,
                             uint32_t interleave, uint32_t swizzle, uint32_t fill) {
    /* The driver's numbers of element types; 11 and 12 are tf32, rounded on the way in. */
    static const int8_t code[16] = {MAP_U8, MAP_U16, MAP_U32, MAP_S32, MAP_U64, MAP_S64, MAP_F16, MAP_F32, MAP_F64, MAP_BF16,
                                    MAP_F32_FTZ, MAP_F32, MAP_F32_FTZ, MAP_U4, MAP_U4_PADDED, MAP_U6_PADDED};
    TensorMap decoded;
    const char *wrong = NULL;
    if (rank < 1 || rank > 5) return "rank outside 1..5";
    if (type > 15) return "unknown element type";
    if (swizzle > 4) return "swizzle atom other than 16 bytes, or 32 bytes with 128B swizzle";
    if (fill > 1) return "unknown fill mode";
    memset(bytes, 0, 128);
    put_bits(bytes, 0, 64, address);
    put_bits(bytes, 68, 3, rank - 1);
    put_bits(bytes, 71, 4, (uint64_t)code[type]);
    put_bits(bytes, 77, 2, swizzle > 3 ? 3 : swizzle);
    put_bits(bytes, 79, 1, fill);
    put_bits(bytes, 80, 1, type == 11 || type == 12);
    put_bits(bytes, 83, 2, swizzle > 3);
    for (int i = 0; i < (int)rank && !wrong; i++) {
        if (dims[i] == 0 || dims[i] > 1ull << 32) wrong = "global dimension is outside 1..2^32";
        else if (i && strides[i - 1] >> 40) wrong = "global stride is 2^40 bytes or more";
        else if (!(wrong = tensormap_replace(bytes, FIELD_BOX_DIM, i, box[i])))
            wrong = tensormap_replace(bytes, FIELD_ELEMENT_STRIDE, i, element_strides[i]);
        tensormap_replace(bytes, FIELD_GLOBAL_DIM, i, dims[i]);
        if (i && !wrong) wrong = tensormap_replace(bytes, FIELD_GLOBAL_STRIDE, i - 1, strides[i - 1]);
    }
    if (!wrong) wrong = tensormap_replace(bytes, FIELD_INTERLEAVE, 0, interleave);
    if (!wrong) wrong = tensormap_decode(bytes, &decoded);
    if (wrong) return wrong;
    /* What the driver notes besides: bytes of a box, and where it must start in shared memory. */
    put_bits(bytes, 512, 64, box_transaction_bytes(&decoded));
    put_bits(bytes, 576, 64, swizzle > 3 ? 1024 : swizzle ? 128u << swizzle : 16);
    return NULL;
}

uint32_t box_rows(const TensorMap *m) { return m->box[1] * m->box[2] * m->box[3] * m->box[4]; }
uint32_t box_row_bytes(const TensorMap *m) { return m->box[0] * (uint32_t)m->smem_bits / 8; }
uint32_t box_row_pitch(const TensorMap *m) {
    static const uint8_t span[5] = {0, 32, 64, 128, 128};
    return m->swizzle == SWZ_NONE ? box_row_bytes(m) : span[m->swizzle];
}
uint32_t box_bytes(const TensorMap *m) { return box_rows(m) * box_row_bytes(m); }
uint32_t box_transaction_bytes(const TensorMap *m) { return box_rows(m) * (m->box[0] * (uint32_t)m->bits / 8); }

void box_row(const TensorMap *m, const int32_t *coord, uint32_t row, BoxRow *out) {
    uint64_t addr = m->base;
    out->first = out->count = 0;
    out->gaddr = 0;
    for (int i = 1; i < m->rank; i++) {
        int64_t c = (int64_t)coord[i] + row % m->box[i];
        row /= m->box[i];
        if (c < 0 || (uint64_t)c >= m->dim[i]) return;
        addr += (uint64_t)c * m->stride[i];
    }
    int64_t lo = coord[0], hi = lo + m->box[0];
    int64_t from = lo < 0 ? 0 : lo, to = hi > (int64_t)m->dim[0] ? (int64_t)m->dim[0] : hi;
    if (from >= to) return;
    out->first = (uint32_t)(from - lo);
    out->count = (uint32_t)(to - from);
    out->gaddr = addr + (uint64_t)from * (uint32_t)m->bits / 8;
}

/* Padded types keep 16 elements in 16 bytes: 8 (or 12) bytes of data, then padding. */
static void expand_groups(const TensorMap *m, const BoxRow *row, const uint8_t *packed, uint8_t *out) {
    uint32_t data = 2 * (uint32_t)m->bits;
    for (uint32_t e = 0; e < row->count; e += 16) {
        uint32_t left = row->count - e, bytes = left < 16 ? (left * (uint32_t)m->bits + 7) / 8 : data;
        memcpy(out + row->first + e, packed + e / 16 * data, bytes);
    }
}

void box_row_expand(const TensorMap *m, const BoxRow *row, const uint8_t *packed, uint8_t *out) {
    memset(out, 0, box_row_bytes(m));
    if (m->nan_fill) /* the pattern an H200 writes */
        for (uint32_t i = 0; i < m->box[0]; i++) memcpy(out + 2 * i, "\xf7\x7f", 2);
    if (!row->count) return;
    if (m->type >= MAP_U4_PADDED) {
        expand_groups(m, row, packed, out);
        return;
    }
    uint32_t bits = (uint32_t)m->bits;
    memcpy(out + row->first * bits / 8, packed, (row->count * bits + 7) / 8);
    if (!m->round_tf32) return;
    for (uint32_t i = 0; i < row->count; i++) { /* round to nearest, ties to even, at 10 mantissa bits */
        uint32_t w;
        memcpy(&w, out + 4 * (row->first + i), 4);
        if ((w & 0x7f800000) != 0x7f800000) w = (w + 0xfff + (w >> 13 & 1)) & 0xffffe000;
        memcpy(out + 4 * (row->first + i), &w, 4);
    }
}

void box_row_pack(const TensorMap *m, const BoxRow *row, const uint8_t *smem_row, uint8_t *packed) {
    uint32_t bits = (uint32_t)m->bits;
    if (m->type < MAP_U4_PADDED) {
        memcpy(packed, smem_row + row->first * bits / 8, (row->count * bits + 7) / 8);
        return;
    }
    uint32_t data = 2 * bits;
    for (uint32_t e = 0; e < row->count; e += 16) memcpy(packed + e / 16 * data, smem_row + row->first + e, data);
}
