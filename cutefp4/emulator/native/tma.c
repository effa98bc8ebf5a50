/* Tensor copies (cp.async.bulk.tensor, cp.reduce.async.bulk.tensor, prefetches) and tensormap instructions.
 *
 * Load: phase 0 reads global memory, phase 1 writes the box into every destination CTA, phase 2 completes the
 * transaction bytes. The destination is poisoned when the load is issued. Store: phase 0 reads shared memory (this is
 * what wait_group.read waits for), phase 1 writes or reduces global memory.
 */
#include <stdlib.h>
#include <string.h>

#include "engines.h"
#include "formats.h"
#include "tensormap.h"

/* Instr.mod of TMA ops, packed by lowering/tma.py */
#define MOD_RANK(mod) ((mod) & 7)
#define MOD_CLUSTER (1u << 3)   /* destination is .shared::cluster */
#define MOD_MULTICAST (1u << 4)
#define MOD_PAIR (1u << 5)      /* .cta_group::2 */
#define MOD_ROWS4 (1u << 6)     /* .tile::gather4 / .tile::scatter4: coordinates are column, four rows */
#define MOD_WIDE_MAP (1u << 7)  /* address registers of 64 bits */
#define MOD_WIDE_SMEM (1u << 8)
#define MOD_WIDE_MBAR (1u << 9)
#define MOD_REDUCE(mod) ((mod) >> 12 & 15)

enum ReduceOp { REDUCE_NONE, REDUCE_ADD, REDUCE_MIN, REDUCE_MAX, REDUCE_INC, REDUCE_DEC, REDUCE_AND, REDUCE_OR, REDUCE_XOR };

/* Arguments of load and store: shared base, offset, mbarrier base, offset, map base, offset, mask, coordinates. */
enum { ARG_SMEM = 0, ARG_MBAR = 2, ARG_MAP = 4, ARG_MASK = 6, ARG_COORD = 7 };

typedef struct TmaOp {
    TensorMap map;
    i32 coord[5];
    int rows4;
    u32 smem, mbar, mbar_rank, targets; /* targets: bit per cluster rank */
    u32 pair, bytes, reduce;
    Claim *claim[MAX_CLUSTER];
    u32 width, pitch, rows, span; /* of the box's rows in shared memory; span: bytes from the first to the last */
    u8 buffer[]; /* the box, dense, unswizzled */
} TmaOp;

static int bad(Machine *m, Warp *w, const Instr *ins, u32 lane, int kind, u64 addr, const char *why) {
    return finding(m, w, ins, lane, kind, addr, "%s", why);
}

/* 128 bytes of a tensor map in kernel parameters or global memory. */
static u8 *map_bytes(Machine *m, Warp *w, const Instr *ins, u32 lane, u64 addr, int write) {
    if (addr & 63) {
        bad(m, w, ins, lane, F_TENSORMAP, addr, "the tensor map is not 64-byte aligned");
        return NULL;
    }
    if ((addr & GENERIC_WINDOW) == GENERIC_PARAM && !write) {
        u64 off = addr & ~GENERIC_WINDOW;
        if (off + 128 <= m->program->param_bytes) return (u8 *)(uintptr_t)(m->launch->params + off);
        bad(m, w, ins, lane, F_OUT_OF_BOUNDS_PARAM, addr, "tensor map outside the kernel's parameters");
        return NULL;
    }
    return global_ptr(m, w, ins, lane, addr, 128, write);
}

static TmaOp *decode(Machine *m, Warp *w, const Instr *ins, u32 lane, const i32 *args) {
    TensorMap map;
    u64 addr = lane_address(m, w, args, ARG_MAP, lane, (ins->mod & MOD_WIDE_MAP) != 0);
    const u8 *bytes = map_bytes(m, w, ins, lane, addr, 0);
    if (!bytes) return NULL;
    const char *wrong = tensormap_decode(bytes, &map);
    int rows4 = (ins->mod & MOD_ROWS4) != 0, rank = (int)MOD_RANK(ins->mod);
    if (!wrong && map.rank != rank) wrong = "the instruction's dimensionality differs from the tensor map's rank";
    if (!wrong && rows4 && (map.rank != 2 || map.box[1] != 1))
        wrong = "gather4 and scatter4 take a 2-D tensor map with a box of one row";
    if (wrong) {
        bad(m, w, ins, lane, F_TENSORMAP, addr, wrong);
        return NULL;
    }
    u32 bytes_total = box_bytes(&map) * (rows4 ? 4 : 1);
    TmaOp *t = calloc(1, sizeof *t + bytes_total);
    t->map = map;
    t->rows4 = rows4;
    t->bytes = bytes_total;
    t->reduce = MOD_REDUCE(ins->mod);
    t->width = box_row_bytes(&map);
    t->pitch = box_row_pitch(&map);
    t->rows = rows4 ? 4 : box_rows(&map);
    t->span = (t->rows - 1) * t->pitch + t->width;
    for (int i = 0; i < (rows4 ? 5 : rank); i++) t->coord[i] = (i32)src32(m, w, args[ARG_COORD + i])[lane];
    /* an inner coordinate off a 16-byte boundary is an illegal instruction on the H200 */
    if ((i64)t->coord[0] * map.bits % 128 && map.type != MAP_U6_PADDED) {
        finding(m, w, ins, lane, F_TENSORMAP, addr, "inner coordinate %d (%d-bit elements) is not a multiple of 16 bytes", t->coord[0], map.bits);
        free(t);
        return NULL;
    }
    if (map.type == MAP_U6_PADDED && t->coord[0] % 16) {
        bad(m, w, ins, lane, F_TENSORMAP, addr, "the inner coordinate splits a group of 16 elements");
        free(t);
        return NULL;
    }
    return t;
}

static void op_row(const TmaOp *t, u32 row, BoxRow *out) {
    if (!t->rows4) {
        box_row(&t->map, t->coord, row, out);
        return;
    }
    i32 at[5] = {t->coord[0], t->coord[1 + row], 0, 0, 0};
    box_row(&t->map, at, 0, out);
}

static u32 packed_bytes(const TmaOp *t, const BoxRow *r) { return (r->count * (u32)t->map.bits + 7) / 8; }

/* Shared address of byte o of row i. */
static inline u32 smem_at(const TmaOp *t, u32 i, u32 o) { return swizzle_address(t->smem + i * t->pitch + o, t->map.swizzle); }

/* The shared-memory bytes of the box, or only of those rows and columns that lie inside the tensor. */
static Claim *claim_box(Machine *m, AsyncOp *op, Cta *cta, TmaOp *t, int access, int only_inside) {
    u32 n = 0, whole = 1;
    u32 *chunks = malloc(t->bytes / 16 * sizeof *chunks);
    for (u32 i = 0; i < t->rows; i++) {
        BoxRow r = {0, 0, t->map.box[0]};
        if (only_inside) op_row(t, i, &r);
        whole = whole && r.count == t->map.box[0];
        if (!r.count) continue;
        u32 from = r.first * (u32)t->map.smem_bits / 8, to = ((r.first + r.count) * (u32)t->map.smem_bits + 7) / 8;
        for (u32 o = from & ~15u; o < to; o += 16) chunks[n++] = smem_at(t, i, o);
    }
    Segment *seg = malloc((n ? n : 1) * sizeof *seg);
    u32 k = 1;
    if (whole && t->pitch == t->width) seg[0] = (Segment){t->smem, t->bytes};
    else k = segments_of_chunks(chunks, n, seg);
    Claim *c = shadow_claim(m, op, cta, seg, k, access);
    free(seg);
    free(chunks);
    return c;
}

/* ---- loads ---------------------------------------------------------------------------------------------------- */

static int load_read(Machine *m, AsyncOp *op) {
    TmaOp *t = op->data;
    for (u32 i = 0; i < t->rows; i++) {
        BoxRow r;
        const u8 *from = NULL;
        op_row(t, i, &r);
        if (r.count && !(from = global_ptr(m, op->warp, op->ins, op->lane, r.gaddr, packed_bytes(t, &r), 0))) return ASYNC_DONE;
        box_row_expand(&t->map, &r, from, t->buffer + i * t->width);
    }
    return ASYNC_MORE;
}

static void remote_exited(Machine *m, const AsyncOp *op, u32 rank) {
    finding(m, op->warp, op->ins, op->lane, F_REMOTE_EXITED, rank, "the load arrives in CTA %u of the cluster after that CTA has exited; let "
            "every CTA wait for its last incoming copy, or end with a cluster barrier", rank);
}

static void load_write(Machine *m, const AsyncOp *op, TmaOp *t, Cluster *cl) {
    for (u32 rank = 0; rank < cl->size; rank++) {
        if (!(t->targets >> rank & 1)) continue;
        if (!cl->ctas[rank]->live_warps && cl->ctas[rank] != op->cta) remote_exited(m, op, rank);
        u8 *smem = cl->ctas[rank]->smem;
        if (t->map.swizzle == SWZ_NONE) memcpy(smem + t->smem, t->buffer, t->bytes);
        else
            for (u32 i = 0; i < t->rows; i++)
                for (u32 o = 0; o < t->width; o += 16) memcpy(smem + smem_at(t, i, o), t->buffer + i * t->width + o, 16);
        shadow_release(m, t->claim[rank]);
        t->claim[rank] = NULL;
    }
}

static void load_signal(Machine *m, AsyncOp *op, TmaOp *t) {
    Cluster *cl = op->cta->cluster;
    u32 tx = box_transaction_bytes(&t->map) * (t->rows4 ? 4 : 1);
    for (u32 rank = 0; rank < cl->size; rank++) {
        if (!(t->targets >> rank & 1)) continue;
        u32 to = t->pair ? (rank & ~1u) | (t->mbar_rank & 1) : rank;
        if (to >= cl->size || !cl->ctas[to]) continue;
        mbar_complete_tx(m, op->warp, op->ins, op->lane, cl->ctas[to], t->mbar, tx);
        m->counters[C_ASYNC_LOAD_BYTES] += tx;
    }
}

static void release_targets(TmaOp *t, Cluster *cl) {
    for (u32 rank = 0; rank < cl->size; rank++)
        if (t->targets >> rank & 1) cl->ctas[rank]->pending_ops--;
}

static int load_step(Machine *m, AsyncOp *op) {
    TmaOp *t = op->data;
    Cluster *cl = op->cta->cluster;
    if (op->phase == 0) {
        int r = load_read(m, op);
        if (r == ASYNC_DONE) release_targets(t, cl);
        return r;
    }
    if (op->phase == 1) {
        load_write(m, op, t, cl);
        return ASYNC_MORE;
    }
    load_signal(m, op, t);
    release_targets(t, cl);
    event(m);
    return ASYNC_DONE;
}

/* Which CTAs receive the box; 0 after a finding. */
static u32 load_targets(Machine *m, Warp *w, const Instr *ins, u32 lane, const i32 *args, u32 smem_addr) {
    Cluster *cl = w->cta->cluster;
    u32 targets;
    if (ins->mod & MOD_MULTICAST) {
        targets = src32(m, w, args[ARG_MASK])[lane] & 0xffff;
        if (!targets || targets >> cl->size) {
            bad(m, w, ins, lane, F_TMA_OPERAND, targets, "the multicast mask is empty or names CTAs outside the cluster");
            return 0;
        }
    } else {
        Cta *to = smem_cta(m, w, smem_addr, (ins->mod & MOD_CLUSTER) != 0);
        if (!to) return 0;
        targets = 1u << to->rank;
    }
    for (u32 rank = 0; rank < cl->size; rank++)
        if (targets >> rank & 1 && (!cl->ctas[rank] || cl->ctas[rank]->exited)) {
            finding(m, w, ins, lane, F_REMOTE_EXITED, smem_addr, "the load writes shared memory of CTA %u of the cluster, which has "
                    "exited; keep CTAs alive with a cluster barrier until their last incoming copy", rank);
            return 0;
        }
    return targets;
}

static void poison(const TmaOp *t, u8 *smem) {
    for (u32 i = 0; i < t->rows; i++)
        for (u32 o = 0; o < t->width; o += 16) memset(smem + smem_at(t, i, o), 0xff, 16);
}

static int issue_load(Machine *m, Warp *w, const Instr *ins, u32 lane) {
    const i32 *args = arg_list(m, ins);
    Cluster *cl = w->cta->cluster;
    TmaOp *t = decode(m, w, ins, lane, args);
    if (!t) return EX_FATAL;
    u32 smem = (u32)lane_address(m, w, args, ARG_SMEM, lane, 0), mbar = (u32)lane_address(m, w, args, ARG_MBAR, lane, 0);
    t->smem = smem & SMEM_OFFSET_MASK;
    t->mbar = mbar & SMEM_OFFSET_MASK;
    t->mbar_rank = mbar >> SMEM_RANK_SHIFT;
    t->pair = (ins->mod & MOD_PAIR) != 0;
    t->targets = load_targets(m, w, ins, lane, args, smem);
    int ok = t->targets != 0;
    if (ok && t->smem & 127) {
        bad(m, w, ins, lane, F_TMA_OPERAND, smem, "the shared-memory box is not 128-byte aligned");
        ok = 0;
    }
    for (u32 rank = 0; ok && rank < cl->size; rank++)
        if (t->targets >> rank & 1 && !smem_ptr(m, w, ins, lane, cl->ctas[rank], t->smem, t->span)) ok = 0;
    if (!ok) {
        free(t);
        return EX_FATAL;
    }
    AsyncOp *op = async_push(m, &w->cta->bulk, ASYNC_TMA_LOAD, load_step, w, ins, 1u << lane);
    op->data = t;
    op->lane = (u8)lane;
    op->size = t->bytes;
    for (u32 rank = 0; rank < cl->size; rank++) {
        if (!(t->targets >> rank & 1)) continue;
        cl->ctas[rank]->pending_ops++;
        t->claim[rank] = claim_box(m, op, cl->ctas[rank], t, ACCESS_WRITE, 0);
        if (m->launch->poison) poison(t, cl->ctas[rank]->smem);
    }
    return EX_NEXT;
}

/* ---- stores and reductions ------------------------------------------------------------------------------------ */

static u16 round_bf16(double v) {
    if (v != v) return 0x7fff;
    float f = (float)v;
    u32 b;
    memcpy(&b, &f, 4);
    if ((double)f != v) { /* round to odd first, so that the second rounding sees what the first dropped */
        if ((f > v) == (v > 0)) b -= 1;
        b |= 1;
    }
    return (u16)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}

static double load_float(int type, const u8 *p) {
    u32 b = 0;
    memcpy(&b, p, type == MAP_F32 || type == MAP_F32_FTZ ? 4 : 2);
    return type == MAP_F16 ? decode_f16((u16)b) : decode_f32(type == MAP_BF16 ? b << 16 : b);
}

static void reduce_float(int type, u32 rop, u8 *to, const u8 *from) {
    double a = load_float(type, to), b = load_float(type, from), r = rop == REDUCE_ADD ? a + b : 0;
    if (rop == REDUCE_MIN) r = a != a ? b : b != b ? a : a < b ? a : b;
    if (rop == REDUCE_MAX) r = a != a ? b : b != b ? a : a > b ? a : b;
    u32 bits = type == MAP_F16 ? round_f16(r) : type == MAP_BF16 ? round_bf16(r) : acc_round(ACC_F32, r, 0);
    memcpy(to, &bits, type == MAP_F16 || type == MAP_BF16 ? 2 : 4);
}

static u64 reduce_int(u32 rop, u64 a, u64 b, int is_signed) {
    switch (rop) {
    case REDUCE_ADD: return a + b;
    case REDUCE_MIN: return is_signed ? ((i64)a < (i64)b ? a : b) : a < b ? a : b;
    case REDUCE_MAX: return is_signed ? ((i64)a > (i64)b ? a : b) : a > b ? a : b;
    case REDUCE_INC: return a >= b ? 0 : a + 1;
    case REDUCE_DEC: return a == 0 || a > b ? b : a - 1;
    case REDUCE_AND: return a & b;
    case REDUCE_OR: return a | b;
    default: return a ^ b;
    }
}

static void reduce_element(int type, u32 rop, u8 *to, const u8 *from) {
    if (type == MAP_F16 || type == MAP_BF16 || type == MAP_F32 || type == MAP_F32_FTZ) {
        reduce_float(type, rop, to, from);
        return;
    }
    u64 a = 0, b = 0;
    u32 size = type == MAP_U64 || type == MAP_S64 ? 8 : 4;
    memcpy(&a, to, size);
    memcpy(&b, from, size);
    if (type == MAP_S32) a = (u64)(i64)(i32)a, b = (u64)(i64)(i32)b;
    a = reduce_int(rop, a, b, type == MAP_S32 || type == MAP_S64);
    memcpy(to, &a, size);
}

static const char *reduce_supported(int type, u32 rop) {
    int is_float = type == MAP_F16 || type == MAP_BF16 || type == MAP_F32 || type == MAP_F32_FTZ;
    int is_int = type >= MAP_U32 && type <= MAP_S64;
    if (!is_float && !is_int) return "reductions take 32- and 64-bit integers, f16, bf16 and f32 tensors";
    if (is_float && rop > REDUCE_MAX) return "this reduction does not exist for floating-point tensors";
    if ((type == MAP_F32 || type == MAP_F32_FTZ) && rop != REDUCE_ADD) return "f32 tensors can only be reduced by .add";
    if ((rop == REDUCE_INC || rop == REDUCE_DEC) && type != MAP_U32) return ".inc and .dec take u32 tensors";
    return NULL;
}

static void store_read(Machine *m, AsyncOp *op, TmaOp *t) {
    const u8 *smem = op->cta->smem;
    for (u32 i = 0; i < t->rows; i++)
        for (u32 o = 0; o < t->width; o += 16) memcpy(t->buffer + i * t->width + o, smem + smem_at(t, i, o), 16);
    shadow_store_read(m, op, t->claim[0]);
    op->reads_done = 1;
    event(m);
}

static int store_step(Machine *m, AsyncOp *op) {
    TmaOp *t = op->data;
    if (op->phase == 0) {
        store_read(m, op, t);
        return ASYNC_MORE;
    }
    u32 element = (u32)t->map.bits / 8;
    u8 packed[2048];
    for (u32 i = 0; i < t->rows; i++) {
        BoxRow r;
        op_row(t, i, &r);
        if (!r.count) continue;
        u32 bytes = packed_bytes(t, &r);
        u8 *to = global_ptr(m, op->warp, op->ins, op->lane, r.gaddr, bytes, t->reduce ? 2 : 1);
        if (!to) break;
        box_row_pack(&t->map, &r, t->buffer + i * t->width, packed);
        m->counters[C_ASYNC_STORE_BYTES] += bytes;
        if (!t->reduce) memcpy(to, packed, bytes);
        else
            for (u32 o = 0; o < bytes; o += element) reduce_element(t->map.type, t->reduce, to + o, packed + o);
    }
    event(m);
    return ASYNC_DONE;
}

static int issue_store(Machine *m, Warp *w, const Instr *ins, u32 lane) {
    const i32 *args = arg_list(m, ins);
    TmaOp *t = decode(m, w, ins, lane, args);
    if (!t) return EX_FATAL;
    u32 smem = (u32)lane_address(m, w, args, ARG_SMEM, lane, 0);
    t->smem = smem & SMEM_OFFSET_MASK;
    const char *wrong = t->smem & 127 ? "the shared-memory box is not 128-byte aligned" : NULL;
    for (int i = 0; i < 5; i++)
        if (t->coord[i] < 0) wrong = "negative coordinate: stores and reductions fault on the hardware (loads may be negative)";
    if (!wrong && t->reduce) wrong = reduce_supported(t->map.type, t->reduce);
    if (wrong || !smem_ptr(m, w, ins, lane, w->cta, t->smem, t->span)) {
        if (wrong) bad(m, w, ins, lane, F_TMA_OPERAND, smem, wrong);
        free(t);
        return EX_FATAL;
    }
    AsyncOp *op = async_push(m, &w->cta->bulk, ASYNC_TMA_STORE, store_step, w, ins, 1u << lane);
    op->data = t;
    op->lane = (u8)lane;
    op->size = t->bytes;
    op->group = w->bulk_seq[lane];
    t->claim[0] = claim_box(m, op, w->cta, t, ACCESS_READ, 1); /* rows outside the tensor are not read */
    return EX_NEXT;
}

/* ---- instructions --------------------------------------------------------------------------------------------- */

static int each_lane(Machine *m, Warp *w, const Instr *ins, u32 mask, int (*issue)(Machine *, Warp *, const Instr *, u32)) {
    for (u32 todo = mask; todo; todo &= todo - 1) {
        m->counters[C_TMA_INSTRUCTIONS]++;
        if (issue(m, w, ins, lowest_lane(todo)) == EX_FATAL) return EX_FATAL;
    }
    m->progress = m->time;
    return EX_NEXT;
}

int op_TMA_LOAD(Machine *m, Warp *w, const Instr *ins, u32 mask) { return each_lane(m, w, ins, mask, issue_load); }
int op_TMA_STORE(Machine *m, Warp *w, const Instr *ins, u32 mask) { return each_lane(m, w, ins, mask, issue_store); }

/* prefetch.tensormap [map] and cp.async.bulk.prefetch.tensor: no visible effect, but the map must be a map. */
static int issue_prefetch(Machine *m, Warp *w, const Instr *ins, u32 lane) {
    const i32 *args = arg_list(m, ins);
    TmaOp *t = decode(m, w, ins, lane, args);
    free(t);
    return t ? EX_NEXT : EX_FATAL;
}

int op_TMA_PREFETCH(Machine *m, Warp *w, const Instr *ins, u32 mask) { return each_lane(m, w, ins, mask, issue_prefetch); }

/* tensormap.replace: map base, offset, value; mod: field | ordinal << 4 | MOD_WIDE_MAP, space in bit 8 (shared). */
int op_TENSORMAP_REPLACE(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    const i32 *args = arg_list(m, ins);
    int shared = ins->mod >> 8 & 1, wide_value = ins->mod >> 9 & 1, field = (int)(ins->mod & 15);
    for (u32 todo = mask; todo; todo &= todo - 1) {
        u32 lane = lowest_lane(todo);
        u64 addr = lane_address(m, w, args, 0, lane, (ins->mod & MOD_WIDE_MAP) != 0);
        u64 value = wide_value ? src64(m, w, args[2])[lane] : src32(m, w, args[2])[lane];
        u8 *bytes = shared ? smem_ptr(m, w, ins, lane, w->cta, (u32)addr & SMEM_OFFSET_MASK, 128) : map_bytes(m, w, ins, lane, addr, 1);
        if (!bytes) return EX_FATAL;
        if (shared) {
            u32 off[LANES];
            off[lane] = (u32)addr & SMEM_OFFSET_MASK;
            if (shadow_generic(m, w, ins, w->cta, off, 1u << lane, 128, ACCESS_WRITE) == EX_FATAL) return EX_FATAL;
        }
        const char *wrong = tensormap_replace(bytes, field, (int)(ins->mod >> 4 & 7), value);
        if (wrong) return bad(m, w, ins, lane, F_TENSORMAP, addr, wrong);
    }
    m->progress = m->time;
    return EX_NEXT;
}

/* tensormap.cp_fenceproxy.global.shared::cta...: [dst], [src], 128: a warp-wide copy of one tensor map. */
int op_TENSORMAP_CP_FENCEPROXY(Machine *m, Warp *w, const Instr *ins, u32 mask) {
    if (mask != w->live) return EX_SYNC;
    const i32 *args = arg_list(m, ins);
    u32 lane = lowest_lane(mask);
    u64 to = lane_address(m, w, args, 0, lane, (ins->mod & MOD_WIDE_MAP) != 0);
    u32 off[LANES];
    off[lane] = (u32)lane_address(m, w, args, 2, lane, (ins->mod & MOD_WIDE_SMEM) != 0) & SMEM_OFFSET_MASK;
    const u8 *from = smem_ptr(m, w, ins, lane, w->cta, off[lane], 128);
    u8 *dst = from ? global_ptr(m, w, ins, lane, to, 128, 1) : NULL;
    if (!dst || shadow_generic(m, w, ins, w->cta, off, 1u << lane, 128, ACCESS_READ) == EX_FATAL) return EX_FATAL;
    memcpy(dst, from, 128);
    m->progress = m->time;
    return EX_NEXT;
}
