"""HTTP through the guard: one request, its redirects, an answer of bounded size.

aiohttp cannot connect anywhere on its own: its resolver gives only the addresses that the guard has allowed for the
current request, and sockets are made for those only. Connections are not reused: one that was opened with the rights of
one caller must not serve another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Self

import aiohttp
from aiohttp.http_exceptions import LineTooLong
from yarl import URL

from latticed.host.call import HostError
from latticed.host.egress import authorities, body, headers, redirects
from latticed.host.egress.allowed import AllowedAddresses
from latticed.kit import made_socket
from latticed.kit.value import Value
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Iterator

    from latticed.host.egress.guard import Guard
    from latticed.host.egress.redirects import EgressRequest
    from latticed.host.egress.url import Target
    from latticed.model.addresses import Address
    from latticed.model.egress import EgressRights

# A ContextVar, as aiohttp passes no argument to resolver and socket factory. Tasks that aiohttp makes for a connection
# get a copy of the context (asyncio.create_task), so concurrent requests do not see each other's addresses.
_allowed: Final[ContextVar[tuple[Address, ...]]] = ContextVar("latticed_allowed_addresses", default=())
_PIECE_BYTES: Final = 256 << 10
"""Of a body that is not kept in memory: what is handed on at once, at most."""
_MAX_LINE_BYTES: Final = 8_190
"""Of the status line, and of each header field of an answer."""


class EgressLimits(Value, frozen=True, kw_only=True):
    """Limits of one call of `send`: bytes of the request's or an answer's body, seconds for all redirects together."""

    body_bytes: int = 256 << 10
    total_s: float = 10.0


DEFAULT_LIMITS: Final = EgressLimits()
Sink = Callable[[bytes], Awaitable[None]]
"""Takes the next piece of a body; the one after it is read once this returns."""


class EgressAnswer(Value, frozen=True, kw_only=True):
    """The last answer, to `method` at `target`: canonical header names as in `headers.received`, the decoded body."""

    status: int
    header: dict[str, str]
    body: bytes
    method: str
    target: Target


class EgressClient:
    """HTTP requests through `guard`; an async context manager, open while requests are sent.

    `tls` defaults to the certificate authorities of this host.
    """

    def __init__(self, guard: Guard, *, tls: ssl.SSLContext | None = None) -> None:
        self.guard = guard
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        allowed = AllowedAddresses(_allowed.get)
        # No cache of names, as addresses hold for one request; no limit here, as callers limit their requests.
        connector = aiohttp.TCPConnector(
            resolver=allowed,
            socket_factory=allowed.socket,
            use_dns_cache=False,
            force_close=True,
            limit=0,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            # A cookie of one plugin's server must not be sent with requests of another plugin.
            cookie_jar=aiohttp.DummyCookieJar(),
            # `body.decoded` decompresses, and bounds what comes out.
            auto_decompress=False,
            # HTTP_PROXY would lead past the guard, and ~/.netrc would add credentials of the daemon's user.
            trust_env=False,
            # `send` has one deadline for all hops together.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.guard.connect_s),
            # What may be sent is decided in `headers.checked`, which adds User-Agent and Accept-Encoding itself.
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(
        self,
        request: EgressRequest,
        rights: EgressRights,
        *,
        limits: EgressLimits = DEFAULT_LIMITS,
        contacted: Callable[[Target], None] | None = None,
        into: Sink | None = None,
    ) -> EgressAnswer:
        """The answer to `request` after at most five redirects; the guard checks each target, then `contacted` is
        called with it, before the connection is made.

        With `into`, the body of a 200 goes there in pieces as it comes, and is not in the answer.

        HostError: `egress_blocked`, `too_large`, `deadline_exceeded`, `service_unavailable`, `rate_limited` (look-ups).
        After a failure it is unknown whether the server has acted on the request.
        """
        try:
            async with asyncio.timeout(limits.total_s):
                # One deadline for all hops, look-ups included.
                for _ in range(redirects.MAX_REDIRECTS + 1):
                    found = await self._hop(request, rights, limits, contacted, into)
                    if isinstance(found, EgressAnswer):
                        return found
                    request = found
        except TimeoutError as error:
            timeout = f"no whole answer from {request.target.shown} within {limits.total_s:g} s"
            raise HostError(Denial.DEADLINE_EXCEEDED, timeout) from error
        raise HostError(Denial.EGRESS_BLOCKED, f"redirect not followed: more than {redirects.MAX_REDIRECTS}")

    async def send_inside(
        self, request: EgressRequest, sock: socket.socket, *, limits: EgressLimits = DEFAULT_LIMITS
    ) -> EgressAnswer:
        """The answer to `request`, over a socket of another network, which this closes; a redirect is an answer.

        The guard is not asked: the caller has judged where the socket leads. HostError as `send`.
        """
        target = request.target
        try:
            with made_socket.left(sock), _as_host_errors(target):
                async with asyncio.timeout(limits.total_s), self._request(request, None) as answer:
                    return await _read(answer, request, limits)
        except TimeoutError as error:
            timeout = f"no whole answer from {target.shown} within {limits.total_s:g} s"
            raise HostError(Denial.DEADLINE_EXCEEDED, timeout) from error

    async def _hop(
        self,
        request: EgressRequest,
        rights: EgressRights,
        limits: EgressLimits,
        contacted: Callable[[Target], None] | None,
        into: Sink | None,
    ) -> EgressAnswer | EgressRequest:
        """One request, once the guard has judged its target: its answer, or the request that its redirect leads to.

        Arguments as of `send`. HostError as `send`, but for its time limit.
        """
        target = request.target
        found = await self.guard.resolve(target.host, target.port, rights, scheme=target.scheme)
        if contacted is not None:
            contacted(target)
        with _allowing(found), _as_host_errors(target):
            tls = None if target.scheme == "http" else self._tls or await authorities.trusted()
            async with self._request(request, tls) as answer:
                if answer.status == 200 and into is not None:
                    return await _taken(answer, request, limits, into)
                if answer.status not in redirects.STATUSES:
                    return await _read(answer, request, limits)
                # The body of a redirect is not read: leaving the block closes the connection.
                status, location = answer.status, answer.headers.get("Location")

        # After the block: the connection to this hop is closed before the next one is judged.
        def is_bound(one: Target) -> bool:
            return self.guard.is_bound(one.host, one.port, rights, scheme=one.scheme)

        return redirects.follow(request, status, location, is_bound=is_bound)

    def _request(
        self, request: EgressRequest, tls: ssl.SSLContext | None
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """The context of one request: entering it sends the request and gives the head of the answer, leaving it closes
        the connection. `tls` is None for http. HostError service_unavailable while the daemon stops.
        """
        if self._session is None:
            raise HostError(Denial.SERVICE_UNAVAILABLE, "the host is stopping")
        return self._session.request(
            request.method,
            # `encoded`: yarl would otherwise normalise escapes, and send another URL than the one that was judged.
            URL(str(request.target), encoded=True),
            headers=request.header,
            data=request.body or None,
            # The guard has to judge the target of each hop: see `_hop`.
            allow_redirects=False,
            ssl=tls or True,
        )


async def _read(answer: aiohttp.ClientResponse, request: EgressRequest, limits: EgressLimits) -> EgressAnswer:
    """The answer with its whole body; HostError `too_large`, or for an encoding that cannot be decoded."""
    # No upgrade was asked for; what would follow is no HTTP (RFC 9110, section 15.2.2).
    if answer.status == 101:
        raise HostError(Denial.SERVICE_UNAVAILABLE, "the answer changes to another protocol")
    # From the raw bytes: aiohttp decodes values with surrogate escapes, which JSON cannot carry.
    header = headers.received(answer.raw_headers)
    # An answer to HEAD gives the length that GET would have, and has no body (RFC 9110, section 8.6).
    # Refused by what it announces, before anything is read; the loop below counts what really comes.
    if request.method != "HEAD" and (answer.content_length or 0) > limits.body_bytes:
        raise body.too_large(limits.body_bytes)
    raw = bytearray()
    async for part in answer.content.iter_any():
        raw += part
        if len(raw) > limits.body_bytes:
            raise body.too_large(limits.body_bytes)
    # Repeated fields are one list (RFC 9110, section 5.3); `body.decoded` refuses more than one encoding.
    encoding = ", ".join(answer.headers.getall("Content-Encoding", ()))
    content = body.decoded(bytes(raw), encoding, limit=limits.body_bytes)
    return EgressAnswer(status=answer.status, header=header, body=content, method=request.method, target=request.target)


async def _taken(
    answer: aiohttp.ClientResponse, request: EgressRequest, limits: EgressLimits, into: Sink
) -> EgressAnswer:
    """The answer without its body, which went `into`; HostError `too_large`, or for any encoding: none was asked for,
    and what is decoded may be a thousand times as large.
    """
    header = headers.received(answer.raw_headers)
    if any(one.strip().lower() not in {"", "identity"} for one in answer.headers.getall("Content-Encoding", ())):
        raise _unavailable("the answer has a Content-Encoding that was not asked for")
    if (answer.content_length or 0) > limits.body_bytes:
        raise body.too_large(limits.body_bytes)
    size = 0
    async for part in answer.content.iter_chunked(_PIECE_BYTES):
        size += len(part)
        if size > limits.body_bytes:
            raise body.too_large(limits.body_bytes)
        await into(part)
    return EgressAnswer(status=answer.status, header=header, body=b"", method=request.method, target=request.target)


@contextlib.contextmanager
def _allowing(found: tuple[Address, ...]) -> Iterator[None]:
    """Within this block the current task, and tasks it makes, may connect to the addresses `found`."""
    token = _allowed.set(found)
    try:
        yield
    finally:
        _allowed.reset(token)


@contextlib.contextmanager
def _as_host_errors(target: Target) -> Iterator[None]:
    """Raise HostError for errors of the connection, without their texts, which may contain the URL."""
    try:
        yield
    # Subclasses before their bases.
    except aiohttp.ClientConnectorCertificateError as error:
        raise _unavailable(f"the certificate of {target.shown} does not verify") from error
    except aiohttp.ClientSSLError as error:
        raise _unavailable(f"no TLS with {target.shown}") from error
    except aiohttp.ServerTimeoutError as error:
        raise HostError(Denial.DEADLINE_EXCEEDED, f"no connection to {target.shown} in time") from error
    except aiohttp.ClientConnectorError as error:
        raise _unavailable(f"cannot connect to {target.shown}") from error
    except aiohttp.ClientResponseError as error:
        # aiohttp wraps the error of its parser.
        if isinstance(_root(error), LineTooLong):
            raise HostError(Denial.TOO_LARGE, f"the header of {target.shown} has a line that is too long") from error
        raise _unavailable(f"{target.shown} did not answer in HTTP/1.1") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # An OSError too; it is the deadline, which `send` reports.
        if isinstance(error, TimeoutError):
            raise
        raise _unavailable(f"{target.shown} broke off") from error


def _root(error: BaseException) -> BaseException:
    """The first cause in a chain of exceptions."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _unavailable(message: str) -> HostError:
    return HostError(Denial.SERVICE_UNAVAILABLE, message)
