/* cp.async, cp.async.bulk without a tensor map, cp.reduce.async.bulk, st.async, red.async. */
#include "access.h"
#include "lanes.h"
#include "shadow.h"

#include <stdlib.h>

/* ---- cp.async: args dst src size; imm: destination offset, aux: bytes of the copy, mod: 1 dst 64-bit address.
 * The source offset is folded into the address by the lowering; size < bytes zero-fills the rest. */
typedef struct CopyAsync { u32 off[LANES], n[LANES]; u64 src[LANES]; u8 data[LANES][16]; } CopyAsync;

static int step_cp_async(Machine *m, AsyncOp *op)
{
    CopyAsync *c = op->data;
    u32 bytes = op->size;
    if (op->phase == 0) {
        FOR_ACTIVE(op->mask) {
            memset(c->data[l], 0, 16);
            if (c->n[l]) memcpy(c->data[l], (const u8 *)(uintptr_t)c->src[l], c->n[l]);
        }
        return ASYNC_MORE;
    }
    FOR_ACTIVE(op->mask) {
        memcpy(op->cta->smem + c->off[l], c->data[l], bytes);
        shadow_async_done(m, op, op->cta, c->off[l], bytes, ACCESS_WRITE);
    }
    return ASYNC_DONE;
}
int op_CP_ASYNC(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 bytes = ins->aux;
    u64 dst[LANES];
    const u64 *src = SRC(u64, 1);
    const u32 *size = SRC(u32, 2);
    lane_addresses(m, w, ins->a[0], (int)(ins->mod & 1), (i64)ins->imm, dst);
    u32 left = mask;
    while (left) { /* one op per set of lanes in the same open group */
        u32 same = 0;
        FOR_ACTIVE(left) same |= (u32)(w->cpa_seq[l] == w->cpa_seq[lowest_lane(left)]) << l;
        CopyAsync *c = calloc(1, sizeof *c);
        FOR_ACTIVE(same) {
            c->off[l] = (u32)dst[l] & SMEM_OFFSET_MASK;
            c->src[l] = src[l];
            c->n[l] = size[l] < bytes ? size[l] : bytes;
            if ((c->off[l] | src[l]) & (bytes - 1)) {
                free(c);
                return finding(m, w, ins, l, F_MISALIGNED, dst[l], "cp.async of %u bytes from %#llx to shared offset %u", bytes,
                               (unsigned long long)src[l], (u32)dst[l] & SMEM_OFFSET_MASK);
            }
            if (!smem_ptr(m, w, ins, l, w->cta, c->off[l], bytes) ||
                (c->n[l] && !global_ptr(m, w, ins, l, src[l], c->n[l], 0))) { free(c); return EX_FATAL; }
            m->counters[C_ASYNC_LOAD_BYTES] += c->n[l];
        }
        AsyncOp *op = async_push(m, &w->cta->cp_async, ASYNC_CP_ASYNC, step_cp_async, w, ins, same);
        op->data = c;
        op->size = bytes;
        op->group = w->cpa_seq[lowest_lane(same)];
        FOR_ACTIVE(same) {
            if (!m->eager) memset(w->cta->smem + c->off[l], 0xd5, bytes);
            shadow_async_issue(m, op, w->cta, c->off[l], bytes, ACCESS_WRITE);
        }
        left &= ~same;
    }
    return EX_NEXT;
}
int op_CP_ASYNC_COMMIT(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    (void)m; (void)ins;
    FOR_ACTIVE(mask) w->cpa_seq[l]++;
    return EX_NEXT;
}
static u32 cp_async_pending(const Warp *w, u32 mask, u32 keep, int all)
{
    u32 n = 0;
    for (AsyncOp *op = w->cta->cp_async.head; op; op = op->next) {
        if (op->warp != w || !(op->mask & mask) || op->step != step_cp_async) continue;
        u64 open = w->cpa_seq[lowest_lane(op->mask & mask)];
        n += all || op->group + keep < open;
    }
    return n;
}
/* imm: groups that may stay pending; aux 1: wait_all */
int op_CP_ASYNC_WAIT(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    (void)m;
    if (!cp_async_pending(w, mask, (u32)ins->imm, (int)ins->aux)) return EX_NEXT;
    w->wait_what = "cp.async group";
    w->wait_arg = ins->imm;
    return EX_BLOCK;
}
/* cp.async.mbarrier.arrive: args base; mod 1 wide, 2 noinc */
static int step_cp_async_arrive(Machine *m, AsyncOp *op)
{
    for (AsyncOp *o = op->queue->head; o != op; o = o->next)
        if (o->warp == op->warp && o->mask & op->mask && o->step == step_cp_async) return ASYNC_WAIT;
    FOR_ACTIVE(op->mask) {
        u32 *off = op->data;
        if (mbar_arrive(m, op->warp, op->ins, l, op->cta, off[l], 1) == EX_FATAL) return ASYNC_WAIT;
    }
    return ASYNC_DONE;
}
int op_CP_ASYNC_ARRIVE(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u64 addr[LANES];
    lane_addresses(m, w, ins->a[0], (int)(ins->mod & 1), (i64)ins->imm, addr);
    u32 *off = calloc(LANES, sizeof *off);
    FOR_ACTIVE(mask) {
        off[l] = (u32)addr[l] & SMEM_OFFSET_MASK;
        Mbarrier *b = mbar_find(m, w, ins, l, w->cta, off[l]);
        if (!b) { free(off); return EX_FATAL; }
        if (!(ins->mod & 2)) mbar_add_pending(w->cta, b);
    }
    AsyncOp *op = async_push(m, &w->cta->cp_async, ASYNC_CP_ASYNC, step_cp_async_arrive, w, ins, mask);
    op->data = off;
    return EX_NEXT;
}

/* ---- bulk copies.  One op per lane.  u[0] destination (global address or offset), u[1] source, u[2] mbarrier offset,
 * u[3] multicast mask or byte mask, u[4] destination CTA rank, u[5] mbarrier CTA rank, u[6] op << 8 | type + 1 for reductions */
enum Direction { GLOBAL_TO_SHARED, SHARED_TO_GLOBAL, SHARED_TO_CLUSTER };

static Cta *rank_cta(const AsyncOp *op, u64 rank) { return op->cta->cluster->ctas[rank]; }

static void reduce_bytes(u8 *to, const u8 *from, u32 size, u32 op, u32 type, int in_global)
{
    u32 step = atomic_type_bytes(type);
    for (u32 i = 0; i < size; i += step) {
        u64 old = 0, value = 0;
        memcpy(&old, to + i, step);
        memcpy(&value, from + i, step);
        old = atomic_apply(op, type, old, value, in_global);
        memcpy(to + i, &old, step);
    }
}
static void deliver(const AsyncOp *op, u8 *to, const u8 *from, u32 byte_mask, int in_global)
{
    if (op->u[6]) reduce_bytes(to, from, op->size, (u32)op->u[6] >> 8, ((u32)op->u[6] & 0xff) - 1, in_global);
    else if (byte_mask == 0xffff) memcpy(to, from, op->size);
    else
        for (u32 i = 0; i < op->size; i++)
            if (byte_mask >> (i & 15) & 1) to[i] = from[i];
}
static int step_bulk_load(Machine *m, AsyncOp *op)
{
    u32 ranks = (u32)op->u[3];
    if (op->phase == 0) {
        op->data = malloc(op->size ? op->size : 1);
        memcpy(op->data, (const u8 *)(uintptr_t)op->u[1], op->size);
        return ASYNC_MORE;
    }
    if (op->phase == 1) {
        FOR_ACTIVE(ranks) {
            Cta *cta = rank_cta(op, l);
            memcpy(cta->smem + op->u[0], op->data, op->size);
            shadow_async_done(m, op, cta, (u32)op->u[0], op->size, ACCESS_WRITE);
        }
        return ASYNC_MORE;
    }
    FOR_ACTIVE(ranks) {
        Cta *cta = rank_cta(op, l), *bar = op->u[7] ? cta : rank_cta(op, op->u[5]);
        if (mbar_complete_tx(m, op->warp, op->ins, op->lane, bar, (u32)op->u[2], op->size) == EX_FATAL) return ASYNC_WAIT;
        if (cta != op->cta) cta->pending_ops--;
    }
    return ASYNC_DONE;
}
static int step_bulk_store(Machine *m, AsyncOp *op)
{
    if (op->phase == 0) {
        op->data = malloc(op->size ? op->size : 1);
        memcpy(op->data, op->cta->smem + op->u[1], op->size);
        op->reads_done = 1;
        shadow_async_done(m, op, op->cta, (u32)op->u[1], op->size, ACCESS_READ);
        return ASYNC_MORE;
    }
    deliver(op, (u8 *)(uintptr_t)op->u[0], op->data, (u32)op->u[3], 1);
    m->progress = m->time;
    return ASYNC_DONE;
}
static int step_bulk_cluster(Machine *m, AsyncOp *op)
{
    Cta *to = rank_cta(op, op->u[4]);
    if (op->phase == 0) {
        op->data = malloc(op->size ? op->size : 1);
        memcpy(op->data, op->cta->smem + op->u[1], op->size);
        op->reads_done = 1;
        shadow_async_done(m, op, op->cta, (u32)op->u[1], op->size, ACCESS_READ);
        return ASYNC_MORE;
    }
    if (op->phase == 1) {
        deliver(op, to->smem + op->u[0], op->data, 0xffff, 0);
        shadow_async_done(m, op, to, (u32)op->u[0], op->size, op->u[6] ? ACCESS_ATOMIC : ACCESS_WRITE);
        return ASYNC_MORE;
    }
    if (mbar_complete_tx(m, op->warp, op->ins, op->lane, rank_cta(op, op->u[5]), (u32)op->u[2], op->size) == EX_FATAL) return ASYNC_WAIT;
    if (to != op->cta) to->pending_ops--;
    return ASYNC_DONE;
}

static int check_bulk(Machine *m, Warp *w, const Instr *ins, u32 l, u64 dst, u64 src, u32 size)
{
    if ((dst | src | size) & 15)
        return finding(m, w, ins, l, F_TMA_OPERAND, dst,
                       "bulk copy of %u bytes from %#llx to %#llx: size and addresses must be multiples of 16", size,
                       (unsigned long long)src, (unsigned long long)dst);
    return EX_NEXT;
}
static int bulk_load(Machine *m, Warp *w, const Instr *ins, u32 l, u64 dst, u64 src, u64 bar, u32 size, u32 ranks)
{
    u32 off = (u32)dst & SMEM_OFFSET_MASK, self = w->cta->rank;
    int multicast = ranks != 0;
    u32 dst_rank = ins->mod & 64 ? (u32)dst >> SMEM_RANK_SHIFT : self, bar_rank = ins->mod & 64 ? (u32)bar >> SMEM_RANK_SHIFT : self;
    if (!multicast) ranks = 1u << dst_rank;
    if (!global_ptr(m, w, ins, l, src, size, 0)) return EX_FATAL;
    if (ranks >> w->cta->cluster->size)
        return finding(m, w, ins, l, F_TMA_OPERAND, ranks, "destination CTA mask %#x in a cluster of %u", ranks, w->cta->cluster->size);
    FOR_ACTIVE(ranks) {
        Cta *cta = w->cta->cluster->ctas[l];
        if (!smem_ptr(m, w, ins, 0, cta, off, size) ||
            !mbar_find(m, w, ins, 0, multicast ? cta : w->cta->cluster->ctas[bar_rank], (u32)bar & SMEM_OFFSET_MASK)) return EX_FATAL;
    }
    AsyncOp *op = async_push(m, &w->cta->bulk, ASYNC_BULK_LOAD, step_bulk_load, w, ins, 1u << l);
    op->size = size;
    op->u[0] = off;
    op->u[1] = src;
    op->u[2] = (u32)bar & SMEM_OFFSET_MASK;
    op->u[3] = ranks;
    op->u[5] = bar_rank;
    op->u[7] = (u64)multicast;
    FOR_ACTIVE(ranks) {
        Cta *cta = w->cta->cluster->ctas[l];
        if (cta != w->cta) cta->pending_ops++;
        if (!m->eager) memset(cta->smem + off, 0xd5, size);
        shadow_async_issue(m, op, cta, off, size, ACCESS_WRITE);
    }
    m->counters[C_ASYNC_LOAD_BYTES] += (u64)size * (u32)__builtin_popcount(ranks);
    return EX_NEXT;
}
static int bulk_store(Machine *m, Warp *w, const Instr *ins, u32 l, u64 dst, u64 src, u32 size, u32 byte_mask)
{
    u32 off = (u32)src & SMEM_OFFSET_MASK;
    if (!smem_ptr(m, w, ins, l, w->cta, off, size) || !global_ptr(m, w, ins, l, dst, size, 1)) return EX_FATAL;
    AsyncOp *op = async_push(m, &w->cta->bulk, ASYNC_BULK_STORE, step_bulk_store, w, ins, 1u << l);
    op->size = size;
    op->u[0] = dst;
    op->u[1] = off;
    op->u[3] = byte_mask;
    op->u[6] = ins->aux;
    op->group = w->bulk_seq[l];
    shadow_async_issue(m, op, w->cta, off, size, ACCESS_READ);
    m->counters[C_ASYNC_STORE_BYTES] += size;
    return EX_NEXT;
}
static int bulk_cluster(Machine *m, Warp *w, const Instr *ins, u32 l, u64 dst, u64 src, u64 bar, u32 size)
{
    Cta *to = smem_cta(m, w, (u32)dst, 1), *bar_cta = smem_cta(m, w, (u32)bar, 1);
    u32 from = (u32)src & SMEM_OFFSET_MASK, at = (u32)dst & SMEM_OFFSET_MASK;
    if (!smem_ptr(m, w, ins, l, w->cta, from, size) || !smem_ptr(m, w, ins, l, to, at, size) || !bar_cta ||
        !mbar_find(m, w, ins, l, bar_cta, (u32)bar & SMEM_OFFSET_MASK)) return EX_FATAL;
    AsyncOp *op = async_push(m, &w->cta->bulk, ASYNC_BULK_STORE, step_bulk_cluster, w, ins, 1u << l);
    op->size = size;
    op->u[0] = at;
    op->u[1] = from;
    op->u[2] = (u32)bar & SMEM_OFFSET_MASK;
    op->u[4] = to->rank;
    op->u[5] = bar_cta->rank;
    op->u[6] = ins->aux;
    if (to != w->cta) to->pending_ops++;
    shadow_async_issue(m, op, w->cta, from, size, ACCESS_READ);
    shadow_async_issue(m, op, to, at, size, op->u[6] ? ACCESS_ATOMIC : ACCESS_WRITE);
    return EX_NEXT;
}
/* args dst src size mbar mask; mod: [1:0] direction, 4 dst 64-bit, 8 src 64-bit, 16 mbar 64-bit, 32 has mask,
 * 64 the shared destination is shared::cluster; aux: reduction (op << 8 | type + 1), 0 copy */
int op_BULK(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u64 dst[LANES], src[LANES], bar[LANES];
    lane_addresses(m, w, ins->a[0], (ins->mod & 4) != 0, 0, dst);
    lane_addresses(m, w, ins->a[1], (ins->mod & 8) != 0, 0, src);
    lane_addresses(m, w, ins->a[3], (ins->mod & 16) != 0, 0, bar);
    FOR_ACTIVE(mask) {
        u32 size = SRC(u32, 2)[l], extra = ins->mod & 32 ? SRC(u32, 4)[l] & 0xffff : 0;
        if (check_bulk(m, w, ins, l, dst[l], src[l], size) == EX_FATAL) return EX_FATAL;
        m->counters[C_TMA_INSTRUCTIONS]++;
        int did;
        if ((ins->mod & 3) == GLOBAL_TO_SHARED) did = bulk_load(m, w, ins, l, dst[l], src[l], bar[l], size, extra);
        else if ((ins->mod & 3) == SHARED_TO_GLOBAL) did = bulk_store(m, w, ins, l, dst[l], src[l], size, ins->mod & 32 ? extra : 0xffff);
        else did = bulk_cluster(m, w, ins, l, dst[l], src[l], bar[l], size);
        if (did == EX_FATAL) return EX_FATAL;
    }
    return EX_NEXT;
}
int op_BULK_COMMIT(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    (void)m; (void)ins;
    FOR_ACTIVE(mask) w->bulk_seq[l]++;
    return EX_NEXT;
}
/* imm: groups that may stay; aux 1: only their reads */
int op_BULK_WAIT(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    FOR_ACTIVE(mask)
        if (bulk_groups_pending(m, w, l, (u32)ins->imm, (int)ins->aux)) {
            w->wait_what = ins->aux ? "bulk group reads" : "bulk groups";
            w->wait_arg = ins->imm;
            return EX_BLOCK;
        }
    FOR_ACTIVE(mask) shadow_bulk_waited(m, w, l, w->bulk_seq[l] > ins->imm ? w->bulk_seq[l] - ins->imm : 1);
    return EX_NEXT;
}

/* ---- st.async / red.async: args base mbar s0 ..; aux as for bulk reductions; mod: ACC_BYTES, ACC_COUNT */
static int step_remote(Machine *m, AsyncOp *op)
{
    Cta *to = rank_cta(op, op->u[4]);
    if (op->phase == 0) {
        deliver(op, to->smem + op->u[0], (const u8 *)&op->u[8], 0xffff, 0);
        shadow_async_done(m, op, to, (u32)op->u[0], op->size, op->u[6] ? ACCESS_ATOMIC : ACCESS_WRITE);
        return ASYNC_MORE;
    }
    if (mbar_complete_tx(m, op->warp, op->ins, op->lane, rank_cta(op, op->u[5]), (u32)op->u[2], op->size) == EX_FATAL) return ASYNC_WAIT;
    if (to != op->cta) to->pending_ops--;
    return ASYNC_DONE;
}
int op_REMOTE_STORE(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    const i32 *a = arg_list(m, ins);
    u64 dst[LANES], bar[LANES];
    u32 bytes = ACC_BYTES(ins->mod), n = ACC_COUNT(ins->mod);
    lane_addresses(m, w, a[0], (int)ACC_WIDE(ins->mod), (i64)ins->imm, dst);
    lane_addresses(m, w, a[1], (int)ACC_WIDE(ins->mod), 0, bar);
    FOR_ACTIVE(mask) {
        Cta *to = smem_cta(m, w, (u32)dst[l], 1), *bar_cta = smem_cta(m, w, (u32)bar[l], 1);
        u32 at = (u32)dst[l] & SMEM_OFFSET_MASK;
        if (!smem_ptr(m, w, ins, l, to, at, bytes * n) || !bar_cta) return EX_FATAL;
        AsyncOp *op = async_push(m, &w->cta->bulk, ASYNC_REMOTE, step_remote, w, ins, 1u << l);
        op->size = bytes * n;
        op->u[0] = at;
        op->u[2] = (u32)bar[l] & SMEM_OFFSET_MASK;
        op->u[4] = to->rank;
        op->u[5] = bar_cta->rank;
        op->u[6] = ins->aux;
        for (u32 i = 0; i < n; i++) {
            u64 v = bytes == 8 ? src64(m, w, a[2 + i])[l] : src32(m, w, a[2 + i])[l];
            memcpy((u8 *)&op->u[8] + i * bytes, &v, bytes);
        }
        if (to != w->cta) to->pending_ops++;
        shadow_async_issue(m, op, to, at, op->size, op->u[6] ? ACCESS_ATOMIC : ACCESS_WRITE);
    }
    return EX_NEXT;
}
