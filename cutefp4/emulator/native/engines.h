/* State and helpers that the asynchronous engines share. */
#ifndef CUTEFP4_ENGINES_H
#define CUTEFP4_ENGINES_H

#include "descriptors.h"
#include "emu.h"
#include "shadow.h"
#include "tmem_layout.h"

/* Cells of tensor memory that an operation may touch until it is known to be complete: lanes x [col0, col1). */
typedef struct TmemClaim {
    const void *owner;  /* the AsyncOp; the Warp for tcgen05.ld */
    const void *queue;  /* operations of one queue run in order and do not race with each other; NULL for ld and st */
    const char *what;
    u64 lanes[2];
    u32 col0, col1, access, line;
    u32 executed;       /* has run, but no commit has told anybody yet */
    u32 is_store;       /* tcgen05.st: waited for with wait::st instead of a commit */
} TmemClaim;

struct CtaEngine {
    u32 *tmem;                    /* [TMEM_LANES][TMEM_COLUMNS], from the first tcgen05.alloc on */
    u8 *written;                  /* same shape: 1 once something has written the cell */
    u16 owner[TMEM_COLUMNS / 32]; /* allocation number of each 32-column block, 0 free */
    u16 next_owner;
    u32 relinquished;             /* tcgen05.relinquish_alloc_permit was executed */
    u32 alloc_line;               /* of the last allocation */
    u32 want, granted;            /* a pair allocates together: columns asked for, address + 1 given */
    u32 cta_group;                /* the only one a kernel may use; 0 until known */
    TmemClaim *claims;
    u32 n_claims, cap_claims;
    AsyncQueue queue;             /* mma, cp, shift and commit in order; the even CTA's serves a pair */
    Claim **retired;              /* shared-memory claims of executed but uncommitted operations of the queue */
    u32 n_retired, cap_retired;
};

/* What pending instructions do with a register slot. */
enum SlotUse { SLOT_WGMMA_READ = 1, SLOT_WGMMA_ACC = 2, SLOT_LOADING = 4, SLOT_UNFENCED = 8 };

/* A wgmma that was issued and whose group has not been waited for. */
typedef struct PendingWgmma {
    u64 group, number;  /* number: how many wgmma the warp had issued with this one */
    const Instr *ins;
    Claim *claim[2];    /* NULL once some warp of the warpgroup has waited for it */
} PendingWgmma;

struct WarpEngine {
    AsyncQueue wgmma;      /* in order */
    AsyncQueue stores;     /* tcgen05.st that have not landed yet, in order */
    u64 wgmma_group;       /* open wgmma group, from 1 */
    u64 issued, executed;  /* wgmma of this warp */
    u32 fenced;            /* wgmma.fence was executed at least once */
    u8 *slots;             /* enum SlotUse bits of each register slot */
    u32 n_in_flight;       /* wgmma that mark slots */
    u32 n_loads;           /* tcgen05.ld without a wait::ld */
    PendingWgmma *pending; /* oldest first */
    u32 n_pending, cap_pending;
};

static inline u32 *tmem_cell(const CtaEngine *e, u32 lane, u32 column) {
    return e->tmem + (size_t)lane * TMEM_COLUMNS + column;
}
static inline u8 *tmem_written(const CtaEngine *e, u32 lane, u32 column) {
    return e->written + (size_t)lane * TMEM_COLUMNS + column;
}

/* tcgen05_alloc.c */
/* Every instruction of a kernel names the same .cta_group; returns EX_FATAL after a finding. */
int tcgen05_group(Machine *m, Warp *w, const Instr *ins, u32 cta_group);
/* The CTA whose queue serves w (the even one of a pair). */
Cta *tcgen05_leader(const Warp *w, u32 cta_group);
/* All columns allocated and inside tensor memory; 0 after a finding. */
int tmem_columns_ok(Machine *m, const Warp *w, const Instr *ins, const Cta *cta, u32 col0, u32 col1);
/* Reports a race with claims of others, if there is one. */
void tmem_check(Machine *m, const Warp *w, const Instr *ins, const Cta *cta, const TmemClaim *access);
void tmem_claim(Machine *m, const Warp *w, const Instr *ins, Cta *cta, const TmemClaim *access);
void tmem_drop(Cta *cta, const void *owner);

/* tcgen05_queue.c */
/* An operation in the queue of the leader's pair; tcgen05_finish returns ASYNC_DONE. */
AsyncOp *tcgen05_push(Machine *m, Warp *w, const Instr *ins, u32 lane, u32 cta_group, AsyncStep step);
int tcgen05_finish(Machine *m, AsyncOp *op);
/* Claims of an operation that ran stay until a commit behind it has run. */
void tcgen05_retire(Cta *leader, Claim *claim);
void tcgen05_executed(Cta *leader, u32 cta_group, const AsyncOp *op);

/* operands.c: matrix operands in shared memory. Claim: bounds and races; 0 after a fatal finding. */
int operand_claim(Machine *m, AsyncOp *op, Cta *cta, const SmemDesc *d, const OperandShape *s, Claim **claim);
void operand_read(const Cta *cta, const SmemDesc *d, const OperandShape *s, int panels, double *out);

/* tcgen05_ldst.c */
void tcgen05_loads_done(Machine *m, Warp *w);

/* An operand address: base register plus the constant offset that follows it in the argument list. */
static inline u64 lane_address(const Machine *m, const Warp *w, const i32 *args, int i, u32 lane, int wide) {
    u64 base = wide ? src64(m, w, args[i])[lane] : src32(m, w, args[i])[lane];
    return base + (u64)(i64)(i32)src32(m, w, args[i + 1])[0];
}

#endif
