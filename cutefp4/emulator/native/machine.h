/* Between launch.c (which creates and retires clusters) and scheduler.c (which runs them). */
#ifndef CUTEFP4_MACHINE_H
#define CUTEFP4_MACHINE_H

#include "emu.h"

void choose_personality(Machine *m, u64 seed);
int run_grid(Machine *m);
/* Makes clusters resident while there is room. */
void launch_clusters(Machine *m);
/* Removes clusters whose warps exited and whose operations completed; how many. */
u32 retire_clusters(Machine *m);
void free_clusters(Machine *m);

#endif
