"""The daemon's event stream: server-sent events (WHATWG HTML, section 9.2), followed across its restarts."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Final, NamedTuple

from latticed.ctl import replies
from latticed.ctl.exit_codes import ExitCode, of
from latticed.model import chain
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from latticed.ctl.client import ControlClient

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
_BUSY: Final = frozenset({429, 503})  # a daemon that is just starting, or full: it may pass


class Sent(NamedTuple):
    """One event. Without `data` it only tells how far the stream has come: there is nothing older to wait for.

    `at` is the stream's own id: a seq, or `<decisions>.<calls>` where host calls were asked for.
    """

    at: str
    data: str


def decode(lines: Iterable[bytes]) -> Iterator[Sent]:
    """The events in the lines of a stream; one that is cut off at the end is dropped, as the standard says."""
    at: str | None = None
    data: list[str] = []
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "id":
                at = _id(value)
            elif name == "data":
                data.append(value)
        elif at is not None:
            yield Sent(at, "\n".join(data))
            at, data = None, []


def _id(value: str) -> str:
    if chain.cursor(value) is None:
        raise replies.bad("event id")
    return value


def backlog(client: ControlClient, after: str, query: Mapping[str, str]) -> Iterator[Sent]:
    """What there is after `after`; the last one tells how far that goes and has no data."""
    with closing(client.lines("events", query={**query, "after": after})) as lines:
        for sent in decode(lines):
            yield sent
            if not sent.data:
                return
    raise Problem("unreachable", "the daemon closed the connection before it answered", "see journalctl -t latticed")


def follow(
    client: ControlClient, after: str | None, query: Mapping[str, str], *, note: Callable[[str], None]
) -> Iterator[Sent]:
    """Events after `after` (None: from now on), without an end.

    A daemon that goes away is waited for, with pauses that grow to LONGEST_PAUSE_S; the stream then goes on where it
    was. One that was never reached is a Problem at once.
    """
    pause_s, lost = FIRST_PAUSE_S, False
    while True:
        try:
            for sent in _once(client, after, query):
                if lost:
                    note("the daemon is back")
                pause_s, lost, after = FIRST_PAUSE_S, False, sent.at
                yield sent
        except Problem as problem:
            if after is None or not passing(problem):
                raise
        if not lost and after is not None:
            note("the daemon is gone; waiting for it to come back")
            lost = True
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


def _once(client: ControlClient, after: str | None, query: Mapping[str, str]) -> Iterator[Sent]:
    headers = {} if after is None else {"Last-Event-ID": after}
    with closing(client.lines("events", query=query, headers=headers)) as lines:
        yield from decode(lines)


def passing(problem: Problem) -> bool:
    """Whether a daemon that is away, just starting, or full may answer later."""
    return of(problem) is ExitCode.UNREACHABLE or getattr(problem, "status", 0) in _BUSY
