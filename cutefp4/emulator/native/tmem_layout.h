/* Tensor memory: 128 lanes x 512 columns of 32 bits, and the maps between it and registers, matrices and shared memory.
 *
 * Addresses: column in bits 0-15, lane in bits 16-29; bits 30-31 of a scale-factor address name the byte of the word.
 */
#ifndef CUTEFP4_TMEM_LAYOUT_H
#define CUTEFP4_TMEM_LAYOUT_H

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

enum { TMEM_LANES = 128, TMEM_COLUMNS = 512 };

static inline uint32_t tmem_column(uint32_t address) { return address & 0xffff; }
static inline uint32_t tmem_lane(uint32_t address) { return address >> 16 & 0x3fff; }

/* tcgen05.ld / st: which cell (relative to the instruction's address) register `reg` of thread `thread` names.
 *   32x32b   lane t, column r                          16x64b  lane (t & 1) * 8 + t / 4, column (t >> 1 & 1) + 2 r
 *   16x128b  lane t / 4 + 8 (r & 1), column (t & 3) + 4 (r / 2)
 *   16x256b  lane t / 4 + 8 (r / 2 & 1), column 2 (t & 3) + (r & 1) + 8 (r / 4)
 *   16x32bx2 lane t & 15, column r + (t >> 4) * split */
enum LdstShape { SHAPE_32X32B, SHAPE_16X64B, SHAPE_16X128B, SHAPE_16X256B, SHAPE_16X32BX2 };
EXPORT int ldst_registers(int shape, int repeat);
EXPORT int ldst_columns(int shape, int repeat); /* columns from the address on, without the split of 16x32bx2 */
EXPORT void ldst_cell(int shape, int split, int thread, int reg, uint32_t *lane, uint32_t *column);

/* Accumulator and A operand of tcgen05.mma: where row r, column n of one CTA's part lies (relative to the address).
 * MAP_ROWS: lane = r (M = 128 of one CTA, or 256 of two). MAP_HALF: lane = r % 16 + 32 (r / 16) (M = 64).
 * MAP_2X2: lane = r + 64 (n >= N/2), column n % (N/2) (M = 128 over two CTAs: 64 rows each). */
enum DataMap { MAP_ROWS, MAP_HALF, MAP_2X2 };
EXPORT int data_map(int m, int cta_group, int *rows_per_cta);
static inline uint32_t map_lane(int map, uint32_t row) {
    return map == MAP_HALF ? row % 16 + 32 * (row / 16) : row;
}

/* tcgen05.cp: source rows x bytes, and which lanes (relative) row r is written to; returns the number of lanes. */
enum CpShape { CP_128X256B, CP_4X256B, CP_128X128B, CP_64X128B_02_13, CP_64X128B_01_23, CP_32X128B };
EXPORT void cp_extent(int shape, int *rows, int *row_bytes);
EXPORT int cp_lanes(int shape, int row, uint32_t lanes[4]);

#endif
