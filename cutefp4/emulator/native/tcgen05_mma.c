/* tcgen05.mma: every dense kind, one or two CTAs, A from shared or tensor memory, block scales.
 *
 * One instruction computes D = A B^T (+ D 2^-s) with exact products, a double sum and one rounding per element of D.
 * With cta_group::2, CTA i of the pair holds rows i M/2.. of A and D, rows i N/2.. of B in its own shared memory and
 * both its own scale factors of A and all of B's.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engines.h"

/* Instr.mod, packed by lowering/tcgen05.py */
#define MOD_KIND(mod) ((int)((mod) & 15))
#define MOD_GROUP(mod) (((mod) >> 4 & 1) + 1)
#define MOD_A_TMEM (1u << 5)
#define MOD_BLOCK16 (1u << 6)
#define MOD_DISABLE(mod) ((mod) >> 8 & 15) /* registers of the disable-output-lane mask */
#define MOD_DSHIFT(mod) ((mod) >> 12 & 15) /* scale-input-d */
enum { ARG_D = 0, ARG_A = 2, ARG_B = 4, ARG_IDESC = 5, ARG_ENABLE = 6, ARG_SFA = 7, ARG_SFB = 9, ARG_DISABLE = 11 };

typedef struct Mma {
    InstrDesc d;
    SmemDesc a, b;
    OperandShape a_shape, b_shape; /* of one CTA */
    u32 cta_group, a_tmem, d_addr, a_addr, sfa_addr, sfb_addr, enable, block;
    u32 disable[8];
    int map, rows, scaled, dshift;
    Claim *claim[4]; /* A and B of each CTA */
} Mma;

/* Columns of D that one pass computes, and the lanes they live in. */
typedef struct Part { int n0, n; u32 lane0; } Part;

static int parts(const Mma *t, Part p[2]) {
    u32 base = tmem_lane(t->d_addr);
    if (t->map != MAP_2X2) {
        p[0] = (Part){0, t->d.n, base};
        return 1;
    }
    p[0] = (Part){0, t->d.n / 2, base};
    p[1] = (Part){t->d.n / 2, t->d.n / 2, base + 64};
    return 2;
}

static double *scratch(int which) {
    static __thread double *buffer;
    if (!buffer) buffer = malloc((128 * 64 + 256 * 64 + 128 * 256) * sizeof *buffer);
    return buffer + (which == 0 ? 0 : which == 1 ? 128 * 64 : 128 * 64 + 256 * 64);
}

/* ---- operands ---------------------------------------------------------------------------------------------------- */

static void read_a_tmem(const Mma *t, const CtaEngine *e, u32 lane0, double *out) {
    u32 col = tmem_column(t->a_addr);
    int packing = t->d.packing == PACK_ALIGN16 && elem_bits(t->d.a_type) < 8 ? PACK_BYTE : t->d.packing;
    for (u32 r = 0; r < (u32)t->rows; r++) {
        u32 lane = lane0 + map_lane(t->map, r);
        decode_elems(t->d.a_type, packing, (const u8 *)tmem_cell(e, lane, col), t->d.k, out + r * (u32)t->d.k, 1);
    }
}

/* The scale-factor word of row r, as the lane partition p sees it. */
static inline u32 scale_word(const CtaEngine *e, u32 addr, u32 r, u32 p) {
    return *tmem_cell(e, 32 * p + r % 32, tmem_column(addr) + r / 32);
}

/* scales[j] of one row: byte id + j of its word */
static void row_scales(const Mma *t, u32 word, int id, double *scales) {
    int count = t->d.k / (int)t->block;
    for (int j = 0; j < count; j++) scales[j] = decode_scale(t->d.scale_type, (u8)(word >> 8 * (id + j)));
}

static void scale_a(const Mma *t, const CtaEngine *e, u32 lane0, double *a) {
    double s[4];
    for (u32 r = 0; r < (u32)t->rows; r++) {
        row_scales(t, scale_word(e, t->sfa_addr, r, (lane0 + r) / 32), t->d.sfa_id, s);
        for (int k = 0; k < t->d.k; k++) a[r * (u32)t->d.k + (u32)k] *= s[(u32)k / t->block];
    }
}

static void scale_b(const Mma *t, const CtaEngine *e, const Part *p, double *b) {
    double s[4];
    for (u32 r = 0; r < (u32)p->n; r++) {
        u32 n = (u32)p->n0 + r;
        row_scales(t, scale_word(e, t->sfb_addr, t->map == MAP_2X2 ? r : n, p->lane0 / 32), t->d.sfb_id, s);
        double *row = b + n / 8 * 8 * (u32)t->d.k + n % 8;
        for (int k = 0; k < t->d.k; k++) row[8 * k] *= s[(u32)k / t->block];
    }
}

/* ---- accumulator ------------------------------------------------------------------------------------------------- */

static void load_d(const Mma *t, const CtaEngine *e, const Part *p, double *c) {
    u32 col = tmem_column(t->d_addr);
    double factor = ldexp(1.0, -t->dshift);
    for (int r = 0; r < t->rows; r++) {
        const u32 *from = tmem_cell(e, p->lane0 + map_lane(t->map, (u32)r), col);
        double *to = c + (size_t)r * (size_t)p->n;
        if (!t->enable) memset(to, 0, (size_t)p->n * sizeof *to);
        else if (t->d.acc_type == ACC_F32) {
            const float *f = (const float *)(const void *)from;
            for (int n = 0; n < p->n; n++) to[n] = (double)f[n] * factor;
        } else
            for (int n = 0; n < p->n; n++) to[n] = acc_load(t->d.acc_type, from[n]) * factor;
    }
}

static void store_row_f32(u32 *to, const double *from, int n) {
    for (int i = 0; i < n; i++) {
        float f = (float)from[i];
        u32 bits;
        memcpy(&bits, &f, 4);
        to[i] = f != f ? 0x7fffffff : bits;
    }
}

static void store_d(const Mma *t, CtaEngine *e, u32 index, const Part *p, const double *c) {
    u32 col = tmem_column(t->d_addr);
    for (int r = 0; r < t->rows; r++) {
        u32 lane = p->lane0 + map_lane(t->map, (u32)r);
        if (t->disable[4 * index + lane / 32] >> lane % 32 & 1) continue;
        u32 *to = tmem_cell(e, lane, col);
        const double *from = c + (size_t)r * (size_t)p->n;
        if (t->d.acc_type == ACC_F32) store_row_f32(to, from, p->n);
        else
            for (int n = 0; n < p->n; n++) to[n] = acc_round(t->d.acc_type, from[n], t->d.saturate);
        memset(tmem_written(e, lane, col), 1, (size_t)p->n);
    }
}

/* ---- checks when the operation runs ------------------------------------------------------------------------------ */

static int rows_written(const Mma *t, const CtaEngine *e, u32 lane0, u32 col, u32 columns) {
    for (int r = 0; r < t->rows; r++)
        if (memchr(tmem_written(e, lane0 + map_lane(t->map, (u32)r), col), 0, columns)) return 0;
    return 1;
}

static u32 used_bytes(const Mma *t, int id) {
    int count = t->d.k / (int)t->block;
    return (count == 4 ? 0xffffffffu : (1u << 8 * count) - 1) << 8 * id;
}

/* The rows' words must exist and agree in all partitions that read them. */
static void check_scales(Machine *m, AsyncOp *op, const CtaEngine *e, u32 addr, int rows, int id, u32 first, u32 last, const char *name) {
    u32 bytes = used_bytes(op->data, id);
    for (u32 r = 0; r < (u32)rows; r++) {
        u32 col = tmem_column(addr) + r / 32, lane = r % 32;
        for (u32 p = first; p <= last; p++) {
            if (!*tmem_written(e, 32 * p + lane, col)) {
                finding(m, op->warp, op->ins, op->lane, F_TMEM_UNINITIALISED, col, "scale factor %s of row %u (lane %u, column %u) was never "
                        "written", name, r, 32 * p + lane, col);
                return;
            }
            if (p > first && (scale_word(e, addr, r, p) ^ scale_word(e, addr, r, first)) & bytes) {
                finding(m, op->warp, op->ins, op->lane, F_SCALE_FACTOR_REPLICATION, col, "scale factor %s of row %u differs between lanes %u "
                        "and %u of column %u; copy with .warpx4", name, r, 32 * first + lane, 32 * p + lane, col);
                return;
            }
        }
    }
}

static void check_inputs(Machine *m, AsyncOp *op, const CtaEngine *e) {
    const Mma *t = op->data;
    Part p[2];
    int n = parts(t, p);
    for (int i = 0; i < n; i++) {
        if (t->enable && !rows_written(t, e, p[i].lane0, tmem_column(t->d_addr), (u32)p[i].n))
            finding(m, op->warp, op->ins, op->lane, F_TMEM_UNINITIALISED, t->d_addr, "tcgen05.mma accumulates into columns %u..%u, not all of "
                    "which were ever written; the first mma of a tile must have enable-input-d false", tmem_column(t->d_addr),
                    tmem_column(t->d_addr) + (u32)p[i].n - 1);
        if (t->a_tmem && !rows_written(t, e, tmem_lane(t->a_addr) + (p[i].lane0 - p[0].lane0), tmem_column(t->a_addr), 8))
            finding(m, op->warp, op->ins, op->lane, F_TMEM_UNINITIALISED, t->a_addr, "tcgen05.mma reads A from columns %u..%u, not all of which "
                    "were ever written", tmem_column(t->a_addr), tmem_column(t->a_addr) + 7);
        if (t->scaled)
            check_scales(m, op, e, t->sfb_addr, t->map == MAP_2X2 ? p[i].n : t->d.n, t->d.sfb_id, t->map == MAP_2X2 ? 2u * (u32)i : 0,
                         t->map == MAP_2X2 ? 2u * (u32)i + 1 : 3, "B");
    }
    if (t->scaled) check_scales(m, op, e, t->sfa_addr, t->rows, t->d.sfa_id, 0, 3, "A");
}

/* ---- execution --------------------------------------------------------------------------------------------------- */

static void read_b(const Mma *t, Cta *const ctas[2], double *b) {
    for (u32 i = 0; i < t->cta_group; i++)
        operand_read(ctas[i], &t->b, &t->b_shape, 1, b + (size_t)i * t->b_shape.rows * t->b_shape.k);
    if (t->d.negate_b)
        for (int i = 0; i < t->d.n * t->d.k; i++) b[i] = -b[i];
}

static void read_a(const Mma *t, const Cta *cta, u32 part_lane, double *a) {
    if (t->a_tmem) read_a_tmem(t, cta->engine, tmem_lane(t->a_addr) + part_lane, a);
    else operand_read(cta, &t->a, &t->a_shape, 0, a);
    if (t->d.negate_a)
        for (int i = 0; i < t->rows * t->d.k; i++) a[i] = -a[i];
}

static void compute(const Mma *t, Cta *cta, u32 index, double *b) {
    double *a = scratch(0), *c = scratch(2);
    Part p[2];
    int n = parts(t, p);
    for (int i = 0; i < n; i++) {
        read_a(t, cta, p[i].lane0 - p[0].lane0, a);
        if (t->scaled) scale_a(t, cta->engine, p[i].lane0, a);
        load_d(t, cta->engine, &p[i], c);
        matmul_panels(t->rows, p[i].n, t->d.k, a, b + (size_t)p[i].n0 * (size_t)t->d.k, c, p[i].n);
        store_d(t, cta->engine, index, &p[i], c);
    }
}

static int mma_step(Machine *m, AsyncOp *op) {
    Mma *t = op->data;
    Cta *ctas[2] = {op->cta, t->cta_group == 2 ? op->cta->cluster->ctas[op->cta->rank + 1] : NULL};
    double *b = scratch(1);
    Part p[2];
    int n = parts(t, p);
    for (u32 i = 0; i < t->cta_group; i++) {
        if (m->launch->strict) check_inputs(m, op, ctas[i]->engine);
        if (i == 0 || t->scaled) read_b(t, ctas, b);
        for (int k = 0; t->scaled && k < n; k++) scale_b(t, ctas[i]->engine, &p[k], b);
        compute(t, ctas[i], i, b);
        ctas[i]->pending_ops--;
    }
    for (int i = 0; i < 4; i++) tcgen05_retire(op->cta, t->claim[i]);
    tcgen05_executed(op->cta, t->cta_group, op);
    return tcgen05_finish(m, op);
}

/* ---- issue ------------------------------------------------------------------------------------------------------- */

static void lane_bits(const Mma *t, u32 lane0, u64 bits[2]) {
    bits[0] = bits[1] = t->map == MAP_HALF ? 0x0000ffff0000ffffull << (lane0 & 16) : ~0ull;
}

/* Claims cells of tensor memory in both CTAs; 0 if some column is not allocated. */
static int claim_tmem(Machine *m, AsyncOp *op, const char *what, u32 addr, u32 columns, u32 access, int all_lanes) {
    const Mma *t = op->data;
    TmemClaim c = {.owner = op, .queue = op->queue, .what = what, .col0 = tmem_column(addr), .col1 = tmem_column(addr) + columns,
                   .access = access};
    if (all_lanes) c.lanes[0] = c.lanes[1] = ~0ull;
    else lane_bits(t, tmem_lane(addr), c.lanes);
    for (u32 i = 0; i < t->cta_group; i++) {
        Cta *cta = op->cta->cluster->ctas[op->cta->rank + i];
        if (!tmem_columns_ok(m, op->warp, op->ins, cta, c.col0, c.col1)) return 0;
        tmem_claim(m, op->warp, op->ins, cta, &c);
    }
    return 1;
}

static int claim_operands(Machine *m, AsyncOp *op) {
    Mma *t = op->data;
    u32 d_columns = (u32)(t->map == MAP_2X2 ? t->d.n / 2 : t->d.n);
    for (u32 i = 0; i < t->cta_group; i++) {
        Cta *cta = op->cta->cluster->ctas[op->cta->rank + i];
        if (!t->a_tmem && !operand_claim(m, op, cta, &t->a, &t->a_shape, &t->claim[2 * i])) return 0;
        if (!operand_claim(m, op, cta, &t->b, &t->b_shape, &t->claim[2 * i + 1])) return 0;
        cta->pending_ops++;
    }
    if (!claim_tmem(m, op, "tcgen05.mma", t->d_addr, d_columns, ACCESS_WRITE, 0)) return 0;
    if (t->a_tmem && !claim_tmem(m, op, "tcgen05.mma (A)", t->a_addr, 8, ACCESS_READ, 0)) return 0;
    if (!t->scaled) return 1;
    u32 sfb_rows = (u32)(t->map == MAP_2X2 ? t->d.n / 2 : t->d.n);
    return claim_tmem(m, op, "tcgen05.mma (SFA)", t->sfa_addr, ((u32)t->rows + 31) / 32, ACCESS_READ, 1) &&
           claim_tmem(m, op, "tcgen05.mma (SFB)", t->sfb_addr, (sfb_rows + 31) / 32, ACCESS_READ, 1);
}

static const char *decode_descriptors(Machine *m, Warp *w, const Instr *ins, const i32 *args, u32 lane, Mma *t) {
    int kind = MOD_KIND(ins->mod);
    const char *wrong = instr_desc_decode(kind, (int)t->cta_group, src32(m, w, args[ARG_IDESC])[lane], &t->d);
    if (wrong) return wrong;
    if (!t->a_tmem) wrong = smem_desc_decode_tcgen05(src64(m, w, args[ARG_A])[lane], &t->a);
    if (!wrong) wrong = smem_desc_decode_tcgen05(src64(m, w, args[ARG_B])[lane], &t->b);
    if (!wrong && t->a_tmem && t->d.a_mn_major) wrong = "A in tensor memory is K-major";
    if (!wrong && kind >= KIND_MXF8F6F4) {
        int count = t->d.k / (int)t->block, mask = count == 4 ? 3 : count - 1;
        if (t->d.sfa_id & mask || t->d.sfb_id & mask) wrong = "scale-factor id does not fit the number of scales per row";
        if (!wrong && t->block == 16 && t->d.scale_type != EL_UE4M3 && kind != KIND_MXF4NVF4) wrong = "16-element blocks need mxf4nvf4";
    }
    return wrong;
}

static const char *place(Mma *t) {
    t->map = data_map(t->d.m, (int)t->cta_group, &t->rows);
    t->a_shape = (OperandShape){t->d.a_type, t->d.packing, t->d.a_mn_major, (u32)t->rows, (u32)t->d.k, 0};
    t->b_shape = (OperandShape){t->d.b_type, t->d.packing, t->d.b_mn_major, (u32)t->d.n / t->cta_group, (u32)t->d.k, 0};
    u32 lane = tmem_lane(t->d_addr);
    if (lane && !(t->map == MAP_HALF && lane == 16)) return "the accumulator must start at lane 0 (or 16 when M = 64)";
    if (t->a_tmem && tmem_lane(t->a_addr) != lane) return "A in tensor memory must start at the accumulator's lane";
    return NULL;
}

static int issue_mma(Machine *m, Warp *w, const Instr *ins, u32 lane) {
    const i32 *args = arg_list(m, ins);
    Mma *t = calloc(1, sizeof *t);
    t->cta_group = MOD_GROUP(ins->mod);
    AsyncOp *op = tcgen05_push(m, w, ins, lane, t->cta_group, mma_step);
    op->data = t;
    t->a_tmem = (ins->mod & MOD_A_TMEM) != 0;
    t->scaled = MOD_KIND(ins->mod) >= KIND_MXF8F6F4;
    t->block = ins->mod & MOD_BLOCK16 ? 16 : 32;
    t->dshift = (int)MOD_DSHIFT(ins->mod);
    t->d_addr = (u32)lane_address(m, w, args, ARG_D, lane, 0);
    if (t->a_tmem) t->a_addr = (u32)lane_address(m, w, args, ARG_A, lane, 0);
    if (t->scaled) {
        t->sfa_addr = (u32)lane_address(m, w, args, ARG_SFA, lane, 0);
        t->sfb_addr = (u32)lane_address(m, w, args, ARG_SFB, lane, 0);
    }
    t->enable = w->preds[args[ARG_ENABLE]] >> lane & 1;
    for (u32 i = 0; i < MOD_DISABLE(ins->mod); i++) t->disable[i] = src32(m, w, args[ARG_DISABLE + i])[lane];
    const char *wrong = decode_descriptors(m, w, ins, args, lane, t);
    if (!wrong) wrong = place(t);
    if (wrong) return finding(m, w, ins, lane, F_TCGEN05_OPERAND, t->d_addr, "tcgen05.mma: %s", wrong);
    if (!claim_operands(m, op)) return EX_FATAL;
    m->counters[C_MMA_INSTRUCTIONS]++;
    m->counters[C_MMA_MACS] += (u64)t->d.m * (u64)t->d.n * (u64)t->d.k;
    return EX_NEXT;
}

int op_TCGEN05_MMA(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    if (tcgen05_group(m, w, ins, MOD_GROUP(ins->mod)) == EX_FATAL) return EX_FATAL;
    for (u32 todo = mask; todo; todo &= todo - 1)
        if (issue_mma(m, w, ins, lowest_lane(todo)) == EX_FATAL) return EX_FATAL;
    m->progress = m->time;
    return EX_NEXT;
}
