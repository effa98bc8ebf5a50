"""Launches: eager, under torch.compile, in graphs, on streams and threads. On the CPU the oracle stands in."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import dsl, emulator, fingerprint, launch, ops, ops_quantize, reference
from cutefp4.errors import UnsupportedError
from cutefp4.quant_plan import CastRowsPlan
from cutefp4.recipe import QuantRecipe
from tests.tiny_kernel import TinyPlan

ROOT = Path(__file__).parent.parent
TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")
TENSOR = QuantRecipe(scale_layout="compact")
RECIPES = [TOKEN, TENSOR, TOKEN.replace(scale_layout="compact", e4m3_max=256), TENSOR.replace(arithmetic="torchao")]


def oracle(x: torch.Tensor, recipe: QuantRecipe, amax=None):
    return reference.quantize(x, recipe, amax=amax)[0]


def bytes_of(operand) -> tuple[torch.Tensor, ...]:
    return operand.codes, operand.block_scales.view(torch.uint8), operand.amax


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(bytes_of(a), bytes_of(b), strict=True))


def input_matrix(rows=40, k=96, dtype=torch.float32, device="cpu") -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * k)
    return torch.randn(rows, k, generator=generator).to(dtype).to(device)


def oracle_loader(plan, compiled):
    """A "kernel" that does in torch what the real one does, with the real one's arguments."""

    def kernel(x, *arguments):
        if isinstance(plan, CastRowsPlan):
            codes, scales, amax, _, _ = arguments
            given = amax if plan.amax_given else None
        else:
            codes, scales, _, _, amax, *_ = arguments
            given = amax.view(())
        recipe = QuantRecipe(
            scaling=plan.scaling,
            arithmetic=plan.math.arithmetic,
            e4m3_max=plan.math.e4m3_max,
            scale_layout=plan.scale_layout,
        )
        result = oracle(x, recipe, given)
        codes.view(-1).copy_(result.codes.view(-1))
        scales.copy_(result.block_scales.view(torch.uint8).flatten())
        if given is None:
            amax.copy_(result.amax)

    return kernel


@pytest.fixture
def on_cpu(monkeypatch, tmp_path):
    monkeypatch.setenv("CUTEFP4_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "changed_source", lambda plan: None)
    with kernel_cache.use_loader(oracle_loader), launch.cpu_target("sm_90a", 132):
        yield


def amax_for(x: torch.Tensor, recipe: QuantRecipe) -> torch.Tensor | None:
    return x.abs().max().float() if recipe.scaling == "tensor" else None


@pytest.mark.parametrize("recipe", RECIPES, ids=QuantRecipe.describe)
def test_eager(on_cpu, recipe):
    x = input_matrix()
    result, columnwise = ops_quantize.quantize(x, recipe, amax=amax_for(x, recipe))
    assert columnwise is None
    expected = oracle(x, recipe, amax_for(x, recipe))
    assert same(result, expected) and type(result) is type(expected)
    assert vars(result).keys() == vars(expected).keys(), "an operand made without checks has every field"


@pytest.mark.parametrize("recipe", RECIPES[:2], ids=QuantRecipe.describe)
def test_full_graph_compile(on_cpu, recipe):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def double_and_quantize(x, amax):
        return ops_quantize.quantize(x * 2, recipe, amax=amax)[0]

    for rows in (40, 41):
        x = input_matrix(rows)
        amax = amax_for(x * 2, recipe)
        assert same(double_and_quantize(x, amax), oracle(x * 2, recipe, amax))


def test_operator_is_well_formed(on_cpu):
    x = input_matrix()
    expected = oracle(x, TOKEN)
    codes, scales, amax = (torch.zeros_like(t) for t in bytes_of(expected))
    arguments = (x, ops_quantize.recipe_text(TOKEN), codes, scales.flatten(), amax, None, False, "none")
    torch.library.opcheck(ops_quantize.cast_rows.operator, arguments)


def test_inference_mode(on_cpu):
    with torch.inference_mode():
        x = input_matrix()
        assert same(ops_quantize.quantize(x, TOKEN)[0], oracle(x, TOKEN))


@pytest.mark.parametrize("recipe", RECIPES, ids=QuantRecipe.describe)
def test_recipe_text_round_trip(recipe):
    assert ops_quantize.recipe_of(ops_quantize.recipe_text(recipe)) == recipe


def test_plans_are_made_once(on_cpu):
    x = input_matrix()
    ops_quantize.quantize(x, TOKEN)
    before = kernel_cache.stats()
    plans = dict(ops_quantize.plans)
    for _ in range(5):
        ops_quantize.quantize(x, TOKEN)
    after = kernel_cache.stats()
    assert (after.memory_hits - before.memory_hits, after.misses - before.misses) == (5, 0)
    assert ops_quantize.plans == plans, "a plan was made in a steady state"


def test_the_emulator_leaves_no_trace_in_what_is_stored():
    """Inside the emulator the DSL is partly substituted; the objects that the cache keeps must be a GPU's."""
    for arch in ("sm_90a", "sm_100a"):
        plain = dsl.compile_plan(TinyPlan(arch))
        with emulator.device("sm_100a"):
            inside = dsl.compile_plan(TinyPlan(arch))
        assert inside == plain
    assert not dsl.compiling_plan()


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a"])
def test_real_kernels_in_the_emulator(arch):
    """Plan, compiler, object, TVM-FFI host code and kernel, on CPU tensors: everything but the GPU."""
    with emulator.device(arch) as device:
        kernel = kernel_cache.get(TinyPlan(arch))
        x, y = torch.arange(1000, dtype=torch.float32), torch.empty(1000)
        kernel(x, y, 3.0)
        assert torch.equal(y, x * 3)
        for wrong in ((x, y[:-1], 3.0), (x.half(), y, 3.0), (x, y), (x.view(10, 100), y, 3.0)):
            with pytest.raises((ValueError, TypeError)):
                kernel(*wrong)
        for recipe in RECIPES:
            x = input_matrix(130, 96, torch.bfloat16)
            amax = amax_for(x, recipe)
            assert same(ops_quantize.quantize(x, recipe, amax=amax)[0], oracle(x, recipe, amax)), recipe.describe()
        assert device.report().launches > len(RECIPES)


def test_full_graph_compile_in_the_emulator():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def double_and_quantize(x):
        return ops_quantize.quantize(x * 2, TOKEN)[0]

    x = input_matrix()
    with emulator.device("sm_90a"):
        assert same(double_and_quantize(x), oracle(x * 2, TOKEN))


@pytest.mark.parametrize("emulated_first", [True, False])
def test_real_and_emulated_kernels_in_one_process(emulated_first):
    """The JIT opens runtime libraries for the whole process: neither side may end up with the other's."""
    script = f"""
import torch
from cutefp4 import compile, dsl, emulator
from cutefp4.emulator.dsl_host import device_tensor
from tests.tiny_kernel import TinyPlan

plan, x, y = TinyPlan("sm_90a"), torch.ones(8), torch.zeros(8)

def emulated(factor):
    with emulator.device("sm_90a"):
        compile.get(plan)(x, y, factor)
    assert (y == factor).all()

def real():
    kernel = dsl.load_object(compile.artifacts(plan).object, plan.symbol)
    try:
        kernel(device_tensor(x), device_tensor(y), 9.0)
        assert False, "the real runtime cannot launch here with CPU memory"
    except RuntimeError as error:
        assert "cuda" in str(error).lower(), error

if {emulated_first}:
    emulated(2.0)
if not torch.cuda.is_available():
    real()
emulated(3.0)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_emulator_backend():
    x = input_matrix()
    assert same(ops.OPS["emulator"]["quantize"](x, TOKEN)[0], oracle(x, TOKEN))
    with emulator.device("sm_100a") as device:
        assert same(ops.OPS["emulator"]["quantize"](x, TOKEN)[0], oracle(x, TOKEN))
        assert device.report().launches == 1, "the device that is active serves the call"


def test_without_a_target_cpu_tensors_are_refused():
    with pytest.raises(UnsupportedError, match="CPU tensors inside the emulator"):
        ops_quantize.quantize(input_matrix(), TOKEN)


gpu = pytest.mark.gpu


def cuda_device(index: int = 0) -> torch.device:
    return torch.device("cuda", index)


@gpu
@pytest.mark.parametrize("recipe", RECIPES, ids=QuantRecipe.describe)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_device_equals_the_oracle(recipe, dtype):
    for rows, k in ((1, 16), (40, 96), (130, 4096), (1000, 6144)):
        x = input_matrix(rows, k, dtype, cuda_device())
        amax = amax_for(x, recipe)
        assert same(ops_quantize.quantize(x, recipe, amax=amax)[0], oracle(x, recipe, amax)), (rows, k)


@gpu
def test_side_stream():
    """The launch goes to torch's current stream: it waits for what is queued there, and nothing else does."""
    x = torch.zeros(4096, 4096, device=cuda_device())
    fresh = input_matrix(4096, 4096, device=cuda_device())
    expected = oracle(fresh, TOKEN)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x.copy_(fresh)
        result = ops_quantize.quantize(x, TOKEN)[0]
    side.synchronize()
    assert same(result, expected)


@gpu
def test_graph_capture_of_a_hundred_calls():
    inputs = [input_matrix(64, 512 + 16 * i, device=cuda_device()) for i in range(10)]
    for x in inputs:
        ops_quantize.quantize(x, TOKEN)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [ops_quantize.quantize(x, TOKEN)[0] for _ in range(10) for x in inputs]
    for x in inputs:
        x.mul_(3.0)
    graph.replay()
    torch.cuda.synchronize()
    for call, result in enumerate(results):
        assert same(result, oracle(inputs[call % 10], TOKEN)), call


@gpu
def test_threads_with_their_own_streams():
    x = [input_matrix(128, 1024 + 16 * i, device=cuda_device()) for i in range(4)]
    expected = [oracle(t, TOKEN) for t in x]
    failures = []

    def work(index):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(50):
                result = ops_quantize.quantize(x[index], TOKEN)[0]
                stream.synchronize()
                if not same(result, expected[index]):
                    failures.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    torch.cuda.synchronize()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@gpu
def test_compiled_on_the_device():
    @torch.compile(fullgraph=True)
    def double_and_quantize(x):
        return ops_quantize.quantize(x * 2, TOKEN)[0]

    x = input_matrix(256, 1024, torch.bfloat16, cuda_device())
    assert same(double_and_quantize(x), oracle(x * 2, TOKEN))


@gpu
def test_inference_mode_on_the_device():
    with torch.inference_mode():
        x = input_matrix(device=cuda_device())
        assert same(ops_quantize.quantize(x, TOKEN)[0], oracle(x, TOKEN))


@gpu
def test_device_that_is_not_current():
    if torch.cuda.device_count() < 2:
        x = input_matrix(device=cuda_device())
        assert ops_quantize.quantize(x, TOKEN)[0].codes.device == cuda_device()
        return
    x = input_matrix(device=cuda_device(1))
    result = ops_quantize.quantize(x, TOKEN)[0]
    assert result.codes.device == cuda_device(1) and torch.cuda.current_device() == 0
    assert same(result, oracle(x, TOKEN))


@gpu
def test_tiny_kernel_on_the_device():
    kernel = kernel_cache.get(TinyPlan(launch.arch_of(cuda_device())))
    x = torch.arange(1000, dtype=torch.float32, device=cuda_device())
    y = torch.empty_like(x)
    kernel(x, y, 3.0)
    assert torch.equal(y, x * 3)
    with pytest.raises(ValueError):
        kernel(x, y[:-1], 3.0)
    with pytest.raises(ValueError):
        kernel(x.half(), y, 3.0)
