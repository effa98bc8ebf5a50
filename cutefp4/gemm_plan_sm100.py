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
        out_dtype: of D: "bfloat16", "float16" or "float32"; "nvfp4" if the tree quantises.
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
        problems = sm100_problems(self.config, self.column_vectors(), len(self.staged_tiles())) + self._problems()
        if problems:
            raise CompileError(f"{self.config}", "a legal configuration", "; ".join(problems))

    def _problems(self) -> list[str]:
        """Why this epilogue cannot run with this configuration and these ways to memory."""
        swap, swiglu, quantizes = self.config.swap_ab, self.epilogue.halves_columns(), self.epilogue.quantizes()
        rules = [
            (self.arch in ("sm_100a", "sm_103a"), f"arch={self.arch}: tcgen05 needs sm_100a or sm_103a"),
            (self.store in STORES, f"store={self.store!r}: one of {STORES}"),
            (self.sink_store in STORES[1:], f"sink_store={self.sink_store!r}: one of {STORES[1:]}"),
            (self.tile_load in TILE_LOADS, f"tile_load={self.tile_load!r}: one of {TILE_LOADS}"),
            (
                not (swiglu and self.store == "tma"),
                "store='tma' with SwiGLU: D has half a panel's columns; use store='vectors' or 'elements'",
            ),
            (
                not swap or self.store == self.sink_store == self.tile_load == "elements",
                "store, sink_store or tile_load with swap_ab: matrices are accessed transposed; use 'elements'",
            ),
            (
                self.tile_load != "tma" or self.config.splits == 1,
                "tile_load='tma' with splits: C is read by the last CTA alone; use 'elements'",
            ),
            (not (swap and swiglu), "swap_ab with SwiGLU: the pairs of columns lie in different threads"),
            (
                quantizes == (self.out_dtype == "nvfp4"),
                f"out_dtype={self.out_dtype!r} of a tree that {'quantises' if quantizes else 'does not quantise'}",
            ),
            (
                not (quantizes and self.store == "tma"),
                "store='tma' of an NVFP4 D: codes leave the registers; use store='vectors' or 'elements'",
            ),
            (not (quantizes and swap), "an NVFP4 D with swap_ab: a block of 16 lies in different threads"),
        ]
        return [reason for good, reason in rules if not good]

    def kernel_tree(self) -> Epilogue:
        """The tree as the kernel sees it: its rows are those of its A."""
        turned = self.config.swap_ab and not self.epilogue.quantizes()  # both at once are refused above
        return transposed(self.epilogue) if turned else self.epilogue

    def column_vectors(self) -> int:
        """Vectors along the kernel's N that the epilogue reads."""
        return sum(isinstance(leaf, Column) for leaf in self.kernel_tree().leaves())

    def staged_tiles(self) -> tuple[str, ...]:
        """Names of the matrices that the epilogue reads through shared memory."""
        if self.tile_load != "tma":
            return ()
        return tuple(leaf.name for leaf in self.epilogue.leaves() if isinstance(leaf, Tile))

    def tensor_names(self) -> tuple[str, ...]:
        """The epilogue's tensors in the order of the kernel's arguments: D (codes and scales if NVFP4), leaves, sinks,
        split-K workspace."""
        codes = ("d", "d_scales") if self.out_dtype == "nvfp4" else ("d",)
        names = (*codes, *self.epilogue.tensor_names())
        return (*names, "partials", "counters") if self.config.splits > 1 else names
