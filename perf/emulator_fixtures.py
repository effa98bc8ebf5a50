"""Make the emulator's hardware fixtures on a Hopper GPU, or check a machine against them.

    python perf/emulator_fixtures.py make --out DIR   needs an sm_90 GPU, numpy and cuda-bindings; no compiler, no torch
    python perf/emulator_fixtures.py check            runs the same kernels in the emulator and compares
    python perf/emulator_fixtures.py check --gpu      runs them on the GPU again and compares

``make`` writes ``sm90a.npz`` (small; goes to tests/emulator/fixtures) and, for whoever hunts a difference, the whole
results as ``raw_*.npz`` beside it. Kernels run in worker processes: one that hangs or faults costs only itself.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "emulator"))

from microkernels import FAMILIES, every_kernel  # noqa: E402
from microkernels.kernel import (  # noqa: E402
    ELEMENT_BITS,
    ENCODE_ONLY,
    SWIZZLES,
    Buffer,
    Microkernel,
    TensorMap,
    digests,
    identity,
)

FIXTURE = ROOT / "tests" / "emulator" / "fixtures" / "sm90a.npz"
HANG_SECONDS = 10.0


class Gpu:
    """The CUDA driver, as far as launching PTX text needs it."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self.cu = driver
        self.check(driver.cuInit(0))
        device = self.check(driver.cuDeviceGet(0))
        context = self.check(driver.cuDevicePrimaryCtxRetain(device))
        self.check(driver.cuCtxSetCurrent(context))
        self.stream = self.check(driver.cuStreamCreate(0))

    def check(self, result):
        error, *values = result
        if int(error) != 0:
            raise RuntimeError(f"CUDA driver: {error}")
        return values[0] if len(values) == 1 else values or None

    def encode(self, m: TensorMap, address: int) -> bytes:
        """The driver's own 128 bytes for a tensor map."""
        cu, rank = self.cu, len(m.dims)
        steps = m.element_strides or (1,) * rank
        encoded = self.check(
            cu.cuTensorMapEncodeTiled(
                cu.CUtensorMapDataType(list(ELEMENT_BITS).index(m.element)), rank, address + m.offset,
                [cu.cuuint64_t(d) for d in m.dims], [cu.cuuint64_t(s) for s in m.strides or (16,)],
                [cu.cuuint32_t(b) for b in m.box], [cu.cuuint32_t(s) for s in steps],
                cu.CUtensorMapInterleave(0), cu.CUtensorMapSwizzle(SWIZZLES.index(m.swizzle)),
                cu.CUtensorMapL2promotion(0), cu.CUtensorMapFloatOOBfill(int(m.nan_fill)),
            )
        )  # fmt: skip
        return ctypes.string_at(int(encoded.getPtr()), 128)

    def run(self, kernel: Microkernel) -> tuple[dict[str, np.ndarray], list[bytes]]:
        """The contents of the result buffers after the launch, and the encoded tensor maps."""
        cu = self.cu
        module = self.check(cu.cuModuleLoadData(kernel.ptx.encode() + b"\0"))
        function = self.check(cu.cuModuleGetFunction(module, kernel.entry.encode()))
        if kernel.smem:
            attribute = cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self.check(cu.cuFuncSetAttribute(function, attribute, kernel.smem))
        memory = {}
        for b in kernel.buffers:
            host = np.ascontiguousarray(b.data)
            memory[b.name] = self.check(cu.cuMemAlloc(host.nbytes + 256))
            self.check(cu.cuMemcpyHtoD(memory[b.name], host.ctypes.data, host.nbytes))
        maps = [self.encode(m, int(memory[m.buffer])) for m in kernel.tensor_maps]
        self._launch(function, kernel, memory, list(maps))
        results = {}
        for b in kernel.results:
            host = np.empty(b.data.nbytes, dtype=np.uint8)
            self.check(cu.cuMemcpyDtoH(host.ctypes.data, memory[b.name], host.nbytes))
            results[b.name] = host
        for pointer in memory.values():
            self.check(cu.cuMemFree(pointer))
        self.check(cu.cuModuleUnload(module))
        return results, maps

    def _launch(self, function, kernel: Microkernel, memory: dict, maps: list[bytes]) -> None:
        cu, holders = self.cu, []
        for a in kernel.args:
            if isinstance(a, Buffer):
                holders.append(ctypes.c_uint64(int(memory[a.name])))
            elif isinstance(a, TensorMap):
                raw = ctypes.create_string_buffer(256)  # 64-byte aligned inside
                at = -ctypes.addressof(raw) % 64
                ctypes.memmove(ctypes.addressof(raw) + at, maps.pop(0), 128)
                holders.append((raw, at))
            elif isinstance(a, bytes):
                holders.append(ctypes.create_string_buffer(a, len(a)))
            else:
                holders.append(ctypes.c_uint64(a))
        address = [ctypes.addressof(h[0]) + h[1] if isinstance(h, tuple) else ctypes.addressof(h) for h in holders]
        params = (ctypes.c_void_p * len(address))(*address)
        config = cu.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = kernel.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = kernel.block
        config.sharedMemBytes, config.hStream = kernel.smem, self.stream
        if kernel.cluster != (1, 1, 1):
            attribute, value = cu.CUlaunchAttribute(), cu.CUlaunchAttributeValue()
            value.clusterDim.x, value.clusterDim.y, value.clusterDim.z = kernel.cluster
            attribute.id, attribute.value = cu.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value
            config.attrs, config.numAttrs = [attribute], 1
        self.check(cu.cuLaunchKernelEx(config, function, ctypes.addressof(params), 0))
        start = time.monotonic()
        while int(self.cu.cuStreamQuery(self.stream)[0]) == int(cu.CUresult.CUDA_ERROR_NOT_READY):
            if time.monotonic() - start > HANG_SECONDS:
                raise TimeoutError("the kernel did not end")
            time.sleep(0.0005)
        self.check(cu.cuStreamSynchronize(self.stream))


def worker(start: int, stop: int, out: Path) -> None:
    """Run kernels number start..stop-1 and save each; end the process at the first failure (its context is gone)."""
    kernels = list(every_kernel().values())[start:stop]
    gpu = Gpu()
    if start == 0:
        found = {}
        for j, m in enumerate(ENCODE_ONLY):
            try:
                found[f"{j}"] = np.frombuffer(gpu.encode(m, 0x7F0000001000), np.uint8)
            except (RuntimeError, ValueError) as e:
                print(f"encode {m.element} {m.swizzle}: {e}")
        np.savez(out / "encode.npz", **found)
    for i, kernel in enumerate(kernels, start):
        try:
            results, maps = gpu.run(kernel)
        except Exception as e:  # the parent reports it and starts a new process after this kernel
            (out / f"{i}.error").write_text(f"{kernel.name}: {type(e).__name__}: {e}")
            os._exit(1)
        np.savez(out / f"{i}.npz", **{f"map{j}": np.frombuffer(m, np.uint8) for j, m in enumerate(maps)}, **results)


def start_worker(first: int, last: int, out: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, __file__, "worker", str(first), str(last), str(out)])


def run_workers(out: Path, count: int, processes: int = 6) -> list[str]:
    """All kernels, in slices restarted after a failure; failures are tried again alone. What still fails."""
    step = -(-count // processes)
    running = {start_worker(a, min(count, a + step), out): (a, min(count, a + step)) for a in range(0, count, step)}
    failed = []
    while running:
        for p in [p for p in running if p.poll() is not None]:
            a, b = running.pop(p)
            broken = next((i for i in range(a, b) if not (out / f"{i}.npz").exists()), b)
            if broken < b:
                failed.append(broken)
            if broken + 1 < b:
                running[start_worker(broken + 1, b, out)] = (broken + 1, b)
        time.sleep(0.02)
    messages = []
    for i in failed:
        start_worker(i, i + 1, out).wait()
        if not (out / f"{i}.npz").exists():
            error = out / f"{i}.error"
            messages.append(error.read_text() if error.exists() else f"kernel {i}: the process died")
    return messages


def make(out: Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp())
    if start_worker(0, 0, work).wait():
        print("make needs a Hopper GPU, its driver and cuda-bindings", file=sys.stderr)
        return 2
    listed = list(every_kernel().values())
    failures = run_workers(work, len(listed))
    small, raw, refused = {}, {}, []
    for i, kernel in enumerate(listed):
        path = work / f"{i}.npz"
        if not path.exists():
            fault = (work / f"{i}.error").read_text() if (work / f"{i}.error").exists() else ""
            if "ILLEGAL_INSTRUCTION" in fault:  # the hardware refuses it: the emulator has to report it
                refused.append(kernel.name)
                small[f"{kernel.name}/identity"] = identity(kernel)
                small[f"{kernel.name}/fault"] = np.frombuffer(b"ILLEGAL_INSTRUCTION", np.uint8)
            continue
        found = np.load(path)
        small[f"{kernel.name}/identity"] = identity(kernel)
        for j, _ in enumerate(kernel.tensor_maps):
            m = found[f"map{j}"].copy()
            m[:8] = 0  # the address is the machine's own
            small[f"{kernel.name}/map{j}"] = m
        for b in kernel.results:
            data = found[b.name]
            keep = kernel.whole or data.nbytes <= 2048
            small[f"{kernel.name}/{b.name}"] = data if keep else digests(data)
            raw[f"{kernel.name}/{b.name}"] = data
    if (work / "encode.npz").exists():
        for j, data in np.load(work / "encode.npz").items():
            small[f"encode{j}/map0"] = data
    np.savez_compressed(out / "sm90a.npz", **small)
    for name, make_family in FAMILIES.items():
        wanted = {k.name for k in make_family()}
        part = {key: data for key, data in raw.items() if key.split("/")[0] in wanted}
        np.savez_compressed(out / f"raw_{name}.npz", **part)
    failures = [f for f in failures if "ILLEGAL_INSTRUCTION" not in f]
    print(json.dumps({"kernels": len(listed), "refused": refused, "failures": failures}, indent=1))
    for f in sorted(out.iterdir()):
        print(f"{f.stat().st_size:>10} {f.name}")
    return 1 if failures else 0


def check(on_gpu: bool, only: str) -> int:
    """Run every kernel again, here or on the GPU, and print which ones differ from the fixture."""
    from microkernels.compare import differences, run_in_emulator

    fixture = np.load(FIXTURE)
    gpu = Gpu() if on_gpu else None
    bad = 0
    for name, kernel in every_kernel().items():
        if only not in name:
            continue
        start = time.perf_counter()
        try:
            if f"{name}/identity" not in fixture or not np.array_equal(fixture[f"{name}/identity"], identity(kernel)):
                raise ValueError("the fixture was made from another text or other inputs")
            refused = f"{name}/fault" in fixture
            known = None if refused else fixture  # a refused kernel has no driver-encoded maps
            results = gpu.run(kernel)[0] if gpu else run_in_emulator(kernel, known)[0]
            wrong = ["the hardware refuses this kernel"] if refused else differences(kernel, results, fixture)
        except Exception as e:
            refused = f"{name}/fault" in fixture and not isinstance(e, ValueError)
            wrong = [] if refused else [f"{type(e).__name__}: {e}"]
        bad += bool(wrong)
        print(f"{'ok' if not wrong else 'WRONG':6}{name:44}{time.perf_counter() - start:8.3f} s")
        for line in wrong[:12]:
            print("      ", line)
    print(f"{bad} kernels differ" if bad else "every kernel agrees with the hardware")
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(dest="command", required=True)
    p = sub.add_parser("make")
    p.add_argument("--out", type=Path, required=True)
    p = sub.add_parser("check")
    p.add_argument("--gpu", action="store_true")
    p.add_argument("--only", default="", help="a part of the kernels' names")
    p = sub.add_parser("worker")
    p.add_argument("start", type=int)
    p.add_argument("stop", type=int)
    p.add_argument("out", type=Path)
    args = parser.parse_args()
    if args.command == "make":
        return make(args.out)
    if args.command == "worker":
        worker(args.start, args.stop, args.out)
        return 0
    return check(args.gpu, args.only)


if __name__ == "__main__":
    sys.exit(main())
