/* Race detector for shared memory. See shadow.h for the model. */
#include "shadow.h"

#include <stdlib.h>
#include <string.h>

/* Orders writes, fences and waits of one launch; a launch runs in one host thread. */
static __thread u32 tick;

void shadow_cta_begin(Machine *m, Cta *cta) {
    (void)m;
    cta->shadow = malloc(sizeof *cta->shadow);
    memset(cta->shadow, 0, offsetof(Shadow, write_time));
    memset(cta->shadow->fence_time, 0, sizeof *cta->shadow - offsetof(Shadow, fence_time));
}

void shadow_cta_end(Machine *m, Cta *cta) {
    (void)m;
    if (!cta->shadow) return;
    for (Claim *c = cta->shadow->first, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    free(cta->shadow);
    cta->shadow = NULL;
}

const char *async_name(u32 kind) {
    static const char *const names[ASYNC_KINDS] = {
        [ASYNC_CP_ASYNC] = "cp.async", [ASYNC_BULK_LOAD] = "bulk load", [ASYNC_BULK_STORE] = "bulk store",
        [ASYNC_TMA_LOAD] = "TMA load", [ASYNC_TMA_STORE] = "TMA store", [ASYNC_WGMMA] = "wgmma",
        [ASYNC_TCGEN05] = "tcgen05 operation", [ASYNC_TCGEN05_LDST] = "tcgen05.ld/st",
        [ASYNC_CLC] = "clusterlaunchcontrol", [ASYNC_REMOTE] = "remote store",
    };
    return names[kind];
}

/* What the programmer should have waited for before touching bytes of this operation. */
static const char *cure(u32 kind) {
    switch (kind) {
    case ASYNC_CP_ASYNC: return "cp.async.wait_group (or its mbarrier) and a barrier";
    case ASYNC_BULK_STORE: case ASYNC_TMA_STORE: return "cp.async.bulk.wait_group.read by the issuing thread, then a barrier";
    case ASYNC_WGMMA: return "wgmma.wait_group, then the stage's empty barrier";
    case ASYNC_TCGEN05: return "the mbarrier of its tcgen05.commit";
    default: return "its mbarrier";
    }
}

static int overlaps(const Claim *c, u32 off, u32 size) {
    if (off >= c->hi || off + size <= c->lo) return 0;
    for (u32 i = 0; i < c->n; i++)
        if (off < c->seg[i].off + c->seg[i].size && off + size > c->seg[i].off) return 1;
    return 0;
}

static int writes(u32 access) { return access != ACCESS_READ; }

/* Reductions commute; threads that copy one element redundantly with cp.async all write the same value. */
static int harmless_pair(const Claim *c, u32 access, u32 kind) {
    return (access == ACCESS_ATOMIC && c->access == ACCESS_ATOMIC) || (kind == ASYNC_CP_ASYNC && c->kind == ASYNC_CP_ASYNC);
}

enum { NOT_ASYNC = ASYNC_KINDS }; /* kind of an ordinary access */

/* A claim that an access races with among the pending writes, or among the pending reads. */
static Claim *conflict(Shadow *sh, u32 off, u32 size, u32 access, u32 kind, int pending_writes) {
    for (Claim *c = sh->first; c; c = c->next)
        if (writes(c->access) == pending_writes && !harmless_pair(c, access, kind) && overlaps(c, off, size)) return c;
    return NULL;
}

static u8 any_flags(const u8 *flags, u32 size) {
    u8 any = 0;
    for (u32 i = 0; i < size; i++) any |= flags[i];
    return any;
}

static u8 all_flags(const u8 *flags, u32 size) {
    u8 all = 0xff;
    for (u32 i = 0; i < size; i++) all &= flags[i];
    return all;
}

static int report_race(Machine *m, const Warp *w, const Instr *ins, u32 lane, const Cta *cta, u32 off, u32 size,
                       const char *what, const Claim *c) {
    int writing = writes(c->access);
    return finding(m, w, ins, lane, writing ? F_RACE_ASYNC_WRITE : F_RACE_ASYNC_READ,
                   (u64)cta->rank << SMEM_RANK_SHIFT | off,
                   "%s of %u bytes at shared offset 0x%x while the %s of PTX line %u (warp %u) may still %s them; wait for %s first",
                   what, size, off, async_name(c->kind), c->line, c->warp, writing ? "write" : "read", cure(c->kind));
}

/* Slow path of an access whose flags say that a claim may be near; clears stale flags. */
static int check_claims(Machine *m, const Warp *w, const Instr *ins, u32 lane, Cta *cta, u32 off, u32 size, u8 any,
                        u32 access, u32 kind, const char *what) {
    Shadow *sh = cta->shadow;
    for (int pending_writes = 1; pending_writes >= 0; pending_writes--) {
        u8 flag = pending_writes ? SHADOW_WRITING : SHADOW_READING;
        if (!(any & flag) || (!pending_writes && access == ACCESS_READ)) continue;
        Claim *c = conflict(sh, off, size, access, kind, pending_writes);
        if (c) return report_race(m, w, ins, lane, cta, off, size, what, c);
        if (!conflict(sh, off, size, ACCESS_WRITE, NOT_ASYNC, pending_writes))
            for (u32 i = 0; i < size; i++) sh->flags[off + i] &= (u8)~flag;
    }
    return EX_NEXT;
}

static void mark_writer(Shadow *sh, const Warp *w, u32 off, u32 size) {
    u16 who = (u16)(w->cta->rank * 32 + w->index % 32);
    for (u32 g = off / 4; g <= (off + size - 1) / 4; g++) {
        sh->write_time[g] = tick;
        sh->writer[g] = who;
    }
}

#define BYTES(flag) (0x0101010101010101ull * (flag))

/* The access of one lane, if its bytes have nothing special about them; 0 if the slow path has to look. */
static inline int plain_access(u8 *flags, u32 size, int access) {
    u64 bad = BYTES(access == ACCESS_READ ? SHADOW_WRITING : SHADOW_WRITING | SHADOW_READING);
    for (u32 at = 0; at < size; at += 8) {
        u32 n = size - at < 8 ? size - at : 8;
        u64 mask = n == 8 ? ~0ull : (1ull << 8 * n) - 1, f = 0;
        memcpy(&f, flags + at, n);
        if (f & bad || (access != ACCESS_WRITE && (~f & mask & BYTES(SHADOW_INIT)))) return 0;
    }
    if (access != ACCESS_READ)
        for (u32 i = 0; i < size; i++) flags[i] |= SHADOW_INIT | SHADOW_GENERIC;
    return 1;
}

static int inspect_access(Machine *m, Warp *w, const Instr *ins, u32 lane, Cta *cta, u32 off, u32 size, int access) {
    Shadow *sh = cta->shadow;
    u8 any = any_flags(sh->flags + off, size);
    if (any & (access == ACCESS_READ ? SHADOW_WRITING : SHADOW_WRITING | SHADOW_READING)) {
        const char *what = access == ACCESS_READ ? "read" : access == ACCESS_WRITE ? "write" : "atomic";
        if (check_claims(m, w, ins, lane, cta, off, size, any, (u32)access, NOT_ASYNC, what) == EX_FATAL) return EX_FATAL;
    }
    if (access != ACCESS_WRITE && !(all_flags(sh->flags + off, size) & SHADOW_INIT)) {
        int r = finding(m, w, ins, lane, F_UNINITIALISED_SHARED, (u64)cta->rank << SMEM_RANK_SHIFT | off,
                        "read of %u bytes at shared offset 0x%x that nothing has written", size, off);
        if (r == EX_FATAL) return r;
    }
    if (access != ACCESS_READ)
        for (u32 i = 0; i < size; i++) sh->flags[off + i] |= SHADOW_INIT | SHADOW_GENERIC;
    return EX_NEXT;
}

int shadow_generic(Machine *m, Warp *w, const Instr *ins, Cta *cta, const u32 off[LANES], u32 mask, u32 size, int access) {
    Shadow *sh = cta->shadow;
    if (!sh || !m->launch->strict) return EX_NEXT;
    if (access != ACCESS_READ) tick++;
    for (u32 todo = mask; todo; todo &= todo - 1) {
        u32 lane = lowest_lane(todo), o = off[lane];
        if (!plain_access(sh->flags + o, size, access) && inspect_access(m, w, ins, lane, cta, o, size, access) == EX_FATAL)
            return EX_FATAL;
        if (access != ACCESS_READ) mark_writer(sh, w, o, size);
    }
    return EX_NEXT;
}

void shadow_fence_async(Machine *m, Warp *w, u32 mask) {
    (void)m;
    (void)mask;
    Cluster *cl = w->cta->cluster;
    Shadow *own = w->cta->shadow;
    if (!own) return;
    own->fence_time[w->index % 32] = ++tick;
    for (u32 r = 0; r < cl->size; r++) {
        Shadow *sh = cl->ctas[r] ? cl->ctas[r]->shadow : NULL;
        if (sh && sh->covered_time < own->acquire_time[w->index % 32])
            sh->covered_time = own->acquire_time[w->index % 32];
    }
}

/* Publishing needs no record: a waiter is taken to have acquired everything that happened before its wait. That can
 * miss a fence on the wrong side of a barrier, and never blames a right program. */
void shadow_arrive(Machine *m, Warp *w, const void *barrier) {
    (void)m;
    (void)w;
    (void)barrier;
}

void shadow_wait(Machine *m, Warp *w, const void *barrier) {
    (void)m;
    (void)barrier;
    if (w->cta->shadow) w->cta->shadow->acquire_time[w->index % 32] = ++tick;
}

/* The async proxy sees a generic write if its writer fenced after it, or someone who acquired it fenced. */
static int fenced(const Cta *cta, u32 off) {
    const Shadow *sh = cta->shadow;
    u32 t = sh->write_time[off / 4];
    if (t < sh->covered_time) return 1;
    const Cta *from = cta->cluster->ctas[sh->writer[off / 4] / 32];
    if (!from || !from->shadow) return 1;
    return from->shadow->fence_time[sh->writer[off / 4] % 32] > t;
}

static void check_fences(Machine *m, AsyncOp *op, Cta *cta, u32 off, u32 size) {
    u8 *flags = cta->shadow->flags;
    for (u32 i = off; i < off + size; i++) {
        if (!(flags[i] & SHADOW_GENERIC)) continue;
        if (!fenced(cta, i)) {
            u32 who = cta->shadow->writer[i / 4];
            finding(m, op->warp, op->ins, op->lane, F_MISSING_PROXY_FENCE, (u64)cta->rank << SMEM_RANK_SHIFT | i,
                    "%s reads shared offset 0x%x that warp %u of cluster rank %u wrote with ordinary stores, without "
                    "fence.proxy.async by the writer (or by a thread that synchronised with it) before this instruction",
                    async_name(op->kind), i, who % 32, who / 32);
            return;
        }
        flags[i] &= (u8)~SHADOW_GENERIC;
    }
}

static void check_async(Machine *m, AsyncOp *op, Cta *cta, const Segment *s, int access) {
    Shadow *sh = cta->shadow;
    u8 any = any_flags(sh->flags + s->off, s->size);
    if (any & (SHADOW_WRITING | SHADOW_READING))
        check_claims(m, op->warp, op->ins, op->lane, cta, s->off, s->size, any, (u32)access, op->kind,
                     access != ACCESS_READ ? "asynchronous write" : "asynchronous read");
    if (access != ACCESS_READ) return;
    if (any & SHADOW_GENERIC) check_fences(m, op, cta, s->off, s->size);
    /* bytes that a pending write will fill were reported above, if at all */
    if (!(all_flags(sh->flags + s->off, s->size) & SHADOW_INIT) && !(any & SHADOW_WRITING))
        finding(m, op->warp, op->ins, op->lane, F_UNINITIALISED_SHARED, (u64)cta->rank << SMEM_RANK_SHIFT | s->off,
                "%s reads %u bytes at shared offset 0x%x, not all of which were ever written", async_name(op->kind),
                s->size, s->off);
}

static void flag_segments(Shadow *sh, const Claim *c) {
    u8 flag = writes(c->access) ? SHADOW_WRITING : SHADOW_READING;
    for (u32 i = 0; i < c->n; i++)
        for (u32 b = 0; b < c->seg[i].size; b++) sh->flags[c->seg[i].off + b] |= flag;
}

Claim *shadow_claim(Machine *m, AsyncOp *op, Cta *cta, const Segment *seg, u32 n, int access) {
    Shadow *sh = cta->shadow;
    if (!sh || !m->launch->strict || !n) return NULL;
    Claim *c = malloc(sizeof *c + n * sizeof *seg);
    *c = (Claim){.op = op, .cta = cta, .kind = op->kind, .line = op->ins ? op->ins->line : 0,
                 .warp = op->warp->index, .access = (u32)access, .n = n,
                 .lo = ~0u, .prev = sh->last};
    memcpy(c->seg, seg, n * sizeof *seg);
    for (u32 i = 0; i < n; i++) {
        check_async(m, op, cta, &seg[i], access);
        if (seg[i].off < c->lo) c->lo = seg[i].off;
        if (seg[i].off + seg[i].size > c->hi) c->hi = seg[i].off + seg[i].size;
    }
    *(sh->last ? &sh->last->next : &sh->first) = c;
    sh->last = c;
    flag_segments(sh, c);
    return c;
}

void shadow_release(Machine *m, Claim *c) {
    (void)m;
    if (!c || !c->cta->shadow) return;
    Shadow *sh = c->cta->shadow;
    *(c->prev ? &c->prev->next : &sh->first) = c->next;
    *(c->next ? &c->next->prev : &sh->last) = c->prev;
    int wrote = writes(c->access);
    u8 pending = wrote ? SHADOW_WRITING : SHADOW_READING;
    for (const Claim *o = sh->first; o && pending; o = o->next) /* others may cover the same bytes (MMAs that read one tile): */
        if (writes(o->access) == wrote && o->lo < c->hi && c->lo < o->hi) pending = 0; /* a stale flag only costs a look */
    u8 clear = (u8) ~(pending | (wrote ? SHADOW_GENERIC : 0)), set = wrote ? SHADOW_INIT : 0;
    for (u32 i = 0; i < c->n; i++) {
        u8 *f = sh->flags + c->seg[i].off;
        for (u32 b = 0; b < c->seg[i].size; b++) f[b] = (u8)((f[b] & clear) | set);
    }
    free(c);
}

void shadow_store_read(Machine *m, const AsyncOp *op, Claim *c) {
    if (!c || !op->group) {
        shadow_release(m, c);
        return;
    }
    c->waiter = op->warp;
    c->lane = op->lane;
    c->group = op->group;
}

void shadow_bulk_waited(Machine *m, Warp *w, u32 lane, u64 oldest_kept) {
    Shadow *sh = w->cta->shadow;
    if (!sh) return;
    for (Claim *c = sh->first, *next; c; c = next) {
        next = c->next;
        if (c->waiter == w && c->lane == lane && c->group < oldest_kept) shadow_release(m, c);
    }
}

u32 segments_of_chunks(const u32 *chunks, u32 n, Segment *seg) {
    u32 k = 0;
    for (u32 i = 0; i < n; i++) {
        if (k && seg[k - 1].off + seg[k - 1].size == chunks[i]) seg[k - 1].size += 16;
        else if (k && chunks[i] + 16 == seg[k - 1].off) seg[k - 1].off -= 16, seg[k - 1].size += 16;
        else seg[k++] = (Segment){chunks[i], 16};
    }
    return k;
}

/* ---- single ranges, for the core's own copies ------------------------------------------------------------------ */

void shadow_async_issue(Machine *m, AsyncOp *op, Cta *cta, u32 off, u32 size, int access) {
    Segment s = {off, size};
    if (size) shadow_claim(m, op, cta, &s, 1, access);
}

void shadow_async_done(Machine *m, AsyncOp *op, Cta *cta, u32 off, u32 size, int access) {
    if (!cta->shadow) return;
    for (Claim *c = cta->shadow->first; c; c = c->next)
        if (c->op == op && c->access == (u32)access && c->n == 1 && c->seg[0].off == off && c->seg[0].size == size) {
            if (access == ACCESS_READ) shadow_store_read(m, op, c);
            else shadow_release(m, c);
            return;
        }
}
