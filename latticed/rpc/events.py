"""`GET /api/events`: the audit chains as they grow, as server-sent events (WHATWG HTML, section 9.2).

An event's id is the cursor after it, with which a client resumes (`Last-Event-ID`): its seq among the decisions, or
`<decisions>.<calls>` when host calls were asked for. Scopes are checked for each page, since a reload of the settings
may change them while a stream is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

from aiohttp import web
from msgspec import Meta

from latticed.kit import logs
from latticed.ledger import audit as rows
from latticed.model import chain
from latticed.model.audit import HOST_CALL
from latticed.model.chain import Position
from latticed.model.errors import Problem
from latticed.rpc.access import Scope
from latticed.rpc.api import QueryParams
from latticed.rpc.event_tail import Block, EventPage, EventTail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed import ledger
    from latticed.rpc.api import Api, Ask
    from latticed.rpc.connection import ControlConnection

PAGE: Final = 200
"""Events read at a time: about 1 ms of the event loop. All streams together read one page per turn (`Api.paging`)."""
SPAN: Final = 2_000
"""Rows scanned at most for one page, since old databases may hold many host calls that the page leaves out."""
# latticectl takes a stream for dead after 45 s without data: three heartbeats (`QUIET_S` in client/control.py).
HEARTBEAT_S: Final = 15.0
# A reader that takes nothing for so long is cut: it holds a descriptor, and one of its user's `STREAMS`.
WRITE_S: Final = 10.0
log = logs.get_logger()

SCOPE_OF: Final = dict.fromkeys(("plugin", "bundle", "host", "trust", "ledger"), Scope.READ)
"""The scope that each kind of event takes, by the first word of its action; any other kind takes `operate`."""

HEADERS: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}


class StreamRequest(QueryParams, frozen=True):
    """Where to start (`after`: a seq of the decisions or `<decisions>.<calls>`), and whether to include host calls.

    With a bare seq, host calls start with those made since that decision. `since`: the name of `after` until 0.1, still
    accepted for one version.
    """

    after: Annotated[str, Meta(pattern=f"^{chain.CURSOR}$")] | None = None
    since: Annotated[str, Meta(pattern=f"^{chain.CURSOR}$")] | None = None
    host_calls: Literal["0", "1"] = "0"


async def stream(ask: Ask) -> web.StreamResponse:
    """Events after an id (Last-Event-ID, else `after`, else from now on); host calls only with `host_calls=1`.

    An id beyond the end is of a record that a restore has replaced since: then the stream begins with that restore.
    """
    asked = ask.query(StreamRequest)
    calls = asked.host_calls == "1"
    seen = await _start(ask, asked, calls=calls)
    if ask.headers_only:
        return web.Response(headers=HEADERS)
    connection = cast("ControlConnection", ask.request.protocol)
    if not connection.stream():
        raise Problem("too_many_streams", "expected fewer event streams of one user at once", "close some of them")
    answer = web.StreamResponse(headers=HEADERS)
    await connection.begin(answer, ask.request)
    with contextlib.suppress(ConnectionError, TimeoutError):  # the reader is gone or does not read
        await _follow(ask, answer, seen, calls=calls)
    # The stream may have been broken off within a chunk: no further answer may follow on this connection.
    answer.force_close()
    return answer


async def _start(ask: Ask, asked: StreamRequest, *, calls: bool) -> Position:
    """The position after which the stream begins; Problem bad_request, ledger_unavailable."""
    kept = ask.api.ledger
    # Last-Event-ID comes first: an EventSource that reconnects sends it along with the `after` of its original URL.
    given = ask.request.headers.get("Last-Event-ID") or asked.after or asked.since
    if given is None:
        return kept.read(rows.position)
    found = chain.cursor(given)
    if found is None:
        raise Problem("bad_request", f"Last-Event-ID: expected an event's id, found {given[:40]!r}")
    at = found if isinstance(found, Position) else _decisions_alone(kept, found, calls=calls)
    end = kept.read(rows.position)
    if at.decisions > end.decisions:
        return await _since_replaced(kept, end, calls=calls)
    return at._replace(calls=min(at.calls, end.calls))


def _decisions_alone(kept: ledger.Ledger, seq: int, *, calls: bool) -> Position:
    """The position that a cursor of the decisions alone stands for."""
    return Position(seq, kept.read(lambda db: _calls_since(db, seq)) if calls else 0)


async def _since_replaced(kept: ledger.Ledger, end: Position, *, calls: bool) -> Position:
    """Before the event by which the record became another one, as by a restore; the end where there is none.

    For a client whose id is beyond the end: it has seen the record that was there before, and the events from then on
    are new to it. After a power cut that lost events there is no such event.
    """
    newest = 0
    for action in chain.REPLACING:
        found = await rows.query_in_parts(
            kept.read_slow, chains=(chain.DECISIONS,), limit=1, newest_first=True, action=action
        )
        newest = max(newest, *(event["seq"] for event in found), 0)
    if not newest:
        return end
    return _decisions_alone(kept, newest - 1, calls=calls)


def _calls_since(db: ledger.Connection, seq: int) -> int:
    """The seq of the last host call before decision `seq`, to resume after; 0 when `seq` is 0."""
    if not seq:
        return 0
    # The chains have no numbers in common; only times relate a decision to host calls.
    last = rows.query(db, after=seq - 1, limit=1)
    return rows.before(db, last[0]["ts"], chain.CALLS) if last else rows.last_seq(db, chain.CALLS)


async def _follow(ask: Ask, answer: web.StreamResponse, seen: Position, *, calls: bool) -> None:
    """Write events, and heartbeats while there are none, until the daemon stops or the reader is gone."""
    tail, closing, told = _tail(ask.api, calls=calls), ask.api.closing, None
    await _write(answer, b": latticed events\n\n")
    async with tail.joined(ask.api.ledger.read(rows.position)):
        while not closing.is_set():
            # One that is behind what the tail keeps reads by itself, at its own pace.
            block = tail.block(seen)
            more = block is None and (told is None or tail.beyond(tail.upto, seen))
            if more:
                page = await _read(ask.api, seen, calls=calls)
                block, more = Block(seen, page), page.more
            scopes = ask.api.access.scopes(ask.peer)  # not `ask.scopes`, which is cached: settings may have changed
            chunk = _chunk(block, seen, scopes, calls=calls) if block is not None else b""
            seen = _later(seen, block.upto) if block is not None else seen
            if not more and seen != told and not tail.beyond(tail.upto, seen):
                # An id without data is no event, but lets the client resume past events it was not shown.
                chunk += f": up to date\nid: {_id(seen, calls=calls)}\n\n".encode("ascii")
                told = seen
            if chunk:
                await _send(ask, answer, chunk, seen, tail)
            elif not more and not await tail.news(seen, HEARTBEAT_S):
                await _write(answer, b": still here\n\n")


def _tail(api: Api, *, calls: bool) -> EventTail:
    """What all streams of this kind follow together, made for the first of them."""
    if calls not in api.tails:
        api.tails[calls] = EventTail(
            chains=chain.NAMES if calls else (chain.DECISIONS,),
            read=functools.partial(_read, api, calls=calls),
            grown=functools.partial(api.ledger.wait_for_events, calls=calls),
            closing=api.closing,
        )
    return api.tails[calls]


async def _read(api: Api, seen: Position, *, calls: bool) -> EventPage:
    """The page after `seen`; Problem ledger_unavailable."""
    async with api.paging:
        page = api.ledger.read(lambda db: _page(db, seen, calls=calls))
        if page.more:  # yield to the event loop before the next page is read
            await asyncio.sleep(0)
    return page


def _page(db: ledger.Connection, seen: Position, *, calls: bool) -> EventPage:
    """The events after `seen`. Reads a bounded number of rows, so `events` may be empty while `more` is True."""
    if calls:
        # PAGE of each chain, since all of the oldest PAGE events may be of one.
        parts = [rows.query(db, chain=name, after=seen.of(name), limit=PAGE) for name in chain.NAMES]
        events = rows.merged(parts)[:PAGE]
        return EventPage(events, seen.past(events), len(events) == PAGE)
    end = rows.last_seq(db)
    # Retention may have removed rows: start at the first that is there, not with one empty span after another.
    first = max(seen.decisions + 1, rows.first_seq(db))
    span = (first, min(end, first + SPAN - 1))
    events = rows.query(db, within=span, limit=PAGE, other_than=HOST_CALL)
    # A full page may end inside the span, any other has covered it. Retention may have removed what was in between:
    # never go back behind `seen`.
    upto = events[-1]["seq"] if len(events) == PAGE else max(span[1], seen.decisions)
    return EventPage(events, Position(upto, seen.calls), upto < end)


def _id(at: Position, *, calls: bool) -> str:
    """The id of an event in the stream: the cursor after it. Without `calls` it is the seq of the decisions alone."""
    return str(at) if calls else str(at.decisions)


async def _send(ask: Ask, answer: web.StreamResponse, chunk: bytes, upto: Position, tail: EventTail) -> None:
    """Write events; a reader that takes nothing for `WRITE_S` is told what it misses, and cut: TimeoutError.

    It is told behind what waits to be sent to it, which it gets if it reads on within `ControlConnection.idle_s`.
    """
    try:
        await _write(answer, chunk)
    except TimeoutError:
        missed = sum(max(0, tail.upto.of(name) - upto.of(name)) for name in tail.chains)
        log.warning("event_stream_cut", uid=ask.peer.uid, waited_s=WRITE_S, after=str(upto), missed=missed)
        # A comment: an id without data would say that there is nothing more.
        told = (
            f": cut, as nothing was read for {WRITE_S:g} s: {missed} events or more are missing after the last id\n\n"
        )
        await _write(answer, told.encode("ascii"))  # does not wait: aiohttp does so once for every 64 KiB
        raise


async def _write(answer: web.StreamResponse, chunk: bytes) -> None:
    """Write to the stream; TimeoutError when the reader takes nothing for `WRITE_S`."""
    async with asyncio.timeout(WRITE_S):
        await answer.write(chunk)


def _later(one: Position, other: Position) -> Position:
    """The position that is after both."""
    return Position(*map(max, one, other))


def _chunk(block: Block, seen: Position, scopes: Scope, *, calls: bool) -> bytes:
    """The events of `block` after `seen` as bytes, as `scopes` may see them; made once where nothing was seen of it."""
    if seen != block.start:
        events = [event for event in block.events if event["seq"] > seen.of(chain.name_of(event))]
        return b"".join(_shown(events, seen, scopes, calls=calls))
    found = block.chunks.get(scopes)
    if found is None:
        found = block.chunks[scopes] = b"".join(_shown(block.events, seen, scopes, calls=calls))
    return found


def _shown(events: list[dict[str, Any]], seen: Position, scopes: Scope, *, calls: bool) -> Iterator[bytes]:
    """The events that `scopes` may see, encoded as server-sent events; without `detail` unless `operate` is granted."""
    for event in events:
        # Before the check of scopes: the id of the next event shown covers those left out.
        seen = seen.past([event])
        if SCOPE_OF.get(event["action"].partition(".")[0], Scope.OPERATE) not in scopes:
            continue
        told = event if Scope.OPERATE in scopes else {key: value for key, value in event.items() if key != "detail"}
        data = json.dumps(told, separators=(",", ":"))
        yield f"id: {_id(seen, calls=calls)}\nevent: {event['action']}\ndata: {data}\n\n".encode("ascii")
