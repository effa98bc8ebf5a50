"""Kernels of the DSL under `device`: with and without TVM-FFI, for both architectures, and how their faults arrive."""

from __future__ import annotations

import cutlass
import cutlass.cute as cute
import cutlass.experimental.cuda as cuda
import pytest
import torch
from cutlass.cute.runtime import from_dlpack
from cutlass.experimental import primitives
from ptx import kernel

from cutefp4 import emulator, quantize
from cutefp4.emulator import EmulatorError, KernelFault

ARCHITECTURES = ("sm_90a", "sm_100a")


@cute.kernel
def scale_kernel(a: cute.Tensor, b: cute.Tensor, factor: cutlass.Float32, shift: cutlass.Int32):
    tid, _, _ = cute.arch.thread_idx()
    bid, _, _ = cute.arch.block_idx()
    i = bid * 128 + tid
    if i < cute.size(a):
        b[i + shift] = a[i] * factor


@cute.jit
def scale(a: cute.Tensor, b: cute.Tensor, factor: cutlass.Float32, shift: cutlass.Int32):
    scale_kernel(a, b, factor, shift).launch(grid=[cute.ceil_div(cute.size(a), 128), 1, 1], block=[128, 1, 1])


@cute.jit
def scale_twice(a: cute.Tensor, b: cute.Tensor, c: cute.Tensor, factor: cutlass.Float32):
    scale_kernel(a, b, factor, 0).launch(grid=[cute.ceil_div(cute.size(a), 128), 1, 1], block=[128, 1, 1])
    scale_kernel(b, c, factor, 0).launch(grid=[cute.ceil_div(cute.size(b), 128), 1, 1], block=[128, 1, 1])


@cute.kernel
def reverse_kernel(a: cute.Tensor, b: cute.Tensor):
    """Reverses each block of 128 through shared memory, with a shuffle and a barrier on the way."""
    tid, _, _ = cute.arch.thread_idx()
    bid, _, _ = cute.arch.block_idx()
    smem = cutlass.utils.SmemAllocator()
    buffer = smem.allocate_tensor(cutlass.Float32, cute.make_layout(128), 16)
    value = cute.arch.shuffle_sync_bfly(a[bid * 128 + tid], offset=31)
    buffer[tid // 32 * 32 + 31 - tid % 32] = value
    cute.arch.barrier()
    b[bid * 128 + tid] = buffer[127 - (tid // 32 * 32 + 31 - tid % 32)]


@cute.jit
def reverse(a: cute.Tensor, b: cute.Tensor):
    reverse_kernel(a, b).launch(grid=[cute.ceil_div(cute.size(a), 128), 1, 1], block=[128, 1, 1])


@cute.kernel
def greeting_kernel(x: cutlass.Int32):
    tid, _, _ = cute.arch.thread_idx()
    if tid == 2:
        cute.printf("thread {} says {}", tid, x)


@cute.jit
def greeting(x: cutlass.Int32):
    greeting_kernel(x).launch(grid=[1, 1, 1], block=[32, 1, 1])


@cute.experimental.kernel
def negate_kernel(a: cute.Tensor, b: cute.Tensor):
    tid, _, _ = cute.arch.thread_idx()
    b[tid] = -a[tid]


@cute.experimental.jit
def negate(a: cute.Tensor, b: cute.Tensor):
    negate_kernel(a, b).launch(grid=[1, 1, 1], block=[64, 1, 1])


@cute.kernel
def box_kernel(source: cutlass.GridConstant[cuda.TensorMap], box: cute.Tensor):
    """One TMA load of a box (8, 16) whose first row is 4, written out as it lies in shared memory."""
    tid, _, _ = cute.arch.thread_idx()
    tile = cutlass.Array(cutlass.Float32, (8, 16), space=cutlass.AddressSpace.smem, alignment=128)
    full = cutlass.Array(cutlass.Int64, 1, space=cutlass.AddressSpace.smem)
    if tid == 0:
        primitives.mbarrier_init(full, 1)
    primitives.fence_mbarrier_init()
    primitives.barrier_cta_sync(0)
    if tid == 0:
        primitives.mbarrier_arrive_expect_tx(full, 8 * 16 * 4)
        primitives.cp_async_bulk_tensor_shared_cta_global(tile, source.get_ptr(), (16, 4), full)
    while not primitives.mbarrier_try_wait_parity(full, 0, time_limit=1000):
        pass
    for i in cutlass.range(4):
        element = tid + 32 * i
        box[element // 16, element % 16] = tile[element // 16, element % 16]


@cute.jit
def load_box(x: cute.Tensor, box: cute.Tensor):
    source = cuda.create_tensor_map_tiled_from_view(
        x, box_dims=(8, 16), stride_order=(1, 0), swizzle=cuda.TensorMapSwizzle.none
    )
    box_kernel(source, box).launch(grid=[1, 1, 1], block=[32, 1, 1])


def compile_and_call(function, tensors: list[torch.Tensor], *scalars, ffi: bool, options: str = ""):
    """Compiles for the tensors and calls once."""
    wrapped = [from_dlpack(t, enable_tvm_ffi=ffi) for t in tensors]
    compiled = cute.compile(function, *wrapped, *scalars, options=options + (" --enable-tvm-ffi" if ffi else ""))
    compiled(*(tensors if ffi else wrapped), *scalars)
    return compiled


@pytest.mark.parametrize("ffi", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_dsl_kernel(arch: str, ffi: bool):
    a, b = torch.arange(1000, dtype=torch.float32), torch.zeros(1000)
    with emulator.device(arch) as dev:
        compile_and_call(scale, [a, b], cutlass.Float32(3), cutlass.Int32(0), ffi=ffi)
        assert torch.equal(b, 3 * a)
        report = dev.report()
    assert report.launches == 1 and report.findings == [] and report.counters["ctas"] == 8
    assert report.reports[0].arch == int(arch[3:-1])


@pytest.mark.parametrize("ffi", [False, True])
def test_several_kernels_run_in_order(ffi: bool):
    a, b, c = torch.arange(500, dtype=torch.float32), torch.zeros(500), torch.zeros(500)
    with emulator.device("sm_100a") as dev:
        compile_and_call(scale_twice, [a, b, c], cutlass.Float32(2), ffi=ffi)
        assert torch.equal(c, 4 * a) and dev.report().launches == 2


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_kernel_of_the_experimental_dialect(arch: str):
    a, b = torch.arange(64, dtype=torch.float32), torch.zeros(64)
    with emulator.device(arch):
        tensors = [from_dlpack(t) for t in (a, b)]
        cute.experimental.compile(negate, *tensors)(*tensors)
    assert torch.equal(b, -a)


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tensor_map_that_the_host_function_asks_the_driver_for(arch: str, seed: int | None):
    x, box = torch.arange(12 * 32, dtype=torch.float32).view(12, 32), torch.full((8, 16), torch.nan)
    with emulator.device(arch, seed=seed):
        compile_and_call(load_box, [x, box], ffi=False)
    assert torch.equal(box, x[4:12, 16:32])


def test_a_tensor_map_that_the_driver_would_refuse():
    storage, box = torch.zeros(12 * 32 + 1), torch.zeros(8, 16)
    with emulator.device("sm_90a") as dev:
        with pytest.raises(EmulatorError, match="cuTensorMapEncodeTiled: global address is not a multiple of 16"):
            compile_and_call(load_box, [storage[1:].view(12, 32), box], ffi=False)
        assert dev.report().launches == 0
        compile_and_call(load_box, [storage[:-1].view(12, 32), box], ffi=False)
        assert dev.report().launches == 1


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_shared_memory_kernel(seed: int | None):
    a, b = torch.randn(512, generator=torch.Generator().manual_seed(0)), torch.zeros(512)
    with emulator.device("sm_90a", seed=seed) as dev:
        compile_and_call(reverse, [a, b], ffi=True)
        assert torch.equal(b.view(4, 4, 32), a.view(4, 4, 32).flip(1))
        assert dev.report().counters["shared_store_bytes"] == 2048


@pytest.mark.parametrize("ffi", [False, True])
def test_a_fault_is_raised_by_the_call(ffi: bool):
    a, b = torch.arange(1000, dtype=torch.float32), torch.zeros(1000)
    with emulator.device("sm_100a") as dev:
        compiled = compile_and_call(
            scale, [a, b], cutlass.Float32(1), cutlass.Int32(0), ffi=ffi, options="--generate-line-info"
        )
        arguments = [a, b] if ffi else [from_dlpack(a), from_dlpack(b)]
        with pytest.raises(KernelFault) as caught:
            compiled(*arguments, cutlass.Float32(1), cutlass.Int32(5))
        finding = caught.value.report.findings[0]
        assert finding.kind == "OUT_OF_BOUNDS_GLOBAL" and "scale_kernel" in finding.kernel
        assert finding.python is not None and finding.python.rsplit(":", 1)[0].endswith("test_device.py")
        source = open(__file__).read().splitlines()[int(finding.python.rsplit(":", 1)[1]) - 1]
        assert "b[i + shift] = a[i] * factor" in source
        compiled(*arguments, cutlass.Float32(5), cutlass.Int32(0))  # the device still works
        assert torch.equal(b, 5 * a)
        assert dev.report().launches == 3


def test_printf(capfd):
    with emulator.device("sm_100a"):
        cute.compile(greeting, cutlass.Int32(7))(cutlass.Int32(7))
    assert "thread 2 says 7" in capfd.readouterr().out


def test_hardware_info_and_nesting():
    with emulator.device("sm_100a", sms=6) as outer:
        assert emulator.current() is outer
        assert cutlass.utils.HardwareInfo().get_max_active_clusters(2) == 3
        with emulator.device("sm_90a", sms=10) as inner:
            assert emulator.current() is inner
            assert cutlass.utils.HardwareInfo().get_max_active_clusters(1) == 10
        assert cutlass.utils.HardwareInfo().get_max_active_clusters(1) == 6
    assert emulator.current() is None


def test_a_function_from_outside_is_refused():
    a = torch.zeros(128)
    fake = cute.runtime.make_fake_compact_tensor(cutlass.Float32, (128,))
    outside = cute.compile(
        scale, fake, fake, cutlass.Float32(1), cutlass.Int32(0), options="--gpu-arch sm_100a --enable-tvm-ffi"
    )
    with emulator.device("sm_100a"), pytest.raises(Exception) as caught:
        outside(a, a, 1.0, 0)
    assert not isinstance(caught.value, KernelFault)


def test_arguments_are_checked():
    text = kernel("", params=", .param .u32 N")
    with emulator.device("sm_100a") as dev:
        with pytest.raises(EmulatorError, match="1 arguments"):
            dev.launch_ptx(text, "k", (1,), (32,), [torch.zeros(32)])
        with pytest.raises(EmulatorError, match="argument None"):
            dev.launch_ptx(text, "k", (1,), (32,), [torch.zeros(32), None])
        with pytest.raises(EmulatorError, match="1 to 1024"):
            dev.launch_ptx(text, "k", (1,), (2048,), [torch.zeros(32), 1])
        with pytest.raises(EmulatorError, match="multiple of the cluster"):
            dev.launch_ptx(text, "k", (3,), (32,), [torch.zeros(32), 1], cluster=(2, 1, 1))
        with pytest.raises(EmulatorError, match="grid .*positive"):
            dev.launch_ptx(text, "k", (0,), (32,), [torch.zeros(32), 1])
        with pytest.raises(EmulatorError, match="232448"):
            dev.launch_ptx(text, "k", (1,), (32,), [torch.zeros(32), 1], smem=300_000)
    with pytest.raises(EmulatorError, match="sm_100a"), emulator.device("sm_42"):
        pass


def test_a_cluster_larger_than_the_device_is_explained():
    """Kernels launch as many clusters as the device has room for: none."""
    text = kernel("", params=", .param .u32 N")
    with emulator.device("sm_90a", sms=1) as dev:
        clusters = cutlass.utils.HardwareInfo().get_max_active_clusters(2)
        with pytest.raises(EmulatorError, match=r"sms=1\).*accepted: sms=2 or more; to fix: .*sms=2"):
            dev.launch_ptx(text, "k", (2 * clusters,), (32,), [torch.zeros(32), 1], cluster=(2, 1, 1))


def test_backend_variable(monkeypatch):
    """CUTEFP4_BACKEND=emulator serves cutefp4's own operations; the result is the reference's, byte for byte."""
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    want = quantize(x, backend="reference").rowwise
    monkeypatch.setenv("CUTEFP4_BACKEND", "emulator")
    for arch in ARCHITECTURES:
        with emulator.device(arch) as dev:
            got = quantize(x).rowwise
            assert dev.report().launches > 0
        assert torch.equal(got.codes, want.codes)
        assert torch.equal(got.block_scales.view(torch.uint8), want.block_scales.view(torch.uint8))
    got = quantize(x).rowwise
    assert torch.equal(got.codes, want.codes)
