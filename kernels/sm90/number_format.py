"""The 16-bit format that NVFP4 is decoded to: fp16 or bf16, both exact.

With two NVFP4 operands the choice is a matter of speed; with 16-bit activations it is theirs, because wgmma takes one
format.
"""

from dataclasses import dataclass

from cutlass import BFloat16, Float16, Uint32

from ..common import e2m1, e4m3


@dataclass(frozen=True)
class NumberFormat:
    """How packed words become wgmma operands.

    Attributes:
        name: "bfloat16" or "float16".
        ptx: name of the packed type in PTX, less the x2.
        product_exponent: a decoded element is e2m1 * scale * 2^product_exponent.
        pairs: elements of a word of eight that pair j holds.
    """

    name: str
    ptx: str
    product_exponent: int
    pairs: tuple

    @property
    def dtype(self):
        return BFloat16 if self.name == "bfloat16" else Float16

    def raw_pair(self, word: Uint32, j: int) -> Uint32:
        """Pair j of a word of eight codes, before its scale."""
        return (e2m1.decode_pair_bf16 if self.ptx == "bf16" else e2m1.decode_pair_fp16)(word, j)

    def multipliers(self, bytes_: Uint32) -> tuple[Uint32, Uint32]:
        """Two scale bytes, at bytes 0 and 1, as packed multipliers."""
        return (e4m3.multipliers_bf16 if self.ptx == "bf16" else e4m3.multipliers_fp16)(bytes_)

    def scaled_pair(self, word: Uint32, j: int, multiplier: Uint32) -> Uint32:
        """Pair j of a word of eight codes times its scale."""
        return e4m3.mul_x2(self.ptx, self.raw_pair(word, j), multiplier)


FORMATS = {
    "bfloat16": NumberFormat("bfloat16", "bf16", e4m3.BF16_PRODUCT_EXPONENT, e2m1.BF16_PAIRS),
    "float16": NumberFormat("float16", "f16", e4m3.FP16_PRODUCT_EXPONENT, e2m1.FP16_PAIRS),
}
