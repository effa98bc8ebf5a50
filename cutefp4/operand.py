"""One quantised matrix, contraction axis last: what the quantiser makes and the GEMM reads.

`Nvfp4Operand` is a plain frozen dataclass of tensors and metadata, so that sharding, checkpointing and graph capture
see nothing unusual. It validates itself: an operand that exists is consistent.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from cutefp4.errors import OperandError
from cutefp4.format import BLOCK, E4M3_MAX, E4M3_MAX_CHOICES
from cutefp4.scale_layout import (
    LAYOUTS,
    TILE_K,
    TILE_ROWS,
    from_tiled,
    grouped_k_bound,
    grouped_rows_bound,
    padded_starts,
    round_up,
    scale_shape,
    to_tiled,
)

SCALINGS = ("tensor", "token")


def _require(condition: bool, given: str, accepted: str, fix: str) -> None:
    if not condition:
        raise OperandError(given, accepted, fix)


def _require_choice(name: str, value: object, choices: tuple) -> None:
    if value not in choices:
        raise OperandError(f"{name}={value!r}", ", ".join(map(repr, choices)), f"pass one of these as {name}")


def _require_tensor(name: str, t: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], device) -> None:
    # Operands are made in the hot path: no message is formatted before something is wrong (18 us an operand, now 6).
    if (
        isinstance(t, torch.Tensor)
        and t.dtype == dtype
        and t.shape == shape
        and t.device == device
        and t.is_contiguous()
    ):
        return
    _require(isinstance(t, torch.Tensor), f"{name} of type {type(t).__name__}", "a torch.Tensor", f"pass {name} as one")
    _require(t.dtype == dtype, f"{name} of dtype {t.dtype}", str(dtype), f"convert {name} or quantise again")
    _require(
        tuple(t.shape) == tuple(shape),
        f"{name} of shape {tuple(t.shape)}",
        f"shape {tuple(shape)}",
        f"{name} must match rows, k, scaling and scale_layout of the operand",
    )
    _require(t.device == device, f"{name} on {t.device}", f"{device}, where the codes are", f"move {name} there")
    _require(t.is_contiguous(), f"{name} with strides {t.stride()}", "a contiguous tensor", f"call {name}.contiguous()")


def _require_codes(codes: torch.Tensor) -> None:
    _require(
        isinstance(codes, torch.Tensor) and codes.dtype == torch.uint8,
        f"codes of {getattr(codes, 'dtype', type(codes).__name__)}",
        "a uint8 tensor of packed codes (two per byte, even k in the low nibble)",
        "view torch.float4_e2m1fn_x2 data as uint8, or quantise the matrix first",
    )


def _require_rht(mask: int | None) -> None:
    _require(
        mask is None or (isinstance(mask, int) and 0 <= mask <= 0xFFFF),
        f"rht={mask!r}",
        "None or a sign mask of 16 bits, 0 to 0xFFFF",
        "pass the recipe's rht_sign_mask if the matrix was transformed, else None",
    )


def _require_k(k: int) -> None:
    if k <= 0 or k % BLOCK:
        raise OperandError(
            f"K = {k} on the contraction axis",
            f"a positive multiple of {BLOCK}",
            f"pad the contraction axis with zeros to {round_up(max(k, 1), BLOCK)}",
        )


@dataclass(frozen=True, eq=False)
class Nvfp4Operand:
    """A quantised (rows, k) matrix, or a batch (L, rows, k) of them.

    value[i, j] = e2m1(codes[i, j]) * e4m3(block_scales[i, j // 16]) * amax[i] / (6 * e4m3_max)

    Attributes:
        codes: uint8 (rows, k/2) or (L, rows, k/2), contiguous; even k in the low nibble.
        block_scales: float8_e4m3fn; compact (rows, k/16), or tiled (rows padded to 128, k/16 padded to 4) in tile
            order; with L in front if batched.
        amax: float32; () or (L,) for scaling "tensor", (rows,) or (L, rows) for "token". The raw maximum, not a scale.
        scaling: "tensor" or "token"; never guessed from the shape of amax.
        e4m3_max: 448 or 256, enters the GEMM's constant.
        scale_layout: "tiled" or "compact".
        rows, k: logical sizes; k is a multiple of 16.
        rht: sign mask of the Hadamard transform that was applied along k before quantising, None if there was none. The
            two operands of a GEMM must agree on it.

    Raises:
        OperandError: fields that do not fit together.
    """

    codes: torch.Tensor
    block_scales: torch.Tensor
    amax: torch.Tensor
    scaling: str = "tensor"
    e4m3_max: int = E4M3_MAX
    scale_layout: str = "tiled"
    rows: int = -1
    k: int = -1
    rht: int | None = None

    def __post_init__(self) -> None:
        _require_codes(self.codes)
        _require(
            self.codes.dim() in (2, 3),
            f"codes of shape {tuple(self.codes.shape)}",
            "(rows, k/2) or (L, rows, k/2)",
            "reshape the codes",
        )
        if self.rows < 0:
            object.__setattr__(self, "rows", self.codes.shape[-2])
        if self.k < 0:
            object.__setattr__(self, "k", self.codes.shape[-1] * 2)
        _require_k(self.k)
        _require_choice("scaling", self.scaling, SCALINGS)
        _require_choice("e4m3_max", self.e4m3_max, E4M3_MAX_CHOICES)
        _require_choice("scale_layout", self.scale_layout, LAYOUTS)
        _require_rht(self.rht)
        batch, device = self.batch_shape, self.codes.device
        _require_tensor("codes", self.codes, torch.uint8, (*batch, self.rows, self.k // 2), device)
        scales = (*batch, *scale_shape(self.rows, self.k, self.scale_layout))
        _require_tensor("block_scales", self.block_scales, torch.float8_e4m3fn, scales, device)
        amax = batch if self.scaling == "tensor" else (*batch, self.rows)
        _require_tensor("amax", self.amax, torch.float32, amax, device)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """() or (L,)."""
        return tuple(self.codes.shape[:-2])

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and amax together."""
        return sum(t.numel() * t.element_size() for t in (self.codes, self.block_scales, self.amax))

    def compact_scales(self) -> torch.Tensor:
        """Block scales as (..., rows, k/16) float8_e4m3fn, whatever the stored layout."""
        if self.scale_layout == "compact":
            return self.block_scales
        return from_tiled(self.block_scales, self.rows, self.k)

    def with_scale_layout(self, layout: str) -> Nvfp4Operand:
        """The same operand with its scales in another layout (self if it has it already)."""
        _require_choice("scale_layout", layout, LAYOUTS)
        if layout == self.scale_layout:
            return self
        scales = to_tiled(self.block_scales) if layout == "tiled" else self.compact_scales()
        return replace(self, block_scales=scales, scale_layout=layout)

    def row_amax(self) -> torch.Tensor:
        """amax expanded to one value per row: (rows,) or (L, rows)."""
        if self.scaling == "token":
            return self.amax
        return self.amax.unsqueeze(-1).expand(*self.batch_shape, self.rows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Nvfp4Operand:
        """The operand on another device."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def map(self, f) -> Nvfp4Operand:
        """A copy with `f` applied to each of the three tensors."""
        return replace(self, codes=f(self.codes), block_scales=f(self.block_scales), amax=f(self.amax))

    def metadata(self) -> dict[str, int | str | None]:
        """The fields that are not tensors."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in TENSOR_FIELDS}

    def __repr__(self) -> str:
        shape = "x".join(map(str, (*self.batch_shape, self.rows, self.k)))
        rht = "" if self.rht is None else f", rht={self.rht:#06x}"
        return (
            f"Nvfp4Operand({shape}, scaling={self.scaling}, e4m3_max={self.e4m3_max}, "
            f"scales={self.scale_layout}{rht}, {self.nbytes} bytes, {self.device})"
        )


TENSOR_FIELDS = ("codes", "block_scales", "amax")


@dataclass(frozen=True, eq=False)
class Nvfp4GroupedOperand:
    """E quantised matrices in one buffer, split at device-resident offsets (MoE experts).

    ragged="rows" (A of TN/NN): groups split the rows of a (total, k) matrix.
        codes (total, k/2); block_scales compact (total, k/16), or tiled with each group's rows padded to 128 in a
        buffer of `grouped_rows_bound(total, E)` rows; amax (E,) for scaling "tensor", (total,) for "token".
    ragged="k" (both operands of NT): groups split the contraction axis of a (rows, total) matrix; each group's K is
        padded with zeros to a multiple of 64 and groups lie one behind the other.
        codes (rows, kp/2) with kp = grouped_k_bound(total, E); block_scales compact (rows, kp/16), or tiled: a flat
        buffer of round_up(rows, 128) * kp/16 bytes where group g is a complete tiled matrix that starts at byte
        round_up(rows, 128) * start_g/16; amax (E,) or (E, rows).

    Attributes:
        offs: int32 (E,), end offsets in elements of the unpadded split, non-decreasing; offs[-1] <= total. Elements
            behind offs[-1] belong to no group.
        rows, k: logical sizes: (total, k) for ragged="rows", (rows, total) for ragged="k".
        Other attributes as in `Nvfp4Operand`.

    Raises:
        OperandError: fields that do not fit together.
    """

    codes: torch.Tensor
    block_scales: torch.Tensor
    amax: torch.Tensor
    offs: torch.Tensor
    ragged: str
    rows: int
    k: int
    scaling: str = "tensor"
    e4m3_max: int = E4M3_MAX
    scale_layout: str = "tiled"
    rht: int | None = None

    def __post_init__(self) -> None:
        _require_codes(self.codes)
        _require_choice("ragged", self.ragged, ("rows", "k"))
        _require_choice("scaling", self.scaling, SCALINGS)
        _require_choice("e4m3_max", self.e4m3_max, E4M3_MAX_CHOICES)
        _require_choice("scale_layout", self.scale_layout, LAYOUTS)
        _require_rht(self.rht)
        device = self.codes.device
        _require(
            isinstance(self.offs, torch.Tensor) and self.offs.numel() > 0,
            f"offs of type {type(self.offs).__name__}, empty or no tensor",
            "an int32 tensor (E,) of end offsets, E > 0",
            "pass the cumulative group sizes",
        )
        _require_tensor("offs", self.offs, torch.int32, (self.groups,), device)
        if self.ragged == "rows":
            _require_k(self.k)
        _require_tensor("codes", self.codes, torch.uint8, (self.rows, self.padded_k // 2), device)
        _require_tensor("block_scales", self.block_scales, torch.float8_e4m3fn, self._scale_shape(), device)
        per_token = (self.rows,) if self.ragged == "rows" else (self.groups, self.rows)
        amax = (self.groups,) if self.scaling == "tensor" else per_token
        _require_tensor("amax", self.amax, torch.float32, amax, device)

    def _scale_shape(self) -> tuple[int, ...]:
        if self.scale_layout == "compact":
            return self.rows, self.padded_k // BLOCK
        if self.ragged == "rows":
            return grouped_rows_bound(self.rows, self.groups), round_up(self.k // BLOCK, 4)
        return (round_up(self.rows, TILE_ROWS) * self.padded_k // BLOCK,)

    @property
    def groups(self) -> int:
        """E, the number of groups."""
        return self.offs.numel()

    @property
    def padded_k(self) -> int:
        """Elements of the stored contraction axis: k, or its bound over all splits if K is ragged."""
        return self.k if self.ragged == "rows" else grouped_k_bound(self.k, self.groups)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales, amax and offs together."""
        tensors = (self.codes, self.block_scales, self.amax, self.offs)
        return sum(t.numel() * t.element_size() for t in tensors)

    def group(self, g: int) -> Nvfp4Operand | None:
        """Group g as an operand of its own, None if it is empty. Reads `offs` (a host sync): for tests and debugging.

        For ragged="k" the group's K is padded to a multiple of 64, as stored.
        """
        ends = self.offs.tolist()
        begin, end = (ends[g - 1] if g else 0), ends[g]
        if begin == end:
            return None
        if self.ragged == "rows":
            return self._row_group(g, begin, end)
        return self._k_group(g, end - begin)

    def _row_group(self, g: int, begin: int, end: int) -> Nvfp4Operand:
        scales = self.block_scales
        if self.scale_layout == "tiled":
            start = int(padded_starts(self.offs, TILE_ROWS)[g])
            scales = scales[start : start + round_up(end - begin, TILE_ROWS)]
        else:
            scales = scales[begin:end]
        amax = self.amax[g] if self.scaling == "tensor" else self.amax[begin:end].contiguous()
        return self._as_operand(self.codes[begin:end].contiguous(), scales.contiguous(), amax)

    def _k_group(self, g: int, size: int) -> Nvfp4Operand:
        start, k = int(padded_starts(self.offs, TILE_K)[g]), round_up(size, TILE_K)
        codes = self.codes[:, start // 2 : (start + k) // 2].contiguous()
        if self.scale_layout == "tiled":
            padded_rows = round_up(self.rows, TILE_ROWS)
            flat = self.block_scales[padded_rows * start // BLOCK : padded_rows * (start + k) // BLOCK]
            scales = flat.view(padded_rows, k // BLOCK)
        else:
            scales = self.block_scales[:, start // BLOCK : (start + k) // BLOCK].contiguous()
        return self._as_operand(codes, scales, self.amax[g])

    def _as_operand(self, codes: torch.Tensor, scales: torch.Tensor, amax: torch.Tensor) -> Nvfp4Operand:
        return Nvfp4Operand(
            codes,
            scales,
            amax,
            self.scaling,
            self.e4m3_max,
            self.scale_layout,
            codes.shape[0],
            codes.shape[1] * 2,
            self.rht,
        )

    def __repr__(self) -> str:
        return (
            f"Nvfp4GroupedOperand({self.rows}x{self.k}, {self.groups} groups along {self.ragged}, "
            f"scaling={self.scaling}, e4m3_max={self.e4m3_max}, scales={self.scale_layout}, {self.device})"
        )
