"""What can go wrong around the compile cache, with a stand-in for the compiler: never a crash, never a wrong kernel.

The stand-in makes an "object" that names its plan, and the stand-in loader returns a function that says which object it
was loaded from; so a wrong kernel would be seen. Compiles are counted across processes in a file.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import cutefp4.kernels
import pytest

from cutefp4 import compile as kernel_cache
from cutefp4 import disk_cache, dsl, fingerprint
from cutefp4.disk_cache import CORRUPT, META, entries
from cutefp4.dsl import CompiledObject
from cutefp4.errors import CacheError, JitDisabledError
from cutefp4.plan import Plan
from tests.tiny_kernel import TinyPlan

VERSION = ["1.0"]


def stand_in_compiler(plan: Plan) -> CompiledObject:
    log = os.open(os.environ["COMPILE_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(log, f"{plan.key}\n".encode())
    os.close(log)
    time.sleep(float(os.environ.get("COMPILE_SECONDS", "0")))
    return CompiledObject(f"{VERSION[0]} {plan.key} ".encode() * 1000, f"ptx of {plan.key}", b"\x7fELF" * 500, ("k",))


def stand_in_loader(data: bytes, symbol: str):
    content = data.decode().split()[:2]
    return lambda: content


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch, tmp_path):
    monkeypatch.setenv("CUTEFP4_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COMPILE_LOG", str(tmp_path / "log"))
    monkeypatch.delenv("CUTEFP4_JIT", raising=False)
    monkeypatch.delenv("CUTEFP4_DUMP", raising=False)
    monkeypatch.setattr(dsl, "compile_plan", stand_in_compiler)
    monkeypatch.setattr(dsl, "load_object", stand_in_loader)
    monkeypatch.setattr(dsl, "versions", lambda: (f"dsl {VERSION[0]}",))
    monkeypatch.setattr(kernel_cache.cubin, "kernels", lambda data: ())
    # The tree may be edited while tests run; what that does has tests of its own.
    monkeypatch.setattr(fingerprint, "_kernel_modules", lambda: [])
    monkeypatch.setattr(fingerprint, "changed_source", lambda plan: None)
    forget()
    yield
    VERSION[0] = "1.0"
    forget()


_hashed_once = (fingerprint._sources, fingerprint._fingerprint)


def forget() -> None:
    """As in a new process."""
    kernel_cache.reset()
    for function in _hashed_once:
        function.cache_clear()


def compiles() -> int:
    log = Path(os.environ["COMPILE_LOG"])
    return len(log.read_text().splitlines()) if log.exists() else 0


def check(plan: Plan) -> None:
    """The kernel that `get` returns is this plan's, of this version of the DSL."""
    assert kernel_cache.get(plan)() == [VERSION[0], plan.key]


def in_child(work) -> int:
    """Run `work` in a forked process; its wait status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    return os.waitpid(child, 0)[1]


@contextlib.contextmanager
def one_memory_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = [str(w.message) for w in caught]
    assert len(texts) == 1 and "in memory only" in texts[0], texts


PLAN = TinyPlan("sm_90a")


def test_memory_then_disk_then_compiler():
    check(PLAN)
    check(PLAN)
    assert (kernel_cache.stats().misses, kernel_cache.stats().compiles) == (1, 1)
    assert kernel_cache.stats().memory_hits == 1
    forget()
    check(PLAN)
    assert (kernel_cache.stats().disk_hits, kernel_cache.stats().compiles, compiles()) == (1, 0, 1)


def test_memory_hit_hashes_nothing(monkeypatch):
    check(PLAN)

    def forbidden(*args):
        raise AssertionError("a memory hit must do no hashing and touch no disk")

    for module, name in ((kernel_cache.hashlib, "sha256"), (disk_cache.hashlib, "sha256"), (fingerprint, "of")):
        monkeypatch.setattr(module, name, forbidden)
    monkeypatch.setattr(kernel_cache.env, "read", forbidden)
    assert kernel_cache.get(PLAN)() == [VERSION[0], PLAN.key]


@pytest.mark.parametrize("stop_at", range(1, 10))
def test_killed_in_the_middle_of_a_write(stop_at, monkeypatch):
    """SIGKILL before and in the middle of each file, and right before the rename."""

    def work():
        steps = [0]

        def die_at(step: int) -> None:
            steps[0] += 1
            if steps[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)

        def write(path: Path, data: bytes) -> None:
            die_at(stop_at)
            path.write_bytes(data[: len(data) // 2])
            die_at(stop_at)
            path.write_bytes(data)

        rename = os.rename
        monkeypatch.setattr(disk_cache, "_write_synced", write)
        monkeypatch.setattr(disk_cache.os, "rename", lambda a, b: (die_at(stop_at), rename(a, b)))
        kernel_cache.get(PLAN)

    assert os.WTERMSIG(in_child(work)) == signal.SIGKILL
    assert entries(Path(os.environ["CUTEFP4_CACHE_DIR"])) == []
    check(PLAN)
    assert compiles() == 2
    forget()
    check(PLAN)
    assert compiles() == 2, "the second process stored it"
    assert not list(Path(os.environ["CUTEFP4_CACHE_DIR"]).glob("**/tmp-*"))


def test_eight_processes_and_twenty_keys(monkeypatch):
    """Every process gets every kernel, in its own order; each key is compiled once in all."""
    monkeypatch.setenv("COMPILE_SECONDS", "0.01")
    plans = [TinyPlan("sm_90a", unused=i) for i in range(20)]

    def work(first: int):
        for plan in plans[first:] + plans[:first]:
            check(plan)

    children = []
    for process in range(8):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(process * 5 % 20)
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert compiles() == 20
    assert len(entries(Path(os.environ["CUTEFP4_CACHE_DIR"]))) == 20


@pytest.mark.parametrize("name", ["kernel.o", "kernel.ptx", "kernel.cubin", META])
@pytest.mark.parametrize("damage", ["truncated", "bit-flipped", "zero-length", "missing"])
def test_damaged_entry_is_rebuilt(name, damage):
    check(PLAN)
    ((path, _, _),) = entries(Path(os.environ["CUTEFP4_CACHE_DIR"]))
    file, data = path / name, (path / name).read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        file.write_bytes({"truncated": data[:middle], "bit-flipped": flipped, "zero-length": b""}[damage])
    forget()
    check(PLAN)
    assert compiles() == 2
    assert len(list((Path(os.environ["CUTEFP4_CACHE_DIR"]) / CORRUPT).iterdir())) == 1
    forget()
    check(PLAN)
    assert compiles() == 2


def test_entry_of_another_plan_under_this_key():
    other = TinyPlan("sm_90a", unused=1)
    check(other)
    ((path, _, _),) = entries(Path(os.environ["CUTEFP4_CACHE_DIR"]))
    os.rename(path, path.with_name(PLAN.key))
    check(PLAN)
    assert compiles() == 2


def as_plain_user(work) -> int:
    """Run in a child that permissions bind: the superuser may write to read-only directories."""

    def plain():
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        work()

    return in_child(plain)


@pytest.mark.parametrize("stored", [False, True])
def test_read_only_directory(monkeypatch, stored):
    home = Path(tempfile.mkdtemp())
    home.chmod(0o777)
    cache = home / "cache"
    monkeypatch.setenv("CUTEFP4_CACHE_DIR", str(cache))
    monkeypatch.setenv("COMPILE_LOG", str(home / "log"))

    def work():
        if stored:
            check(PLAN)
        else:
            cache.mkdir()
        for path in (cache, *sorted(cache.rglob("*"))):
            if path.is_dir():
                path.chmod(0o500)
        forget()
        plans = [TinyPlan("sm_90a", unused=i) for i in range(1, 4)]
        if stored:
            check(PLAN)
            assert kernel_cache.stats().disk_hits == 1, "what is there can be read"
        with one_memory_warning():
            for plan in plans:
                check(plan)
                check(plan)
        assert kernel_cache.stats().compiles == 3
        for path in (cache, *sorted(cache.rglob("*"))):
            if path.is_dir():
                path.chmod(0o700)
        shutil.rmtree(cache)

    try:
        assert as_plain_user(work) == 0
    finally:
        shutil.rmtree(home, ignore_errors=True)


def test_missing_directory_that_cannot_be_made(monkeypatch, tmp_path):
    monkeypatch.setenv("CUTEFP4_CACHE_DIR", "/proc/cutefp4")
    with one_memory_warning():
        check(PLAN)
        check(TinyPlan("sm_90a", unused=1))
    assert kernel_cache.stats().compiles == 2


@pytest.mark.parametrize("limit", [0, 1000, 40000])
def test_full_disk(limit):
    """A file-size limit fails writes like a full disk does; what was there before stays good."""
    check(PLAN)

    def work():
        forget()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        os.environ["COMPILE_LOG"] = "/dev/null"
        check(PLAN)
        assert kernel_cache.stats().disk_hits == 1
        with one_memory_warning():
            for i in range(1, 4):
                check(TinyPlan("sm_90a", unused=i))
        assert kernel_cache.stats().compiles == 3

    assert in_child(work) == 0
    cache = Path(os.environ["CUTEFP4_CACHE_DIR"])
    assert len(entries(cache)) == 1 and not list(cache.glob("**/tmp-*"))


def test_cache_that_is_cleared_while_in_use():
    check(PLAN)
    disk_cache.clear(Path(os.environ["CUTEFP4_CACHE_DIR"]))
    check(PLAN)
    forget()
    check(PLAN)
    assert compiles() == 2


def test_foreign_directory_is_an_error_not_a_fallback(monkeypatch, tmp_path):
    if os.geteuid() == 0:
        (tmp_path / "cache").mkdir()
        os.chown(tmp_path / "cache", 65534, 65534)
    else:
        monkeypatch.setenv("CUTEFP4_CACHE_DIR", "/")
    with pytest.raises(CacheError, match="belongs to user id"):
        kernel_cache.get(PLAN)


def test_upgraded_dsl_compiles_again_and_leaves_the_old_entry():
    check(PLAN)
    VERSION[0] = "2.0"
    forget()
    check(PLAN)
    assert compiles() == 2
    VERSION[0] = "1.0"
    forget()
    check(PLAN)
    assert compiles() == 2, "back on the old version, its entry is still there"
    assert len(entries(Path(os.environ["CUTEFP4_CACHE_DIR"]))) == 2


def test_edited_kernel_source_compiles_again(monkeypatch, tmp_path):
    module = tmp_path / "edited_kernel.py"
    helper = tmp_path / "edited_kernel_helper.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    module.write_text("import os\nSIZE = 1\n")
    helper.write_text("")

    class EditedPlan(TinyPlan):
        builder = "edited_kernel:build"

    plan = EditedPlan("sm_90a")
    first = fingerprint.of(plan)
    forget()
    assert fingerprint.of(plan) == first
    forget()
    module.write_text("import os\nSIZE = 2\n")
    assert fingerprint.of(plan) != first


def test_fingerprint_follows_imports(monkeypatch, tmp_path):
    package = tmp_path / "package_of_kernels"
    (package / "deep").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    texts = {
        "__init__.py": "",
        "a.py": "from package_of_kernels.b import x\nimport os",
        "b.py": "from . import c\nfrom .deep import (\n    d,\n    y,\n)\n",
        "c.py": "import package_of_kernels.unrelated_but_imported",
        "unrelated_but_imported.py": "",
        "not_imported.py": "",
        "deep/__init__.py": "from .e import z",
        "deep/d.py": "    from ..f import w",
        "deep/e.py": "",
        "f.py": "from cutefp4.scale_layout import round_up",
    }
    for name, text in texts.items():
        (package / name).write_text(text)
    found = {name.removeprefix("package_of_kernels.") for name in fingerprint.reachable_sources("package_of_kernels.a")}
    assert found >= {"a", "b", "c", "deep", "deep.d", "deep.e", "f", "unrelated_but_imported"}
    assert "not_imported" not in found and {"cutefp4.scale_layout", "cutefp4.format"} <= found


def test_fingerprint_of_our_kernels_covers_all_of_them(monkeypatch):
    monkeypatch.undo()
    forget()
    ours = fingerprint._sources("cutefp4.kernels.quantize.cast_rows")
    root = Path(cutefp4.kernels.__file__).parent
    files = {path.relative_to(root) for name, path in ours.items() if name.startswith("cutefp4.kernels")}
    assert files == {path.relative_to(root) for path in root.rglob("*.py")} and len(files) > 10
    assert {"cutefp4.dsl", "cutefp4.plan", "cutefp4.quant_plan", "cutefp4.format"} <= ours.keys()
    assert "cutefp4" not in ours and "cutefp4.reference" not in ours
    assert set(fingerprint._sources("tests.tiny_kernel")) <= {
        "tests.tiny_kernel",
        "cutefp4.plan",
        "cutefp4.errors",
        "cutefp4.dsl",
    }


def test_source_written_after_the_start_keeps_the_process_off_the_disk(monkeypatch, tmp_path):
    monkeypatch.undo()
    module = tmp_path / "late_kernel.py"
    module.write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))

    class LatePlan(TinyPlan):
        builder = "late_kernel:build"

    plan = LatePlan("sm_90a")
    sources = fingerprint._sources
    monkeypatch.setattr(fingerprint, "_sources", lambda name: {"late_kernel": sources(name)["late_kernel"]})
    assert fingerprint.changed_source(plan) == module
    with one_memory_warning():
        assert kernel_cache._disk_of(plan) is None
    os.utime(module, (0, 0))
    assert fingerprint.changed_source(plan) is None
    module.unlink()
    assert fingerprint.changed_source(plan) == module


@pytest.mark.parametrize("policy", ["allow", "warn", "error"])
def test_jit_policy(monkeypatch, policy):
    monkeypatch.setenv("CUTEFP4_JIT", policy)
    if policy == "error":
        with pytest.raises(JitDisabledError, match="CUTEFP4_JIT=error.*warmup"):
            kernel_cache.get(PLAN)
        assert compiles() == 0
        kernel_cache.load(PLAN)
        check(PLAN)
        assert compiles() == 1
    elif policy == "warn":
        with pytest.warns(UserWarning, match="compiles TinyPlan.*sm_90a now"):
            kernel_cache.get(PLAN)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check(PLAN)
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(PLAN)


def test_dump_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("CUTEFP4_DUMP", str(tmp_path / "dump"))
    for _ in range(2):
        check(PLAN)
        names = sorted(path.name for path in (tmp_path / "dump").iterdir())
        stem = f"TinyPlan-sm_90a-{PLAN.key[:12]}"
        assert set(names) >= {f"{stem}.json", f"{stem}.ptx", f"{stem}.cubin", f"{stem}.sass"}
        assert (tmp_path / "dump" / f"{stem}.ptx").read_text() == f"ptx of {PLAN.key}"
        shutil.rmtree(tmp_path / "dump")
        forget()


def test_threads_compile_a_plan_once(monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setenv("COMPILE_SECONDS", "0.05")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: kernel_cache.get(PLAN), range(8)))
    assert len(set(map(id, found))) == 1 and compiles() == 1


def test_loader_in_place_of_the_device():
    check(PLAN)
    with kernel_cache.use_loader(lambda plan, compiled: lambda: ["emulated", compiled.ptx]):
        assert kernel_cache.get(PLAN)() == ["emulated", f"ptx of {PLAN.key}"]
    check(PLAN)
    assert compiles() == 1
