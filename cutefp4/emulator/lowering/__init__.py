"""PTX instructions -> interpreter instructions; importing the package registers every lowering."""

from __future__ import annotations

from . import (  # noqa: F401
    async_copy,
    atomics,
    barrier,
    clc,
    compare,
    control,
    convert,
    floating,
    integer,
    matrix_memory,
    memory,
    mma_sync,
    move,
    tcgen05,
    tma,
    wgmma,
)
