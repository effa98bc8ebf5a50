"""`Sm100GemmPlan`: everything that can change the code of a Blackwell GEMM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cutefp4.config_sm100 import Sm100Config, sm100_problems
from cutefp4.epilogue import Column, Epilogue
from cutefp4.errors import CompileError
from cutefp4.plan import Plan

STORES = ("tma", "elements")


@dataclass(frozen=True)
class Sm100GemmPlan(Plan):
    """One Blackwell GEMM kernel: NVFP4 times NVFP4, tiled scales on both sides.

    Attributes:
        config: tile sizes, cluster, stages.
        epilogue: the tree.
        out_dtype: of D: "bfloat16", "float16" or "float32".
        store: how D is written: "tma" (rows of D are a multiple of 16 bytes) or "elements".

    Raises:
        CompileError: a configuration that cannot run, with the reasons.
    """

    builder: ClassVar[str] = "cutefp4.kernels.sm100.gemm:build"
    config: Sm100Config
    epilogue: Epilogue
    out_dtype: str = "bfloat16"
    store: str = "tma"

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = sm100_problems(self.config, self.column_vectors())
        if self.arch not in ("sm_100a", "sm_103a"):
            problems.append(f"arch={self.arch}: tcgen05 needs sm_100a or sm_103a")
        if self.store not in STORES:
            problems.append(f"store={self.store!r}: one of {STORES}")
        if self.epilogue.halves_columns() and self.store == "tma":
            problems.append("store='tma' with SwiGLU: D has half a panel's columns; use store='elements'")
        if problems:
            raise CompileError(f"{self.config}", "a legal configuration", "; ".join(problems))

    def column_vectors(self) -> int:
        """Vectors along N that the epilogue reads."""
        return sum(isinstance(leaf, Column) for leaf in self.epilogue.leaves())

    def tensor_names(self) -> tuple[str, ...]:
        """The epilogue's tensors in the order of the kernel's arguments: D, leaves, sinks."""
        return ("d", *(leaf.name for leaf in self.epilogue.leaves()), *(sink.name for sink in self.epilogue.sinks))
