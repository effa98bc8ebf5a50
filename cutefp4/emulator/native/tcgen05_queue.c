/* The in-order queue of tcgen05: commit, cp and shift. mma is in tcgen05_mma.c.
 *
 * The queue of a pair lives in its even CTA. A commit arrives on its barriers after everything before it has run.
 */
#include <stdlib.h>
#include <string.h>

#include "engines.h"

AsyncOp *tcgen05_push(Machine *m, Warp *w, const Instr *ins, u32 lane, u32 cta_group, AsyncStep step) {
    Cta *leader = tcgen05_leader(w, cta_group);
    AsyncOp *op = async_push(m, &leader->engine->queue, ASYNC_TCGEN05, step, w, ins, 1u << lane);
    op->lane = (u8)lane;
    op->cta = leader;
    if (leader != w->cta) leader->pending_ops++; /* the issuer's own count keeps op->warp alive */
    return op;
}

int tcgen05_finish(Machine *m, AsyncOp *op) {
    if (op->warp->cta != op->cta) op->warp->cta->pending_ops--;
    event(m);
    return ASYNC_DONE;
}

/* ---- claims of executed operations ------------------------------------------------------------------------------- */

void tcgen05_retire(Cta *leader, Claim *claim) {
    CtaEngine *e = leader->engine;
    if (!claim) return;
    if (e->n_retired == e->cap_retired) {
        e->cap_retired = e->cap_retired ? 2 * e->cap_retired : 64;
        e->retired = realloc(e->retired, e->cap_retired * sizeof *e->retired);
    }
    e->retired[e->n_retired++] = claim;
}

void tcgen05_executed(Cta *leader, u32 cta_group, const AsyncOp *op) {
    for (u32 i = 0; i < cta_group; i++) {
        Cta *cta = leader->cluster->ctas[leader->rank + i];
        if (!cta || !cta->engine) continue;
        for (u32 k = 0; k < cta->engine->n_claims; k++)
            if (cta->engine->claims[k].owner == op) {
                cta->engine->claims[k].executed = 1;
                cta->engine->claims[k].owner = &leader->engine->queue;
            }
    }
}

static void release_executed(Machine *m, Cta *leader, u32 cta_group) {
    CtaEngine *e = leader->engine;
    for (u32 i = 0; i < e->n_retired; i++) shadow_release(m, e->retired[i]);
    e->n_retired = 0;
    for (u32 i = 0; i < cta_group; i++) {
        Cta *cta = leader->cluster->ctas[leader->rank + i];
        if (cta && cta->engine) tmem_drop(cta, &e->queue);
    }
}

/* ---- commit ------------------------------------------------------------------------------------------------------ */

/* u[0] barrier offset, u[1] CTA mask, u[2] cta_group */
static int commit_step(Machine *m, AsyncOp *op) {
    Cluster *cl = op->cta->cluster;
    release_executed(m, op->cta, (u32)op->u[2]);
    for (u32 rank = 0; rank < cl->size; rank++) {
        if (!(op->u[1] >> rank & 1)) continue;
        Cta *to = cl->ctas[rank];
        if (!to || to->exited || (!to->live_warps && to != op->warp->cta))
            finding(m, op->warp, op->ins, op->lane, F_REMOTE_EXITED, op->u[0], "tcgen05.commit arrives on an mbarrier of CTA %u of the "
                    "cluster, which has exited", rank);
        else mbar_arrive(m, op->warp, op->ins, op->lane, to, (u32)op->u[0], 1);
        if (to) to->pending_ops--;
    }
    return tcgen05_finish(m, op);
}

/* tcgen05.commit: barrier base, offset, [mask]; mod = cta_group | multicast << 2 | 64-bit address << 3 */
int op_TCGEN05_COMMIT(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    const i32 *args = arg_list(m, ins);
    u32 cta_group = ins->mod & 3;
    if (tcgen05_group(m, w, ins, cta_group) == EX_FATAL) return EX_FATAL;
    for (u32 todo = mask; todo; todo &= todo - 1) {
        u32 lane = lowest_lane(todo), addr = (u32)lane_address(m, w, args, 0, lane, ins->mod >> 3 & 1), targets;
        if (ins->mod >> 2 & 1) {
            targets = src32(m, w, args[2])[lane] & 0xffff;
            if (!targets || targets >> w->cta->cluster->size)
                return finding(m, w, ins, lane, F_TCGEN05_OPERAND, targets, "the multicast mask 0x%x is empty or names CTAs outside the "
                               "cluster", targets);
        } else {
            Cta *to = smem_cta(m, w, addr, 1);
            if (!to) return EX_FATAL;
            targets = 1u << to->rank;
        }
        AsyncOp *op = tcgen05_push(m, w, ins, lane, cta_group, commit_step);
        op->u[0] = addr & SMEM_OFFSET_MASK;
        op->u[1] = targets;
        op->u[2] = cta_group;
        for (u32 rank = 0; rank < w->cta->cluster->size; rank++)
            if (targets >> rank & 1 && w->cta->cluster->ctas[rank]) w->cta->cluster->ctas[rank]->pending_ops++;
    }
    m->progress = m->time;
    return EX_NEXT;
}

/* ---- cp ---------------------------------------------------------------------------------------------------------- */

typedef struct Cp {
    SmemDesc desc;
    u32 address, cta_group;
    int shape, rows, bytes, source; /* source: element type to unpack into bytes, or -1 */
    Claim *claim[2];
} Cp;

static u32 cp_chunks(const Cp *c, u32 *chunks) {
    OperandShape s = {.type = EL_U8, .packing = PACK_DENSE, .rows = (u32)c->rows, .k = (u32)c->bytes};
    return operand_chunks(&c->desc, &s, chunks);
}

/* 16 packed elements of 4 or 6 bits to one byte each */
static void unpack(const u8 *from, int type, u8 *to) {
    for (int i = 0; i < 16; i++) {
        if (type == EL_E2M1) to[i] = (u8)((from[i / 2] >> (4 * (i & 1)) & 15) << 2);
        else {
            u32 w = from[6 * i / 8] | (u32)from[6 * i / 8 + 1] << 8;
            to[i] = (u8)(w >> (6 * i % 8) & 0x3f);
        }
    }
}

static void cp_write(const Cp *c, Cta *cta) {
    u32 chunks[MAX_CHUNKS], lanes[4], n = 0;
    cp_chunks(c, chunks);
    CtaEngine *e = cta->engine;
    for (int r = 0; r < c->rows; r++) {
        int copies = cp_lanes(c->shape, r, lanes);
        for (int b = 0; b < c->bytes / 16; b++, n++) {
            u8 data[16];
            if (c->source < 0) memcpy(data, cta->smem + chunks[n], 16);
            else unpack(cta->smem + chunks[n], c->source, data);
            for (int i = 0; i < copies; i++) {
                u32 lane = tmem_lane(c->address) + lanes[i], col = tmem_column(c->address) + 4u * (u32)b;
                memcpy(tmem_cell(e, lane, col), data, 16);
                memset(tmem_written(e, lane, col), 1, 4);
            }
        }
    }
}

static int cp_step(Machine *m, AsyncOp *op) {
    Cp *c = op->data;
    for (u32 i = 0; i < c->cta_group; i++) {
        Cta *cta = op->cta->cluster->ctas[op->cta->rank + i];
        cp_write(c, cta);
        tcgen05_retire(op->cta, c->claim[i]);
        cta->pending_ops--;
    }
    tcgen05_executed(op->cta, c->cta_group, op);
    return tcgen05_finish(m, op);
}

static void cp_lane_bits(const Cp *c, u64 bits[2]) {
    u32 lanes[4];
    bits[0] = bits[1] = 0;
    for (int r = 0; r < c->rows; r++) {
        int copies = cp_lanes(c->shape, r, lanes);
        for (int i = 0; i < copies; i++) {
            u32 lane = tmem_lane(c->address) + lanes[i];
            bits[lane / 64 & 1] |= 1ull << lane % 64;
        }
    }
}

static int issue_cp(Machine *m, Warp *w, const Instr *ins, u32 lane) {
    const i32 *args = arg_list(m, ins);
    u32 cta_group = ins->mod & 3;
    Cta *leader = tcgen05_leader(w, cta_group);
    Cp *c = calloc(1, sizeof *c);
    c->address = (u32)lane_address(m, w, args, 0, lane, 0);
    c->cta_group = cta_group;
    c->shape = (int)(ins->mod >> 2 & 7);
    c->source = (int)(ins->mod >> 5 & 31) - 1;
    cp_extent(c->shape, &c->rows, &c->bytes);
    AsyncOp *op = tcgen05_push(m, w, ins, lane, cta_group, cp_step);
    op->data = c;
    const char *wrong = smem_desc_decode_tcgen05(src64(m, w, args[2])[lane], &c->desc);
    if (wrong) return finding(m, w, ins, lane, F_TCGEN05_OPERAND, c->address, "tcgen05.cp descriptor: %s", wrong);
    u32 col = tmem_column(c->address), base = tmem_lane(c->address), chunks[MAX_CHUNKS];
    if (base && c->shape != CP_4X256B)
        return finding(m, w, ins, lane, F_TCGEN05_OPERAND, c->address, "tcgen05.cp to lane %u: this shape starts at lane 0", base);
    TmemClaim claim = {.owner = op, .queue = &leader->engine->queue, .what = "tcgen05.cp", .col0 = col,
                       .col1 = col + (u32)c->bytes / 4, .access = ACCESS_WRITE};
    cp_lane_bits(c, claim.lanes);
    Segment *seg = malloc(MAX_CHUNKS * sizeof *seg);
    u32 n = cp_chunks(c, chunks), k = segments_of_chunks(chunks, n, seg);
    int ok = 1;
    for (u32 i = 0; ok && i < cta_group; i++) {
        Cta *cta = leader->cluster->ctas[leader->rank + i];
        for (u32 s = 0; ok && s < k; s++) ok = smem_ptr(m, w, ins, lane, cta, seg[s].off, seg[s].size) != NULL;
        ok = ok && tmem_columns_ok(m, w, ins, cta, claim.col0, claim.col1);
        if (!ok) break;
        cta->pending_ops++;
        c->claim[i] = shadow_claim(m, op, cta, seg, k, ACCESS_READ);
        tmem_claim(m, w, ins, cta, &claim);
    }
    free(seg);
    m->counters[C_TMEM_BYTES] += (u64)n * 16 * cta_group;
    return ok ? EX_NEXT : EX_FATAL;
}

/* tcgen05.cp: address, offset, descriptor; mod = cta_group | shape << 2 | (source type + 1) << 5 */
int op_TCGEN05_CP(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    if (tcgen05_group(m, w, ins, ins->mod & 3) == EX_FATAL) return EX_FATAL;
    for (u32 todo = mask; todo; todo &= todo - 1)
        if (issue_cp(m, w, ins, lowest_lane(todo)) == EX_FATAL) return EX_FATAL;
    m->progress = m->time;
    return EX_NEXT;
}

/* ---- shift ------------------------------------------------------------------------------------------------------- */

/* Moves 8 columns of every lane to the lane before it; the last lane of each 32-lane partition keeps its value, to be
 * refreshed by cp.4x256b. u[0] column, u[1] cta_group */
static int shift_step(Machine *m, AsyncOp *op) {
    for (u32 i = 0; i < op->u[1]; i++) {
        Cta *cta = op->cta->cluster->ctas[op->cta->rank + i];
        for (u32 lane = 0; lane < TMEM_LANES; lane++) {
            if (lane % 32 == 31) continue;
            memcpy(tmem_cell(cta->engine, lane, (u32)op->u[0]), tmem_cell(cta->engine, lane + 1, (u32)op->u[0]), 32);
            memcpy(tmem_written(cta->engine, lane, (u32)op->u[0]), tmem_written(cta->engine, lane + 1, (u32)op->u[0]), 8);
        }
        cta->pending_ops--;
    }
    tcgen05_executed(op->cta, (u32)op->u[1], op);
    return tcgen05_finish(m, op);
}

/* tcgen05.shift.down: address, offset; mod = cta_group */
int op_TCGEN05_SHIFT(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    const i32 *args = arg_list(m, ins);
    u32 cta_group = ins->mod, lane = lowest_lane(mask);
    if (tcgen05_group(m, w, ins, cta_group) == EX_FATAL) return EX_FATAL;
    u32 address = (u32)lane_address(m, w, args, 0, lane, 0), col = tmem_column(address);
    if (tmem_lane(address) % 32)
        return finding(m, w, ins, lane, F_TCGEN05_OPERAND, address, "tcgen05.shift takes a lane that is a multiple of 32");
    Cta *leader = tcgen05_leader(w, cta_group);
    AsyncOp *op = tcgen05_push(m, w, ins, lane, cta_group, shift_step);
    op->u[0] = col;
    op->u[1] = cta_group;
    TmemClaim claim = {.owner = op, .queue = &leader->engine->queue, .what = "tcgen05.shift", .lanes = {~0ull, ~0ull}, .col0 = col,
                       .col1 = col + 8, .access = ACCESS_WRITE};
    for (u32 i = 0; i < cta_group; i++) {
        Cta *cta = leader->cluster->ctas[leader->rank + i];
        if (!tmem_columns_ok(m, w, ins, cta, col, col + 8)) return EX_FATAL;
        cta->pending_ops++;
        tmem_claim(m, w, ins, cta, &claim);
    }
    m->progress = m->time;
    return EX_NEXT;
}

/* tcgen05.fence::before_thread_sync / ::after_thread_sync order other threads' accesses around a barrier; the
 * interpreter executes one warp instruction after another, so that nothing is left to do. */
int op_TCGEN05_FENCE(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    (void)m;
    (void)w;
    (void)ins;
    (void)mask;
    return EX_NEXT;
}
