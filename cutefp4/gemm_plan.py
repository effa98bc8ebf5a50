"""`Sm90GemmPlan`: everything that can change the code of a Hopper GEMM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cutefp4.config import Sm90Config
from cutefp4.epilogue import Epilogue
from cutefp4.plan import Plan


@dataclass(frozen=True)
class Sm90GemmPlan(Plan):
    """One Hopper GEMM kernel.

    Attributes:
        config: tile sizes, stages, roles.
        epilogue: the tree.
        out_dtype: of D: "bfloat16", "float16" or "float32".
        store: how D is written: "tma", "pairs" or "elements" (see kernels/epilogue/tile.py).
        activations: "nvfp4" (W4A4), or "bfloat16" / "float16": A is 16-bit and B is NVFP4 (W4A16, with swap_ab).
    """

    builder: ClassVar[str] = "cutefp4.kernels.sm90.gemm:build"
    config: Sm90Config
    epilogue: Epilogue
    out_dtype: str = "bfloat16"
    store: str = "tma"
    activations: str = "nvfp4"

    def tensor_names(self) -> tuple[str, ...]:
        """The epilogue's tensors in the order of the kernel's arguments: D, leaves, sinks, split-K workspace."""
        names = ["d", *(leaf.name for leaf in self.epilogue.leaves()), *(sink.name for sink in self.epilogue.sinks)]
        return tuple(names + (["partials", "counters"] if self.config.splits > 1 else []))
