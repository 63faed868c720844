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

    from latticed.client.control import ControlClient

FIRST_PAUSE_S: Final = 0.1
"""Before the first attempt to connect again; doubled with each one."""
LONGEST_PAUSE_S: Final = 5.0
"""Longest pause between two attempts."""
_BUSY: Final = frozenset({429, 503})  # the daemon is starting, or has too many streams: retry


class Sent(NamedTuple):
    """One event, or without `data` a mark: all events up to `at` have been sent.

    `at` is the cursor after it: a seq, or `<decisions>.<calls>` where host calls were asked for.
    """

    at: str
    data: str


def decode(lines: Iterable[bytes]) -> Iterator[Sent]:
    """Parse the lines of a stream; an event without its final blank line is dropped, as the standard requires.

    `id: 7`, `data: {…}` and an empty line are `Sent("7", "{…}")`. Other fields and comments are skipped; Problem
    bad_reply for an id that is no cursor.
    """
    at: str | None = None
    data: list[str] = []
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if line:
            # The name of a comment (`: still here`) is empty, so comments are skipped.
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
    """The id of an event, which must be a cursor: it is sent back to the daemon."""
    if chain.cursor(value) is None:
        raise replies.bad("event id")
    return value


def backlog(client: ControlClient, after: str, query: Mapping[str, str]) -> Iterator[Sent]:
    """The existing events after `after`, and last a mark without data.

    Problem unreachable when the stream ends before the mark.
    """
    with closing(client.lines("events", query={**query, "after": after})) as lines:
        for sent in decode(lines):
            yield sent
            if not sent.data:
                return
    raise Problem("unreachable", "the daemon closed the connection before it answered", "see journalctl -t latticed")


def follow(
    client: ControlClient,
    after: str | None,
    query: Mapping[str, str],
    *,
    note: Callable[[str], None],
    reached: bool = False,
) -> Iterator[Sent]:
    """Events after `after` (None: from now on), without an end.

    Reconnects when the daemon goes away, with a backoff of at most LONGEST_PAUSE_S, and resumes after the last event;
    `note` gets a line for the user about each. If the daemon was never reached, the Problem is raised at once;
    `reached`: it has answered before, and said what is after `after`.
    """
    pause_s, lost = FIRST_PAUSE_S, False
    while True:
        try:
            # The backoff starts over with the first event, not with the connection: that alone proves nothing.
            for sent in _once(client, after, query):
                if lost:
                    note("the daemon is back")
                pause_s, lost, reached, after = FIRST_PAUSE_S, False, True, sent.at
                yield sent
        except Problem as problem:
            # Without a cursor the events of the meantime would be lost silently.
            if not reached or not passing(problem):
                raise
        # Also when the stream has ended without an error: the daemon closes it when it stops.
        if not lost and reached:
            note("the daemon is gone; waiting for it to come back")
            lost = True
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


def _once(client: ControlClient, after: str | None, query: Mapping[str, str]) -> Iterator[Sent]:
    """The events of one connection, beginning after the id `after`, until the connection ends."""
    # As a header: it takes precedence over `after` in the query (`rpc.events`).
    headers = {} if after is None else {"Last-Event-ID": after}
    with closing(client.lines("events", query=query, headers=headers)) as lines:
        yield from decode(lines)


def passing(problem: Problem) -> bool:
    """Whether to retry: the daemon is unreachable, starting, or has too many streams."""
    return of(problem) is ExitCode.UNREACHABLE or getattr(problem, "status", 0) in _BUSY
