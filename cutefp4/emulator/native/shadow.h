/* Race detector for shared memory: one flag byte per byte, and a list of what asynchronous operations may still touch.
 *
 * A Claim is the set of byte ranges of one CTA's shared memory that an operation will read or write at a moment the
 * scheduler picks. It is taken when the operation is issued and released when that phase has happened; an access that
 * conflicts with a live claim is a race whatever order this run happens to choose. The flag bytes only make the common
 * case (no claim near) fast: a set flag means "look at the claims".
 */
#ifndef CUTEFP4_SHADOW_H
#define CUTEFP4_SHADOW_H

#include "emu.h"

enum ShadowFlag {
    SHADOW_INIT = 1,     /* something has written the byte */
    SHADOW_WRITING = 2,  /* an asynchronous write may be pending */
    SHADOW_READING = 4,  /* an asynchronous read may be pending */
    SHADOW_GENERIC = 8,  /* last written by ld/st (the generic proxy), not known to be fenced for the async proxy */
};

typedef struct Segment { u32 off, size; } Segment;

typedef struct Claim {
    struct Claim *next, *prev;
    const AsyncOp *op; /* identity only: a claim may outlive its operation (until the commit that covers it) */
    Cta *cta;
    u32 kind, line, warp; /* of the operation */
    u32 access;        /* ACCESS_READ, ACCESS_WRITE, or ACCESS_ATOMIC for reductions, which do not race with each other */
    const Warp *waiter; /* bulk stores: whose wait_group tells that the reads are done; set when they are */
    u32 lane;
    u64 group;
    u32 lo, hi; /* bounds of all segments */
    u32 n;
    Segment seg[];
} Claim;

struct Shadow {
    u8 flags[SMEM_BYTES];
    u32 write_time[SMEM_BYTES / 4]; /* of the last generic write, where SHADOW_GENERIC is set */
    u16 writer[SMEM_BYTES / 4];     /* cluster rank * 32 + warp */
    u32 fence_time[32];             /* last fence.proxy.async of each warp */
    u32 acquire_time[32];           /* last barrier wait of each warp */
    u32 covered_time;               /* writes before this were acquired by a warp that fenced afterwards */
    Claim *first, *last;
};

/* Checks the ranges against live claims, proxy fences (reads) and initialisation (reads), then takes the claim.
 * Returns NULL when checks are off (Launch.strict == 0) or nothing is claimed. */
Claim *shadow_claim(Machine *m, AsyncOp *op, Cta *cta, const Segment *seg, u32 n, int access);
/* The phase has happened. Written bytes become initialised. */
void shadow_release(Machine *m, Claim *claim);
/* The same for the reads of a bulk store: the bytes stay claimed until the issuing thread has waited for the group, since
 * nothing else tells anybody that they may be overwritten. */
void shadow_store_read(Machine *m, const AsyncOp *op, Claim *claim);
/* The thread has waited for all its bulk groups before `oldest_kept`. */
void shadow_bulk_waited(Machine *m, Warp *w, u32 lane, u64 oldest_kept);
/* 16-byte chunks at the given addresses, merged where adjacent. */
u32 segments_of_chunks(const u32 *chunks, u32 n, Segment *seg);
const char *async_name(u32 kind);

void shadow_cta_begin(Machine *m, Cta *cta);
void shadow_cta_end(Machine *m, Cta *cta);

#endif
