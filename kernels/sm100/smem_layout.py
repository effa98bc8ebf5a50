"""Shared memory of the Blackwell GEMM: one CTA's buffers and barriers.

    per stage   A codes   128 rows x 128 bytes, 128-byte swizzle        SFA  4 scale tiles (K) of 512 bytes
                B codes   b_rows x 128 bytes, 128-byte swizzle          SFB  sfb_tiles x 4 scale tiles
    tiles       matrices that the epilogue reads x 4 warps x 2 buffers of 32 rows x 128 bytes, 128-byte swizzle
    store       4 warps x 2 buffers of 32 rows x 128 bytes, 128-byte swizzle
    vectors     4 warps x vectors along N x tile_n fp32

The swizzle works on address bits 4..9, so that swizzled buffers are aligned to 1024 bytes.
"""

from dataclasses import dataclass

import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint8
from cutlass.memory import SmemAllocator

from cutefp4.config_sm100 import (
    CLC_STAGES,
    EPILOGUE_WARPS,
    STORE_BUFFER_BYTES,
    STORE_BUFFERS,
    TILE_BUFFERS,
    Sm100Config,
    sm100_smem,
    stage_bytes,
    tmem_layout,
)

from ..common.barriers import RingSpec
from ..common.device_struct import DeviceStruct
from .work_queue import RESPONSE_BYTES


@dataclass
class Storage(DeviceStruct):
    """Pointers to the shared-memory buffers of one CTA."""

    full: cute.Pointer
    empty: cute.Pointer
    acc_full: cute.Pointer
    acc_empty: cute.Pointer
    work_full: cute.Pointer
    work_empty: cute.Pointer
    responses: cute.Pointer
    tile_full: cute.Pointer
    tmem_address: cute.Pointer
    vectors: cute.Pointer
    a: cute.Pointer
    b: cute.Pointer
    store: cute.Pointer
    tiles: cute.Pointer
    sfa: cute.Pointer
    sfb: cute.Pointer


def ring_specs(config: Sm100Config) -> tuple[RingSpec, RingSpec]:
    """The load ring and the accumulator ring as data.

    load: filled by TMA, which the producer of the group's first CTA announces once; a stage is empty when every group
    to which this CTA multicasts has read it: those of its cluster column and of its cluster row (its own is in both).

    acc: filled by tcgen05.commit; emptied by the epilogue warps of the group's CTAs. Two stages, or one when the two
    accumulators overlap: then the epilogue releases it early, see `tmem_layout`.
    """
    readers = config.b_slices + config.a_slices - 1
    acc_stages = 1 if tmem_layout(config).overlapped else 2
    return (
        RingSpec("load", config.stages, full_arrivals=1, empty_arrivals=readers),
        RingSpec("acc", acc_stages, full_arrivals=1, empty_arrivals=EPILOGUE_WARPS * config.cta_group),
    )


def tile_barriers(tiles: int) -> int:
    """Barriers of the buffers of `tiles` matrices (at least one, so that there is an array)."""
    return max(tiles * EPILOGUE_WARPS * TILE_BUFFERS, 1)


def allocate(config: Sm100Config, column_vectors: int, tiles: int) -> Storage:
    """Lay out the buffers; column_vectors, tiles: as in `sm100_smem`."""
    smem = SmemAllocator()
    size = stage_bytes(config)
    load, acc = ring_specs(config)

    def buffer(count: int, align: int = 1024) -> cute.Pointer:
        return smem.allocate_array(Uint8, count, byte_alignment=align)

    return Storage(
        full=smem.allocate_array(Int64, load.stages),
        empty=smem.allocate_array(Int64, load.stages),
        acc_full=smem.allocate_array(Int64, acc.stages),
        acc_empty=smem.allocate_array(Int64, acc.stages),
        work_full=smem.allocate_array(Int64, CLC_STAGES),
        work_empty=smem.allocate_array(Int64, CLC_STAGES),
        responses=buffer(CLC_STAGES * RESPONSE_BYTES, RESPONSE_BYTES),
        tile_full=smem.allocate_array(Int64, tile_barriers(tiles)),
        tmem_address=smem.allocate_array(Int32, 1),
        vectors=smem.allocate_array(
            Float32, max(sm100_smem(config, column_vectors).vectors // 4, 4), byte_alignment=16
        ),
        a=buffer(config.stages * size.a),
        b=buffer(config.stages * size.b),
        store=buffer(EPILOGUE_WARPS * STORE_BUFFERS * STORE_BUFFER_BYTES),
        tiles=buffer(max(sm100_smem(config, column_vectors, tiles).tiles, 16)),
        sfa=buffer(config.stages * size.sfa, 128),
        sfb=buffer(config.stages * size.sfb, 128),
    )
