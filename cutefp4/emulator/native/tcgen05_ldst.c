/* tcgen05.ld, st and their waits: warps and tensor memory.
 *
 * A load delivers its registers at once (the hardware scoreboards them), but the cells count as being read until
 * wait::ld, or until the warp touches a destination register, or until it stores to tensor memory itself. A store lands
 * when the scheduler says so, at the latest at wait::st.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engines.h"

/* Instr.mod of ld and st, packed by lowering/tcgen05.py; Instr.imm is the column split of 16x32bx2 */
#define MOD_SHAPE(mod) ((int)((mod) & 7))
#define MOD_PACK (1u << 3)
#define MOD_REPEAT(mod) (1 << ((mod) >> 4 & 15))
enum { RED_NONE, RED_MIN, RED_MAX };
#define MOD_RED(mod) ((mod) >> 8 & 3)
#define MOD_ABS (1u << 10)
#define MOD_NAN (1u << 11)
enum { RED_F32, RED_U32, RED_S32 };
#define MOD_TYPE(mod) ((mod) >> 12 & 3)

typedef struct Region {
    u32 lane0, col0, columns, count; /* first cell, width, registers */
    int shape, pack, split;
} Region;

static int decode(Machine *m, const Warp *w, const Instr *ins, u32 mask, u32 address, Region *a) {
    int repeat = MOD_REPEAT(ins->mod);
    a->shape = MOD_SHAPE(ins->mod);
    a->pack = (ins->mod & MOD_PACK) != 0;
    a->split = (int)ins->imm;
    a->count = (u32)ldst_registers(a->shape, repeat);
    a->lane0 = tmem_lane(address);
    a->col0 = tmem_column(address);
    a->columns = (u32)ldst_columns(a->shape, repeat) << a->pack;
    u32 rows = a->shape == SHAPE_32X32B ? 32 : 16, first = 32 * (w->index % 4);
    /* The hardware does not look at the bits that say which 32 lanes: programs may leave them 0 in every warp. Other
     * lanes than the warp's own are a mistake. */
    if (a->lane0 < 32) a->lane0 += first;
    if (a->lane0 % rows || a->lane0 < first || a->lane0 + rows > first + 32)
        return finding(m, w, ins, lowest_lane(mask), F_TCGEN05_OPERAND, address, "lane %u: warp %u may only access lanes %u..%u, from "
                       "a multiple of %u", a->lane0, w->index, first, first + 31, rows);
    u32 end = a->col0 + a->columns;
    if (!tmem_columns_ok(m, w, ins, w->cta, a->col0, end)) return EX_FATAL;
    if (a->shape == SHAPE_16X32BX2) {
        u32 split = (u32)a->split;
        if (!tmem_columns_ok(m, w, ins, w->cta, a->col0 + split, end + split)) return EX_FATAL;
    }
    return EX_NEXT;
}

static TmemClaim claim_of(const Region *a, const void *owner, const char *what, u32 access) {
    TmemClaim c = {.owner = owner, .what = what, .col0 = a->col0, .col1 = a->col0 + a->columns, .access = access};
    u64 rows = a->shape == SHAPE_32X32B ? 0xffffffffull : 0xffffull;
    c.lanes[a->lane0 / 64] = rows << a->lane0 % 64;
    if (a->shape == SHAPE_16X32BX2 && a->split > 0) c.col1 += (u32)a->split;
    return c;
}

/* Absolute cell of thread t, register r; with packing the cell of the low half (the high half is one column on). */
static inline void cell(const Region *a, u32 t, u32 r, u32 *lane, u32 *col) {
    u32 l, c;
    ldst_cell(a->shape, a->split, (int)t, (int)r, &l, &c);
    *lane = a->lane0 + l;
    *col = a->col0 + (c << a->pack);
}

static int read_cells(Machine *m, Warp *w, const Instr *ins, const i32 *dst, const Region *a) {
    const CtaEngine *e = w->cta->engine;
    u32 missing = ~0u;
    for (u32 r = 0; r < a->count; r++) {
        u32 *out = dst32(w, dst[r]);
        for (u32 t = 0; t < LANES; t++) {
            u32 lane, col;
            cell(a, t, r, &lane, &col);
            u8 ok = *tmem_written(e, lane, col);
            u32 v = *tmem_cell(e, lane, col);
            if (a->pack) {
                ok &= *tmem_written(e, lane, col + 1);
                v = (v & 0xffff) | *tmem_cell(e, lane, col + 1) << 16;
            }
            out[t] = v;
            if (!ok && missing == ~0u) missing = lane << 16 | col;
        }
    }
    if (missing == ~0u || !m->launch->strict) return EX_NEXT;
    return finding(m, w, ins, 0, F_TMEM_UNINITIALISED, missing, "tcgen05.ld reads lane %u, column %u, which nothing has written",
                   missing >> 16, missing & 0xffff);
}

static double as_number(u32 v, u32 mod) {
    if (MOD_TYPE(mod) == RED_U32) return v;
    if (MOD_TYPE(mod) == RED_S32) return (i32)v;
    float f;
    memcpy(&f, &v, 4);
    return mod & MOD_ABS ? fabs(f) : f;
}

/* min or max over all registers of each thread; a NaN operand is ignored, or with .NaN makes the result NaN */
static void reduce(Warp *w, const i32 *dst, const Region *a, u32 mod, i32 result) {
    u32 *out = dst32(w, result);
    for (u32 t = 0; t < LANES; t++) {
        u32 best = 0x7fffffff;
        int have = MOD_TYPE(mod) != RED_F32, is_nan = 0;
        if (have) best = dst32(w, dst[0])[t];
        for (u32 r = 0; r < a->count; r++) {
            u32 v = dst32(w, dst[r])[t];
            double x = as_number(v, mod), y = as_number(best, mod);
            if (x != x) is_nan = 1;
            else if (!have || (MOD_RED(mod) == RED_MIN ? x < y : x > y)) best = v, have = 1;
        }
        if (MOD_TYPE(mod) == RED_F32 && mod & MOD_ABS) best &= 0x7fffffff;
        out[t] = is_nan && mod & MOD_NAN ? 0x7fffffff : best;
    }
}

/* tcgen05.ld: registers, [reduction result], address, offset */
int op_TCGEN05_LD(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    if (mask != w->live) return EX_SYNC;
    const i32 *args = arg_list(m, ins);
    int reducing = MOD_RED(ins->mod) != RED_NONE, at = (int)ins->nargs - 2;
    Region a;
    u32 address = (u32)lane_address(m, w, args, at, lowest_lane(mask), 0);
    if (decode(m, w, ins, mask, address, &a) == EX_FATAL) return EX_FATAL;
    if (m->launch->strict) {
        TmemClaim c = claim_of(&a, w, "tcgen05.ld", ACCESS_READ);
        tmem_claim(m, w, ins, w->cta, &c);
        w->engine->n_loads++;
        for (u32 r = 0; r < a.count; r++)
            if (args[r] >= 0) w->engine->slots[args[r]] |= SLOT_LOADING;
        w->watch = 1;
    }
    int result = read_cells(m, w, ins, args, &a);
    if (reducing) reduce(w, args, &a, ins->mod, args[a.count]);
    m->counters[C_TMEM_BYTES] += (u64)a.count * LANES * 4;
    return result;
}

void tcgen05_loads_done(Machine *m, Warp *w) {
    WarpEngine *e = w->engine;
    if (!e->n_loads) return;
    e->n_loads = 0;
    for (u32 s = 0; s < m->program->n_slots; s++) e->slots[s] &= (u8)~SLOT_LOADING;
    tmem_drop(w->cta, w);
    w->watch = e->n_in_flight != 0;
}

typedef struct Store {
    Region a;
    u32 live;
    u32 data[]; /* [register][thread] */
} Store;

static int store_step(Machine *m, AsyncOp *op) {
    const Store *s = op->data;
    CtaEngine *e = op->cta->engine;
    for (u32 r = 0; r < s->a.count; r++)
        for (u32 t = 0; t < LANES; t++) {
            u32 lane, col, v = s->data[r * LANES + t];
            cell(&s->a, t, r, &lane, &col);
            *tmem_cell(e, lane, col) = s->a.pack ? v & 0xffff : v;
            *tmem_written(e, lane, col) = 1;
            if (s->a.pack) {
                *tmem_cell(e, lane, col + 1) = v >> 16;
                *tmem_written(e, lane, col + 1) = 1;
            }
        }
    tmem_drop(op->cta, op);
    event(m);
    return ASYNC_DONE;
}

/* tcgen05.st: address, offset, registers */
int op_TCGEN05_ST(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    if (mask != w->live) return EX_SYNC;
    const i32 *args = arg_list(m, ins);
    Region a;
    u32 address = (u32)lane_address(m, w, args, 0, lowest_lane(mask), 0);
    if (decode(m, w, ins, mask, address, &a) == EX_FATAL) return EX_FATAL;
    tcgen05_loads_done(m, w);
    Store *s = malloc(sizeof *s + (size_t)a.count * LANES * 4);
    s->a = a;
    for (u32 r = 0; r < a.count; r++) memcpy(s->data + r * LANES, src32(m, w, args[2 + r]), LANES * 4);
    AsyncOp *op = async_push(m, &w->engine->stores, ASYNC_TCGEN05_LDST, store_step, w, ins, mask);
    op->data = s;
    TmemClaim c = claim_of(&a, op, "tcgen05.st", ACCESS_WRITE);
    c.queue = &w->engine->stores; /* stores of one warp land in order and do not race with each other */
    c.is_store = 1;
    tmem_claim(m, w, ins, w->cta, &c);
    m->counters[C_TMEM_BYTES] += (u64)a.count * LANES * 4;
    return EX_NEXT;
}

int op_TCGEN05_WAIT_LD(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    (void)ins;
    if (mask != w->live) return EX_SYNC;
    tcgen05_loads_done(m, w);
    return EX_NEXT;
}

int op_TCGEN05_WAIT_ST(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    (void)m;
    (void)ins;
    if (mask != w->live) return EX_SYNC;
    if (!w->engine->stores.count) return EX_NEXT;
    w->wait_what = "tcgen05.wait::st";
    w->wait_addr = w->wait_arg = 0;
    return EX_BLOCK;
}
