"""Handlers for running plugins: invoke an action, read output lines."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta

from latticed.lifecycle.decisions import unknown
from latticed.model.audit import Event
from latticed.model.errors import Problem
from latticed.rpc.api import Body, QueryParams
from latticed.runners import lines
from latticed.runners.output import as_row

if TYPE_CHECKING:
    from latticed.rpc.api import Ask
    from latticed.rpc.responses import LogPage, Reply
    from latticed.runners.output import Ring

PAGE: Final = 1_000
"""Most lines of one answer."""
MARGIN_S: Final = 30.0
"""What an invocation may take besides its own time: a place in the queue, a child to start and to end."""


class Invoke(Body, frozen=True):
    """`payload` is any JSON, handed on as it is."""

    action: Annotated[str, Meta(min_length=1, max_length=128)]
    payload: Any = None


class LogStream(QueryParams, frozen=True):
    """Selects the newest `limit` lines after number `after`; if there are none yet, waits up to `wait_s` seconds."""

    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    limit: Annotated[int, Meta(ge=1, le=PAGE)] = PAGE
    # At most half of what an answer may take (`answer_s`, 60 s).
    wait_s: Annotated[int, Meta(ge=0, le=30)] = 0


async def invoke(ask: Ask) -> Reply:
    """Have an armed plugin carry out an action, and answer with its reply; recorded before it begins."""
    body = await ask.body(Invoke)
    plugin_id = known(ask)
    runtime = ask.api.supervisor.runtime(plugin_id)
    # Not by the state alone: while a new version is not armed, the one before it answers.
    if not ask.api.supervisor.answers(plugin_id):
        raise Problem(
            "not_armed", f"{plugin_id} is not armed (it is {runtime.state})", f"latticectl explain {plugin_id}"
        )
    # The record has the payload's size and digest only: it is kept for long, and a payload may hold secrets.
    payload = lines.encode(body.payload)
    detail: dict[str, str | int | bool] = {
        "call": body.action,
        "bytes": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    told = Event(actor=str(ask.actor), action="plugin.invoke", target=plugin_id, decision="allow", detail=detail)
    # The operator may allow invocations that take longer than other answers.
    ask.may_take(ask.api.settings.plugin_limits.max_invoke_timeout_s + MARGIN_S)
    await ask.api.ledger.record(told)
    answer: Reply = await ask.api.supervisor.invoke(plugin_id, body.action, body.payload)  # type: ignore[assignment]
    return answer


async def logs(ask: Ask) -> LogPage:
    """Lines that a plugin wrote to stderr and through log.write, oldest first."""
    wanted = ask.query(LogStream)
    ring = ask.api.outputs.ring(known(ask))
    after = wanted.after if wanted.after <= ring.seq else 0  # a number from a time before the clock was set back
    if wanted.wait_s and not ring.since(after):
        await _more(ask, ring, wanted.wait_s)
    found = ring.since(after)[-wanted.limit :]
    return {"lines": [as_row(line) for line in found], "next": ring.seq}


async def _more(ask: Ask, ring: Ring, wait_s: int) -> None:
    """Wait for the next line, for `wait_s` seconds at most; return at once when the daemon stops."""
    # Either ends the wait: a line, or the end of the daemon.
    waiting = [asyncio.ensure_future(work) for work in (ring.more(), ask.api.closing.wait())]
    try:
        # No line came: the answer is an empty page.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # asyncio.wait() leaves its tasks running, also when the timeout cancels it.
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def known(ask: Ask, plugin_id: str | None = None, *, forgotten: bool = False) -> str:
    """`plugin_id`, or else the id in the path; Problem("not_found") when no such plugin is on record.

    `forgotten`: one that was forgotten will do.
    """
    plugin_id = ask.part("id") if plugin_id is None else plugin_id
    record = ask.api.lifecycle.records.get(plugin_id)
    if record is None or (record.forgotten and not forgotten):
        raise unknown(plugin_id)
    return plugin_id
