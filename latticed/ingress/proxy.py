"""The reverse proxy: streams requests to a service and its answers back. It connects only to pinned addresses.

A failure of the service is answered with 502, or 504 when its response head is late. After the head was passed on, a
failure cuts the connection, so that the client sees that the answer is incomplete.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from contextvars import ContextVar
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Self, cast

import aiohttp
from aiohttp import HttpVersion11, hdrs, web
from yarl import URL

from latticed.ingress import forwarding
from latticed.kit import made_socket
from latticed.kit.value import Value
from latticed.model import hosts
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aiohttp import ClientResponse
    from multidict import CIMultiDict

    from latticed.host.route.targets import Proxied
    from latticed.ingress.connection import OutsideConnection
    from latticed.model.addresses import Address

MAX_LINE_BYTES: Final = 16 << 10
"""Of the status line and of each header field of a service's answer."""
_FOR: Final[ContextVar[Proxied]] = ContextVar("_FOR")
"""The service that the current task connects to; for the trace callbacks of aiohttp, which get no argument."""


class ProxyLimits(Value, frozen=True, kw_only=True):
    """Limits of one exchange, in seconds and bytes.

    `head_s`: until the head of the answer, restarts with each piece of the request. `idle_s`: until the next piece of
    the answer. `upload_idle_s`, `write_s`: for the client to send or take the next piece. `ping_s`: between pings to a
    websocket's client. `message_bytes`: of a websocket's message. `at_once`: requests of one plugin.
    """

    connect_s: float = 3.0
    head_s: float = 60.0
    upload_idle_s: float = 15.0
    idle_s: float = 300.0
    write_s: float = 30.0
    ping_s: float = 30.0
    body_bytes: int = 32 << 20
    answer_bytes: int = 1 << 30
    message_bytes: int = 1 << 20
    at_once: int = 128


class ProxiedAnswer(Value, frozen=True, kw_only=True):
    """One proxied request. `path`: path and query below the route, percent-encoded; `private`: it has a session."""

    request: web.BaseRequest
    connection: OutsideConnection
    target: Proxied
    path: str
    private: bool

    @property
    def origin(self) -> str:
        """The service's own origin: `http://host:port`."""
        return f"http://{self.host}"

    @property
    def host(self) -> str:
        """What the service gets as Host; port 80 is left out, as clients do (RFC 9110, section 7.2)."""
        origin = self.target.origin
        name = hosts.bracketed(origin.host)
        return name if origin.port == 80 else f"{name}:{origin.port}"

    def headers(self) -> CIMultiDict[str]:
        """The request headers for the service, see `forwarding.asked`."""
        return forwarding.asked(self.request.headers, origin=self.origin, host=self.host)


class Proxy:
    """The HTTP client side, shared by all services. An async context manager: on exit the client session is closed."""

    def __init__(self, limits: ProxyLimits) -> None:
        self.limits = limits
        self._session: aiohttp.ClientSession | None = None
        self._under_way: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        watched = aiohttp.TraceConfig()
        watched.on_request_redirect.append(_refuse_redirect)  # ws_connect would follow them
        watched.on_connection_create_end.append(_connected)
        # Nothing of its own is added: no cookies, no proxies of the environment, bodies as they are encoded. A
        # connection for each request, so that `visited` is called for every one; `slot` bounds their number. No total
        # time limit: an answer may last for hours, each step of it has a limit of its own (`ProxyLimits`).
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, limit=0, use_dns_cache=False, socket_factory=_socket),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.limits.connect_s),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            trace_configs=[watched],
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
        self._session = None

    def session(self) -> aiohttp.ClientSession:
        """The HTTP client; Problem service_unavailable while the daemon stops."""
        if self._session is None:
            raise Problem("service_unavailable", "the daemon is stopping")
        return self._session

    def url(self, passed: ProxiedAnswer) -> URL:
        """The URL with the pinned address, so that no name is resolved; Problem service_unavailable without one."""
        # Asked for each request: the operator may have taken the grant back.
        address: Address | None = passed.target.pinned()
        if address is None:
            raise Problem("service_unavailable", "the service is not bound")
        return URL(f"http://{hosts.bracketed(str(address))}:{passed.target.origin.port}{passed.path}", encoded=True)

    @contextlib.asynccontextmanager
    async def connecting(self, target: Proxied) -> AsyncIterator[None]:
        """Within the context one connection to the service can be made, in the network that it is in. Problem
        service_failed when it has none now.
        """
        if target.inside is None:
            yield
            return
        try:
            made = await target.inside(target.origin.address)
        except Problem as problem:
            raise bad_gateway() from problem
        with made_socket.left(made):
            yield

    @contextlib.contextmanager
    def slot(self, target: Proxied) -> Iterator[None]:
        """Count one request of the plugin while the context is open; Problem("busy") beyond `limits.at_once`."""
        if self._under_way[target.plugin_id] >= self.limits.at_once:
            raise Problem("busy", "too many requests at once")
        self._under_way[target.plugin_id] += 1
        # For `_connected`, which aiohttp calls in this task or one that it makes: both see this value.
        dialling = _FOR.set(target)
        try:
            yield
        finally:
            _FOR.reset(dialling)
            self._under_way[target.plugin_id] -= 1

    async def forward(self, passed: ProxiedAnswer) -> web.StreamResponse:
        """Proxy the request; returns the answer, already sent, or cut off when one side failed. Raises Problem only
        while nothing has been sent: `request_too_large`, `expectation_failed`, `busy`, `bad_request`, `service_failed`,
        `deadline_exceeded`, `service_unavailable`.
        """
        limits, request = self.limits, passed.request
        # Before the service is connected to.
        check_size(request, limits.body_bytes)
        check_expectation(request)
        fields = passed.headers()
        upload = Upload(request, limits)
        data: Any = None
        if request.body_exists:
            data = upload.pieces()
            if request.content_length is not None:
                # Without it aiohttp would send chunks: it does not know the length of an iterator.
                fields[hdrs.CONTENT_LENGTH] = str(request.content_length)
        with self.slot(passed.target):
            answer = await self._asked(passed, fields, data, upload)
            # For a short answer the rest of the upload is still being sent: closing the answer ends that.
            async with _released(answer):
                return await _passed_back(passed, answer, limits)

    async def _asked(
        self, passed: ProxiedAnswer, fields: CIMultiDict[str], data: Any, upload: Upload
    ) -> ClientResponse:
        """The head of the service's answer; the body of the request may still be under way. Problem as `forward`."""
        url, method = self.url(passed), passed.request.method
        try:
            async with (
                asyncio.timeout(self.limits.head_s) as upload.deadline,
                self.connecting(passed.target),
            ):
                # A redirect is for the client to follow; Expect has been answered by us, see `Upload.pieces`.
                answer = await self.session().request(
                    method, url, headers=fields, data=data, allow_redirects=False, expect100=False
                )
        except TimeoutError as error:
            # What the client did wrong shows up here as a failed request: report the cause.
            if upload.problem is not None:
                raise upload.problem from error
            # `sock_connect`: the service was not reached at all, so this is no late answer.
            if isinstance(error, aiohttp.ServerTimeoutError):
                raise bad_gateway() from error
            raise Problem("deadline_exceeded", "the service did not answer in time") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise (upload.problem or bad_gateway()) from error
        finally:
            # A service may answer before it has read the whole body: a timeout that was left cannot be rescheduled.
            upload.deadline = None
        # No upgrade was asked for: `relay` makes websockets, and other upgrades are not forwarded.
        if answer.status == 101:
            answer.close()
            raise bad_gateway()
        return answer


class Upload:
    """Streams a request's body; `problem` is set when it was too large, late or broken.

    `deadline`: that of the answer's head, postponed by each piece; None once the head has come.
    """

    def __init__(self, request: web.BaseRequest, limits: ProxyLimits) -> None:
        self._request = request
        self._limits = limits
        self.problem: Problem | None = None
        self.deadline: asyncio.Timeout | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        """The pieces as they arrive. An exception cuts the connection to the service, which sees an incomplete body.

        Problem, also in `problem`: aiohttp wraps the exception, and `Proxy._asked` reports the cause.
        """
        # aiohttp begins to read this once it has connected; before, a client that expects 100 Continue need not send.
        await _ask_for_body(self._request)
        received = 0
        while piece := await self._next():
            received += len(piece)
            if received > self._limits.body_bytes:
                raise self._wrong(too_large(self._limits.body_bytes))
            yield piece
            if self.deadline is not None and not self.deadline.expired():
                self.deadline.reschedule(asyncio.get_running_loop().time() + self._limits.head_s)

    async def _next(self) -> bytes:
        """The next piece, empty at the end of the body; Problem bad_request when it does not come in time or breaks."""
        try:
            async with asyncio.timeout(self._limits.upload_idle_s):
                return await self._request.content.readany()
        except TimeoutError as error:
            raise self._wrong(Problem("bad_request", "expected the whole body in time")) from error
        except (web.RequestPayloadError, aiohttp.ClientError) as error:
            raise self._wrong(Problem("bad_request", "expected the body that the headers promise")) from error

    def _wrong(self, problem: Problem) -> Problem:
        """Keep `problem` as the cause of a failed request (see `_asked`), and return it to be raised."""
        self.problem = problem
        return problem


async def _passed_back(passed: ProxiedAnswer, answer: ClientResponse, limits: ProxyLimits) -> web.StreamResponse:
    """Send the answer on, piece by piece; returns it, complete or cut off."""
    request = passed.request
    fields = forwarding.answered(
        answer.headers,
        origin=passed.origin,
        prefix=passed.target.prefix,
        private=passed.private,
        refused=answer.status == HTTPStatus.UNAUTHORIZED,
    )
    # Not `Response`, which would hold the whole body in memory.
    out = web.StreamResponse(status=answer.status, headers=fields)
    # Without a length aiohttp sends chunks to HTTP/1.1 clients, however the service framed its answer.
    if answer.content_length is not None:
        out.content_length = answer.content_length
    # Otherwise the rest of this body, or bytes after a refused upgrade, could be read as the next request.
    if (
        passed.connection.last
        or (request.body_exists and not request.content.at_eof())
        or hdrs.UPGRADE in request.headers
    ):
        out.force_close()
    try:
        await out.prepare(request)
        # The answer to HEAD has a Content-Length and no body (RFC 9110, section 9.3.2).
        if request.method != "HEAD":
            await _copied(answer, out, limits)
        await out.write_eof()
    except (aiohttp.ClientError, OSError, ValueError, TimeoutError):
        # One side is gone or too slow: abort, because a regular end would make the answer look complete.
        if passed.connection.wire is not None:
            passed.connection.wire.abort()
    return out


async def _copied(answer: ClientResponse, out: web.StreamResponse, limits: ProxyLimits) -> None:
    """Copy the body; ValueError beyond `answer_bytes`, TimeoutError when one side is too slow."""
    sent = 0
    while True:
        async with asyncio.timeout(limits.idle_s):
            piece = await answer.content.readany()
        if not piece:
            return
        sent += len(piece)
        if sent > limits.answer_bytes:
            raise ValueError("more than any answer may have")
        # A client that does not read must not keep the slot and the connection to the service.
        async with asyncio.timeout(limits.write_s):
            await out.write(piece)


@contextlib.asynccontextmanager
async def _released(answer: ClientResponse) -> AsyncIterator[None]:
    """Close the connection to the service at the end of the block, also when the answer was not read to its end."""
    try:
        yield
    finally:
        answer.close()


def _socket(info: tuple[Any, ...]) -> socket.socket:
    """A socket for `info` as from getaddrinfo(3): for a service in a network of its own, the one of that network."""
    if (made := made_socket.take()) is not None:
        return made
    # At the host's own loopback is somebody else.
    if _FOR.get().inside is not None:
        raise PermissionError("expected a socket of the service's own network")
    return socket.socket(*info[:3])


async def _connected(*_: object) -> None:
    """Called by aiohttp when it has connected to the service, before it sends anything."""
    _FOR.get().visited()


async def _refuse_redirect(*_: object) -> None:
    """Called by aiohttp when it is about to follow a redirect. aiohttp.ClientConnectionError makes the request fail."""
    raise aiohttp.ClientConnectionError("redirects are not followed")


def check_size(request: web.BaseRequest, most: int) -> None:
    """Problem("request_too_large") for a body whose Content-Length is over `most`."""
    if (request.content_length or 0) > most:
        raise too_large(most)


def check_expectation(request: web.BaseRequest) -> None:
    """Problem("expectation_failed") for an Expect other than 100-continue (RFC 9110, section 10.1.1)."""
    expects = request.headers.get(hdrs.EXPECT)
    if expects and (expects.lower() != "100-continue" or request.version < HttpVersion11):
        raise Problem("expectation_failed", "expected no other expectation than 100-continue")


async def _ask_for_body(request: web.BaseRequest) -> None:
    """Send 100 Continue if the client waits for it."""
    if hdrs.EXPECT in request.headers:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        cast("Any", request.writer).output_size = 0  # nothing of the answer itself has been sent


def bad_gateway() -> Problem:
    """The Problem for a service that cannot be reached, broke off, or answered what is no HTTP: 502."""
    return Problem("service_failed", "the service did not answer")


def too_large(most: int) -> Problem:
    """The Problem for a body of more than `most` bytes: 413."""
    return Problem("request_too_large", f"expected a body of at most {most} bytes")
