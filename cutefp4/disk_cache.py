"""Compiled kernels on disk: one directory per entry, whole or absent, never trusted without its checksum.

    <cache>/kernels/<arch>-<fingerprint>/<key>/kernel.o  kernel.ptx  kernel.cubin  meta.json
                                         <key>.lock      held by the process that compiles the key
                                         tmp-*           an entry being written; left behind by a killed process
    <cache>/corrupt/                                     entries that failed their check

An entry is written under a temporary name, synchronised and renamed, so that readers need no lock: a process that is
killed at any moment leaves no partial entry under a real name. meta.json holds the checksum of every file, its own
included, and the key text, so that a flipped bit, a truncated file or an entry of another plan is found before any of
it is loaded. A bad entry is moved aside for inspection and compiled again.

The directories are private (0700) and must belong to the caller: who can write here can run code as the caller.

`OSError` from these functions means that the disk cannot be used (read-only, full, gone); the caller then works from
memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cutefp4.errors import CacheError

KERNELS = "kernels"
CORRUPT = "corrupt"
META = "meta.json"
LOCK_SECONDS = 600.0
"""How long one process waits for another that compiles the same key, before it compiles for itself."""


@dataclass(frozen=True)
class Entry:
    """A kernel as stored: named files, the text that identifies it, and anything else worth knowing.

    Attributes:
        key_text: compared with the plan's before the files are used.
        files: name to bytes; the names carry no directory.
        info: JSON data (plan, symbol, versions, registers, ...).
    """

    key_text: str
    files: dict[str, bytes]
    info: dict[str, Any] = field(default_factory=dict)


class CorruptEntry(Exception):
    """An entry that failed its check; the message says how. Internal: callers of `read` see None."""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def private_directory(path: Path) -> Path:
    """Create `path` for this user alone (0700), or check that it is.

    Raises:
        CacheError: it belongs to another user, or is no directory.
        OSError: it can be neither made nor read.
    """
    with suppress(FileExistsError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise CacheError(f"{path} is not a directory", "a directory for compiled kernels", "set CUTEFP4_CACHE_DIR")
    if status.st_uid != os.geteuid():
        raise CacheError(
            f"{path} belongs to user id {status.st_uid}",
            f"a directory of the user that runs this process (id {os.geteuid()})",
            "set CUTEFP4_CACHE_DIR to a directory of your own; code from another user's directory is not run",
        )
    if status.st_mode & 0o077:
        path.chmod(0o700)
    return path


def _read_own_file(path: Path) -> bytes:
    with open(path, "rb", opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NOFOLLOW", 0))) as file:
        owner = os.fstat(file.fileno()).st_uid
        if owner != os.geteuid():
            raise CacheError(
                f"{path} belongs to user id {owner}", f"files of user id {os.geteuid()}", "run `cutefp4 cache clear`"
            )
        return file.read()


def _seal(meta: dict[str, Any]) -> bytes:
    text = json.dumps(meta, sort_keys=True, indent=1)
    return json.dumps({"sha256": _sha256(text.encode()), "meta": meta}, sort_keys=True, indent=1).encode()


def _unseal(data: bytes) -> dict[str, Any]:
    try:
        sealed = json.loads(data)
        meta = sealed["meta"]
        expected = sealed["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptEntry(f"{META}: {error}") from error
    if _sha256(json.dumps(meta, sort_keys=True, indent=1).encode()) != expected:
        raise CorruptEntry(f"{META} does not match its checksum")
    return meta


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


class DiskCache:
    """The entries of one fingerprint.

    Args:
        cache: the root, `env.cache_dir()`; made when something is written.
        fingerprint: name of the directory (see `fingerprint.of`).
    """

    def __init__(self, cache: Path, fingerprint: str) -> None:
        self.cache = cache
        self.directory = cache / KERNELS / fingerprint

    def prepare(self) -> None:
        """Make the directories, or check that they are this user's.

        Raises:
            CacheError: another user owns one of them.
            OSError: they cannot be made.
        """
        for path in (self.cache, self.cache / KERNELS, self.directory):
            private_directory(path)

    def check_writable(self) -> None:
        """Raises what `write` would raise for want of a directory or of permission."""
        self.prepare()
        os.rmdir(tempfile.mkdtemp(prefix="tmp-probe-", dir=self.directory))

    def path(self, key: str) -> Path:
        """Where the entry of a key lies, if there is one."""
        return self.directory / key

    @contextmanager
    def lock(self, key: str, timeout: float = LOCK_SECONDS) -> Iterator[None]:
        """Hold a key's lock: whoever compiles it. The kernel of the OS frees the lock of a killed process.

        Raises:
            OSError: no lock can be made here, or another process held it for `timeout` seconds.
        """
        self.prepare()
        lock = FileLock(self.directory / f"{key}.lock", timeout=timeout, mode=0o600)
        try:
            lock.acquire()
        except Timeout as error:
            raise OSError(f"{lock.lock_file} was held by another process for {timeout:g} s") from error
        except NotImplementedError as error:
            raise OSError(f"{self.directory} is on a file system without locks") from error
        try:
            yield
        finally:
            lock.release()

    def read(self, key: str, key_text: str) -> Entry | None:
        """The entry of a key, checked, or None. A corrupt one is moved aside first.

        Raises:
            CacheError: files of another user.
            OSError: the disk cannot be read.
        """
        path = self.path(key)
        if not path.is_dir():
            return None
        self.prepare()
        try:
            return self._read_checked(path, key_text)
        except FileNotFoundError:
            if not path.exists():
                return None  # cleared meanwhile
            reason = "a file is missing"
        except CorruptEntry as error:
            reason = str(error)
        self.quarantine(key, reason)
        return None

    def _read_checked(self, path: Path, key_text: str) -> Entry:
        meta = _unseal(_read_own_file(path / META))
        if meta.get("key_text") != key_text:
            raise CorruptEntry("the entry belongs to another plan")
        files = {}
        for name, expected in meta["files"].items():
            data = files[name] = _read_own_file(path / name)
            if _sha256(data) != expected:
                raise CorruptEntry(f"{name} ({len(data)} bytes) does not match its checksum")
        return Entry(key_text, files, meta["info"])

    def write(self, key: str, entry: Entry) -> Path:
        """Store an entry, all of it or nothing; call with the key's lock held. Returns its directory.

        Raises:
            OSError: the disk is read-only, full or gone; nothing is left behind.
        """
        self.prepare()
        self._remove_abandoned(key)
        meta = {
            "key_text": entry.key_text,
            "files": {name: _sha256(data) for name, data in entry.files.items()},
            "info": entry.info,
        }
        scratch = Path(tempfile.mkdtemp(prefix=f"tmp-{key[:16]}-", dir=self.directory))
        try:
            for name, data in entry.files.items():
                _write_synced(scratch / name, data)
            _write_synced(scratch / META, _seal(meta))
            target = self.path(key)
            if target.exists():
                self.quarantine(key, "replaced")
            os.rename(scratch, target)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return target

    def _remove_abandoned(self, key: str) -> None:
        """Temporary directories of this key: the lock is ours, so their writers are dead."""
        for scratch in self.directory.glob(f"tmp-{key[:16]}-*"):
            shutil.rmtree(scratch, ignore_errors=True)

    def quarantine(self, key: str, reason: str) -> None:
        """Move an entry aside, with the reason in its new name's file; delete it if it cannot be moved.

        Raises:
            OSError: it can be neither moved nor deleted.
        """
        path = self.path(key)
        target = self.cache / CORRUPT / f"{self.directory.name}-{key}-{time.time_ns()}-{os.getpid()}"
        try:
            private_directory(target.parent)
            os.rename(path, target)
            (target / "reason.txt").write_text(reason + "\n")
        except FileNotFoundError:
            return  # another process was faster
        except OSError:
            if path.exists():
                shutil.rmtree(path)


def entries(cache: Path) -> list[tuple[Path, dict[str, Any], int]]:
    """(directory, info, bytes) of every readable entry below a cache root; files are not checked, nothing is moved."""
    found = []
    for meta in sorted((cache / KERNELS).glob(f"*/*/{META}")):
        if meta.parent.name.startswith("tmp-"):
            continue
        with suppress(OSError, CorruptEntry, KeyError):
            info = _unseal(meta.read_bytes())["info"]
            size = sum(file.stat().st_size for file in meta.parent.iterdir())
            found.append((meta.parent, info, size))
    return found


def clear(cache: Path) -> int:
    """Delete compiled kernels, quarantined entries and locks. Returns how many entries there were.

    Raises:
        CacheError: the directory belongs to another user.
        OSError: something could not be deleted.
    """
    count = 0
    for name in (KERNELS, CORRUPT):
        directory = cache / name
        if not directory.is_dir():
            continue
        private_directory(directory)
        count += sum(1 for meta in directory.glob(f"**/{META}"))
        shutil.rmtree(directory)
    return count
