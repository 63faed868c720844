"""Copies of files that a service keeps: taken while it runs, checked, and put back all at once (service.save, revert).

Beside the service's `data` directory lies `saved`, with a directory for each copy. Its name is renamed to last, so a
copy is whole or not there. Putting one back exchanges two directories in one step (renameat2(2)): whatever is killed
meanwhile, the service has the old files or the new ones, never some of each.

What is in `data` is a hostile program's doing. All of it blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import time
from typing import TYPE_CHECKING, Final

import msgspec

from latticed.host.program import data_tree, quota
from latticed.kit import files
from latticed.kit.files import closing
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEEP: Final = 7
"""Copies of one service, unless it asks for another number; the oldest is removed for another one."""
MAX_COPIES: Final = 32
MAX_FILES: Final = 16
MAX_BYTES: Final = 32 << 20
"""Of all files of one copy together: while one is checked, nothing else runs in the daemon's process."""
TRIES: Final = 20
PAUSE_S: Final = 0.1
"""A file that changes while it is read, or is half written, is read again so often, after such a pause."""
SAVED: Final = "saved"
INDEX: Final = "index.json"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ID: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
_PREPARED: Final = re.compile(r"\.[0-9a-f]{16}")
_CHECKED: Final = ".json"  # files with this ending have to hold JSON


class SavedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a copy."""

    name: str
    bytes: int
    sha256: str


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """One copy. `at`: wall clock in µs, later than that of every earlier one. `id` begins with it, in seconds."""

    id: str
    at: int
    files: tuple[SavedFile, ...]


def save(
    service: Path, names: tuple[str, ...], *, keep: int, most_bytes: int, now_us: int, spare: str = ""
) -> tuple[Copy, bool]:
    """Copy those of `names` that are in the service's directory; the copy, and False if the newest one is equal to it.

    At most `keep` copies stay, the newest that have `most_bytes` together, and that with the id `spare`. Problem
    not_found when none of `names` is there; not_saved when one is no regular file, too large, or not whole; disk_full.
    OSError for a disk that fails.
    """
    found = _read_whole(service / "data", names)
    listed = tuple(SavedFile(name=name, bytes=len(data), sha256=_digest(data)) for name, data in found.items())
    newest = next(iter(copies(service)), None)
    if newest is not None and newest.files == listed and _is_whole(service, newest):
        return newest, False
    # After the newest one also when the clock was set back: else this one would be the oldest, and the next to go.
    at_us = max(now_us, newest.at + 1) if newest is not None else now_us
    at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at_us // 1_000_000))
    copy = Copy(id=f"{at}-{secrets.token_hex(4)}", at=at_us, files=listed)
    clear(service)
    free = os.statvfs(service)
    left = free.f_bavail * free.f_frsize - sum(file.bytes for file in listed)
    if (full := quota.no_space(quota.FreeSpace(bytes=left, files=free.f_favail))) is not None:
        raise Problem(full.code, full.message)
    directory = service / SAVED
    directory.mkdir(mode=0o700, exist_ok=True)
    made = directory / f".{copy.id}"
    _write(made, {**found, INDEX: msgspec.json.encode(copy)}, mode=0o600)
    os.rename(made, directory / copy.id)
    files.sync_directory(directory)
    files.sync_directory(service)
    # Only now: at no moment are there fewer than before.
    for old in surplus(copies(service), keep=keep, most_bytes=most_bytes):
        if old.id != spare:
            # Renamed before it is taken apart: killed in between, it would be offered, and not whole.
            gone = directory / f".{old.id}"
            os.rename(directory / old.id, gone)
            data_tree.remove(gone)
    return copy, True


def surplus(found: list[Copy], *, keep: int, most_bytes: int) -> list[Copy]:
    """Which of these copies, newest first, have to go; never the newest."""
    taken = 0
    for place, copy in enumerate(found):
        taken += sum(file.bytes for file in copy.files)
        if place and (place >= keep or taken > most_bytes):
            return found[place:]
    return []


def copies(service: Path) -> list[Copy]:
    """The copies of a service, newest first; one that does not read is left out."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(service / SAVED):
            # Damaged: what cannot be put back is not offered.
            with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
                if _ID.fullmatch(name) is not None:
                    index = files.read_at_most(service / SAVED / name / INDEX, 64 << 10)
                    found.append(msgspec.json.decode(index, type=Copy))
    return sorted(found, key=lambda copy: copy.at, reverse=True)


def prepare(service: Path, wanted: str) -> Path:
    """Make a directory beside the service's that holds exactly the files of a copy, checked once more.

    Problem not_found, not_saved when a file of it is damaged; OSError. Nothing that the service uses is changed.
    """
    copy = next((one for one in copies(service) if one.id == wanted), None)
    if copy is None:
        raise Problem("not_found", "there is no such copy")
    clear(service)
    made = service / f".{secrets.token_hex(8)}"
    _write(made, dict(_files_of(service, copy)), mode=0o600)
    return made


def exchange(service: Path, prepared: Path) -> None:
    """Have the service keep what is in `prepared`, and what it has kept be there. Nothing may run that writes to it.

    OSError; Problem service_unavailable where the file system cannot: then nothing is changed.
    """
    data = service / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    try:
        files.exchange(prepared, data)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ENOSYS}:
            detail = "this file system cannot exchange two directories in one step"
            raise Problem("service_unavailable", detail) from error
        raise


def clear(service: Path) -> None:
    """Remove what killed calls have left: copies that were not finished, directories that are not in use. OSError."""
    for name in os.listdir(service):
        if _PREPARED.fullmatch(name):
            data_tree.remove(service / name)
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(service / SAVED):
            if name.startswith(".") and _ID.fullmatch(name[1:]):
                data_tree.remove(service / SAVED / name)


def _read_whole(directory: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The files of `names` that are there, as they were at one moment. Problem not_found, not_saved; OSError."""
    for last in range(TRIES, 0, -1):
        try:
            return _read_once(directory, names)
        except Problem as problem:
            if last == 1 or problem.code != "not_saved":
                raise
        # A program that writes a file in place has it empty, then half written, for some milliseconds.
        time.sleep(PAUSE_S)
    raise AssertionError("unreachable")


def _read_once(directory: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    try:
        top = files.open_directory(directory)
    except FileNotFoundError as error:
        raise Problem("not_found", "the service has kept nothing yet") from error
    with closing(top):
        before = {name: seen for name in names if (seen := _seen(name, top)) is not None}
        if not before:
            raise Problem("not_found", f"expected one of {', '.join(names)}, found none")
        found, left = {}, MAX_BYTES
        for name in sorted(before):
            found[name] = _one(name, top, left)
            left -= len(found[name])
        # Nothing was written in between, so the files belong together.
        if before != {name: seen for name in names if (seen := _seen(name, top)) is not None}:
            raise Problem("not_saved", "expected files that do not change while they are read")
    for name, data in found.items():
        if name.endswith(_CHECKED) and not _is_json(data):
            raise Problem("not_saved", f"expected JSON in {name}, found {len(data)} bytes that are none")
    return found


def _seen(name: str, top: int) -> tuple[int, ...] | None:
    """What changes when a file does, or None when there is none of that name."""
    try:
        found = os.stat(name, dir_fd=top, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _one(name: str, top: int, most: int) -> bytes:
    try:
        with closing(files.open_file(name, beneath=top)) as fd:
            return files.read_open(fd, most)
    except ValueError as error:
        raise Problem("not_saved", f"{name}: {error}") from error
    except OSError as error:
        # ELOOP: a link. EACCES: a program may take its own rights away.
        raise Problem("not_saved", f"{name}: {os.strerror(error.errno or 0)}") from error


def _is_json(data: bytes) -> bool:
    """Whether this is one JSON document in UTF-8. Its values are not made: that would take ten times as long."""
    try:
        data.decode("utf-8")
        msgspec.json.decode(data, type=msgspec.Raw)
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        return False
    return True


def _files_of(service: Path, copy: Copy) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each file of a copy; Problem not_saved when one is not what was copied."""
    for file in copy.files:
        data = b""
        with contextlib.suppress(OSError, ValueError):
            data = files.read_at_most(service / SAVED / copy.id / file.name, file.bytes)
        if NAME.fullmatch(file.name) is None or _digest(data) != file.sha256:
            raise Problem("not_saved", f"the copy {copy.id} is damaged: {file.name} has other bytes than were copied")
        yield file.name, data


def _is_whole(service: Path, copy: Copy) -> bool:
    try:
        return all(_files_of(service, copy))
    except Problem:
        return False


def _write(directory: Path, found: dict[str, bytes], *, mode: int) -> None:
    """Make `directory` with these files, all of it on disk. OSError: nothing is left of it."""
    directory.mkdir(mode=0o700)
    try:
        for name, data in found.items():
            fd = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            with closing(fd):
                files.write_all(fd, data)
                os.fsync(fd)
        files.sync_directory(directory)
    except BaseException:
        data_tree.remove(directory)
        raise


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
