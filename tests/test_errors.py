"""Every mistake is refused before anything runs, with what was given, what is accepted and what to do."""

import pytest
import torch

import cutefp4
from cutefp4 import QuantRecipe, backend
from cutefp4 import nn as cutefp4_nn
from cutefp4.errors import (
    BackendUnavailableError,
    CheckpointError,
    CuteFP4Error,
    NonFiniteError,
    OperandError,
    RecipeError,
    UnsupportedError,
)
from tests.cases import end_offsets, matrix

TOKEN = QuantRecipe(scaling="token", arithmetic="per_token")


def quantized(rows=32, cols=64, recipe=QuantRecipe(), **options):  # noqa: B008 - frozen
    return cutefp4.quantize(matrix(rows, cols), recipe, **options)


def grouped(recipe=QuantRecipe(), sizes=(16, 0, 32), cols=64, **options):  # noqa: B008 - frozen
    return cutefp4.quantize_grouped(matrix(sum(sizes), cols), end_offsets(sizes), recipe, **options)


def experts(count=3, rows=48, cols=64, **options):
    return cutefp4.quantize(torch.stack([matrix(rows, cols, seed=i) for i in range(count)]), **options)


def both(recipe, other):
    """A tensor whose copies come from two recipes."""
    return cutefp4.NVFP4Tensor(
        quantized(recipe=recipe).rowwise, quantized(recipe=other, rowwise=False, columnwise=True).columnwise
    )


def with_inf():
    x = matrix(32, 64)
    x[3, 5] = torch.inf
    return x


X = matrix(32, 64)
STOCHASTIC = QuantRecipe(rounding="stochastic")
OFFS = end_offsets([16, 16])

# call, exception, words that the message must hold: given | accepted | to fix
CASES = {
    # dtype
    "int matrix": (lambda: cutefp4.quantize(X.int()), OperandError, "torch.int32|bfloat16|x.bfloat16()"),
    "float64 matrix": (lambda: cutefp4.quantize(X.double()), OperandError, "torch.float64|float16|convert"),
    "a list": (lambda: cutefp4.quantize([1.0]), OperandError, "list|torch.Tensor|pass"),
    "quantised twice": (lambda: cutefp4.quantize(quantized()), OperandError, "NVFP4Tensor|dense|unquantised"),
    "out_dtype": (
        lambda: cutefp4.gemm(quantized(), quantized(), out_dtype=torch.int8),
        OperandError,
        "torch.int8|bfloat16|choose",
    ),
    "dequantize dtype": (
        lambda: cutefp4.dequantize(quantized(), torch.int8),
        OperandError,
        "torch.int8|float32|convert",
    ),
    "dequantize dense": (lambda: cutefp4.dequantize(X), OperandError, "Tensor|NVFP4Tensor|cutefp4.quantize"),
    # shape
    "vector": (lambda: cutefp4.quantize(X[0]), OperandError, "(64,)|(R, C)|reshape"),
    "empty": (lambda: cutefp4.quantize(X[:0]), OperandError, "(0, 64)|elements|do not"),
    "K of 40": (lambda: cutefp4.quantize(matrix(32, 40)), OperandError, "K = 40|multiple of 16|zeros to 48"),
    "columnwise K of 33": (
        lambda: cutefp4.quantize(matrix(33, 64), columnwise=True),
        OperandError,
        "K = 33|multiple of 16|zeros to 48",
    ),
    "odd width to de-interleave": (
        lambda: cutefp4.deinterleave_quantize(X, interleave=24),
        OperandError,
        "(32, 64) with interleave=24|multiple of 48|side by side",
    ),
    "RMSNorm of 40 columns": (
        lambda: cutefp4.rmsnorm_quantize(matrix(4, 40), torch.ones(40)),
        OperandError,
        "(4, 40)|N a multiple of 16|pad N",
    ),
    "RMSNorm weight": (
        lambda: cutefp4.rmsnorm_quantize(X, torch.ones(32)),
        OperandError,
        "weight of torch.float32 and shape (32,)|(64,)|each column",
    ),
    "RMSNorm residual": (
        lambda: cutefp4.rmsnorm_quantize(X, torch.ones(64), residual=X.float()),
        OperandError,
        "residual of torch.float32|torch.bfloat16 (32, 64)|x's dtype",
    ),
    "RMSNorm eps": (
        lambda: cutefp4.rmsnorm_quantize(X, torch.ones(64), eps=-1e-6),
        OperandError,
        "eps=-1e-06|>= 0|1e-6",
    ),
    "odd SwiGLU width": (lambda: cutefp4.swiglu_quantize(matrix(4, 63)), OperandError, "(4, 63)|(M, 2I)|side by side"),
    "SwiGLU interleave": (
        lambda: cutefp4.swiglu_quantize(matrix(4, 64), interleave=0),
        OperandError,
        "interleave=0|positive|chunk",
    ),
    "SwiGLU I of 24": (lambda: cutefp4.swiglu_quantize(matrix(4, 48)), OperandError, "K = 24|multiple of 16|32"),
    "K differs": (
        lambda: cutefp4.gemm(quantized(), quantized(cols=96)),
        OperandError,
        "K = 64 and 96|the same K|check the layout",
    ),
    "batch differs": (
        lambda: cutefp4.gemm(experts(2), experts(3)),
        OperandError,
        "(2,) and B of batch (3,)|the same batch|matrix by matrix",
    ),
    "out of another shape": (
        lambda: cutefp4.gemm(quantized(), quantized(), out=torch.empty(32, 33)),
        OperandError,
        "(32, 33)|(32, 32)|torch.empty(32, 32)",
    ),
    "out of another dtype": (
        lambda: cutefp4.gemm(quantized(), quantized(), out=torch.empty(32, 32), out_dtype=torch.bfloat16),
        OperandError,
        "torch.float32|the same|leave out_dtype out",
    ),
    "out of strange dtype": (
        lambda: cutefp4.gemm(quantized(), quantized(), out=torch.empty(32, 32, dtype=torch.int8)),
        OperandError,
        "torch.int8|float32|allocate",
    ),
    "out not contiguous": (
        lambda: cutefp4.gemm(quantized(), quantized(), out=torch.empty(32, 32).t()),
        OperandError,
        "strides (1, 32)|contiguous|torch.empty",
    ),
    "accumulate into nothing": (
        lambda: cutefp4.gemm(quantized(), quantized(), accumulate=True),
        OperandError,
        "accumulate=True without out|out|pass out=",
    ),
    "bias length": (
        lambda: cutefp4.gemm(quantized(), quantized(), bias=torch.zeros(31)),
        OperandError,
        "(31,)|(32,)|per column",
    ),
    "bias dtype": (
        lambda: cutefp4.gemm(quantized(), quantized(), bias=torch.zeros(32).int()),
        OperandError,
        "torch.int32|bfloat16|per column",
    ),
    "amax shape": (
        lambda: cutefp4.quantize(X, TOKEN, amax=torch.ones(())),
        OperandError,
        "shape () with scaling='token'|(32,)|leave amax out",
    ),
    "amax vector for tensor scaling": (
        lambda: cutefp4.quantize(X, amax=torch.ones(32)),
        OperandError,
        "shape (32,) with scaling='tensor'|shape ()|raw maximum",
    ),
    "amax dtype": (
        lambda: cutefp4.quantize(X, amax=torch.ones((), dtype=torch.float64)),
        OperandError,
        "torch.float64|float32|raw maximum",
    ),
    "columnwise_amax shape": (
        lambda: cutefp4.quantize(X, TOKEN, columnwise=True, columnwise_amax=torch.ones(32)),
        OperandError,
        "columnwise_amax|(64,)|leave columnwise_amax out",
    ),
    # device
    "amax device": (
        lambda: cutefp4.quantize(X, amax=torch.ones((), device="meta")),
        OperandError,
        "amax on meta|cpu|amax.to(x.device)",
    ),
    "offs device": (
        lambda: cutefp4.quantize_grouped(X, OFFS.to("meta")),
        OperandError,
        "offs on meta|cpu|offs.to(x.device)",
    ),
    "meta matrix": (lambda: cutefp4.quantize(X.to("meta")), UnsupportedError, "meta|CPU or CUDA|backend='reference'"),
    "operands apart": (
        lambda: cutefp4.gemm(quantized(), quantized().to("meta")),
        OperandError,
        "A on cpu and B on meta|one device|.to(device)",
    ),
    "bias device": (
        lambda: cutefp4.gemm(quantized(), quantized(), bias=torch.zeros(32, device="meta")),
        OperandError,
        "bias on meta|cpu|move",
    ),
    "copies apart": (
        lambda: cutefp4.NVFP4Tensor(
            quantized().rowwise, quantized(rowwise=False, columnwise=True).columnwise.to("meta")
        ),
        OperandError,
        "on cpu and a columnwise copy on meta|one device|.to(device)",
    ),
    # copies
    "no copy asked": (
        lambda: cutefp4.quantize(X, rowwise=False),
        OperandError,
        "rowwise=False|at least one|rowwise=True",
    ),
    "no copy given": (lambda: cutefp4.NVFP4Tensor(), OperandError, "neither|at least one|quantise"),
    "TN without rowwise": (
        lambda: cutefp4.gemm(quantized(rowwise=False, columnwise=True), quantized()),
        OperandError,
        "A without a rowwise copy|layout TN|rowwise=True",
    ),
    "NN without columnwise": (
        lambda: cutefp4.gemm(quantized(), quantized(), layout="NN"),
        OperandError,
        "B without a columnwise copy|layout NN|columnwise=True",
    ),
    "NT without columnwise": (
        lambda: cutefp4.gemm(quantized(), quantized(), layout="NT"),
        OperandError,
        "A without a columnwise copy|layout NT|columnwise=True",
    ),
    "dequantise transformed": (
        lambda: quantized(recipe=QuantRecipe(rht="bf16"), rowwise=False, columnwise=True).dequantize(),
        UnsupportedError,
        "Hadamard|rowwise copy|rowwise=True",
    ),
    # metadata
    "copies of mixed scaling": (
        lambda: both(QuantRecipe(), TOKEN),
        OperandError,
        "scaling='tensor' and a columnwise copy with scaling='token'|same scaling|one recipe",
    ),
    "copies of mixed e4m3_max": (
        lambda: both(QuantRecipe(), QuantRecipe(e4m3_max=256)),
        OperandError,
        "e4m3_max=448 and a columnwise copy with e4m3_max=256|same e4m3_max|one recipe",
    ),
    "copies of mixed layout": (
        lambda: both(QuantRecipe(), QuantRecipe(scale_layout="compact")),
        OperandError,
        "scale_layout='tiled'|same scale_layout|one recipe",
    ),
    "copies of other sizes": (
        lambda: cutefp4.NVFP4Tensor(quantized().rowwise, quantized(rows=48, rowwise=False, columnwise=True).columnwise),
        OperandError,
        "32x64 and a columnwise copy of 64x48|64x32|one call",
    ),
    "transformed rowwise copy": (
        lambda: cutefp4.NVFP4Tensor(quantized(recipe=QuantRecipe(rht="bf16"), columnwise=True).columnwise),
        OperandError,
        "rht=0xd7e8|columnwise copy only|as columnwise",
    ),
    "one side transformed": (
        lambda: cutefp4.gemm(
            quantized(recipe=QuantRecipe(rht="bf16"), columnwise=True), quantized(columnwise=True), layout="NT"
        ),
        OperandError,
        "A with rht=0xd7e8 and B without|the same sign mask|same rht",
    ),
    "two sign masks": (
        lambda: cutefp4.gemm(
            quantized(recipe=QuantRecipe(rht="bf16"), columnwise=True),
            quantized(recipe=QuantRecipe(rht="bf16", rht_sign_mask=1), columnwise=True),
            layout="NT",
        ),
        OperandError,
        "0xd7e8 and B with rht=0x0001|the same sign mask|rht_sign_mask",
    ),
    # arguments
    "layout": (lambda: cutefp4.gemm(quantized(), quantized(), layout="TT"), OperandError, "'TT'|'NN'|forward"),
    "dense operand": (lambda: cutefp4.gemm(X, quantized()), OperandError, "A of type Tensor|NVFP4Tensor|quantize"),
    "activation": (
        lambda: cutefp4.gemm(quantized(), quantized(), activation="tanh"),
        OperandError,
        "'tanh'|'gelu'|another activation",
    ),
    "training recipe": (
        lambda: cutefp4.quantize(X, cutefp4.named_recipe("te")),
        OperandError,
        "TrainingRecipe|QuantRecipe|.x, .w or .dy",
    ),
    "recipe name": (lambda: cutefp4.named_recipe("nvidia"), RecipeError, "'nvidia'|per_token_4over6|choose"),
    "recipe value": (lambda: QuantRecipe(scaling="row"), RecipeError, "'row'|'token'|choose"),
    "recipe without meaning": (
        lambda: QuantRecipe(rht="bf16", block="2d"),
        RecipeError,
        "block='2d'|block='1d'|transposes",
    ),
    "seed missing": (lambda: cutefp4.quantize(X, STOCHASTIC), OperandError, "seed=None|integers|pass both"),
    "seed of a wrong type": (
        lambda: cutefp4.quantize(X, STOCHASTIC, seed=1.5, offset=0),
        OperandError,
        "seed=1.5|int64|int(seed)",
    ),
    "NaN": (
        lambda: cutefp4.quantize(with_inf(), check_finite=True),
        NonFiniteError,
        "1 NaN or Inf of 2048 elements, the first, inf, at (3, 5)|finite|check_finite=False",
    ),
    # groups
    "offs dtype": (
        lambda: cutefp4.quantize_grouped(X, OFFS.long()),
        OperandError,
        "torch.int64|int32|cumsum",
    ),
    "offs shape": (lambda: cutefp4.quantize_grouped(X, OFFS.view(1, 2)), OperandError, "(1, 2)|(E,)|cumsum"),
    "grouped batch": (lambda: cutefp4.quantize_grouped(X[None], OFFS), OperandError, "(1, 32, 64)|(T, C)|flatten"),
    "grouped without copies": (
        lambda: cutefp4.quantize_grouped(X, OFFS, rowwise=False),
        OperandError,
        "rowwise=False|at least one|rowwise=True",
    ),
    "ungrouped A": (
        lambda: cutefp4.grouped_gemm(quantized(), experts()),
        OperandError,
        "NVFP4Tensor in grouped_gemm|a grouped tensor|quantize_grouped",
    ),
    "B of too few groups": (
        lambda: cutefp4.grouped_gemm(grouped(), experts(2)),
        OperandError,
        "3 groups and B with 2 groups|3 groups on both|(E, N, K)",
    ),
    "B without groups": (
        lambda: cutefp4.grouped_gemm(grouped(), quantized()),
        OperandError,
        "no batch axis|3 groups|(E, N, K)",
    ),
    "grouped K differs": (
        lambda: cutefp4.grouped_gemm(grouped(), experts(cols=96)),
        OperandError,
        "K = 64 and B with K = 96|the same K|check the layout",
    ),
    "wrong grouped operand": (
        lambda: cutefp4.grouped_gemm(grouped(columnwise=True).columnwise, experts(cols=48)),
        OperandError,
        "A grouped along k|groups along rows|NVFP4GroupedTensor",
    ),
    "bias of a weight gradient": (
        lambda: cutefp4.grouped_gemm(
            grouped(columnwise=True), grouped(columnwise=True), layout="NT", bias=torch.zeros(64)
        ),
        OperandError,
        "bias with layout='NT'|no bias|leave bias out",
    ),
    "other offs": (
        lambda: cutefp4.grouped_gemm(grouped(), experts(), offs=OFFS),
        OperandError,
        "(2,)|(3,)|leave offs out",
    ),
    # backends
    "backend name": (lambda: cutefp4.quantize(X, backend="cuda"), OperandError, "'cuda'|reference|choose"),
    "kernels for CPU tensors": (
        lambda: cutefp4.quantize(X, backend="sm90"),
        BackendUnavailableError,
        "'sm90' with tensors on cpu|CUDA tensors|name no backend",
    ),
    "emulator for other tensors": (
        lambda: backend.choose(torch.device("cuda"), "emulator"),
        BackendUnavailableError,
        "cuda|CPU tensors|.cpu()",
    ),
    "sparse matrix": (lambda: cutefp4.quantize(X.to_sparse()), OperandError, "sparse_coo|dense|to_dense()"),
    "groups of nothing": (lambda: cutefp4.quantize_grouped(None, OFFS), OperandError, "NoneType|torch.Tensor|pass"),
    "groups of a batch": (lambda: cutefp4.quantize_grouped(X[None], OFFS), OperandError, "(1, 32|(T, C)|flatten"),
    "layouts": (lambda: cutefp4.gemm(quantized(), quantized(), layout=["TN"]), OperandError, "['TN']|'TN'|forward"),
    "out with a gradient": (
        lambda: cutefp4.gemm(quantized(), quantized(), out=torch.zeros(32, 32, requires_grad=True)),
        OperandError,
        "requires grad|without|no_grad()",
    ),
    "offs as a list": (
        lambda: cutefp4.grouped_gemm(grouped(), experts(), offs=[16, 16, 48]),
        OperandError,
        "list|torch.int32 (3,)|leave offs out",
    ),
    "recipe by a number": (lambda: cutefp4.named_recipe(["te"]), RecipeError, "['te']|per_token|choose"),
    "layer with one tensor's recipe": (
        lambda: cutefp4_nn.Linear(32, 32, recipe=QuantRecipe()),
        RecipeError,
        "QuantRecipe|per_token|choose",
    ),
    "a list in a file": (
        lambda: cutefp4.save_safetensors("x.safetensors", [X]),
        CheckpointError,
        "list|a mapping|(path, {...})",
    ),
    # the tensor subclass
    "matmul": (lambda: quantized() @ X.t(), UnsupportedError, "aten.mm|cutefp4.gemm|dequantize()"),
    "cast": (lambda: quantized().to(torch.float32), UnsupportedError, "torch.float32|a device|dequantize"),
    "copy_ of other metadata": (
        lambda: quantized(columnwise=True).copy_(quantized()),
        OperandError,
        "copy_|same copies|target's recipe",
    ),
    "copy_ of a dense matrix": (lambda: quantized().copy_(X), OperandError, "copy_ of a Tensor|NVFP4Tensors|quantise"),
}


@pytest.mark.parametrize("name", CASES)
def test_message_names_given_accepted_and_fix(name):
    call, exception, words = CASES[name]
    with pytest.raises(exception) as caught:
        call()
    error = caught.value
    assert type(error) is exception
    for part, word in zip((error.given, error.accepted, error.fix), words.split("|"), strict=True):
        assert word in part, f"{word!r} not in {part!r}"
    assert str(error) == f"{error.given}; accepted: {error.accepted}; to fix: {error.fix}"


@pytest.mark.parametrize("name", ["gemm", "grouped_gemm", "quantize", "quantize_grouped", "rmsnorm_quantize"])
def test_missing_kernel_names_what_the_backend_has(name, monkeypatch):
    monkeypatch.setattr(backend, "kernel_operations", lambda _: {"dequantize": None})
    with pytest.raises(UnsupportedError) as caught:
        backend.run(name, "sm90")
    assert str(caught.value) == (
        f"{name} on backend 'sm90'; accepted: 'sm90' has dequantize; "
        "to fix: pass backend='reference' (plain PyTorch, slow, any device)"
    )


def test_every_error_is_a_cutefp4_error_and_what_a_caller_expects():
    from cutefp4 import errors

    classes = [c for c in vars(errors).values() if isinstance(c, type) and c is not CuteFP4Error]
    assert len(classes) >= 10
    for cls in classes:
        assert issubclass(cls, CuteFP4Error)
        assert issubclass(cls, (ValueError, RuntimeError)), cls


def test_non_finite_values_follow_the_rule_without_check_finite():
    """NaN encodes to +6 and does not enter amax; Inf saturates and gives an encode scale of 1."""
    x = torch.ones(1, 16)
    x[0, 3] = torch.nan
    q = cutefp4.quantize(x)
    assert q.rowwise.amax == 1
    assert q.dequantize(torch.float32)[0, 3] == 1  # the code of +6 in a block whose largest value is 1
    x[0, 3] = -torch.inf
    assert cutefp4.quantize(x).rowwise.codes[0, 1] >> 4 == 15
