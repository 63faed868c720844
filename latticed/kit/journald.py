"""Reading the journal with journalctl(1), from a cursor on, so that nothing is lost and nothing comes twice.

Fields that begin with `_` are journald's own and cannot be forged (systemd.journal-fields(7)); all others are whatever
the program that logged has put there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

SOCKET: Final = Path("/run/systemd/journal/socket")
FIELDS: Final = ("MESSAGE", "PRIORITY", "_PID", "_UID", "_COMM", "_EXE", "_SYSTEMD_UNIT")
MAX_ENTRY_BYTES: Final = 1 << 20
"""Of one entry as JSON; longer ones are passed over, for nobody writes such a line to be read."""
MAX_MESSAGE: Final = 16 << 10
"""Characters of a message; the rest of a longer one is left out."""
MOST_CHARACTERS: Final = 256 << 10
"""Of all messages of one reading, give or take one."""
MOST_LOOKED_AT: Final = 5_000
"""Entries of one reading, wanted or not."""

_CHUNK: Final = 1 << 16
_CURSOR: Final = re.compile(r"s=[0-9a-f]+;i=([0-9a-f]+);b=[0-9a-f]+;m=[0-9a-f]+;t=([0-9a-f]+);x=[0-9a-f]+")
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}


class Unreadable(Exception):
    """journalctl cannot be run, or says why not; the message is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One entry: its fields as text, where it lies, and when it was taken in (microseconds since the epoch)."""

    fields: Mapping[str, str]
    cursor: str
    at_us: int


def available() -> bool:
    """Whether there is a journald here, and a journalctl to read with."""
    return SOCKET.exists() and shutil.which("journalctl", path=_ENVIRONMENT["PATH"]) is not None


def is_cursor(text: str) -> bool:
    """Whether `text` has the form of journald's cursors."""
    return _CURSOR.fullmatch(text) is not None


async def newest(
    matches: tuple[str, ...], wanted: Callable[[JournalEntry], bool], most: int
) -> tuple[list[JournalEntry], str]:
    """The last `most` wanted entries, in order, and the cursor to go on from (empty: the journal is)."""
    last = ""
    async for entry in _entries((), ("--lines=1", "--output-fields=_PID")):
        last = entry.cursor  # taken first: what comes while we read is for the next reading
    if most == 0:
        return [], last
    found = [entry async for entry in _entries(matches, (f"--lines={2 * most}",)) if wanted(entry)]
    # What was taken in since the cursor was, the next reading finds.
    before = [entry for entry in found if not last or not _is_after(entry.cursor, last)]
    return _fitting(before[-most:]), last


async def following(
    matches: tuple[str, ...], wanted: Callable[[JournalEntry], bool], most: int, *, cursor: str, since_us: int = 0
) -> tuple[list[JournalEntry], str]:
    """At most `most` wanted entries after `cursor` (empty: from `since_us` on), and the cursor to go on from."""
    # Not --after-cursor: where the cursor's own entry does not match, 252 gives an earlier one, or passes one over.
    start = (f"--cursor={cursor}",) if cursor else (f"--since=@{since_us // 1_000_000}",)
    found: list[JournalEntry] = []
    looked_at, size, last = 0, 0, cursor
    async with contextlib.aclosing(_entries(matches, start)) as entries:
        async for entry in entries:
            if (cursor and not _is_after(entry.cursor, cursor)) or entry.at_us < since_us:
                continue
            looked_at, last = looked_at + 1, entry.cursor
            if wanted(entry):
                found.append(entry)
                size += len(entry.fields["MESSAGE"])
            if len(found) >= most or size >= MOST_CHARACTERS or looked_at >= MOST_LOOKED_AT:
                break
    return found, last


def _fitting(entries: list[JournalEntry]) -> list[JournalEntry]:
    """The last of them that fit."""
    size, kept = 0, len(entries)
    while kept and size < MOST_CHARACTERS:
        kept -= 1
        size += len(entries[kept].fields["MESSAGE"])
    return entries[kept:]


async def _entries(matches: tuple[str, ...], start: tuple[str, ...]) -> AsyncGenerator[JournalEntry, None]:
    fields = () if any(one.startswith("--output-fields") for one in start) else (f"--output-fields={','.join(FIELDS)}",)
    options = ("--quiet", "--no-pager", "--all", "--output=json", *fields, *start)
    try:
        child = await asyncio.create_subprocess_exec(
            "journalctl",
            *options,
            *matches,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_ENVIRONMENT,
        )
    except OSError as error:
        raise Unreadable(f"journalctl cannot be run: {error.strerror}") from error
    try:
        async for line in _lines(_pipe(child.stdout)):
            if (entry := _decoded(line)) is not None:
                yield entry
        said = await _pipe(child.stderr).read(_CHUNK)
        if await child.wait() and said.strip():  # no entries at all is 1 too, without a word
            raise Unreadable(said.decode("utf-8", "replace").strip()[:300])
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await _drained(child)


async def _drained(child: asyncio.subprocess.Process) -> None:
    """Until it is gone and its pipes are closed, whatever was left in them."""
    for pipe in (_pipe(child.stdout), _pipe(child.stderr)):
        while await pipe.read(_CHUNK):
            pass
    await child.wait()


def _pipe(stream: asyncio.StreamReader | None) -> asyncio.StreamReader:
    assert stream is not None  # noqa: S101 - asked for
    return stream


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of at most MAX_ENTRY_BYTES; longer ones are left out, never kept in memory."""
    buffer, skipping = bytearray(), False
    while chunk := await stream.read(_CHUNK):
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            if not skipping and len(buffer) + len(part) <= MAX_ENTRY_BYTES:
                yield bytes(buffer) + part
            buffer.clear()
            skipping = False
        buffer += rest
        if len(buffer) > MAX_ENTRY_BYTES:
            buffer.clear()
            skipping = True


def _decoded(line: bytes) -> JournalEntry | None:
    """One entry, or None for what is none (journalctl writes JSON; what it quotes is anybody's)."""
    try:
        found = json.loads(line)
        cursor, at_us = found["__CURSOR"], int(found["__REALTIME_TIMESTAMP"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(cursor, str) or not is_cursor(cursor):
        return None
    fields = {name: _text(found.get(name))[:MAX_MESSAGE] for name in FIELDS}
    return JournalEntry(fields=fields, cursor=cursor, at_us=at_us)


def _text(value: Any) -> str:
    """A field as text: bytes that are no UTF-8 come as numbers, a field that was given twice as a list of both."""
    match value:
        case str():
            return value
        case [int(), *_]:
            return bytes(byte & 0xFF for byte in value if isinstance(byte, int)).decode("utf-8", "replace")
        case [first, *_]:
            return _text(first)
        case _:
            return ""


def _is_after(cursor: str, other: str) -> bool:
    """Whether an entry lies after another: by their numbers, or by time when another journald counted."""
    mine, theirs = _CURSOR.fullmatch(cursor), _CURSOR.fullmatch(other)
    if mine is None or theirs is None:
        return cursor != other
    if cursor.partition(";")[0] == other.partition(";")[0]:
        return int(mine[1], 16) > int(theirs[1], 16)
    return cursor != other and int(mine[2], 16) >= int(theirs[2], 16)
