"""Handlers for the audit chains: query by filter and cursor, verify the whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

from aiohttp import web
from msgspec import Meta

from latticed.ledger import audit as rows
from latticed.model import chain
from latticed.model.chain import CALLS, DECISIONS, Position
from latticed.model.errors import Problem
from latticed.rpc.api import QueryParams
from latticed.rpc.chain_checks import VerifyRequest, described

if TYPE_CHECKING:
    from latticed.rpc.api import Ask
    from latticed.rpc.connection import ControlConnection

MAX_PAGE: Final = 1_000
"""Most events of one answer; `ledger.audit` has the same bound."""
TELL_S: Final = 1.0
"""How often a verification with `progress` writes how far it is, in seconds."""
# Seconds for which a reader may take nothing; then its connection is closed.
WRITE_S: Final = 10.0
_EPOCH: Final = datetime.fromtimestamp(0, tz=UTC)
"""Times of the ledger count from here."""
Cursor = Annotated[str, Meta(pattern=f"^{chain.CURSOR}$")]
"""A cursor as text: it is checked here, and taken apart by `model.chain.cursor`."""


class Filter(QueryParams, frozen=True):
    """Selects the events that match all given fields. `since`: an RFC 3339 time with a zone.

    `after`: a cursor, `<decisions>.<calls>` for both chains, a bare number for decisions only; with `newest=1` the
    events before it. `calls=1`: host calls only.
    """

    after: Cursor = ""
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 100
    actor: str = ""
    action: str = ""
    target: str = ""
    decision: Literal["", "allow", "deny", "-"] = ""
    since: str = ""
    newest: Literal["0", "1"] = "0"
    heads: Literal["0", "1"] = "0"
    calls: Literal["0", "1"] = "0"


class Verify(QueryParams, frozen=True):
    """`calls=1`: host calls only; `whole=1`: from the beginning of the chain; `progress=1`: stream progress."""

    calls: Literal["0", "1"] = "0"
    whole: Literal["0", "1"] = "0"
    progress: Literal["0", "1"] = "0"


async def query(ask: Ask) -> dict[str, Any]:
    """Events after a cursor, oldest first; with `newest=1` the last ones, newest first, and `older` for the next page.

    Events of host calls have `chain`.

    `heads=1` adds signed heads, and the checkpoint that a chain begins with once retention has removed something
    (`calls_checkpoint` for the host calls').
    """
    asked = ask.query(Filter)
    limit, newest = asked.limit, asked.newest == "1"
    after, chains = _start(asked)
    if newest and not asked.after:
        # From the present end on: a page of one chain's events alone says nothing of the other's.
        tip = ask.api.ledger.read(rows.position)
        after = Position(tip.decisions + 1, tip.calls + 1)
    filters = {name: getattr(asked, name) or None for name in ("actor", "action", "target", "decision")}
    since_us = _microseconds(asked.since) if asked.since else None
    events = await rows.query_in_parts(
        ask.api.ledger.read_slow,
        chains=chains,
        after=after,
        limit=limit,
        newest_first=newest,
        since_us=since_us,
        **filters,
    )
    # The newest events have no page after them.
    full = len(events) == limit
    more, end = full and not newest, after.past(events)
    following = end.decisions if chains == (DECISIONS,) else str(end)
    answer: dict[str, Any] = {"events": events, "next": following if more else None}
    if newest:
        answer["older"] = following if full else None
    if asked.heads != "1" or not events:
        return answer
    if not more:  # so that the last events of an export are covered by a signature, too
        await ask.api.ledger.sign_head()
    return {**answer, **await _vouched(ask, events)}


def _start(asked: Filter) -> tuple[Position, tuple[chain.Name, ...]]:
    """The position to start after, and the chains to read."""
    found = chain.cursor(asked.after) if asked.after else Position()
    if found is None:
        raise Problem("bad_request", f"after: expected a cursor, found {asked.after[:40]!r}")
    # Where host calls alone are asked for, a bare number is a seq of theirs.
    if asked.calls == "1":
        return (found if isinstance(found, Position) else Position(0, found)), (CALLS,)
    if isinstance(found, Position):
        return found, chain.NAMES
    return Position(found, 0), (DECISIONS,)


async def _vouched(ask: Ask, events: list[dict[str, Any]]) -> dict[str, Any]:
    """The signed heads that lie in a page of events, and the checkpoints directly before it."""
    heads: list[dict[str, Any]] = []
    found: dict[str, Any] = {"heads": heads, "checkpoint": None, "calls_checkpoint": None}
    for name in chain.NAMES:
        # Each chain has its own numbers, so each has its own range here.
        seqs = [event["seq"] for event in events if chain.name_of(event) == name]
        if not seqs:
            continue
        first, last = min(seqs), max(seqs)
        named = {} if name == DECISIONS else {"chain": name}
        signed = await ask.api.ledger.read_slow(
            lambda db, first=first, last=last, name=name: rows.heads(db, first, last, chain=name)  # type: ignore[misc]
        )
        heads += [{**head, **named} for head in signed]
        begins = ask.api.ledger.read(lambda db, name=name: rows.checkpoint(db, chain=name))  # type: ignore[misc]
        # Only for a page at the beginning of what is left: there the checkpoint stands for the events before.
        if begins and begins["seq"] == first - 1:
            found["checkpoint" if name == DECISIONS else "calls_checkpoint"] = begins
    return found


async def verify(ask: Ask) -> web.StreamResponse:
    """Check both chains, from the event up to which they were last found intact since the daemon's start.

    The report is that of the decisions, `calls` that of the host calls beside it; with `calls=1` theirs alone. With
    `progress=1` it is the last of some lines of JSON; those before it are `{"verifying": {"chain", "seq", "of"}}`.
    """
    asked = ask.query(Verify)
    chains = (CALLS,) if asked.calls == "1" else chain.NAMES
    if ask.headers_only:
        return web.Response(content_type="application/x-ndjson" if asked.progress == "1" else "application/json")
    connection = cast("ControlConnection", ask.request.protocol)
    if not connection.stream():  # may take minutes: exempt from deadlines like a stream
        raise Problem("too_many_streams", "expected fewer long answers to one user at once", "wait for one of them")
    # A task of its own, so that it goes on while progress is written, and ends when the reader has gone.
    work = asyncio.ensure_future(
        ask.api.verifying.verify(VerifyRequest(chains=chains, whole=asked.whole == "1"), closing=ask.api.closing)
    )
    try:
        if asked.progress == "1":
            return await _told(ask, work, chains)
        return web.json_response(described(await work, chains))
    finally:
        # The reader may be gone. What was verified is kept, so the next check starts there (`Verifying`).
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def _told(ask: Ask, work: asyncio.Future[Any], chains: tuple[chain.Name, ...]) -> web.StreamResponse:
    """Stream a line of progress each TELL_S seconds, then the report or the code of a failure, and close the
    connection.
    """
    answer = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    await cast("ControlConnection", ask.request.protocol).begin(answer, ask.request)
    with contextlib.suppress(ConnectionError, TimeoutError):  # the reader is gone or does not read
        while not work.done():
            await asyncio.wait({work}, timeout=TELL_S)
            if not work.done():
                await _line(answer, {"verifying": ask.api.verifying.progress._asdict()})
        try:
            await _line(answer, described(work.result(), chains))
        # 200 has been sent with the head: a failure can be told in the body only.
        except Problem as problem:
            await _line(answer, {"ok": False, "code": problem.code, "reason": problem.reason, "hint": problem.hint})
    # It may have been broken off within a line: no further answer may follow on this connection.
    answer.force_close()
    return answer


async def _line(answer: web.StreamResponse, plain: dict[str, Any]) -> None:
    """Write one line of JSON; TimeoutError when the reader takes nothing for `WRITE_S`."""
    async with asyncio.timeout(WRITE_S):
        await answer.write(json.dumps(plain, separators=(",", ":")).encode("ascii") + b"\n")


def _microseconds(text: str) -> int:
    """Microseconds since the epoch of an RFC 3339 time with a zone; Problem bad_request for other text."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise Problem("bad_request", f"since: expected a time with its zone, found {text[:40]!r}")
        since = moment.astimezone(UTC) - _EPOCH
    except (ValueError, OverflowError) as error:  # OverflowError: the zone shifts it beyond year 1 or 9999
        raise Problem("bad_request", f"since: expected an RFC 3339 time, found {text[:40]!r}") from error
    # Before 1970: all events.
    return max(0, since // timedelta(microseconds=1))
