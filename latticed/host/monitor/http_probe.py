"""One GET: its status, whether its body has the expected words, and until when the certificate is valid.

Redirects are not followed, and nothing is kept from one check to the next: no connection, no cookie.
"""

from __future__ import annotations

import errno
import ssl
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp.http_exceptions import LineTooLong
from yarl import URL

from latticed.host.egress import headers
from latticed.host.egress.allowed import AllowedAddresses
from latticed.host.monitor import rules
from latticed.host.monitor.body_search import BodySearch
from latticed.host.monitor.rules import BadAnswer, HeaderTooLarge, HttpAnswer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp.connector import Connection

    from latticed.host.egress.url import Target
    from latticed.host.monitor.body_search import BodyFinding
    from latticed.host.monitor.spec import MonitorSpec
    from latticed.model.addresses import Address

BODY_BYTES: Final = 256 << 10
"""The bytes of a body that are searched. 256 KiB, which docs/write/services.md promises, bound the work of a check."""
# identity: most servers then send nothing compressed; those that do are decoded by `BodySearch`.
_HEADER: Final = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": headers.USER_AGENT}


async def check(
    spec: MonitorSpec, target: Target, addresses: Sequence[Address], tls: ssl.SSLContext | None
) -> HttpAnswer:
    """The answer to one GET of `target` at one of these addresses, which the guard has allowed.

    `tls`: the context for https; None for http. There is no deadline here: the caller sets one and cancels. The body is
    read only if `spec.body` is asked for and the status is an expected one.

    Raises OSError (ssl.SSLError included), BadAnswer or HeaderTooLarge (all of `rules.CheckError`) when there is no
    answer.
    """
    # A connector of its own for each check: its resolver and sockets are limited to the addresses allowed for this one,
    # and a reused connection would not show that the target accepts new ones.
    allowed = AllowedAddresses(lambda: addresses)
    connector = aiohttp.TCPConnector(
        resolver=allowed,
        socket_factory=allowed.socket,
        ssl=tls if tls is not None else True,
        use_dns_cache=False,
        force_close=True,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        response_class=_Response,
        cookie_jar=aiohttp.DummyCookieJar(),
        # aiohttp's own timeouts are off: `probes` has one deadline for the whole check, its name look-up included.
        timeout=aiohttp.ClientTimeout(total=None),
        # `BodySearch` decompresses, and bounds what comes out.
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
    ) as session:
        try:
            # encoded: yarl would normalise the path once more, and something else would be requested than was judged.
            url = URL(str(target), encoded=True)
            async with session.get(url, headers=_HEADER, allow_redirects=False) as answer:
                assert isinstance(answer, _Response)  # noqa: S101 - the class asked for above
                # With another status the check is down anyway: the body need not be read.
                search = spec.body and rules.is_expected(answer.status, spec)
                body = await _searched(answer, spec.body) if search else None
                return HttpAnswer(status=answer.status, expires_s=answer.expires_s, body=body)
        # aiohttp's exceptions are unwrapped: `rules.of_error` reads `verify_code` and `errno` of the original ones. The
        # certificate's class comes first, as it is a subclass of ClientConnectorError.
        except aiohttp.ClientConnectorCertificateError as error:
            raise _os_error(error.certificate_error) from error
        except aiohttp.ClientConnectorError as error:
            raise error.os_error from error
        # aiohttp raises it without an errno, by which `rules.of_error` finds the code.
        except aiohttp.ServerDisconnectedError as error:
            raise ConnectionResetError(errno.ECONNRESET, "the connection was closed without an answer") from error
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as error:
            # Before BadAnswer: a large header is legal, and must not be reported as down.
            if _is_our_limit(error):
                raise HeaderTooLarge(
                    "the answer's header is larger than what is read: 128 lines of at most 8190 bytes"
                ) from error
            raise BadAnswer(getattr(error, "message", "") or "the answer is not whole") from error


async def _searched(answer: _Response, wanted: str) -> BodyFinding:
    """The finding for the words `wanted`; reading ends as soon as it is known. Raises aiohttp.ClientPayloadError for
    broken framing.
    """
    coding = answer.headers.get("Content-Encoding", "")  # some servers ignore that identity was requested
    search = BodySearch(wanted, coding=coding, charset=answer.charset, limit=BODY_BYTES)
    while search.finding is None and (part := await answer.content.readany()):
        search.feed(part)
    return search.end()


def _is_our_limit(error: BaseException) -> bool:
    """Whether aiohttp's parser hit one of its limits, which a valid response may exceed.

    aiohttp has no class for too many lines, hence the comparison of its message.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, LineTooLong) or getattr(cause, "message", "") == "Too many headers received":
            return True
        # The parser's exception is a cause of the one that the client raises, not always the direct one.
        cause = cause.__cause__ or cause.__context__
    return False


class _Response(aiohttp.ClientResponse):
    """Notes when the certificate ends (seconds since the epoch, 0 without TLS) before the response is read: afterwards
    the connection may be released, and its transport gone.
    """

    expires_s = 0

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """As aiohttp's, which calls it once, with the open connection."""
        transport = connection.transport
        peer: ssl.SSLObject | None = transport.get_extra_info("ssl_object") if transport is not None else None
        certificate: Any = peer.getpeercert() if peer is not None else None
        if certificate:
            self.expires_s = ssl.cert_time_to_seconds(certificate["notAfter"])
        return await super().start(connection)


def _os_error(error: Exception) -> OSError:
    """The OSError that aiohttp wrapped; an ssl.SSLError with the same text if it wrapped another exception."""
    return error if isinstance(error, OSError) else ssl.SSLError(str(error))
