"""Kernels in which every thread applies many operations to its own three inputs.

Registers that an operation may use: ``%a %b %c`` (the inputs, 32 bits), ``%la %lb %lc`` (64 bits), ``%d``/``%ld`` (the
result), and scratch ``%t0..%t3``, ``%h0..%h7`` (16 bits), ``%q0..%q3`` (8-bit-sized values live in 16-bit ones),
``%l0 %l1`` (64 bits), ``%p %q`` (predicates). ``@ROW@`` is the address in global memory where the row's own value will
be stored last, free as scratch until then. Registers are untyped on purpose: only the instruction says the type.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .kernel import Buffer, Microkernel

BLOCK = 128


@dataclass(frozen=True)
class Op:
    """One row of the result: a label and the PTX that leaves its value in %d (or %ld when ``wide``)."""

    label: str
    code: str
    wide: bool = False


def op(code: str, wide: bool = False, label: str | None = None) -> Op:
    """An operation labelled by its own text."""
    return Op(label or " ".join(code.split()), code, wide)


def predicate(code: str, label: str | None = None) -> Op:
    """An operation that sets %p; the row holds 0 or 1."""
    return Op(label or " ".join(code.split()), f"{code} selp.b32 %d, 1, 0, %p;")


def half_result(code: str, label: str | None = None) -> Op:
    """An operation that leaves 16 bits in %h7; the row holds them zero-extended."""
    return Op(label or " ".join(code.split()), f"{code} mov.b32 %d, {{%h7, %hz}};")


HEADER = """.version 8.6
.target sm_90a
.address_size 64
"""


def lanewise(
    name: str,
    ops: list[Op],
    inputs: list[np.ndarray],
    max_ulp: int = 0,
    prologue: str = "",
    target: str = "sm_90a",
    version: str = "8.6",
) -> Microkernel:
    """A kernel over ``inputs`` (three equal arrays of uint32 or of uint64); one row of results per operation."""
    count = len(inputs[0])
    wide_in = inputs[0].dtype == np.uint64
    wide_out = any(o.wide for o in ops)
    stride = count * (8 if wide_out else 4)
    loads = "\n".join(
        f"  ld.global.b64 %l{r}, [%p{r}];" if wide_in else f"  ld.global.b32 %{r}, [%p{r}];" for r in "abc"
    )
    body = []
    for i, o in enumerate(ops):
        value = ("%ld" if o.wide else "%d") if not wide_out else "%ld"
        widen = "" if o.wide or not wide_out else " cvt.u64.u32 %ld, %d;"
        store = f"st.global.b{64 if wide_out else 32} [%po+{i * stride}], {value};"
        body.append(f"  {{ {o.code.replace('@ROW@', f'%po+{i * stride}')}{widen} {store} }}")
    ptx = f"""{HEADER.replace("sm_90a", target).replace("8.6", version)}
.visible .entry k(.param .u64 A, .param .u64 B, .param .u64 C, .param .u64 OUT)
{{
  .reg .b64 %pa, %pb, %pc, %po, %off, %la, %lb, %lc, %ld, %l<2>;
  .reg .b32 %a, %b, %c, %d, %i, %n, %x, %t<4>;
  .reg .b16 %h<8>, %hz;
  .reg .pred %p, %q;
  ld.param.u64 %pa, [A]; ld.param.u64 %pb, [B]; ld.param.u64 %pc, [C]; ld.param.u64 %po, [OUT];
  mov.u32 %i, %tid.x; mov.u32 %n, %ntid.x; mov.u32 %x, %ctaid.x;
  mad.lo.u32 %i, %x, %n, %i;
  mul.wide.u32 %off, %i, {8 if wide_in else 4};
  add.s64 %pa, %pa, %off; add.s64 %pb, %pb, %off; add.s64 %pc, %pc, %off;
  mul.wide.u32 %off, %i, {8 if wide_out else 4};
  add.s64 %po, %po, %off;
  mov.b16 %hz, 0;
{loads}
{prologue}
{chr(10).join(body)}
  ret;
}}
"""
    out = np.full(len(ops) * stride, 0xCD, dtype=np.uint8)
    args = tuple(Buffer(n, v) for n, v in zip("abc", inputs, strict=True)) + (Buffer("out", out, result=True),)
    grid = (count // BLOCK, 1, 1)
    rows = tuple(o.label for o in ops)
    return Microkernel(name, ptx, args, grid, (BLOCK, 1, 1), rows=rows, max_ulp=max_ulp, whole=max_ulp > 0,
                       lanewise=True)  # fmt: skip
