"""What the PTX parser accepts and how it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import kernel, launch

from cutefp4.emulator import PtxError
from cutefp4.emulator.program import load
from cutefp4.emulator.ptx_parser import Address, Imm, Not, Pair, Reg, Vector, parse, split_operands


def instructions(body: str):
    return parse(kernel(body)).functions["k"].instructions[4:-1]


def operand(text: str):
    return instructions(f"  mov.b32 %r0, {text};")[0].operands[1]


@pytest.mark.parametrize(
    "text, value",
    [
        ("0x1F", Imm(31)),
        ("-0x1F", Imm(-31)),
        ("0b101", Imm(5)),
        ("017", Imm(15)),
        ("42U", Imm(42)),
        ("0f3F800000", Imm(0x3F800000, 32)),
        ("0d3FF0000000000000", Imm(0x3FF0000000000000, 64)),
        ("1.5", Imm(1.5)),
        ("-2.5e3", Imm(-2500.0)),
        ("%r1", Reg("%r1")),
        ("%tid.x", Reg("%tid", 0)),
        ("abcd.z", Reg("abcd", 2)),
        ("!%p", Not(Reg("%p"))),
        ("%r1|%p", Pair(Reg("%r1"), Reg("%p"))),
        ("[%rd0+-8]", Address(Reg("%rd0"), -8)),
        ("[%rd0 - 8]", Address(Reg("%rd0"), -8)),
        ("[buffer + 0x10]", Address(Reg("buffer"), 16)),
        ("[%rd0, {%r1, %r2}]", Address(Reg("%rd0"), 0, Vector((Reg("%r1"), Reg("%r2"))))),
        ("{%r1, _}", Vector((Reg("%r1"), Reg("_")))),
    ],
)
def test_operands(text: str, value: object):
    assert operand(text) == value


def test_splitting_respects_brackets():
    assert split_operands("{a, b}, [c, {d, e}], f") == ["{a, b}", "[c, {d, e}]", "f"]
    assert split_operands("") == []


def test_lines_comments_and_source_positions():
    text = kernel(
        """
  .loc 1 77 3
  mov.b32 %r0, 1; // one ; two
  /* three;
     four */ mov.b32 %r1, 2;
  .loc 1 78 5, function_name $L__info, inlined_at 1 20 3
  @!%p mov.b32 %r2, 3;""",
        module='.file 1 "/src/a//b.py"',
    )
    found = parse(text).functions["k"].instructions[4:7]
    lines = text.split("\n")
    assert [lines[i.line - 1].strip().split(";")[0].split()[-1] for i in found] == ["1", "2", "3"]
    assert [i.loc for i in found] == [(1, 77), (1, 77), (1, 78)]
    assert found[2].guard == (Reg("%p"), True)
    assert load(text).python_line(found[2].line) == "/src/a//b.py:78"


def test_scopes_of_inline_assembly():
    """Two copies of the same block: registers and labels belong to the block; outer registers stay visible."""
    block = """
  {
    .reg .pred P1; .reg .b32 t; mov.b32 t, 0;
    LAB: add.u32 t, t, 1; add.u32 %r0, %r0, 1; setp.lt.u32 P1, t, {n}; @P1 bra LAB; bra DONE; add.u32 %r0, %r0, 1000;
    DONE:
  }"""
    body = "  mov.b32 %r0, 0;" + block.replace("{n}", "3") + block.replace("{n}", "4") + " st.global.b32 [%mine], %r0;"
    assert (launch(kernel(body))[0][:32] == 7).all()


def test_vector_registers_and_packing():
    text = kernel(
        """
  { .reg .v4 .b32 abcd; .reg .b64 w; .reg .b128 q; ld.param.u64 w, [P]; ld.global.v4.b32 abcd, [w];
    add.u32 %r0, abcd.x, abcd.w; mov.b64 w, {abcd.y, abcd.z}; mov.b64 {_, %r1}, w; mov.b128 q, {w, w}; mov.b128 {%rd0, %rd1}, q;
    cvt.u32.u64 %r2, %rd1; mov.b32 {%h0, %h1}, %r1; mov.b32 %r3, {%h1, %h0}; }
  add.u32 %r0, %r0, %r1; add.u32 %r0, %r0, %r2; add.u32 %r0, %r0, %r3; st.global.b32 [%mine], %r0;""",
        params=", .param .u64 P",
    )
    out, _ = launch(text, extra=[np.array([1, 20, 300, 4000], np.int32)])
    assert (out[:32] == 1 + 4000 + 300 + 20 + (300 << 16)).all()


def test_spaces_before_modifiers_and_missing_ones_after_commas():
    assert [i.opcode for i in instructions("  add .u32\t%r0,%r1,%r2; cvt.rn .f32.s32 %r0 , %r1;")] == [
        "add.u32",
        "cvt.rn.f32.s32",
    ]


@pytest.mark.parametrize(
    "body, words",
    [
        ("  mov.b32 %r0, %r99;", "neither declared"),
        ("  mov.b32 %r0, 12x;", "not understood"),
        ("  mov.b32 %r0, x;", "x is not declared"),
        ("  bra NOWHERE;", "label NOWHERE"),
        ("  .reg .b33 x;", "unknown register declaration"),
        ("  .reg .b32 %tid;", "predefined"),
        ("  mov.b64 %rd0, missing;", "not declared"),
        ("  add.u32 %r0, %rd0, 1;", "64 bits where 32"),
        ("  mov.u32 %r0, %nosuch;", "neither declared"),
        ("  selp.b32 %r0, 1, 2, %r1;", "not a predicate"),
        ("  ld.global.v2.b32 {%r0, %r1, %r2}, [%out];", "3 registers"),
    ],
)
def test_errors_name_the_line(body: str, words: str):
    with pytest.raises(PtxError, match=words) as caught:
        load(kernel(body))
    assert "PTX line" in str(caught.value)


def test_choosing_a_kernel():
    text = kernel("").replace("entry k(", "entry first(") + kernel("").split("\n", 3)[3].replace(
        "entry k(", "entry second("
    )
    assert load(text, "second").name == "second"
    with pytest.raises(PtxError, match="first, second"):
        load(text)
    with pytest.raises(PtxError, match="no kernel third"):
        load(text, "third")


def test_decoded_programs_are_kept():
    assert load(kernel("  mov.b32 %r0, 1;")) is load(kernel("  mov.b32 %r0, 1;"))
