/* clusterlaunchcontrol: a running cluster takes the work of one that has not been launched.
 *
 * The 16-byte response is opaque to kernels; here it is the first CTA's x, y, z and a word that is 1 if a cluster was
 * cancelled.
 */
#include <string.h>

#include "engines.h"

enum { RESPONSE_BYTES = 16 };

/* u[0] response offset, u[1] barrier offset, u[2] CTA mask, u[8..9] response, u[10 + rank] claims */
static int cancel_step(Machine *m, AsyncOp *op) {
    Cluster *cl = op->cta->cluster;
    u32 response[4] = {0, 0, 0, 0};
    const Launch *l = m->launch;
    if (op->phase == 0) {
        if (m->next_cluster < m->n_total_clusters) {
            u64 index = m->next_cluster++;
            u32 per[3];
            for (int i = 0; i < 3; i++) per[i] = l->grid[i] / l->cluster[i];
            response[0] = (u32)(index % per[0]) * l->cluster[0];
            response[1] = (u32)(index / per[0] % per[1]) * l->cluster[1];
            response[2] = (u32)(index / per[0] / per[1]) * l->cluster[2];
            response[3] = 1;
        }
        memcpy(&op->u[8], response, RESPONSE_BYTES);
        return ASYNC_MORE;
    }
    for (u32 rank = 0; rank < cl->size; rank++) {
        if (!(op->u[2] >> rank & 1)) continue;
        Cta *cta = cl->ctas[rank];
        memcpy(cta->smem + op->u[0], &op->u[8], RESPONSE_BYTES);
        shadow_async_done(m, op, cta, (u32)op->u[0], RESPONSE_BYTES, ACCESS_WRITE);
        mbar_complete_tx(m, op->warp, op->ins, op->lane, cta, (u32)op->u[1], RESPONSE_BYTES);
        cta->pending_ops--;
    }
    event(m);
    return ASYNC_DONE;
}

/* try_cancel: response base, offset, barrier base, offset; mod bit 0: multicast to all CTAs of the cluster */
int op_CLC_TRY_CANCEL(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    const i32 *args = arg_list(m, ins);
    Cluster *cl = w->cta->cluster;
    for (u32 todo = mask; todo; todo &= todo - 1) {
        u32 lane = lowest_lane(todo), off = (u32)lane_address(m, w, args, 0, lane, 0) & SMEM_OFFSET_MASK;
        u32 bar = (u32)lane_address(m, w, args, 2, lane, 0) & SMEM_OFFSET_MASK;
        u32 targets = ins->mod & 1 ? (1u << cl->size) - 1 : 1u << w->cta->rank;
        if (off & 15) return finding(m, w, ins, lane, F_MISALIGNED, off, "the response of try_cancel must be 16-byte aligned");
        AsyncOp *op = async_push(m, &w->cta->bulk, ASYNC_CLC, cancel_step, w, ins, 1u << lane);
        op->lane = (u8)lane;
        op->u[0] = off;
        op->u[1] = bar;
        op->u[2] = targets;
        for (u32 rank = 0; rank < cl->size; rank++) {
            if (!(targets >> rank & 1)) continue;
            if (!smem_ptr(m, w, ins, lane, cl->ctas[rank], off, RESPONSE_BYTES)) return EX_FATAL;
            shadow_async_issue(m, op, cl->ctas[rank], off, RESPONSE_BYTES, ACCESS_WRITE);
            cl->ctas[rank]->pending_ops++;
        }
    }
    m->progress = m->time;
    return EX_NEXT;
}

/* query_cancel.is_canceled: predicate, low half, high half of the response */
int op_CLC_IS_CANCELED(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    const i32 *args = arg_list(m, ins);
    const u64 *high = src64(m, w, args[2]);
    u32 set = 0;
    for (u32 todo = mask; todo; todo &= todo - 1)
        if (high[lowest_lane(todo)] >> 32) set |= 1u << lowest_lane(todo);
    w->preds[args[0]] = (w->preds[args[0]] & ~mask) | set;
    return EX_NEXT;
}

/* query_cancel.get_first_ctaid: one or four destinations, low half, high half; mod: dimension 0..2, or 3 for .v4 */
int op_CLC_FIRST_CTAID(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    const i32 *args = arg_list(m, ins);
    u32 n = ins->mod == 3 ? 4 : 1;
    u64 low[LANES], high[LANES];
    memcpy(low, src64(m, w, args[n]), sizeof low);
    memcpy(high, src64(m, w, args[n + 1]), sizeof high);
    for (u32 i = 0; i < n; i++) {
        u32 dim = n == 4 ? i : ins->mod, *out = dst32(w, args[i]);
        for (u32 todo = mask; todo; todo &= todo - 1) {
            u32 lane = lowest_lane(todo);
            out[lane] = dim == 0 ? (u32)low[lane] : dim == 1 ? (u32)(low[lane] >> 32) : dim == 2 ? (u32)high[lane] : 0;
        }
    }
    return EX_NEXT;
}
