/* The machine that executes lowered PTX: all structures that the interpreter's files share.
 *
 * One launch runs in one host thread.  A warp executes one instruction for a mask of lanes; a 32-bit register is
 * u32[32], a 64-bit register u64[32], a predicate one 32-bit mask.  16-bit registers live zero-extended in u32[32].
 * Everything asynchronous (bulk copies, tensor copies, wgmma, tcgen05) is an AsyncOp in an AsyncQueue, and the
 * scheduler decides when each of its phases happens.
 */
#ifndef CUTEFP4_EMU_H
#define CUTEFP4_EMU_H

#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t i8;
typedef int16_t i16;
typedef int32_t i32;
typedef int64_t i64;

#define LANES 32
#define FULL 0xffffffffu
#define SLOT_BYTES 128u              /* one 32-bit register of a warp; a 64-bit one takes two slots */
#define MAX_CLUSTER 16
#define MAX_NAMED_BARRIERS 16
#define SMEM_BYTES (256u * 1024u)    /* backing store of a CTA; what a kernel may use is Launch.smem_bytes */
#define SMEM_RESERVED 1024u          /* the system's part below the first user byte */
#define EXPORT __attribute__((visibility("default")))

/* Generic addresses: host pointers are global memory; the other spaces live where no host pointer can be. */
#define GENERIC_SHARED 0x0100000000000000ull   /* | cluster rank << 24 | offset */
#define GENERIC_LOCAL  0x0200000000000000ull   /* | offset, private to the lane that uses it */
#define GENERIC_PARAM  0x0300000000000000ull   /* | offset in the kernel's parameters */
#define GENERIC_WINDOW 0xff00000000000000ull
#define SMEM_RANK_SHIFT 24
#define SMEM_OFFSET_MASK 0x00ffffffu

typedef struct Machine Machine;
typedef struct Cluster Cluster;
typedef struct Cta Cta;
typedef struct Warp Warp;
typedef struct AsyncOp AsyncOp;
typedef struct AsyncQueue AsyncQueue;
typedef struct CtaEngine CtaEngine;    /* tensor memory and its queue: defined by the engines (engines.h) */
typedef struct WarpEngine WarpEngine;  /* wgmma state of a warp: defined by the engines */
typedef struct Shadow Shadow;          /* race detector's view of a CTA's shared memory (shadow.c) */

/* ---- program ------------------------------------------------------------------------------------------------ */

/* Operand: >= 0 register slot (predicate operands: predicate number), < 0 constant slot -1-x of Program.consts. */
typedef struct Instr {
    u16 op;        /* index in ops.def order */
    u16 nargs;     /* operands: destinations first */
    i32 guard;     /* 0 none, p+1 for @p, -(p+1) for @!p */
    i32 a[6];      /* the first six operands */
    u32 args;      /* all operands: Program.args + args (valid when nargs > 6; see arg_list) */
    u32 line;      /* line of the PTX text */
    u32 mod;       /* op-specific modifiers, packed by the lowering */
    i32 target;    /* branch target, or an op-specific number */
    u64 imm;       /* op-specific: address offset, immediate */
    u32 pc;        /* own index */
    u32 aux;
} Instr;

typedef struct Program {
    const Instr *code;
    const i32 *args;
    const u8 *consts;      /* constant slots, each broadcast over 32 lanes (SLOT_BYTES or two of them) */
    u32 n_code, n_slots, n_preds;
    const u32 *use_start;  /* n_code + 1: first entry of `uses` per instruction */
    const i32 *uses;       /* register slot << 1 | is_write; a 64-bit register has two entries */
    u32 param_bytes, smem_static, local_bytes, max_regs, reqntid, arch; /* arch: 90, 100, 103 ... */
} Program;

/* ---- outcome of one instruction ------------------------------------------------------------------------------ */

enum Exec {
    EX_NEXT = 0,   /* done, go to the next instruction */
    EX_JUMP,       /* the handler set Warp.pc and/or split the group itself */
    EX_BLOCK,      /* nothing was done; execute again after Machine.events has changed (set Warp.wait_* first) */
    EX_SYNC,       /* other lanes of the warp have to reach this instruction first */
    EX_YIELD,      /* done, but end the warp's slice (nanosleep, failed try_wait) */
    EX_EXIT,       /* the lanes of the mask left the kernel */
    EX_FATAL       /* a finding was recorded that stops the launch */
};

typedef int (*Handler)(Machine *m, Warp *w, const Instr *ins, u32 mask);
extern const Handler emu_handlers[];

/* ---- findings ------------------------------------------------------------------------------------------------ */

enum FindingKind {
#define FINDING(name, severity, text) F_##name,
#include "findings.def"
#undef FINDING
    F_COUNT
};

typedef struct Finding {
    u32 kind, line, pc, warp, lane, count;
    u32 cta[3];
    u32 severity;          /* 2 error that stops the launch, 1 error reported at its end, 0 warning */
    u64 address;
    char text[480];
} Finding;

#define MAX_FINDINGS 256

/* ---- asynchronous operations --------------------------------------------------------------------------------- */

enum AsyncKind {           /* laziness classes: a scheduler personality delays some of them */
    ASYNC_CP_ASYNC, ASYNC_BULK_LOAD, ASYNC_BULK_STORE, ASYNC_TMA_LOAD, ASYNC_TMA_STORE, ASYNC_WGMMA, ASYNC_TCGEN05,
    ASYNC_TCGEN05_LDST, ASYNC_CLC, ASYNC_REMOTE, ASYNC_KINDS
};

enum AsyncResult { ASYNC_MORE = 0, ASYNC_DONE = 1, ASYNC_WAIT = 2 /* cannot run yet, nothing was done */ };

/* Performs the next phase of an op (op->phase, which the caller then increments).  By convention phase 0 reads its
 * sources, phase 1 writes its destination, phase 2 signals completion; an op may have fewer. */
typedef int (*AsyncStep)(Machine *m, AsyncOp *op);

struct AsyncOp {
    AsyncOp *next, *prev;
    AsyncQueue *queue;
    AsyncStep step;
    const Instr *ins;
    Warp *warp;            /* issuer; stays valid until the CTA has retired (a CTA retires after its ops) */
    Cta *cta;
    u64 born;              /* Machine.time at issue */
    u64 group;             /* bulk-group / cp.async-group / wgmma-group number of the issuing lane, 0 none */
    u32 mask;              /* issuing lanes */
    u8 kind, phase, reads_done, lane;
    u32 size;              /* op-specific: bytes */
    u64 u[16];             /* op-specific */
    void *data;            /* op-specific, malloc'ed, freed with the op */
};

struct AsyncQueue {
    AsyncOp *head, *tail;
    u32 count;
    u32 in_order;          /* only the head may run */
    u32 index;             /* in Machine.queues */
};

/* ---- warps, CTAs, clusters ----------------------------------------------------------------------------------- */

typedef struct Group {     /* lanes that share a program counter */
    u32 pc, mask;
    u32 state;             /* enum GroupState */
    u64 blocked_at;        /* Machine.events when it blocked */
    /* last failed try_wait: a second identical failure blocks */
    u32 fail_pc, fail_steps;
    u64 fail_addr;
    /* an instruction in two halves (arrive, then wait): token of the first half, valid while token_pc == pc + 1 */
    u32 token_pc;
    u64 token;
    u64 blocked_steps;     /* Warp.steps when it blocked: tells a new wait from a repeated one */
} Group;

enum GroupState { GROUP_RUN, GROUP_BLOCKED, GROUP_SYNC };

struct Warp {
    u8 *regs;              /* n_slots * SLOT_BYTES */
    u32 *preds;
    Cta *cta;
    u32 index;             /* in the CTA */
    u32 first_tid;         /* linear thread index of lane 0 */
    u32 live;              /* lanes that exist and have not exited */
    u32 pc, active;        /* of the group that runs now (copied from / to groups[cur]) */
    u32 cur, n_groups;
    Group groups[LANES];
    u8 *local;             /* LANES * Program.local_bytes */
    u64 steps;             /* instructions executed */
    u64 bulk_seq[LANES];   /* open bulk async-group of each lane, from 1 */
    u64 cpa_seq[LANES];    /* open cp.async-group of each lane, from 1 */
    /* why the current group is blocked, for deadlock reports */
    const char *wait_what;
    u64 wait_addr, wait_arg;
    u32 max_regs;          /* setmaxnreg */
    u32 watch;             /* engines: call engine_watch before every instruction */
    u32 spins;             /* backward branches while other groups wait for this warp */
    u32 cluster_arrived;   /* lanes that arrived at the cluster barrier's running phase */
    u32 cluster_done;      /* lanes whose phase completed and that have not waited yet */
    WarpEngine *engine;
};

typedef struct Mbarrier {
    u32 offset;            /* in the CTA's shared memory */
    u32 expected, pending; /* arrivals of a phase, still missing in this one */
    i32 tx;                /* bytes still expected in this phase (may be negative between arrive and complete_tx) */
    u32 phase;             /* number of completed phases; the parity is its low bit */
    u32 valid, line;       /* line of the init */
    u32 fenced;            /* fence.mbarrier_init or a CTA/cluster barrier happened since init */
    u32 init_warp;
    u64 packed;            /* what shared memory must still hold */
} Mbarrier;

typedef struct NamedBarrier {
    u32 expected, arrived; /* threads; expected 0: idle */
    u64 generation;
    u32 waiting_line;
    u32 pred_acc, pred_n;  /* red.{and,or,popc} */
    u32 pred_result;
} NamedBarrier;

struct Cta {
    Cluster *cluster;
    u32 rank;              /* in the cluster */
    u32 id[3];             /* %ctaid */
    u32 linear;            /* linear block index */
    u32 n_warps, live_warps;
    Warp *warps;
    u8 *smem;              /* SMEM_BYTES; user bytes [SMEM_RESERVED, smem_limit) */
    u32 smem_limit;
    u32 pending_ops;       /* async ops not complete that name this CTA */
    u32 exited;
    NamedBarrier named[MAX_NAMED_BARRIERS];
    Mbarrier *mbars;
    u32 n_mbars, cap_mbars;
    Shadow *shadow;
    CtaEngine *engine;
    AsyncQueue cp_async, bulk; /* cp.async; bulk and tensor copies in no order */
};

struct Cluster {
    u32 id, size;          /* id: linear cluster index in the grid */
    u32 cid[3];
    Cta *ctas[MAX_CLUSTER];
    u32 sm;
};

/* ---- launches and the machine -------------------------------------------------------------------------------- */

typedef struct Launch {
    const Program *program;
    const u8 *params;      /* program->param_bytes */
    u32 grid[3], block[3], cluster[3];
    u32 smem_dynamic;
    u32 sms, ctas_per_sm;
    u64 seed;              /* 0: eager */
    u64 max_steps;         /* warp instructions without a side effect before a livelock is reported */
    u64 *pc_count;         /* program->n_code executions per instruction (warp level) */
    u64 *pc_lanes;         /* active lanes, summed */
    u32 strict;            /* 1: race and initialisation checks on */
    u32 poison;            /* 1: registers, shared and tensor memory start random (from seed or 1) */
} Launch;

typedef struct Allocation { u64 start, size; u8 *init; } Allocation; /* init: per-byte, or NULL */

typedef struct Personality {
    u32 slice_min, slice_max;       /* instructions a warp runs before another may */
    u32 async_permille;             /* chance per slice that async work advances at all */
    u32 kind_permille[ASYNC_KINDS]; /* chance that an op of that kind advances when chosen */
    u32 starved_warps;              /* bit w%32: warps that run only when nothing else can */
} Personality;

enum Counter {
#define COUNTER(name, text) C_##name,
#include "counters.def"
#undef COUNTER
    C_COUNT
};

struct Machine {
    const Launch *launch;
    const Program *program;
    const Instr *code;
    u64 time;              /* instructions executed by all warps: %clock, %globaltimer */
    u64 events;            /* changes whenever a blocked instruction might now succeed */
    u64 progress;          /* Machine.time of the last side effect */
    u64 rng;
    u32 eager;
    u32 fatal;
    u32 muted;             /* findings are dropped: the launch has been stopped and is being torn down */
    u32 pushed;            /* an op was issued since the queues were last drained (eager mode) */
    Personality mood;
    char place[16384];     /* deadlock report: every warp's place and every barrier's state */
    Allocation *allocs;    /* sorted by start */
    u32 n_allocs, cap_allocs;
    u32 last_alloc;
    int (*resolve)(u64 address, u64 size); /* host: may register the allocation that holds the address; 1 if so */
    int (*print)(const char *text);
    Finding findings[MAX_FINDINGS];
    u32 n_findings;
    u64 counters[C_COUNT];
    Cluster **clusters;    /* resident */
    u32 n_clusters, cap_clusters;
    u64 next_cluster, n_total_clusters; /* next to launch; clusterlaunchcontrol takes from here too */
    AsyncQueue **queues;   /* all queues that exist */
    u32 n_queues, cap_queues;
    u32 n_ops;
    u64 retired_at;        /* Machine.events when finished CTAs were last looked for */
};

/* ---- operands ------------------------------------------------------------------------------------------------ */

static inline const i32 *arg_list(const Machine *m, const Instr *ins)
{
    return ins->nargs > 6 ? m->program->args + ins->args : ins->a;
}
/* Source: register or broadcast constant. */
static inline const u32 *src32(const Machine *m, const Warp *w, i32 s)
{
    return (const u32 *)(s >= 0 ? w->regs + (size_t)s * SLOT_BYTES : m->program->consts + (size_t)(-1 - s) * SLOT_BYTES);
}
static inline const u64 *src64(const Machine *m, const Warp *w, i32 s) { return (const u64 *)(const void *)src32(m, w, s); }
static inline u32 *dst32(const Warp *w, i32 d) { return (u32 *)(w->regs + (size_t)d * SLOT_BYTES); }
static inline u64 *dst64(const Warp *w, i32 d) { return (u64 *)(w->regs + (size_t)d * SLOT_BYTES); }
static inline u32 lowest_lane(u32 mask) { return (u32)__builtin_ctz(mask); }

/* ---- services (core) ----------------------------------------------------------------------------------------- */

/* report.c.  Records a finding (deduplicated by kind and line); returns EX_FATAL if it stops the launch, else EX_NEXT. */
int finding(Machine *m, const Warp *w, const Instr *ins, u32 lane, int kind, u64 address, const char *fmt, ...)
    __attribute__((format(printf, 7, 8)));
int finding_cta(Machine *m, const Cta *cta, const Instr *ins, int kind, u64 address, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));

/* memory.c.  A checked pointer into global memory, or NULL after a finding.  write: 1 store, 0 load, 2 both. */
u8 *global_ptr(Machine *m, const Warp *w, const Instr *ins, u32 lane, u64 addr, u32 size, int write);
/* Shared address (rank << 24 | offset) of a cluster, from the 32-bit form: .shared::cta names the own CTA. */
Cta *smem_cta(Machine *m, const Warp *w, u32 addr, int cluster_space);
/* A checked pointer into a CTA's shared memory, or NULL after a finding. */
u8 *smem_ptr(Machine *m, const Warp *w, const Instr *ins, u32 lane, Cta *cta, u32 offset, u32 size);
/* Where a generic 64-bit address points: sets cta and offset for shared memory (returns 1), else 0 = global. */
int generic_is_shared(const Machine *m, const Warp *w, u64 addr, Cta **cta, u32 *offset);
/* Addresses of a memory operand in all lanes: register a (64 or 32 bit by `wide`) plus the instruction's offset. */
void lane_addresses(const Machine *m, const Warp *w, i32 base, int wide, i64 offset, u64 out[LANES]);

/* barrier.c */
Mbarrier *mbar_find(Machine *m, const Warp *w, const Instr *ins, u32 lane, Cta *cta, u32 offset);
int mbar_arrive(Machine *m, const Warp *w, const Instr *ins, u32 lane, Cta *cta, u32 offset, u32 count);
int mbar_expect_tx(Machine *m, const Warp *w, const Instr *ins, u32 lane, Cta *cta, u32 offset, u32 bytes);
void mbar_add_pending(Cta *cta, Mbarrier *b); /* cp.async.mbarrier.arrive without .noinc: one more arrival this phase */
/* Waits that exited lanes can satisfy. */
void barriers_recheck(Machine *m, Cta *cta);
void cta_barriers_at_exit(Machine *m, Cta *cta);
int mbar_complete_tx(Machine *m, const Warp *w, const Instr *ins, u32 lane, Cta *cta, u32 offset, u32 bytes);

/* async.c */
void queue_register(Machine *m, AsyncQueue *q, int in_order);
void queue_unregister(Machine *m, AsyncQueue *q);
AsyncOp *async_push(Machine *m, AsyncQueue *q, int kind, AsyncStep step, Warp *w, const Instr *ins, u32 mask);
/* Ops of (warp, lane) in bulk groups older than `keep` committed ones that are not complete (read_only: not yet read). */
u32 bulk_groups_pending(Machine *m, const Warp *w, u32 lane, u32 keep, int read_only);

/* scheduler.c */
/* One phase of some op that the personality lets advance; `force` ignores its laziness.  1 if something happened. */
int async_advance(Machine *m, int force);
void async_drain(Machine *m);          /* eager: until nothing can advance */
u64 emu_random(Machine *m);
u32 random_below(Machine *m, u32 n);
static inline void event(Machine *m) { m->events++; m->progress = m->time; }

/* ---- hooks that the engines and the race detector implement (engines.h, shadow.c) ------------------------------ */

void engine_cta_begin(Machine *m, Cta *cta);
void engine_cta_end(Machine *m, Cta *cta);      /* all warps exited and all ops complete: TMEM not freed, ... */
void engine_warp_begin(Machine *m, Warp *w);
void engine_warp_end(Machine *m, Warp *w);
/* Called before each instruction of a warp whose `watch` is set; EX_NEXT, or EX_FATAL after a finding that stops. */
int engine_watch(Machine *m, Warp *w, const Instr *ins, u32 mask);

/* Generic-proxy accesses of a warp to one CTA's shared memory, after bounds and alignment were checked.
 * off[lane] valid for lanes of mask.  Returns EX_NEXT or EX_FATAL. */
enum AccessKind { ACCESS_READ = 1, ACCESS_WRITE = 2, ACCESS_ATOMIC = 3 };
int shadow_generic(Machine *m, Warp *w, const Instr *ins, Cta *cta, const u32 off[LANES], u32 mask, u32 size, int access);
/* fence.proxy.async (any form that covers shared memory) executed by these lanes. */
void shadow_fence_async(Machine *m, Warp *w, u32 mask);
/* A CTA-wide, cluster-wide or mbarrier synchronisation point: `arrive` publishes the warp's accesses, `wait` acquires. */
void shadow_arrive(Machine *m, Warp *w, const void *barrier);
void shadow_wait(Machine *m, Warp *w, const void *barrier);
/* Non-tensor async copies of the core tell the detector: issue (pending), then read/written. */
void shadow_async_issue(Machine *m, AsyncOp *op, Cta *cta, u32 off, u32 size, int access);
void shadow_async_done(Machine *m, AsyncOp *op, Cta *cta, u32 off, u32 size, int access);

#endif
