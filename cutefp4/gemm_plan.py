"""`Sm90GemmPlan`: everything that can change the code of a Hopper GEMM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cutefp4.config import Sm90Config, Sm90Operand, operand_tiles
from cutefp4.epilogue import Epilogue
from cutefp4.errors import UnsupportedError
from cutefp4.plan import Plan

INDEX_LIMIT = 2**31
"""Kernels compute element offsets of D, and byte offsets of an operand's codes, in 32 bits."""


def check_index_range(m: int, n: int, k: int, batch: int) -> None:
    """Refuse a product (batch, m, n) over k whose matrices a 32-bit offset cannot address.

    Raises:
        UnsupportedError: D has 2^31 elements or more, or an operand's codes 2^31 bytes or more.
    """
    largest = max(m * n, m * k // 2, n * k // 2) * batch
    if largest >= INDEX_LIMIT:
        raise UnsupportedError(
            f"a product of batch {batch}, M = {m}, N = {n}, K = {k}",
            "D of fewer than 2^31 elements, and codes of fewer than 2^31 bytes an operand",
            "split the batch, or the rows of A",
        )


@dataclass(frozen=True)
class Sm90GemmPlan(Plan):
    """One Hopper GEMM kernel.

    Attributes:
        config: tile sizes, stages, roles.
        epilogue: the tree.
        out_dtype: of D: "bfloat16", "float16" or "float32".
        store: how D is written: "tma" (rows of a multiple of 16 bytes), "tma_add" (the same, where D = C + z in place,
            fp32: with load "tma" TMA adds what the staging ring cannot load at once), "pairs" (two columns per access)
            or "elements".
        load: how `Tile` leaves and extra stores are accessed: "tma" (16-byte aligned rows; the first leaf with elements
            of D's size comes through D's staging buffer, the others as pairs), "pairs" or "elements".
        activations: "nvfp4" (W4A4), or "bfloat16" / "float16": A is 16-bit and B is NVFP4 (W4A16; needs swap_ab and
            config.decode_to equal to it).
        a_scales, b_scales: layout of the block scales, "tiled" or "compact".
    """

    builder: ClassVar[str] = "cutefp4.kernels.sm90.gemm:build"
    config: Sm90Config
    epilogue: Epilogue
    out_dtype: str = "bfloat16"
    store: str = "tma"
    activations: str = "nvfp4"
    a_scales: str = "tiled"
    b_scales: str = "tiled"
    load: str = "elements"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epilogue.quantizes():
            raise UnsupportedError(
                "an epilogue that stores D as Nvfp4, on Hopper",
                "D in bfloat16, float16 or float32 (a wgmma accumulator spreads a block of 16 over four threads)",
                "store D in bfloat16 and call cutefp4.quantize",
            )

    def staged_store(self) -> int:
        """Bytes of an element of D if D leaves by TMA, else 0."""
        return {"float32": 4}.get(self.out_dtype, 2) if self.store in ("tma", "tma_add") else 0

    def operands(self) -> tuple[Sm90Operand, Sm90Operand]:
        """The register and the shared operand."""
        return operand_tiles(self.config, self.activations, self.a_scales, self.b_scales)

    def staged_scales(self) -> str:
        """Layout of the block scales of a staged operand."""
        return self.a_scales if self.config.swap_ab else self.b_scales

    def tensor_names(self) -> tuple[str, ...]:
        """The kernel's tensors after the operands, in order: D, leaves, sinks, split-K workspace, staged operand."""
        names = ["d", *self.epilogue.tensor_names()]
        names += ["partials", "counters"] if self.config.uses_workspace else []
        return tuple(names + (["staged"] if self.config.staged else []))
