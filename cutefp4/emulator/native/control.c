/* Control flow, exchange between the lanes of a warp, special registers. */
#include "lanes.h"
#include "warp.h"

int op_NOP(Machine *m, Warp *w, const Instr *ins, u32 mask) { (void)m; (void)w; (void)ins; (void)mask; return EX_NEXT; }
int op_BRA(Machine *m, Warp *w, const Instr *ins, u32 mask) { return warp_branch(m, w, ins, mask, (u32)ins->target); }
int op_EXIT(Machine *m, Warp *w, const Instr *ins, u32 mask) { (void)m; (void)w; (void)ins; (void)mask; return EX_EXIT; }
int op_TRAP(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    finding(m, w, ins, lowest_lane(mask), F_TRAP, 0, "the kernel executed trap");
    return EX_FATAL;
}
int op_ASSERTFAIL(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    finding(m, w, ins, lowest_lane(mask), F_TRAP, 0, "a device assertion failed");
    return EX_FATAL;
}
/* brx.idx: args index t0 t1 ... (targets as pcs in the argument list) */
int op_BRX(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    const i32 *a = arg_list(m, ins);
    const u32 *index = src32(m, w, a[0]);
    u32 first = index[lowest_lane(mask)], same = 0;
    if (first + 1u >= ins->nargs)
        return finding(m, w, ins, lowest_lane(mask), F_ILLEGAL_INSTRUCTION, first, "branch index %u of %u targets", first, ins->nargs - 1u);
    FOR_ACTIVE(mask) same |= (u32)(index[l] == first) << l;
    if (same == w->active) { w->pc = (u32)a[1 + first]; return EX_JUMP; }
    /* lanes with another index stay at this instruction and run it again */
    warp_branch(m, w, ins, same, (u32)a[1 + first]);
    w->pc = ins->pc;
    current_group(w)->pc = ins->pc;
    return EX_JUMP;
}
int op_NANOSLEEP(Machine *m, Warp *w, const Instr *ins, u32 mask) { (void)m; (void)w; (void)ins; (void)mask; return EX_YIELD; }

/* Lanes that a .sync instruction's member mask names must all be here; EX_SYNC waits for them. */
static int members_missing(const Warp *w, u32 members) { return (members & w->live & ~w->active) != 0; }

/* ---- shfl: args d p a b c members; aux: 0 up 1 down 2 bfly 3 idx; p may be -1 */
int op_SHFL(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    const u32 *A = SRC(u32, 2), *B = SRC(u32, 3), *C = SRC(u32, 4), *members = SRC(u32, 5);
    u32 out[LANES], valid = 0, *D = ins->a[0] >= 0 ? DST(u32, 0) : out;
    if (members_missing(w, members[lowest_lane(mask)])) return EX_SYNC;
    FOR_ACTIVE(mask) {
        if (!LANE(members[l], l))
            return finding(m, w, ins, l, F_ILLEGAL_INSTRUCTION, members[l], "lane %u is not in its own member mask %08x", l, members[l]);
        u32 clamp = C[l] & 31, segment = C[l] >> 8 & 31, b = B[l] & 31;
        u32 low = l & segment, high = low | (clamp & ~segment);
        i32 j;
        u32 ok;
        switch (ins->aux) {
        case 0: j = (i32)l - (i32)b; ok = j >= (i32)high; break;
        case 1: j = (i32)(l + b); ok = (u32)j <= high; break;
        case 2: j = (i32)(l ^ b); ok = (u32)j <= high; break;
        default: j = (i32)(low | (b & ~segment)); ok = (u32)j <= high;
        }
        if (!ok) j = (i32)l;
        out[l] = A[j];
        valid |= ok << l;
        if (!LANE(w->active, j) && LANE(w->live, j))
            return finding(m, w, ins, l, F_DIVERGED_SYNC, (u64)j, "lane %u reads lane %d, which does not execute this shfl", l, j);
    }
    if (ins->a[0] >= 0) FOR_ACTIVE(mask) D[l] = out[l];
    if (ins->a[1] >= 0) w->preds[ins->a[1]] = (w->preds[ins->a[1]] & ~mask) | valid;
    return EX_NEXT;
}

/* ---- vote: args d p members; aux: 0 all 1 any 2 uni (d predicate), 3 ballot (d register); mod 1: p negated */
int op_VOTE(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    const u32 *members = SRC(u32, 2);
    u32 team = members[lowest_lane(mask)], votes = w->preds[ins->a[1]], yes = 0;
    if (members_missing(w, team)) return EX_SYNC;
    if (ins->mod & 1) votes = ~votes;
    votes &= team & mask;
    u32 all = team & mask;
    switch (ins->aux) {
    case 0: yes = votes == all; break;
    case 1: yes = votes != 0; break;
    case 2: yes = votes == 0 || votes == all; break;
    default:
        FOR_ACTIVE(mask) DST(u32, 0)[l] = votes;
        return EX_NEXT;
    }
    w->preds[ins->a[0]] = (w->preds[ins->a[0]] & ~mask) | (yes ? mask : 0);
    return EX_NEXT;
}
/* match: args d p a members; aux 0 any, 1 all; mod 1: 64-bit values; p may be -1 */
int op_MATCH(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 team = SRC(u32, 3)[lowest_lane(mask)] & mask;
    if (members_missing(w, SRC(u32, 3)[lowest_lane(mask)])) return EX_SYNC;
    u64 v[LANES];
    for (int l = 0; l < LANES; l++) v[l] = ins->mod & 1 ? SRC(u64, 2)[l] : SRC(u32, 2)[l];
    u32 out[LANES], agreed = 0;
    FOR_ACTIVE(mask) {
        u32 same = 0;
        for (u32 j = 0; j < LANES; j++) same |= (u32)(LANE(team, j) && v[j] == v[l]) << j;
        if (ins->aux) { agreed |= (u32)(same == team) << l; same = same == team ? team : 0; }
        out[l] = same;
    }
    FOR_ACTIVE(mask) DST(u32, 0)[l] = out[l];
    if (ins->a[1] >= 0) w->preds[ins->a[1]] = (w->preds[ins->a[1]] & ~mask) | agreed;
    return EX_NEXT;
}
/* redux: args d a members; aux: 0 add 1 min 2 max 3 and 4 or 5 xor; mod: 1 signed, 2 f32, MOD_ABS, MOD_NAN */
int op_REDUX(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    const u32 *A = SRC(u32, 1);
    u32 team = SRC(u32, 2)[lowest_lane(mask)];
    if (members_missing(w, team)) return EX_SYNC;
    team &= mask;
    u32 acc = A[lowest_lane(team)], rest = team & (team - 1);
    if (ins->mod & 2) {
        float best = f32_of(acc);
        int any_nan = best != best;
        if (ins->mod & MOD_ABS) best = fabsf(best);
        FOR_ACTIVE(rest) {
            float x = f32_of(A[l]);
            if (ins->mod & MOD_ABS) x = fabsf(x);
            any_nan |= x != x;
            if (best != best || (ins->aux == 1 ? x < best : x > best)) best = x;
            else if (x == best && x == 0) best = ins->aux == 1 ? f32_of(bits_of(x) | bits_of(best)) : f32_of(bits_of(x) & bits_of(best));
        }
        acc = bits_of(canonical(any_nan && ins->mod & MOD_NAN ? NAN : best));
    } else
        FOR_ACTIVE(rest) {
            u32 x = A[l];
            switch (ins->aux) {
            case 0: acc += x; break;
            case 1: acc = ins->mod & 1 ? ((i32)x < (i32)acc ? x : acc) : x < acc ? x : acc; break;
            case 2: acc = ins->mod & 1 ? ((i32)x > (i32)acc ? x : acc) : x > acc ? x : acc; break;
            case 3: acc &= x; break;
            case 4: acc |= x; break;
            default: acc ^= x;
            }
        }
    FOR_ACTIVE(mask) DST(u32, 0)[l] = acc;
    return EX_NEXT;
}
/* elect: args d p members (d may be -1): the lowest member */
int op_ELECT(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 team = SRC(u32, 2)[lowest_lane(mask)];
    if (members_missing(w, team)) return EX_SYNC;
    u32 leader = lowest_lane(team & mask ? team & mask : mask);
    if (ins->a[0] >= 0) FOR_ACTIVE(mask) DST(u32, 0)[l] = leader;
    w->preds[ins->a[1]] = (w->preds[ins->a[1]] & ~mask) | (1u << leader & mask);
    return EX_NEXT;
}
int op_ACTIVEMASK(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    (void)m;
    FOR_ACTIVE(mask) DST(u32, 0)[l] = w->active;
    return EX_NEXT;
}
/* bar.warp.sync: args members; lanes may arrive from different instructions */
int op_BAR_WARP(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 team = SRC(u32, 0)[lowest_lane(mask)] & w->live, here = w->active;
    Group *self = current_group(w);
    if (self->token_pc == ins->pc + 1) { self->token_pc = 0; return EX_NEXT; } /* released by the last arrival */
    for (u32 i = 0; i < w->n_groups; i++) {
        const Group *g = &w->groups[i];
        if (i != w->cur && g->state == GROUP_SYNC && m->code[g->pc].op == ins->op) here |= g->mask;
    }
    if (team & ~here) return EX_SYNC;
    for (u32 i = 0; i < w->n_groups; i++) {
        Group *g = &w->groups[i];
        if (i == w->cur || g->state != GROUP_SYNC || m->code[g->pc].op != ins->op) continue;
        g->state = GROUP_RUN;
        g->token_pc = g->pc + 1;
    }
    return EX_NEXT;
}

/* ---- special registers: args d; aux: which */
enum Special {
    S_TID_X, S_TID_Y, S_TID_Z, S_NTID_X, S_NTID_Y, S_NTID_Z, S_CTAID_X, S_CTAID_Y, S_CTAID_Z, S_NCTAID_X, S_NCTAID_Y,
    S_NCTAID_Z, S_LANEID, S_WARPID, S_NWARPID, S_SMID, S_NSMID, S_GRIDID, S_CLUSTERID_X, S_CLUSTERID_Y, S_CLUSTERID_Z,
    S_NCLUSTERID_X, S_NCLUSTERID_Y, S_NCLUSTERID_Z, S_CLUSTER_CTAID_X, S_CLUSTER_CTAID_Y, S_CLUSTER_CTAID_Z,
    S_CLUSTER_NCTAID_X, S_CLUSTER_NCTAID_Y, S_CLUSTER_NCTAID_Z, S_CLUSTER_CTARANK, S_CLUSTER_NCTARANK, S_LANEMASK_EQ,
    S_LANEMASK_LE, S_LANEMASK_LT, S_LANEMASK_GE, S_LANEMASK_GT, S_CLOCK, S_CLOCK_HI, S_GLOBALTIMER, S_GLOBALTIMER_HI,
    S_TOTAL_SMEM, S_DYNAMIC_SMEM, S_EXPLICIT_CLUSTER, S_SHARED_BASE
};
static u32 special(const Machine *m, const Warp *w, u32 which, u32 l)
{
    const Launch *g = m->launch;
    const Cta *cta = w->cta;
    u32 tid = w->first_tid + l, bx = g->block[0], by = g->block[1];
    switch (which) {
    case S_TID_X: return tid % bx;
    case S_TID_Y: return tid / bx % by;
    case S_TID_Z: return tid / (bx * by);
    case S_NTID_X: case S_NTID_Y: case S_NTID_Z: return g->block[which - S_NTID_X];
    case S_CTAID_X: case S_CTAID_Y: case S_CTAID_Z: return cta->id[which - S_CTAID_X];
    case S_NCTAID_X: case S_NCTAID_Y: case S_NCTAID_Z: return g->grid[which - S_NCTAID_X];
    case S_LANEID: return l;
    case S_WARPID: return w->index;
    case S_NWARPID: return cta->n_warps;
    case S_SMID: return cta->cluster->sm;
    case S_NSMID: return g->sms;
    case S_GRIDID: return 1;
    case S_CLUSTERID_X: case S_CLUSTERID_Y: case S_CLUSTERID_Z: return cta->cluster->cid[which - S_CLUSTERID_X];
    case S_NCLUSTERID_X: case S_NCLUSTERID_Y: case S_NCLUSTERID_Z:
        return g->grid[which - S_NCLUSTERID_X] / g->cluster[which - S_NCLUSTERID_X];
    case S_CLUSTER_CTAID_X: case S_CLUSTER_CTAID_Y: case S_CLUSTER_CTAID_Z:
        return cta->id[which - S_CLUSTER_CTAID_X] % g->cluster[which - S_CLUSTER_CTAID_X];
    case S_CLUSTER_NCTAID_X: case S_CLUSTER_NCTAID_Y: case S_CLUSTER_NCTAID_Z: return g->cluster[which - S_CLUSTER_NCTAID_X];
    case S_CLUSTER_CTARANK: return cta->rank;
    case S_CLUSTER_NCTARANK: return cta->cluster->size;
    case S_LANEMASK_EQ: return 1u << l;
    case S_LANEMASK_LE: return FULL >> (31 - l);
    case S_LANEMASK_LT: return (1u << l) - 1;
    case S_LANEMASK_GE: return FULL << l;
    case S_LANEMASK_GT: return FULL << l << 1;
    case S_CLOCK: case S_GLOBALTIMER: return (u32)m->time;
    case S_CLOCK_HI: case S_GLOBALTIMER_HI: return (u32)(m->time >> 32);
    case S_TOTAL_SMEM: return cta->smem_limit - SMEM_RESERVED;
    case S_DYNAMIC_SMEM: return g->smem_dynamic;
    case S_EXPLICIT_CLUSTER: return cta->cluster->size > 1;
    default: return cta->rank << SMEM_RANK_SHIFT; /* S_SHARED_BASE: what a shared symbol's address starts from */
    }
}
int op_S2R(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u32 *D = DST(u32, 0);
    FOR_ACTIVE(mask) D[l] = special(m, w, ins->aux, l) + (u32)ins->imm;
    return EX_NEXT;
}
int op_S2R64(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u64 *D = DST(u64, 0);
    int wide = ins->aux == S_CLOCK || ins->aux == S_GLOBALTIMER;
    FOR_ACTIVE(mask) D[l] = (wide ? m->time : special(m, w, ins->aux, l)) + ins->imm;
    return EX_NEXT;
}

/* setmaxnreg: imm registers, aux 1 inc 0 dec */
int op_SETMAXNREG(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    if (w->active != w->live) return EX_SYNC;
    u32 n = (u32)ins->imm;
    if (n < 24 || n > 256 || n % 8)
        return finding(m, w, ins, lowest_lane(mask), F_SETMAXNREG, n, "%u registers: must be a multiple of 8 in 24..256", n);
    if (ins->aux ? n < w->max_regs && w->max_regs : n > w->max_regs && w->max_regs)
        return finding(m, w, ins, lowest_lane(mask), F_SETMAXNREG, n, "setmaxnreg.%s to %u while the warp has %u",
                       ins->aux ? "inc" : "dec", n, w->max_regs);
    w->max_regs = n;
    return EX_NEXT;
}
