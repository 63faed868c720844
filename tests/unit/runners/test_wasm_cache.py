"""The cache of compiled wasm returns only entries written with its key."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from latticed.runners.wasm_cache import Cache, Subject
from latticed.sandbox import artifact

SUBJECT = Subject(sha256="a" * 64, engine="wasmtime 1", flags="fuel=0", target="x86_64 1")
CODE = b"code" * 1000


@pytest.fixture
def places(tmp_path):
    return tmp_path / "cache/wasm", tmp_path / "key"


@pytest.fixture
def cache(places):
    return Cache(*places)


def keep(cache, code=CODE, subject=SUBJECT):
    fd = artifact.memory()
    try:
        os.write(fd, code)
        artifact.close_for_good(fd)
        os.lseek(fd, 0, os.SEEK_SET)
        cache.keep(subject, fd)
    finally:
        os.close(fd)


def found(cache, subject=SUBJECT):
    """The bytes that the cache gives for `subject`."""
    fd = cache.find(subject)
    if fd is None:
        return None
    try:
        with pytest.raises(PermissionError):
            os.write(fd, b"x")  # sealed
        return os.pread(fd, 1 << 20, 0)
    finally:
        os.close(fd)


def test_kept_entry_is_found_by_any_cache_with_the_same_key(cache, places):
    """Directory and files are private."""
    assert found(cache) is None
    keep(cache)
    assert found(cache) == found(Cache(*places)) == CODE
    keep(cache, b"other")
    assert found(cache) == b"other"
    assert places[0].stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in (*places[0].iterdir(), places[1])] == [0o600] * 2


@pytest.mark.parametrize("name", ["sha256", "engine", "flags", "target"])
def test_code_of_other_module_engine_flags_or_target_is_not_found(cache, places, name):
    """If its file is renamed to the expected name, it is deleted."""
    keep(cache)
    other = replace(SUBJECT, **{name: getattr(SUBJECT, name) + "0"})
    assert found(cache, other) is None
    (places[0] / SUBJECT.name).rename(places[0] / other.name)
    assert found(cache, other) is None
    assert list(places[0].iterdir()) == []


def test_cache_subjects_with_shifted_field_boundaries_differ():
    """Engine `ab` with flags `c` and engine `a` with flags `bc` give different cache keys."""
    one, two = replace(SUBJECT, engine="ab", flags="c"), replace(SUBJECT, engine="a", flags="bc")
    assert one.bytes() != two.bytes()
    assert one.name != two.name


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"",
        lambda data: data[:20],
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:40] + bytes([data[40] ^ 128]) + data[41:],
    ],
    ids=["shorter", "longer", "empty", "no mac", "its mac", "its code"],
)
def test_altered_entry_is_not_found_and_deleted(cache, places, change):
    """A new entry can be kept in its place."""
    keep(cache)
    entry = places[0] / SUBJECT.name
    entry.write_bytes(change(entry.read_bytes()))
    assert found(cache) is None
    assert not entry.exists()
    keep(cache)
    assert found(cache) == CODE


def test_symlink_or_fifo_as_entry_is_not_found(cache, places, tmp_path):
    """A symbolic link is not followed, and opening a FIFO does not block."""
    keep(cache)
    entry = places[0] / SUBJECT.name
    entry.rename(tmp_path / "elsewhere")
    entry.symlink_to(tmp_path / "elsewhere")
    assert found(cache) is None
    entry.unlink(missing_ok=True)
    os.mkfifo(entry)
    assert found(cache) is None
    assert not entry.exists()


@pytest.mark.parametrize("spoil", ["gone", "readable", "short", "a link"])
def test_missing_or_unsafe_key_is_replaced(cache, places, spoil, tmp_path):
    """It is readable by others, too short, or a symbolic link; entries kept under the old key are not found."""
    keep(cache)
    key = places[1]
    old = key.read_bytes()
    match spoil:
        case "gone":
            key.unlink()
        case "readable":
            key.chmod(0o640)
        case "short":
            key.write_bytes(old[:31])
        case _:
            key.rename(tmp_path / "elsewhere")
            key.symlink_to(tmp_path / "elsewhere")
    again = Cache(*places)
    assert found(again) is None
    assert key.read_bytes() != old
    assert key.lstat().st_mode & 0o177777 == 0o100600
    keep(again)
    assert found(Cache(*places)) == CODE


def test_least_recently_used_entries_are_deleted_when_cache_is_full(places):
    """Finding an entry counts as use; the newest one stays, however large it is."""
    cache = Cache(*places, most_bytes=3 * (len(CODE) + 32))
    many = [replace(SUBJECT, sha256=str(number)) for number in range(4)]
    for age, subject in enumerate(many[:3]):
        keep(cache, subject=subject)
        os.utime(places[0] / subject.name, (age, age))
    assert found(cache, many[0]) == CODE
    keep(cache, subject=many[3])
    assert [found(cache, one) is not None for one in many] == [True, False, True, True]
    keep(cache, CODE * 4, subject=many[1])
    assert [found(cache, one) is not None for one in many] == [False, True, False, False]


def test_temporary_files_of_interrupted_writes_are_deleted(cache, places):
    """The next write deletes them."""
    places[0].mkdir(parents=True)
    (places[0] / ".tmp-0123456789abcdef").write_bytes(b"half")
    keep(cache)
    assert [path.name for path in places[0].iterdir()] == [SUBJECT.name]


def test_write_to_full_disk_raises_and_leaves_no_entry(cache, places, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    cache._the_key()
    monkeypatch.setattr("latticed.kit.files.write_all", full)
    with pytest.raises(OSError, match="No space"):
        keep(cache)
    assert list(places[0].iterdir()) == []
