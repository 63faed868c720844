"""The journal reader's side of node.journal: entries of listed units and of sshd, from journald or from auth.log.

Runs in the reader's process (latticed/journal.py), which checks requests against its own settings: a compromised
daemon can read no other units. The daemon's side is `journal_client`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta

from latticed.host.call import HostError, Params
from latticed.host.node.journal_client import HEADS, may_read
from latticed.kit import journalctl, text, text_log
from latticed.kit.clock import rfc3339
from latticed.model import chain
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latticed.kit.journalctl import JournalEntry

MAX_MESSAGE: Final = 16 << 10
"""Characters of one message; longer ones are cut, with a mark."""
SSHD: Final = "sshd"

# OpenSSH 9.8 moved sessions to sshd-session, 10.0 authentication to sshd-auth.
_SSHD_COMMS: Final = ("sshd", "sshd-session", "sshd-auth")
_SSHD_MATCHES: Final = ("_UID=0", *(f"_COMM={comm}" for comm in _SSHD_COMMS), "+", *journalctl.DROPPED)
# What journald says of sshd's own processes: the unit (ssh.service on Debian, sshd@… for one per connection), or the
# installed file, for sessions that run in a scope of the user's. `_EXE` is the path that the kernel has.
_SSHD_UNIT: Final = re.compile(r"sshd?(?:@[^/]*)?\.service")
_SSHD_EXE: Final = re.compile(
    r"/usr/(?:local/)?s?bin/sshd|/usr/(?:local/)?(?:lib|libexec)/(?:openssh|ssh)/sshd-(?:session|auth)"
    r"|/usr/(?:local/)?libexec/sshd-(?:session|auth)"
)
# A line of syslog, with the traditional time or RFC 3339's; then host, program, pid and message.
_AUTH_LINE: Final = re.compile(
    r"(?P<at>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT\S{8,25}) \S+ "
    r"(?P<comm>sshd(?:-session|-auth)?)\[(?P<pid>\d{1,10})\]: (?P<message>.*)",
    re.DOTALL,
)
# So long after the time in it, a cursor that nothing comes after is answered with another time.
_LATE_US: Final = 3_600 * 1_000_000
_DAY_S: Final = 86_400
# From any year on, so many hold a 29 February, also around a year such as 2100.
_YEARS: Final = 9
# It becomes an argument of journalctl (`_SYSTEMD_UNIT=…`): what systemd.unit(5) allows in names.
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.@\\-]{1,255}")


class JournalQuery(Params, frozen=True):
    """One request, a line of JSON from the daemon: the same fields as parameters of node.journal."""

    filter: Annotated[str, Meta(min_length=1, max_length=256)]
    cursor: Annotated[str, Meta(max_length=1_024)] = ""
    limit: Annotated[int, Meta(ge=0, le=500)] = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where entries come from: journald, or else the text log at `auth_log`; only `units` (what the operator listed)
    and sshd may be read.
    """

    units: tuple[str, ...]
    auth_log: Path
    use_journald: bool


async def answer(sources: Sources, asked: JournalQuery, *, uid: int) -> dict[str, Any]:
    """`{entries, cursor, gap}` for a peer of `uid`; HostError bad_params, service_unavailable.

    Without a cursor: the newest entries. With one: those after it, oldest first; if there are more than fit or than
    `limit`, the next cursor is that of the last one returned. `gap`: entries after the cursor may have been removed.
    Cursors: `j:` an entry that the filter matches, `n:` any entry of journald, either with `@` and a time (µs) until
    which everything was read; `t:` such a time while the journal is empty; `f:` a position in auth.log.
    """
    if asked.filter == HEADS and sources.use_journald and not asked.cursor:
        # By the user, which nobody can forge: so that no flood of lookalikes hides the genuine ones.
        of_heads = (f"_UID={uid}", f"LATTICED_EVENT={chain.HEAD_EVENT}")
        try:
            return await _read_journald(asked, of_heads, _is_any)
        except journalctl.JournalUnreadable as error:
            raise _unreadable(error) from error
    if not may_read(asked.filter, sources.units) or not _UNIT.fullmatch(asked.filter):
        shown = text.sanitise(asked.filter, 80)
        raise HostError(Denial.BAD_PARAMS, f"expected sshd or a unit that the operator listed, found {shown!r}")
    if sources.use_journald:
        return await _from_journald(asked)
    if asked.filter != SSHD:
        raise HostError(Denial.SERVICE_UNAVAILABLE, "there is no journald here; without it only sshd can be read")
    # In a thread: it reads up to some MiB from disk.
    return await asyncio.to_thread(_from_auth_log, sources.auth_log, asked)


# journald.


async def _from_journald(asked: JournalQuery) -> dict[str, Any]:
    """As `answer`, from journald."""
    unit, is_sshd = asked.filter, asked.filter == SSHD
    of_unit = (f"_SYSTEMD_UNIT={unit}", "+", *journalctl.DROPPED, f"OBJECT_SYSTEMD_UNIT={unit}")
    try:
        return await _read_journald(asked, _SSHD_MATCHES if is_sshd else of_unit, _is_sshd if is_sshd else _is_any)
    except journalctl.JournalUnreadable as error:
        raise _unreadable(error) from error


def _unreadable(error: journalctl.JournalUnreadable) -> HostError:
    return HostError(Denial.SERVICE_UNAVAILABLE, f"the journal cannot be read: {error}")


async def _read_journald(
    asked: JournalQuery, matches: tuple[str, ...], wanted: Callable[[JournalEntry], bool]
) -> dict[str, Any]:
    """As `answer`; `matches` and `wanted` as of `journalctl.newest`.

    HostError bad_params for a cursor of another kind; journalctl.JournalUnreadable.
    """
    now_us = time.time_ns() // 1_000
    if not asked.cursor:
        # The time was taken before: an entry that is written meanwhile is then after the cursor, not lost.
        found, last = await journalctl.newest(matches, wanted, asked.limit)
        if not last and not journalctl.is_kept():
            raise journalctl.JournalUnreadable("journald keeps none here (Storage= in journald.conf)")
        return _answered(found, f"n:{last}" if last else f"t:{now_us}")
    place = _parse_place(asked.cursor)
    # Nothing is asked for: the place stays the same, and no process is started.
    if not asked.limit:
        return _answered([], asked.cursor)

    async def read() -> tuple[list[JournalEntry], str, bool]:
        since_us = 0 if place.position else place.read_us
        return await journalctl.following(matches, wanted, asked.limit, cursor=place.position, since_us=since_us)

    found, last, seen = await read()
    is_late = now_us - place.read_us >= _LATE_US
    if seen or place.kind == "t" or (place.kind == "n" and not is_late):
        if last != place.position:
            return _answered(found, f"j:{last}")
        return _answered([], f"{place.kind}:{last}@{now_us}" if is_late and last else asked.cursor)
    oldest_us = await journalctl.oldest_us()
    gap = oldest_us is None or oldest_us > place.read_us
    if last == place.position:
        # Nothing is left to go on from, and the next question must not find this again. The newest entry of all is
        # asked for first, so that what is written meanwhile is after it.
        beginning = await _read_journald(JournalQuery(filter=asked.filter, limit=0), matches, wanted)
        found, last, _ = await read()
        if last == place.position:
            return {**beginning, "gap": gap}
    return _answered(found, f"j:{last}", gap=gap)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A cursor of `kind` j, n or t: an entry of journald (none for t), and until when everything was read (µs)."""

    kind: str
    position: str
    read_us: int


def _parse_place(cursor: str) -> _Place:
    """The place that a cursor of journald stands for; HostError bad_params for a cursor of another kind."""
    kind, _, rest = cursor.partition(":")
    position, _, stamp = rest.partition("@")
    if kind == "t" and (since_us := _number(rest)) is not None:
        return _Place(kind=kind, position="", read_us=since_us)
    if kind not in {"j", "n"} or not journalctl.is_cursor(position) or (stamp and _number(stamp) is None):
        raise _bad_cursor()
    return _Place(kind=kind, position=position, read_us=max(journalctl.cursor_us(position), _number(stamp) or 0))


def _answered(found: list[JournalEntry], cursor: str, *, gap: bool = False) -> dict[str, Any]:
    return {"entries": [_shown(entry) for entry in found], "cursor": cursor, "gap": gap}


def _is_sshd(entry: JournalEntry) -> bool:
    """Whether sshd itself wrote an entry, or journald wrote that it dropped some of sshd's; judged by journald's own
    fields (systemd.journal-fields(7)). SYSLOG_IDENTIFIER does not count, as any program may set it.
    """
    prefix = "OBJECT" if _dropped(entry) else ""
    uid, comm, exe, unit = (entry.fields[f"{prefix}_{name}"] for name in ("UID", "COMM", "EXE", "SYSTEMD_UNIT"))
    if uid != "0" or comm not in _SSHD_COMMS:
        return False
    return bool(_SSHD_UNIT.fullmatch(unit) or _SSHD_EXE.fullmatch(exe))


def _dropped(entry: JournalEntry) -> int:
    """Of how many messages journald itself says in an entry that it dropped them; 0 for any other entry."""
    return (_number(entry.fields["N_DROPPED"]) or 0) if entry.fields["_TRANSPORT"] == "driver" else 0


def _is_any(_: JournalEntry) -> bool:
    """True for every entry: for a unit, journalctl's match is enough, as `_SYSTEMD_UNIT` cannot be forged."""
    return True


def _shown(entry: JournalEntry) -> dict[str, Any]:
    """An entry of journald, as node.journal shows it."""
    known = entry.fields
    dropped = _dropped(entry)
    return {
        "id": hashlib.sha256(entry.cursor.encode("ascii")).hexdigest()[:32],
        "at": rfc3339(entry.at_us),
        "unit": text.sanitise(known["OBJECT_SYSTEMD_UNIT" if dropped else "_SYSTEMD_UNIT"], 256) or None,
        "comm": text.sanitise(known["_COMM"], 64) or None,
        "pid": _number(known["_PID"]),
        "uid": _number(known["_UID"]),
        "priority": _number(known["PRIORITY"]),
        "message": text.sanitise(known["MESSAGE"], MAX_MESSAGE),
        "trusted": True,
        "dropped": dropped,
    }


# auth.log: any program may write any line there, so no entry is marked as trusted.


def _from_auth_log(path: Path, asked: JournalQuery) -> dict[str, Any]:
    """As `answer`, from the text log. Blocks."""
    try:
        lines, mark, found = _read_auth_log(path, asked)
    except OSError as error:
        words = error.strerror or str(error)
        raise HostError(Denial.SERVICE_UNAVAILABLE, f"{path.name} cannot be read: {words}") from error
    now_s = time.time()
    entries = [_entry(line, now_s) for line in lines]
    return {"entries": entries, "cursor": f"f:{mark}", "gap": not found}


def _read_auth_log(path: Path, asked: JournalQuery) -> tuple[list[bytes], text_log.Mark, bool]:
    """(lines of sshd, the mark after what was read, whether the cursor's place was found); HostError bad_params for a
    cursor of another kind, OSError.
    """
    if not asked.cursor:
        return (*text_log.newest(path, _is_sshd_line, asked.limit), True)
    kind, _, position = asked.cursor.partition(":")
    mark = text_log.parse_mark(position)
    if kind != "f" or mark is None:
        raise _bad_cursor()
    return text_log.following(path, _is_sshd_line, asked.limit, mark=mark) if asked.limit else ([], mark, True)


def _is_sshd_line(line: bytes) -> bool:
    """Whether a line claims to be sshd's; the first test is a cheap one for most lines."""
    return b" sshd" in line and _parsed(line) is not None


def _parsed(line: bytes) -> re.Match[str] | None:
    """The parts of a line of the text log; None for a line that does not have its form."""
    return _AUTH_LINE.fullmatch(line.decode("utf-8", "replace").rstrip("\r"))


def _entry(line: bytes, now_s: float) -> dict[str, Any]:
    """A line of the text log, which `_parsed` takes, as node.journal shows it."""
    found = _parsed(line)
    assert found is not None  # noqa: S101 - only such lines are wanted
    return {
        # Of the line alone: neither renaming nor copying the log may change it.
        "id": hashlib.sha256(line).hexdigest()[:32],
        "at": _rfc3339(found["at"], now_s),
        "unit": None,
        "comm": found["comm"],
        "pid": int(found["pid"]),
        "uid": None,
        "priority": None,
        "message": text.sanitise(found["message"], MAX_MESSAGE),
        "trusted": False,
        "dropped": 0,
    }


def _rfc3339(stamp: str, now_s: float) -> str | None:
    """A line's time in UTC (RFC 3339), or None. The traditional form is local time and has no year: the last one that
    fits.

    "2026-01-02T03:04:05+01:00"                     ->  "2026-01-02T02:04:05.000000Z"
    "Dec 31 23:59:59", asked on the 1st of January  ->  a time of the year before
    """
    this_year = time.localtime(now_s).tm_year
    # The form of RFC 3339 has its own year, and is tried once.
    for year in (0,) if stamp[0].isdigit() else range(this_year, this_year - _YEARS, -1):
        # An impossible date: 30 February in any year, 29 February in most; or one that time_t cannot hold.
        with contextlib.suppress(ValueError, OverflowError, OSError):
            if not year:
                return rfc3339(int(datetime.fromisoformat(stamp).timestamp() * 1_000_000))
            # strptime with the year in front: without one, 29 February is no date.
            seconds = time.mktime(time.strptime(f"{year} {stamp}", "%Y %b %d %H:%M:%S"))
            # With a day to spare, for clocks that were set back; what is later still was in an earlier year.
            if seconds < now_s + _DAY_S:
                return rfc3339(int(seconds) * 1_000_000)
    return None  # the entry is shown without a time


def _number(field: str) -> int | None:
    """A field as a number; None unless it is 1 to 19 ASCII digits."""
    # 19 digits always fit into 64 bits. isascii, because isdigit is true for other scripts and superscripts.
    return int(field) if field.isascii() and field.isdigit() and len(field) < 20 else None


def _bad_cursor() -> HostError:
    """The HostError for a cursor that is not one of this source."""
    return HostError(Denial.BAD_PARAMS, "cursor: expected one that this host gave, found another; begin without one")
