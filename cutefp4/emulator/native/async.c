/* Queues of asynchronous operations, and how they advance. */
#include "lanes.h"

#include <stdlib.h>

void queue_register(Machine *m, AsyncQueue *q, int in_order)
{
    if (m->n_queues == m->cap_queues) {
        m->cap_queues = m->cap_queues ? 2 * m->cap_queues : 64;
        m->queues = realloc(m->queues, m->cap_queues * sizeof *m->queues);
    }
    *q = (AsyncQueue){.in_order = (u32)in_order, .index = m->n_queues};
    m->queues[m->n_queues++] = q;
}
void queue_unregister(Machine *m, AsyncQueue *q)
{
    while (q->head) {
        AsyncOp *op = q->head;
        q->head = op->next;
        op->cta->pending_ops--;
        free(op->data);
        free(op);
        m->n_ops--;
    }
    m->queues[q->index] = m->queues[--m->n_queues];
    m->queues[q->index]->index = q->index;
}
AsyncOp *async_push(Machine *m, AsyncQueue *q, int kind, AsyncStep step, Warp *w, const Instr *ins, u32 mask)
{
    AsyncOp *op = calloc(1, sizeof *op);
    op->queue = q;
    op->kind = (u8)kind;
    op->step = step;
    op->warp = w;
    op->cta = w->cta;
    op->ins = ins;
    op->mask = mask;
    op->lane = (u8)lowest_lane(mask);
    op->born = m->time;
    op->prev = q->tail;
    if (q->tail) q->tail->next = op;
    else q->head = op;
    q->tail = op;
    q->count++;
    m->n_ops++;
    m->pushed = 1;
    w->cta->pending_ops++;
    m->counters[C_ASYNC_OPERATIONS]++;
    m->progress = m->time;
    return op;
}
static void retire(Machine *m, AsyncOp *op)
{
    AsyncQueue *q = op->queue;
    if (op->prev) op->prev->next = op->next;
    else q->head = op->next;
    if (op->next) op->next->prev = op->prev;
    else q->tail = op->prev;
    q->count--;
    m->n_ops--;
    op->cta->pending_ops--;
    free(op->data);
    free(op);
    event(m);
}
/* One phase; 1 if it happened. */
static int advance(Machine *m, AsyncOp *op)
{
    int did = op->step(m, op);
    if (did == ASYNC_WAIT) return 0;
    op->phase++;
    if (did == ASYNC_DONE) retire(m, op);
    else event(m);
    return 1;
}
static int may_advance(Machine *m, const AsyncOp *op, int force)
{
    return force || random_below(m, 1000) < m->mood.kind_permille[op->kind];
}
int async_advance(Machine *m, int force)
{
    if (!m->n_ops) return 0;
    u32 n = m->n_queues, first = m->eager ? 0 : random_below(m, n);
    for (u32 i = 0; i < n; i++) {
        AsyncQueue *q = m->queues[(first + i) % n];
        if (!q->head) continue;
        AsyncOp *op = q->head;
        if (!q->in_order && !m->eager) /* unordered: start anywhere in the first few */
            for (u32 skip = random_below(m, 4); skip && op->next; skip--) op = op->next;
        for (; op; op = q->in_order ? 0 : op->next) {
            if (!may_advance(m, op, force)) continue;
            if (advance(m, op)) return 1;
            if (m->fatal) return 0;
        }
        if (!q->in_order && force) /* the ones skipped above */
            for (op = q->head; op; op = op->next)
                if (advance(m, op)) return 1;
    }
    return 0;
}
void async_drain(Machine *m)
{
    m->pushed = 0;
    int moved = 1;
    while (moved && !m->fatal) {
        moved = 0;
        for (u32 i = 0; i < m->n_queues && !m->fatal; i++) {
            AsyncQueue *q = m->queues[i];
            for (AsyncOp *op = q->head, *next; op && !m->fatal; op = next) {
                next = op->next;
                int did;
                while ((did = op->step(m, op)) == ASYNC_MORE && !m->fatal) { op->phase++; moved = 1; event(m); }
                if (did == ASYNC_DONE) { retire(m, op); moved = 1; }
                else if (q->in_order) break;
            }
        }
    }
}

/* Bulk groups and cp.async groups: group numbers start at 1; the open group of a lane is seq[lane]. */
u32 bulk_groups_pending(Machine *m, const Warp *w, u32 lane, u32 keep, int read_only)
{
    u64 open = w->bulk_seq[lane], oldest_kept = open > keep ? open - keep : 1;
    u32 n = 0;
    for (u32 i = 0; i < m->n_queues; i++)
        for (AsyncOp *op = m->queues[i]->head; op; op = op->next)
            n += op->warp == w && op->group && op->lane == lane && op->kind != ASYNC_CP_ASYNC && op->group < oldest_kept &&
                 !(read_only && op->reads_done);
    return n;
}
