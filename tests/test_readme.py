"""README tells the truth: its example runs, its tables and its picture of the tree fit the tree."""

import contextlib
import io
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

import cutefp4
from cutefp4 import backend, cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def test_example_runs_and_prints_what_its_comment_says():
    (example,) = blocks("python")
    assert len(example.splitlines()) <= 12
    torch.manual_seed(0)
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(compile(example, "README.md", "exec"), names)
    assert names["y"].shape == (256, 384)
    promised = float(re.search(r"about ([0-9.]+)", example)[1])
    assert float(re.search(r"tensor\(([0-9.]+)", printed.getvalue())[1]) == pytest.approx(promised, abs=0.01)
    assert repr(names["qx"]) in printed.getvalue()


def test_two_commands_on_the_first_screen():
    commands = blocks("sh")
    assert len(commands) == 2 and all(len(c.splitlines()) == 1 for c in commands)
    assert [c.split("&&")[-1].split()[0] for c in commands] == ["cutefp4", "pytest"]
    assert README.index(commands[1]) < README.index("\n## ")
    assert all("torch==2.13.0" in c for c in commands)


def test_ci_runs_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    pipeline = re.search(r"sed -n '[^']*'.*", script.read_text())[0].rstrip(")").replace("$root", str(ROOT))
    found = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, check=True).stdout
    assert found == blocks("sh")[1]


def test_operations_and_backends_are_all_listed():
    state, operations = README.split("| operation |")
    for name in backend.BACKENDS:
        assert f"| `{name}` |" in state and f" {name} |" in operations.splitlines()[0]
    for name in backend.OPERATIONS:
        assert f"| `{name}`" in operations and hasattr(cutefp4, name)


def test_every_command_is_listed():
    names = {c.name or c.callback.__name__ for c in cli.app.registered_commands}
    names |= {g.name or g.typer_instance.info.name for g in cli.app.registered_groups}
    rows = {
        line.split("`")[1].removeprefix("cutefp4 ") for line in README.splitlines() if line.startswith("| `cutefp4 ")
    }
    assert rows == names and len(names) >= 2


def picture() -> dict[str, str]:
    """Paths of the tree picture, and what is said about them."""
    (tree,) = (b for b in blocks("") if b.startswith("cutefp4/"))
    found, folder = {}, ""
    for line in tree.splitlines():
        names, text = re.split(r"  +", line.strip(), maxsplit=1)
        folder = names if not line.startswith(" ") else folder
        found.update({name if name == folder else folder + name: text for name in names.split(", ")})
    return found


def test_picture_shows_what_exists():
    for path in picture():
        assert (ROOT / path).exists(), path


def test_picture_shows_every_module():
    shown = picture()
    modules = {f"cutefp4/{p.name}{'/' if p.is_dir() else ''}" for p in (ROOT / "cutefp4").iterdir()}
    modules -= {"cutefp4/__init__.py", "cutefp4/__pycache__/"}
    assert modules <= set(shown), modules - set(shown)


def test_glossary_is_short():
    rows = [line for line in README.split("## Glossary")[1].splitlines() if line.startswith("| ")]
    assert 10 <= len(rows) - 1 <= 20


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
