"""The 16-bit format that NVFP4 is decoded to: fp16 or bf16, both exact.

With two NVFP4 operands the choice is a matter of speed; with 16-bit activations it is theirs, because wgmma takes one
format.
"""

from dataclasses import dataclass

from cutlass import BFloat16, Float16, Uint32

from ..common import e2m1, e4m3, ptx

NATURAL_BYTES = (1, 0, 0, 1)
"""For the order of memory: which of two bytes of codes lies at each byte of a word, lowest first."""

_SELECT = 0xD8
"""LOP3: b where c is 1, a elsewhere."""


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

    def natural_pairs(self, word: Uint32) -> tuple[Uint32, Uint32]:
        """The neighbours in each of two bytes of codes, before their scale; `NATURAL_BYTES` says where they are."""
        if self.ptx == "bf16":
            # Nibbles to where pairs 1 (the first byte) and 0 are decoded from: the upper one of a byte is in place.
            gathered = ptx.lop3(word, word >> Uint32(12), Uint32(0x000F00F0), _SELECT)
            return self.raw_pair(gathered, 1), self.raw_pair(gathered, 0)
        gathered = e4m3.permute(word, word >> Uint32(4), 0x4051)
        return self.raw_pair(gathered, 0), self.raw_pair(gathered, 1)

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
    "bfloat16": NumberFormat("bfloat16", "bf16", e4m3.BF16_PRODUCT_EXPONENT, e2m1.BF16_PAIRS),
    "float16": NumberFormat("float16", "f16", e4m3.FP16_PRODUCT_EXPONENT, e2m1.FP16_PAIRS),
}
