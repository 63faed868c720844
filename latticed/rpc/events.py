"""`GET /api/events`: the audit chain as it grows, as server-sent events (WHATWG HTML, section 9.2).

The id of each event is its seq in the chain, so a client that was cut off goes on where it was (`Last-Event-ID`).
What a peer may see is decided event by event, for scopes may change while a stream is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

from aiohttp import web
from msgspec import Meta

from latticed.ledger import audit as rows
from latticed.model.errors import Problem
from latticed.rpc.access import Scope
from latticed.rpc.api import Query, integer

if TYPE_CHECKING:
    from latticed.rpc.api import Ask
    from latticed.rpc.doorman import Connection

PAGE: Final = 200
HEARTBEAT_S: Final = 15.0
WRITE_S: Final = 10.0

SCOPE_OF: Final = dict.fromkeys(("plugin", "bundle", "host", "trust", "ledger"), Scope.READ)
"""The scope that each kind of event takes, by the first word of its action; any other kind takes `operate`."""

HEADERS: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
HOST_CALL: Final = "host.call"


class Wanted(Query, frozen=True):
    """Events after the seq `since`; host calls only on request."""

    since: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    host_calls: Literal["0", "1"] = "0"


async def stream(ask: Ask) -> web.StreamResponse:
    """Events after a seq (Last-Event-ID, else `since`, else from now on); host calls only with `host_calls=1`."""
    asked = ask.query(Wanted)
    seq = _start(ask, asked)
    if ask.headers_only:
        return web.Response(headers=HEADERS)
    connection = cast("Connection", ask.request.protocol)
    if not connection.stream():
        raise Problem("too_many_streams", "expected fewer event streams of one user at once", "close some of them")
    answer = web.StreamResponse(headers=HEADERS)
    await answer.prepare(ask.request)
    with contextlib.suppress(ConnectionError, TimeoutError):  # a reader that is gone or does not read
        await _follow(ask, answer, seq, host_calls=asked.host_calls == "1")
    answer.force_close()
    return answer


def _start(ask: Ask, asked: Wanted) -> int:
    if given := ask.request.headers.get("Last-Event-ID"):  # a browser that comes back repeats its `since`, too
        return integer(given, "Last-Event-ID", low=0, high=2**53)
    return ask.api.ledger.read(rows.last_seq) if asked.since is None else asked.since


async def _follow(ask: Ask, answer: web.StreamResponse, seq: int, *, host_calls: bool) -> None:
    ledger, closing, told = ask.api.ledger, ask.api.closing, -1
    await _write(answer, b": latticed events\n\n")
    while not closing.is_set():
        after = seq
        events = ledger.read(lambda db, after=after: rows.query(db, after=after, limit=PAGE))  # type: ignore[misc]
        scopes = ask.api.access.scopes(ask.peer)  # as settings are now
        shown = [_shown(event, scopes) for event in events if host_calls or event["action"] != HOST_CALL]
        if chunk := b"".join(one for one in shown if one):
            await _write(answer, chunk)
        if events:
            seq = events[-1]["seq"]
            continue
        if seq != told:  # an id alone is no event; it tells how far this is, past what was not shown
            await _write(answer, f": up to date\nid: {seq}\n\n".encode("ascii"))
            told = seq
        if not await _grown(ask, seq):
            await _write(answer, b": still here\n\n")


async def _grown(ask: Ask, seq: int) -> bool:
    """Wait until the chain is longer than `seq` or the daemon goes down; False after a while of silence."""
    news = [asyncio.ensure_future(ask.api.ledger.grown(seq)), asyncio.ensure_future(ask.api.closing.wait())]
    done, waiting = await asyncio.wait(news, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    return bool(done)


async def _write(answer: web.StreamResponse, chunk: bytes) -> None:
    async with asyncio.timeout(WRITE_S):
        await answer.write(chunk)


def _shown(event: dict[str, Any], scopes: Scope) -> bytes:
    """One event on the wire; nothing when the scopes do not reach, no detail for those who may only read."""
    needed = SCOPE_OF.get(event["action"].partition(".")[0], Scope.OPERATE)
    if needed not in scopes:
        return b""
    seen = event if Scope.OPERATE in scopes else {key: value for key, value in event.items() if key != "detail"}
    data = json.dumps(seen, separators=(",", ":"))
    return f"id: {event['seq']}\nevent: {event['action']}\ndata: {data}\n\n".encode("ascii")
