/* Maps between tensor memory and registers, accumulators and copies. See tmem_layout.h for the formulas. */
#include "tmem_layout.h"

int ldst_registers(int shape, int repeat) {
    return shape == SHAPE_16X128B ? 2 * repeat : shape == SHAPE_16X256B ? 4 * repeat : repeat;
}

int ldst_columns(int shape, int repeat) {
    static const int width[5] = {1, 2, 4, 8, 1};
    return width[shape] * repeat;
}

void ldst_cell(int shape, int split, int t, int r, uint32_t *lane, uint32_t *column) {
    switch (shape) {
    case SHAPE_32X32B: *lane = (uint32_t)t; *column = (uint32_t)r; return;
    case SHAPE_16X64B: *lane = (uint32_t)((t & 1) * 8 + t / 4); *column = (uint32_t)((t >> 1 & 1) + 2 * r); return;
    case SHAPE_16X128B: *lane = (uint32_t)(t / 4 + 8 * (r & 1)); *column = (uint32_t)((t & 3) + 4 * (r >> 1)); return;
    case SHAPE_16X256B:
        *lane = (uint32_t)(t / 4 + 8 * (r >> 1 & 1));
        *column = (uint32_t)(2 * (t & 3) + (r & 1) + 8 * (r >> 2));
        return;
    default: *lane = (uint32_t)(t & 15); *column = (uint32_t)(r + (t >> 4) * split);
    }
}

int data_map(int m, int cta_group, int *rows_per_cta) {
    *rows_per_cta = m / cta_group;
    if (*rows_per_cta == 128) return MAP_ROWS;
    return cta_group == 2 ? MAP_2X2 : MAP_HALF;
}

void cp_extent(int shape, int *rows, int *row_bytes) {
    static const uint8_t count[6] = {128, 4, 128, 64, 64, 32};
    *rows = count[shape];
    *row_bytes = shape <= CP_4X256B ? 32 : 16;
}

int cp_lanes(int shape, int row, uint32_t lanes[4]) {
    uint32_t r = (uint32_t)row;
    switch (shape) {
    case CP_4X256B: lanes[0] = 32 * r; return 1;
    case CP_64X128B_02_13: lanes[0] = r; lanes[1] = r + 64; return 2;
    case CP_64X128B_01_23: lanes[0] = r % 32 + 64 * (r / 32); lanes[1] = lanes[0] + 32; return 2;
    case CP_32X128B:
        for (uint32_t i = 0; i < 4; i++) lanes[i] = r + 32 * i;
        return 4;
    default: lanes[0] = r; return 1;
    }
}
