"""The daemon's side of node.journal: a request to the journal reader, the process that may read the journal.

The reader is latticed/journal.py; what it answers is made in `journal_query`.

One request per connection, a line of JSON each way: `{"filter", "cursor", "limit"}` is answered by
`{"entries": [...], "cursor", "gap"}` or `{"code", "message"}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
from typing import TYPE_CHECKING, Any, Final

from latticed.host.call import HostError
from latticed.kit import peers, strict_json
from latticed.kit import text as texts
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latticed.settings import Settings

MAX_ANSWER_BYTES: Final = 4 << 20
"""More than an answer has (`kit.journalctl.MAX_READ_CHARACTERS` of messages, escaped); bounds what a faulty reader can
make the daemon hold.
"""
DEADLINE_S: Final = 8.0
"""For connection, request and answer together."""
UNIT_USER: Final = "latticed-journal"
"""Whom systemd/latticed-journal.service runs the reader as."""
HEADS: Final = "latticed.heads"
"""The filter for signed heads of audit chains that the asking user's own processes logged; no plugin may ask for it."""
_GONE: Final = "the journal reader is not running: the operator starts latticed-journal"
_MALFORMED: Final = "the journal reader gave an answer that cannot be read"


def may_read(name: str, units: tuple[str, ...]) -> bool:
    """Whether entries of `name` may be shown: sshd or one of `units` (what the operator listed), never a unit of
    latticed.
    """
    return name == "sshd" or (name in units and not name.startswith("latticed"))


def socket_path(settings: Settings) -> Path:
    """Where the journal reader listens; an absolute `node.journal_socket` counts as it is."""
    return settings.runtime_dir / (settings.node.journal_socket or "journal.sock")


def readers(settings: Settings) -> frozenset[int]:
    """The uids that the journal reader may run as: root, the daemon's user, and node.journal_user, or else the one that
    its unit has. HostError service_unavailable when the setting names nobody. May block.
    """
    name = settings.node.journal_user
    known = {0, os.geteuid()}
    try:
        return frozenset(known | {_uid(name or UNIT_USER)})
    except KeyError as error:
        if not name:
            return frozenset(known)
        unknown = "the user of the journal reader (node.journal_user) is unknown"
        raise HostError(Denial.SERVICE_UNAVAILABLE, unknown) from error


@functools.lru_cache(maxsize=4)  # cached: getpwnam may ask a directory service
def _uid(name: str) -> int:
    """The uid of a user's name or number; KeyError. The cache holds no failure: a user that is added later is found."""
    import pwd

    return int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid


async def ask(path: Path, request: dict[str, Any], *, readers: Callable[[], frozenset[int]]) -> dict[str, Any]:
    """The reader's answer `{entries, cursor, gap}` to a request `{filter, cursor, limit}`.

    `readers()` gives the uids it may run as, and may block. HostError: the one that the reader answers, else
    service_unavailable (not running, another user's, malformed), deadline_exceeded after DEADLINE_S.
    """
    try:
        async with asyncio.timeout(DEADLINE_S):
            line = await _exchange(path, json.dumps(request).encode("ascii") + b"\n", readers)
    # Before OSError, of which it is a subclass.
    except TimeoutError as error:
        raise HostError(Denial.DEADLINE_EXCEEDED, "the journal reader did not answer in time") from error
    # No socket, no listener, or the reader ended before it answered.
    except (OSError, asyncio.IncompleteReadError) as error:
        raise HostError(Denial.SERVICE_UNAVAILABLE, _GONE) from error
    # LimitOverrunError: a line longer than MAX_ANSWER_BYTES.
    except (asyncio.LimitOverrunError, ValueError) as error:
        raise HostError(Denial.SERVICE_UNAVAILABLE, _MALFORMED) from error
    return _decoded(line)


async def _exchange(path: Path, request: bytes, readers: Callable[[], frozenset[int]]) -> bytes:
    """One line for one line over a new connection, once the peer's uid is one of `readers`. OSError, HostError, and as
    StreamReader.readuntil.
    """
    reader, writer = await asyncio.open_unix_connection(os.fspath(path), limit=MAX_ANSWER_BYTES)
    try:
        uid = peers.of(writer.get_extra_info("socket")).uid
        # Before anything is sent or believed: another user may have bound a socket at this path.
        if uid == peers.NOBODY or uid not in await asyncio.to_thread(readers):  # may ask a directory service
            raise HostError(Denial.SERVICE_UNAVAILABLE, "what listens as the journal reader is somebody else")
        writer.write(request)
        await writer.drain()
        return await reader.readuntil(b"\n")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _decoded(line: bytes) -> dict[str, Any]:
    """`{entries, cursor, gap}` of an answer; HostError for an error in it, or for anything else."""
    try:
        found = strict_json.loads(line)
    except strict_json.InvalidJson as error:
        raise HostError(Denial.SERVICE_UNAVAILABLE, _MALFORMED) from error
    # Checked like any input: the reader handles what any program logs, and may have been taken over.
    match found:
        case {"entries": list(entries), "cursor": str(cursor), "gap": bool(gap)}:
            return {"entries": entries, "cursor": cursor, "gap": gap}
        case {"code": str(code), "message": str(message)} if code in Denial._value2member_map_:
            raise HostError(Denial(code), texts.sanitise(message, 500))
    raise HostError(Denial.SERVICE_UNAVAILABLE, _MALFORMED)
