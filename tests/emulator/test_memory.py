"""Loads, stores and their checks: bounds, alignment, uninitialised memory; address spaces; matrix loads and stores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ptx import fault, kernel, launch

from cutefp4 import emulator


def only(report, kind: str):
    """The single finding of a report, which must be of this kind."""
    assert [f.kind for f in report.findings] == [kind]
    return report.findings[0]


def test_out_of_bounds_store_never_reaches_the_host():
    text = kernel("  mul.wide.u32 %rd0, %lane, 4; add.s64 %rd0, %rd0, %out; st.global.b32 [%rd0+120], %lane;")
    found = only(fault(text, words=32), "OUT_OF_BOUNDS_GLOBAL")
    assert found.lane == 2 and "4 bytes past the end" in found.message and "st.global.b32" in found.ptx


def test_out_of_bounds_before_the_start_and_far_away():
    found = only(fault(kernel("  ld.global.b32 %r0, [%out+-4];")), "OUT_OF_BOUNDS_GLOBAL")
    assert "before an allocation" in found.message
    found = only(fault(kernel("  mov.b64 %rd0, 4096; ld.global.b32 %r0, [%rd0];")), "OUT_OF_BOUNDS_GLOBAL")
    assert "in no registered allocation" in found.message


def test_a_freed_tensor_is_out_of_bounds():
    text = kernel(
        "  ld.param.u64 %rd0, [P]; ld.global.b32 %r0, [%rd0]; st.global.b32 [%mine], %r0;", params=", .param .u64 P"
    )
    tensor = torch.full((64,), 7, dtype=torch.int32)
    out = torch.zeros(32, dtype=torch.int32)
    with emulator.device("sm_100a") as dev:
        dev.launch_ptx(text, "k", (1,), (32,), [out, tensor])
        assert (out == 7).all()
        address = tensor.data_ptr()
        del tensor
        with pytest.raises(emulator.KernelFault) as caught:
            dev.launch_ptx(text, "k", (1,), (32,), [out, address])
        assert caught.value.report.kinds() == {"OUT_OF_BOUNDS_GLOBAL"}


@pytest.mark.parametrize(
    "code",
    [
        "ld.global.b32 %r0, [%out+2];",
        "ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%out+8];",
        "st.global.b64 [%out+4], %mine;",
        "atom.global.add.u32 %r0, [%out+1], 1;",
    ],
)
def test_misaligned(code: str):
    assert "MISALIGNED" in fault(kernel(f"  {code}")).kinds()


def test_uninitialised_output():
    text = kernel("  ld.global.b32 %r0, [%mine]; st.global.b32 [%mine], %r0;")
    out = torch.empty(32, dtype=torch.int32)
    with emulator.device("sm_100a") as dev:
        dev.uninitialised(out)
        with pytest.raises(emulator.KernelFault) as caught:
            dev.launch_ptx(text, "k", (1,), (32,), [out])
        assert caught.value.report.kinds() == {"UNINITIALISED_GLOBAL"}
        dev.launch_ptx(kernel("  st.global.b32 [%mine], %lane;"), "k", (1,), (32,), [out])
        dev.launch_ptx(text, "k", (1,), (32,), [out])  # written by the kernel before


def test_shared_memory_bounds():
    declarations = ".shared .align 16 .b8 buffer[64];"
    good = "  mov.b32 %r0, buffer; st.shared.b32 [%r0+60], %lane; ld.shared.b32 %r1, [%r0+60];"
    launch(kernel(good, declarations=declarations))
    for code in ("st.shared.b32 [%r0+64], %lane;", "mov.b32 %r0, 0; ld.shared.b32 %r1, [%r0];"):
        assert (
            "OUT_OF_BOUNDS_SHARED" in fault(kernel(f"  mov.b32 %r0, buffer; {code}", declarations=declarations)).kinds()
        )


def test_dynamic_shared_memory_follows_the_static_one():
    text = kernel(
        "  mov.b32 %r0, dynamic; mov.b32 %r1, fixed; sub.u32 %r2, %r0, %r1; st.global.b32 [%mine], %r2; st.shared.b32 [%r0+252], %lane;",
        declarations=".shared .align 4 .b8 fixed[20];",
        module=".extern .shared .align 128 .b8 dynamic[];",
    )
    out, _ = launch(text, smem=256)
    assert out[0] == 128
    assert "OUT_OF_BOUNDS_SHARED" in fault(text, smem=252).kinds()


def test_uninitialised_shared_memory():
    text = kernel(
        "  mov.b32 %r0, b; ld.shared.b32 %r1, [%r0]; st.global.b32 [%mine], %r1;", declarations=".shared .b32 b;"
    )
    assert "UNINITIALISED_SHARED" in fault(text).kinds()


def test_generic_addresses_reach_every_space():
    text = kernel(
        """
  mov.b64 %rd0, local; cvta.local.u64 %rd0, %rd0; st.b32 [%rd0+4], %lane; ld.b32 %r0, [%rd0+4];
  mov.b64 %rd1, shared; cvta.shared.u64 %rd1, %rd1; mad.wide.u32 %rd1, %lane, 4, %rd1; st.b32 [%rd1], %r0; ld.b32 %r1, [%rd1];
  mov.b64 %rd2, table; cvta.global.u64 %rd2, %rd2; and.b32 %r2, %lane, 3; mad.wide.u32 %rd2, %r2, 4, %rd2; ld.b32 %r3, [%rd2];
  mov.b64 %rd3, VALUE; cvta.param.u64 %rd3, %rd3; ld.b32 %r4, [%rd3+4];
  isspacep.shared %p, %rd1; isspacep.local %q, %rd1; selp.b32 %r5, 1000, 0, %p; selp.b32 %r6, 5000, 0, %q;
  add.u32 %r1, %r1, %r3; add.u32 %r1, %r1, %r4; add.u32 %r1, %r1, %r5; add.u32 %r1, %r1, %r6;
  st.global.b32 [%mine], %r1;""",
        declarations=".local .align 8 .b8 local[16]; .shared .align 4 .b8 shared[128];",
        module=".global .align 4 .b32 table[4] = {10, 20, 30, 40};",
        params=", .param .align 8 .b8 VALUE[8]",
    )
    out, _ = launch(text, extra=[(7 << 32).to_bytes(8, "little")])
    lane = np.arange(32)
    np.testing.assert_array_equal(out[:32], lane + 10 * (lane % 4 + 1) + 7 + 1000)


def test_local_memory_is_private_and_bounded():
    body = "  mov.b64 %rd0, x; st.local.b32 [%rd0], %lane; bar.warp.sync 0xffffffff; ld.local.b32 %r0, [%rd0]; st.global.b32 [%mine], %r0;"
    out, report = launch(kernel(body, declarations=".local .b32 x;"))
    np.testing.assert_array_equal(out[:32], np.arange(32))
    assert report.counters["local_bytes"] == 256
    assert "OUT_OF_BOUNDS_LOCAL" in fault(kernel("  mov.b64 %rd0, 4096; ld.local.b32 %r0, [%rd0];")).kinds()


def test_widths_and_sign_extension():
    source = torch.arange(-32, 32, dtype=torch.int8)
    text = kernel(
        """
  ld.param.u64 %rd0, [P]; cvt.u64.u32 %rd1, %lane; add.s64 %rd0, %rd0, %rd1;
  ld.global.s8 %r0, [%rd0]; ld.global.u8 %r1, [%rd0]; ld.global.s8 %h0, [%rd0]; cvt.s32.s16 %r2, %h0; ld.global.s8 %rd2, [%rd0];
  cvt.u32.u64 %r3, %rd2; shr.u64 %rd3, %rd2, 32; cvt.u32.u64 %r4, %rd3;
  mad.wide.u32 %mine, %lane, 20, %out;
  st.global.b32 [%mine], %r0; st.global.b32 [%mine+4], %r1; st.global.b32 [%mine+8], %r2; st.global.b32 [%mine+12], %r3;
  st.global.b32 [%mine+16], %r4;""",
        params=", .param .u64 P",
    )
    out, _ = launch(text, words=160, extra=[source])
    rows = out.reshape(32, 5).view(np.int32)
    values = source.numpy()[:32].astype(np.int32)
    for column, want in enumerate((values, values & 0xFF, values, values, np.where(values < 0, -1, 0))):
        np.testing.assert_array_equal(rows[:, column], want)


def test_256_bit_vectors():
    source = torch.arange(32 * 8, dtype=torch.int32)
    regs = ", ".join(f"%r{i}" for i in range(8))
    text = kernel(
        f"""
  ld.param.u64 %rd0, [P]; mad.wide.u32 %rd0, %lane, 32, %rd0; mad.wide.u32 %mine, %lane, 32, %out;
  ld.global.L1::no_allocate.L2::evict_first.v8.b32 {{{regs}}}, [%rd0]; st.global.v8.b32 [%mine], {{{regs}}};""",
        params=", .param .u64 P",
    )
    out, report = launch(text, words=256, extra=[source])
    np.testing.assert_array_equal(out, source.numpy())
    assert report.counters["global_load_bytes"] == report.counters["global_store_bytes"] == 1024
    assert report.counters["global_sectors"] == 64


def test_remote_shared_memory_needs_the_cluster_space():
    body = """
  mov.b32 %r0, x; st.shared.b32 [%r0], 5;
  barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
  mapa.shared::cluster.u32 %r1, %r0, 1; ld.shared{space}.b32 %r2, [%r1]; mov.u32 %r3, %cluster_ctarank; add.u32 %r2, %r2, %r3;
  barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
  mov.u32 %r4, %ctaid.x; mad.lo.u32 %r4, %r4, 32, %lane; mad.wide.u32 %mine, %r4, 4, %out; st.global.b32 [%mine], %r2;"""
    text = kernel(body.replace("{space}", "::cluster"), declarations=".shared .b32 x;")
    out, _ = launch(text, grid=2, cluster=2)
    np.testing.assert_array_equal(out[:64], np.repeat([5, 6], 32))
    wrong = fault(kernel(body.replace("{space}", ""), declarations=".shared .b32 x;"), grid=2, cluster=2)
    assert wrong.kinds() == {"OUT_OF_BOUNDS_SHARED"} and "use .shared::cluster" in wrong.findings[0].message


def matrix_kernel(code: str, registers: int) -> str:
    """Fills 512 bytes of shared memory with their own numbers (mod 251), runs `code` on [%r0] + 16 * lane, stores %r8.."""
    stores = "".join(f" st.global.b32 [%mine+{4 * i}], %r{8 + i};" for i in range(registers))
    return kernel(
        f"""
  mov.b32 %r0, tile; ld.param.u64 %rd0, [P]; mad.wide.u32 %rd0, %lane, 16, %rd0; mad.lo.u32 %r1, %lane, 16, %r0;
  ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%rd0]; st.shared.v4.b32 [%r1], {{%r4, %r5, %r6, %r7}}; bar.sync 0;
  {code}
  mad.wide.u32 %mine, %lane, {4 * registers}, %out;{stores}""",
        declarations=".shared .align 128 .b8 tile[512];",
        params=", .param .u64 P",
    )


def tile() -> torch.Tensor:
    return (torch.arange(512) % 251).to(torch.uint8)


@pytest.mark.parametrize("count", [1, 2])
def test_ldmatrix_of_bytes_transposed(count: int):
    """m16n16.trans: byte k of registers 2j, 2j+1 of lane (r, q) is row 4q + 2i + (k & 1), column r + 8 (k >> 1) of matrix j."""
    regs = ", ".join(f"%r{8 + i}" for i in range(2 * count))
    code = f"ldmatrix.sync.aligned.m16n16.x{count}.trans.shared.b8 {{{regs}}}, [%r1];"
    out, _ = launch(matrix_kernel(code, 2 * count), words=64 * count, extra=[tile()])
    got = out.view(np.uint8).reshape(32, count, 2, 4)
    source = tile().numpy().reshape(-1, 16, 16)
    lane, j, i, k = np.ix_(np.arange(32), np.arange(count), np.arange(2), np.arange(4))
    q, r = lane % 4, lane // 4
    np.testing.assert_array_equal(got, source[j, 4 * q + 2 * i + (k & 1), r + 8 * (k >> 1)])


@pytest.mark.parametrize("source, bits", [("b4x16_p64", 4), ("b6x16_p32", 6)])
def test_ldmatrix_expands_narrow_elements(source: str, bits: int):
    code = f"ldmatrix.sync.aligned.m8n16.x4.shared.b8x16.{source} {{%r8, %r9, %r10, %r11}}, [%r1];"
    out, _ = launch(matrix_kernel(code, 4), extra=[tile()])
    got = out.view(np.uint8).reshape(32, 4, 4)
    rows = tile().numpy().reshape(32, 16)
    elements = np.zeros((32, 16), np.uint8)
    for row in range(32):
        word = int.from_bytes(rows[row].tobytes(), "little")
        for e in range(16):
            value = word >> bits * e & (1 << bits) - 1
            elements[row, e] = value << 2 if bits == 4 else value
    for lane in range(32):
        for j in range(4):
            np.testing.assert_array_equal(
                got[lane, j], elements[8 * j + lane // 4, 4 * (lane % 4) : 4 * (lane % 4) + 4]
            )


def test_stmatrix_of_bytes_inverts_its_load():
    """m16n8.trans writes byte k of lane (r, q) to row 2q + (k & 1), column r + 8 (k >> 1) of 8 rows of 16 bytes."""
    code = """
  mul.lo.u32 %r12, %lane, 4; add.u32 %r13, %r12, 1; add.u32 %r14, %r12, 2; add.u32 %r15, %r12, 3;
  prmt.b32 %r12, %r12, %r13, 0x3340; prmt.b32 %r14, %r14, %r15, 0x3340; prmt.b32 %r12, %r12, %r14, 0x5410;
  stmatrix.sync.aligned.m16n8.x1.trans.shared.b8 [%r1], {%r12}; bar.sync 0; ld.shared.b32 %r8, [%r0];
  and.b32 %r16, %lane, 31; mad.lo.u32 %r16, %r16, 4, %r0; ld.shared.b32 %r8, [%r16];"""
    out, _ = launch(matrix_kernel(code, 1), words=32, extra=[tile()])
    rows = out.view(np.uint8).reshape(8, 16)
    for lane in range(32):
        q, r = lane % 4, lane // 4
        for k in range(4):
            assert rows[2 * q + (k & 1), r + 8 * (k >> 1)] == (4 * lane + k) % 256


def test_bank_conflicts_are_counted():
    def conflicts(stride: int) -> int:
        body = f"  mov.b32 %r0, x; mad.lo.u32 %r0, %lane, {stride}, %r0; st.shared.b32 [%r0], %lane;"
        return launch(kernel(body, declarations=".shared .align 128 .b8 x[8192];"))[1].counters["bank_conflicts"]

    assert [conflicts(s) for s in (4, 8, 16, 128, 132, 0)] == [0, 1, 3, 31, 0, 0]


def test_vectors_of_half_atomics():
    start = torch.zeros(8, dtype=torch.float16)
    body = """
  ld.param.u64 %rd0, [P]; mov.b32 %r0, 0x40003c00;
  red.global.add.noftz.v4.f16x2 [%rd0], {%r0, %r0, %r0, %r0};
  atom.global.add.noftz.f16x2 %r1, [%rd0], %r0; st.global.b32 [%mine], %r1;"""
    out, report = launch(kernel(body, params=", .param .u64 P"), extra=[start])
    assert start.tolist() == [64, 128, 32, 64, 32, 64, 32, 64]
    old = np.sort(out[:32].view(np.float16).reshape(32, 2)[:, 0])
    np.testing.assert_array_equal(old, np.arange(32, 64))
    assert report.counters["atomics"] == 64


def test_compare_and_swap_of_128_bits():
    memory = torch.tensor([5, 6], dtype=torch.int64)
    body = """
  setp.ne.u32 %p, %lane, 0; @%p ret; ld.param.u64 %rd0, [P];
  { .reg .b128 %old, %cmp, %new; .reg .b64 %a, %b, %c, %d;
    mov.b64 %a, 5; mov.b64 %b, 6; mov.b64 %c, 77; mov.b64 %d, 88; mov.b128 %cmp, {%a, %b}; mov.b128 %new, {%c, %d};
    atom.global.b128.cas %old, [%rd0], %cmp, %new; mov.b128 {%a, %b}, %old; cvt.u32.u64 %r0, %b; st.global.b32 [%mine], %r0; }"""
    out, _ = launch(kernel(body, params=", .param .u64 P"), extra=[memory])
    assert memory.tolist() == [77, 88] and out[0] == 6


def test_printf(capsys):
    body = """
  setp.ne.u32 %p, %lane, 3; @%p ret;
  mov.b64 %rd0, values; st.local.b32 [%rd0], %lane; mov.f64 %rd1, 0d4004000000000000; st.local.b64 [%rd0+8], %rd1;
  cvta.local.u64 %rd0, %rd0; mov.b64 %rd2, text; cvta.global.u64 %rd2, %rd2;
  { .param .b64 param0; st.param.b64 [param0], %rd2; .param .b64 param1; st.param.b64 [param1], %rd0; .param .b32 retval0;
    call.uni (retval0), vprintf, (param0, param1); ld.param.b32 %r1, [retval0]; }"""
    data = ", ".join(str(b) for b in b"lane %d has %.2f%%\n\0")
    module = f".extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);\n.global .align 1 .b8 text[] = {{{data}}};"
    launch(kernel(body, declarations=".local .align 8 .b8 values[16];", module=module))
    assert capsys.readouterr().out == "lane 3 has 2.50%\n"
