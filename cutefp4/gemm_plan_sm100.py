"""`Sm100GemmPlan`: everything that can change the code of a Blackwell GEMM."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

from cutefp4.config_sm100 import Sm100Config, sm100_problems
from cutefp4.epilogue import Column, ColumnAmax, Epilogue, Node, Row, RowAmax, Tile
from cutefp4.errors import CompileError
from cutefp4.plan import Plan

STORES = ("tma", "vectors", "elements")
TILE_LOADS = ("tma", "elements")

_TRANSPOSED = {Row: Column, Column: Row, RowAmax: ColumnAmax, ColumnAmax: RowAmax}


def transposed(tree: Epilogue) -> Epilogue:
    """The tree that computes D^T: rows and columns change places. A node that is used twice stays one node."""
    memo: dict[int, Node] = {}

    def turn(node: Node) -> Node:
        if id(node) not in memo:
            values = {f.name: getattr(node, f.name) for f in fields(node)}
            values = {name: turn(v) if isinstance(v, Node) else v for name, v in values.items()}
            memo[id(node)] = _TRANSPOSED.get(type(node), type(node))(**values)
        return memo[id(node)]

    return replace(tree, out=turn(tree.out), sinks=tuple(turn(sink) for sink in tree.sinks))


@dataclass(frozen=True)
class Sm100GemmPlan(Plan):
    """One Blackwell GEMM kernel: NVFP4 times NVFP4, tiled scales on both sides.

    Attributes:
        config: tile sizes, cluster, stages.
        epilogue: the tree.
        out_dtype: of D: "bfloat16", "float16" or "float32".
        store: how D is written: "tma" (rows of D are a multiple of 16 bytes), "vectors" (256-bit stores from registers;
            rows are a multiple of 32 bytes) or "elements".
        tile_load: how the epilogue reads matrices (C): "tma" (through shared memory, under the mainloop; rows are a
            multiple of 16 bytes) or "elements".
        sink_store: how the tree's `Store` sinks are written: "vectors" or "elements".
        pdl: programmatic dependent launch: the kernel may start before its predecessor in the stream has ended, and
            waits for that end before it touches global memory.

    Raises:
        CompileError: a configuration that cannot run, with the reasons.
    """

    builder: ClassVar[str] = "cutefp4.kernels.sm100.gemm:build"
    config: Sm100Config
    epilogue: Epilogue
    out_dtype: str = "bfloat16"
    store: str = "tma"
    pdl: bool = False
    tile_load: str = "elements"
    sink_store: str = "elements"

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = sm100_problems(self.config, self.column_vectors(), len(self.staged_tiles()))
        if self.arch not in ("sm_100a", "sm_103a"):
            problems.append(f"arch={self.arch}: tcgen05 needs sm_100a or sm_103a")
        if self.store not in STORES:
            problems.append(f"store={self.store!r}: one of {STORES}")
        if self.epilogue.halves_columns() and self.store == "tma":
            problems.append("store='tma' with SwiGLU: D has half a panel's columns; use store='vectors' or 'elements'")
        if self.config.swap_ab and self.store != "elements":
            problems.append(f"store={self.store!r} with swap_ab: D is written transposed; use store='elements'")
        if self.config.swap_ab and self.sink_store != "elements":
            problems.append(f"sink_store={self.sink_store!r} with swap_ab: sinks are written transposed")
        if self.sink_store not in STORES[1:]:
            problems.append(f"sink_store={self.sink_store!r}: one of {STORES[1:]}")
        if self.tile_load not in TILE_LOADS:
            problems.append(f"tile_load={self.tile_load!r}: one of {TILE_LOADS}")
        if self.tile_load == "tma" and (self.config.swap_ab or self.config.splits > 1):
            problems.append("tile_load='tma' with swap_ab or splits: C is read transposed, or by the last CTA alone")
        if self.config.swap_ab and self.epilogue.halves_columns():
            problems.append("swap_ab with SwiGLU: the pairs of columns lie in different threads")
        if problems:
            raise CompileError(f"{self.config}", "a legal configuration", "; ".join(problems))

    def kernel_tree(self) -> Epilogue:
        """The tree as the kernel sees it: its rows are those of its A."""
        return transposed(self.epilogue) if self.config.swap_ab else self.epilogue

    def column_vectors(self) -> int:
        """Vectors along the kernel's N that the epilogue reads."""
        return sum(isinstance(leaf, Column) for leaf in self.kernel_tree().leaves())

    def staged_tiles(self) -> tuple[str, ...]:
        """Names of the matrices that the epilogue reads through shared memory."""
        if self.tile_load != "tma":
            return ()
        return tuple(leaf.name for leaf in self.epilogue.leaves() if isinstance(leaf, Tile))

    def tensor_names(self) -> tuple[str, ...]:
        """The epilogue's tensors in the order of the kernel's arguments: D, leaves, sinks, split-K workspace."""
        names = ("d", *(leaf.name for leaf in self.epilogue.leaves()), *(sink.name for sink in self.epilogue.sinks))
        return (*names, "partials", "counters") if self.config.splits > 1 else names
