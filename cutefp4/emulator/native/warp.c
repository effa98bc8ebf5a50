/* The interpreter loop of a warp and its divergence: the group with the smallest program counter runs first and groups
 * merge when their counters meet, which reconverges structured code at its join points. */
#include "warp.h"

#define SPIN_LIMIT 2048 /* backward branches after which another group of the warp gets its turn */

static void leave(Warp *w) /* stores the running group */
{
    w->groups[w->cur].pc = w->pc;
    w->groups[w->cur].mask = w->active;
}
static void drop_empty(Warp *w)
{
    u32 n = 0;
    for (u32 i = 0; i < w->n_groups; i++)
        if (w->groups[i].mask) w->groups[n++] = w->groups[i];
    w->n_groups = n;
}
static void merge(Warp *w)
{
    for (u32 i = 0; i < w->n_groups; i++)
        for (u32 j = i + 1; j < w->n_groups; j++) {
            Group *a = &w->groups[i], *b = &w->groups[j];
            if (!a->mask || !b->mask || a->pc != b->pc) continue;
            /* a half-done instruction must be finished by the lanes that began it */
            if (a->token_pc == a->pc + 1 || b->token_pc == b->pc + 1) continue;
            a->mask |= b->mask;
            b->mask = 0;
            if (a->state != b->state || a->state == GROUP_SYNC) a->state = GROUP_RUN;
            a->fail_pc = 0;
        }
    drop_empty(w);
}
/* Picks the group to run: the smallest pc (the largest after a long spin).  0 if none can. */
static int choose(const Machine *m, Warp *w)
{
    int best = -1;
    int farthest = w->spins > SPIN_LIMIT;
    for (u32 i = 0; i < w->n_groups; i++) {
        Group *g = &w->groups[i];
        if (g->state == GROUP_BLOCKED && g->blocked_at != m->events) g->state = GROUP_RUN;
        if (g->state != GROUP_RUN) continue;
        if (best < 0 || (farthest ? g->pc > w->groups[best].pc : g->pc < w->groups[best].pc)) best = (int)i;
    }
    if (farthest) w->spins = 0;
    if (best < 0) return 0;
    w->cur = (u32)best;
    w->pc = w->groups[best].pc;
    w->active = w->groups[best].mask;
    return 1;
}
static int regroup(const Machine *m, Warp *w)
{
    leave(w);
    drop_empty(w);
    merge(w);
    return choose(m, w);
}
/* The pc at which the running group meets another one, or ~0. */
static u32 meeting_point(const Warp *w)
{
    u32 at = FULL;
    for (u32 i = 0; i < w->n_groups; i++)
        if (i != w->cur && w->groups[i].pc < at && w->groups[i].state != GROUP_BLOCKED) at = w->groups[i].pc;
    return at;
}

int warp_branch(Machine *m, Warp *w, const Instr *ins, u32 taken, u32 target)
{
    u32 rest = w->active & ~taken;
    if (target <= ins->pc) w->spins += w->n_groups > 1;
    if (!rest) { w->pc = target; return EX_JUMP; }
    if (!taken) { w->pc = ins->pc + 1; return EX_JUMP; }
    leave(w);
    if (w->n_groups >= LANES) drop_empty(w);
    Group *other = &w->groups[w->n_groups++];
    *other = (Group){.pc = target, .mask = taken, .state = GROUP_RUN};
    w->groups[w->cur].mask = rest;
    w->groups[w->cur].pc = ins->pc + 1;
    w->pc = ins->pc + 1;
    w->active = rest;
    (void)m;
    return EX_JUMP;
}

static void wake_sync(Warp *w)
{
    for (u32 i = 0; i < w->n_groups; i++)
        if (w->groups[i].state == GROUP_SYNC) w->groups[i].state = GROUP_RUN;
}

/* All groups stand at warp-synchronous instructions: some lanes can never arrive. */
static int diverged(Machine *m, Warp *w)
{
    u32 blocked = 0;
    for (u32 i = 0; i < w->n_groups; i++) blocked |= w->groups[i].state == GROUP_BLOCKED;
    if (blocked) return WARP_BLOCKED;
    const Instr *a = &m->code[w->groups[0].pc], *b = &m->code[w->groups[w->n_groups > 1 ? 1 : 0].pc];
    finding(m, w, a, lowest_lane(w->groups[0].mask), F_DIVERGED_SYNC, 0,
            "lanes %08x wait here for the others of the warp (live %08x); lanes %08x are at PTX line %u", w->groups[0].mask,
            w->live, w->groups[w->n_groups > 1 ? 1 : 0].mask, b->line);
    return WARP_FATAL;
}

static int stopped(Machine *m, Warp *w) /* no group can run now */
{
    for (u32 i = 0; i < w->n_groups; i++)
        if (w->groups[i].state == GROUP_BLOCKED) return WARP_BLOCKED;
    return diverged(m, w);
}

int warp_may_run(const Machine *m, const Warp *w)
{
    for (u32 i = 0; i < w->n_groups; i++) {
        const Group *g = &w->groups[i];
        if (g->state == GROUP_RUN || (g->state == GROUP_BLOCKED && g->blocked_at != m->events)) return 1;
    }
    return 0;
}

int warp_run(Machine *m, Warp *w, u32 slice)
{
    if (!choose(m, w)) return stopped(m, w);
    const Instr *code = m->code;
    u64 *counts = m->launch->pc_count, *lanes = m->launch->pc_lanes;
    u32 meet = meeting_point(w);
    while (slice--) {
        const Instr *ins = &code[w->pc];
        u32 mask = w->active;
        if (ins->guard) mask &= ins->guard > 0 ? w->preds[ins->guard - 1] : ~w->preds[-ins->guard - 1];
        m->time++;
        w->steps++;
        counts[w->pc]++;
        lanes[w->pc] += (u32)__builtin_popcount(mask);
        int did = EX_NEXT;
        if (mask) {
            if (w->watch && engine_watch(m, w, ins, mask) == EX_FATAL) return WARP_FATAL;
            did = emu_handlers[ins->op](m, w, ins, mask);
        }
        switch (did) {
        case EX_NEXT: w->pc++; break;
        case EX_JUMP: meet = meeting_point(w); break;
        case EX_YIELD: w->pc++; slice = 0; break;
        case EX_EXIT:
            w->live &= ~mask;
            w->active &= ~mask;
            m->progress = m->time;
            event(m);
            wake_sync(w);
            barriers_recheck(m, w->cta);
            if (!w->live) return WARP_DONE;
            w->pc++;
            if (w->active) break;
            leave(w);
            drop_empty(w);
            merge(w);
            if (!choose(m, w)) return stopped(m, w);
            meet = meeting_point(w);
            break;
        case EX_BLOCK:
        case EX_SYNC:
            m->time--;
            w->steps--;
            counts[w->pc]--;
            lanes[w->pc] -= (u32)__builtin_popcount(mask);
            w->groups[w->cur].state = did == EX_BLOCK ? GROUP_BLOCKED : GROUP_SYNC;
            w->groups[w->cur].blocked_at = m->events;
            if (did == EX_BLOCK && w->groups[w->cur].blocked_steps != w->steps + 1) {
                w->groups[w->cur].blocked_steps = w->steps + 1;
                m->counters[C_BARRIER_WAITS]++;
            }
            if (!regroup(m, w)) return stopped(m, w);
            meet = meeting_point(w);
            break;
        default: return WARP_FATAL;
        }
        if (m->pushed && m->eager) async_drain(m);
        if (m->fatal) return WARP_FATAL;
        if (w->pc >= meet || w->spins > SPIN_LIMIT) {
            if (!regroup(m, w)) return stopped(m, w);
            meet = meeting_point(w);
        }
    }
    leave(w);
    return WARP_READY;
}
