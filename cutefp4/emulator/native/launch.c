/* Entry points for the host, and the life of CTAs. */
#include "lanes.h"
#include "machine.h"
#include "warp.h"

#include <stdlib.h>

/* ---- memory of a CTA */

static void poison(Machine *m, void *to, size_t bytes)
{
    if (!m->launch->poison) { memset(to, 0, bytes); return; }
    if (m->eager) { memset(to, 0xa5, bytes); return; }
    u64 x = emu_random(m) | 1, *words = to;
    for (size_t i = 0; i < bytes / 8; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        words[i] = x;
    }
}
static void begin_warp(Machine *m, Cta *cta, Warp *w, u32 index, u32 threads)
{
    const Program *p = m->program;
    memset(w, 0, sizeof *w);
    w->cta = cta;
    w->index = index;
    w->first_tid = index * LANES;
    u32 left = threads - w->first_tid;
    w->live = left >= LANES ? FULL : (1u << left) - 1;
    w->regs = aligned_alloc(64, (size_t)(p->n_slots + 1) * SLOT_BYTES);
    w->preds = calloc(p->n_preds + 1, sizeof *w->preds);
    poison(m, w->regs, (size_t)p->n_slots * SLOT_BYTES);
    if (p->local_bytes) {
        w->local = malloc((size_t)LANES * p->local_bytes);
        poison(m, w->local, (size_t)LANES * p->local_bytes);
    }
    w->n_groups = 1;
    w->groups[0] = (Group){.mask = w->live};
    for (int l = 0; l < LANES; l++) w->bulk_seq[l] = w->cpa_seq[l] = 1;
    engine_warp_begin(m, w);
}
static Cta *begin_cta(Machine *m, Cluster *c, u32 rank, const u32 id[3])
{
    const Launch *g = m->launch;
    u32 threads = g->block[0] * g->block[1] * g->block[2];
    Cta *cta = calloc(1, sizeof *cta);
    cta->cluster = c;
    cta->rank = rank;
    memcpy(cta->id, id, sizeof cta->id);
    cta->linear = id[0] + g->grid[0] * (id[1] + g->grid[1] * id[2]);
    cta->smem_limit = SMEM_RESERVED + m->program->smem_static + g->smem_dynamic;
    cta->smem = aligned_alloc(1024, SMEM_BYTES);
    poison(m, cta->smem, (cta->smem_limit + 7u) & ~7u);
    cta->n_warps = cta->live_warps = (threads + LANES - 1) / LANES;
    cta->warps = calloc(cta->n_warps, sizeof *cta->warps);
    queue_register(m, &cta->cp_async, 0);
    queue_register(m, &cta->bulk, 0);
    c->ctas[rank] = cta;
    engine_cta_begin(m, cta);
    for (u32 i = 0; i < cta->n_warps; i++) begin_warp(m, cta, &cta->warps[i], i, threads);
    m->counters[C_CTAS]++;
    return cta;
}
static void free_cta(Machine *m, Cta *cta)
{
    for (u32 i = 0; i < cta->n_warps; i++) engine_warp_end(m, &cta->warps[i]);
    engine_cta_end(m, cta);
    for (u32 i = 0; i < cta->n_warps; i++) {
        free(cta->warps[i].regs);
        free(cta->warps[i].preds);
        free(cta->warps[i].local);
    }
    queue_unregister(m, &cta->cp_async);
    queue_unregister(m, &cta->bulk);
    free(cta->mbars);
    free(cta->warps);
    free(cta->smem);
    free(cta);
}

/* ---- clusters */

static u32 cluster_ctas(const Launch *g) { return g->cluster[0] * g->cluster[1] * g->cluster[2]; }

static void begin_cluster(Machine *m)
{
    const Launch *g = m->launch;
    u32 n[3], id[3];
    for (int i = 0; i < 3; i++) n[i] = g->grid[i] / g->cluster[i];
    Cluster *c = calloc(1, sizeof *c);
    c->id = (u32)m->next_cluster++;
    c->cid[0] = c->id % n[0];
    c->cid[1] = c->id / n[0] % n[1];
    c->cid[2] = c->id / (n[0] * n[1]);
    c->size = cluster_ctas(g);
    u32 room = g->sms * g->ctas_per_sm / c->size;
    c->sm = c->id % (room ? room : 1) * c->size % g->sms;
    for (u32 rank = 0; rank < c->size; rank++) {
        u32 r[3] = {rank % g->cluster[0], rank / g->cluster[0] % g->cluster[1], rank / (g->cluster[0] * g->cluster[1])};
        for (int i = 0; i < 3; i++) id[i] = c->cid[i] * g->cluster[i] + r[i];
        begin_cta(m, c, rank, id);
    }
    if (m->n_clusters == m->cap_clusters) {
        m->cap_clusters = m->cap_clusters ? 2 * m->cap_clusters : 16;
        m->clusters = realloc(m->clusters, m->cap_clusters * sizeof *m->clusters);
    }
    m->clusters[m->n_clusters++] = c;
    m->progress = m->time;
    event(m);
}
void launch_clusters(Machine *m)
{
    u32 size = cluster_ctas(m->launch), room = m->launch->sms * m->launch->ctas_per_sm;
    while (m->next_cluster < m->n_total_clusters && (m->n_clusters + 1) * size <= (room > size ? room : size)) begin_cluster(m);
}
static void finish_cta(Machine *m, Cta *cta)
{
    if (cta->exited) return;
    cta->exited = 1;
    cta_barriers_at_exit(m, cta);
}
static void warn_unread_stores(Machine *m, Cta *cta)
{
    for (AsyncOp *op = cta->bulk.head; op; op = op->next)
        if (op->group && !op->reads_done)
            finding(m, op->warp, op->ins, op->lane, F_UNREAD_BULK_STORES, 0,
                    "all warps have exited and this bulk store has not read its shared memory yet: wait for the group first");
}
u32 retire_clusters(Machine *m)
{
    u32 retired = 0;
    for (u32 i = 0; i < m->n_clusters;) {
        Cluster *c = m->clusters[i];
        u32 done = 0;
        for (u32 k = 0; k < c->size; k++) {
            Cta *cta = c->ctas[k];
            if (cta->live_warps) continue;
            if (cta->pending_ops) { warn_unread_stores(m, cta); continue; }
            finish_cta(m, cta);
            done++;
        }
        if (done < c->size) { i++; continue; }
        for (u32 k = 0; k < c->size; k++) free_cta(m, c->ctas[k]);
        free(c);
        m->clusters[i] = m->clusters[--m->n_clusters];
        retired++;
        event(m);
    }
    return retired;
}
void free_clusters(Machine *m)
{
    m->muted = 1;
    for (u32 i = 0; i < m->n_clusters; i++) {
        for (u32 k = 0; k < m->clusters[i]->size; k++) free_cta(m, m->clusters[i]->ctas[k]);
        free(m->clusters[i]);
    }
    m->n_clusters = 0;
    m->muted = 0;
}

/* ---- the host's view */

EXPORT Machine *emu_create(int (*resolve)(u64, u64), int (*print)(const char *))
{
    Machine *m = calloc(1, sizeof *m);
    m->resolve = resolve;
    m->print = print;
    return m;
}
EXPORT void emu_destroy(Machine *m)
{
    free_clusters(m);
    free(m->allocs);
    free(m->queues);
    free(m->clusters);
    free(m);
}
/* Adds or replaces an allocation; init: one byte per byte of it, or NULL when its contents count as written. */
EXPORT void emu_register(Machine *m, u64 start, u64 size, u8 *init)
{
    if (!size) return;
    u32 at = 0;
    while (at < m->n_allocs && m->allocs[at].start < start) at++;
    if (at == m->n_allocs || m->allocs[at].start != start) {
        if (m->n_allocs == m->cap_allocs) {
            m->cap_allocs = m->cap_allocs ? 2 * m->cap_allocs : 64;
            m->allocs = realloc(m->allocs, m->cap_allocs * sizeof *m->allocs);
        }
        memmove(&m->allocs[at + 1], &m->allocs[at], (m->n_allocs - at) * sizeof *m->allocs);
        m->n_allocs++;
    } else if (m->allocs[at].size > size) return; /* a view of what is there already */
    m->allocs[at] = (Allocation){.start = start, .size = size, .init = init};
}
EXPORT void emu_forget_allocations(Machine *m) { m->n_allocs = 0; m->last_alloc = 0; }

/* Runs a grid to its end; 0 ok, 1 a finding stopped it (or one of severity 1 was recorded). */
EXPORT int emu_run(Machine *m, const Launch *launch)
{
    m->launch = launch;
    m->program = launch->program;
    m->code = launch->program->code;
    m->fatal = m->n_findings = m->n_ops = m->pushed = 0;
    m->time = m->events = m->progress = 1;
    m->place[0] = 0;
    memset(m->counters, 0, sizeof m->counters);
    m->next_cluster = 0;
    m->n_total_clusters = (u64)launch->grid[0] * launch->grid[1] * launch->grid[2] / cluster_ctas(launch);
    choose_personality(m, launch->seed);
    run_grid(m);
    free_clusters(m);
    u64 executed = 0;
    for (u32 i = 0; i < m->program->n_code; i++) executed += launch->pc_count[i];
    m->counters[C_WARP_INSTRUCTIONS] = executed;
    for (u32 i = 0; i < m->n_findings; i++)
        if (m->findings[i].severity) return 1;
    return 0;
}
EXPORT const Finding *emu_findings(const Machine *m, u32 *n) { *n = m->n_findings; return m->findings; }
EXPORT const u64 *emu_counters(const Machine *m) { return m->counters; }
EXPORT const char *emu_place(const Machine *m) { return m->place; }
/* Sizes that the host's structures must match. */
EXPORT void emu_sizes(u32 out[5])
{
    out[0] = sizeof(Instr);
    out[1] = sizeof(Program);
    out[2] = sizeof(Launch);
    out[3] = sizeof(Finding);
    out[4] = C_COUNT;
}

#include "ops_declared.h" /* made by the build: a prototype per handler found in the sources */
const Handler emu_handlers[] = {
#define OP(name) op_##name,
#include "ops_table.inc"
#undef OP
};
