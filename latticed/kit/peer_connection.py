"""Connections of a control socket, HTTP over a unix socket: the peer's credentials, and limits per uid.

Beyond `PER_UID` connections the oldest one of that user without a complete request is cut (contracts §7).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from latticed.kit import peers
from latticed.kit.connection_limiter import ConnectionLimiter, LimitedConnection

if TYPE_CHECKING:
    import asyncio

REQUEST_S: Final = 5.0
"""From the first byte of a request to its last, body included; `LimitedConnection.request_s`."""
STREAMS: Final = 32
"""Streams open at once, per uid: each holds a connection and is sent every new event."""
PER_UID: Final = 128
"""Connections open at once, per uid."""
# aiohttp's own default, for the request line and for each header field.
HEADER_BYTES: Final = 8190


class PeerConnection(LimitedConnection):
    """One connection of a control socket, with its peer. A subclass says how errors of HTTP itself are answered.

    `peer` is None only for a connection that ended before the kernel could be asked.
    """

    request_s = REQUEST_S
    # latticectl makes a connection for each request, so it never waits on an idle one.
    idle_s = 15.0
    # Twice what a request may have itself wait for (`rpc.running.LogStream`); a stream has no such limit.
    answer_s = 60.0

    def __init__(self, limiter: ConnectionLimiter[Any], server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            limiter,
            server,
            loop=loop,
            # How long aiohttp reads the rest of a body that a handler left unread; its default is 10 s.
            lingering_time=1.0,
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
            access_log=None,
            auto_decompress=False,  # no client compresses on a unix socket, except to send a decompression bomb
        )
        self.peer: peers.Peer | None = None
        self.streaming = False
        self._answer_s = self.answer_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask the kernel who the peer is (unix(7): SO_PEERCRED, SO_PEERGROUPS) and count the connection for its uid."""
        super().connection_made(transport)
        try:
            self.peer = peers.of(transport.get_extra_info("socket"))
        except OSError:  # the peer has disconnected already
            # Not entered into the limiter, so no sweep would cut it.
            transport.abort()  # type: ignore[attr-defined] # a unix socket's
            return
        self.limiter.enter(self, self.peer.uid)

    def stream(self) -> bool:
        """Exempt the answer from deadlines until it is complete; False if the uid has STREAMS streams already."""
        # This connection is among them, but is not streaming yet.
        self.streaming = sum(one.streaming for one in self.limiter.of(self.owner)) < STREAMS
        return self.streaming

    def allow(self, seconds: float) -> None:
        """Let this answer take `seconds`, where that is more than `answer_s`."""
        self._answer_s = max(self.answer_s, seconds)

    def answered(self) -> None:
        """The answer is complete; the usual deadlines hold again."""
        super().answered()
        self.streaming, self._answer_s = False, self.answer_s

    def overdue(self, now_s: float) -> bool:
        """Whether a deadline has passed; never for a stream."""
        if self.answering:
            return not self.streaming and now_s - self.since_s > self._answer_s
        return super().overdue(now_s)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; aiohttp's own errors (an unknown path, method or Expect) as `of_http_error` says.

        Returns the answer that was sent and whether the connection is lost, as aiohttp's `RequestHandler` does.
        """
        plain = type(resp) is web.Response  # as nearly all are; asking for an instance of what it is not is slow
        fitting = self.of_http_error(resp) if not plain and isinstance(resp, web.HTTPException) else resp
        if self.begun:  # no handler has seen the request
            self.answered()
        # After 413 the rest of the body would have to be read, only to find the next request.
        if self.last or fitting.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or _out_of_step(request):
            fitting.force_close()
        return await super().finish_response(request, fitting, start_time)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what does not parse as HTTP as `no_request` says, and close the connection."""
        # A fault of ours, which aiohttp logs; below 500 it is the peer's, and is not.
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return super().handle_error(request, status, exc, message)
        answer = self.no_request(status)
        answer.force_close()
        return answer

    def of_http_error(self, error: web.HTTPException) -> web.Response:
        """The answer to what aiohttp refuses by itself."""
        raise NotImplementedError

    def no_request(self, status: int) -> web.Response:
        """The answer to bytes that are no request of HTTP/1.1."""
        raise NotImplementedError


def _out_of_step(request: web.BaseRequest) -> bool:
    """Whether to close the connection because the next request could not be distinguished from the rest of this one.

    So it is with an unread body, and after CONNECT or Upgrade: aiohttp's parser takes all later bytes as opaque data.
    """
    unread = request.body_exists and not request.content.at_eof()
    return unread or request.method == "CONNECT" or "Upgrade" in request.headers
