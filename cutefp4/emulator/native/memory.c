/* Addresses: spaces, bounds, alignment; ld and st. */
#include "access.h"
#include "lanes.h"

void lane_addresses(const Machine *m, const Warp *w, i32 base, int wide, i64 offset, u64 out[LANES])
{
    if (wide) {
        const u64 *b = src64(m, w, base);
        for (int l = 0; l < LANES; l++) out[l] = b[l] + (u64)offset;
    } else {
        const u32 *b = src32(m, w, base);
        for (int l = 0; l < LANES; l++) out[l] = (u32)(b[l] + (u32)offset);
    }
}

/* ---- global memory */

static Allocation *allocation_of(Machine *m, u64 addr)
{
    u32 low = 0, high = m->n_allocs;
    while (low < high) {
        u32 mid = (low + high) / 2;
        if (m->allocs[mid].start <= addr) low = mid + 1;
        else high = mid;
    }
    if (!low) return 0;
    m->last_alloc = low - 1;
    return &m->allocs[low - 1];
}
static Allocation *allocation_holding(Machine *m, u64 addr, u64 size)
{
    if (m->last_alloc < m->n_allocs) {
        Allocation *a = &m->allocs[m->last_alloc];
        if (addr >= a->start && addr + size <= a->start + a->size) return a;
    }
    for (int attempt = 0; attempt < 2; attempt++) {
        Allocation *a = allocation_of(m, addr);
        if (a && addr + size <= a->start + a->size) return a;
        if (attempt || addr < 4096 || (addr & GENERIC_WINDOW) || !m->resolve || !m->resolve(addr, size)) break;
    }
    return 0;
}

static int report_out_of_bounds(Machine *m, const Warp *w, const Instr *ins, u32 lane, u64 addr, u32 size, int write)
{
    const char *verb = write == ACCESS_WRITE ? "store to" : write == ACCESS_READ ? "load from" : "atomic on";
    Allocation *a = allocation_of(m, addr);
    if (a && addr < a->start + a->size + 65536)
        return finding(m, w, ins, lane, F_OUT_OF_BOUNDS_GLOBAL, addr,
                       "%s %u bytes at %#llx, %lld bytes past the end of an allocation of %llu bytes at %#llx", verb, size,
                       (unsigned long long)addr, (long long)(addr + size - a->start - a->size), (unsigned long long)a->size, (unsigned long long)a->start);
    for (u32 i = 0; i < m->n_allocs; i++)
        if (addr < m->allocs[i].start && addr + 65536 > m->allocs[i].start)
            return finding(m, w, ins, lane, F_OUT_OF_BOUNDS_GLOBAL, addr, "%s %u bytes at %#llx, %llu bytes before an allocation of %llu bytes",
                           verb, size, (unsigned long long)addr, (unsigned long long)(m->allocs[i].start - addr),
                           (unsigned long long)m->allocs[i].size);
    return finding(m, w, ins, lane, F_OUT_OF_BOUNDS_GLOBAL, addr, "%s %u bytes at %#llx, which is in no registered allocation",
                   verb, size, (unsigned long long)addr);
}
static int check_initialised(Machine *m, const Warp *w, const Instr *ins, u32 lane, Allocation *a, u64 addr, u32 size, int kind)
{
    u8 *init = a->init + (addr - a->start);
    if (kind & 1)
        for (u32 i = 0; i < size; i++)
            if (!init[i])
                return finding(m, w, ins, lane, F_UNINITIALISED_GLOBAL, addr,
                               "reads byte %llu of an allocation of %llu bytes that was declared uninitialised and was never written there",
                               (unsigned long long)(addr + i - a->start), (unsigned long long)a->size) != EX_FATAL;
    if (kind & 2) memset(init, 1, size);
    return 1;
}
u8 *global_ptr(Machine *m, const Warp *w, const Instr *ins, u32 lane, u64 addr, u32 size, int write)
{
    int kind = write == 1 ? ACCESS_WRITE : write == 0 ? ACCESS_READ : ACCESS_ATOMIC;
    Allocation *a = allocation_holding(m, addr, size);
    if (!a) {
        report_out_of_bounds(m, w, ins, lane, addr, size, kind);
        return 0;
    }
    if (a->init && !check_initialised(m, w, ins, lane, a, addr, size, kind)) return 0;
    return (u8 *)(uintptr_t)addr;
}

/* ---- shared memory */

Cta *smem_cta(Machine *m, const Warp *w, u32 addr, int cluster_space)
{
    (void)m;
    if (!cluster_space) return w->cta;
    u32 rank = addr >> SMEM_RANK_SHIFT;
    return rank < w->cta->cluster->size ? w->cta->cluster->ctas[rank] : 0;
}
u8 *smem_ptr(Machine *m, const Warp *w, const Instr *ins, u32 lane, Cta *cta, u32 offset, u32 size)
{
    if (!cta) {
        finding(m, w, ins, lane, F_OUT_OF_BOUNDS_SHARED, offset, "the address names a CTA rank outside the cluster");
        return 0;
    }
    if (offset < SMEM_RESERVED || offset + size > cta->smem_limit || offset + size < offset) {
        finding(m, w, ins, lane, F_OUT_OF_BOUNDS_SHARED, offset,
                "%u bytes at shared offset %u (byte %lld of the kernel's %u)", size, offset,
                (long long)offset - SMEM_RESERVED, cta->smem_limit - SMEM_RESERVED);
        return 0;
    }
    if (cta->exited) {
        finding(m, w, ins, lane, F_REMOTE_EXITED, offset,
                "CTA %u of the cluster has exited: keep it alive with a cluster barrier after the last remote access", cta->rank);
        return 0;
    }
    return cta->smem + offset;
}
int generic_is_shared(const Machine *m, const Warp *w, u64 addr, Cta **cta, u32 *offset)
{
    if ((addr & GENERIC_WINDOW) != GENERIC_SHARED) return 0;
    *cta = smem_cta((Machine *)m, w, (u32)addr, 1);
    *offset = (u32)addr & SMEM_OFFSET_MASK;
    return 1;
}

/* Wavefronts of a shared access: lanes are served in groups of 128 bytes; within one, words of one bank serialise. */
static void count_wavefronts(Machine *m, const u32 off[LANES], u32 mask, u32 size)
{
    u32 per_group = size <= 4 ? 32 : 128 / size, waves = 0, groups = 0;
    if (!per_group) per_group = 1;
    for (u32 first = 0; first < LANES; first += per_group) {
        u32 words[32], used[32] = {0}, worst = 0;
        u32 chain[32 * 8], n_chain = 0, next[32 * 8];
        int any = 0;
        memset(words, 0xff, sizeof words);
        for (u32 l = first; l < first + per_group && l < LANES; l++) {
            if (!LANE(mask, l)) continue;
            any = 1;
            for (u32 word = off[l] / 4; word <= (off[l] + size - 1) / 4; word++) {
                u32 bank = word & 31, i = words[bank], seen = 0;
                for (; i != FULL; i = next[i])
                    if (chain[i] == word) { seen = 1; break; }
                if (seen || n_chain >= 32 * 8) continue;
                chain[n_chain] = word;
                next[n_chain] = words[bank];
                words[bank] = n_chain++;
                if (++used[bank] > worst) worst = used[bank];
            }
        }
        waves += worst;
        groups += (u32)any;
    }
    m->counters[C_SHARED_WAVEFRONTS] += waves;
    m->counters[C_BANK_CONFLICTS] += waves - groups;
}

/* ---- resolving the lanes of one access */

static int misaligned(Machine *m, Warp *w, const Instr *ins, u32 lane, u64 addr, u32 align)
{
    finding(m, w, ins, lane, F_MISALIGNED, addr, "address %#llx is not a multiple of %u", (unsigned long long)addr, align);
    return 0;
}

static int resolve_global(Machine *m, Warp *w, const Instr *ins, u32 mask, const u64 *addr, u32 size, int kind, Access *out)
{
    out->space = SPACE_GLOBAL;
    u64 low = ~0ull, high = 0, sector = ~0ull, sectors = 0;
    FOR_ACTIVE(mask) {
        u64 a = addr[l];
        out->ptr[l] = (u8 *)(uintptr_t)a;
        low = a < low ? a : low;
        high = a > high ? a : high;
        u64 first = a >> 5, last = (a + size - 1) >> 5;
        sectors += last - first + (first != sector);
        sector = last;
    }
    u64 bytes = (u64)size * (u32)__builtin_popcount(mask);
    if (kind & ACCESS_READ) m->counters[C_GLOBAL_LOAD_BYTES] += bytes;
    if (kind & ACCESS_WRITE) m->counters[C_GLOBAL_STORE_BYTES] += bytes;
    m->counters[C_GLOBAL_SECTORS] += sectors;
    Allocation *a = high + size > high && !(high & GENERIC_WINDOW) ? allocation_holding(m, low, 1) : 0;
    if (a && high + size <= a->start + a->size) {
        if (!a->init) return 1;
        FOR_ACTIVE(mask)
            if (!check_initialised(m, w, ins, l, a, addr[l], size, kind)) return 0;
        return 1;
    }
    FOR_ACTIVE(mask)
        if (!global_ptr(m, w, ins, l, addr[l], size, kind == ACCESS_WRITE ? 1 : kind == ACCESS_READ ? 0 : 2)) return 0;
    return 1;
}

static int resolve_shared(Machine *m, Warp *w, const Instr *ins, u32 mask, const u64 *addr, u32 size, int kind, int cluster, Access *out)
{
    out->space = SPACE_SHARED;
    out->cta = smem_cta(m, w, (u32)addr[lowest_lane(mask)], cluster);
    int mixed = 0;
    FOR_ACTIVE(mask) {
        Cta *cta = smem_cta(m, w, (u32)addr[l], cluster);
        out->off[l] = (u32)addr[l] & SMEM_OFFSET_MASK;
        if (!cluster && (u32)addr[l] >> SMEM_RANK_SHIFT && (u32)addr[l] >> SMEM_RANK_SHIFT != w->cta->rank) {
            finding(m, w, ins, l, F_OUT_OF_BOUNDS_SHARED, addr[l],
                    "a .shared::cta access with the address of CTA %u of the cluster; use .shared::cluster",
                    (u32)addr[l] >> SMEM_RANK_SHIFT);
            return 0;
        }
        if (!(out->ptr[l] = smem_ptr(m, w, ins, l, cta, out->off[l], size))) return 0;
        mixed |= cta != out->cta;
    }
    u64 bytes = (u64)size * (u32)__builtin_popcount(mask);
    if (kind & ACCESS_READ) m->counters[C_SHARED_LOAD_BYTES] += bytes;
    if (kind & ACCESS_WRITE) m->counters[C_SHARED_STORE_BYTES] += bytes;
    count_wavefronts(m, out->off, mask, size);
    if (!mixed) return shadow_generic(m, w, ins, out->cta, out->off, mask, size, kind) != EX_FATAL;
    FOR_ACTIVE(mask)
        if (shadow_generic(m, w, ins, smem_cta(m, w, (u32)addr[l], cluster), out->off, 1u << l, size, kind) == EX_FATAL) return 0;
    return 1;
}

static int resolve_private(Machine *m, Warp *w, const Instr *ins, u32 mask, const u64 *addr, u32 size, int is_param, Access *out)
{
    out->space = SPACE_LOCAL;
    u32 limit = is_param ? m->program->param_bytes : m->program->local_bytes;
    FOR_ACTIVE(mask) {
        u64 a = addr[l] & ~GENERIC_WINDOW;
        if (a + size > limit) {
            finding(m, w, ins, l, is_param ? F_OUT_OF_BOUNDS_PARAM : F_OUT_OF_BOUNDS_LOCAL, a, "%u bytes at %llu of %u", size,
                    (unsigned long long)a, limit);
            return 0;
        }
        out->ptr[l] = is_param ? (u8 *)(uintptr_t)(m->launch->params + a) : w->local + (size_t)l * limit + a;
    }
    if (!is_param) m->counters[C_LOCAL_BYTES] += (u64)size * (u32)__builtin_popcount(mask);
    return 1;
}

static int resolve_space(Machine *m, Warp *w, const Instr *ins, u32 mask, const u64 *addr, u32 size, int kind, int space, Access *out)
{
    switch (space) {
    case SPACE_GLOBAL: return resolve_global(m, w, ins, mask, addr, size, kind, out);
    case SPACE_SHARED: return resolve_shared(m, w, ins, mask, addr, size, kind, 0, out);
    case SPACE_CLUSTER: return resolve_shared(m, w, ins, mask, addr, size, kind, 1, out);
    default: return resolve_private(m, w, ins, mask, addr, size, space == SPACE_PARAM, out);
    }
}
static int space_of(u64 addr)
{
    switch (addr & GENERIC_WINDOW) {
    case GENERIC_SHARED: return SPACE_CLUSTER;
    case GENERIC_LOCAL: return SPACE_LOCAL;
    case GENERIC_PARAM: return SPACE_PARAM;
    default: return SPACE_GLOBAL;
    }
}

int access_resolve(Machine *m, Warp *w, const Instr *ins, u32 mask, i32 base, u32 size, u32 align, int kind, Access *out)
{
    u64 addr[LANES], bad = 0;
    int space = (int)ACC_SPACE(ins->mod);
    lane_addresses(m, w, base, (int)ACC_WIDE(ins->mod), (i64)ins->imm, addr);
    for (int l = 0; l < LANES; l++) bad |= LANE(mask, l) ? addr[l] & (align - 1) : 0;
    if (bad)
        FOR_ACTIVE(mask)
            if (addr[l] & (align - 1)) return misaligned(m, w, ins, l, addr[l], align);
    if (kind & ACCESS_WRITE) m->progress = m->time;
    if (space != SPACE_GENERIC) return resolve_space(m, w, ins, mask, addr, size, kind, space, out);
    while (mask) { /* generic: usually all lanes name one space */
        int first = space_of(addr[lowest_lane(mask)]);
        u32 same = 0;
        FOR_ACTIVE(mask) same |= (u32)(space_of(addr[l]) == first) << l;
        if (!resolve_space(m, w, ins, same, addr, size, kind, first, out)) return 0;
        mask &= ~same;
    }
    return 1;
}

/* ---- ld: args d0 .. dn base.  st: args base s0 .. sn. */

static u64 load_element(const u8 *p, u32 bytes, int is_signed)
{
    switch (bytes) {
    case 1: return is_signed ? (u64)(i64)(i8)*p : *p;
    case 2: { u16 v; memcpy(&v, p, 2); return is_signed ? (u64)(i64)(i16)v : v; }
    case 4: { u32 v; memcpy(&v, p, 4); return is_signed ? (u64)(i64)(i32)v : v; }
    default: { u64 v; memcpy(&v, p, 8); return v; }
    }
}
static void load_register(Warp *w, const Access *x, i32 d, u32 mod, u32 at, u32 mask)
{
    u32 bytes = ACC_BYTES(mod), reg = ACC_REG(mod);
    if (bytes == 16) {
        u64 *lo = dst64(w, d), *hi = dst64(w, d + 2);
        FOR_ACTIVE(mask) { memcpy(&lo[l], x->ptr[l] + at, 8); memcpy(&hi[l], x->ptr[l] + at + 8, 8); }
    } else if (reg == 2) {
        u64 *D = dst64(w, d);
        if (bytes == 8) FOR_ACTIVE(mask) memcpy(&D[l], x->ptr[l] + at, 8);
        else FOR_ACTIVE(mask) D[l] = load_element(x->ptr[l] + at, bytes, (int)ACC_SIGNED(mod));
    } else {
        u32 *D = dst32(w, d), keep = reg ? FULL : 0xffffu;
        if (bytes == 4) FOR_ACTIVE(mask) memcpy(&D[l], x->ptr[l] + at, 4);
        else FOR_ACTIVE(mask) D[l] = (u32)load_element(x->ptr[l] + at, bytes, (int)ACC_SIGNED(mod)) & keep;
    }
}
static void store_register(Machine *m, Warp *w, const Access *x, i32 s, u32 mod, u32 at, u32 mask)
{
    u32 bytes = ACC_BYTES(mod);
    if (bytes == 16) {
        const u64 *lo = src64(m, w, s), *hi = s >= 0 ? src64(m, w, s + 2) : lo;
        FOR_ACTIVE(mask) { memcpy(x->ptr[l] + at, &lo[l], 8); memcpy(x->ptr[l] + at + 8, &hi[l], 8); }
    } else if (ACC_REG(mod) == 2) {
        const u64 *S = src64(m, w, s);
        FOR_ACTIVE(mask) memcpy(x->ptr[l] + at, &S[l], bytes);
    } else {
        const u32 *S = src32(m, w, s);
        if (bytes == 4) FOR_ACTIVE(mask) memcpy(x->ptr[l] + at, &S[l], 4);
        else FOR_ACTIVE(mask) memcpy(x->ptr[l] + at, &S[l], bytes);
    }
}
int op_LD(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    const i32 *a = arg_list(m, ins);
    u32 bytes = ACC_BYTES(ins->mod), n = ACC_COUNT(ins->mod);
    Access x;
    if (!access_resolve(m, w, ins, mask, a[n], bytes * n, bytes * n, ACCESS_READ, &x)) return EX_FATAL;
    for (u32 i = 0; i < n; i++) load_register(w, &x, a[i], ins->mod, i * bytes, mask);
    return EX_NEXT;
}
int op_ST(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    const i32 *a = arg_list(m, ins);
    u32 bytes = ACC_BYTES(ins->mod), n = ACC_COUNT(ins->mod);
    Access x;
    if (!access_resolve(m, w, ins, mask, a[0], bytes * n, bytes * n, ACCESS_WRITE, &x)) return EX_FATAL;
    for (u32 i = 0; i < n; i++) store_register(m, w, &x, a[1 + i], ins->mod, i * bytes, mask);
    return EX_NEXT;
}

/* ---- address arithmetic between spaces.  args d a; imm: window of the space */
int op_CVTA(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u64 *D = DST(u64, 0), window = ins->imm;
    const u64 *A = SRC(u64, 1);
    LANES_STORE(u64, (void)0, window | A[l])
}
int op_CVTA_TO(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    u64 *D = DST(u64, 0);
    const u64 *A = SRC(u64, 1);
    LANES_STORE(u64, (void)0, A[l] & ~GENERIC_WINDOW)
}
/* isspacep: args p a; imm: the window, aux 1: shared::cta (own CTA only) */
int op_ISSPACEP(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    const u64 *A = SRC(u64, 1);
    u32 r = 0;
    FOR_ACTIVE(mask) {
        u32 yes = (A[l] & GENERIC_WINDOW) == ins->imm;
        if (ins->aux) yes &= (u32)A[l] >> SMEM_RANK_SHIFT == w->cta->rank;
        r |= yes << l;
    }
    w->preds[ins->a[0]] = (w->preds[ins->a[0]] & ~mask) | r;
    return EX_NEXT;
}
/* mapa: args d a rank; mod 1: 64-bit addresses, 2: generic.  A rank outside the cluster is an error only when the address
 * is used: NVIDIA's pipelines map the lane number and then let only the lanes with a CTA arrive. */
int op_MAPA(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    const u32 *R = SRC(u32, 2);
    FOR_ACTIVE(mask) {
        u64 a = ins->mod & 1 ? SRC(u64, 1)[l] : SRC(u32, 1)[l];
        u32 rank = R[l] < w->cta->cluster->size ? R[l] : 0xff;
        a = (a & ~0xff000000ull) | (u64)rank << SMEM_RANK_SHIFT;
        if (ins->mod & 1) DST(u64, 0)[l] = a;
        else DST(u32, 0)[l] = (u32)a;
    }
    return EX_NEXT;
}
/* getctarank: args d a; mod as mapa */
int op_GETCTARANK(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    FOR_ACTIVE(mask)
        DST(u32, 0)[l] = (ins->mod & 1 ? (u32)SRC(u64, 1)[l] : SRC(u32, 1)[l]) >> SMEM_RANK_SHIFT;
    return EX_NEXT;
}
