/* wgmma: asynchronous warpgroup matrix products with register accumulators.
 *
 * Warp w of a warpgroup owns rows 16 (w % 4).. of the 64-row tile, so each warp computes its own part from its own
 * in-order queue, but not before all four warps have issued the instruction; and a wait is over when all four parts have
 * run. Operands and accumulators are read when the scheduler runs the operation, at the latest at wait_group. Until a
 * warp of the group has waited, the shared memory counts as being read; until the warp itself has, its registers do.
 */
#include <stdlib.h>
#include <string.h>

#include "engines.h"
#include "fragments.h"
#include "hopper_sum.h"

/* Instr.mod, packed by lowering/wgmma.py */
#define MOD_RS 1u /* A in registers */
#define MOD_N(mod) (((mod) >> 1 & 63) * 8)
#define MOD_A_TYPE(mod) ((int)((mod) >> 8 & 15))
#define MOD_B_TYPE(mod) ((int)((mod) >> 12 & 15))
#define MOD_ACC(mod) ((int)((mod) >> 16 & 3))
#define MOD_NEGATE_A (1u << 18)
#define MOD_NEGATE_B (1u << 19)
#define MOD_TRANS_A (1u << 20)
#define MOD_TRANS_B (1u << 21)
#define MOD_SATURATE (1u << 22)

/* Arguments: accumulators, A descriptor or four A registers, B descriptor, scale-d predicate. */
static u32 acc_count(const Instr *ins) { return acc_registers(MOD_ACC(ins->mod), MOD_N(ins->mod)); }
static u32 a_count(const Instr *ins) { return ins->mod & MOD_RS ? 4 : 1; }

typedef struct Wgmma {
    SmemDesc a, b;
    OperandShape a_shape, b_shape;
    int accumulate;
    Claim *claim[2];
} Wgmma;

/* ---- execution --------------------------------------------------------------------------------------------------- */

static void read_a(const Machine *m, const AsyncOp *op, const Wgmma *t, double *a) {
    const i32 *args = arg_list(m, op->ins);
    if (!(op->ins->mod & MOD_RS)) {
        operand_read(op->cta, &t->a, &t->a_shape, 0, a);
        return;
    }
    const u32 *regs[4];
    u8 raw[16 * 32];
    for (u32 i = 0; i < 4; i++) regs[i] = src32(m, op->warp, args[acc_count(op->ins) + i]);
    gather_a(regs, 32, raw);
    operand_decode(&t->a_shape, raw, 0, a);
}

/* The warp at place i of w's warpgroup, or NULL if it is gone. */
static Warp *group_warp(const Warp *w, u32 i) {
    u32 index = (w->index & ~3u) + i;
    return index < w->cta->n_warps && w->cta->warps[index].live ? &w->cta->warps[index] : NULL;
}

static int wgmma_step(Machine *m, AsyncOp *op) {
    const Wgmma *t = op->data;
    for (u32 i = 0; i < 4; i++) {
        const Warp *w = group_warp(op->warp, i);
        if (w && w->engine->issued < op->u[0]) return ASYNC_WAIT;
    }
    const i32 *args = arg_list(m, op->ins);
    u32 n = t->b_shape.rows, k = t->b_shape.k, mod = op->ins->mod, count = acc_count(op->ins);
    double a[16 * 32], c[16 * 256];
    double *b = malloc((size_t)n * k * sizeof *b);
    u32 *regs[128];
    for (u32 i = 0; i < count; i++) regs[i] = dst32(op->warp, args[i]);
    read_a(m, op, t, a);
    operand_read(op->cta, &t->b, &t->b_shape, 1, b);
    if (((mod & MOD_NEGATE_A) != 0) != ((mod & MOD_NEGATE_B) != 0))
        for (u32 i = 0; i < 16 * k; i++) a[i] = -a[i];
    if (t->accumulate) gather_acc((const u32 *const *)regs, MOD_ACC(mod), n, c);
    else memset(c, 0, 16 * n * sizeof *c);
    int a_type = MOD_A_TYPE(mod), b_type = MOD_B_TYPE(mod), fp8 = a_type == EL_E4M3 || a_type == EL_E5M2;
    if (MOD_ACC(mod) == ACC_S32) matmul_panels(16, (int)n, (int)k, a, b, c, (int)n);
    else hopper_sum(16, (int)n, (int)k, a, a_type, b, b_type, c, (int)n, fp8 ? 13 : 25, MOD_ACC(mod) == ACC_F16 ? 53 : fp8 ? 14 : 24);
    scatter_acc(regs, MOD_ACC(mod), n, c, (mod & MOD_SATURATE) != 0);
    free(b);
    op->warp->engine->executed++;
    event(m);
    return ASYNC_DONE;
}

/* ---- registers in flight ----------------------------------------------------------------------------------------- */

static void mark(const Machine *m, WarpEngine *e, const Instr *ins) {
    const i32 *args = arg_list(m, ins);
    u32 n = acc_count(ins);
    for (u32 i = 0; i < n; i++) e->slots[args[i]] |= SLOT_WGMMA_ACC;
    if (ins->mod & MOD_RS)
        for (u32 i = 0; i < 4; i++)
            if (args[n + i] >= 0) e->slots[args[n + i]] |= SLOT_WGMMA_READ;
    e->n_in_flight++;
}

/* Shared-memory claims of the warpgroup's wgmma up to `number`: nobody reads those operands any more. */
static void release_claims(Machine *m, const Warp *w, u64 number) {
    for (u32 i = 0; i < 4; i++) {
        const Warp *other = group_warp(w, i);
        for (u32 k = 0; other && k < other->engine->n_pending; k++) {
            PendingWgmma *p = &other->engine->pending[k];
            if (p->number > number) break;
            shadow_release(m, p->claim[0]);
            shadow_release(m, p->claim[1]);
            p->claim[0] = p->claim[1] = NULL;
        }
    }
}

/* Forgets operations of groups up to `group` and rebuilds the register marks of the rest. */
static void retire(Machine *m, Warp *w, u64 group) {
    WarpEngine *e = w->engine;
    u32 kept = 0;
    if (!e->n_pending || e->pending[0].group > group) return;
    for (u32 s = 0; s < m->program->n_slots; s++) e->slots[s] &= (u8) ~(SLOT_WGMMA_ACC | SLOT_WGMMA_READ);
    e->n_in_flight = 0;
    for (u32 i = 0; i < e->n_pending; i++) {
        if (e->pending[i].group <= group) continue;
        mark(m, e, e->pending[i].ins);
        e->pending[kept++] = e->pending[i];
    }
    e->n_pending = kept;
}

static int check_registers(Machine *m, Warp *w, const Instr *ins) {
    WarpEngine *e = w->engine;
    const i32 *args = arg_list(m, ins);
    u32 n = acc_count(ins), all = n + (ins->mod & MOD_RS ? 4 : 0);
    if (!e->fenced)
        return finding(m, w, ins, 0, F_WGMMA_FENCE, 0, "the first wgmma.mma_async of this warp comes without wgmma.fence before it");
    for (u32 i = 0; i < all; i++) {
        if (args[i] < 0) continue;
        u8 s = e->slots[args[i]];
        if (s & SLOT_UNFENCED)
            return finding(m, w, ins, 0, F_WGMMA_FENCE, (u64)args[i], "%s register %u of this wgmma was written after the last wgmma.fence",
                           i < n ? "accumulator" : "A", i < n ? i : i - n);
        if (i >= n && s & SLOT_WGMMA_ACC)
            return finding(m, w, ins, 0, F_WGMMA_IN_FLIGHT, (u64)args[i], "A register %u is an accumulator of a wgmma still in flight; "
                           "execute wgmma.wait_group first", i - n);
        if (i < n && s & SLOT_WGMMA_READ)
            return finding(m, w, ins, 0, F_WGMMA_IN_FLIGHT, (u64)args[i], "accumulator %u is an A register of a wgmma still in flight", i);
    }
    return EX_NEXT;
}

/* Moves do not count as writes: compilers sink zeroing and copies of accumulators below the fence, and the assembler
 * orders them itself (NVIDIA's persistent Hopper GEMM is such a kernel). */
int op_MOV32(Machine *m, Warp *w, const Instr *ins, u32 mask);

/* Called before every instruction of a warp while Warp.watch is set. */
int engine_watch(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    WarpEngine *e = w->engine;
    (void)mask;
    const i32 *use = m->program->uses + m->program->use_start[ins->pc], *end = m->program->uses + m->program->use_start[ins->pc + 1];
    u8 any = 0, written = emu_handlers[ins->op] == op_MOV32 ? 0 : SLOT_UNFENCED;
    for (const i32 *u = use; u < end; u++) {
        u8 *s = &e->slots[*u >> 1];
        any |= (u8)(*s & (*u & 1 ? 0xff : SLOT_WGMMA_ACC | SLOT_LOADING));
        if (*u & 1) *s |= written;
    }
    if (any & SLOT_LOADING) {
        /* the hardware waits for the register; PTX asks for the instruction, and many right kernels do without */
        finding(m, w, ins, 0, F_TMEM_MISSING_WAIT_LD, 0, "a result of tcgen05.ld is used without tcgen05.wait::ld before it");
        tcgen05_loads_done(m, w);
    }
    if (!(any & (SLOT_WGMMA_ACC | SLOT_WGMMA_READ)) || !e->n_in_flight) return EX_NEXT;
    return finding(m, w, ins, 0, F_WGMMA_IN_FLIGHT, 0, "this instruction %s a register that a wgmma in flight (PTX line %u) still %s; execute "
                   "wgmma.wait_group first", any & SLOT_WGMMA_ACC ? "uses" : "overwrites", e->pending[0].ins->line,
                   any & SLOT_WGMMA_ACC ? "accumulates into" : "reads as A");
}

/* ---- instructions ------------------------------------------------------------------------------------------------ */

static const char *decode(Machine *m, Warp *w, const Instr *ins, Wgmma *t) {
    const i32 *args = arg_list(m, ins);
    u32 n = acc_count(ins), mod = ins->mod;
    int a_type = MOD_A_TYPE(mod), b_type = MOD_B_TYPE(mod);
    u32 k = 256 / (u32)elem_bits(b_type); /* 32 bytes of K */
    t->a_shape = (OperandShape){a_type, PACK_DENSE, (mod & MOD_TRANS_A) != 0, 16, k, 16 * (w->index % 4)};
    t->b_shape = (OperandShape){b_type, PACK_DENSE, (mod & MOD_TRANS_B) != 0, MOD_N(mod), k, 0};
    const char *wrong = smem_desc_decode_wgmma(src64(m, w, args[n + a_count(ins)])[0], &t->b);
    if (mod & MOD_RS) t->a_shape.first = 0;
    else if (!wrong) wrong = smem_desc_decode_wgmma(src64(m, w, args[n])[0], &t->a);
    return wrong;
}

int op_WGMMA(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    if (mask != w->live) return EX_SYNC;
    if (mask != FULL) return finding(m, w, ins, 0, F_DIVERGED_SYNC, 0, "wgmma needs all 32 lanes of the warp");
    const i32 *args = arg_list(m, ins);
    WarpEngine *e = w->engine;
    Wgmma *t = calloc(1, sizeof *t);
    const char *wrong = decode(m, w, ins, t);
    if (wrong) {
        free(t);
        return finding(m, w, ins, 0, F_WGMMA_DESCRIPTOR, 0, "%s", wrong);
    }
    if (m->launch->strict && check_registers(m, w, ins) == EX_FATAL) return EX_FATAL;
    t->accumulate = w->preds[args[acc_count(ins) + a_count(ins) + 1]] & 1;
    AsyncOp *op = async_push(m, &e->wgmma, ASYNC_WGMMA, wgmma_step, w, ins, mask);
    op->data = t;
    op->group = e->wgmma_group;
    if (!(ins->mod & MOD_RS) && !operand_claim(m, op, w->cta, &t->a, &t->a_shape, &t->claim[0])) return EX_FATAL;
    if (!operand_claim(m, op, w->cta, &t->b, &t->b_shape, &t->claim[1])) return EX_FATAL;
    if (e->n_pending == e->cap_pending) {
        e->cap_pending = e->cap_pending ? 2 * e->cap_pending : 32;
        e->pending = realloc(e->pending, e->cap_pending * sizeof *e->pending);
    }
    op->u[0] = ++e->issued;
    e->pending[e->n_pending++] = (PendingWgmma){e->wgmma_group, e->issued, ins, {t->claim[0], t->claim[1]}};
    event(m); /* the other warps' parts may run now */
    mark(m, e, ins);
    if (w->index % 4 == 0) {
        m->counters[C_MMA_INSTRUCTIONS]++;
        m->counters[C_MMA_MACS] += 64ull * t->b_shape.rows * t->b_shape.k;
    }
    return EX_NEXT;
}

int op_WGMMA_FENCE(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    (void)ins;
    if (mask != w->live) return EX_SYNC;
    for (u32 s = 0; s < m->program->n_slots; s++) w->engine->slots[s] &= (u8)~SLOT_UNFENCED;
    w->engine->fenced = 1;
    w->watch = m->launch->strict; /* from here on register writes matter */
    return EX_NEXT;
}

int op_WGMMA_COMMIT(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    (void)m;
    (void)ins;
    if (mask != w->live) return EX_SYNC;
    w->engine->wgmma_group++;
    return EX_NEXT;
}

/* wgmma.wait_group: imm = groups that may stay pending */
int op_WGMMA_WAIT(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    if (mask != w->live) return EX_SYNC;
    WarpEngine *e = w->engine;
    if (e->wgmma_group <= ins->imm + 1) return EX_NEXT;
    u64 group = e->wgmma_group - 1 - ins->imm, number = 0;
    for (u32 i = 0; i < e->n_pending && e->pending[i].group <= group; i++) number = e->pending[i].number;
    for (u32 i = 0; i < 4; i++) {
        const Warp *other = group_warp(w, i);
        if (!other || other->engine->executed >= number) continue;
        w->wait_what = "wgmma.wait_group: all four warps of the warpgroup to issue, and the products to run; warp";
        w->wait_addr = other->index;
        w->wait_arg = ins->imm;
        return EX_BLOCK;
    }
    release_claims(m, w, number);
    retire(m, w, group);
    return EX_NEXT;
}
