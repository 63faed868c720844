"""Reading the journal by running journalctl(1): from a cursor on, so that no entry is lost or comes twice.

Fields that begin with `_` are journald's own and cannot be forged (systemd.journal-fields(7)); all others are set
by the program that logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

SOCKET: Final = Path("/run/systemd/journal/socket")
_PLACES: Final = (Path("/run/log/journal"), Path("/var/log/journal"))
# What is asked for and kept of an entry: journald's own fields say who logged, the first two what. Those of the second
# line are journald's, too, in an entry of its own (`_TRANSPORT=driver`): how many it dropped, and of whom.
FIELDS: Final = (
    *("MESSAGE", "PRIORITY", "_PID", "_UID", "_COMM", "_EXE", "_SYSTEMD_UNIT"),
    *("_TRANSPORT", "N_DROPPED", "OBJECT_UID", "OBJECT_COMM", "OBJECT_EXE", "OBJECT_SYSTEMD_UNIT"),
)
DROPPED: Final = ("_TRANSPORT=driver", "MESSAGE_ID=a596d6fe7bfa4994828e72309e95d61e")
"""Matches journald's own entries about messages that it dropped because a unit logged too fast (journald.conf(5),
RateLimitBurst; the id is SD_MESSAGE_JOURNAL_DROPPED of sd-messages.h). It writes one with the first message that it
takes again.
"""
MAX_ENTRY_BYTES: Final = 1 << 20
"""How long one entry may be as JSON; longer ones are skipped."""
MAX_MESSAGE: Final = 16 << 10
"""How many characters of a message are kept."""
_MAX_FIELD: Final = 512
"""Of any other field; some of them a program chooses."""
MAX_READ_CHARACTERS: Final = 256 << 10
"""How many characters the messages of one read may have; the last message may go beyond it."""
MAX_READ_ENTRIES: Final = 5_000
"""How many entries one read looks at, wanted or not."""

_CHUNK: Final = 1 << 16
# Opaque by systemd.journal-fields(7), but entries have to be put in order: s is the sequence, i the number in it, t the
# time in microseconds.
_CURSOR: Final = re.compile(r"s=[0-9a-f]+;i=([0-9a-f]+);b=[0-9a-f]+;m=[0-9a-f]+;t=([0-9a-f]+);x=[0-9a-f]+")
# Not the daemon's own: output must not depend on its language, nor PATH lead to another journalctl.
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}


class JournalUnreadable(Exception):
    """journalctl cannot be run, or it failed; the message is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One entry: FIELDS as text (empty where missing), its cursor, and when journald got it (µs since the epoch)."""

    fields: Mapping[str, str]
    cursor: str
    at_us: int


def available() -> bool:
    """Whether there is a journald here that keeps a journal, and a journalctl to read with."""
    return SOCKET.exists() and is_kept() and shutil.which("journalctl", path=_ENVIRONMENT["PATH"]) is not None


def may_read() -> bool:
    """Whether the kernel lets this process read the system's journal."""
    return any(os.access(path, os.R_OK) for place in _PLACES for path in place.glob("*/system.journal"))


def is_kept() -> bool:
    """Whether there is a journal; without one journalctl finds no entry, and no fault."""
    return any(any(place.glob("*/*.journal")) for place in _PLACES)


def is_cursor(text: str) -> bool:
    """Whether `text` has the form of journald's cursors."""
    return _CURSOR.fullmatch(text) is not None


def cursor_us(cursor: str) -> int:
    """When journald got the entry of a cursor (µs since the epoch); 0 for what is no cursor."""
    found = _CURSOR.fullmatch(cursor)
    return int(found[2], 16) if found else 0


async def oldest_us() -> int | None:
    """When journald got the oldest entry of the system's that is still there, those of uid 0 among them (other users
    have files of their own); None without one. JournalUnreadable.
    """
    async with contextlib.aclosing(_entries((), ("--system", "--output-fields=_PID"))) as entries:
        async for entry in entries:
            return entry.at_us
    return None


async def newest(
    matches: tuple[str, ...], wanted: Callable[[JournalEntry], bool], limit: int
) -> tuple[list[JournalEntry], str]:
    """The last `limit` wanted entries, in order, and the cursor to go on from ("" when the journal is empty).

    `matches` are journalctl's (FIELD=VALUE); `wanted` filters what they match. Only the last 2 × `limit` entries that
    match are looked at, so fewer wanted ones may be found than there are. JournalUnreadable.
    """
    last = ""
    async for entry in _entries((), ("--lines=1", "--output-fields=_PID")):
        last = entry.cursor  # taken first: what arrives while we read is left to the next read
    if limit == 0:
        return [], last
    found = [entry async for entry in _entries(matches, (f"--lines={2 * limit}",)) if wanted(entry)]
    # Entries that arrived after the cursor was taken are left to the next read.
    before = [entry for entry in found if not last or not _is_after(entry.cursor, last)]
    return _newest_that_fit(before[-limit:]), last


async def following(
    matches: tuple[str, ...], wanted: Callable[[JournalEntry], bool], limit: int, *, cursor: str, since_us: int = 0
) -> tuple[list[JournalEntry], str, bool]:
    """At most `limit` wanted entries after `cursor`, the cursor to go on from, and whether the entry of `cursor` itself
    was seen: one that `matches` match and that is not seen is gone from the journal, with others that came after it.

    With an empty `cursor` from `since_us` on (microseconds since the epoch). Ends early at MAX_READ_CHARACTERS or
    MAX_READ_ENTRIES; what is left comes with the next call. JournalUnreadable.
    """
    # Not --after-cursor: where the cursor's own entry does not match, systemd 252 starts too early or skips an entry.
    # @ takes seconds (systemd.time(7)), and --cursor includes its own entry: the loop below leaves out the surplus.
    start = (f"--cursor={cursor}",) if cursor else (f"--since=@{since_us // 1_000_000}",)
    found: list[JournalEntry] = []
    read, size, last, seen = 0, 0, cursor, False
    # Leaving the loop early must end journalctl now, not when the generator is collected.
    async with contextlib.aclosing(_entries(matches, start)) as entries:
        async for entry in entries:
            seen = seen or _number(entry.cursor) == _number(cursor)
            if (cursor and not _is_after(entry.cursor, cursor)) or entry.at_us < since_us:
                continue
            read, last = read + 1, entry.cursor
            if wanted(entry):
                found.append(entry)
                size += len(entry.fields["MESSAGE"])
            if len(found) >= limit or size >= MAX_READ_CHARACTERS or read >= MAX_READ_ENTRIES:
                break
    return found, last, seen


def _newest_that_fit(entries: list[JournalEntry]) -> list[JournalEntry]:
    """The last ones whose messages fit into MAX_READ_CHARACTERS."""
    size, kept = 0, len(entries)
    while kept and size < MAX_READ_CHARACTERS:
        kept -= 1
        size += len(entries[kept].fields["MESSAGE"])
    return entries[kept:]


async def _entries(matches: tuple[str, ...], start: tuple[str, ...]) -> AsyncGenerator[JournalEntry, None]:
    """The entries that journalctl prints for `matches` and the options `start`, as it prints them. JournalUnreadable.

    journalctl is killed when the generator is closed.
    """
    fields = () if any(one.startswith("--output-fields") for one in start) else (f"--output-fields={','.join(FIELDS)}",)
    # --all: without it journalctl(1) prints null in JSON for a field of more than 4096 bytes.
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
        raise JournalUnreadable(f"journalctl cannot be run: {error.strerror}") from error
    # Beside the output: a full pipe would stop journalctl.
    hearing = asyncio.create_task(_heard(_pipe(child.stderr)))
    try:
        async for line in _lines(_pipe(child.stdout)):
            if (entry := _decoded(line)) is not None:
                yield entry
        errors = await hearing
        if await child.wait() and errors.strip():  # without any entry it exits with 1 too, and prints nothing
            raise JournalUnreadable(errors.decode("utf-8", "replace").strip()[:300])
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has exited, as it does at the journal's end
            child.kill()
        # Until its pipes are read to the end: no transport is left open.
        while await _pipe(child.stdout).read(_CHUNK):
            pass
        await hearing
        await child.wait()


async def _heard(stream: asyncio.StreamReader) -> bytes:
    """The beginning of what is read from a stream, which is read to its end."""
    kept = b""
    while chunk := await stream.read(_CHUNK):
        kept = (kept + chunk)[:4_096]
    return kept


def _pipe(stream: asyncio.StreamReader | None) -> asyncio.StreamReader:
    assert stream is not None  # noqa: S101 - made with PIPE
    return stream


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of at most MAX_ENTRY_BYTES; longer ones are skipped and never held in memory."""
    buffer, skipping = bytearray(), False
    while chunk := await stream.read(_CHUNK):
        *ended, rest = chunk.split(b"\n")
        # The first one ends what is in the buffer, or the long line that is being skipped.
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
    """One entry, or None for a line that is none: journalctl writes JSON, with field values of any program."""
    try:
        found = json.loads(line)
        cursor, at_us = found["__CURSOR"], int(found["__REALTIME_TIMESTAMP"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(cursor, str) or not is_cursor(cursor):
        return None
    fields = {name: _text(found.get(name))[: MAX_MESSAGE if name == "MESSAGE" else _MAX_FIELD] for name in FIELDS}
    return JournalEntry(fields=fields, cursor=cursor, at_us=at_us)


def _text(value: Any) -> str:
    """A field as text: journalctl prints bytes that are not UTF-8 as numbers, and a repeated field as a list."""
    match value:
        case str():
            return value
        case [int(), *_]:
            return bytes(byte & 0xFF for byte in value if isinstance(byte, int)).decode("utf-8", "replace")
        case [first, *_]:
            return _text(first)
        case _:
            return ""


def _number(cursor: str) -> str:
    """The part of a cursor that numbers its entry: the sequence, and the place in it."""
    return cursor.partition(";b=")[0]


def _is_after(cursor: str, other: str) -> bool:
    """Whether an entry comes after another: by sequence number, or by time when the sequences differ (`s=`)."""
    one, another = _CURSOR.fullmatch(cursor), _CURSOR.fullmatch(other)
    if one is None or another is None:
        return cursor != other
    if cursor.partition(";")[0] == other.partition(";")[0]:
        return int(one[1], 16) > int(another[1], 16)
    return cursor != other and int(one[2], 16) >= int(another[2], 16)
