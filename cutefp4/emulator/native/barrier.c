/* Barriers: named (bar / barrier), cluster, mbarrier; fences. */
#include "lanes.h"
#include "warp.h"

#include <stdlib.h>

/* ---- named barriers.  args [d] id count p; mod: [1:0] 0 sync 1 arrive 2 red, 4 aligned, 8 count given,
 * [5:4] reduction 0 popc 1 and 2 or, 64 p negated.  d: register for popc, predicate otherwise. */

static u32 live_threads(const Cta *cta)
{
    u32 n = 0;
    for (u32 i = 0; i < cta->n_warps; i++) n += (u32)__builtin_popcount(cta->warps[i].live);
    return n;
}
static void named_check(Machine *m, Cta *cta, NamedBarrier *b)
{
    u32 target = b->expected ? b->expected : live_threads(cta);
    if (!b->arrived || b->arrived < target) return;
    b->pred_result = b->pred_acc | (u32)(b->pred_n == b->arrived) << 31;
    b->arrived = b->expected = b->pred_acc = b->pred_n = 0;
    b->generation++;
    event(m);
}
static int named_arrive(Machine *m, Warp *w, const Instr *ins, u32 mask, u32 id, NamedBarrier *b, const u32 *count)
{
    u32 expected = ins->mod & 8 ? count[lowest_lane(mask)] : 0;
    u32 threads = ins->mod & 8 && ins->mod & 4 ? LANES : (u32)__builtin_popcount(mask);
    if (expected % LANES)
        return finding(m, w, ins, lowest_lane(mask), F_BARRIER_MISUSE, id, "barrier %u for %u threads: must be a multiple of 32", id, expected);
    if (b->arrived && b->expected != expected)
        return finding(m, w, ins, lowest_lane(mask), F_BARRIER_MISUSE, id,
                       "barrier %u is used for %u threads here and for %u by the warps that arrived at PTX line %u", id, expected,
                       b->expected, b->waiting_line);
    if (expected && b->arrived + threads > expected)
        return finding(m, w, ins, lowest_lane(mask), F_BARRIER_MISUSE, id, "barrier %u of %u threads gets %u arrivals", id, expected,
                       b->arrived + threads);
    b->expected = expected;
    b->arrived += threads;
    b->waiting_line = ins->line;
    return EX_NEXT;
}
int op_BAR(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    int kind = (int)(ins->mod & 3), has_d = kind == 2;
    const u32 *ids = SRC(u32, has_d), *count = SRC(u32, has_d + 1);
    u32 id = ids[lowest_lane(mask)];
    if (ins->mod & 4 && w->active != w->live) return EX_SYNC;
    if (id >= MAX_NAMED_BARRIERS)
        return finding(m, w, ins, lowest_lane(mask), F_BARRIER_MISUSE, id, "barrier %u: there are %d", id, MAX_NAMED_BARRIERS);
    NamedBarrier *b = &w->cta->named[id];
    Group *g = current_group(w);
    if (g->token_pc != ins->pc + 1) {
        if (named_arrive(m, w, ins, mask, id, b, count) == EX_FATAL) return EX_FATAL;
        if (has_d) {
            u32 p = w->preds[ins->a[3]];
            b->pred_acc += (u32)__builtin_popcount((ins->mod & 64 ? ~p : p) & mask);
            b->pred_n = b->pred_acc;
        }
        shadow_arrive(m, w, b);
        u64 generation = b->generation;
        named_check(m, w->cta, b);
        event(m);
        if (kind == 1) return EX_NEXT;
        g->token_pc = ins->pc + 1;
        g->token = generation;
    }
    if (b->generation == g->token) {
        w->wait_what = "named barrier";
        w->wait_addr = id;
        w->wait_arg = b->expected;
        return EX_BLOCK;
    }
    g->token_pc = 0;
    shadow_wait(m, w, b);
    if (has_d) {
        u32 votes = b->pred_result & 0x7fffffffu, all = b->pred_result >> 31, op = ins->mod >> 4 & 3;
        if (op == 0) FOR_ACTIVE(mask) DST(u32, 0)[l] = votes;
        else w->preds[ins->a[0]] = (w->preds[ins->a[0]] & ~mask) | ((op == 1 ? all : votes != 0) ? mask : 0);
    }
    return EX_NEXT;
}

/* fenced: 1 a fence has published the init, 2 a releasing cluster barrier will once it completes */
static void mbars_fenced(Cta *cta, u32 warp, u32 how)
{
    for (u32 i = 0; i < cta->n_mbars; i++)
        if (cta->mbars[i].init_warp == warp && cta->mbars[i].fenced != 1) cta->mbars[i].fenced = how;
}

/* ---- barrier.cluster.  mod: 1 wait (else arrive), 4 aligned, 8 relaxed */
static void cluster_check(Machine *m, Cluster *c)
{
    u32 arrived = 0;
    for (u32 i = 0; i < c->size; i++)
        for (u32 k = 0; k < c->ctas[i]->n_warps; k++) {
            Warp *w = &c->ctas[i]->warps[k];
            if (w->live & ~w->cluster_arrived) return;
            arrived |= w->cluster_arrived;
        }
    if (!arrived) return;
    for (u32 i = 0; i < c->size; i++)
        for (u32 k = 0; k < c->ctas[i]->n_mbars; k++)
            if (c->ctas[i]->mbars[k].fenced == 2) c->ctas[i]->mbars[k].fenced = 1;
    for (u32 i = 0; i < c->size; i++)
        for (u32 k = 0; k < c->ctas[i]->n_warps; k++) {
            Warp *w = &c->ctas[i]->warps[k];
            w->cluster_done |= w->cluster_arrived;
            w->cluster_arrived = 0;
        }
    event(m);
}
int op_BARRIER_CLUSTER(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    Cluster *c = w->cta->cluster;
    if (ins->mod & 4 && w->active != w->live) return EX_SYNC;
    if (!(ins->mod & 1)) {
        if (mask & (w->cluster_arrived | w->cluster_done))
            return finding(m, w, ins, lowest_lane(mask), F_BARRIER_MISUSE, 0, "barrier.cluster.arrive twice without a wait between");
        w->cluster_arrived |= mask;
        if (!(ins->mod & 8)) mbars_fenced(w->cta, w->index, 2);
        shadow_arrive(m, w, c);
        cluster_check(m, c);
        event(m);
        return EX_NEXT;
    }
    if (mask & ~(w->cluster_arrived | w->cluster_done))
        return finding(m, w, ins, lowest_lane(mask), F_BARRIER_MISUSE, 0, "barrier.cluster.wait without an arrive before it");
    if (mask & w->cluster_arrived) {
        w->wait_what = "cluster barrier";
        w->wait_addr = w->wait_arg = 0;
        return EX_BLOCK;
    }
    w->cluster_done &= ~mask;
    shadow_wait(m, w, c);
    return EX_NEXT;
}

void barriers_recheck(Machine *m, Cta *cta)
{
    for (u32 i = 0; i < MAX_NAMED_BARRIERS; i++)
        if (cta->named[i].arrived && !cta->named[i].expected) named_check(m, cta, &cta->named[i]);
    cluster_check(m, cta->cluster);
}
void cta_barriers_at_exit(Machine *m, Cta *cta)
{
    for (u32 i = 0; i < MAX_NAMED_BARRIERS; i++)
        if (cta->named[i].arrived)
            finding_cta(m, cta, 0, F_BARRIER_PENDING_AT_EXIT, i, "named barrier %u has %u of %u arrivals (last at PTX line %u)", i,
                        cta->named[i].arrived, cta->named[i].expected, cta->named[i].waiting_line);
    for (u32 i = 0; i < cta->n_mbars; i++) {
        Mbarrier *b = &cta->mbars[i];
        if (b->valid && (b->tx || b->pending != b->expected))
            finding_cta(m, cta, 0, F_MBARRIER_PENDING_AT_EXIT, b->offset,
                        "mbarrier at shared offset %u (init at PTX line %u) exits in phase %u with %u of %u arrivals missing, %d bytes expected",
                        b->offset, b->line, b->phase, b->pending, b->expected, b->tx);
    }
}

/* ---- mbarrier objects.  The state lives in Cta.mbars; shared memory holds a packed copy that nothing else may change. */

static void mbar_pack(Cta *cta, Mbarrier *b)
{
    b->packed = (u64)(b->phase & 1) << 63 | (u64)(b->expected & 0xfffffu) << 42 | (u64)(b->pending & 0xfffffu) << 22 |
                ((u32)b->tx & 0x3fffffu);
    memcpy(cta->smem + b->offset, &b->packed, 8);
}
void mbar_add_pending(Cta *cta, Mbarrier *b)
{
    b->pending++;
    mbar_pack(cta, b);
}
Mbarrier *mbar_find(Machine *m, const Warp *w, const Instr *ins, u32 lane, Cta *cta, u32 offset)
{
    if (!smem_ptr(m, w, ins, lane, cta, offset, 8)) return 0;
    for (u32 i = 0; i < cta->n_mbars; i++) {
        Mbarrier *b = &cta->mbars[i];
        if (b->offset != offset || !b->valid) continue;
        u64 now;
        memcpy(&now, cta->smem + offset, 8);
        if (now == b->packed) return b;
        finding(m, w, ins, lane, F_MBARRIER_OVERWRITTEN, offset,
                "the mbarrier at shared offset %u (init at PTX line %u) was overwritten with %016llx", offset, b->line, (unsigned long long)now);
        return 0;
    }
    finding(m, w, ins, lane, F_BAD_MBARRIER, offset, "no mbarrier.init at shared offset %u of CTA %u", offset, cta->rank);
    return 0;
}
static void mbar_check(Machine *m, Cta *cta, Mbarrier *b)
{
    if (!b->pending && !b->tx) {
        b->phase++;
        b->pending = b->expected;
        event(m);
    }
    mbar_pack(cta, b);
    m->progress = m->time;
}
static void check_fenced(Machine *m, const Warp *w, const Instr *ins, u32 lane, const Cta *cta, Mbarrier *b, const char *who)
{
    if (b->fenced == 1 || !m->launch->strict) return;
    b->fenced = 1;
    finding(m, w, ins, lane, F_MBARRIER_NOT_FENCED, b->offset,
            "%s uses the mbarrier at shared offset %u of CTA %u, whose init (PTX line %u) no fence.mbarrier_init has published", who,
            b->offset, cta->rank, b->line);
}
int mbar_arrive(Machine *m, const Warp *w, const Instr *ins, u32 lane, Cta *cta, u32 offset, u32 count)
{
    Mbarrier *b = mbar_find(m, w, ins, lane, cta, offset);
    if (!b) return EX_FATAL;
    if (w && cta != w->cta) check_fenced(m, w, ins, lane, cta, b, "another CTA");
    if (count > b->pending)
        return finding(m, w, ins, lane, F_MBARRIER_OVERFLOW, offset,
                       "%u arrivals at the mbarrier at shared offset %u, which waits for %u of %u (phase %u, init at PTX line %u)", count,
                       offset, b->pending, b->expected, b->phase, b->line);
    b->pending -= count;
    mbar_check(m, cta, b);
    return EX_NEXT;
}
static int mbar_add_tx(Machine *m, const Warp *w, const Instr *ins, u32 lane, Cta *cta, Mbarrier *b, i64 bytes)
{
    if (b->tx + bytes > 0xfffff || b->tx + bytes < -0xfffff)
        return finding(m, w, ins, lane, F_MBARRIER_OVERFLOW, b->offset,
                       "transaction count %lld of the mbarrier at shared offset %u leaves -1048575..1048575", (long long)(b->tx + bytes), b->offset);
    b->tx += (i32)bytes;
    mbar_check(m, cta, b);
    return EX_NEXT;
}
int mbar_expect_tx(Machine *m, const Warp *w, const Instr *ins, u32 lane, Cta *cta, u32 offset, u32 bytes)
{
    Mbarrier *b = mbar_find(m, w, ins, lane, cta, offset);
    if (!b) return EX_FATAL;
    return bytes ? mbar_add_tx(m, w, ins, lane, cta, b, bytes) : EX_NEXT;
}
int mbar_complete_tx(Machine *m, const Warp *w, const Instr *ins, u32 lane, Cta *cta, u32 offset, u32 bytes)
{
    Mbarrier *b = mbar_find(m, w, ins, lane, cta, offset);
    if (!b) return EX_FATAL;
    check_fenced(m, w, ins, lane, cta, b, "an asynchronous copy");
    return bytes ? mbar_add_tx(m, w, ins, lane, cta, b, -(i64)bytes) : EX_NEXT;
}

/* ---- mbarrier instructions.  mod: 1 64-bit address, 2 shared::cluster (or generic) operand; others as noted */

static Cta *operand_cta(Machine *m, Warp *w, const Instr *ins, u64 addr, u32 *offset)
{
    *offset = (u32)addr & SMEM_OFFSET_MASK;
    return smem_cta(m, w, (u32)addr, (ins->mod & 2) != 0);
}
/* args base count */
int op_MBAR_INIT(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u64 addr[LANES];
    lane_addresses(m, w, ins->a[0], (int)(ins->mod & 1), (i64)ins->imm, addr);
    FOR_ACTIVE(mask) {
        u32 off, count = SRC(u32, 1)[l];
        Cta *cta = operand_cta(m, w, ins, addr[l], &off);
        if (!smem_ptr(m, w, ins, l, cta, off, 8)) return EX_FATAL;
        if (off & 7) return finding(m, w, ins, l, F_MISALIGNED, off, "mbarrier at shared offset %u: needs 8-byte alignment", off);
        if (!count || count > 0xfffff)
            return finding(m, w, ins, l, F_ILLEGAL_INSTRUCTION, off, "mbarrier.init with %u arrivals: 1..1048575 are allowed", count);
        Mbarrier *b = 0;
        for (u32 i = 0; i < cta->n_mbars; i++)
            if (cta->mbars[i].offset == off) b = &cta->mbars[i];
        if (!b) {
            if (cta->n_mbars == cta->cap_mbars) {
                cta->cap_mbars = cta->cap_mbars ? 2 * cta->cap_mbars : 16;
                cta->mbars = realloc(cta->mbars, cta->cap_mbars * sizeof *cta->mbars);
            }
            b = &cta->mbars[cta->n_mbars++];
        }
        *b = (Mbarrier){.offset = off, .expected = count, .pending = count, .valid = 1, .line = ins->line, .init_warp = w->index};
        u32 offs[LANES];
        offs[l] = off;
        if (shadow_generic(m, w, ins, cta, offs, 1u << l, 8, ACCESS_WRITE) == EX_FATAL) return EX_FATAL;
        mbar_pack(cta, b);
    }
    event(m);
    return EX_NEXT;
}
/* args base */
int op_MBAR_INVAL(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u64 addr[LANES];
    lane_addresses(m, w, ins->a[0], (int)(ins->mod & 1), (i64)ins->imm, addr);
    FOR_ACTIVE(mask) {
        u32 off;
        Cta *cta = operand_cta(m, w, ins, addr[l], &off);
        Mbarrier *b = mbar_find(m, w, ins, l, cta, off);
        if (!b) return EX_FATAL;
        b->valid = 0;
    }
    return EX_NEXT;
}
/* args d base count tx; mod: 4 drop, 8 expect_tx first, 16 noComplete, 32 arrive (else only expect_tx / complete_tx),
 * 64 complete_tx; d may be -1 */
int op_MBAR_ARRIVE(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u64 addr[LANES];
    lane_addresses(m, w, ins->a[1], (int)(ins->mod & 1), (i64)ins->imm, addr);
    const u32 *count = SRC(u32, 2), *tx = SRC(u32, 3);
    FOR_ACTIVE(mask) {
        u32 off;
        Cta *cta = operand_cta(m, w, ins, addr[l], &off);
        Mbarrier *b = mbar_find(m, w, ins, l, cta, off);
        if (!b) return EX_FATAL;
        if (ins->a[0] >= 0) DST(u64, 0)[l] = (u64)b->phase << 32 | b->pending;
        if (ins->mod & 8 && mbar_expect_tx(m, w, ins, l, cta, off, tx[l]) == EX_FATAL) return EX_FATAL;
        if (ins->mod & 64 && mbar_add_tx(m, w, ins, l, cta, b, -(i64)tx[l]) == EX_FATAL) return EX_FATAL;
        if (!(ins->mod & 32)) continue;
        if (ins->mod & 16 && count[l] >= b->pending)
            return finding(m, w, ins, l, F_MBARRIER_OVERFLOW, off, "mbarrier.arrive.noComplete would complete the phase");
        shadow_arrive(m, w, b);
        if (ins->mod & 4) {
            if (!b->expected) return finding(m, w, ins, l, F_MBARRIER_OVERFLOW, off, "arrive_drop from a barrier of no arrivals");
            b->expected -= count[l] < b->expected ? count[l] : b->expected;
        }
        if (mbar_arrive(m, w, ins, l, cta, off, count[l]) == EX_FATAL) return EX_FATAL;
    }
    return EX_NEXT;
}
/* args p base state|parity; mod: 4 parity form */
int op_MBAR_WAIT(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u64 addr[LANES];
    lane_addresses(m, w, ins->a[1], (int)(ins->mod & 1), (i64)ins->imm, addr);
    u32 done = 0;
    Mbarrier *first = 0;
    FOR_ACTIVE(mask) {
        u32 off;
        Cta *cta = operand_cta(m, w, ins, addr[l], &off);
        Mbarrier *b = mbar_find(m, w, ins, l, cta, off);
        if (!b) return EX_FATAL;
        u32 complete = ins->mod & 4 ? (b->phase & 1) != (SRC(u32, 2)[l] & 1) : b->phase != SRC(u64, 2)[l] >> 32;
        done |= complete << l;
        if (complete && b != first) shadow_wait(m, w, b);
        first = b;
    }
    if (!done) {
        Group *g = current_group(w);
        u64 where = addr[lowest_lane(mask)] + 1;
        if (g->fail_pc == ins->pc + 1 && g->fail_addr == where && (u32)w->steps - g->fail_steps <= 16) {
            w->wait_what = "mbarrier";
            w->wait_addr = where - 1;
            w->wait_arg = ins->mod & 4 ? SRC(u32, 2)[lowest_lane(mask)] & 1 : 0;
            g->fail_steps = (u32)w->steps - 1;
            return EX_BLOCK;
        }
        g->fail_pc = ins->pc + 1;
        g->fail_addr = where;
        g->fail_steps = (u32)w->steps;
    }
    w->preds[ins->a[0]] = (w->preds[ins->a[0]] & ~mask) | (done & mask);
    return done ? EX_NEXT : EX_YIELD;
}
/* args d state */
int op_MBAR_PENDING(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 *D = DST(u32, 0);
    const u64 *A = SRC(u64, 1);
    LANES_STORE(u32, (void)0, (u32)A[l] & 0xfffff)
}

/* fence.  mod: 1 covers the async proxy on shared memory, 2 publishes mbarrier inits */
int op_FENCE(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    if (ins->mod & 1) shadow_fence_async(m, w, mask);
    if (ins->mod & 3) mbars_fenced(w->cta, w->index, 1);
    return EX_NEXT;
}
