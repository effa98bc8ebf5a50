"""From a plan to a callable kernel: memory, then disk, then the compiler.

    get(plan)          the kernel, ready to be called; a memory hit is one dictionary lookup
    artifacts(plan)    object, PTX and cubin, from disk or compiled; nothing is loaded
    load(plan)         like get, ahead of time; `warmup` in cutefp4.warmup does it for many, in parallel processes

Two threads or two processes that ask for the same plan compile it once. A disk that is read-only, full or missing costs
one warning and nothing else. CUTEFP4_JIT decides what `get` may do about a kernel that is in no cache.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cutefp4 import cubin, dsl, env, fingerprint, sass
from cutefp4.disk_cache import DiskCache, Entry
from cutefp4.dsl import CompiledObject
from cutefp4.errors import CompileError, JitDisabledError, UnsupportedError
from cutefp4.plan import Plan, to_json

Kernel = Callable[..., object]
Loader = Callable[[Plan, CompiledObject], Kernel]

OBJECT, PTX, CUBIN = "kernel.o", "kernel.ptx", "kernel.cubin"


@dataclass
class Stats:
    """Counters of this process.

    Attributes:
        memory_hits: `get` found the kernel loaded.
        disk_hits: it was read from disk.
        misses: it was neither loaded nor on disk.
        compiles: compiles that this process ran itself (a miss that another process compiled meanwhile is none).
        compile_seconds: their sum.
    """

    memory_hits: int = 0
    disk_hits: int = 0
    misses: int = 0
    compiles: int = 0
    compile_seconds: float = 0.0


def _load_on_device(plan: Plan, compiled: CompiledObject) -> Kernel:
    return dsl.load_object(compiled.object, plan.symbol)


class _Kernels:
    """Loaded kernels of one loader, by plan."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.loaded: dict[Plan, Kernel] = {}


_stats = Stats()
_kernels = _Kernels(_load_on_device)
_key_locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
_warned_about_disk = False


def get(plan: Plan) -> Kernel:
    """The kernel of a plan: call it with the tensors and scalars of its builder, in order, without the stream.

    It launches on torch's current stream of the tensors' device.

    Raises:
        JitDisabledError: it would have to be compiled, and CUTEFP4_JIT=error.
        CompileError: it does not compile.
        CacheError: the cache directory belongs to another user.
    """
    kernel = _kernels.loaded.get(plan)
    if kernel is not None:
        _stats.memory_hits += 1
        return kernel
    return _get_slowly(plan, env.read("CUTEFP4_JIT"))


def _get_slowly(plan: Plan, policy: str) -> Kernel:
    with _key_locks[plan.key]:
        kernels = _kernels
        kernel = kernels.loaded.get(plan)
        if kernel is None:
            kernel = kernels.loaded[plan] = kernels.loader(plan, _artifacts(plan, policy))
        return kernel


def load(plan: Plan) -> Kernel:
    """Like `get`, but asked for ahead of time: CUTEFP4_JIT does not apply."""
    return _get_slowly(plan, "allow")


def is_stored(plan: Plan) -> bool:
    """Whether an entry of the plan is on disk (its checksum is looked at when it is read)."""
    disk = _disk_of(plan)
    return disk is not None and disk.path(plan.key).is_dir()


def can_store(plan: Plan) -> bool:
    """Whether this process can write the plan's part of the disk cache; warns once if not."""
    disk = _disk_of(plan)
    if disk is None:
        return False
    try:
        disk.check_writable()
    except OSError as error:
        _disk_failed(disk, error)
        return False
    return True


def artifacts(plan: Plan) -> CompiledObject:
    """What the compiler made of a plan, from disk or compiled now; nothing is loaded and CUTEFP4_JIT does not apply.

    Raises:
        CompileError: it does not compile.
        CacheError: the cache directory belongs to another user.
    """
    with _key_locks[plan.key]:
        return _artifacts(plan, "allow")


def _artifacts(plan: Plan, policy: str) -> CompiledObject:
    disk = _disk_of(plan)
    compiled = _read(disk, plan) if disk else None
    if compiled is None:
        _stats.misses += 1
        _apply_policy(plan, policy)
        compiled = _compile_once(disk, plan) if disk else _compile(plan)
    _dump(plan, compiled)
    return compiled


def _disk_of(plan: Plan) -> DiskCache | None:
    """The plan's part of the disk cache; None if this process must not use it."""
    changed = fingerprint.changed_source(plan)
    if changed is not None:
        _memory_only(f"{changed} was written after this process started. Restart it to use the cache.")
        return None
    return DiskCache(env.cache_dir(), fingerprint.of(plan))


def _apply_policy(plan: Plan, policy: str) -> None:
    if policy == "error":
        raise JitDisabledError(
            f"{plan.describe()} for {plan.arch} is in no cache, and CUTEFP4_JIT=error",
            "kernels that were compiled before",
            "compile it with cutefp4.compile.warmup or `cutefp4 warmup`, or set CUTEFP4_JIT=allow",
        )
    if policy == "warn":
        warnings.warn(f"cutefp4 compiles {plan.describe()} for {plan.arch} now (CUTEFP4_JIT=warn)", stacklevel=5)


def _compile_once(disk: DiskCache, plan: Plan) -> CompiledObject:
    """Compile under the key's lock and store; without the disk, just compile."""
    with ExitStack() as stack:
        try:
            stack.enter_context(disk.lock(plan.key))
        except OSError as error:
            _disk_failed(disk, error)
            return _compile(plan)
        compiled = _read(disk, plan)  # another process may have been compiling it
        if compiled is None:
            compiled = _compile(plan)
            if fingerprint.changed_source(plan) is None:
                _write(disk, plan, compiled)
        return compiled


def _compile(plan: Plan) -> CompiledObject:
    start = time.perf_counter()
    compiled = dsl.compile_plan(plan)
    _stats.compiles += 1
    _stats.compile_seconds += time.perf_counter() - start
    return compiled


def _read(disk: DiskCache, plan: Plan) -> CompiledObject | None:
    try:
        entry = disk.read(plan.key, plan.key_text)
    except OSError as error:
        _disk_failed(disk, error)
        return None
    if entry is None:
        return None
    _stats.disk_hits += 1
    compiled = CompiledObject(
        entry.files[OBJECT],
        entry.files[PTX].decode(),
        entry.files[CUBIN],
        tuple(entry.info["kernels"]),
        tuple(entry.info["dynamic_shared_bytes"]),
    )
    return compiled


def _write(disk: DiskCache, plan: Plan, compiled: CompiledObject) -> None:
    files = {OBJECT: compiled.object, PTX: compiled.ptx.encode(), CUBIN: compiled.cubin}
    try:
        disk.write(plan.key, Entry(plan.key_text, files, _info(plan, compiled)))
    except OSError as error:
        _disk_failed(disk, error)


def _info(plan: Plan, compiled: CompiledObject) -> dict:
    return {
        "plan": to_json(plan),
        "arch": plan.arch,
        "symbol": plan.symbol,
        "kernels": list(compiled.kernels),
        "dynamic_shared_bytes": list(compiled.dynamic_shared_bytes),
        "resources": [asdict(kernel) for kernel in cubin.kernels(compiled.cubin)],
        "cubin_sha256": hashlib.sha256(compiled.cubin).hexdigest(),
        "versions": list(dsl.versions()),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _disk_failed(disk: DiskCache, error: OSError) -> None:
    _memory_only(f"{disk.directory} cannot be used ({error}). Point CUTEFP4_CACHE_DIR at a writable directory.")


def _memory_only(reason: str) -> None:
    global _warned_about_disk
    if not _warned_about_disk:
        _warned_about_disk = True
        warnings.warn(f"cutefp4 keeps compiled kernels in memory only: {reason}", stacklevel=2)


def _dump(plan: Plan, compiled: CompiledObject) -> None:
    directory = env.read("CUTEFP4_DUMP")
    if not directory:
        return
    try:
        text = sass.disassemble(compiled.cubin)
    except UnsupportedError as error:
        text = f"{error}\n"
    stem = Path(directory) / f"{type(plan).__name__}-{plan.arch}-{plan.key[:12]}"
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for suffix, data in (
            (".json", json.dumps(to_json(plan), indent=1).encode()),
            (".ptx", compiled.ptx.encode()),
            (".cubin", compiled.cubin),
            (".sass", text.encode()),
        ):
            Path(f"{stem}{suffix}").write_bytes(data)
    except OSError as error:
        raise CompileError(
            f"CUTEFP4_DUMP={directory!r}: {error}", "a directory that can be written", "unset CUTEFP4_DUMP"
        ) from error


@contextmanager
def use_loader(loader: Loader) -> Iterator[None]:
    """While active, `get` returns what `loader(plan, compiled)` makes (once per plan): how the emulator steps in."""
    global _kernels
    before = _kernels
    _kernels = _Kernels(loader)
    try:
        yield
    finally:
        _kernels = before


class _Recorder(dict):
    """In place of the loaded kernels: notes the plan that is asked for, and returns a kernel that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.plans: dict[Plan, None] = {}

    def get(self, plan: Plan) -> Kernel:
        self.plans[plan] = None
        return _do_nothing


def _do_nothing(*arguments) -> None:
    return None


@contextmanager
def record() -> Iterator[dict[Plan, None]]:
    """While active, `get` compiles nothing and launches nothing; yields the plans that were asked for, in order.

    Whatever calls the operations tells which kernels it needs: that is how warm-up finds its plans. Results of calls
    are undefined. Not for use beside other threads that launch.
    """
    global _kernels
    before, recorder = _kernels, _Recorder()
    _kernels = _Kernels(_load_on_device)
    _kernels.loaded = recorder
    try:
        yield recorder.plans
    finally:
        _kernels = before


class _Tracer(dict):
    """In place of the loaded kernels: notes every launch, and launches."""

    def __init__(self, kernels: _Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.launches: list[tuple[Plan, Kernel, tuple]] = []

    def get(self, plan: Plan) -> Kernel:
        kernel = self.kernels.loaded.get(plan)
        if kernel is None:
            kernel = self.kernels.loaded[plan] = self.kernels.loader(plan, artifacts(plan))

        def launch(*arguments):
            self.launches.append((plan, kernel, arguments))
            return kernel(*arguments)

        return launch


@contextmanager
def trace() -> Iterator[list[tuple[Plan, Kernel, tuple]]]:
    """While active, every launch is noted as (plan, kernel, arguments); yields the list.

    Launching them again repeats the calls without the operations around them: how a sweep times
    configurations. The arguments keep their tensors alive. Not for use beside other threads that launch.
    """
    global _kernels
    before, tracer = _kernels, _Tracer(_kernels)
    _kernels = _Kernels(before.loader)
    _kernels.loaded = tracer
    try:
        yield tracer.launches
    finally:
        _kernels = before


def stats() -> Stats:
    """A copy of this process's counters."""
    return replace(_stats)


def reset() -> None:
    """Forget loaded kernels, counters and the disk warning; what is on disk stays. For tests and long sessions."""
    global _warned_about_disk
    _kernels.loaded.clear()
    _warned_about_disk = False
    for name, value in asdict(Stats()).items():
        setattr(_stats, name, value)
