"""One request to Cloudflare's API, and what its answers mean (API v4, envelope of `success`, `errors`, `result`)."""

from __future__ import annotations

import email.utils
import re
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from latticed.host.call import HostError
from latticed.host.ddns import outcome
from latticed.host.egress import headers, url
from latticed.host.egress.client import EgressLimits
from latticed.host.egress.redirects import EgressRequest
from latticed.kit.value import Value
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from latticed.host.ddns.outcome import ProviderRefused
    from latticed.host.egress.client import EgressAnswer, EgressClient
    from latticed.model.egress import EgressRights

T = TypeVar("T")

LIMITS: Final = EgressLimits(body_bytes=1 << 20, total_s=10.0)
"""Of one request: a page of records is well below 1 MiB."""
DEFAULT_PAUSE_S: Final = 300.0
"""The pause after 429 without Retry-After: the window of the API's rate limit."""
LONGEST_PAUSE_S: Final = 86_400.0
"""A longer Retry-After is cut to a day, so that a mistake of the provider does not stop updates for weeks."""
_TOO_MANY: Final = 429  # Too Many Requests (RFC 6585, section 4)
_AGAIN: Final = frozenset({81057, 81058})
"""The record exists already: it was created since the read, and the next try finds it."""
# Identifiers become parts of paths, so they hold no slash, dot or percent sign.
_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")


class _Error(msgspec.Struct, frozen=True):
    """One error of an answer; `code` is Cloudflare's own number, not an HTTP status."""

    code: int = 0
    message: str = ""


class _Info(msgspec.Struct, frozen=True):
    """How a list is paged; the fields depend on the endpoint and may be missing."""

    page: int = 1
    per_page: int = 0
    total_count: int | None = None
    total_pages: int | None = None


class _Envelope(msgspec.Struct, frozen=True):
    """The JSON object that every answer is: `result` when `success`, else `errors`."""

    success: bool
    errors: tuple[_Error, ...] | None = None
    result: Any = None
    result_info: _Info | None = None


class CloudflarePage(Value, frozen=True, kw_only=True):
    """The `result` of one request, not yet decoded, and how many pages the list has in all (1 for no list)."""

    result: Any
    pages: int


class CloudflareApi:
    """Sends requests to paths below `base` (no trailing slash), whose origin `rights` must allow."""

    def __init__(self, client: EgressClient, *, base: str, rights: EgressRights) -> None:
        self._client = client
        self._base = base
        self._rights = rights

    async def ask(self, method: str, path: str, token: str, body: dict[str, Any] | None = None) -> CloudflarePage:
        """The result of one request. `path` begins with a slash and includes the query; `body` is sent as JSON.

        ProviderRefused when the API refuses or its answer is malformed, HostError when the request could not be made.
        """
        answer = await self._client.send(self._request(method, path, token, body), self._rights, limits=LIMITS)
        found = _envelope(answer)
        if found is None or not found.success or not 200 <= answer.status < 300:
            raise _error(answer, found)
        return CloudflarePage(result=found.result, pages=_pages(found.result_info))

    def _request(self, method: str, path: str, token: str, body: dict[str, Any] | None) -> EgressRequest:
        """The request with the token as `Authorization: Bearer`; HostError egress_blocked without https, bad_params
        when the token has control characters.
        """
        target = url.parse(self._base + path)
        if target.scheme != "https":
            raise HostError(Denial.EGRESS_BLOCKED, "scheme not allowed: the token goes over https only")
        given = {"Accept": "application/json"}
        if body is not None:
            given["Content-Type"] = "application/json"
        # Checked here, as it is added past `headers.checked`: a token with a line end would add headers.
        headers.check_value("Authorization", token)
        header = (*headers.checked(given), ("Authorization", f"Bearer {token}"))
        payload = b"" if body is None else msgspec.json.encode(body)
        # `secret`: the token is not sent on when a redirect leads to another origin.
        return EgressRequest(
            method=method, target=target, header=header, body=payload, secret=frozenset({"authorization"})
        )


def typed(found: Any, kind: type[T]) -> T:
    """A part of an answer in its documented shape, `kind`; ProviderRefused (transient) otherwise."""
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise outcome.transient("bad_answer", f"the answer is not as documented: {error}") from error


def items(found: Any, kind: type[T]) -> list[T]:
    """A JSON array in which each element is a `kind`; raises as `typed`."""
    return [typed(one, kind) for one in typed(found, list)]


def checked_id(found: str) -> str:
    """`found`, if it is an identifier that can stand in a path; ProviderRefused (transient) otherwise."""
    if not _ID.fullmatch(found):
        raise outcome.transient("bad_answer", "expected an identifier of letters and digits")
    return found


def retry_after_s(value: str, *, now_s: float) -> float:
    """Seconds of a Retry-After field (RFC 9110, section 10.2.3), at most a day; 0 when it says nothing usable.

    "17"                             ->  17
    "Fri, 31 Dec 1999 23:59:59 GMT"  ->  the seconds from `now_s` (since the epoch) until then
    "soon", ""                       ->  0
    """
    if value.isascii() and value.isdigit():
        # Nine digits are more than a day already, and bound the work: the value comes from the peer.
        return min(float(value[:9]), LONGEST_PAUSE_S)
    try:
        at_s = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):  # the second one for a year of eleven digits
        return 0.0
    return min(max(at_s - now_s, 0.0), LONGEST_PAUSE_S)


def _envelope(answer: EgressAnswer) -> _Envelope | None:
    """The envelope of an answer, or None for another body, such as the HTML of a gateway."""
    try:
        return msgspec.json.decode(answer.body, type=_Envelope)
    except msgspec.MsgspecError:
        return None


def _pages(info: _Info | None) -> int:
    """How many pages a list has; 1 when the answer does not say."""
    if info is None:
        return 1
    if info.total_pages is not None:
        return info.total_pages
    # The number of pages, rounded up; `//` alone rounds down.
    return -(-(info.total_count or 0) // info.per_page) if info.per_page > 0 else 1


def _error(answer: EgressAnswer, found: _Envelope | None) -> ProviderRefused:
    """The ProviderRefused for an answer that is no success; its reason has status, codes and messages of the API.

    Lasting is only what a retry would not change: 401, 403 and other refusals of the request itself.
    """
    errors = (found.errors or ()) if found is not None else ()
    said = "; ".join(f"{one.code} {one.message}".strip() for one in errors) or "nothing more"
    reason = f"HTTP {answer.status}: {said}"
    # The status comes first: a proxy in front of the API answers 429 and 5xx without an envelope.
    if answer.status == _TOO_MANY:
        pause_s = retry_after_s(answer.header.get("Retry-After", ""), now_s=time.time())
        return outcome.transient("provider_rate_limited", reason, retry_after_s=pause_s or DEFAULT_PAUSE_S)
    if answer.status >= 500:
        pause_s = retry_after_s(answer.header.get("Retry-After", ""), now_s=time.time())
        return outcome.transient("provider_unavailable", reason, retry_after_s=pause_s)
    # Success without `success: true`, a redirect that was not followed, or no envelope: not what is documented, so it
    # may pass.
    if found is None or 200 <= answer.status < 400:
        return outcome.transient("bad_answer", reason)
    if answer.status == 404 or any(one.code in _AGAIN for one in errors):  # the record changed since it was read
        return outcome.transient("provider_conflict", reason)
    if answer.status in {401, 403}:
        return outcome.denied("bad_credentials", reason)
    return outcome.denied("provider_refused", reason)
