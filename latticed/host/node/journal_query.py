"""The journal reader's side of node.journal: entries of listed units and of sshd, from journald or from auth.log.

Runs in the reader's process (latticed/journal.py), which checks requests against its own settings: a compromised
daemon can read no other units. The daemon's side is `journal_client`.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta

from latticed.host.call import HostError, Params
from latticed.host.node.journal_client import may_read
from latticed.kit import journalctl, text, text_log
from latticed.kit.clock import rfc3339
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
_SSHD_MATCHES: Final = ("_UID=0", *(f"_COMM={comm}" for comm in _SSHD_COMMS))
# What journald says of sshd's own processes: the unit (ssh.service on Debian, sshd@… for one per connection), or the
# installed file, for sessions that run in a scope of the user's. `_EXE` is the path that the kernel has.
_SSHD_UNIT: Final = re.compile(r"sshd?(?:@[^/]*)?\.service")
_SSHD_EXE: Final = re.compile(
    r"/usr/(?:local/)?sbin/sshd|/usr/(?:local/)?(?:lib|libexec)/(?:openssh|ssh)/sshd-(?:session|auth)"
    r"|/usr/(?:local/)?libexec/sshd-(?:session|auth)"
)
# A line of syslog, with the traditional time or RFC 3339's; then host, program, pid and message.
_AUTH_LINE: Final = re.compile(
    r"(?P<at>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT\S{8,25}) \S+ "
    r"(?P<comm>sshd(?:-session|-auth)?)\[(?P<pid>\d{1,10})\]: (?P<message>.*)",
    re.DOTALL,
)
_DAY_S: Final = 86_400
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


async def answer(sources: Sources, asked: JournalQuery) -> dict[str, Any]:
    """`{entries, cursor}`; HostError bad_params, service_unavailable.

    Without a cursor: the newest entries. With one: those after it, oldest first; if there are more than fit or than
    `limit`, the next cursor is that of the last one returned. Cursors: `j:` one of journald, `t:` a time in µs while
    the journal is empty, `f:` a position in auth.log.
    """
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
    is_sshd = asked.filter == SSHD
    matches = _SSHD_MATCHES if is_sshd else (f"_SYSTEMD_UNIT={asked.filter}",)
    try:
        found, cursor = await _read_journald(asked, matches, _is_sshd if is_sshd else _is_any)
    except journalctl.JournalUnreadable as error:
        raise HostError(Denial.SERVICE_UNAVAILABLE, f"the journal cannot be read: {error}") from error
    return {"entries": [_shown(entry) for entry in found], "cursor": cursor}


async def _read_journald(
    asked: JournalQuery, matches: tuple[str, ...], wanted: Callable[[JournalEntry], bool]
) -> tuple[list[JournalEntry], str]:
    """(entries, next cursor); `matches` and `wanted` as of `journalctl.newest`.

    HostError bad_params for a cursor of another kind; journalctl.JournalUnreadable.
    """
    kind, _, position = asked.cursor.partition(":")
    if not asked.cursor:
        # Before reading: an entry that is written meanwhile is then after the cursor, not lost.
        since_us = time.time_ns() // 1_000
        found, cursor = await journalctl.newest(matches, wanted, asked.limit)
        return found, f"j:{cursor}" if cursor else f"t:{since_us}"
    since_us = 0
    if kind == "t" and _number(position) is not None:
        since_us, position = int(position), ""
    elif kind != "j" or not journalctl.is_cursor(position):
        raise _bad_cursor()
    # Nothing is asked for: the place stays the same, and no process is started.
    if not asked.limit:
        return [], asked.cursor
    found, cursor = await journalctl.following(matches, wanted, asked.limit, cursor=position, since_us=since_us)
    return found, f"j:{cursor}" if cursor else asked.cursor


def _is_sshd(entry: JournalEntry) -> bool:
    """Whether sshd itself wrote an entry, judged by journald's own fields (systemd.journal-fields(7));
    SYSLOG_IDENTIFIER does not count, as any program may set it.
    """
    known = entry.fields
    if known["_UID"] != "0" or known["_COMM"] not in _SSHD_COMMS:
        return False
    return bool(_SSHD_UNIT.fullmatch(known["_SYSTEMD_UNIT"]) or _SSHD_EXE.fullmatch(known["_EXE"]))


def _is_any(_: JournalEntry) -> bool:
    """True for every entry: for a unit, journalctl's match is enough, as `_SYSTEMD_UNIT` cannot be forged."""
    return True


def _shown(entry: JournalEntry) -> dict[str, Any]:
    """An entry of journald, as node.journal shows it."""
    known = entry.fields
    return {
        "at": rfc3339(entry.at_us),
        "unit": text.sanitise(known["_SYSTEMD_UNIT"], 256) or None,
        "comm": text.sanitise(known["_COMM"], 64) or None,
        "pid": _number(known["_PID"]),
        "uid": _number(known["_UID"]),
        "priority": _number(known["PRIORITY"]),
        "message": text.sanitise(known["MESSAGE"], MAX_MESSAGE),
        "trusted": True,
    }


# auth.log: any program may write any line there, so no entry is marked as trusted.


def _from_auth_log(path: Path, asked: JournalQuery) -> dict[str, Any]:
    """As `answer`, from the text log. Blocks."""
    try:
        lines, mark = _read_auth_log(path, asked)
    except OSError as error:
        words = error.strerror or str(error)
        raise HostError(Denial.SERVICE_UNAVAILABLE, f"{path.name} cannot be read: {words}") from error
    now_s = time.time()
    entries = [_entry(found, now_s) for line in lines if (found := _parsed(line))]
    return {"entries": entries, "cursor": f"f:{mark}"}


def _read_auth_log(path: Path, asked: JournalQuery) -> tuple[list[bytes], text_log.Mark]:
    """(lines of sshd, the mark after what was read); HostError bad_params for a cursor of another kind, OSError."""
    if not asked.cursor:
        return text_log.newest(path, _is_sshd_line, asked.limit)
    kind, _, position = asked.cursor.partition(":")
    mark = text_log.parse_mark(position)
    if kind != "f" or mark is None:
        raise _bad_cursor()
    return text_log.following(path, _is_sshd_line, asked.limit, mark=mark) if asked.limit else ([], mark)


def _is_sshd_line(line: bytes) -> bool:
    """Whether a line claims to be sshd's; the first test is a cheap one for most lines."""
    return b" sshd" in line and _parsed(line) is not None


def _parsed(line: bytes) -> re.Match[str] | None:
    """The parts of a line of the text log; None for a line that does not have its form."""
    return _AUTH_LINE.fullmatch(line.decode("utf-8", "replace").rstrip("\r"))


def _entry(found: re.Match[str], now_s: float) -> dict[str, Any]:
    """A line of the text log, as node.journal shows it."""
    return {
        "at": _rfc3339(found["at"], now_s),
        "unit": None,
        "comm": found["comm"],
        "pid": int(found["pid"]),
        "uid": None,
        "priority": None,
        "message": text.sanitise(found["message"], MAX_MESSAGE),
        "trusted": False,
    }


def _rfc3339(stamp: str, now_s: float) -> str | None:
    """A line's time in UTC (RFC 3339), or None. The traditional form is local time and has no year: the last one that
    fits.

    "2026-01-02T03:04:05+01:00"                     ->  "2026-01-02T02:04:05.000000Z"
    "Dec 31 23:59:59", asked on the 1st of January  ->  a time of the year before
    """
    try:
        if stamp[0].isdigit():
            return rfc3339(int(datetime.fromisoformat(stamp).timestamp() * 1_000_000))
        for year in (time.localtime(now_s).tm_year, time.localtime(now_s).tm_year - 1):
            # strptime with the year in front: without one, 29 February is no date.
            seconds = time.mktime(time.strptime(f"{year} {stamp}", "%Y %b %d %H:%M:%S"))
            # With a day to spare, for clocks that were set back; what is later still was last year.
            if seconds < now_s + _DAY_S:
                return rfc3339(int(seconds) * 1_000_000)
    # An impossible date such as 30 February, or one that time_t cannot hold: the entry is shown without a time.
    except (ValueError, OverflowError, OSError):
        pass
    return None


def _number(field: str) -> int | None:
    """A field as a number; None unless it is 1 to 19 ASCII digits."""
    # 19 digits always fit into 64 bits. isascii, because isdigit is true for other scripts and superscripts.
    return int(field) if field.isascii() and field.isdigit() and len(field) < 20 else None


def _bad_cursor() -> HostError:
    """The HostError for a cursor that is not one of this source."""
    return HostError(Denial.BAD_PARAMS, "cursor: expected one that this host gave, found another; begin without one")
