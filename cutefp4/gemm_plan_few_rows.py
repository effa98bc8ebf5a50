"""`Sm90FewRowsPlan`: everything that can change the code of the Hopper GEMM for some dozens of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cutefp4.config_few_rows import FewRowsConfig
from cutefp4.epilogue import Epilogue
from cutefp4.plan import Plan


@dataclass(frozen=True)
class Sm90FewRowsPlan(Plan):
    """One kernel for few rows. The weight's block scales are tiled.

    Attributes:
        config: tiles, warpgroups, stages, cluster.
        epilogue: the tree, without SwiGLU over column pairs.
        out_dtype: of D: "bfloat16", "float16" or "float32".
        activations: "nvfp4" (W4A4), or "bfloat16" / "float16" (W4A16; config.decode_to equal to it).
        a_scales: layout of the block scales of NVFP4 activations, "tiled" or "compact".
    """

    builder: ClassVar[str] = "cutefp4.kernels.sm90.few_rows:build"
    config: FewRowsConfig
    epilogue: Epilogue
    out_dtype: str = "bfloat16"
    activations: str = "nvfp4"
    a_scales: str = "tiled"

    def tensor_names(self) -> tuple[str, ...]:
        """The epilogue's tensors in the order of the kernel's arguments: D, leaves, sinks, the staged activations."""
        return ("d", *self.epilogue.tensor_names(), "staged")
