"""One GET: status, a word in the body, and how long the certificate is good. Redirects are results, not followed."""

from __future__ import annotations

import functools
import socket
import ssl
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.http_exceptions import LineTooLong
from yarl import URL

from latticed.host.egress import headers
from latticed.host.monitor import outcomes
from latticed.host.monitor.body_search import Search
from latticed.ledger.monitors import Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp.connector import Connection

    from latticed.host.egress.url import Target
    from latticed.host.monitor.body_search import Finding
    from latticed.host.monitor.spec import MonitorSpec
    from latticed.model.addresses import Address

BODY_BYTES: Final = 256 << 10
"""So much of a body is looked at."""
_DAY_S: Final = 86_400
_HEADER: Final = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": headers.USER_AGENT}


async def check(spec: MonitorSpec, target: Target, addresses: Sequence[Address], tls: ssl.SSLContext | None) -> Result:
    """The result of one request to one of these judged addresses; OSError and TimeoutError are for the caller."""
    connector = aiohttp.TCPConnector(
        resolver=_Judged(addresses),
        socket_factory=functools.partial(_judged_socket, frozenset(addresses)),
        ssl=tls if tls is not None else True,
        use_dns_cache=False,
        force_close=True,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        response_class=_Response,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
    ) as session:
        try:
            url = URL(str(target), encoded=True)
            async with session.get(url, headers=_HEADER, allow_redirects=False) as answer:
                assert isinstance(answer, _Response)  # noqa: S101 - the class asked for above
                return await _judged(spec, answer)
        except aiohttp.ClientConnectorCertificateError as error:
            return outcomes.of_os_error(_cause(error.certificate_error))
        except aiohttp.ClientConnectorError as error:
            return outcomes.of_os_error(error.os_error)
        except aiohttp.ServerDisconnectedError:
            return outcomes.down("reset", "the connection was closed without an answer")
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
            if _is_our_limit(error):
                reason = "the answer's header is larger than what is read: 128 lines of at most 8190 bytes"
                return Result(outcome="error", code="header_too_large", reason=reason)
            return outcomes.down("protocol_error", getattr(error, "message", "") or "the answer is not whole")


async def _judged(spec: MonitorSpec, answer: _Response) -> Result:
    def result(outcome: str, code: str = "", reason: str = "") -> Result:
        return Result(
            outcome=outcome,
            code=code,
            reason=reason,
            http_status=answer.status,
            expires_at=answer.expires_s * 1_000_000,
        )

    expected = answer.status in spec.statuses if spec.statuses else 200 <= answer.status < 400
    if not expected:
        wanted = ", ".join(map(str, spec.statuses)) or "200 to 399"
        return result("down", "status_unexpected", f"expected status {wanted}, found {answer.status}")
    if spec.body and (found := await _looked_for(answer, spec.body)).outcome != "up":
        return result(found.outcome, found.code, outcomes.shown(found.reason))
    if spec.certificate_days and answer.expires_s:
        left_s = answer.expires_s - int(time.time())
        if left_s < spec.certificate_days * _DAY_S:
            reason = f"expected a certificate that is good for {spec.certificate_days} days, found {left_s // _DAY_S}"
            return result("down", "certificate_expiring", reason)
    return result("up")


async def _looked_for(answer: _Response, wanted: str) -> Finding:
    """Whether the beginning of the body has these words; reading ends as soon as that is known."""
    coding = answer.headers.get("Content-Encoding", "")  # identity was asked for, and not every server listens
    search = Search(wanted, coding=coding, charset=answer.charset, limit=BODY_BYTES)
    while search.finding is None and (part := await answer.content.readany()):
        search.feed(part)
    return search.end()


def _is_our_limit(error: BaseException) -> bool:
    """Whether the parser gave up at a bound of ours, on what may be a good answer."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LineTooLong) or getattr(cause, "message", "") == "Too many headers received":
            return True
        cause = cause.__cause__ or cause.__context__
    return False


class _Response(aiohttp.ClientResponse):
    """Notes how long the certificate is good (seconds since the epoch), for the connection is soon given back."""

    expires_s = 0

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        transport = connection.transport
        peer: ssl.SSLObject | None = transport.get_extra_info("ssl_object") if transport is not None else None
        certificate: Any = peer.getpeercert() if peer is not None else None
        if certificate:
            self.expires_s = ssl.cert_time_to_seconds(certificate["notAfter"])
        return await super().start(connection)


class _Judged(AbstractResolver):
    """Knows one name: the one whose addresses the guard has judged."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily | int = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
            if family in {socket.AF_UNSPEC, socket.AF_INET if address.version == 4 else socket.AF_INET6}
        ]

    async def close(self) -> None:
        """Holds nothing."""


def _judged_socket(judged: frozenset[Address], info: tuple[Any, ...]) -> socket.socket:
    """A socket for an address that was judged: one that is written in a URL comes by here and by no resolver."""
    family, kind, proto, _, address = info
    if ip_address(address[0]) not in judged:
        raise PermissionError("an address that the guard has not judged")
    return socket.socket(family, kind, proto)


def _cause(error: Exception) -> OSError:
    return error if isinstance(error, OSError) else ssl.SSLError(str(error))
