"""Every operation in a CUDA graph whose inputs change between replays, and under torch.compile."""

import pytest
import torch

from cutefp4 import compile as kernel_cache
from cutefp4 import launch, ops_quantize, reference
from cutefp4.recipe import QuantRecipe
from tests import cases
from tests.compare import assert_same_bits, assert_same_operand

TE = QuantRecipe()
TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")
RANDOM = TE.replace(rht="fp32", rounding="stochastic")
gpu = pytest.mark.gpu


def captured(work):
    """Run once, capture, and return (graph, results)."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    return graph, results


def assert_same_pair(actual, expected) -> None:
    for got, want in zip(actual, expected, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert_same_operand(got, want)


@gpu
@pytest.mark.parametrize("recipe", [TE, TOKEN, RANDOM, TE.replace(block="2d")], ids=QuantRecipe.describe)
def test_graph_of_both_copies(recipe):
    x = cases.matrix(144, 208, device="cuda")
    seed, offset = torch.tensor(5, device="cuda"), torch.tensor(7, device="cuda")
    options = {"columnwise": True, "seed": seed, "offset": offset}
    graph, results = captured(lambda: ops_quantize.quantize(x, recipe, **options))
    for step in range(3):
        x.copy_(cases.matrix(144, 208, seed=step + 1, device="cuda"))
        offset.add_(reference.RSR_OFFSETS_PER_CALL)
        graph.replay()
        torch.cuda.synchronize()
        assert_same_pair(results, reference.quantize(x, recipe, **options))


@gpu
def test_graph_of_groups_with_moving_offsets():
    x = cases.matrix(300, 80, device="cuda")
    offs = cases.end_offsets([100, 50, 150], "cuda")
    graph, results = captured(lambda: ops_quantize.quantize_grouped(x, offs, TOKEN, columnwise=True))
    for sizes in ([0, 200, 17], [3, 0, 0], [64, 128, 108]):
        offs.copy_(cases.end_offsets(sizes, "cuda"))
        graph.replay()
        torch.cuda.synchronize()
        assert_same_pair(results, reference.quantize_grouped(x, offs, TOKEN, columnwise=True))


@gpu
def test_graph_of_swiglu_and_dequantize():
    x = cases.matrix(40, 192, device="cuda")

    def work():
        operand = ops_quantize.swiglu_quantize(x, TOKEN, 8)[0]
        return operand, ops_quantize.dequantize(operand, torch.bfloat16)

    graph, (operand, values) = captured(work)
    x.copy_(cases.matrix(40, 192, seed=3, device="cuda"))
    graph.replay()
    torch.cuda.synchronize()
    assert_same_bits(values, reference.dequantize(operand, torch.bfloat16))
    assert_same_pair((operand,), work()[:1])


@gpu
@pytest.mark.parametrize("recipe", [TE, TOKEN], ids=QuantRecipe.describe)
def test_graph_of_rmsnorm_and_deinterleaving(recipe):
    x, residual, weight = (cases.matrix(40, 192, seed=i, device="cuda") for i in range(3))

    def work():
        (operand, _), total, _ = ops_quantize.rmsnorm_quantize(x, weight[0], recipe, residual=residual)
        return operand, ops_quantize.deinterleave_quantize(x, recipe, 8)[0], total

    graph, results = captured(work)
    x.copy_(cases.matrix(40, 192, seed=7, device="cuda"))
    graph.replay()
    torch.cuda.synchronize()
    (operand, _), total, _ = reference.rmsnorm_quantize(x, weight[0], recipe, residual=residual)
    assert_same_pair(results[:2], (operand, reference.deinterleave_quantize(x, recipe, 8)[0]))
    assert_same_bits(results[2], total)


def round_trip(x, offs):
    """All operations in one function that torch.compile takes whole."""
    row, column = ops_quantize.quantize(x * 2, TOKEN, columnwise=True)
    seeds = {"seed": 1, "offset": 2}
    tensor, transformed = ops_quantize.quantize(x, RANDOM, columnwise=True, **seeds)
    grouped, ragged = ops_quantize.quantize_grouped(x, offs, TOKEN, columnwise=True)
    gated = ops_quantize.swiglu_quantize(x, TE, 8)[0]
    sorted_columns = ops_quantize.deinterleave_quantize(x, TOKEN, 8)[0]
    (normed, _), total, y = ops_quantize.rmsnorm_quantize(x, x[0], TE, residual=x, keep_normed=True)
    fused = ops_quantize.rmsnorm_quantize(total, y[1], TOKEN)[0][0]
    values = ops_quantize.dequantize(row, torch.bfloat16) + 1
    return [row, column, tensor, transformed, grouped, ragged, gated, sorted_columns, normed, fused], values


def test_full_graph_traces_without_a_gpu(monkeypatch):
    """The tracing alone: kernels that do nothing stand in for the real ones."""
    with kernel_cache.use_loader(lambda plan, compiled: lambda *tensors: None), launch.cpu_target("sm_90a", 132):
        traced = torch.compile(round_trip, fullgraph=True, backend="aot_eager")
        operands, values = traced(cases.matrix(32, 64), cases.end_offsets([10, 22]))
    assert [o.rows for o in operands] == [32, 64, 32, 64, 32, 64, 32, 32, 32, 32] and values.shape == (32, 64)


@gpu
def test_full_graph_on_the_device():
    x, offs = cases.matrix(32, 64, device="cuda"), cases.end_offsets([10, 22], "cuda")
    operands, values = torch.compile(round_trip, fullgraph=True)(x, offs)
    expected, expected_values = round_trip(x, offs)
    assert_same_pair(operands, expected)
    assert_same_bits(values, expected_values)
