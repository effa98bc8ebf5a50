"""Entries on disk: whole or absent, checked before use, private."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutefp4.disk_cache import CORRUPT, KERNELS, META, DiskCache, Entry, clear, entries
from cutefp4.errors import CacheError

KEY, TEXT = "k" * 64, "module:build\nPlan(...)"
ENTRY = Entry(TEXT, {"kernel.o": bytes(range(256)) * 40, "kernel.ptx": b".version 9.4\n"}, {"registers": 32})
FILES = (*ENTRY.files, META)


@pytest.fixture
def disk(tmp_path) -> DiskCache:
    return DiskCache(tmp_path / "cache", "sm_90a-0123")


def quarantined(disk: DiskCache) -> list[Path]:
    return sorted((disk.cache / CORRUPT).glob("*")) if (disk.cache / CORRUPT).exists() else []


def test_round_trip(disk):
    assert disk.read(KEY, TEXT) is None
    assert disk.write(KEY, ENTRY) == disk.path(KEY)
    assert disk.read(KEY, TEXT) == ENTRY
    assert not quarantined(disk)


def test_private_directories(disk):
    old = os.umask(0)
    try:
        disk.write(KEY, ENTRY)
        with disk.lock(KEY):
            pass
    finally:
        os.umask(old)
    for path in (disk.cache, disk.cache / KERNELS, disk.directory, disk.path(KEY)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    disk.directory.chmod(0o777)
    assert disk.read(KEY, TEXT) == ENTRY
    assert stat.S_IMODE(disk.directory.stat().st_mode) == 0o700, "an open directory of ours is closed"


def damage_truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damage_flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


def damage_empty(data: bytes) -> bytes:
    return b""


def damage_extend(data: bytes) -> bytes:
    return data + b"\0"


def damage_zero(data: bytes) -> bytes:
    return bytes(len(data))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_empty, damage_extend, damage_zero])
def test_damaged_file_is_found_moved_aside_and_rewritten(disk, name, damage):
    file = disk.write(KEY, ENTRY) / name
    good = file.read_bytes()
    bad = damage(good)
    assert bad != good
    file.write_bytes(bad)
    assert disk.read(KEY, TEXT) is None
    assert not disk.path(KEY).exists()
    (kept,) = quarantined(disk)
    assert (kept / name).read_bytes() == bad and (kept / "reason.txt").read_text().strip()
    disk.write(KEY, ENTRY)
    assert disk.read(KEY, TEXT) == ENTRY


@given(position=st.integers(0, 1 << 20), bit=st.integers(0, 7), name=st.sampled_from(FILES))
def test_any_flipped_bit_is_found(tmp_path_factory, position, bit, name):
    disk = DiskCache(tmp_path_factory.mktemp("flip"), "f")
    file = disk.write(KEY, ENTRY) / name
    data = bytearray(file.read_bytes())
    data[position % len(data)] ^= 1 << bit
    file.write_bytes(data)
    found = disk.read(KEY, TEXT)
    assert found is None or (name == META and found == ENTRY), "a flip in JSON white space changes nothing"


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_found(disk, name):
    (disk.write(KEY, ENTRY) / name).unlink()
    assert disk.read(KEY, TEXT) is None
    assert len(quarantined(disk)) == 1


def test_entry_of_another_plan_is_not_returned(disk):
    disk.write(KEY, ENTRY)
    os.rename(disk.path(KEY), disk.path("other"))
    assert disk.read("other", "module:build\nPlan(other)") is None
    assert len(quarantined(disk)) == 1


def test_meta_from_the_future_is_corrupt(disk):
    meta = disk.write(KEY, ENTRY) / META
    for text in ("[]", "null", '{"meta": 1}', json.dumps({"meta": {}, "sha256": "0"}), "{"):
        meta.write_text(text)
        assert disk.read(KEY, TEXT) is None
        meta = disk.write(KEY, ENTRY) / META


def test_another_entry_under_the_key_is_replaced(disk):
    disk.write(KEY, Entry("other text", {"kernel.o": b"x"}))
    disk.write(KEY, ENTRY)
    assert disk.read(KEY, TEXT) == ENTRY


def test_abandoned_temporary_entries_are_removed_by_the_next_writer(disk):
    disk.prepare()
    abandoned = disk.directory / f"tmp-{KEY[:16]}-dead"
    other = disk.directory / "tmp-another-key"
    for path in (abandoned, other):
        path.mkdir()
        (path / "kernel.o").write_bytes(b"half")
    disk.write(KEY, ENTRY)
    assert not abandoned.exists() and other.exists()
    assert [path.name for path, _, _ in entries(disk.cache)] == [KEY]


def test_failed_write_leaves_nothing(disk):
    with pytest.raises(OSError):
        disk.write(KEY, Entry(TEXT, {"kernel.o": b"data", "no/such/directory": b""}))
    assert not list(disk.directory.glob("*"))


def test_foreign_owner_is_refused(disk):
    if os.geteuid() == 0:
        disk.write(KEY, ENTRY)
        for path in (disk.cache, disk.directory, disk.path(KEY) / "kernel.o"):
            os.chown(path, 65534, 65534)
            with pytest.raises(CacheError, match="65534.*CUTEFP4_CACHE_DIR|65534.*cache clear"):
                disk.read(KEY, TEXT)
            os.chown(path, 0, 0)
        assert disk.read(KEY, TEXT) == ENTRY
        os.chown(disk.cache / KERNELS, 65534, 65534)
        with pytest.raises(CacheError, match="65534"):
            clear(disk.cache)
    else:
        with pytest.raises(CacheError, match="user id 0.*CUTEFP4_CACHE_DIR"):
            DiskCache(Path("/"), "f").prepare()


def test_symbolic_link_in_place_of_a_file_is_not_followed(disk, tmp_path):
    file = disk.write(KEY, ENTRY) / "kernel.o"
    (tmp_path / "elsewhere").write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        disk.read(KEY, TEXT)


def test_file_in_place_of_a_directory(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(CacheError, match="not a directory"):
        DiskCache(tmp_path / "cache", "f").prepare()


def test_lock_times_out_as_a_disk_error(disk):
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        with disk.lock(KEY):
            os.write(write_end, b"held")
            os.read(os.pipe()[0], 1)  # never returns: the parent kills this process
    os.read(read_end, 4)
    try:
        with pytest.raises(OSError, match="held by another process"), disk.lock(KEY, timeout=0.2):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    with disk.lock(KEY, timeout=5):
        pass


def test_entries_and_clear(disk):
    disk.write(KEY, ENTRY)
    DiskCache(disk.cache, "sm_100a-4567").write("b" * 64, ENTRY)
    listed = entries(disk.cache)
    assert [(path.parent.name, info) for path, info, _ in listed] == [
        ("sm_100a-4567", {"registers": 32}),
        ("sm_90a-0123", {"registers": 32}),
    ]
    assert all(size > 10240 for _, _, size in listed)
    assert clear(disk.cache) == 2
    assert entries(disk.cache) == [] and clear(disk.cache) == 0
