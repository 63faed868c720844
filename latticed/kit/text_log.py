"""Reading a growing log from where one left off, through its rotations (logrotate(8)): nothing lost, nothing twice.

A mark is inode, offset, a hash of the bytes before the offset, and when the file was written last. The inode finds the
file under its new name; the hash tells a file that was emptied, or replaced under an old inode, and finds the copy that
was made before it was emptied (copytruncate). Compressed parts are not read.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latticed.kit import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MAX_LINE_BYTES: Final = 16 << 10
"""How many bytes of a line are given; the rest of a longer one is left out."""
MOST_ANSWERED: Final = 256 << 10
"""How many bytes the wanted lines of one reading have; the last one may go beyond it."""
MOST_BYTES: Final = 4 << 20
"""How many bytes one reading looks at, wanted or not."""
MOST_PARTS: Final = 64
"""How many older parts are looked at; what lies in one before them is lost."""
TAIL_BYTES: Final = 1 << 20
"""How many bytes from the end the newest lines are looked for."""

_WITNESS_BYTES: Final = 64  # hashed before an offset, to recognise the file by
_MARK: Final = re.compile(r"(\d{1,20})-(\d{1,20})-(\d{1,20})-([0-9a-f]{16})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Where a reading ended: `offset` bytes from the beginning of the file `inode`, which was last written at
    `written_ns`.

    `witness` is a hash of the bytes before the offset. As text: the four with hyphens, to be kept by clients.
    """

    inode: int
    offset: int
    written_ns: int
    witness: str

    def __str__(self) -> str:
        return f"{self.inode}-{self.offset}-{self.written_ns}-{self.witness}"


def parse_mark(text: str) -> Mark | None:
    """The mark that `str(mark)` gave, or None when it is none."""
    found = _MARK.fullmatch(text)
    if found is None:
        return None
    return Mark(inode=int(found[1]), offset=int(found[2]), written_ns=int(found[3]), witness=found[4])


def newest(path: Path, wanted: Callable[[bytes], bool], most: int) -> tuple[list[bytes], Mark]:
    """The last `most` wanted lines of the log (without older parts), without their newlines, and the mark after all of
    it.

    Only the last TAIL_BYTES are looked at. OSError, also when `path` is a link or no regular file.
    """
    with files.closing(_open(path)) as fd:
        size = os.fstat(fd).st_size
        start = max(0, size - TAIL_BYTES)
        lines = list(_lines(fd, start, size))
        mark = _mark(fd, lines[-1][1] if lines else start)
        if start:
            lines = lines[1:]  # it began before
        found = [line for line, _ in lines if wanted(line)]
        return _fitting(found[-most:]) if most else [], mark


def following(path: Path, wanted: Callable[[bytes], bool], most: int, *, mark: Mark) -> tuple[list[bytes], Mark, bool]:
    """At most `most` wanted lines after `mark`, the mark to go on from, and whether the part that `mark` was made in
    was found: if not, lines may be missing before these. OSError as `newest`.

    Ends early at MOST_ANSWERED or MOST_BYTES; what is left comes with the next call.
    """
    parts = _parts_since(path, mark)
    try:
        found = _fits(parts[0][0], mark)
        return (*_read(parts, wanted, most, mark), found)
    finally:
        for fd, _ in parts:
            os.close(fd)


def _fitting(lines: list[bytes]) -> list[bytes]:
    """The last of the lines: as many as it takes to reach MOST_ANSWERED bytes, or all."""
    size, kept = 0, len(lines)
    while kept and size < MOST_ANSWERED:
        kept -= 1
        size += len(lines[kept])
    return lines[kept:]


def _read(
    parts: list[tuple[int, int]], wanted: Callable[[bytes], bool], most: int, mark: Mark
) -> tuple[list[bytes], Mark]:
    """The wanted lines of the `parts` (descriptor, where to begin), oldest first, and the mark after what was read.

    Ends early at `most` lines, MOST_ANSWERED bytes of them, or MOST_BYTES read. The mark is `mark` itself when nothing
    was read.
    """
    found: list[bytes] = []
    room, answered = MOST_BYTES, 0
    for fd, start in parts:
        # Taken once: what is written meanwhile is left to the next reading.
        size, place = os.fstat(fd).st_size, start
        end = min(size, start + room)
        for line, place in _lines(fd, start, end):
            if wanted(line):
                found.append(line)
                answered += len(line)
            if len(found) >= most or answered >= MOST_ANSWERED:
                return found, _mark(fd, place)
        # No mark in a part that is still empty: the writer may not have switched to it yet.
        if place > start:
            mark = _mark(fd, place)
        room -= end - start
        if end < size or room <= 0:  # a newer part must not be begun before this one was read to its end
            break
    return found, mark


def _parts_since(path: Path, mark: Mark) -> list[tuple[int, int]]:
    """Descriptors of the part that `mark` lies in and of the later ones, oldest first, and where to begin in each."""
    parts: list[tuple[int, int]] = []
    try:
        parts += [(_open(path.with_name(name)), 0) for name in _siblings(path)]
        begins = _place_of(mark, [os.fstat(fd) for fd, _ in parts], [fd for fd, _ in parts])
        for fd, _ in parts[:begins]:
            os.close(fd)
        del parts[:begins]
        # Otherwise the part is another one than the mark was made in: it is read from its beginning.
        if parts and _fits(parts[0][0], mark):
            parts[0] = (parts[0][0], mark.offset)
    except BaseException:
        for fd, _ in parts:
            os.close(fd)
        raise
    return parts


def _place_of(mark: Mark, found: list[os.stat_result], fds: list[int]) -> int:
    """The index of the part that `mark` lies in: the same file, else one with the same bytes before the mark.

    Where there are no bytes before the mark, or no part has them any more: the first part that was written since, else
    the newest.
    """
    fitting = [place for place, fd in enumerate(fds) if mark.offset and _fits(fd, mark)]
    same = [place for place in fitting if found[place].st_ino == mark.inode]
    since = [place for place, part in enumerate(found) if part.st_mtime_ns >= mark.written_ns]
    return next(iter([*same, *fitting, *since]), len(fds) - 1)


def _siblings(path: Path) -> list[str]:
    """The log's uncompressed parts, oldest first: `NAME-20260102`, `NAME.2`, `NAME.1`, `NAME`."""
    older = re.compile(re.escape(path.name) + r"([.-])(\d{1,14})")
    found = []
    for name in os.listdir(path.parent):
        if rotated := older.fullmatch(name):
            seen = os.stat(path.with_name(name), follow_symlinks=False)
            age = -int(rotated[2]) if rotated[1] == "." else int(rotated[2])  # of those written in the same moment
            if stat.S_ISREG(seen.st_mode):
                found.append((seen.st_mtime_ns, age, name))
    # Each is opened: a log that is rotated often, and never removed, must not use up descriptors.
    return [*(name for _, _, name in sorted(found)[-MOST_PARTS:]), path.name]


def _open(path: Path) -> int:
    """The log at `path`, opened for reading; a link, a FIFO or a device is refused without blocking. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(f"expected a regular file, found {path.name}")
    return fd


def _fits(fd: int, mark: Mark) -> bool:
    """Whether the file can be the one that `mark` was made in: long enough, with the same bytes before the offset."""
    return os.fstat(fd).st_size >= mark.offset and _witness(fd, mark.offset) == mark.witness


def _mark(fd: int, offset: int) -> Mark:
    """The mark for a reading of the open file `fd` that ended at `offset`."""
    found = os.fstat(fd)
    return Mark(inode=found.st_ino, offset=offset, written_ns=found.st_mtime_ns, witness=_witness(fd, offset))


def _witness(fd: int, offset: int) -> str:
    """A hash, as 16 hex digits, of up to _WITNESS_BYTES bytes before `offset`."""
    start = max(0, offset - _WITNESS_BYTES)
    return hashlib.sha256(os.pread(fd, offset - start, start)).hexdigest()[:16]


def _lines(fd: int, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """(line, offset after it) of the lines that end between two offsets; an unfinished one is left for later."""
    data = os.pread(fd, end - start, start)  # leaves the descriptor's offset alone
    place = 0
    while (newline := data.find(b"\n", place)) >= 0:
        line = data[place : min(newline, place + MAX_LINE_BYTES)]
        place = newline + 1
        yield line, start + place
    # As much as one reading may look at, without an end of line: else no later reading would get any further.
    if place == 0 and len(data) >= MOST_BYTES:
        yield data[:MAX_LINE_BYTES], start + len(data)
