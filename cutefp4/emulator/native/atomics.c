/* atom and red: every operation and type, scalar and vector.  Lanes of one instruction apply in an order that the
 * scheduler's seed picks, so that results which depend on the order show. */
#include "access.h"
#include "lanes.h"

static u32 half_op(u32 op, u32 old, u32 value, int bf)
{
    float a = bf ? bf16_to_f32(old & 0xffff) : half_to_float(old & 0xffff);
    float b = bf ? bf16_to_f32(value & 0xffff) : half_to_float(value & 0xffff), r;
    switch (op) {
    case AT_ADD: r = a + b; break;
    case AT_MIN: r = a != a ? b : b != b ? a : a < b ? a : b < a ? b : f32_of(bits_of(a) | bits_of(b)); break;
    default: r = a != a ? b : b != b ? a : a > b ? a : b > a ? b : f32_of(bits_of(a) & bits_of(b));
    }
    return bf ? float_to_bf16(r) : float_to_half(r);
}
static u64 integer_op(u32 op, u64 old, u64 value, int is_signed, u32 bits)
{
    u64 keep = bits == 64 ? ~0ull : (1ull << bits) - 1;
    i64 so = bits == 32 ? (i32)old : (i64)old, sv = bits == 32 ? (i32)value : (i64)value;
    switch (op) {
    case AT_ADD: return (old + value) & keep;
    case AT_MIN: return is_signed ? (so < sv ? old : value) : old < value ? old : value;
    case AT_MAX: return is_signed ? (so > sv ? old : value) : old > value ? old : value;
    case AT_INC: return old >= value ? 0 : old + 1;
    case AT_DEC: return old == 0 || old > value ? value : old - 1;
    case AT_AND: return old & value;
    case AT_OR: return old | value;
    case AT_XOR: return old ^ value;
    default: return value;
    }
}
/* NaN: the L2 passes one on as it is, the new value's first; the SM's adder quietens, and prefers the one in memory. */
static u64 double_sum(u64 old, u64 value, int in_global)
{
    double a = f64_of(value), b = f64_of(old), sum = a + b;
    if (a == a && b == b) return sum == sum ? bits_of64(sum) : 0xfff8000000000000ull;
    if (in_global) return a != a ? value : old;
    return (b != b ? old : value) | 1ull << 51;
}
u64 atomic_apply(u32 op, u32 type, u64 old, u64 value, int in_global)
{
    switch (type) {
    case TY_F32:
        if (op == AT_EXCH) return value;
        if (op == AT_ADD && in_global) /* the L2's adder flushes subnormals, the SM's does not */
            return bits_of(flush(canonical(flush(f32_of((u32)old)) + flush(f32_of((u32)value)))));
        return bits_of(canonical(op == AT_ADD ? f32_of((u32)old) + f32_of((u32)value) :
                                 op == AT_MIN ? fminf(f32_of((u32)old), f32_of((u32)value)) : fmaxf(f32_of((u32)old), f32_of((u32)value))));
    case TY_F64: return double_sum(old, value, in_global);
    case TY_F16: return half_op(op, (u32)old, (u32)value, 0);
    case TY_BF16: return half_op(op, (u32)old, (u32)value, 1);
    case TY_F16X2: return half_op(op, (u32)old, (u32)value, 0) | half_op(op, (u32)old >> 16, (u32)value >> 16, 0) << 16;
    case TY_BF16X2: return half_op(op, (u32)old, (u32)value, 1) | half_op(op, (u32)old >> 16, (u32)value >> 16, 1) << 16;
    case TY_U64: return integer_op(op, old, value, 0, 64);
    case TY_S64: return integer_op(op, old, value, 1, 64);
    case TY_S32: return integer_op(op, old, value, 1, 32);
    case TY_B16: return integer_op(op, old, value, 0, 16);
    default: return integer_op(op, old, value, 0, 32);
    }
}

u32 atomic_type_bytes(u32 type)
{
    switch (type) {
    case TY_U64: case TY_S64: case TY_F64: return 8;
    case TY_F16: case TY_BF16: case TY_B16: return 2;
    case TY_B128: return 16;
    default: return 4;
    }
}
static u64 read_source(Machine *m, Warp *w, i32 s, u32 bytes, u32 l)
{
    u64 v = bytes == 8 ? src64(m, w, s)[l] : src32(m, w, s)[l];
    return bytes == 2 ? v & 0xffff : v;
}
static void atomic_128(Machine *m, Warp *w, u8 *p, const i32 *a, i32 d, i32 src, i32 swap, u32 l)
{
    u64 old[2], value[2];
    memcpy(old, p, 16);
    (void)a;
    value[0] = src64(m, w, src)[l];
    value[1] = src64(m, w, src + 2)[l];
    if (swap >= 0) {
        if (old[0] == value[0] && old[1] == value[1]) {
            value[0] = src64(m, w, swap)[l];
            value[1] = src64(m, w, swap + 2)[l];
        } else { value[0] = old[0]; value[1] = old[1]; }
    }
    memcpy(p, value, 16);
    if (d >= 0) { dst64(w, d)[l] = old[0]; dst64(w, d + 2)[l] = old[1]; }
}

/* args: [d0 .. dn] base s0 .. sn [swap]; aux 1: results wanted (atom), 0: red */
int op_ATOM(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    const i32 *a = arg_list(m, ins);
    u32 bytes = ACC_BYTES(ins->mod), n = ACC_COUNT(ins->mod), op = ACC_OP(ins->mod), type = ACC_TYPE(ins->mod);
    u32 results = ins->aux ? n : 0;
    Access x;
    if (!access_resolve(m, w, ins, mask, a[results], bytes * n, bytes * n, ACCESS_ATOMIC, &x)) return EX_FATAL;
    m->counters[C_ATOMICS] += (u32)__builtin_popcount(mask);
    u32 first = m->eager ? 0 : random_below(m, LANES);
    for (u32 k = 0; k < LANES; k++) {
        u32 l = (k + first) & 31;
        if (!LANE(mask, l)) continue;
        for (u32 i = 0; i < n; i++) {
            u8 *p = x.ptr[l] + i * bytes;
            i32 s = a[results + 1 + i];
            if (bytes == 16) {
                atomic_128(m, w, p, a, results ? a[0] : -1, s, op == AT_CAS ? a[results + 2] : -1, l);
                continue;
            }
            u64 old = 0, value = read_source(m, w, s, bytes, l), now;
            memcpy(&old, p, bytes);
            if (op == AT_CAS) now = old == value ? read_source(m, w, a[results + 1 + n], bytes, l) : old;
            else now = atomic_apply(op, type, old, value, x.space == SPACE_GLOBAL);
            memcpy(p, &now, bytes);
            if (results) {
                if (bytes == 8) dst64(w, a[i])[l] = old;
                else dst32(w, a[i])[l] = (u32)old;
            }
        }
    }
    event(m);
    return EX_NEXT;
}
