/* CUtensorMap: the 128-byte descriptor of a TMA tensor, as bits, and the geometry of one box of it.
 *
 * Layout of the 64 bytes in use (as eight little-endian words q0..q7; the rest may hold anything):
 *   q0 global address                 q1 [6:4] rank - 1, [10:7] element type, [12:11] interleave, [14:13] swizzle (0, 32,
 *   64, 128 B), [15] fill with NaN, [16] round f32 to tf32, [20:19] swizzle atom (0: 16 B, 1: 32 B), [63:32] stride1 / 16
 *   q2 stride2 / 16, stride3 / 16     q3 [31:0] stride4 / 16, then 4 more high bits of each stride
 *   q4 dim0 - 1, dim1 - 1             q5 dim2 - 1, dim3 - 1                  q6 [31:0] dim4 - 1
 *   q6 [55:32] element strides - 1 (only 0 is accepted), [63:56] box0 - 1    q7 bytes 0..3 box1..box4 - 1
 */
#ifndef CUTEFP4_TENSORMAP_H
#define CUTEFP4_TENSORMAP_H

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

enum MapType {
    MAP_U8 = 0, MAP_U16 = 1, MAP_U32 = 2, MAP_S32 = 3, MAP_U64 = 4, MAP_S64 = 5, MAP_F16 = 6, MAP_F32 = 7,
    MAP_F32_FTZ = 8, MAP_F64 = 9, MAP_BF16 = 10, MAP_U4 = 11, MAP_U4_PADDED = 12, MAP_U6_PADDED = 13,
};

enum Swizzle { SWZ_NONE, SWZ_32B, SWZ_64B, SWZ_128B, SWZ_128B_ATOM32 };

typedef struct TensorMap {
    uint64_t base;
    uint64_t dim[5], stride[5]; /* elements; bytes (stride[0] unused) */
    uint32_t box[5];
    int rank, type, swizzle, round_tf32, nan_fill;
    int bits;       /* of one element in global memory */
    int smem_bits;  /* of one element in the box: 8 for the padded 4- and 6-bit types */
} TensorMap;

/* Field numbers of tensormap.replace, in the order of the PTX names. */
enum MapField {
    FIELD_GLOBAL_ADDRESS, FIELD_RANK, FIELD_BOX_DIM, FIELD_GLOBAL_DIM, FIELD_GLOBAL_STRIDE, FIELD_ELEMENT_STRIDE,
    FIELD_ELEMTYPE, FIELD_INTERLEAVE, FIELD_SWIZZLE, FIELD_FILL, FIELD_SWIZZLE_ATOM
};

/* Returns NULL, or what is wrong with the descriptor. */
EXPORT const char *tensormap_decode(const uint8_t *bytes, TensorMap *map);
/* Writes the 128 bytes; arguments as of the driver's cuTensorMapEncodeTiled. NULL, or why the tensor is refused. */
EXPORT const char *tensormap_encode(uint8_t *bytes, uint32_t type, uint32_t rank, uint64_t address, const uint64_t *dims,
                                    const uint64_t *strides, const uint32_t *box, const uint32_t *element_strides,
                                    uint32_t interleave, uint32_t swizzle, uint32_t fill);
/* value is the operand of the instruction; NULL, or why the value is refused. */
EXPORT const char *tensormap_replace(uint8_t *bytes, int field, int ordinal, uint64_t value);

/* One row of a box: count elements from first are inside the tensor and start at gaddr; the others read as zero. */
typedef struct BoxRow {
    uint64_t gaddr;
    uint32_t first, count;
} BoxRow;

EXPORT uint32_t box_rows(const TensorMap *map);
EXPORT uint32_t box_row_bytes(const TensorMap *map);  /* in shared memory */
EXPORT uint32_t box_bytes(const TensorMap *map);      /* all rows of the box, back to back */
/* Distance of the rows in shared memory: the swizzle width, however narrow the box is (measured on the H200). */
EXPORT uint32_t box_row_pitch(const TensorMap *map);
EXPORT uint32_t box_transaction_bytes(const TensorMap *map); /* what complete_tx counts: packed bytes of the whole box */
EXPORT void box_row(const TensorMap *map, const int32_t *coord, uint32_t row, BoxRow *out);
/* Row data between packed global bytes and the row's bytes in shared memory (before swizzling). */
EXPORT void box_row_expand(const TensorMap *map, const BoxRow *row, const uint8_t *packed, uint8_t *smem_row);
EXPORT void box_row_pack(const TensorMap *map, const BoxRow *row, const uint8_t *smem_row, uint8_t *packed);

/* Permutes an absolute shared-memory byte address. */
static inline uint32_t swizzle_address(uint32_t a, int swizzle) {
    switch (swizzle) {
    case SWZ_32B: return a ^ (a >> 3 & 0x10);
    case SWZ_64B: return a ^ (a >> 3 & 0x30);
    case SWZ_128B: return a ^ (a >> 3 & 0x70);
    case SWZ_128B_ATOM32: return a ^ (a >> 2 & 0x60);
    default: return a;
    }
}

#endif
