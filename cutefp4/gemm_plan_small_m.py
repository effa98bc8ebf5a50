"""`Sm90SmallMPlan`: everything that can change the code of the Hopper GEMM for few rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cutefp4.config_small_m import SmallMConfig
from cutefp4.epilogue import Epilogue
from cutefp4.plan import Plan


@dataclass(frozen=True)
class Sm90SmallMPlan(Plan):
    """One small-M kernel.

    Attributes:
        config: warps, tiles, depth, cluster.
        epilogue: the tree, without SwiGLU over column pairs.
        out_dtype: of D: "bfloat16", "float16" or "float32".
        activations: "nvfp4" (W4A4), or "bfloat16" / "float16" (W4A16; config.decode_to equal to it).
        a_scales, b_scales: layout of the block scales, "tiled" or "compact".
        vector: bytes that a thread loads of a row of codes at once: 16 if K % 64 == 0, else 8.
    """

    builder: ClassVar[str] = "cutefp4.kernels.sm90.small_m:build"
    config: SmallMConfig
    epilogue: Epilogue
    out_dtype: str = "bfloat16"
    activations: str = "nvfp4"
    a_scales: str = "tiled"
    b_scales: str = "tiled"
    vector: int = 16

    def tensor_names(self) -> tuple[str, ...]:
        """The epilogue's tensors in the order of the kernel's arguments: D, leaves, sinks."""
        return ("d", *self.epilogue.tensor_names())
