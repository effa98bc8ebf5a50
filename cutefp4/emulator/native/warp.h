/* Execution of one warp: groups of lanes with a common program counter. */
#ifndef CUTEFP4_WARP_H
#define CUTEFP4_WARP_H

#include "emu.h"

enum WarpState { WARP_READY, WARP_BLOCKED, WARP_DONE, WARP_FATAL };

/* Runs up to `slice` instructions. */
int warp_run(Machine *m, Warp *w, u32 slice);
/* Splits the running group: lanes `taken` continue at `target`, the others at the next instruction (EX_JUMP). */
int warp_branch(Machine *m, Warp *w, const Instr *ins, u32 taken, u32 target);
/* 1 if some group could run now (its wait may have been satisfied). */
int warp_may_run(const Machine *m, const Warp *w);

static inline Group *current_group(Warp *w) { return &w->groups[w->cur]; }

#endif
