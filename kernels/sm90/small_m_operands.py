"""The operands of the small-M kernel: where an entry of a batch begins, who reads it, fake arguments to compile with.

codes (L, rows, K/2) uint8, 16-bit activations (L, rows, K);  scales in 128x4 tiles or compact (L, rows, K/16)
"""

import cutlass.cute as cute
from cutlass import Int32, Int64, Uint8, Uint32

from cutefp4.gemm_plan_small_m import Sm90SmallMPlan

from ..common import ptx
from ..epilogue.arguments import DTYPES, fake_matrix
from .small_m_activations import Activations
from .small_m_pairs import PairStream
from .small_m_weight import WeightStream


def weight_stream(plan: Sm90SmallMPlan, b, b_scales, l: Int32, slots: Uint32, lane: Int32) -> WeightStream:
    """A warp's view of entry l of the weight; slots: address of its shared memory."""
    rows, row_bytes = b.shape[1], b.shape[2]
    pitch = _scale_pitch(row_bytes, plan.b_scales)
    memory = (
        _batch_entry(b, l, rows, row_bytes),
        _batch_entry(b_scales, l, 1, pitch * (rows + 127 >> 7 if plan.b_scales == "tiled" else rows)),
        rows, row_bytes, pitch,
    )  # fmt: skip
    whole_lines = plan.vector == 16 and plan.b_scales == "tiled" and plan.config.depth % 2 == 0
    kind = PairStream if whole_lines else WeightStream
    return kind(plan.config, plan.b_scales, plan.vector, memory, slots, lane)


def activations(plan: Sm90SmallMPlan, a, a_scales, sizes: tuple, shared: Uint32) -> Activations:
    """Entry l of the activations. sizes: l, K, K units of a pass; shared: address of the prepared copy."""
    (l, k, units), m = sizes, a.shape[1]
    row_bytes, per_entry = k * 2, Int32(0)
    if plan.activations == "nvfp4":
        row_bytes = k >> 1
        per_entry = _scale_pitch(row_bytes, plan.a_scales) * (m + 127 >> 7 if plan.a_scales == "tiled" else m)
    memory = _batch_entry(a, l, m, row_bytes), _batch_entry(a_scales, l, 1, per_entry)
    return Activations(plan.config, plan.activations, plan.a_scales, plan.vector, memory, (m, k, units), shared)


def _batch_entry(tensor, l: Int32, rows: Int32, row_bytes: Int32) -> Int64:
    """Address of entry l of a batch of matrices that lie one behind the other."""
    each = ptx.asm("mul.wide.u32 $0, $1, $2;", Int64, Int32(rows), Int32(row_bytes))
    text = "{ .reg .b64 l; cvt.u64.u32 l, $1; mad.lo.u64 $0, l, $2, $3; }"
    return ptx.asm(text, Int64, Int32(l), each, ptx.address(tensor))


def _scale_pitch(row_bytes: Int32, layout: str) -> Int32:
    """Bytes of scales of a 128-row group (tiled) or of a row (compact)."""
    return (row_bytes + 31 >> 5) * 512 if layout == "tiled" else row_bytes >> 3


def fakes(activations: str, scales: str, l, rows, bytes_k, vector: int) -> tuple:
    """Fake rows and scales of one operand."""
    if activations != "nvfp4":
        unused = fake_matrix(Uint8, cute.sym_int(), align=1)
        return fake_matrix(DTYPES[activations], l, rows, cute.sym_int(divisibility=16)), unused
    shape = (cute.sym_int(),) if scales == "tiled" else (l, rows, cute.sym_int())
    codes = fake_matrix(Uint8, l, rows, bytes_k, align=vector)
    return codes, fake_matrix(Uint8, *shape, align=16 if scales == "tiled" else 1)
