"""D through shared memory: fragments are staged box by box, one warp per warpgroup stores each box by TMA; and C the
other way, through the same boxes.

A *box* is what one warpgroup stages between two barriers: one 64-row tile of m, and as many n-blocks of 8 as fill
128 bytes (8 for 16-bit D, 4 for fp32), at most 8 KiB. Its rows have 128 bytes, in TMA's 128-byte swizzle
(16-byte chunk index XOR row % 8). The rows of D are m and a box is one panel of 64 rows; with swap_ab the rows of D
are n, and a box is one panel of 64 columns of 16 bits, or two of 32 columns of fp32.

A warpgroup has a ring of `slots` boxes (config.store_passes = boxes of its tile / slots). While one box is computed,
the copies of the ones before it run; the last ones run under the next tile's mainloop.

C comes the same way (load "tma"): TMA brings it into the slot where D's box will be staged; each thread reads its
elements of C where it then writes those of D. The boxes that the ring holds come under the mainloop, behind its first
stages: before it, a warp had to wait until the last tile's D had been read, and all of C together delayed the tile's
first operands (4096^3, bf16: 190.4 us, 187.6 like this, 184.6 without C; wgrad 7168 x 2048, K = 2048: 115.1 and 111.3).
A ring that holds the whole tile of C needs no more loads in the epilogue: 103.4 us in tiles of 128x192.

With store "tma_add", D = C + z in place, only the boxes of C that the ring holds at once are loaded; the copies of the
other ones add to the fp32 values in memory. On an H200 this addition rounds to nearest and keeps subnormals, as the
oracle does (checked on 50 000 pairs, special values included). It alone runs at 1.3 TB/s of fp32 (45 us for 7168 x
2048, where loads and stores take 32 us), so half and half was fastest: 48.7 us for K = 512, added 56.3, loaded 49.5.

TMA clips what lies outside D and gives zeros for what lies outside C. Needs 16-byte aligned rows.

Tried on an H200, 128x256 tiles: asking L2 before the mainloop for the boxes of C that do not fit the ring, and
refilling a slot one box later, 116.9 us where it takes 114.2 (wgrad 7168 x 2048, K = 2048): C then competes with the
tile's first operands. Each warp copying its own 16 rows, no barrier among the four: 184.6 us instead of 183.3 at
4096^3, 0.97 of cuBLAS instead of 1.01 at (16384, 7168, 2048).
"""

import cutlass
import cutlass.cute as cute
from cutlass import BFloat16, Float32, Int32, Uint32
from cutlass._mlir.dialects import llvm
from cutlass.cute.nvgpu import cpasync, warpgroup
from cutlass.cutlass_dsl import T, dsl_user_op

from cutefp4.config import Sm90Config, store_box_blocks, store_boxes, store_slots

from ..common.device_struct import DeviceStruct

ROW_BYTES = 128
"""A row of a box: one row of the 128-byte swizzle."""


@dsl_user_op
def pack_pair(low: Float32, high: Float32, kind: cutlass.Constexpr, *, loc=None, ip=None) -> Uint32:
    """Two fp32 values rounded to 16 bits ("bf16" or "f16") in one register."""
    arguments = [Float32(high).ir_value(loc=loc, ip=ip), Float32(low).ir_value(loc=loc, ip=ip)]
    code = f"cvt.rn.{kind}x2.f32 $0, $1, $2;"
    return Uint32(llvm.inline_asm(T.i32(), arguments, code, "=r,f,f", has_side_effects=False, loc=loc, ip=ip))


@dsl_user_op
def unpack_pair(pair: Uint32, kind: cutlass.Constexpr, *, loc=None, ip=None) -> list:
    """The two fp32 values of a register of two 16-bit ones ("bf16" or "f16"), low half first."""
    code = {
        "bf16": ("shl.b32 $0, $1, 16;", "and.b32 $0, $1, 0xffff0000;"),
        "f16": (
            "{ .reg .f16 x, y; mov.b32 {x, y}, $1; cvt.f32.f16 $0, x; }",
            "{ .reg .f16 x, y; mov.b32 {x, y}, $1; cvt.f32.f16 $0, y; }",
        ),
    }[kind]
    constraints = "=r,r" if kind == "bf16" else "=f,r"
    values = []
    for half in code:
        result = T.i32() if kind == "bf16" else T.f32()
        value = llvm.inline_asm(
            result, [pair.ir_value(loc=loc, ip=ip)], half, constraints, has_side_effects=False, loc=loc, ip=ip
        )
        values.append(Float32(value if kind != "bf16" else llvm.bitcast(T.f32(), value, loc=loc, ip=ip)))
    return values


@dsl_user_op
def stmatrix_x4(address: Int32, registers: list, transpose: bool, *, loc=None, ip=None) -> None:
    """Store four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l // 8."""
    arguments = [value.ir_value(loc=loc, ip=ip) for value in (address, *registers)]
    code = f"stmatrix.sync.aligned.m8n8.x4{'.trans' if transpose else ''}.shared.b16 [$0], {{$1, $2, $3, $4}};"
    llvm.inline_asm(None, arguments, code, "r,r,r,r,r,~{memory}", has_side_effects=True, loc=loc, ip=ip)


@dsl_user_op
def ldmatrix_x4(address: Int32, transpose: bool, *, loc=None, ip=None) -> list:
    """Load what `stmatrix_x4` stores."""
    code = f"ldmatrix.sync.aligned.m8n8.x4{'.trans' if transpose else ''}.shared.b16 {{$0, $1, $2, $3}}, [$4];"
    result = llvm.inline_asm(
        llvm.StructType.get_literal([T.i32()] * 4),
        [address.ir_value(loc=loc, ip=ip)],
        code,
        "=r,=r,=r,=r,r,~{memory}",
        has_side_effects=True,
        loc=loc,
        ip=ip,
    )
    return [Uint32(llvm.extractvalue(T.i32(), result, [i], loc=loc, ip=ip)) for i in range(4)]


def element_kind(dtype) -> str:
    """The name of a 16-bit type in PTX."""
    return "bf16" if dtype is BFloat16 else "f16"


def box_layout(config: Sm90Config, dtype):
    """Shared layout (rows, columns) of one panel of a box."""
    atom = warpgroup.make_smem_layout_atom(warpgroup.SmemLayoutAtomKind.K_SW128, dtype)
    return cute.tile_to_shape(atom, _panel_shape(config, dtype), order=(0, 1))


def _panel_shape(config: Sm90Config, dtype) -> tuple[int, int]:
    size = dtype.width // 8
    rows = 8 * store_box_blocks(config, size) if config.swap_ab else 64
    return rows, ROW_BYTES // size


def matrix_tma(matrix: cute.Tensor, config: Sm90Config, operation) -> tuple:
    """TMA atom and coordinate tensor of a matrix (L, M, N) like D, in panels of a box."""
    l, m, n = matrix.shape
    mnl = cute.make_tensor(matrix.iterator, cute.make_layout((m, n, l), stride=(n, 1, m * n)))
    dtype = matrix.element_type
    info = cpasync.make_tiled_tma_atom(operation, mnl, box_layout(config, dtype), _panel_shape(config, dtype))
    return tuple(info)[:2]


class StagedStore(DeviceStruct):
    """One warpgroup's ring of boxes, the TMA stores of D, and the TMA loads of C.

    store_tma, load_tma, add_tma: (atom, coordinates) of D, of C, and of D for adding to it; () for none.
    load_dtype: of C; of the size of D's elements.
    buffer: this warpgroup's boxes. full: its barriers, one per slot, each filled by TMA with a box of C.
    """

    def __init__(self, tmas, dtypes, buffer: cute.Pointer, full, config: Sm90Config, consumer: Int32, thread: Int32):
        self.store_tma, self.load_tma, self.add_tma = tmas
        self.dtype, self.load_dtype = dtypes
        self.config, self.consumer, self.thread, self.full = config, consumer, thread, full
        size = self.dtype.width // 8
        self.boxes, self.slots = store_boxes(config, size), store_slots(config, size)
        self.blocks = store_box_blocks(config, size)
        self.box_bytes = 64 * 8 * self.blocks * size
        self.address = Int32(buffer.toint()) + self._thread_offset(thread % 32, thread // 32)
        self.buffer = buffer

    def _thread_offset(self, lane: Int32, warp: Int32) -> Int32:
        """Where this thread's part of a box begins; the rest of an address is a constant, see `_address`.

        16 bits: the row that the lane addresses for stmatrix, of n-blocks 0 and 1. fp32: its element h = j = 0 of
        n-block 0.
        """
        g, t, row = lane // 4, lane % 4, lane % 8
        if self.dtype.width == 16:
            high, second = (lane // 8) % 2, lane // 16
            if self.config.swap_ab:
                return (8 * second + row) * ROW_BYTES + ((2 * warp + high) ^ row) * 16
            return (16 * warp + 8 * high + row) * ROW_BYTES + (second ^ row) * 16
        if self.config.swap_ab:
            panel = (warp // 2) * (8 * self.blocks * ROW_BYTES)
            return panel + 2 * t * ROW_BYTES + ((4 * (warp % 2) + g // 4) ^ (2 * t)) * 16 + (g % 4) * 4
        return (16 * warp + g) * ROW_BYTES + ((t // 2) ^ g) * 16 + (t % 2) * 8

    def _address(self, box: int, block: int, h: int = 0, j: int = 0) -> Int32:
        """Of n-block `block` of a box: one XOR with a constant (the swizzle) and one constant offset."""
        offset = (box % self.slots) * self.box_bytes
        if self.config.swap_ab:
            flip = 0 if self.dtype.width == 16 else 32 * h + 16 * j
            offset += block * 8 * ROW_BYTES + j * ROW_BYTES
        else:
            flip = block * 16 if self.dtype.width == 16 else block * 32
            offset += h * 8 * ROW_BYTES
        return (self.address ^ flip) + offset

    def write(self, box: int, block: int, values: list) -> None:
        """Stage n-blocks of a box: values[b][h][j] of `block` + b, two of them for 16 bits, one for fp32."""
        if self.dtype.width == 16:
            registers = [pack_pair(*rows, element_kind(self.dtype)) for b in values for rows in b]
            stmatrix_x4(self._address(box, block), registers, self.config.swap_ab)
            return
        for h in range(2):
            if self.config.swap_ab:
                for j in range(2):
                    _store_floats(self._address(box, block, h, j), [values[0][h][j]])
            else:
                _store_floats(self._address(box, block, h), values[0][h])

    def read(self, box: int, block: int) -> list:
        """The elements of C where `write` will put those of D."""
        if self.dtype.width == 16:
            pairs = ldmatrix_x4(self._address(box, block), self.config.swap_ab)
            halves = [unpack_pair(pair, element_kind(self.load_dtype)) for pair in pairs]
            return [halves[:2], halves[2:]]
        if self.config.swap_ab:
            return [[[_load_floats(self._address(box, block, h, j), 1)[0] for j in range(2)] for h in range(2)]]
        return [[_load_floats(self._address(box, block, h), 2) for h in range(2)]]

    def fetched(self, box: int) -> bool:
        """Whether C comes into this box's slot."""
        return bool(self.load_tma) and (not self.add_tma or box < self.slots)

    def fetches_per_slot(self) -> int:
        """Boxes of C that come into each slot for one work tile."""
        return 1 if self.add_tma else self.boxes // self.slots

    @property
    def blocks_per_access(self) -> int:
        """n-blocks that one `read` or `write` covers."""
        return 2 if self.dtype.width == 16 else 1

    @cute.jit
    def fetch_during(self, work, k: Int32):
        """Behind stage k of the mainloop: start loading the next one of the first boxes of C, from the second stage on;
        all of them behind the first stage, if there are no more stages than boxes (K = 512: 1 us earlier)."""
        spread = work.k_count > self.slots
        first = cutlass.select_(spread, k - 1, Int32(0))
        count = cutlass.select_(spread, Int32(1), Int32(self.slots))
        now = cutlass.select_(spread, (k >= 1) & (k <= self.slots), k == 0)
        if now & (self.thread // 32 == 0):
            cute.arch.cp_async_bulk_wait_group(0, read=True)
            for box in cutlass.range(first, first + count, unroll=1):
                self._fetch(work, box)

    @cute.jit
    def fetch_first(self, work):
        """Start loading the first boxes of C, all at once."""
        if self.thread // 32 == 0:
            cute.arch.cp_async_bulk_wait_group(0, read=True)
            for box in cutlass.range_constexpr(self.slots):
                self._fetch(work, box)

    @cute.jit
    def begin(self, box: cutlass.Constexpr, tiles: Int32):
        """Before a box is written (and C read): its slot is free, or holds C.

        tiles: work tiles that this warpgroup has finished.
        """
        if cutlass.const_expr(self.fetched(box)):
            phase = (tiles * self.fetches_per_slot() + box // self.slots) % 2
            cute.arch.mbarrier_wait(self.full + box % self.slots, phase)
        elif cutlass.const_expr(self.slots == 1):
            if self.thread // 32 == 0:
                cute.arch.cp_async_bulk_wait_group(0, read=True)
            self._sync()

    @cute.jit
    def end(self, box: cutlass.Constexpr, work):
        """After a box is written: store it, and make the next slot ready."""
        cute.arch.fence_view_async_shared()
        if cutlass.const_expr(self.slots > 1 and not self.fetched((box + 1) % self.boxes)):
            # The barrier below tells everybody that the slot of the next box has been read.
            if self.thread // 32 == 0:
                cute.arch.cp_async_bulk_wait_group(self.slots - 2, read=True)
        self._sync()
        if self.thread // 32 == 0:
            self._store(work, box)
            if cutlass.const_expr(box + self.slots < self.boxes and self.fetched(box + self.slots)):
                cute.arch.cp_async_bulk_wait_group(0, read=True)
                self._fetch(work, box + self.slots)

    @cute.jit
    def drain(self):
        """Before the CTA exits: its last store has read the buffer."""
        if self.thread // 32 == 0:
            cute.arch.cp_async_bulk_wait_group(0, read=True)

    def _panels(self, tma: tuple, dtype, work, box: int) -> list:
        """(shared, global) partitions of the panels of a box."""
        config, per_atom = self.config, self.config.tile_n // (8 * self.blocks)
        layout, (rows, columns) = box_layout(config, dtype), _panel_shape(config, dtype)
        tiles = cute.local_tile(tma[1], (rows, columns), (None, None, None))
        atom = (work.m * config.consumer_groups + self.consumer) * config.m_atoms + box // per_atom
        along_n = work.n * per_atom + box % per_atom
        found = []
        for panel in range(self.box_bytes // (rows * ROW_BYTES)):
            start = self.buffer + ((box % self.slots) * self.box_bytes + panel * rows * ROW_BYTES)
            smem = cute.make_tensor(cute.recast_ptr(start, layout.inner, dtype=dtype), layout.outer)
            shared, in_memory = cpasync.tma_partition(
                tma[0], 0, cute.make_layout(1), cute.group_modes(smem, 0, 2), cute.group_modes(tiles, 0, 2)
            )
            row, column = (along_n, atom * (64 // columns) + panel) if config.swap_ab else (atom, along_n)
            found.append((shared, in_memory[(None, row, column, work.l)]))
        return found

    def _store(self, work, box: int) -> None:
        tma = self.add_tma if self.add_tma and not self.fetched(box) else self.store_tma
        for shared, in_memory in self._panels(tma, self.dtype, work, box):
            cute.copy(tma[0], shared, in_memory)
        cute.arch.cp_async_bulk_commit_group()

    def _fetch(self, work, box: int) -> None:
        barrier = self.full + box % self.slots
        with cute.arch.elect_one():
            cute.arch.mbarrier_arrive_and_expect_tx(barrier, self.box_bytes)
        for shared, in_memory in self._panels(self.load_tma, self.load_dtype, work, box):
            cute.copy(self.load_tma[0], in_memory, shared, tma_bar_ptr=barrier)

    def _sync(self) -> None:
        cute.arch.barrier(barrier_id=1 + self.consumer, number_of_threads=128)


def _floats(address: Int32, count: int) -> cute.Tensor:
    pointer = cute.make_ptr(Float32, address, cute.AddressSpace.smem, assumed_align=4 * count)
    return cute.make_tensor(pointer, cute.make_layout(count))


def _store_floats(address: Int32, values: list) -> None:
    registers = cute.make_rmem_tensor(len(values), Float32)
    for i, value in enumerate(values):
        registers[i] = value
    _floats(address, len(values)).store(registers.load())


def _load_floats(address: Int32, count: int) -> list:
    vector = _floats(address, count).load()
    return [Float32(vector[i]) for i in range(count)]
