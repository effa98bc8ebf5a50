/* vprintf of device code: one call of the host's print per lane. */
#include "lanes.h"

#include <stdio.h>

static const u8 *readable(Machine *m, Warp *w, const Instr *ins, u32 l, u64 addr, u32 size)
{
    if ((addr & GENERIC_WINDOW) == GENERIC_LOCAL) {
        u64 off = addr & ~GENERIC_WINDOW;
        return off + size <= m->program->local_bytes ? w->local + (size_t)l * m->program->local_bytes + off : 0;
    }
    return global_ptr(m, w, ins, l, addr, size, 0);
}
static u32 format_one(char *out, u32 room, const char *spec, u32 length, u64 value)
{
    char form[64];
    char kind = spec[length - 1];
    if (length > sizeof form - 4) return 0;
    u32 n = 0;
    for (u32 i = 0; i < length - 1; i++)
        if (!strchr("lhqjzt", spec[i])) form[n++] = spec[i];
    if (strchr("diuoxXc", kind)) { if (kind != 'c') { form[n++] = 'l'; form[n++] = 'l'; } form[n++] = kind; form[n] = 0; }
    else { form[n++] = kind; form[n] = 0; }
    int wide = length > 2 && (spec[length - 2] == 'l' || spec[length - 2] == 'j' || spec[length - 2] == 'z');
    int did;
    if (strchr("di", kind)) did = snprintf(out, room, form, wide ? (long long)value : (long long)(i32)value);
    else if (strchr("uoxX", kind)) did = snprintf(out, room, form, wide ? (unsigned long long)value : (unsigned long long)(u32)value);
    else if (kind == 'c') did = snprintf(out, room, form, (int)value);
    else if (kind == 'p') did = snprintf(out, room, "%#llx", (unsigned long long)value);
    else if (strchr("eEfFgGaA", kind)) did = snprintf(out, room, form, f64_of(value));
    else did = snprintf(out, room, "%%%c", kind);
    return did < 0 ? 0 : (u32)did < room ? (u32)did : room - 1;
}
/* args d format data: values in data are aligned to their own size (8 for doubles, pointers and long integers) */
int op_VPRINTF(Machine *m, Warp *w, const Instr *ins, u32 mask)
{
    FOR_ACTIVE(mask) {
        u64 data = SRC(u64, 2)[l], offset = 0;
        char out[1024];
        u32 n = 0;
        for (u64 at = SRC(u64, 1)[l];; at++) {
            const char *c = (const char *)readable(m, w, ins, l, at, 1);
            if (!c) return EX_FATAL;
            if (!*c || n + 1 >= sizeof out) break;
            if (*c != '%') { out[n++] = *c; continue; }
            char spec[32] = "%";
            u32 k = 1;
            do {
                c = (const char *)readable(m, w, ins, l, ++at, 1);
                if (!c) return EX_FATAL;
                spec[k++] = *c;
            } while (k < sizeof spec - 1 && *c && !strchr("diuoxXcspeEfFgGaA%", *c));
            if (spec[k - 1] == '%') { out[n++] = '%'; continue; }
            int eight = strchr("eEfFgGaAps", spec[k - 1]) || memchr(spec, 'l', k);
            u64 value = 0, size = eight ? 8 : 4;
            offset = (offset + size - 1) & ~(size - 1);
            const u8 *p = readable(m, w, ins, l, data + offset, (u32)size);
            if (!p) return EX_FATAL;
            memcpy(&value, p, size);
            offset += size;
            if (spec[k - 1] == 's') {
                const char *s;
                for (u64 from = value; n + 1 < sizeof out && (s = (const char *)readable(m, w, ins, l, from, 1)) && *s; from++) out[n++] = *s;
            } else n += format_one(out + n, (u32)sizeof out - n, spec, k, value);
        }
        out[n] = 0;
        if (m->print) m->print(out);
        DST(u32, 0)[l] = n;
    }
    return EX_NEXT;
}
