"""D as NVFP4: codes and tiled block scales straight from the epilogue's registers.

A thread has consecutive columns of one row, so that a block of 16 is its own; no other thread takes part. A panel of 64
columns is 32 bytes of codes, and the four scales of one row in one 128x4 tile, a word:

    codes       (L, M, N / 2): 32 bytes per panel ("vectors": N is a multiple of 64), else 8 bytes per block
    scales      word of row r and panel p at tile (r // 128) * panels + p, byte (r % 32) * 16 + (r % 128) // 32 * 4

With SwiGLU a panel of the product is half as much of D: 16 bytes of codes, two scales; the last panel of a row also
clears the other two of its word if no panel follows.

Scales of padded rows and columns are zero: the rows behind M of the last tile are written, too, and blocks behind N.
"""

import cutlass.cute as cute
from cutlass import Float32, Int32, Int64, Uint32

from cutefp4 import epilogue as nodes
from cutefp4.config_sm100 import CTA_ROWS, PANEL, SCALE_TILE_BYTES
from cutefp4.format import BLOCK
from cutefp4.quant_plan import BlockMath

from ..common import ptx
from ..common.device_struct import DeviceStruct
from ..quantize.block_encode import encode_block, make_outer
from ..quantize.block_scale import Outer
from ..quantize.input_block import block_amax, pack, positive_nans, unpack_row
from .direct_store import VECTOR_WORDS, address

_BLOCK_WORDS = BLOCK // 8
_OUTER = ("amax", "s_enc", "block_factor", "s_dec", "rescale")


class QuantStore(DeviceStruct):
    """One epilogue thread's panel of D."""

    def __init__(self, node: nodes.Nvfp4, codes: cute.Tensor, scales: cute.Tensor, sizes: tuple, plan):
        self.node, self.codes, self.scales, self.plan = node, codes, scales, plan
        self.rows, self.columns = sizes
        self.halves = 2 if plan.epilogue.halves_columns() else 1
        self.panel_words = VECTOR_WORDS // self.halves
        self.words = cute.make_rmem_tensor(VECTOR_WORDS, Uint32)
        self.scale_word = cute.make_rmem_tensor(1, Uint32)

    def outer(self, loaded: dict) -> dict:
        """What all blocks of this thread's row need of the outer amax, for `loaded`."""
        outer = make_outer(loaded[self.node.amax.name], BlockMath.of(self.node.recipe))
        return {f"outer.{name}": getattr(outer, name) for name in _OUTER}

    def begin_panel(self) -> None:
        self.scale_word[0] = Uint32(0)

    def put(self, column: int, values: list[Float32], place: tuple, loaded: dict) -> None:
        """Encode the block at `column` of the panel, which lies inside D. place: (row, column of the product, l)."""
        row, product_column, l = place
        block, math = column // (BLOCK * self.halves), BlockMath.of(self.node.recipe)
        outer = Outer(*(loaded[f"outer.{name}"] for name in _OUTER))
        words = positive_nans(pack(values, self.node.dtype), self.node.dtype)
        amax = block_amax(words, self.node.dtype)
        encoded = encode_block(unpack_row(words, self.node.dtype), amax, outer, math, self.plan.arch)
        byte = ptx.select(row < self.rows, encoded.scale, Uint32(0))
        self.scale_word[0] = self.scale_word[0] | (byte << Uint32(8 * block))
        codes = encoded.low, encoded.high
        if self.plan.store == "vectors":
            for i, word in enumerate(codes):
                self.words[_BLOCK_WORDS * block + i] = word
        else:
            where = address(self.codes, (l, row, product_column // (2 * self.halves)))
            ptx.store_words(where, codes, row < self.rows)

    def end_panel(self, row: Int32, column: Int32, l: Int32) -> None:
        """Write a panel whose first column of the product is `column`."""
        inside, d_column = column < self.columns, column // self.halves
        if self.plan.store == "vectors":
            words = tuple(self.words[i] for i in range(self.panel_words))
            ptx.store_words(address(self.codes, (l, row, d_column // 2)), words, inside & (row < self.rows))
        row_tile, row_tiles = row // CTA_ROWS, cute.ceil_div(self.rows, CTA_ROWS)
        tile = (l * row_tiles + row_tile) * cute.ceil_div(self.columns, PANEL * self.halves) + d_column // PANEL
        byte = tile * SCALE_TILE_BYTES + (row % 32) * 16 + (row % CTA_ROWS) // 32 * 4
        where = Int64(self.scales.iterator.toint()) + Int64(byte)
        written, word = inside & (row_tile < row_tiles), self.scale_word[0]
        if self.halves == 1:
            ptx.store_words(where, (word,), written)
            return
        alone = (d_column % PANEL == 0) & (column + PANEL >= self.columns)
        ptx.store_words(where, (word,), written & alone)
        ptx.store_half(where + Int64(d_column % PANEL // BLOCK), word, written & ~alone)
