"""Plans of the quantisation kernels: recipe, dtype and shape class to the fields that decide generated code.

CastRowsPlan    rowwise copy of 1x16 blocks, one read; token amax found in the same read if a row fits in registers
CastTilesPlan   128x128 tiles: either copy or both from one read, 16x16 blocks, Hadamard transform, groups
AmaxPlan        outer amaxes: tensor, rows, columns in one read
AmaxPartialsPlan    outer amax of a small tensor, in parts that its cast combines
HadamardAmaxPlan    outer amaxes of the transformed columnwise copy
GroupMapPlan    where the tiles of row groups lie
RmsnormPlan     RMSNorm of rows, with or without their cast in the same read
DequantizePlan  codes back to values
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cutefp4.errors import OperandError
from cutefp4.format import BLOCK, E4M3_MAX
from cutefp4.plan import Plan
from cutefp4.recipe import QuantRecipe
from cutefp4.scale_layout import TILE_COLS, round_up

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
COPY_BYTES = 16
"""Bytes of a copy from global to shared memory by a thread."""


@dataclass(frozen=True)
class BlockMath:
    """What decides the bytes of a block; the fields are those of `QuantRecipe`."""

    arithmetic: str = "te"
    e4m3_max: int = E4M3_MAX
    rounding: str = "nearest"
    four_over_six: str = "none"
    four_over_six_error: str = "strict"

    @classmethod
    def of(cls, recipe: QuantRecipe) -> BlockMath:
        four = recipe.four_over_six != "none"
        return cls(
            # 4over6 replaces the scale arithmetic, and the error form matters with it alone.
            "te" if four else recipe.arithmetic,
            recipe.e4m3_max,
            recipe.rounding,
            recipe.four_over_six,
            recipe.four_over_six_error if four else "strict",
        )


def rounds_on_grid(arch: str, dtype: str, math: BlockMath) -> bool:
    """Whether codes are rounded on a grid (kernels/common/e2m1_grid.py), clamped while they are packed.

    That takes short elements, and no rounding in hardware. It saves nothing for fp16, where a clamp does not exist for
    every outer amax.
    """
    plain = math.rounding == "nearest" and math.four_over_six == "none"
    return plain and arch == "sm_90a" and dtype == "bfloat16" and math.arithmetic != "torchao"


def tries_usual_blocks(arch: str, dtype: str, math: BlockMath) -> bool:
    """Whether 4over6 first encodes as if there were no exceptional values (block_encode.encode_usual_block)."""
    return arch == "sm_90a" and dtype != "float32" and math.four_over_six != "none" and math.rounding == "nearest"


@dataclass(frozen=True)
class CastRowsPlan(Plan):
    """Rowwise cast of (M, N), N a multiple of 16.

    Attributes:
        dtype: of the input.
        math: bytes of a block.
        scaling: "tensor": amax is read; "token": amax is found and written, unless `amax_given`.
        amax_given: the outer amax is an input.
        partials: it comes as partial amaxes (`AmaxPartialsPlan`) behind the place where their maximum is written.
        scale_layout: "tiled" or "compact".
        vector_bytes: bytes per load, 16 down to the size of an element; divides base address and row stride.
        threads_per_row: threads that share a row: a power of two up to 32, or a multiple of 32.
        blocks_per_thread: 16-element blocks of a row that a thread holds.
        threads: per CTA.
        looped: rows longer than threads_per_row * blocks_per_thread blocks are walked in chunks (and read twice if
            their amax is to be found).
        swiglu: "none", or how gate and up lie in the (M, 2N) input: "halves", or columns per chunk, a multiple of 8.
        deinterleave: "none", or columns per chunk of gate and up in the (M, N) input, which is cast gate first.
        ahead: a thread copies its share of its next row to shared memory while it works on this one; for loads of
            COPY_BYTES, without `looped` and `swiglu`.
    """

    builder: ClassVar[str] = "cutefp4.kernels.quantize.cast_rows:build"
    dtype: str
    math: BlockMath
    scaling: str
    amax_given: bool
    scale_layout: str
    vector_bytes: int = 16
    threads_per_row: int = 128
    blocks_per_thread: int = 3
    threads: int = 128
    looped: bool = False
    swiglu: str = "none"
    deinterleave: str = "none"
    partials: bool = False
    ahead: bool = False

    @property
    def ahead_bytes(self) -> int:
        """Shared memory for what the threads copy ahead."""
        return self.threads * self.blocks_per_thread * BLOCK * BYTES[self.dtype]

    @property
    def ctas_per_sm(self) -> int:
        """CTAs that must fit into the registers of an SM; 0 leaves it to ptxas, which here would spill for a fourth."""
        return 1 if self.arch != "sm_90a" and self.math.four_over_six != "none" and self.scaling == "token" else 0

    @property
    def rows_per_cta(self) -> int:
        return self.threads // self.threads_per_row

    @property
    def chunk(self) -> int:
        """Blocks of a row that its threads hold at a time."""
        return self.threads_per_row * self.blocks_per_thread


MAX_ROW_THREADS = 512
MAX_ROW_BLOCKS = {2: 4, 4: 2}
"""Blocks per thread by element size: 16 words of input for fp32, 32 for 16-bit types."""


def row_shape(n: int, element_bytes: int, most: int | None = None) -> dict:
    """threads_per_row, blocks_per_thread, threads and looped for rows of n elements.

    The fewest idle threads win, then the most blocks per thread, up to `most` (more loads in flight, fewer reductions).
    """
    # Whole scale tiles, so that padded columns have a thread that clears them.
    blocks = round_up(n // BLOCK, TILE_COLS)
    most = min(most or 4, MAX_ROW_BLOCKS[element_bytes])
    if blocks <= 32:
        threads = 1
        while threads < blocks:
            threads *= 2
        return {"threads_per_row": threads, "blocks_per_thread": 1, "threads": 128, "looped": False}
    choices = []
    for per_thread in range(1, most + 1):
        threads = round_up(-(-blocks // per_thread), 32)
        if threads <= MAX_ROW_THREADS:
            choices.append((threads * per_thread - blocks, -per_thread, threads))
    if not choices:
        return {"threads_per_row": 256, "blocks_per_thread": most, "threads": 256, "looped": True}
    _, per_thread, threads = min(choices)
    return {"threads_per_row": threads, "blocks_per_thread": -per_thread, "threads": threads, "looped": False}


def vector_bytes(address: int, row_stride_bytes: int, element_bytes: int) -> int:
    """The widest load, up to 16 bytes, that the alignment of base and rows allows."""
    width = 16
    while width > element_bytes and (address % width or row_stride_bytes % width):
        width //= 2
    if width < element_bytes:
        raise OperandError(f"an input at address {address:#x}", "element-aligned data", "copy it: x.contiguous()")
    return width


@dataclass(frozen=True)
class CastTilesPlan(Plan):
    """Cast of (M, N) in tiles of 128 rows by 256 bytes: rowwise copy, columnwise copy, or both from one read.

    Attributes:
        dtype, math, scaling, scale_layout, vector_bytes: as in `CastRowsPlan`; all outer amaxes are inputs.
        rowwise, columnwise: which copies to write.
        block: "1d" or "2d". Blocks of 16x16 take one outer amax, whatever `scaling` is.
        rht: "none", "bf16" or "fp32": transform of the columnwise copy.
        columnwise_fours: "shared" or "recomputed", for 4over6 with 16x16 blocks.
        partial_columns: N is not a multiple of 16 (columnwise copy alone).
        grouped: rows are split at device-resident offsets, and each group is cast by itself.
    """

    builder: ClassVar[str] = "cutefp4.kernels.quantize.cast_tiles:build"
    dtype: str
    math: BlockMath
    scaling: str
    scale_layout: str
    rowwise: bool = True
    columnwise: bool = True
    block: str = "1d"
    rht: str = "none"
    columnwise_fours: str = "shared"
    vector_bytes: int = 16
    partial_columns: bool = False
    grouped: bool = False

    @property
    def ctas_per_sm(self) -> int:
        """CTAs that must fit into the registers of an SM, as many as leave no spills; 0 leaves it open."""
        if self.math.four_over_six != "none":
            return 1 if self.math.rounding == "stochastic" else 0
        if self.math.rounding == "stochastic":
            return 3 if self.dtype == "bfloat16" and self.columnwise and not self.token else 0
        return 3 if self.token or self.grouped else 4

    @property
    def on_grid(self) -> bool:
        """Whether codes are rounded on a grid (kernels/quantize/grid_encode.py)."""
        return rounds_on_grid(self.arch, self.dtype, self.math)

    @property
    def in_lanes(self) -> bool:
        """Whether codes are rounded two elements at a time (kernels/quantize/lane_encode.py), exceptions on a grid."""
        return self.on_grid and self.block == "1d"

    @property
    def shares_codes(self) -> bool:
        """Whether the columnwise codes are the transpose of the rowwise ones, if the outer amaxes are equal."""
        same = self.math.rounding == "nearest" and (
            self.math.four_over_six == "none" or self.columnwise_fours == "shared"
        )
        return self.block == "2d" and self.rowwise and self.columnwise and self.rht == "none" and same

    @property
    def packs_columns(self) -> bool:
        """Whether the columnwise pass leaves out what is behind a group's last row (kernels/quantize/tile_group.py)."""
        return self.grouped and self.block == "1d" and self.rht == "none"

    @property
    def tile_columns(self) -> int:
        """Columns of a tile: 256 bytes."""
        return 256 // BYTES[self.dtype]

    @property
    def token(self) -> bool:
        """One outer amax per row and per column, as opposed to one per tensor or group."""
        return self.scaling == "token" and self.block == "1d"


@dataclass(frozen=True)
class AmaxPlan(Plan):
    """Outer amaxes of (M, N) in one read, any combination of them.

    Attributes:
        dtype, vector_bytes, partial_columns: as in `CastTilesPlan`.
        tensor, rows, columns: which amaxes to compute.
        grouped: tensor and column amaxes per row group.
    """

    builder: ClassVar[str] = "cutefp4.kernels.quantize.amax:build"
    dtype: str
    tensor: bool = False
    rows: bool = False
    columns: bool = False
    vector_bytes: int = 16
    partial_columns: bool = False
    grouped: bool = False


PARTIALS = 128
"""Partial amaxes of a small tensor, one for each CTA that reads it."""


@dataclass(frozen=True)
class AmaxPartialsPlan(Plan):
    """Partial amaxes of (M, N), N a multiple of 16.

    Attributes:
        dtype, vector_bytes: as in `CastRowsPlan`.
    """

    builder: ClassVar[str] = "cutefp4.kernels.quantize.amax_partials:build"
    dtype: str
    vector_bytes: int = 16


@dataclass(frozen=True)
class HadamardAmaxPlan(Plan):
    """Outer amaxes of the transformed columnwise copy of (M, N), and of x itself, in one read.

    Attributes:
        dtype, grouped: as in `AmaxPlan`.
        rht: "bf16" or "fp32".
        transformed: "tensor" or "columns": scope of the amax after the transform.
        raw: "none", "tensor" or "rows": scope of the amax of x.
        paired: columns are read in pairs (their number, the row stride and the base allow 32-bit loads of 16-bit data).
    """

    builder: ClassVar[str] = "cutefp4.kernels.quantize.amax_hadamard:build"
    dtype: str
    rht: str
    transformed: str
    raw: str = "none"
    paired: bool = True
    grouped: bool = False


MAP_WORDS = 8
"""int32 words that say where one tile of row groups lies."""


@dataclass(frozen=True)
class GroupMapPlan(Plan):
    """The map of the tiles of row groups at device-resident offsets.

    Attributes:
        clears: amaxes that other kernels will raise are cleared by the way.
    """

    builder: ClassVar[str] = "cutefp4.kernels.quantize.group_map:build"
    clears: bool


@dataclass(frozen=True)
class DequantizePlan(Plan):
    """Codes and scales of (rows, k) back to values.

    Attributes:
        dtype: of the output.
        scaling, scale_layout, e4m3_max: of the operand.
    """

    builder: ClassVar[str] = "cutefp4.kernels.quantize.dequantize:build"
    dtype: str
    scaling: str
    scale_layout: str
    e4m3_max: int


@dataclass(frozen=True)
class SwigluPlan(Plan):
    """SwiGLU of (M, 2I) to (M, I), rounded to the input's dtype.

    Attributes:
        dtype: of both.
        layout: where gate and up lie: "halves", or columns per chunk, a multiple of 8.
        vector_bytes: bytes per load, at most those of 8 elements.
        measure: max |h| is raised in amax[0], which is zero before.
    """

    builder: ClassVar[str] = "cutefp4.kernels.quantize.swiglu:build"
    dtype: str
    layout: str
    vector_bytes: int = 16
    measure: bool = False


@dataclass(frozen=True)
class RmsnormPlan(Plan):
    """RMSNorm of (M, N), N a multiple of 16, and what is made of the rounded result y in the same read.

    Attributes:
        dtype: of x, the residual, the sum and y.
        weight_dtype: of the weight (N,).
        residual: x + residual is normalised.
        write_sum: that sum is written.
        write_normed: y is written.
        measure: max |y| is raised in amax[0], which is zero before.
        partials: the same as partial amaxes (`AmaxPartialsPlan`), written by at most PARTIALS CTAs, or read by a cast.
        cast: "none", or the rowwise cast of y: "token", with the row amax found, or "given", with an outer amax of the
            tensor or of every row (`scaling`) read.
        math, scaling, scale_layout: as in `CastRowsPlan`, if there is a cast.
        vector_bytes, weight_vector_bytes: bytes per load of x and residual, and of the weight.
        threads_per_row, blocks_per_thread, threads, looped: as in `CastRowsPlan`; a looped row is read up to
            three times.
        prefetch: a thread loads its next row before it works on this one.
        exact: a row has just as many blocks as its threads hold, so that no load needs a predicate.
    """

    builder: ClassVar[str] = "cutefp4.kernels.quantize.rmsnorm:build"
    dtype: str
    weight_dtype: str
    residual: bool = False
    write_sum: bool = False
    write_normed: bool = False
    measure: bool = False
    partials: bool = False
    cast: str = "none"
    math: BlockMath = BlockMath()
    scaling: str = "token"
    scale_layout: str = "tiled"
    vector_bytes: int = 16
    weight_vector_bytes: int = 16
    threads_per_row: int = 128
    blocks_per_thread: int = 3
    threads: int = 128
    looped: bool = False
    prefetch: bool = False
    exact: bool = False

    @property
    def kept_bytes(self) -> int:
        """Shared memory for the weights of all threads as fp32."""
        return self.threads * self.blocks_per_thread * 64

    @property
    def keeps_weight(self) -> bool:
        """Whether every thread keeps its weights in shared memory, so that no row has to unpack them."""
        return self.weight_dtype != "float32" and not self.looped and self.kept_bytes <= 1 << 15

    @property
    def rows_per_cta(self) -> int:
        return self.threads // self.threads_per_row

    @property
    def chunk(self) -> int:
        """Blocks of a row that its threads hold at a time."""
        return self.threads_per_row * self.blocks_per_thread
