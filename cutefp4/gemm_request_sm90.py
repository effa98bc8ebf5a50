"""A product as a Hopper GPU is asked for it: what is known before a kernel or a configuration is chosen.

How D and the epilogue's matrices go to and from memory follows from it: a TMA access needs rows of a multiple of 16
bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from cutefp4 import epilogue as trees
from cutefp4 import tuned
from cutefp4.config import K_BLOCK
from cutefp4.epilogue import Epilogue
from cutefp4.heuristics import sm90
from cutefp4.scale_layout import round_up

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


TMA_ADD_K = 1024
"""Largest K of an in-place fp32 sum that TMA adds in part. Measured, 7168 x 2048: K = 512 48.7 us (all of C loaded
49.5, all added 56.3); K = 2048 117.1 (115.0, 118.4)."""


def _matrices(tree: Epilogue) -> list:
    """The nodes of a tree that read or write a matrix besides D."""
    return [node for node in (*tree.leaves(), *tree.sinks) if isinstance(node, (trees.Tile, trees.Store))]


@dataclass(frozen=True)
class GemmRequest:
    """Everything that a plan depends on; hashable, made from tensors without touching their data.

    m, n, k: of the product. batch: L. out_dtype, activations: names of dtypes, "nvfp4" for W4A4.
    a_scales, b_scales: layouts. tree: the epilogue. aligned: D, and all matrices of the tree, start at multiples of 16
    bytes. in_place: the tree's tile "c" is D.
    """

    m: int
    n: int
    k: int
    batch: int
    out_dtype: str
    activations: str
    a_scales: str
    b_scales: str
    tree: Epilogue
    aligned: bool = True
    batch_invariant: bool = False
    in_place: bool = False

    def store(self) -> str:
        """How D can be written."""
        if self.tree.halves_columns() or not self.aligned:
            return "elements"
        if self.n * _BYTES[self.out_dtype] % 16:
            return "elements" if self.n % 2 else "pairs"
        product = self.tree.without_addition_to("c") if self.in_place and self.k <= TMA_ADD_K else None
        return "tma" if product is None or _matrices(product) else "tma_add"

    def load(self) -> str:
        """How tiles can be read and extra matrices written."""
        matrices = _matrices(self.tree)
        if not matrices or not self.aligned or self.n % 2:
            return "elements"
        rows = all(self.n * _BYTES[node.dtype] % 16 == 0 for node in matrices)
        return "tma" if rows and self.store() in ("tma", "tma_add") else "pairs"

    def staged_store(self) -> int:
        """Bytes of an element of D if D leaves by TMA, else 0."""
        return _BYTES[self.out_dtype] if self.store() in ("tma", "tma_add") else 0

    def shape(self) -> sm90.GemmShape:
        """What the heuristic sees."""
        return sm90.GemmShape(
            self.m, self.n, round_up(self.k, K_BLOCK), self.batch, self.activations, self.a_scales, self.b_scales,
            self.staged_store(), self.tree.halves_columns(), self.staged_store() if self.load() == "tma" else 0,
        )  # fmt: skip

    def problem(self, sms: int) -> dict[str, tuned.Scalar]:
        """What a tuned table knows this request by."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tree"}
        return {**named, "tree": self.tree.text(), "sms": sms}
