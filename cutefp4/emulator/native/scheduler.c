/* Which warp runs, which asynchronous operation advances, and what to say when nothing can. */
#include "lanes.h"
#include "machine.h"
#include "warp.h"

#include <stdio.h>
#include <stdlib.h>

u64 emu_random(Machine *m) /* splitmix64 */
{
    u64 z = m->rng += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}
u32 random_below(Machine *m, u32 n) { return n ? (u32)((emu_random(m) >> 32) * n >> 32) : 0; }

/* A seed's character: how long warps run, how lazy each kind of asynchronous work is, which warps starve. */
void choose_personality(Machine *m, u64 seed)
{
    Personality *p = &m->mood;
    m->eager = seed == 0;
    m->rng = seed * 0x2545f4914f6cdd1dull + 1;
    if (m->eager) {
        *p = (Personality){.slice_min = 4096, .slice_max = 4096, .async_permille = 1000};
        for (int k = 0; k < ASYNC_KINDS; k++) p->kind_permille[k] = 1000;
        return;
    }
    static const u32 slices[4][2] = {{1, 4}, {1, 64}, {16, 256}, {256, 2048}};
    const u32 *slice = slices[random_below(m, 4)];
    p->slice_min = slice[0];
    p->slice_max = slice[1];
    static const u32 laziness[4] = {1000, 300, 60, 8};
    p->async_permille = laziness[random_below(m, 4)];
    for (int k = 0; k < ASYNC_KINDS; k++) p->kind_permille[k] = 1000;
    u32 lagging = random_below(m, ASYNC_KINDS + 2); /* one kind lags behind the others, sometimes none */
    if (lagging < ASYNC_KINDS) p->kind_permille[lagging] = 20;
    /* nobody, two warps, or a whole warpgroup (an epilogue that never keeps up) runs only when nothing else can */
    u32 two = 1u << random_below(m, 16) | 1u << random_below(m, 16), four = 0xfu << 4 * random_below(m, 4);
    p->starved_warps = (u32[]){0, two, four, four & 0xf ? four : 0xf}[random_below(m, 4)];
}

/* ---- what to say at a deadlock */

static void describe_warp(char **at, char *end, const Machine *m, const Warp *w)
{
    for (u32 i = 0; i < w->n_groups && *at < end; i++) {
        const Group *g = &w->groups[i];
        if (!g->mask) continue;
        *at += snprintf(*at, (size_t)(end - *at), "  CTA (%u,%u,%u) warp %u lanes %08x at PTX line %u: %s", w->cta->id[0], w->cta->id[1],
                        w->cta->id[2], w->index, g->mask, m->code[g->pc].line,
                        g->state == GROUP_BLOCKED ? "waits for " : g->state == GROUP_SYNC ? "waits for lanes of its warp\n" : "could run\n");
        if (*at < end && g->state == GROUP_BLOCKED)
            *at += snprintf(*at, (size_t)(end - *at), "%s %llu (%llu)\n", w->wait_what ? w->wait_what : "?", (unsigned long long)w->wait_addr,
                            (unsigned long long)w->wait_arg);
    }
}
static void describe_barriers(char **at, char *end, const Cta *cta)
{
    for (u32 i = 0; i < cta->n_mbars && *at < end; i++) {
        const Mbarrier *b = &cta->mbars[i];
        if (!b->valid) continue;
        *at += snprintf(*at, (size_t)(end - *at), "  CTA %u mbarrier %u: phase %u, %u of %u arrivals missing, %d bytes missing\n", cta->rank,
                        cta->rank << SMEM_RANK_SHIFT | b->offset, b->phase, b->pending, b->expected, b->tx);
    }
    for (u32 i = 0; i < MAX_NAMED_BARRIERS && *at < end; i++)
        if (cta->named[i].arrived)
            *at += snprintf(*at, (size_t)(end - *at), "  CTA %u named barrier %u: %u of %u threads arrived\n", cta->rank, i,
                            cta->named[i].arrived, cta->named[i].expected);
}
static void describe(Machine *m)
{
    char *at = m->place, *end = m->place + sizeof m->place;
    *at = 0;
    for (u32 i = 0; i < m->n_clusters; i++)
        for (u32 k = 0; k < m->clusters[i]->size; k++) {
            Cta *cta = m->clusters[i]->ctas[k];
            for (u32 j = 0; j < cta->n_warps && at < end; j++)
                if (cta->warps[j].live) describe_warp(&at, end, m, &cta->warps[j]);
            describe_barriers(&at, end, cta);
            if (at < end && cta->pending_ops) at += snprintf(at, (size_t)(end - at), "  CTA %u: %u asynchronous operations stuck\n", cta->rank, cta->pending_ops);
        }
}
static Warp *some_live_warp(Machine *m)
{
    for (u32 i = 0; i < m->n_clusters; i++)
        for (u32 k = 0; k < m->clusters[i]->size; k++)
            for (u32 j = 0; j < m->clusters[i]->ctas[k]->n_warps; j++)
                if (m->clusters[i]->ctas[k]->warps[j].live) return &m->clusters[i]->ctas[k]->warps[j];
    return 0;
}
static void stuck(Machine *m, int kind, const char *what)
{
    Warp *w = some_live_warp(m);
    describe(m);
    finding(m, w, w ? &m->code[w->groups[0].pc] : 0, 0, kind, 0, "%s; the report lists every warp and barrier", what);
}

/* ---- rounds */

#define POLLING_STEPS 20000 /* warp instructions without a side effect after which everybody gets a turn */

static int run_warp(Machine *m, Warp *w)
{
    const Personality *p = &m->mood;
    u32 slice = m->eager ? p->slice_max : p->slice_min + random_below(m, p->slice_max - p->slice_min + 1);
    int did = warp_run(m, w, slice);
    if (did == WARP_FATAL) m->fatal = 1;
    if (did == WARP_DONE) {
        w->cta->live_warps--;
        event(m);
    }
    if (!m->eager && m->n_ops && random_below(m, 1000) < p->async_permille) async_advance(m, 0);
    return did;
}

/* One pass over the resident warps; returns how many could run. */
static u32 pass(Machine *m, int starved_too)
{
    u32 ran = 0;
    u32 start_cluster = m->eager ? 0 : random_below(m, m->n_clusters);
    for (u32 i = 0; i < m->n_clusters && !m->fatal; i++) {
        Cluster *c = m->clusters[(i + start_cluster) % m->n_clusters];
        u32 start_cta = m->eager ? 0 : random_below(m, c->size);
        for (u32 k = 0; k < c->size && !m->fatal; k++) {
            Cta *cta = c->ctas[(k + start_cta) % c->size];
            u32 start_warp = m->eager ? 0 : random_below(m, cta->n_warps), step = !m->eager && random_below(m, 2) ? cta->n_warps - 1 : 1;
            for (u32 j = 0; j < cta->n_warps && !m->fatal; j++) {
                Warp *w = &cta->warps[(j * step + start_warp) % cta->n_warps];
                if (!w->live || !warp_may_run(m, w)) continue;
                if (!starved_too && m->mood.starved_warps >> (w->index & 31) & 1) continue;
                run_warp(m, w);
                ran++;
            }
        }
    }
    return ran;
}

int run_grid(Machine *m)
{
    while (!m->fatal) {
        launch_clusters(m);
        if (!m->n_clusters) return 0;
        /* Warps that only poll memory do not keep starved warps and copies waiting for ever. */
        int polling = m->time > m->progress && m->time - m->progress > POLLING_STEPS;
        u32 ran = pass(m, polling);
        if (!ran && m->mood.starved_warps) ran = pass(m, 1);
        if (polling) async_advance(m, 1);
        if (m->fatal) break;
        if (m->eager && m->n_ops) async_drain(m);
        if (!ran && !async_advance(m, 1) && !retire_clusters(m)) {
            if (!m->fatal) stuck(m, F_DEADLOCK, "no warp and no asynchronous operation can make progress");
            break;
        }
        if (m->retired_at != m->events) {
            retire_clusters(m);
            m->retired_at = m->events;
        }
        if (m->time > m->progress && m->time - m->progress > m->launch->max_steps) {
            stuck(m, F_LIVELOCK, "warps spin without a store, an arrival or an asynchronous operation");
            break;
        }
    }
    return 1;
}
