"""What services keep, as a backup has it: for each service an index and the bytes of its files, one after the other.

    services/0001.json  {"publisher", "plugin", "name", "entries": [["f", "a%20b", 420, 12], …]}
    services/0001.data

Of this file the 12 bytes follow those of the file before. Another name of one that came before (a hard link) has no
bytes, `["h", "c", 420, "a%20b"]`: a program may give one file as many names as it may have files.

Names come from a program, so both ways nothing of them is believed: every entry is opened, or made, in a directory that
is open already, and no link is followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from latticed.host.program import data_tree
from latticed.host.program.data import UNSIGNED, ServiceData
from latticed.host.program.spec import NAME
from latticed.kit import files, logs, strict_json
from latticed.kit.files import closing
from latticed.model import ids
from latticed.model.chain import encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

DIRECTORY: Final = "services"
"""In the state directory: what services keep; in an archive: their files."""
FILE: Final = re.compile(r"services/\d{4}\.(json|data)")
"""The names that an archive has of it."""
MAX_SERVICES: Final = 9_999
MAX_INDEX_BYTES: Final = 64 << 20
"""Most bytes of an index: a restore holds it in memory."""
_CHUNK: Final = 1 << 20
_TRIES: Final = 3  # for a file that its program changes while it is copied
_FILE, _DIRECTORY, _LINK, _SAME = "f", "d", "l", "h"
# What opening, or reading, a file or link says that something of another kind replaced meanwhile.
_REPLACED: Final = data_tree.GONE | {errno.EINVAL, errno.ENXIO}
log = logs.get_logger()


class _LeftOut(Exception):
    """Nothing of a service can be in the backup; the message says why, an empty one that there is none any more."""


class _ReadError(Exception):
    """A file or link cannot be read; `__cause__` is the OSError. An error of writing the copy stays as it is."""


class _Unread:
    """What of one service could not be read: `count`, and of the first such entry `path`, quoted, and `reason`."""

    def __init__(self) -> None:
        self.count = 0
        self.path = self.reason = ""

    def add(self, path: bytes, error: OSError) -> None:
        self.count += 1
        if self.count == 1:
            self.path, self.reason = quote_from_bytes(path), error.strerror or str(error)


def stage(state_dir: Path, staging: Path, *, data_bytes: int) -> list[str]:
    """Copy what all services keep into `staging`; the names of the files, in the order of the archive. Blocks. OSError.

    Programs run meanwhile: each file is copied again while it changes, three times at most, so one that is replaced by
    renaming is whole. What cannot be read is left out, with a line in the log, and so is a service that is too deep,
    whose index would be too large for a restore, or of which there is more than twice `data_bytes` and than twice what
    it takes on the disk: a program may grow, move or make sparse files faster than they are copied.
    """
    names: list[str] = []
    data = ServiceData(state_dir / DIRECTORY)
    for publisher, plugin_id, name in data.services()[:MAX_SERVICES]:
        if not names:
            (staging / DIRECTORY).mkdir(mode=0o700, exist_ok=True)
        stem = f"{DIRECTORY}/{len(names) // 2 + 1:04}"
        both = [f"{stem}.json", f"{stem}.data"]
        unread = _Unread()
        reason = ""
        try:
            with (staging / both[0]).open("xb") as index, (staging / both[1]).open("xb", buffering=0) as out:
                place = data.place(f"{publisher}/{plugin_id}", name)
                # What is there counts too: it may be from when `data_bytes` was larger.
                entries = _copied(place, out.fileno(), unread, 2 * max(data_bytes, _on_disk(place)))
                _write_index(index, {"publisher": publisher, "plugin": plugin_id, "name": name}, entries)
            names += both
            if unread.count:
                reason = f"{unread.count} entries that cannot be read, first {unread.path[:200]} ({unread.reason})"
        except _LeftOut as error:
            for one in both:
                (staging / one).unlink()
            reason = str(error) and f"all of it: {error}"
        if reason:
            log.warning("backup_left_out", plugin_id=plugin_id, name=name, reason=reason)
    return names


def unpack(staging: Path, target: Path) -> bool:
    """Make in `target`, which does not exist, what the staged files of an archive hold; False when it has none.

    ValueError for an index that is not one, or does not fit its bytes. OSError. All of it is on disk afterwards.
    """
    indexes = sorted((staging / DIRECTORY).glob("*.json")) if (staging / DIRECTORY).is_dir() else []
    for path in indexes:
        index = strict_json.loads(files.read_at_most(path, MAX_INDEX_BYTES))
        publisher, plugin_id, name = (_text(index, key) for key in ("publisher", "plugin", "name"))
        if not (publisher == UNSIGNED or ids.is_valid(publisher)) or not ids.is_valid(plugin_id):
            raise ValueError(f"expected a publisher and a plugin's id, found {publisher[:80]!r}, {plugin_id[:80]!r}")
        if not NAME.fullmatch(name):
            raise ValueError(f"expected a service's name, found {name[:80]!r}")
        place = ServiceData(target).place(f"{publisher}/{plugin_id}", name)
        place.mkdir(mode=0o700, parents=True)
        with path.with_suffix(".data").open("rb", buffering=0) as source:
            for entry in index["entries"]:
                _make(place, entry, source.fileno())
            if source.read(1):
                raise ValueError("there is more in a service's files than its index says")
    for directory, _, _ in os.walk(target):
        files.sync_directory(target.__class__(directory))
    return bool(indexes)


def _write_index(index: BinaryIO, of: dict[str, str], entries: Iterator[list[Any]]) -> None:
    """Write the index of the service `of`, one entry at a time. OSError; _LeftOut for more than a restore reads."""
    tail = b"]," + encode(of).encode("ascii")[1:] + b"\n"
    size, comma = index.write(b'{"entries":[') + len(tail), b""
    for entry in entries:
        line = comma + encode(entry).encode("ascii")
        # Names and targets may have 255 and 4,095 bytes, at 64 levels, and three characters for each byte.
        if (size := size + len(line)) > MAX_INDEX_BYTES:
            raise _LeftOut(f"expected names with at most {MAX_INDEX_BYTES} bytes in all, found more")
        index.write(line)
        comma = b","
    index.write(tail)


def _copied(place: Path, out: int, unread: _Unread, most: int) -> Iterator[list[Any]]:
    """Append the bytes of all files in `place` to `out`, and yield each entry: kind, path, mode, size or target.

    OSError of writing; _LeftOut, also for more than `most` bytes. What cannot be read is told to `unread`.
    """
    tree = data_tree.walk(place, unread.add)
    first: dict[tuple[int, ...], str] = {}
    while (entry := _next(tree)) is not None:
        path, file = quote_from_bytes(entry.path), _file(entry.found)
        if file in first:
            yield [_SAME, path, stat.S_IMODE(entry.found.st_mode), first[file]]
            continue
        try:
            row = _row(entry, path, out, most)
        except _ReadError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno not in _REPLACED:
                unread.add(entry.path, cause)
            continue
        if row is not None:
            if file:
                first[file] = path
            yield row


def _row(entry: data_tree.TreeEntry, path: str, out: int, most: int) -> list[Any] | None:
    """One entry as the index has it, the bytes of a file appended to `out`; None for what no backup has.

    _ReadError, _LeftOut, OSError.
    """
    mode = entry.found.st_mode
    if stat.S_ISDIR(mode):
        return [_DIRECTORY, path, stat.S_IMODE(mode), 0]
    if stat.S_ISLNK(mode):
        with _reading():
            target = os.readlink(entry.name, dir_fd=entry.directory)
        return [_LINK, path, stat.S_IMODE(mode), quote_from_bytes(target)]
    if stat.S_ISREG(mode) and (size := _copied_file(entry, out, most)) is not None:
        return [_FILE, path, stat.S_IMODE(mode), size]
    return None


def _file(found: os.stat_result) -> tuple[int, ...]:
    """What two names of one file have in common; empty for a file of one name, and for a directory.

    An inode's number is used again for another file: its size and time have to be the same as well.
    """
    if found.st_nlink == 1 or stat.S_ISDIR(found.st_mode):
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _on_disk(place: Path) -> int:
    """The bytes that the files of a service take on the disk, where holes take none."""
    found: dict[tuple[int, int], int] = {}
    with contextlib.suppress(OSError, data_tree.TooDeep):  # told by who copies it
        for entry in data_tree.walk(place, lambda *_: None):
            found[entry.found.st_dev, entry.found.st_ino] = entry.found.st_blocks * 512
    return sum(found.values())


def _next(tree: Iterator[data_tree.TreeEntry]) -> data_tree.TreeEntry | None:
    """The next entry, None at the end; _LeftOut where there can be none."""
    try:
        return next(tree, None)
    except data_tree.TooDeep as error:
        raise _LeftOut("too many levels of directories") from error
    except FileNotFoundError as error:
        raise _LeftOut from error
    except OSError as error:
        raise _LeftOut(error.strerror or str(error)) from error


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Have an OSError of the block be a _ReadError."""
    try:
        yield
    except OSError as error:
        raise _ReadError from error


def _copied_file(entry: data_tree.TreeEntry, out: int, most: int) -> int | None:
    """Append one file to `out`; how many bytes, None for no regular file any more. _ReadError: nothing is appended.

    _LeftOut when `out` would have more than `most` bytes.
    """
    with _reading():
        fd = _opened(entry)
    start, size = os.lseek(out, 0, os.SEEK_END), 0
    with closing(fd):
        try:
            for _ in range(_TRIES):
                os.ftruncate(out, start)
                os.lseek(out, start, os.SEEK_SET)
                before = os.fstat(fd)
                if not stat.S_ISREG(before.st_mode):
                    return None
                if start + before.st_size > most:
                    raise _LeftOut(f"expected at most {most} bytes, twice service.data_bytes or its files, found more")
                size = _copy(fd, out, before.st_size)
                after = os.fstat(fd)
                seen = (after.st_size, after.st_mtime_ns, after.st_ctime_ns)
                if seen == (size, before.st_mtime_ns, before.st_ctime_ns):
                    break
        except _ReadError:
            os.ftruncate(out, start)
            raise
    return size


def _opened(entry: data_tree.TreeEntry) -> int:
    """A descriptor to read a file by. OSError."""
    name = os.fsdecode(entry.name)
    try:
        return files.open_file(name, beneath=entry.directory)
    except PermissionError:  # the program took its own right to read away
        data_tree.make_readable(entry.name, entry.directory, mode=0o600)
        return files.open_file(name, beneath=entry.directory)


def _copy(fd: int, out: int, most: int) -> int:
    """Copy at most `most` bytes from the beginning of `fd`; how many there were. _ReadError; OSError of writing."""
    copied = 0
    while copied < most:
        with _reading():
            chunk = os.pread(fd, min(_CHUNK, most - copied), copied)
        if not chunk:
            break
        files.write_all(out, chunk)
        copied += len(chunk)
    return copied


def _make(place: Path, entry: Any, source: int) -> None:
    """Make one entry of an index below `place`, a file with the next bytes of `source`. ValueError, OSError."""
    if not isinstance(entry, list) or len(entry) != 4:
        raise ValueError("expected entries of kind, path, mode and size")
    kind, quoted, mode, more = entry
    if not isinstance(quoted, str) or not isinstance(mode, int) or not 0 <= mode <= 0o7777:
        raise ValueError("expected a path and a mode in each entry")
    with contextlib.ExitStack() as stack:
        above, name = _reached(place, quoted, stack)
        if kind == _DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=above)
            data_tree.make_readable(name, above, mode=mode & 0o777 | 0o700)  # mkdir(2) takes the umask away
        elif kind == _LINK and isinstance(more, str):
            os.symlink(unquote_to_bytes(more), name, dir_fd=above)
        elif kind == _FILE and isinstance(more, int) and more >= 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = stack.enter_context(closing(os.open(name, flags, 0o600, dir_fd=above)))
            os.fchmod(fd, mode & 0o777 | 0o600)
            _fill(fd, source, more)
        elif kind == _SAME and isinstance(more, str):
            there, first = _reached(place, more, stack)
            os.link(first, name, src_dir_fd=there, dst_dir_fd=above, follow_symlinks=False)
        else:
            raise ValueError(f"expected a file, a directory or a link, found {str(kind)[:20]!r}")


def _reached(place: Path, quoted: str, stack: contextlib.ExitStack) -> tuple[int, bytes]:
    """The directory of a path below `place`, open as long as `stack`, and the path's last part. ValueError, OSError."""
    parts = unquote_to_bytes(quoted).split(b"/")
    if len(parts) > data_tree.MAX_LEVELS + 1 or any(part in {b"", b".", b".."} or b"\0" in part for part in parts):
        raise ValueError(f"expected a path within the directory, found {quoted[:80]!r}")
    above = stack.enter_context(closing(files.open_directory(place)))
    for part in parts[:-1]:
        above = stack.enter_context(closing(files.open_directory(os.fsdecode(part), beneath=above)))
    return above, parts[-1]


def _fill(fd: int, source: int, size: int) -> None:
    """Write the next `size` bytes of `source` to `fd`, durably; ValueError when there are fewer."""
    while size:
        chunk = os.read(source, min(_CHUNK, size))
        if not chunk:
            raise ValueError("there is less in a service's files than its index says")
        files.write_all(fd, chunk)
        size -= len(chunk)
    os.fsync(fd)


def _text(index: Any, key: str) -> str:
    """A member of an index that is a text; ValueError when it is not."""
    if not isinstance(index, dict) or not isinstance(found := index.get(key), str):
        raise ValueError(f"expected {key} to be a text in the index of a service")  # noqa: TRY004 - as any bad index
    return found
