/* Findings: recorded once per kind and instruction, with a count. */
#include "emu.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const u32 severities[F_COUNT] = {
#define FINDING(name, severity, text) severity,
#include "findings.def"
#undef FINDING
};

static Finding *slot(Machine *m, int kind, const Instr *ins)
{
    if (m->muted) return 0;
    u32 line = ins ? ins->line : 0, pc = ins ? ins->pc : 0;
    for (u32 i = 0; i < m->n_findings; i++)
        if (m->findings[i].kind == (u32)kind && m->findings[i].pc == pc && m->findings[i].line == line) {
            m->findings[i].count++;
            return 0;
        }
    if (m->n_findings == MAX_FINDINGS) return 0;
    Finding *f = &m->findings[m->n_findings++];
    memset(f, 0, sizeof *f);
    f->kind = (u32)kind;
    f->line = line;
    f->pc = pc;
    f->count = 1;
    f->severity = severities[kind];
    return f;
}
static int outcome(Machine *m, int kind)
{
    if (severities[kind] < 2) return EX_NEXT;
    m->fatal = 1;
    return EX_FATAL;
}
int finding(Machine *m, const Warp *w, const Instr *ins, u32 lane, int kind, u64 address, const char *fmt, ...)
{
    Finding *f = slot(m, kind, ins);
    if (f) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(f->text, sizeof f->text, fmt, args);
        va_end(args);
        f->lane = lane;
        f->address = address;
        if (w) {
            f->warp = w->index;
            memcpy(f->cta, w->cta->id, sizeof f->cta);
        }
    }
    return outcome(m, kind);
}
int finding_cta(Machine *m, const Cta *cta, const Instr *ins, int kind, u64 address, const char *fmt, ...)
{
    Finding *f = slot(m, kind, ins);
    if (f) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(f->text, sizeof f->text, fmt, args);
        va_end(args);
        f->address = address;
        memcpy(f->cta, cta->id, sizeof f->cta);
    }
    return outcome(m, kind);
}
