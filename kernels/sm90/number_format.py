"""The 16-bit format that NVFP4 is decoded to: fp16 or bf16, both exact.

With two NVFP4 operands the choice is a matter of speed; with 16-bit activations it is theirs, because wgmma takes one
format.
"""

from dataclasses import dataclass

from cutlass import BFloat16, Float16, Int32, Uint32

from ..common import e2m1, e4m3


@dataclass(frozen=True)
class NumberFormat:
    """How packed words become wgmma operands.

    Attributes:
        name: "bfloat16" or "float16".
        ptx: name of the packed type in PTX, less the x2.
        product_exponent: a decoded element is e2m1 * scale * 2^product_exponent.
        pairs: elements of a word of eight that pair j holds.
        natural: for the order of memory: which bytes of (word, word >> 4) to bring together (PRMT selector), so that
            the two pairs named beside it are the nibbles of byte 0 and of byte 1 of the word.
    """

    name: str
    ptx: str
    product_exponent: int
    pairs: tuple
    natural: tuple

    @property
    def dtype(self):
        return BFloat16 if self.name == "bfloat16" else Float16

    def raw_pair(self, word: Uint32, j: int) -> Uint32:
        """Pair j of a word of eight codes, before its scale."""
        return (e2m1.decode_pair_bf16 if self.ptx == "bf16" else e2m1.decode_pair_fp16)(word, j)

    def pair_shift(self, j: Int32) -> Uint32:
        """By how much to shift a word right so that its pair j becomes pair 0."""
        table = sum(4 * pair[0] << 8 * i for i, pair in enumerate(self.pairs))
        return (Uint32(table) >> Uint32(8 * j)) & Uint32(0xFF)

    def natural_pairs(self, word: Uint32) -> tuple[Uint32, Uint32]:
        """The neighbours in byte 0 and in byte 1 of a word of codes, before their scale."""
        selector, first, second = self.natural
        gathered = e4m3.permute(word, word >> Uint32(4), selector)
        return self.raw_pair(gathered, first), self.raw_pair(gathered, second)

    def multipliers(self, bytes_: Uint32) -> tuple[Uint32, Uint32]:
        """Two scale bytes, at bytes 0 and 1, as packed multipliers."""
        return (e4m3.multipliers_bf16 if self.ptx == "bf16" else e4m3.multipliers_fp16)(bytes_)

    def scale_pair(self, bytes_: Uint32, half: int) -> Uint32:
        """The two scale bytes of the low or the high half of a word as multipliers, one in each half."""
        return (e4m3.scale_pair_bf16 if self.ptx == "bf16" else e2m1.e4m3x2_to_f16x2)(bytes_, half)

    def scaled_by_half(self, word: Uint32, j: int, scales: Uint32, half: int) -> Uint32:
        """Pair j of a word of eight codes times the scale in the low or the high half of `scales`."""
        return e4m3.mul_x2_by_half(self.ptx, self.raw_pair(word, j), scales, half)

    def scaled_pair(self, word: Uint32, j: int, multiplier: Uint32) -> Uint32:
        """Pair j of a word of eight codes times its scale."""
        return e4m3.mul_x2(self.ptx, self.raw_pair(word, j), multiplier)


FORMATS = {
    "bfloat16": NumberFormat("bfloat16", "bf16", e4m3.BF16_PRODUCT_EXPONENT, e2m1.BF16_PAIRS, (0x5410, 0, 2)),
    "float16": NumberFormat("float16", "f16", e4m3.FP16_PRODUCT_EXPONENT, e2m1.FP16_PAIRS, (0x5140, 0, 1)),
}
