"""Shared memory of the Hopper GEMM: its buffers, and where the order of K is decided.

Packed rows land by TMA in the swizzle mode whose width is the row (32, 64 or 128 bytes for 1, 2 or 4 blocks of 64). A
sub-tile q of 64 elements takes four of the row's 16-element blocks (8 bytes each): the t-th thread of a quad decodes
block 2 * k_blocks * (t // 2) + 2 * q + t % 2 of its rows, all 16 elements and their one scale. Then

* a warp's 8-byte reads of 8 rows touch every bank once in every swizzle mode, and two 16-byte reads fetch what the
  decode warpgroup needs of a row (blocks 2q, 2q + 1 and 2 * k_blocks + 2q, + 1);
* the wgmma fragment needs no shuffle. Thread t of a quad holds the k-slots {2t, 2t+1, 2t+8, 2t+9} of step s; they are
  the pairs 2s and 2s + 1 of block t, where pair p of a block is pair p % 4 of its word p // 4, as decoded
  (common/e2m1.py).

The shared operand is written in the same order, by the decode warpgroups or the staging kernel: the 16-byte chunk p of
a decoded row (slots 8p .. 8p+7) holds pair p of the blocks of t = 0, 1, 2, 3. Any order of K is legal as long as both
operands use the same one.

16-bit activations keep the order of memory, and then so must the weight: thread t needs byte t of each word of its rows
(decode.py, NaturalOrderReader).
"""

from dataclasses import dataclass

import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint8, Uint16, Uint32
from cutlass.memory import SmemAllocator

from cutefp4.config import K_BLOCK, Sm90Config
from cutefp4.gemm_plan import Sm90GemmPlan

from ..common.device_struct import DeviceStruct

ROW_BYTES = 128
"""A decoded row of one sub-tile: 64 16-bit elements, one row of the 128-byte swizzle."""


def quad_block(k_blocks: int, q: int, t: int) -> int:
    """The 16-element block of a packed row that quad thread `t` takes in sub-tile `q`."""
    return 2 * k_blocks * (t // 2) + 2 * q + t % 2


def swizzle_chunk(k_blocks: int, row):
    """What TMA's swizzle XORs into the 16-byte chunk index of a packed row of 32 * k_blocks bytes."""
    return (row // (8 // (2 * k_blocks))) % (2 * k_blocks)


@dataclass
class Storage(DeviceStruct):
    """Pointers to the shared-memory buffers of one CTA."""

    full: cute.Pointer
    empty: cute.Pointer
    mma_full: cute.Pointer
    mma_empty: cute.Pointer
    landed_m: cute.Pointer
    landed_n: cute.Pointer
    scales_m: cute.Pointer
    scales_n: cute.Pointer
    decoded_n: cute.Pointer
    store: cute.Pointer
    tile_full: cute.Pointer
    flags: cute.Pointer
    sums_free: cute.Pointer
    sums_full: cute.Pointer
    vectors: cute.Pointer


@dataclass(frozen=True)
class StageBytes:
    """Bytes of one stage of each ring; tma: what TMA brings of a load stage."""

    landed_m: int
    landed_n: int
    scales_m: int
    scales_n: int
    decoded_n: int
    tma: int


def stage_bytes(plan: Sm90GemmPlan) -> StageBytes:
    """Stage sizes of a plan."""
    config, (m, n) = plan.config, plan.operands()
    return StageBytes(
        landed_m=m.tile_bytes(config),
        landed_n=n.tile_bytes(config),
        scales_m=m.scale_bytes(config),
        scales_n=n.scale_bytes(config),
        decoded_n=config.tile_n * K_BLOCK * config.mma_blocks * 2,
        tma=m.tma_bytes(config) + n.tma_bytes(config),
    )


def allocate(config: Sm90Config, size: StageBytes, store_bytes: int, tile_slots: int, vector_floats: int) -> Storage:
    """Lay out the buffers; everything that a swizzle touches is aligned to 1024 bytes.

    Args:
        store_bytes: staging of D for TMA stores.
        tile_slots: staging slots that TMA fills with C, of all consumer warpgroups.
        vector_floats: the epilogue's vectors along n, of all consumer warpgroups.
    """
    smem = SmemAllocator()
    loads, mmas = config.load_stages, config.mma_stages

    def buffer(count: int) -> cute.Pointer:
        return smem.allocate_array(Uint8, max(count, 16), byte_alignment=1024)

    return Storage(
        full=smem.allocate_array(Int64, loads),
        empty=smem.allocate_array(Int64, loads),
        mma_full=smem.allocate_array(Int64, mmas),
        mma_empty=smem.allocate_array(Int64, mmas),
        tile_full=smem.allocate_array(Int64, max(tile_slots, 1)),
        flags=smem.allocate_array(Int32, config.consumer_groups),
        sums_free=smem.allocate_array(Int64, 1),
        sums_full=smem.allocate_array(Int64, config.consumer_groups),
        vectors=smem.allocate_array(Float32, max(vector_floats, 4), byte_alignment=16),
        landed_m=buffer(loads * size.landed_m),
        landed_n=buffer(loads * size.landed_n),
        scales_m=buffer(loads * size.scales_m),
        scales_n=buffer(loads * size.scales_n),
        decoded_n=buffer(mmas * size.decoded_n),
        store=buffer(store_bytes),
    )


def load_words(base: cute.Pointer, offset, words: int) -> list:
    """`words` (1, 2 or 4) 32-bit words of shared memory at a byte offset, in one instruction."""
    pointer = cute.make_ptr(Uint32, (base + offset).toint(), cute.AddressSpace.smem, assumed_align=4 * words)
    vector = cute.make_tensor(pointer, cute.make_layout(words)).load()
    return [Uint32(vector[i]) for i in range(words)]


def store_words(base: cute.Pointer, offset: Int32, words: list) -> None:
    """Write 32-bit words (1, 2 or 4) to shared memory at a byte offset, in one instruction."""
    pointer = cute.make_ptr(Uint32, (base + offset).toint(), cute.AddressSpace.smem, assumed_align=4 * len(words))
    registers = cute.make_rmem_tensor(len(words), Uint32)
    for i, word in enumerate(words):
        registers[i] = word
    cute.make_tensor(pointer, cute.make_layout(len(words))).store(registers.load())


def load_half(base: cute.Pointer, offset) -> Uint32:
    """An aligned 16-bit word of shared memory, zero-extended."""
    pointer = cute.make_ptr(Uint16, (base + offset).toint(), cute.AddressSpace.smem, assumed_align=2)
    return Uint32(cute.make_tensor(pointer, cute.make_layout(1))[0])


def load_byte(base: cute.Pointer, offset) -> Uint32:
    """One byte of shared memory, zero-extended."""
    return Uint32(cute.make_tensor(base + offset, cute.make_layout(1))[0])
