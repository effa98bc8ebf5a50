"""SASS of the Hopper GEMMs that the heuristic chooses: no spills, and wgmma that overlap."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from cutefp4 import compile as kernel_cache
from cutefp4 import gemm_choice_sm90 as choice
from cutefp4.budget_sm90 import with_most_stages
from cutefp4.config import Sm90Config
from cutefp4.epilogue import default_epilogue
from cutefp4.format import gemm_constant
from cutefp4.gemm_plan import Sm90GemmPlan
from cutefp4.gemm_request_sm90 import GemmRequest
from cutefp4.heuristics import sm90
from cutefp4.legality_sm90 import sm90_problems
from cutefp4.sass import disassemble

PLANS = {
    "wide": (replace(sm90.PAIRS[0], staged=True), "nvfp4"),
    "wide_stream": (replace(sm90.WIDE, staged=True, swap_ab=True, stream_k=True), "nvfp4"),
    "square": (replace(sm90.SQUARE, staged=True), "nvfp4"),
    "decoded": (sm90.DECODED, "nvfp4"),
    "wide_a16": (replace(sm90.PAIRS[0], swap_ab=True, decode_to="bfloat16"), "bfloat16"),
    "long_a16": (replace(sm90.LONG, swap_ab=True, decode_to="bfloat16"), "bfloat16"),
    "square_a16": (replace(sm90.SQUARE, swap_ab=True, stream_k=True), "float16"),
    "wide_pair": (replace(sm90.WIDE, staged=True, swap_ab=True, splits=2, split_pair=True, store_passes=1), "nvfp4"),
    "pair_a16": (replace(sm90.WIDE, swap_ab=True, splits=2, split_pair=True, store_passes=1), "float16"),
    "four": (replace(sm90.SQUARE, staged=True, swap_ab=True, splits=4, split_pair=True), "nvfp4"),
    "helped": (replace(sm90.SQUARE, staged=True, swap_ab=True, splits=2, split_pair=True, helped=True), "nvfp4"),
    "odd": (replace(sm90.THREE, tile_n=208, staged=True, swap_ab=True), "nvfp4"),
    "three": (replace(sm90.THREE, staged=True, swap_ab=True), "nvfp4"),
    "narrow": (replace(sm90.NARROW[1], staged=True, swap_ab=True, splits=4), "nvfp4"),
    "small": (replace(sm90.SMALL[0], stream_k=True), "nvfp4"),
    "small_square": (sm90.SMALL[-1], "nvfp4"),
    "small_a16": (replace(sm90.direct(sm90.SMALL[0]), stream_k=True), "float16"),
}


@pytest.mark.parametrize("name", PLANS)
def test_code_has_no_spills_and_wgmma_is_not_serialised(name):
    config, activations = PLANS[name]
    shape = sm90.GemmShape(8192, 8192, 8192, activations=activations)
    config = with_most_stages(config, *shape.operands(config))
    plan = Sm90GemmPlan("sm_90a", config, default_epilogue(1.0), activations=activations)
    code = disassemble(kernel_cache.artifacts(plan).cubin)
    assert not re.findall(r"\b(LDL|STL)\b", code)
    wgmma = re.findall(r"HGMMA\.64x(\d+)x16\.F32\S* R\d+, R\d+,", code)
    loops = 2 if config.helped else 1
    assert wgmma == [str(config.tile_n)] * (loops * 4 * config.k_blocks * config.m_atoms)
    # ptxas waits for each wgmma in turn (DEPBAR to 0) where it cannot prove that none of their registers is touched.
    assert len(re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x0", code)) == loops


def test_the_predicate_refuses_what_ptxas_serialises():
    """If a newer ptxas does not, the predicate can be relaxed; two tiles of 64 rows and 16 registers are fine."""
    case = {"k_blocks": 2, "tile_n": 64, "mma_stages": 4, "steps_per_group": 2, "decode_groups": 0, "staged": True}
    for tile_m, registers, serialised in ((128, 32, True), (128, 16, False), (256, 32, False)):
        config = Sm90Config(tile_m=tile_m, fragment_registers=registers, **case)
        operands = sm90.GemmShape(8192, 8192, 8192).operands(config)
        assert bool(sm90_problems(config, *operands)) == serialised
        code = disassemble(kernel_cache.artifacts(Sm90GemmPlan("sm_90a", config, default_epilogue(1.0))).cubin)
        assert (len(re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x0", code)) > 1) == serialised


EPILOGUES = {
    # alphas, bias, activation, C; dtype of D; K: with D in place where C is fp32
    "plain": (("scalar", "scalar"), "bfloat16", 4096),
    "column": (("scalar", "column"), "bfloat16", 4096),
    "full": (("row", "column", "bfloat16", "relu", "bfloat16"), "bfloat16", 4096),
    "fp32": (("row", "column"), "float32", 2048),
    "loaded": (("row", "column", None, None, "float32"), "float32", 2048),
    "mixed": (("row", "column", None, None, "float32"), "float32", 512),
}


@pytest.mark.parametrize("name", EPILOGUES)
def test_no_epilogue_takes_registers_from_the_mainloop(name):
    """The epilogue's registers count for ptxas: with 208 to a consumer, scalar alphas had serialised all wgmma."""
    arguments, dtype, k = EPILOGUES[name]
    tree = default_epilogue(gemm_constant(448, 448), *arguments)
    request = GemmRequest(4096, 4096, k, 1, dtype, "nvfp4", "tiled", "tiled", tree, in_place=dtype == "float32")
    code = disassemble(kernel_cache.artifacts(choice.make_plan(request, "sm_90a", 132)).cubin)
    assert not re.findall(r"\b(LDL|STL)\b", code)
    assert len(re.findall(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x0", code)) == 1
