"""http.do: HTTP requests of plugins, through the egress guard (contracts §9, docs/operate/egress.md)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from latticed.host.call import Caller, HostError, Params, Served
from latticed.host.egress import headers, url
from latticed.host.egress.client import DEFAULT_LIMITS, EgressLimits
from latticed.host.egress.redirects import EgressRequest
from latticed.host.http import signature
from latticed.host.secret.references import REFERENCE
from latticed.model import hosts
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterator

    from latticed.host.egress.client import EgressAnswer, EgressClient
    from latticed.host.egress.headers import Header
    from latticed.host.secret.references import PluginSecrets
    from latticed.model.addresses import Address
    from latticed.model.egress import EgressRights

    Inside = Callable[[str, str, Address], Awaitable[socket.socket]]

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
MAX_IN_FLIGHT: Final = 64
"""Requests under way of all plugins: each holds a descriptor, and an answer of up to 256 KiB in memory."""
_BETWEEN: Final = "\ud800"
_INSIDE: Final = ("127.0.0.1", "::1")  # the hosts of a service's own network
MAX_IN_FLIGHT_OF_PLUGIN: Final = 8
"""Requests under way of one plugin, so that slow servers of one do not take all slots."""


class WebhookSign(Params, frozen=True):
    """How a request is signed as a webhook (`signature`): `secret` is one reference, `id` that of the message."""

    secret: str
    id: str


class HttpDo(Params, frozen=True):
    """Parameters of http.do."""

    url: str
    """https://, or http:// where the operator bound an origin; may hold `${secret:NAME}`."""
    method: str = "GET"
    """GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS."""
    header: dict[str, str] = {}
    """Values by name; may hold `${secret:NAME}`."""
    body: str | None = None
    """The body as text; at most one of this and `body_base64`."""
    body_base64: str | None = None
    """The body as bytes in base64."""
    sign: WebhookSign | None = None
    """Have the host sign the body for a webhook with a secret."""
    service: str = ""
    """The plugin's service in whose own network the URL is; empty: none."""


class HttpCalls:
    """Serves http.do. `rights_of(plugin_id)`: where a plugin may connect to now; `secrets_of(plugin_id)`: its secrets.

    `contacted(caller, "host:port")` is called for every target that the guard allows, before it is connected to.
    `inside(plugin_id, service, address)`: a socket in the own network of a plugin's service, or Problem.
    """

    def __init__(
        self,
        client: EgressClient,
        *,
        rights_of: Callable[[str], EgressRights],
        secrets_of: Callable[[str], PluginSecrets],
        limits: EgressLimits = DEFAULT_LIMITS,
        contacted: Callable[[Caller, str], None] = lambda caller, target: None,  # noqa: ARG005 - optional callback
        now_s: Callable[[], float] = time.time,
        inside: Inside | None = None,
    ) -> None:
        self._client = client
        self._rights_of = rights_of
        self._secrets_of = secrets_of
        self._limits = limits
        self._contacted = contacted
        self._now_s = now_s
        self._inside = inside
        self._in_flight: Counter[str] = Counter()

    def calls(self) -> tuple[Served, ...]:
        """The calls with their parameters and handlers, for `host.call.table`."""
        return (Served(method="http.do", params=HttpDo, serve=self._do),)

    async def _do(self, caller: Caller, asked: HttpDo) -> dict[str, Any]:
        """Serve http.do. HostError as `EgressClient.send`, and `bad_params`; values of secrets are redacted from it."""
        secrets = self._secrets_of(caller.plugin_id)
        rights = self._rights_of(caller.plugin_id)
        try:
            # Inside the slot also what comes before the connection: putting secrets in, encoding, look-ups.
            with self._slot(caller):
                request, uses_secrets = _request(asked, secrets, self._limits.body_bytes, now_s=int(self._now_s()))
                if asked.service and (uses_secrets or asked.sign is not None):
                    # Its program may be the plugin's own, which would show it the value.
                    raise HostError(Denial.EGRESS_BLOCKED, "scheme not allowed: no service of a plugin gets secrets")
                if uses_secrets:
                    self._check_channel(request, rights)
                if asked.service:
                    answer = await self._asked_inside(caller, asked.service, request)
                else:
                    answer = await self._client.send(
                        request,
                        rights,
                        limits=self._limits,
                        contacted=lambda target: self._contacted(caller, target.shown),
                    )
        except HostError as error:
            # The message may quote a URL or a header into which secrets have been put.
            raise HostError(error.code, secrets.redact(error.reason), fix=secrets.redact(error.fault.fix)) from error
        # Off the loop: an answer of 256 KiB is searched for each form of each secret.
        if uses_secrets:
            return await asyncio.to_thread(_result, answer, request, secrets)
        return _result(answer, request, None)

    async def _asked_inside(self, caller: Caller, service: str, request: EgressRequest) -> EgressAnswer:
        """The answer of a service of the caller, in its own network. HostError as `EgressClient.send`."""
        target = request.target
        if target.scheme != "http" or target.host not in _INSIDE or self._inside is None:
            raise HostError(Denial.BAD_PARAMS, f"url: expected http:// and one of {', '.join(_INSIDE)} in a service")
        address = hosts.address_of(target.host)
        assert address is not None  # noqa: S101 - of _INSIDE
        sock = await self._inside(caller.plugin_id, service, address)
        return await self._client.send_inside(request, sock, limits=self._limits)

    def _check_channel(self, request: EgressRequest, rights: EgressRights) -> None:
        """HostError egress_blocked for a request with secrets that goes neither over https nor to a bound origin."""
        target = request.target
        is_bound = self._client.guard.is_bound(target.host, target.port, rights, scheme=target.scheme)
        if target.scheme != "https" and not is_bound:
            raise HostError(Denial.EGRESS_BLOCKED, f"scheme not allowed: {target.shown} gets secrets over https only")

    @contextmanager
    def _slot(self, caller: Caller) -> Iterator[None]:
        """Count one request of the plugin while the context is open. HostError rate_limited, or service_unavailable."""
        if self._in_flight[caller.plugin_id] >= MAX_IN_FLIGHT_OF_PLUGIN:
            raise HostError(Denial.RATE_LIMITED, f"expected at most {MAX_IN_FLIGHT_OF_PLUGIN} requests at once")
        if self._in_flight.total() >= MAX_IN_FLIGHT:
            raise HostError(Denial.SERVICE_UNAVAILABLE, f"all plugins together have {MAX_IN_FLIGHT} requests under way")
        self._in_flight[caller.plugin_id] += 1
        try:
            yield
        finally:
            self._in_flight[caller.plugin_id] -= 1
            # Else a Counter keeps a zero for every plugin there ever was.
            if not self._in_flight[caller.plugin_id]:
                del self._in_flight[caller.plugin_id]


def _request(asked: HttpDo, secrets: PluginSecrets, max_bytes: int, *, now_s: int) -> tuple[EgressRequest, bool]:
    """The request as it is sent, with secrets put in, and whether it holds any; signed for `now_s`, where asked.

    HostError bad_params, too_large (also for a body of more than `max_bytes`), and as `PluginSecrets.expand`.
    """
    method = asked.method.upper() or "GET"
    if method not in METHODS:
        raise HostError(Denial.BAD_PARAMS, f"method: expected one of {', '.join(METHODS)}")
    target = url.parse(asked.url, expand=secrets.expand)
    header = headers.checked(asked.header)
    # Found before they are replaced: afterwards the value of a secret looks like any other.
    secret = frozenset(name.lower() for name, value in header if REFERENCE.search(value))
    if secret:
        header = _expanded(header, secrets)
    body, secret_body = _body(asked, secrets)
    if asked.sign is not None:
        signed = _signed(asked.sign, header, body, secrets, now_s=now_s)
        header = (*header, *signed)
        # Dropped where a redirect leads to another origin, like what holds a secret.
        secret |= {name.lower() for name, _ in signed}
    if len(body) > max_bytes:
        raise HostError(Denial.TOO_LARGE, f"body: expected at most {max_bytes} bytes, found {len(body)}")
    request = EgressRequest(
        method=method, target=target, header=header, body=body, secret=secret, secret_body=secret_body
    )
    # Of the text that was asked for: in the target the references have been replaced.
    return request, bool(secret or secret_body or REFERENCE.search(asked.url))


def _expanded(header: tuple[Header, ...], secrets: PluginSecrets) -> tuple[Header, ...]:
    """The headers with secrets put in. HostError as `headers.check_value`, `headers.check_size` and
    `PluginSecrets.expand`.
    """
    found: list[Header] = []
    for name, given in header:
        value = secrets.expand(given, most=headers.MAX_HEADER_BYTES)
        # A second time: the value of a secret may have a line break, or make the header too long.
        headers.check_value(name, value)
        found.append((name, value))
        # After each, not after all: a short header may refer to long values many times.
        headers.check_size(found)
    return tuple(found)


def _signed(
    sign: WebhookSign, header: tuple[Header, ...], body: bytes, secrets: PluginSecrets, *, now_s: int
) -> tuple[Header, ...]:
    """The headers that sign a request. HostError bad_params, also when one of them is given already."""
    if not REFERENCE.fullmatch(sign.secret):
        raise HostError(Denial.BAD_PARAMS, "sign.secret: expected ${secret:NAME}")
    found = signature.headers(secrets.expand(sign.secret), sign.id, body, now_s=now_s)
    own = {name.lower() for name, _ in found}
    if taken := [name for name, _ in header if name.lower() in own]:
        raise HostError(Denial.BAD_PARAMS, f"header: expected no {taken[0]}, which sign sets")
    return found


def _body(asked: HttpDo, secrets: PluginSecrets) -> tuple[bytes, bool]:
    """The body as bytes, and whether secrets were put into it. In `body_base64` none are."""
    if asked.body and asked.body_base64:
        raise HostError(Denial.BAD_PARAMS, "expected at most one of body and body_base64")
    try:
        # An empty text counts as no body.
        if asked.body_base64:
            return base64.b64decode(asked.body_base64, validate=True), False
        text = asked.body or ""
        return secrets.expand(text).encode("utf-8"), bool(REFERENCE.search(text))
    except UnicodeEncodeError as error:
        raise HostError(Denial.BAD_PARAMS, "body: expected text without lone surrogates") from error
    except binascii.Error as error:
        raise HostError(Denial.BAD_PARAMS, f"body_base64: expected base64, found {error}") from error


def _result(answer: EgressAnswer, request: EgressRequest, secrets: PluginSecrets | None) -> dict[str, Any]:
    """The answer of http.do to `request`; of `secrets` (None: it held none) what the server echoes is redacted."""
    header, body, target = answer.header, answer.body, str(answer.target)
    if secrets is not None:
        # All at once, as forms of secrets are made each time. No form has a lone surrogate, and neither has a header.
        # `headers.received` changes the case of names, so a value in one is searched for in any case.
        names = secrets.redact(_BETWEEN.join(header), any_case=True).split(_BETWEEN)
        found = secrets.redact(_BETWEEN.join(header.values())).split(_BETWEEN)
        header = dict(zip(names, found, strict=True)) if header else header
        # surrogateescape: bytes that are not UTF-8 come out as they went in.
        body = secrets.redact(body.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        target = secrets.redact(target)
    content = base64.b64encode(body).decode("ascii")
    result: dict[str, Any] = {"status_code": answer.status, "header": header, "body_base64": content}
    if (answer.method, answer.target) != (request.method, request.target):
        # Else a page behind a redirect, which GET asked for, would pass for the answer to a POST.
        result["redirected"] = {"method": answer.method, "url": target}
    return result
