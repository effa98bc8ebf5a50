"""A real but tiny DSL kernel, y[i] = x[i] * s, for tests of the compile cache; and plans whose builders misbehave."""

import os
import time
from dataclasses import dataclass
from typing import ClassVar

import cuda.bindings.driver as cuda
import cutlass.cute as cute
from cutlass import Float32
from cutlass.cute.runtime import make_fake_compact_tensor, make_fake_stream

from cutefp4.plan import Plan


@dataclass(frozen=True)
class TinyPlan(Plan):
    """y = x * s on fp32 vectors of any length."""

    builder: ClassVar[str] = "tests.tiny_kernel:build"
    threads: int = 128
    unused: int = 0
    """Changes the key and nothing else: gives tests as many keys as they want."""


@dataclass(frozen=True)
class GpuBlindPlan(TinyPlan):
    """Compiles only where no GPU can be seen."""

    builder: ClassVar[str] = "tests.tiny_kernel:build_gpu_blind"


@dataclass(frozen=True)
class FatalPlan(TinyPlan):
    """Kills the process that compiles it."""

    builder: ClassVar[str] = "tests.tiny_kernel:build_fatal"


@dataclass(frozen=True)
class BrokenPlan(TinyPlan):
    """A builder with a bug."""

    builder: ClassVar[str] = "tests.tiny_kernel:build_broken"


@dataclass(frozen=True)
class EndlessPlan(TinyPlan):
    """Compiles for an hour."""

    builder: ClassVar[str] = "tests.tiny_kernel:build_endless"


def build(plan: TinyPlan):
    threads = plan.threads

    @cute.kernel
    def scale_kernel(x: cute.Tensor, y: cute.Tensor, s: Float32):
        i = cute.arch.block_idx()[0] * threads + cute.arch.thread_idx()[0]
        if i < cute.size(x):
            y[i] = x[i] * s

    @cute.jit
    def scale(x: cute.Tensor, y: cute.Tensor, s: Float32, stream: cuda.CUstream):
        grid = [cute.ceil_div(cute.size(x), threads), 1, 1]
        scale_kernel(x, y, s).launch(grid=grid, block=[threads, 1, 1], stream=stream)

    n = cute.sym_int()
    x, y = (make_fake_compact_tensor(Float32, (n,), assumed_align=16) for _ in range(2))
    return scale, (x, y, Float32(1.0), make_fake_stream(use_tvm_ffi_env_stream=True))


def build_gpu_blind(plan: TinyPlan):
    if os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        raise RuntimeError("this process could see a GPU")
    return build(plan)


def build_endless(plan: EndlessPlan):
    time.sleep(3600)


def build_fatal(plan: TinyPlan):
    os._exit(9)


def build_broken(plan: TinyPlan):
    raise ZeroDivisionError("a bug in a builder")
