/* Tensor memory: allocation, and the claims of operations that may still touch it.
 *
 * tcgen05.alloc.cta_group::2 needs both CTAs of the pair: it blocks until the peer asks for as many columns, and both
 * then get the same address. Operations of one tcgen05 queue run in order, so that only ld, st and other CTAs' views
 * can race with them; an operation counts as pending until a commit that follows it in the queue has run, whenever
 * this particular run executes it.
 */
#include <stdlib.h>
#include <string.h>

#include "engines.h"

int tcgen05_group(Machine *m, Warp *w, const Instr *ins, u32 cta_group) {
    CtaEngine *e = w->cta->engine;
    if (!e->cta_group) e->cta_group = cta_group;
    if (e->cta_group != cta_group)
        return finding(m, w, ins, 0, F_TCGEN05_OPERAND, 0, "cta_group::%u after cta_group::%u: all tcgen05 instructions of a "
                       "kernel must name the same group", cta_group, e->cta_group);
    if (cta_group == 2 && w->cta->cluster->size < 2)
        return finding(m, w, ins, 0, F_TCGEN05_OPERAND, 0, "cta_group::2 needs a cluster of at least two CTAs");
    return EX_NEXT;
}

Cta *tcgen05_leader(const Warp *w, u32 cta_group) {
    return cta_group == 2 ? w->cta->cluster->ctas[w->cta->rank & ~1u] : w->cta;
}

int tmem_columns_ok(Machine *m, const Warp *w, const Instr *ins, const Cta *cta, u32 col0, u32 col1) {
    const CtaEngine *e = cta->engine;
    int ok = e->tmem && col1 <= TMEM_COLUMNS && col0 < col1;
    for (u32 c = col0; ok && c < col1; c++) ok = e->owner[c / 32] != 0;
    if (!ok)
        finding(m, w, ins, 0, F_TMEM_UNALLOCATED, col0, "columns %u..%u of cluster rank %u are not all allocated; take the base "
                "address from tcgen05.alloc and allocate enough columns", col0, col1 - 1, cta->rank);
    return ok;
}

/* ---- claims ---------------------------------------------------------------------------------------------------- */

static int races(const TmemClaim *a, const TmemClaim *b) {
    if (a->access == ACCESS_READ && b->access == ACCESS_READ) return 0;
    if (a->owner == b->owner || (a->queue && a->queue == b->queue)) return 0;
    if (a->col0 >= b->col1 || b->col0 >= a->col1) return 0;
    return (a->lanes[0] & b->lanes[0]) || (a->lanes[1] & b->lanes[1]);
}

void tmem_check(Machine *m, const Warp *w, const Instr *ins, const Cta *cta, const TmemClaim *access) {
    const CtaEngine *e = cta->engine;
    for (u32 i = 0; i < e->n_claims; i++) {
        const TmemClaim *c = &e->claims[i];
        if (!races(access, c)) continue;
        int load = c->queue == NULL && c->access == ACCESS_READ;
        finding(m, w, ins, 0, F_TMEM_RACE, c->col0, "%s %s columns %u..%u while the %s of PTX line %u may still %s them; %s first",
                access->what, access->access == ACCESS_READ ? "reads" : "writes", access->col0, access->col1 - 1, c->what, c->line,
                c->access == ACCESS_READ ? "read" : "write",
                load ? "execute tcgen05.wait::ld" : c->is_store ? "execute tcgen05.wait::st" : "wait for the mbarrier of its tcgen05.commit");
        return;
    }
}

void tmem_claim(Machine *m, const Warp *w, const Instr *ins, Cta *cta, const TmemClaim *access) {
    CtaEngine *e = cta->engine;
    if (!m->launch->strict) return;
    tmem_check(m, w, ins, cta, access);
    if (e->n_claims == e->cap_claims) {
        e->cap_claims = e->cap_claims ? 2 * e->cap_claims : 64;
        e->claims = realloc(e->claims, e->cap_claims * sizeof *e->claims);
    }
    e->claims[e->n_claims] = *access;
    e->claims[e->n_claims++].line = ins->line;
}

void tmem_drop(Cta *cta, const void *owner) {
    CtaEngine *e = cta->engine;
    u32 kept = 0;
    for (u32 i = 0; i < e->n_claims; i++)
        if (e->claims[i].owner != owner) e->claims[kept++] = e->claims[i];
    e->n_claims = kept;
}

/* ---- alloc, dealloc, relinquish ---------------------------------------------------------------------------------- */

static int find_free(const CtaEngine *e, u32 columns) {
    u32 blocks = columns / 32;
    for (u32 b = 0; b + blocks <= TMEM_COLUMNS / 32; b++) {
        u32 k = 0;
        while (k < blocks && !e->owner[b + k]) k++;
        if (k == blocks) return (int)b * 32;
    }
    return -1;
}

static void take(CtaEngine *e, u32 col, u32 columns, u32 line) {
    if (!e->tmem) {
        e->tmem = malloc(TMEM_LANES * TMEM_COLUMNS * sizeof *e->tmem);
        e->written = malloc(TMEM_LANES * TMEM_COLUMNS);
    }
    u16 number = ++e->next_owner;
    for (u32 b = col / 32; b < (col + columns) / 32; b++) e->owner[b] = number;
    for (u32 lane = 0; lane < TMEM_LANES; lane++) {
        memset(tmem_cell(e, lane, col), 0xff, columns * sizeof(u32));
        memset(tmem_written(e, lane, col), 0, columns);
    }
    e->alloc_line = line;
}

static int check_count(Machine *m, const Warp *w, const Instr *ins, u32 columns) {
    if (columns >= 32 && columns <= TMEM_COLUMNS && !(columns & (columns - 1))) return EX_NEXT;
    return finding(m, w, ins, 0, F_TCGEN05_OPERAND, columns, "%u columns: the count must be a power of two from 32 to 512", columns);
}

/* Columns for this CTA, and for its peer when both have asked; address + 1, or 0 to wait. */
static u32 try_alloc(Machine *m, Warp *w, const Instr *ins, u32 columns, u32 cta_group) {
    CtaEngine *e = w->cta->engine;
    if (cta_group == 1) {
        int col = find_free(e, columns);
        if (col < 0) return 0;
        take(e, (u32)col, columns, ins->line);
        return (u32)col + 1;
    }
    if (e->granted) {
        u32 got = e->granted;
        e->granted = 0;
        return got;
    }
    const Cta *peer_cta = w->cta->cluster->ctas[w->cta->rank ^ 1];
    CtaEngine *peer = peer_cta ? peer_cta->engine : NULL;
    e->want = columns;
    if (!peer || peer->want != columns) return 0;
    int col = find_free(e, columns), other = find_free(peer, columns);
    if (col < 0 || col != other) return 0;
    take(e, (u32)col, columns, ins->line);
    take(peer, (u32)col, columns, ins->line);
    e->want = peer->want = 0;
    peer->granted = (u32)col + 1;
    event(m);
    return (u32)col + 1;
}

/* tcgen05.alloc: smem base, offset, columns; mod = cta_group */
int op_TCGEN05_ALLOC(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    if (mask != w->live) return EX_SYNC;
    const i32 *args = arg_list(m, ins);
    CtaEngine *e = w->cta->engine;
    u32 lane = lowest_lane(mask), columns = src32(m, w, args[2])[lane], off[LANES];
    if (tcgen05_group(m, w, ins, ins->mod) == EX_FATAL || check_count(m, w, ins, columns) == EX_FATAL) return EX_FATAL;
    if (e->relinquished)
        return finding(m, w, ins, lane, F_TMEM_ALLOC_STARVED, 0, "tcgen05.alloc after tcgen05.relinquish_alloc_permit in this CTA");
    off[lane] = (u32)lane_address(m, w, args, 0, lane, 0) & SMEM_OFFSET_MASK;
    u8 *to = smem_ptr(m, w, ins, lane, w->cta, off[lane], 4);
    if (!to) return EX_FATAL;
    u32 got = try_alloc(m, w, ins, columns, ins->mod);
    if (!got) {
        w->wait_what = "tcgen05.alloc: free columns (or the peer CTA's tcgen05.alloc)";
        w->wait_addr = off[lane];
        w->wait_arg = columns;
        return EX_BLOCK;
    }
    u32 address = got - 1;
    memcpy(to, &address, 4);
    event(m);
    return shadow_generic(m, w, ins, w->cta, off, 1u << lane, 4, ACCESS_WRITE);
}

/* tcgen05.dealloc: address, columns; mod = cta_group */
int op_TCGEN05_DEALLOC(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    if (mask != w->live) return EX_SYNC;
    const i32 *args = arg_list(m, ins);
    CtaEngine *e = w->cta->engine;
    u32 lane = lowest_lane(mask), col = tmem_column(src32(m, w, args[0])[lane]), columns = src32(m, w, args[1])[lane];
    if (tcgen05_group(m, w, ins, ins->mod) == EX_FATAL || check_count(m, w, ins, columns) == EX_FATAL) return EX_FATAL;
    if (!tmem_columns_ok(m, w, ins, w->cta, col, col + columns)) return EX_FATAL;
    u16 number = e->owner[col / 32];
    int whole = col % 32 == 0 && (col == 0 || e->owner[col / 32 - 1] != number) &&
                (col + columns == TMEM_COLUMNS || e->owner[(col + columns) / 32] != number);
    for (u32 b = col / 32; b < (col + columns) / 32; b++) whole = whole && e->owner[b] == number;
    if (!whole)
        return finding(m, w, ins, lane, F_TCGEN05_OPERAND, col, "columns %u..%u are not one whole allocation", col, col + columns - 1);
    TmemClaim access = {.owner = ins, .what = "tcgen05.dealloc", .lanes = {~0ull, ~0ull}, .col0 = col, .col1 = col + columns,
                        .access = ACCESS_WRITE};
    if (m->launch->strict) tmem_check(m, w, ins, w->cta, &access);
    for (u32 b = col / 32; b < (col + columns) / 32; b++) e->owner[b] = 0;
    event(m);
    return EX_NEXT;
}

int op_TCGEN05_RELINQUISH(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    if (mask != w->live) return EX_SYNC;
    if (tcgen05_group(m, w, ins, ins->mod) == EX_FATAL) return EX_FATAL;
    w->cta->engine->relinquished = 1;
    event(m);
    return EX_NEXT;
}

/* ---- life of a CTA and a warp ------------------------------------------------------------------------------------ */

void engine_cta_begin(Machine *m, Cta *cta) {
    cta->engine = calloc(1, sizeof *cta->engine);
    shadow_cta_begin(m, cta);
    if (m->program->arch >= 100) queue_register(m, &cta->engine->queue, 1);
}

void engine_cta_end(Machine *m, Cta *cta) {
    CtaEngine *e = cta->engine;
    u32 held = 0;
    for (u32 b = 0; b < TMEM_COLUMNS / 32; b++) held += e->owner[b] != 0;
    if (held)
        finding_cta(m, cta, NULL, F_TMEM_NOT_FREED, 0, "%u columns of tensor memory are still allocated at exit (last allocation at "
                    "PTX line %u); execute tcgen05.dealloc before the last warp leaves", held * 32, e->alloc_line);
    if (m->program->arch >= 100) queue_unregister(m, &e->queue);
    shadow_cta_end(m, cta);
    free(e->tmem);
    free(e->written);
    free(e->claims);
    free(e->retired);
    free(e);
    cta->engine = NULL;
}

void engine_warp_begin(Machine *m, Warp *w) {
    w->engine = calloc(1, sizeof *w->engine);
    w->engine->slots = calloc(m->program->n_slots + 2, 1);
    w->engine->wgmma_group = 1;
    if (m->program->arch >= 100) queue_register(m, &w->engine->stores, 1);
    else if (m->program->arch >= 90) queue_register(m, &w->engine->wgmma, 1);
}

void engine_warp_end(Machine *m, Warp *w) {
    WarpEngine *e = w->engine;
    if (m->program->arch >= 100) queue_unregister(m, &e->stores);
    else if (m->program->arch >= 90) queue_unregister(m, &e->wgmma);
    free(e->slots);
    free(e->pending);
    free(e);
    w->engine = NULL;
}
