"""Connections of the daemon's control socket: draining, peers that half-close, and errors as problem documents."""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING, Any

from aiohttp import web

from latticed import wire
from latticed.kit.peer_connection import PeerConnection
from latticed.rpc import problems

if TYPE_CHECKING:
    from latticed.kit.connection_limiter import ConnectionLimiter


class ControlConnection(PeerConnection):
    """One connection of the control socket."""

    def __init__(
        self, limiter: ConnectionLimiter[ControlConnection], server: web.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(limiter, server, loop)
        self.interrupted = False
        """The request under way was cancelled, to be answered with `stopping`."""
        self._handler: asyncio.Task[Any] | None = None
        self._unsent = False
        """A request is complete, and its answer not sent whole."""
        self._begun: web.StreamResponse | None = None
        """The answer whose head was sent by `begin`, and whose handler goes on."""

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio asks: keep it open for writing?
        """Return whether the connection stays open for writing: while requests of a half-closed one are unanswered. A
        fully closed one ends at once.
        """
        self._ended = True
        asked = bool(self._messages) or self._waiter is None  # aiohttp has no waiter while a handler runs
        return asked and not _hung_up(self.wire)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """As `PeerConnection` does, and close the connection after its last answer."""
        finished = await super().finish_response(request, resp, start_time)
        self._unsent = False
        # aiohttp has not seen the end of file (`eof_received`), and would wait for a next request until `idle_s`.
        if self.last:
            self.close()
        return finished

    def complete(self) -> None:
        """A handler begins to answer, in the current task."""
        super().complete()
        self._handler, self._unsent = asyncio.current_task(), True
        # Told by whoever waits in `drain`: from now on this one is among the answers under way.
        self.limiter.changed()

    @property
    def busy(self) -> bool:
        """From the whole request to the whole answer: between `answered` and that the answer is still to be sent."""
        return self._unsent or self.buffered

    def see_off(self) -> None:
        """End with the answer under way."""
        if self._unsent:
            self.leaving = True  # `finish_response` closes it
        else:
            super().see_off()

    def interrupt(self) -> None:
        """Cancel the handler, which then answers that the daemon stops; not of a stream, whose answer has begun."""
        if self._handler is not None and not self.streaming and not self.interrupted:
            self.interrupted = True
            self._handler.cancel()

    async def begin(self, answer: web.StreamResponse, request: web.Request) -> None:
        """Send the head of an answer, whose body the handler writes by and by."""
        self._begun = answer
        await answer.prepare(request)

    def cut_short(self) -> web.StreamResponse | None:
        """Cut the connection if an answer was begun, and return that answer: a second one on the wire would be taken
        for the rest of the first. None when none was begun.
        """
        if self._begun is not None and self.wire is not None:
            self.wire.abort()
        return self._begun

    def answered(self) -> None:
        """The answer is complete; the usual deadlines hold again."""
        super().answered()
        self._handler = self._begun = None

    def of_http_error(self, error: web.HTTPException) -> web.Response:
        """A problem document."""
        return problems.of_http_error(error)

    def no_request(self, status: int) -> web.Response:
        """A problem document."""
        body = problems.document("bad_request", "expected an HTTP/1.1 request", "", status)
        return web.Response(status=status, body=body, content_type=wire.PROBLEM_TYPE)


def _hung_up(transport: asyncio.Transport | None) -> bool:
    """Whether the peer has closed both directions (poll(2), POLLHUP), not only its writing side."""
    if transport is None:
        return True
    poll = select.poll()
    # 0: POLLHUP is reported without being asked for (poll(2)).
    poll.register(transport.get_extra_info("socket").fileno(), 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
