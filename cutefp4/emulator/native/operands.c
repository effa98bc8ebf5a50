/* Matrix operands that wgmma and tcgen05 read from shared memory through a descriptor. */
#include <string.h>

#include "engines.h"

int operand_claim(Machine *m, AsyncOp *op, Cta *cta, const SmemDesc *d, const OperandShape *s, Claim **claim) {
    u32 chunks[MAX_CHUNKS], lo = ~0u, hi = 0;
    Segment seg[MAX_CHUNKS];
    u32 n = operand_chunks(d, s, chunks);
    for (u32 i = 0; i < n; i++) {
        if (chunks[i] < lo) lo = chunks[i];
        if (chunks[i] > hi) hi = chunks[i];
    }
    if (!smem_ptr(m, op->warp, op->ins, op->lane, cta, lo, 16) || !smem_ptr(m, op->warp, op->ins, op->lane, cta, hi, 16)) return 0;
    if (m->launch->strict) *claim = shadow_claim(m, op, cta, seg, segments_of_chunks(chunks, n, seg), ACCESS_READ);
    return 1;
}

void operand_read(const Cta *cta, const SmemDesc *d, const OperandShape *s, int panels, double *out) {
    u32 chunks[MAX_CHUNKS];
    u8 data[16 * MAX_CHUNKS];
    u32 n = operand_chunks(d, s, chunks);
    for (u32 i = 0; i < n; i++) memcpy(data + 16 * i, cta->smem + chunks[i], 16);
    operand_decode(s, data, panels, out);
}
